"""Leaks: copies and groups that a split divides, and copies with conflicting labels."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from cellbench.data.duplicates.copies import Copy
from cellbench.data.module import CellDataModule
from cellbench.data.splits import FIXED, SplitConfig, draw, fixed_parts, fold_names
from cellbench.data.table import SampleTable, join
from cellbench.utils.errors import UserError

Protocol = Literal["grouped", "official", "predefined", "image"]
"""Protocols of splits that are compared."""


@dataclass(frozen=True)
class Crossing:
    """Sets of copies and groups that one split divides between its parts."""

    protocol: Protocol
    """Protocol of the split."""
    fold: int | None
    """Number of the fold; None if the split has no folds."""
    digest: str = ""
    """Digest of the split; empty if it cannot be drawn."""
    identical: int = 0
    """Number of divided sets of identical images."""
    near: int = 0
    """Number of divided sets of images that show one field or cell, near copies or identical."""
    groups: int = 0
    """Number of divided groups of the dataset."""
    smallest: tuple[int, str] | None = None
    """Number of test images of the smallest class in the test set, and its name."""
    error: str | None = None
    """Reason why the split cannot be drawn; None if it can."""

    @property
    def leaks(self) -> bool:
        """True if a set or a group is divided."""
        return self.identical + self.near + self.groups > 0


@dataclass(frozen=True)
class Leaks:
    """Copies and groups among the n images of a table, and the splits that divide them."""

    identical: list[list[int]]
    """Sets of identical images, each as positions in the table."""
    near: list[Copy]
    """Pairs of near copies, confirmed by registration."""
    clusters: np.ndarray
    """Set of copies of each image, copies of copies included: the first member's position, (n,)."""
    together: np.ndarray
    """Set that a split must keep together, by groups or copies: the first member's position,
    (n,)."""
    conflicts: list[tuple[int, int]]
    """Pairs of copies with different labels, as positions."""
    groups: list[int]
    """Number of groups of each class; near copies count as one."""
    crossings: list[Crossing]
    """Result for each protocol and fold, the chosen protocol first."""

    @property
    def leaks(self) -> bool:
        """True if the chosen split leaks in any of its folds."""
        return any(each.leaks for each in self.chosen)

    @property
    def chosen(self) -> list[Crossing]:
        """Results of the chosen split, one per fold."""
        first = self.crossings[0].protocol
        return [each for each in self.crossings if each.protocol == first]


def find_leaks(data: CellDataModule) -> Leaks:
    """Find copies, and the splits that divide them.

    Raises:
        UserError: Results cannot be cached.
    """
    table = data.table
    near = data.find_copies(table.samples, table.fingerprints)
    pairs = [(copy.first, copy.second) for copy in near]
    by_content: dict[str, list[int]] = defaultdict(list)
    for i, content in enumerate(table.fingerprints):
        by_content[content].append(i)
    identical = [positions for positions in by_content.values() if len(positions) > 1]
    equal = [(positions[0], other) for positions in identical for other in positions[1:]]
    clusters = join(len(table), pairs + equal)
    together = join(
        len(table), [*pairs, *((int(g), i) for i, g in enumerate(table.groups()) if g != i)]
    )
    labels = table.labels
    return Leaks(
        identical,
        near,
        clusters,
        together,
        [(a, b) for a, b in (*equal, *pairs) if labels[a] != labels[b]],
        [len(np.unique(together[labels == label])) for label in range(len(table.classes))],
        [_cross(table, config, identical, clusters) for config in _splits(table, data.split)],
    )


def _splits(table: SampleTable, chosen: SplitConfig) -> list[SplitConfig]:
    """Return the chosen split in all its folds, then one of each other possible protocol."""
    own = len(fold_names(table))
    n_folds = own if chosen.protocol == "predefined" else chosen.folds
    folds = [replace(chosen, fold=fold) for fold in range(n_folds)] if n_folds else [chosen]
    possible = {
        "grouped": True,
        "official": any(sample.split == "test" for sample in table.samples),
        "predefined": own > 1,
        "image": True,
    }
    others = [
        SplitConfig(protocol, val=chosen.val, seed=chosen.seed)
        for protocol in get_args(Protocol)
        if protocol != chosen.protocol and possible[protocol]
    ]
    return folds + others


def _cross(
    table: SampleTable, config: SplitConfig, identical: list[list[int]], clusters: np.ndarray
) -> Crossing:
    """Draw a split and count what it divides."""
    has_folds = config.folds is not None or config.protocol == "predefined"
    fold = (config.fold or 0) if has_folds else None
    try:
        split = draw(table, config)
    except UserError as error:
        if config.protocol not in FIXED:
            return Crossing(config.protocol, fold, error=str(error))
        try:  # `fit` refuses fixed parts that leak; here their leaks are counted
            parts = fixed_parts(table, config)
        except UserError:
            return Crossing(config.protocol, fold, error=str(error))
        crossing = _count(table, config, parts, identical, clusters)
        return replace(crossing, fold=fold, error=str(error))
    crossing = _count(table, config, split.parts, identical, clusters)
    tested = np.bincount(table.labels[split.parts == "test"], minlength=len(table.classes))
    fewest = int(tested.argmin())
    smallest = (int(tested[fewest]), table.classes[fewest])
    return replace(crossing, fold=fold, digest=split.digest, smallest=smallest)


def _count(
    table: SampleTable,
    config: SplitConfig,
    parts: np.ndarray,
    identical: list[list[int]],
    clusters: np.ndarray,
) -> Crossing:
    """Count the sets and groups that are in more than one part, without the purged images."""
    used = parts != "purged"

    def divided(sets: np.ndarray) -> int:
        """Return the number of sets in more than one part, given the set of each image, (n,)."""
        parts_of: dict[int, set[str]] = defaultdict(set)
        for name, part in zip(sets[used], parts[used], strict=True):
            parts_of[int(name)].add(str(part))
        return sum(len(each) > 1 for each in parts_of.values())

    equal = np.arange(len(table))
    for positions in identical:
        equal[positions] = positions[0]
    return Crossing(
        config.protocol,
        None,
        identical=divided(equal),
        near=divided(clusters),
        groups=divided(table.groups()),
    )
