"""Blood smears of acute lymphoblastic leukemia, by stage."""

from dataclasses import dataclass
from pathlib import Path

from cellbench.data.download.transfer import Kaggle
from cellbench.data.file_module import FileDataModule
from cellbench.data.table import Sample

FOLDER = "Blood cell Cancer [ALL]"
FOLDERS = {
    "benign": "Benign",
    "early pre-B": "[Malignant] early Pre-B",
    "pre-B": "[Malignant] Pre-B",
    "pro-B": "[Malignant] Pro-B",
}


@dataclass(kw_only=True, eq=False, repr=False)
class LeukemiaDataModule(FileDataModule):
    """Peripheral blood smears with acute lymphoblastic leukemia: 3,242 images, four classes.

    512 benign (hematogones), 979 early pre-B, 955 pre-B and 796 pro-B images of 89 patients. **No
    patient is named**, so that every split has patients on both sides: only the identical images
    (40 are) are kept together. 3,195 images are 1024x768; the 46 of 2560x1920 are all benign or
    pro-B, so that the size hints at the class; one file cannot be read: leave it out with
    `exclude`.

    Layout: `Blood cell Cancer [ALL]/Benign/Snap_001 (3).jpg`, and folders `[Malignant] early
    Pre-B`, `[Malignant] Pre-B`, `[Malignant] Pro-B`. Source: Kaggle,
    mohammadamireshraghi/blood-cell-cancer-all-4class.

    Ghaderzadeh et al.: A fast and efficient CNN model for B-ALL diagnosis and its subtypes
    classification using peripheral blood smear images. Int J Intell Syst 37 (2022), doi
    10.1002/int.22753.
    """

    root: Path = Path("data/leukemia")

    how_to_get = (
        "run python -m cellbench fetch leukemia, or give the folder that holds "
        f"'{FOLDER}' as --data.root"
    )

    source = Kaggle(
        licence="see Kaggle", handle="mohammadamireshraghi/blood-cell-cancer-all-4class"
    )

    @property
    def published(self) -> tuple[int, ...]:
        """The numbers of the whole set."""
        return (512, 979, 955, 796)

    @property
    def classes(self) -> tuple[str, ...]:
        """benign, early pre-B, pre-B, pro-B."""
        return tuple(FOLDERS)

    def list_samples(self) -> list[Sample]:
        """List the images of the four folders.

        Raises:
            UserError: A folder is missing, or there is one of another name.
        """
        return self._in_folders(self.root / FOLDER, list(FOLDERS.values()))
