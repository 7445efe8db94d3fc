"""Anybody's images: a folder for each class, or a CSV file."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cellbench.data import files
from cellbench.data.file_module import FileDataModule
from cellbench.data.reading.label_table import read_label_table
from cellbench.data.reading.reading import FolderOptions, Reading
from cellbench.data.table import Sample
from cellbench.utils.errors import UserError, counted

_ENDINGS = 5
"""Largest number of endings in a note on files that are left out."""


@dataclass(kw_only=True, eq=False, repr=False)
class FolderDataModule(FileDataModule):
    """Anybody's images: a folder for each class, or a CSV file.

    Without `csv`, every folder in `root` is a class and every image file below it a sample. A
    folder `masks` beside them holds the masks, under the image's path with the suffix `.png`
    (`root/lymphocyte/a.jpg` has `root/masks/lymphocyte/a.png`).

    With `csv`, its rows are the samples. Columns: path (below root) and label; and where known
    mask (below root), group (patient, slide), split (train, val or test), fold and domain
    (laboratory, scanner). Without a label, the folders of the images are the classes.

    Masks have one channel and two values (background 0, cell), or 0, 128 and 255 (background,
    cytoplasm, nucleus). Images of equal content are kept in one part of the split.
    """

    csv: Path | None = None
    """Table of the samples: its path below root, or an absolute one; null for a folder for each
    class. Comma, semicolon or tab; UTF-8, UTF-16 or Windows-1252."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Column of the table for each role (path, label, mask, group, split, fold, domain) whose name
    is another, as {group: patient_id}; null for a role that no column has."""

    how_to_get = "give a folder that holds one folder for each class, or a table as --data.csv"

    def __post_init__(self) -> None:
        """Check what can be checked without reading a file.

        Raises:
            UserError: Columns are given, and no table that has them.
        """
        super().__post_init__()
        if self.columns and self.csv is None:
            raise UserError("data.columns: they are those of a table; give it as data.csv")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders, or labels of the CSV, sorted."""
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        if self.csv is None:
            names = [path.name for path in self._class_folders()]
        else:
            names = list(self._table_reading.classes)
        if len(names) < 2:
            found = f"found {', '.join(names) or 'none'} in {self.csv or self.root}"
            raise UserError(f"at least two classes are needed; {found}: {self.how_to_get}")
        return tuple(names)

    def list_samples(self) -> list[Sample]:
        """List the images of the class folders, or of the table's rows.

        Raises:
            UserError: A listed file is missing, a class has no image, or a split is not known.
        """
        return self._from_folders() if self.csv is None else list(self._table_reading.samples)

    @property
    def note(self) -> str | None:
        """Files and columns that are not used, and what looks suspicious; None for nothing."""
        if self.csv is not None:
            return _note_on_table(self._table_reading)
        below = [
            name
            for folder in self._class_folders()
            for _, _, names in os.walk(folder)
            for name in names
            if Path(name).suffix.lower() not in files.IMAGE_SUFFIXES
        ]
        above = [path.name for path in self.root.iterdir() if path.is_file()]
        places = [("in the class folders", below), ("above the class folders", above)]
        found = [f"{_by_ending(names)} {where}" for where, names in places if names]
        return f"no samples: {'; '.join(found)}" if found else None

    def _class_folders(self) -> list[Path]:
        self._require(self.root, "the folder")
        return sorted(
            path
            for path in self.root.iterdir()
            if path.is_dir() and path.name != "masks" and not path.name.startswith(".")
        )

    def _from_folders(self) -> list[Sample]:
        samples = []
        for label, folder in enumerate(self._class_folders()):
            for image in files.images_below(folder):
                mask = self.root / "masks" / image.relative_to(self.root).with_suffix(".png")
                samples.append(
                    Sample(self._id(image), label, image, mask if mask.exists() else None)
                )
        return samples

    @cached_property
    def _table_reading(self) -> Reading:
        assert self.csv is not None
        return read_label_table(self.root, Path(self.csv), FolderOptions(columns=self.columns))


def _note_on_table(reading: Reading) -> str | None:
    notes = []
    if reading.unused_columns:
        notes.append(f"columns not used: {', '.join(reading.unused_columns)}")
    for reason, counts in reading.left_out.items():
        notes.append(f"{reason}: {_by_ending(list(counts.elements()))}")
    notes += [f"{doubt.what} ({doubt.option})" for doubt in reading.doubts]
    return "; ".join(notes) or None


def _by_ending(names: list[str]) -> str:
    """Return how many files have each ending, the most frequent first."""
    counts = Counter(Path(name).suffix.lower() or name for name in names)
    shown = [counted(n, f"{ending} file") for ending, n in counts.most_common(_ENDINGS)]
    return ", ".join(shown) + (", ..." if len(counts) > _ENDINGS else "")
