"""Comparison of a dataset's files with what is published of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Check:
    """Comparison of a known fact about a dataset with its files."""

    expected: str
    """The known fact."""
    found: str
    """The same fact, counted in the files."""
    holds: bool
    """True if the two agree."""


def check_counts(classes: Sequence[str], published: Sequence[int], labels: np.ndarray) -> Check:
    """Compare the number of images of each class with the published one.

    Args:
        classes: The names of the classes.
        published: The published number of images of each.
        labels: The label of each image, (n,).
    """
    found = np.bincount(labels, minlength=len(classes)).tolist()
    counts = list(zip(classes, found, published, strict=True))
    differing = ", ".join(f"{name} {n:,} of {known:,}" for name, n, known in counts if n != known)
    expected = ", ".join(f"{known:,} {name}" for name, _, known in counts)
    return Check(f"the published numbers: {expected}", differing or "as published", not differing)
