"""White blood cells of HPV patients, with expert masks."""

from dataclasses import dataclass
from pathlib import Path

from cellbench.data.download.transfer import GitHub
from cellbench.data.file_module import FileDataModule
from cellbench.data.reading.table_file import read_table
from cellbench.data.table import Sample
from cellbench.utils.errors import UserError

CLASSES = {"1": "neutrophil", "2": "lymphocyte", "3": "monocyte", "4": "eosinophil"}
BASOPHIL = "5"  # a single image, which no split can hold

# No slide or patient is known, but these pairs show one cell, photographed or cut out twice
# (registered by `audit`, and seen by eye); 60 and 90 have different labels.
NEAR_COPIES = (
    *(("019", "075"), ("021", "082"), ("026", "089"), ("030", "086"), ("051", "073")),
    *(("054", "091"), ("056", "092"), ("060", "090"), ("070", "072"), ("071", "084")),
    *(("157", "158"), ("166", "171"), ("167", "169")),
)
GROUPS = {number: "+".join(pair) for pair in NEAR_COPIES for number in pair}


@dataclass(kw_only=True, eq=False, repr=False)
class HPVDataModule(FileDataModule):
    """White blood cells with expert masks: raw against masked on 299 images, four classes.

    "WBC Dataset 1": 176 neutrophils, 53 lymphocytes, 48 monocytes and 22 eosinophils; the one
    basophil is left out. Images of 88x88 to 120x120 with hand-drawn masks of cytoplasm and
    nucleus. No patient or slide is known: the groups are the identical pair 112/139 and 13 pairs
    that show one cell, such as 166/171; the pair 60/90 has two labels. The authors warn that the
    labels were not double-checked.

    Layout: `Dataset 1/001.bmp` to `300.bmp`, each with a mask `001.png`, and `Class Labels of
    Dataset 1.csv`. Source: the GitHub repository zxaoyou/segmentation_WBC (GPL-3; acknowledge
    Jiangxi Tecom Science Corporation).

    Zheng, Wang, Wang, Liu: Fast and robust segmentation of white blood cell images by
    self-supervised learning. Micron 107 (2018), doi 10.1016/j.micron.2018.01.010.
    """

    root: Path = Path("data/hpv")

    how_to_get = (
        "run python -m cellbench fetch hpv, or give the folder that holds "
        "'Dataset 1' and 'Class Labels of Dataset 1.csv' as --data.root"
    )

    source = GitHub(
        licence="GPL-3",
        repository="zxaoyou/segmentation_WBC",
        commit="fa9c016",
        checksums=Path(__file__).with_suffix(".sha256"),
    )

    @property
    def published(self) -> tuple[int, ...]:
        """The numbers of the whole set."""
        return (176, 53, 48, 22)

    @property
    def classes(self) -> tuple[str, ...]:
        """neutrophil, lymphocyte, monocyte, eosinophil."""
        return tuple(CLASSES.values())

    def list_samples(self) -> list[Sample]:
        """List the 299 cells; each image must have a label and a mask, and each label an image.

        Raises:
            UserError: They do not, or a label is not known.
        """
        folder = self._require(self.root / "Dataset 1", "the image folder")
        csv = self._require(self.root / "Class Labels of Dataset 1.csv", "the label file")
        labels: dict[str, str] = {}
        for row in read_table(csv, {"image ID", "class label"}):
            number, label = row["image ID"], row["class label"]
            if label not in CLASSES and label != BASOPHIL:
                raise UserError(f"{csv}: image {number} has the label '{label}'; known are 1 to 5")
            if labels.setdefault(number.zfill(3), label) != label:
                raise UserError(f"{csv}: image {number} has two labels")
        images = {path.stem: path for path in sorted(folder.glob("*.bmp"))}
        for number in sorted(labels.keys() ^ images.keys()):
            if number in labels:
                raise UserError(
                    f"{csv} labels image {number}, but {folder}/{number}.bmp is missing"
                )
            raise UserError(f"{images[number]} has no label in {csv}")
        samples = []
        for number, image in images.items():
            if labels[number] == BASOPHIL:
                continue
            mask = self._require(image.with_suffix(".png"), f"the mask of {image.name},")
            label_index = list(CLASSES).index(labels[number])
            group = GROUPS.get(number)
            samples.append(Sample(self._id(image), label_index, image, mask, group))
        return samples
