"""The algorithm of `relabel`: HSA-NRL, hard sample aware noise robust learning.

Zhu et al., IEEE Trans Med Imaging 41 (2022). Three trainings tell easy, hard and wrongly labelled
samples apart; the last one relabels the latter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cellbench.artifacts.folder import RunFolder
from cellbench.data.labels import flip
from cellbench.data.splits import read_split
from cellbench.label_noise.detection import correct, noisy
from cellbench.training.callbacks.label_history import read_label_history
from cellbench.training.run import Run
from cellbench.utils.errors import UserError


class Trainings(Protocol):
    """Trainings of one experiment with different labels."""

    def fit(self, name: str, labels: Mapping[str, str] | None = None) -> RunFolder:
        """Return the finished run of that name.

        Args:
            name: Name of the training.
            labels: Label of each sample by id; samples with an empty one are left out. None for the
                labels as given.
        """


@dataclass(frozen=True)
class Samples:
    """Samples of the training split, as the first training saw them."""

    ids: list[str]
    """The sample's id, (n,)."""
    labels: list[str]
    """The sample's label as given, (n,)."""
    history: np.ndarray
    """Probability of the label by epoch, (n, epochs)."""

    @property
    def classes(self) -> list[str]:
        """The classes among the labels, sorted."""
        return sorted(set(self.labels))

    @property
    def numbers(self) -> np.ndarray:
        """Each label's position among the classes, (n,)."""
        return np.array([self.classes.index(label) for label in self.labels])


def read_samples(first: RunFolder) -> Samples:
    """Read what the first training has written of its samples.

    Raises:
        UserError: Some have no label, or were not seen in every epoch.
    """
    everything = [row["id"] for row in read_split(first.split) if row["split"] == "train"]
    ids, labels, history = read_label_history(first.label_history)
    if len(ids) < len(everything) or not np.isfinite(history).all():
        raise UserError(
            "relabel: every training image must have a label and be seen in every epoch; remove "
            "data.train_labels and trainer.limit_train_batches"
        )
    return Samples(ids, labels, history)


def find_noisy(
    trainings: Trainings, samples: Samples, is_easy: np.ndarray, noise_rate: float
) -> np.ndarray:
    """Train on easy samples with some labels made wrong, and find what looks like these.

    Returns:
        Which samples are noisy, (n,), bool; none of the easy ones.
    """
    ids, classes, numbers = samples.ids, samples.classes, samples.numbers
    chosen = np.flatnonzero(is_easy)
    artificial = flip(numbers[chosen], len(classes), noise_rate, seed=0)
    some = {ids[i]: classes[label] for i, label in zip(chosen, artificial, strict=True)}
    second = trainings.fit("artificial", {name: some.get(name, "") for name in ids})
    own, _, curves = read_label_history(second.label_history)
    known = {ids[i]: bool(artificial[k] != numbers[i]) for k, i in enumerate(chosen)}
    flipped = np.array([known[name] for name in own])
    is_noisy = np.zeros(len(ids), dtype=bool)
    if not is_easy.all():
        is_noisy[~is_easy] = noisy(samples.history[~is_easy], curves, flipped, seed=0)
    return is_noisy


def corrected_labels(
    run: Run, samples: Samples, is_easy: np.ndarray, is_noisy: np.ndarray
) -> np.ndarray:
    """Return each sample's label to train on, (n,), by the last training; empty to leave it out."""
    classes = samples.classes
    predicted = np.array(run.data.classes)[
        run.probabilities()[positions(run, samples)].argmax(axis=1)
    ]
    judged = np.array([classes.index(label) if label in classes else -2 for label in predicted])
    corrected = correct(samples.numbers, judged, is_easy, is_noisy)
    return np.where(corrected < 0, "", np.where(is_easy, np.array(samples.labels), predicted))


def positions(run: Run, samples: Samples) -> np.ndarray:
    """Return the samples' positions in a run's table, (n,)."""
    of_id = {sample.id: i for i, sample in enumerate(run.data.table.samples)}
    return np.array([of_id[name] for name in samples.ids])
