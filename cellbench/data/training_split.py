"""Training split as an epoch shows it: its labels, and how often each class occurs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellbench.data.labels import check_classes, flip, read_labels
from cellbench.data.options import DataOptions
from cellbench.data.sampling import quotas
from cellbench.data.table import SampleTable
from cellbench.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class TrainingSplit:
    """Training samples, with the labels that training sees."""

    positions: np.ndarray
    """Positions in the table, ascending, (n,)."""
    all_labels: np.ndarray
    """Class indices of the whole table, (N,); those of the training samples as training sees
    them."""
    targets: np.ndarray | None
    """Share of each class in the training target, (N, classes); None for the label."""
    counts: np.ndarray
    """Number of training samples of each class, (classes,)."""
    quotas: list[int] | None
    """Number of images of each class in an epoch; None to show each image once."""

    @property
    def labels(self) -> np.ndarray:
        """Class indices of the training samples, (n,)."""
        labels: np.ndarray = self.all_labels[self.positions]
        return labels

    @property
    def digest(self) -> str:
        """Digest of the positions, and of the labels or targets."""
        trained = np.stack([self.positions, self.labels]).tobytes()
        if self.targets is not None:
            trained += self.targets[self.positions].tobytes()
        return hashlib.blake2b(trained, digest_size=16).hexdigest()


def make_training_split(
    table: SampleTable,
    positions: np.ndarray,
    targets: np.ndarray | None,
    options: DataOptions,
    seed: int,
) -> TrainingSplit:
    """Apply the options that change labels and class frequencies to the training samples.

    Args:
        table: All samples.
        positions: Positions of the training samples, ascending, (n,).
        targets: Share of each class in the training target, (N, classes); None for the label.
        options: label_noise, train_labels, balance and smote.
        seed: Seed of the label noise.

    Raises:
        UserError: The options contradict the targets, train_labels is of another split, or a class
            is left without a training image.
    """
    _check_targets(options, targets)
    labels = table.labels.copy()
    if options.label_noise:
        noisy = flip(labels[positions], len(table.classes), options.label_noise, seed)
        labels[positions] = noisy
        check_classes(noisy, table.classes, "data.label_noise")
    if options.train_labels is not None:
        positions, given = read_labels(options.train_labels, table, positions)
        labels[positions] = given
        check_classes(given, table.classes, "data.train_labels")
    counts = np.bincount(labels[positions], minlength=len(table.classes))
    return TrainingSplit(positions, labels, targets, counts, _quotas(options, counts.tolist()))


def describe_epoch(training: TrainingSplit, options: DataOptions, classes: Sequence[str]) -> str:
    """Describe how many images of each class an epoch shows."""
    numbers = training.quotas or training.counts.tolist()
    named = ", ".join(f"{n} {name}" for n, name in zip(numbers, classes, strict=True))
    return f"{named}, blended where there are fewer" if options.smote else named


def _check_targets(options: DataOptions, targets: np.ndarray | None) -> None:
    if targets is None:
        return
    for name in ("label_noise", "train_labels"):
        if getattr(options, name):
            raise UserError(f"data.{name}: training aims at votes, which it would not change")
    if options.smote is not None:
        raise UserError("data.smote: training aims at votes, which have no class to fill up")


def _quotas(options: DataOptions, counts: Sequence[int]) -> list[int] | None:
    if options.smote is not None:
        return quotas(counts, options.smote.count or max(counts))
    return quotas(counts, options.balance)
