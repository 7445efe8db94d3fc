"""Nine subtypes of white blood cells, some of them rare."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from cellbench.data.download.transfer import OnRequest
from cellbench.data.file_module import FileDataModule
from cellbench.data.table import Sample

CLASSES = (
    "bands",
    "basophils",
    "blasts",
    "eosinophils",
    "lymphocytes",
    "metamyelocytes",
    "monocytes",
    "myelocytes",
    "neutrophils",
)

# Likely slide_field_x_y_size, as 23_78_949_983_256.
_NAME = re.compile(r"(\d+)_\d+_\d+_\d+_\d+")


@dataclass(kw_only=True, eq=False, repr=False)
class WBC9DataModule(FileDataModule):
    """White blood cells of nine subtypes: 528 images of 256x256, not public.

    27 bands, 8 basophils, 4 blasts, 25 eosinophils, 190 lymphocytes, 25 metamyelocytes, 30
    monocytes, 9 myelocytes and 210 neutrophils. Nothing is known of patients; the first number of
    names like `23_78_949_983_256` is likely the slide, and can be the group.

    Layout: `wbc/<class>/<name>.<ext>`, and `classify-images/1.jpg` to `59.jpg` without labels, for
    `predict --images`.
    """

    root: Path = Path("data/wbc9")
    by_slide: bool = True
    """True to take the first number of a name as the group; False only keeps equal images together,
    for classes that come from fewer than three slides."""

    how_to_get = (
        "the set is private: ask its owners, and give the folder that holds 'wbc' as --data.root"
    )

    source = OnRequest(licence="private")

    @property
    def published(self) -> tuple[int, ...]:
        """The numbers of the whole set."""
        return (27, 8, 4, 25, 190, 25, 30, 9, 210)

    @property
    def classes(self) -> tuple[str, ...]:
        """The nine subtypes, sorted."""
        return CLASSES

    def list_samples(self) -> list[Sample]:
        """List the images of the nine folders.

        Raises:
            UserError: A folder is missing, or there is one of another name.
        """
        samples = self._in_folders(self.root / "wbc", CLASSES)
        if not self.by_slide:
            return samples
        return [replace(sample, group=_slide(sample.id)) for sample in samples]


def _slide(name: str) -> str | None:
    match = _NAME.fullmatch(Path(name).stem)
    return None if match is None else f"slide {match[1]}"
