"""Data module of a dataset in files below a folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cellbench.data import files
from cellbench.data.download.transfer import Source
from cellbench.data.module import CellDataModule
from cellbench.data.table import Part, Sample
from cellbench.utils.errors import UserError, suggest


@dataclass(kw_only=True, eq=False, repr=False)
class FileDataModule(CellDataModule):
    """A dataset in files below a root folder."""

    root: Path = Path("data")
    """Folder that holds the dataset."""

    how_to_get = "check the path"
    """Advice for a missing root, in one line."""

    source: ClassVar[Source | None] = None
    """Place where `fetch` gets the dataset; None if there is nothing to get."""

    def _require(self, path: Path, what: str) -> Path:
        """Return a path that must exist.

        Raises:
            UserError: It does not; the line says how to get the dataset.
        """
        if not self.root.is_dir():
            raise UserError(f"data.root: there is no folder {self.root}; {self.how_to_get}")
        if not path.exists():
            relative = path.relative_to(self.root)
            near = (*self.root.glob("*"), *self.root.glob("*/*"), *self.root.absolute().parents[:2])
            for other in near:
                if (other / relative).exists():
                    raise UserError(f"data.root: {what} is in {other}; give that folder")
            raise UserError(f"{what} {path} is missing; {self.how_to_get}")
        return path

    def _below(self, name: str, where: str) -> Path:
        """Return the path that a table or list names, which must lie below the root.

        Args:
            name: The path as the table has it.
            where: The table and row, for the error.

        Raises:
            UserError: The path is absolute, has `..`, or follows a link out of the root.
        """
        path = Path(name)
        inside = not path.is_absolute() and ".." not in path.parts and "\0" not in name
        if inside:
            root, real = (os.path.realpath(each) for each in (self.root, self.root / path))
            inside = os.path.commonpath([root, real]) == root
        if not inside:
            raise UserError(
                f"{where}: '{name}' leaves the dataset's folder; give a path below data.root"
            )
        return self.root / path

    def _in_folders(
        self, parent: Path, names: Sequence[str], *, split: Part | None = None
    ) -> list[Sample]:
        """Return the image files below one folder for each class, without masks.

        Args:
            parent: The folder that holds the folders.
            names: The folders' names, in the order of the classes.
            split: The part of the authors' split that the images are in.

        Raises:
            UserError: A folder is missing, or there is one of another name.
        """
        self._require(parent, "the folder")
        found = {path.name for path in parent.iterdir() if path.is_dir()}
        for name in names:
            if name not in found:
                raise UserError(f"{parent} has no folder '{name}'{suggest(name, found)}")
        for name in sorted(found - set(names)):
            raise UserError(f"{parent / name} is no class of this dataset{suggest(name, names)}")
        return [
            Sample(self._id(path), label, path, split=split)
            for label, name in enumerate(names)
            for path in files.images_below(parent / name)
        ]

    def _id(self, path: Path) -> str:
        name = path.relative_to(self.root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{name!r} in {self.root} is no UTF-8 name, and no table could hold it; rename it"
            ) from error
        return name
