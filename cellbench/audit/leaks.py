"""Copies and groups: which there are, whether their labels agree, and which cross a split."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from cellbench.data.duplicates.copies import Copy
from cellbench.data.module import CellDataModule
from cellbench.data.splits import SplitConfig, draw, purge
from cellbench.data.table import SampleTable, join
from cellbench.utils.errors import UserError

Protocol = Literal["grouped", "official", "image"]


@dataclass(frozen=True)
class Crossing:
    """What one split does to the images that belong together.

    Attributes:
        protocol: How the split was drawn.
        fold: Which fold it is; None where there are none.
        digest: The split's; empty where it cannot be drawn.
        identical: Sets of identical images that stand in more than one part.
        near: The same of images that show one field or cell.
        groups: The same of the dataset's own groups.
        smallest: The smallest number of images that a class has in the test set, and the class.
        error: Why the split cannot be drawn; None where it can.
    """

    protocol: Protocol
    fold: int | None
    digest: str = ""
    identical: int = 0
    near: int = 0
    groups: int = 0
    smallest: tuple[int, str] | None = None
    error: str | None = None

    @property
    def leaks(self) -> bool:
        """Whether anything stands on both sides."""
        return self.identical + self.near + self.groups > 0


@dataclass(frozen=True)
class Leaks:
    """What belongs together, and what is torn apart.

    Attributes:
        identical: Sets of positions of identical images.
        near: Pairs of near copies, confirmed by registration.
        clusters: For each image the first of those that show the same, copies of copies too, (n,).
        together: The same of those that a split must keep together, by groups or copies, (n,).
        conflicts: Pairs of positions that show the same and have different labels.
        groups: The number of groups of each class, near copies counted once.
        crossings: What each protocol does, the chosen one first.
    """

    identical: list[list[int]]
    near: list[Copy]
    clusters: np.ndarray
    together: np.ndarray
    conflicts: list[tuple[int, int]]
    groups: list[int]
    crossings: list[Crossing]

    @property
    def leaks(self) -> bool:
        """Whether the chosen split leaks, in any of its folds."""
        return any(each.leaks for each in self.chosen)

    @property
    def chosen(self) -> list[Crossing]:
        """The chosen split, in all its folds."""
        first = self.crossings[0].protocol
        return [each for each in self.crossings if each.protocol == first]


def look(data: CellDataModule) -> Leaks:
    """Finds copies, and what the splits do to them.

    Raises:
        UserError: What is found cannot be kept.
    """
    table = data.table
    near = data.find_copies(table.samples, table.fingerprints)
    pairs = [(copy.first, copy.second) for copy in near]
    of_content: dict[str, list[int]] = defaultdict(list)
    for i, content in enumerate(table.fingerprints):
        of_content[content].append(i)
    identical = [positions for positions in of_content.values() if len(positions) > 1]
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
    """The chosen split in all its folds, then each other protocol that the table can have."""
    folds = (
        [chosen]
        if chosen.folds is None
        else [replace(chosen, fold=fold) for fold in range(chosen.folds)]
    )
    others = []
    for protocol in get_args(Protocol):
        lacks = protocol == "official" and not any(s.split == "test" for s in table.samples)
        if protocol != chosen.protocol and not lacks:
            others.append(SplitConfig(protocol, val=chosen.val, seed=chosen.seed))
    return folds + others


def _cross(
    table: SampleTable, config: SplitConfig, identical: list[list[int]], clusters: np.ndarray
) -> Crossing:
    fold = None if config.folds is None else config.fold or 0
    try:
        split = draw(table, config)
    except UserError as error:
        official = [sample.split for sample in table.samples]
        if config.protocol != "official" or None in official or "test" not in official:
            return Crossing(config.protocol, fold, error=str(error))
        # An official split that leaks is refused by `fit` as well; here its parts are looked at.
        parts = np.array(official, dtype="<U6")
        if config.purge:
            purge(table.groups(), parts)
        crossing = _count(table, config, parts, identical, clusters)
        return replace(crossing, error=str(error))
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
    used = parts != "purged"

    def torn(sets: np.ndarray) -> int:
        sides: dict[int, set[str]] = defaultdict(set)
        for name, part in zip(sets[used], parts[used], strict=True):
            sides[int(name)].add(str(part))
        return sum(len(side) > 1 for side in sides.values())

    equal = np.arange(len(table))
    for positions in identical:
        equal[positions] = positions[0]
    return Crossing(
        config.protocol,
        None,
        identical=torn(equal),
        near=torn(clusters),
        groups=torn(table.groups()),
    )
