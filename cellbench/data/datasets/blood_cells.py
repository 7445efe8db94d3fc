"""Blood cells of Kaggle: augmented copies, and the originals that they were made of."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from scipy.stats import chisquare

from cellbench.data.download.transfer import Kaggle
from cellbench.data.duplicates.sources import find_sources
from cellbench.data.file_module import FileDataModule
from cellbench.data.image_store import content_digests
from cellbench.data.published import Check
from cellbench.data.reading.table_file import read_table
from cellbench.data.table import Part, Sample, join
from cellbench.utils.errors import UserError

CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
FOLDERS = ("TRAIN", "TEST", "TEST_SIMPLE")
_UPPER = [name.upper() for name in CLASSES]

# As Kaggle's archive unpacks, once or twice nested, and as some mirrors have it.
IMAGES = ("images", "dataset2-master/images", "dataset2-master/dataset2-master/images")
ORIGINALS = (
    "Original_Images",
    "dataset-master/JPEGImages",
    "dataset-master/dataset-master/JPEGImages",
)
LABELS = ("labels.csv", "dataset-master/labels.csv", "dataset-master/dataset-master/labels.csv")


@dataclass(kw_only=True, eq=False, repr=False)
class BloodCellsDataModule(FileDataModule):
    """White blood cells of Kaggle, most of them augmented copies of 348 originals.

    `copies`: 9,957 training and 2,487 test images of 320x240 that were made of 277 and 71 originals
    by turning, shifting, shearing and mirroring, 2,497/2,483/2,478/2,499 and 623/620/620/624 of
    the classes eosinophil, lymphocyte, monocyte and neutrophil. **The number in a file's name is
    not its original's**: that is found in the pixels (sources.py) once for all runs. `originals`:
    the 348 themselves, 640x480, 88/33/20/207; 3 basophils and those with several cells are left
    out. Some originals are two photographs of one field (copies.py), and TRAIN and TEST share a
    few of them: the group is the field, and the official split wants `data.split.purge`. Without
    the originals' folder use `data.copies: near`, which groups the copies themselves.

    Layout: `images/TRAIN/EOSINOPHIL/_0_207.jpeg` and so on, `images/TEST`, `images/TEST_SIMPLE`
    (the 71 test originals, not augmented), `Original_Images/BloodImage_00000.jpg` and `labels.csv`;
    or as the archive unpacks, `dataset2-master/images` and `dataset-master/JPEGImages`. Source:
    Kaggle, paultimothymooney/blood-cells (MIT). Nothing is known of patients.
    """

    root: Path = Path("data/blood_cells")
    kind: Literal["copies", "originals"] = "copies"
    """The augmented copies, or the originals."""
    official_test: Literal["TEST", "TEST_SIMPLE"] = "TEST"
    """Official test set of the copies: TEST, or its originals TEST_SIMPLE."""

    how_to_get = (
        "run python -m cellbench fetch blood_cells, or give the folder that holds 'images' "
        "(or 'dataset2-master') as --data.root"
    )

    source = Kaggle(licence="MIT", handle="paultimothymooney/blood-cells")

    @property
    def published(self) -> tuple[int, ...]:
        """The numbers of the whole set."""
        if self.kind == "originals":
            return (88, 33, 20, 207)
        return (
            (3120, 3103, 3098, 3123) if self.official_test == "TEST" else (2510, 2489, 2482, 2547)
        )

    @property
    def note(self) -> str | None:
        """Differences from the published numbers, and the number of copies without an original."""
        notes = [super().note]
        if self.kind == "copies" and self._has_originals:
            lost = [sample.id for sample in self.table.samples if sample.group is None]
            if lost:
                notes.append(f"{len(lost)} match no original, the first '{lost[0]}'")
        return "; ".join(filter(None, notes)) or None

    @property
    def classes(self) -> tuple[str, ...]:
        """eosinophil, lymphocyte, monocyte, neutrophil."""
        return CLASSES

    def list_samples(self) -> list[Sample]:
        """List the copies of both parts, or the originals.

        Raises:
            UserError: A folder or the label file is missing.
        """
        if self.kind == "originals":
            return self._originals()
        parts: dict[Part, str] = {"train": "TRAIN", "test": self.official_test}
        return [
            sample
            for part, folder in parts.items()
            for sample in self._in_folders(self._images / folder, _UPPER, split=part)
        ]

    def group_samples(self, samples: list[Sample]) -> list[Sample]:
        """Group originals by their field, and copies by their original's field.

        Raises:
            UserError: The groups matter, and the originals are not there to be recognised.
        """
        if self.kind == "originals":
            return self._with_fields(samples)
        if not self._has_originals:
            if self.split.protocol == "image" or self.copies == "near":
                return samples
            raise UserError(
                f"data.root: {self.root} has no {ORIGINALS[0]}, by which copies of one original "
                "are kept together; add them, or use data.copies: near, which finds what shows "
                "one field without them"
            )
        group = {sample.id: sample.group for sample in self._with_fields(self._originals())}
        return [
            replace(sample, group=None if original is None else group[original.id])
            for sample, original in self._matched(samples)
        ]

    @property
    def _has_originals(self) -> bool:
        return any((self.root / name).is_dir() for name in ORIGINALS)

    def _with_fields(self, originals: list[Sample]) -> list[Sample]:
        """Return the originals, grouped by the field that they show."""
        pairs = [(copy.first, copy.second) for copy in self.find_copies(originals)]
        return [
            replace(sample, group=originals[first].id)
            for sample, first in zip(originals, join(len(originals), pairs), strict=True)
        ]

    def _originals(self) -> list[Sample]:
        """List the originals that show one cell of the four classes."""
        folder = self._find(ORIGINALS, "the originals' folder")
        table = self._find(LABELS, "the originals' label file")
        samples = []
        for row in read_table(table, {"Image"}, empty={"Category"}):
            name = row["Category"].lower()
            image = folder / f"BloodImage_{row['Image'].zfill(5)}.jpg"
            if name in CLASSES and image.is_file():  # some rows have no image
                samples.append(Sample(self._id(image), CLASSES.index(name), image))
        if not samples:
            raise UserError(f"{table} names no image in {folder} of {', '.join(CLASSES)}")
        return samples

    def _matched(self, copies: list[Sample]) -> Iterator[tuple[Sample, Sample | None]]:
        """Yield each copy with its original, or None if none fits; both have the same class."""
        originals = self._originals()
        for label, name in enumerate(CLASSES):
            of_class = [sample for sample in copies if sample.label == label]
            own = [sample for sample in originals if sample.label == label]
            if not own:
                raise UserError(f"data.root: there is no original of class '{name}'")
            found = find_sources(
                content_digests(self, of_class),
                self.image_reader(of_class),
                content_digests(self, own),
                self.image_reader(own),
                self.cache,
            )
            for sample, match in zip(of_class, found, strict=True):
                yield sample, None if match.original < 0 else own[match.original]

    def checks(self) -> list[Check]:
        """Compare the numbers, and check that the originals which were recognised are plausible.

        Nothing but the pixels tells a copy's original, and yet each original must have about as
        many copies as the others of its class, in one part alone, and TEST_SIMPLE shows those of
        TEST. (In the published TEST_SIMPLE two of 71 images stand twice in the place of others.)
        """
        if self.kind == "originals" or not self._has_originals:
            return super().checks()
        of_part: dict[str, dict[str, Counter[str]]] = {}
        lost = 0
        for part in FOLDERS:
            there = (self._images / part).is_dir()  # a run needs no TEST_SIMPLE
            copies = self._in_folders(self._images / part, _UPPER) if there else []
            copies = [sample for sample in copies if sample.id not in self.exclude]
            of_part[part] = {name: Counter() for name in CLASSES}
            for sample, original in self._matched(copies):
                lost += original is None
                if original is not None:
                    of_part[part][CLASSES[sample.label]][original.id] += 1
        names = {part: {n for c in counts.values() for n in c} for part, counts in of_part.items()}
        even = [_evenness(name, of_part["TRAIN"][name]) for name in CLASSES]
        both, simple = names["TRAIN"] & names["TEST"], names["TEST_SIMPLE"]
        return [
            *super().checks(),
            Check("every copy has an original", f"{lost} have none", lost == 0),
            Check(
                "the originals of a class have as many training copies each, but for chance",
                "; ".join(text for text, _ in even),
                all(holds for _, holds in even),
            ),
            Check("no original is in TRAIN and TEST", f"{len(both)} are", not both),
            Check(
                "TEST_SIMPLE shows the originals of TEST, and none of TRAIN",
                f"{len(simple)}, of which {len(simple & names['TEST'])} are of TEST's "
                f"{len(names['TEST'])}, {len(simple & names['TRAIN'])} of TRAIN",
                not simple & names["TRAIN"],
            ),
        ]

    @property
    def _images(self) -> Path:
        return self._find(IMAGES, "the images' folder")

    def _find(self, names: Sequence[str], what: str) -> Path:
        """Return the first of several paths that exists."""
        for name in names:
            if (self.root / name).exists():
                return self.root / name
        return self._require(self.root / names[0], what)


def _evenness(name: str, copies: Counter[str]) -> tuple[str, bool]:
    """Describe how evenly the copies of a class are spread over its originals, and test it."""
    counts = list(copies.values()) or [0]
    text = f"{name} {min(counts)} to {max(counts)} of {len(copies)} originals"
    return text, sum(counts) > 0 and float(chisquare(counts).pvalue) > 0.001
