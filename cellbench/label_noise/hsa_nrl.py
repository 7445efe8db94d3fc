"""HSA-NRL, hard sample aware noise robust learning: the algorithm of `relabel`.

Zhu et al., IEEE Trans Med Imaging 41 (2022). Three trainings distinguish easy, hard and noisy
samples; the last one predicts new labels for the noisy ones.
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
    """Samples of the training split, with their history in the first training."""

    ids: list[str]
    """Ids of the n samples."""
    labels: list[str]
    """Their labels as given."""
    history: np.ndarray
    """Probability of each label by epoch, (n, epochs)."""

    @property
    def classes(self) -> list[str]:
        """Classes that occur among the labels, sorted."""
        return sorted(set(self.labels))

    @property
    def numbers(self) -> np.ndarray:
        """Index of each label among the classes, (n,)."""
        return np.array([self.classes.index(label) for label in self.labels])


def read_samples(first: RunFolder) -> Samples:
    """Read the samples of the first training, with their history.

    Raises:
        UserError: Some samples have no label, or were not seen in every epoch.
    """
    trained = [row["id"] for row in read_split(first.split) if row["split"] == "train"]
    ids, labels, history = read_label_history(first.label_history)
    if len(ids) < len(trained) or not np.isfinite(history).all():
        raise UserError(
            "relabel: every training image must have a label and be seen in every epoch; remove "
            "data.train_labels and trainer.limit_train_batches"
        )
    return Samples(ids, labels, history)


def find_noisy(
    trainings: Trainings, samples: Samples, is_easy: np.ndarray, noise_rate: float
) -> np.ndarray:
    """Find noisy samples by a training on the easy samples, with some of their labels flipped.

    Args:
        trainings: Trainings of the experiment.
        samples: The samples.
        is_easy: True for each easy sample, (n,).
        noise_rate: Share of the labels to flip: that of wrong labels, as far as it is known.

    Returns:
        True for each noisy sample, (n,), bool; none of them is easy.
    """
    ids, classes, numbers = samples.ids, samples.classes, samples.numbers
    easy = np.flatnonzero(is_easy)
    artificial = flip(numbers[easy], len(classes), noise_rate, seed=0)
    labels = {ids[i]: classes[label] for i, label in zip(easy, artificial, strict=True)}
    second = trainings.fit("artificial", {name: labels.get(name, "") for name in ids})
    trained, _, history = read_label_history(second.label_history)
    is_flipped = {ids[i]: bool(artificial[k] != numbers[i]) for k, i in enumerate(easy)}
    flipped = np.array([is_flipped[name] for name in trained])
    is_noisy = np.zeros(len(ids), dtype=bool)
    if not is_easy.all():
        is_noisy[~is_easy] = noisy(samples.history[~is_easy], history, flipped, seed=0)
    return is_noisy


def corrected_labels(
    run: Run, samples: Samples, is_easy: np.ndarray, is_noisy: np.ndarray
) -> np.ndarray:
    """Return the labels to train on, corrected by the predictions of the last training.

    Args:
        run: The last training, which left out the noisy samples.
        samples: The samples.
        is_easy: True for each easy sample, (n,).
        is_noisy: True for each noisy sample, (n,).

    Returns:
        Label of each sample, (n,); empty for samples to leave out.
    """
    classes = samples.classes
    best = run.probabilities()[positions(run, samples)].argmax(axis=1)
    predicted = np.array(run.data.classes)[best]
    # -2 differs from every label, and from the -1 of `correct`.
    indices = np.array([classes.index(label) if label in classes else -2 for label in predicted])
    corrected = correct(samples.numbers, indices, is_easy, is_noisy)
    return np.where(corrected < 0, "", np.where(is_easy, np.array(samples.labels), predicted))


def positions(run: Run, samples: Samples) -> np.ndarray:
    """Return the samples' positions in a run's table, (n,)."""
    position = {sample.id: i for i, sample in enumerate(run.data.table.samples)}
    return np.array([position[name] for name in samples.ids])
