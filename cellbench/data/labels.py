"""Changed labels for the training split; validation and test keep the dataset's."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cellbench.data.reading.table_file import read_table
from cellbench.data.table import SampleTable
from cellbench.utils.errors import UserError, suggest


def flip(labels: np.ndarray, classes: int, rate: float, seed: int) -> np.ndarray:
    """Replace a share of labels by another class each, all others equally likely.

    Args:
        labels: Class indices, (n,); not changed.
        classes: The number of classes.
        rate: The share, 0 to 1, rounded to whole samples.
        seed: Alone decides which, and by what.
    """
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(labels))[: round(rate * len(labels))]
    flipped = labels.copy()
    flipped[chosen] += generator.integers(1, classes, len(chosen))
    return flipped % classes


def read_labels(
    path: Path, table: SampleTable, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Read the labels that `relabel` has written (columns id and label; empty: left out).

    Args:
        path: The CSV file.
        table: The samples.
        positions: Those of the training split, ascending.

    Returns:
        The positions that have a label, and their labels.

    Raises:
        UserError: The file cannot be read, or is not of this training split.
    """
    key = "data.train_labels"
    try:
        rows = read_table(path, {"id"}, empty={"label"})
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    given = {row["id"]: row["label"] for row in rows}
    if len(given) < len(rows):
        twice = next(name for name, n in Counter(row["id"] for row in rows).items() if n > 1)
        raise UserError(f"{key}: {path} has '{twice}' more than once; remove one")
    own = {table.samples[i].id.strip(): int(i) for i in positions}  # as the table's cells are
    numbers = {name.strip(): label for label, name in enumerate(table.classes)}
    other = sorted(given.keys() ^ own.keys())
    if other:
        raise UserError(
            f"{key}: {path} is of another training split: '{other[0]}' is in one of the two alone; "
            "use the split that the labels were made with"
        )
    for name in set(given.values()) - {"", *numbers}:
        raise UserError(f"{key}: {path}: unknown class '{name}'{suggest(name, table.classes)}")
    kept = [(own[name], numbers[label]) for name, label in given.items() if label]
    found = np.array(sorted(kept), dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def check_classes(labels: np.ndarray, classes: Sequence[str], key: str) -> None:
    """Check that every class has a training image.

    Raises:
        UserError: One has none.
    """
    for label, n in enumerate(np.bincount(labels, minlength=len(classes))):
        if not n:
            raise UserError(f"{key}: it leaves class '{classes[label]}' no training image")
