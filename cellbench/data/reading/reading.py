"""Result of reading a folder or a table: its samples, and everything that the user should see."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from cellbench.data.table import Sample

NO_GROUPS = "none"
"""Value of `data.group_pattern` for images of which each is a patient, slide or field."""


@dataclass(frozen=True)
class FolderOptions:
    """Options that decide how a folder or a table is read."""

    mask_pattern: str | None = None
    """Path of each image's mask, such as `masks/{path}.png`; None to look in the usual places."""
    group_pattern: str | None = None
    """Regular expression, searched in each id, whose named groups give group, domain and fold;
    `NO_GROUPS` if names and folders tell no groups, and None to look for hints of some."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Header of the table's column for each role; None for a role that no column has."""

    @property
    def pattern(self) -> str | None:
        """The regular expression of `group_pattern`; None if it is none."""
        return None if self.group_pattern == NO_GROUPS else self.group_pattern


@dataclass(frozen=True)
class Doubt:
    """Something that looks suspicious, with the option that settles it."""

    what: str
    """The observation, with its numbers and the first example."""
    option: str = ""
    """The option of the command line that settles it, such as `data.mask_pattern`; empty if it is
    the files that must change, which `what` then says."""

    def __str__(self) -> str:
        return f"{self.what} ({self.option})" if self.option else self.what


@dataclass(frozen=True)
class Reading:
    """Understanding of a folder or a table of images."""

    classes: tuple[str, ...]
    """Class names, sorted; a label is an index into them."""
    samples: tuple[Sample, ...]
    """The samples, sorted by id."""
    found: Mapping[str, str] = field(default_factory=dict)
    """Where each kind of information was found: classes, parts, folds, groups, domains, masks."""
    left_out: Mapping[str, Counter[str]] = field(default_factory=dict)
    """Files that are not samples: for each reason, their numbers by suffix."""
    doubts: tuple[Doubt, ...] = ()
    """Observations that the user should settle; none of them stops the reading."""
    unused_columns: tuple[str, ...] = ()
    """Columns of the table that are not used."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Options of FolderDataModule with which `fit` reads the same, beside `root`."""
    suggested: Mapping[str, object] = field(default_factory=dict)
    """Further options that the doubts suggest, by the names that FolderDataModule has for them."""
    mask_places: str = ""
    """Places where masks were looked for."""
