"""Anybody's images: a folder for each class, or a CSV file."""

import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

from cellbench.data import files
from cellbench.data.file_module import FileDataModule
from cellbench.data.table import Part, Sample, check_ids
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
    mask (below root), group (patient, slide) and split (train, val or test).

    Masks have one channel and two values (background 0, cell), or 0, 128 and 255 (background,
    cytoplasm, nucleus). Images of equal content are kept in one part of the split.
    """

    csv: Path | None = None
    """Table of the samples, below root; null for a folder for each class."""

    how_to_get = "give a folder that holds one folder for each class, or a table as --data.csv"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders, or labels of the CSV, sorted."""
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        if self.csv is None:
            names = [path.name for path in self._class_folders()]
        else:
            names = sorted({row["label"] for row in self._rows()})
        if len(names) < 2:
            found = f"found {', '.join(names) or 'none'} in {self.csv or self.root}"
            raise UserError(f"at least two classes are needed; {found}: {self.how_to_get}")
        return tuple(names)

    def list_samples(self) -> list[Sample]:
        """List the images of the class folders, or of the table's rows.

        Raises:
            UserError: A listed file is missing, a class has no image, or a split is not known.
        """
        return self._from_folders() if self.csv is None else self._from_table()

    @property
    def note(self) -> str | None:
        """Files that are not among the samples of the class folders, counted; None for none."""
        if self.csv is not None:
            return None
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

    def _rows(self) -> list[dict[str, str]]:
        assert self.csv is not None
        table = self.root / self.csv
        if not table.is_file():
            raise UserError(f"data.csv: there is no table {table}; its path is below data.root")
        return files.read_table(table, {"path", "label"})

    def _from_table(self) -> list[Sample]:
        samples = []
        rows = self._rows()
        ids = [Path(row["path"]).as_posix() for row in rows]
        check_ids(ids)  # before the file system is asked for each
        for column in ("group", "split"):
            without = [row["path"] for row in rows if not row.get(column)]
            if without and len(without) < len(rows):
                raise UserError(
                    f"{self.csv}: '{without[0]}' has no {column} and others have one; fill it in, "
                    "with a name of its own where it is not known"
                )
        for name, row in zip(ids, rows, strict=True):
            split = row.get("split") or None
            if split is not None and split not in get_args(Part):
                raise UserError(
                    f"{self.csv}: '{row['path']}' has the split '{split}'; "
                    f"allowed: {', '.join(get_args(Part))}"
                )
            image = self._listed(row["path"])
            mask = row.get("mask") or None
            samples.append(
                Sample(
                    id=name,
                    label=self.classes.index(row["label"]),
                    image=image,
                    mask=self._listed(mask) if mask else None,
                    group=row.get("group") or None,
                    split=split,  # type: ignore[arg-type]  # checked above
                )
            )
        return samples

    def _listed(self, name: str) -> Path:
        table = self.root / str(self.csv)
        path = self._below(name, str(table))
        if not os.path.isfile(path):  # Path.is_file raises if the name is too long
            raise UserError(f"{table} lists '{name}', but there is no {path}")
        return path


def _by_ending(names: list[str]) -> str:
    """Return how many files have each ending, the most frequent first."""
    counts = Counter(Path(name).suffix.lower() or name for name in names)
    shown = [counted(n, f"{ending} file") for ending, n in counts.most_common(_ENDINGS)]
    return ", ".join(shown) + (", ..." if len(counts) > _ENDINGS else "")
