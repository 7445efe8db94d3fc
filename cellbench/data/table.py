"""Table of samples that splits, loaders, audit and predictions work on."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cellbench.utils.errors import UserError, counted

Part = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a dataset."""

    id: str
    """Unique name; for a file its POSIX path below the dataset's root."""
    label: int
    """Index into the dataset's classes; -1 for an unknown class."""
    image: Path | None = None
    """Image file; None if the pixels are generated."""
    mask: Path | None = None
    """Mask file; None if there is none."""
    group: str | None = None
    """Patient, slide or original image, which must not be divided; None if unknown."""
    split: Part | None = None
    """Part of the authors' split; None if there is no official split."""
    votes: tuple[int, ...] | None = None
    """Class that each annotator chose; None if unknown."""
    fold: str | None = None
    """Fold of the authors' cross-validation in which the image is tested; None if unknown."""
    domain: str | None = None
    """Laboratory or scanner; None if unknown."""


class SampleTable:
    """The samples of a dataset, in the order of their ids, with their classes and contents.

    Args:
        samples: The samples, in any order.
        classes: The class names; a label is an index into them.
        fingerprints: For each sample a digest of its content: equal where the content is equal.
        copies: Pairs of positions in `samples` that show the same thing, and so share a group.

    Raises:
        UserError: An id occurs twice or has a line break, or a class has no sample or a control
            character in its name.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: Sequence[str],
        fingerprints: Sequence[str],
        copies: Sequence[tuple[int, int]] = (),
    ) -> None:
        order = sorted(range(len(samples)), key=lambda i: samples[i].id)
        self.samples = [samples[i] for i in order]
        self.fingerprints = [fingerprints[i] for i in order]
        rank = {position: i for i, position in enumerate(order)}
        self.copies = [(rank[a], rank[b]) for a, b in copies]
        self.classes = tuple(classes)
        self.labels = np.array([sample.label for sample in self.samples], dtype=np.int64)
        self._check()

    def __len__(self) -> int:
        return len(self.samples)

    def _check(self) -> None:
        check_ids(sample.id for sample in self.samples)
        for name in self.classes:
            if any(unicodedata.category(character) == "Cc" for character in name):
                raise UserError(f"class {name!r} has a control character in its name; rename it")
        counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        if len(self.samples) and self.labels.max() >= 0 and counts.min() == 0:
            raise UserError(f"class '{self.classes[int(counts.argmin())]}' has no image")

    def check_masks(self) -> None:
        """Make sure that each sample has a mask of its own, if it has one.

        Raises:
            UserError: Two samples have one mask.
        """
        owner: dict[str, str] = {}
        for sample in self.samples:
            if sample.mask is None:
                continue
            other = owner.setdefault(os.path.realpath(sample.mask), sample.id)
            if other != sample.id:
                raise UserError(
                    f"'{other}' and '{sample.id}' have one mask, {sample.mask}; give each image "
                    "its own, or leave one of the two out with data.exclude"
                )

    @property
    def sample_seeds(self) -> np.ndarray:
        """A 64-bit number for each sample that depends on its id alone (uint64)."""
        digests = (hashlib.blake2b(s.id.encode(), digest_size=8).digest() for s in self.samples)
        return np.array([int.from_bytes(d, "little") for d in digests], dtype=np.uint64)

    @property
    def known_groups(self) -> str:
        """Number of the dataset's own groups, and of the images whose group is known."""
        known = [sample.group for sample in self.samples if sample.group is not None]
        if not known:
            return "none known"
        images = "all images" if len(known) == len(self) else f"{len(known)} of {len(self)} images"
        return f"{counted(len(set(known)), 'group')}, known for {images}"

    def conflict(self) -> str | None:
        """Describe two samples of equal content with different labels; None if there are none."""
        first: dict[str, int] = {}
        found = []
        for i, content in enumerate(self.fingerprints):
            j = first.setdefault(content, i)
            if self.labels[i] != self.labels[j]:
                found.append((self.samples[j], self.samples[i]))
        if not found:
            return None
        a, b = found[0]
        more = f" ({len(found)} such pairs)" if len(found) > 1 else ""
        return (
            f"'{a.id}' ({self.classes[a.label]}) and '{b.id}' ({self.classes[b.label]}) have the "
            f"same content and different labels{more}"
        )

    def groups(self, *, known: bool = True) -> np.ndarray:
        """Return group numbers: samples with one number must stay in one part of a split.

        Samples of equal content always share a group, and so, through them, do the groups
        that they belong to. A group goes by the number of its first sample.

        Args:
            known: True to count the dataset's own groups and near copies too; False for equal
                contents alone.

        Returns:
            A group number for each sample, shape (n,).
        """
        pairs = list(self.copies) if known else []
        first: dict[tuple[str, str], int] = {}
        for i, (sample, content) in enumerate(zip(self.samples, self.fingerprints, strict=True)):
            tags = [("content", content)]
            if known and sample.group is not None:
                tags.append(("group", sample.group))
            pairs += [(first.setdefault(tag, i), i) for tag in tags]
        return join(len(self.samples), pairs)


def check_ids(ids: Iterable[str]) -> None:
    """Check that samples have names of their own, before any of them is read.

    Raises:
        UserError: An id occurs twice, or has a line break.
    """
    counts = Counter(ids)
    twice = [name for name, n in counts.items() if n > 1]
    if twice:
        raise UserError(f"sample '{twice[0]}' occurs more than once in the dataset's table")
    broken = [name for name in counts if "\r" in name]
    if broken:
        raise UserError(f"{broken[0]!r} has a line break in its name; rename it")


def join(n: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return for each of n positions the first of those that pairs join it with, (n,)."""
    links = np.array([(a, b) for a, b in pairs if a != b], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    _, first, number = np.unique(component, return_index=True, return_inverse=True)
    joined: np.ndarray = first[number]
    return joined
