"""Anybody's images: a folder for each class, a table, or an archive of MedMNIST."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cellbench.data.file_module import FileDataModule
from cellbench.data.reading.describe import notes
from cellbench.data.reading.folders import HOW_TO
from cellbench.data.reading.groups import divides
from cellbench.data.reading.npz import Archive, find_archive
from cellbench.data.reading.reading import FolderOptions, Reading
from cellbench.data.reading.sources import read_images
from cellbench.data.table import Sample
from cellbench.data.views import Image
from cellbench.utils.errors import UserError


@dataclass(kw_only=True, eq=False, repr=False)
class FolderDataModule(FileDataModule):
    """Anybody's images: a folder for each class, a table, or an archive of MedMNIST.

    Without `csv`, the folders in `root` are the classes and all image files below them samples,
    but for masks, thumbnails and hidden files. Folders such as train, val and test above or below
    the classes are the official split, and folders such as fold1 are folds. `root` may also be an
    `.npz` of MedMNIST.

    With `csv`, its rows are the samples. Columns: path (below root) and label; and where known
    mask (below root), group (patient, slide), split (train, val or test), fold and domain
    (laboratory, scanner). What no column gives is taken from the folder, if it has it.

    Masks are found beside their images (`a_mask.png`, `a_cp_masks.png`, `a_mask.npy` ...), in
    folders that mirror the images (`masks/lymphocyte/a.png`, `images/` beside `msks/`), or by
    `mask_pattern`. A few of each name are looked into: photographs under such names are refused.
    Masks may have any suffix of an image, or be arrays of numpy.save; pickles are not read.

    The values of all masks together tell what they mean: 0 and another value (background, cell);
    0, 128 and 255, or a value inside another (background, cytoplasm, nucleus); or a number for each
    cell, which differs from mask to mask. Colours, and values that may mean several things, are
    named in `mask_values`; `mask_instance` says that each value is a cell, and which of them count.
    Up to 1 % of a mask's pixels may have other values, of which the nearest known one counts; a
    mask with more is refused, and so are an inverted, an empty and a full one.

    Images of equal content are kept in one part of the split. `python -m cellbench inspect ROOT`
    shows how a folder is understood.
    """

    csv: Path | None = None
    """Table of the samples: its path below root, or an absolute one; null for a folder for each
    class. Comma, semicolon or tab; UTF-8, UTF-16 or Windows-1252."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Column of the table for each role (path, label, mask, group, split, fold, domain) whose name
    is another, as {group: patient_id}; null for a role that no column has."""
    mask_pattern: str | None = None
    """Path of each image's mask from root, such as `masks/{path}.png`: {path} is the image's path
    without suffix, {parent} its folder, {name} its name and {stem} its name without suffix. Null
    looks in the usual places."""
    group_pattern: str | None = None
    """Regular expression that is searched in each image's path below root; what its named group
    `(?P<group>...)` matches is the image's group (patient, slide). Further groups may be named
    `fold` and `domain` (laboratory, scanner). none says that each image is a patient or slide of
    its own, whatever the names look like."""

    how_to_get = HOW_TO

    @cached_property
    def reading(self) -> Reading:
        """The understanding of the folder or table."""
        options = FolderOptions(self.mask_pattern, self.group_pattern, self.columns)
        return read_images(self.root, None if self.csv is None else Path(self.csv), options)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders, or labels of the table, sorted."""
        return self.reading.classes

    def list_samples(self) -> list[Sample]:
        """List the images of the class folders, or of the table's rows.

        Raises:
            UserError: It cannot be told what the samples are, or a listed file is missing.
        """
        return list(self.reading.samples)

    def group_samples(self, samples: list[Sample]) -> list[Sample]:
        """Return the samples as they are, if their split may take them.

        Raises:
            UserError: No group is known, and names or folders look as if there were some, which the
                split could divide.
        """
        pattern = self.reading.suggested.get("group_pattern")
        if pattern is None or self.group_pattern is not None or self.split.protocol == "image":
            return samples
        if self.split.protocol == "grouped" or divides(samples, str(pattern)):
            raise UserError(
                "data.group_pattern: names or folders look as if several images were of one "
                f'patient, slide or field; give "{pattern}" if it fits, another pattern, or none '
                "if each image is one (cellbench inspect shows more)"
            )
        return samples

    @property
    def makes_own_images(self) -> bool:
        """True for an archive."""
        return find_archive(self.root) is not None

    @property
    def note(self) -> str | None:
        """Files that are left out and observations that are doubtful, one a line; None for none."""
        return "\n".join(notes(self.reading)) or None

    @property
    def mask_places(self) -> str:
        """Places where masks were looked for."""
        return self.reading.mask_places

    def read_image(self, sample: Sample) -> Image:
        """Return the sample's image: RGB, uint8, (H, W, 3), at its native size."""
        return super().read_image(sample) if sample.image else self._archive.image(sample.id)

    def fingerprint(self, sample: Sample) -> str:
        """Return a digest of the sample's file, or of its pixels in an archive."""
        if sample.image is not None:
            return super().fingerprint(sample)
        image = self._archive.image(sample.id)
        return hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()

    @cached_property
    def _archive(self) -> Archive:
        path = find_archive(self.root)
        assert path is not None
        return Archive(path)
