"""Doubtful labels, according to models that were not trained on them."""

import warnings
from dataclasses import dataclass

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from cellbench.artifacts.conditions import Condition, pool
from cellbench.data.module import CellDataModule
from cellbench.metrics.intervals import mean_interval
from cellbench.utils.errors import UserError


@dataclass(frozen=True)
class Disagreement:
    """Disagreement among the annotators of some images."""

    share: float
    """Share of the images on which they disagree, 0 to 1."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of images."""


@dataclass(frozen=True)
class Doubtful:
    """Images with doubtful labels (confident learning, Northcutt et al. 2021)."""

    experiment: str
    """Name of the cross-validation that doubts the labels."""
    n: int
    """Number of images that it tested."""
    positions: np.ndarray
    """Positions of the k doubtful images in the table, (k,), the most doubtful first."""
    predicted: np.ndarray
    """Index of the predicted class of each doubtful image, (k,)."""
    quality: np.ndarray
    """Predicted probability of the label of each doubtful image, (k,)."""
    doubted: Disagreement | None
    """Disagreement of the annotators on the doubtful images; None if there are no votes."""
    others: Disagreement | None
    """Disagreement of the annotators on the other images."""
    stamps: tuple[str, ...]
    """Reasons why the predictions are unreliable."""


def find_doubtful(data: CellDataModule, runs: Condition) -> Doubtful:
    """Find doubtful labels by the test predictions of a cross-validation.

    Args:
        data: The dataset.
        runs: The folds, with one seed.

    Raises:
        UserError: The predictions are for other images, classes or labels.
    """
    folds = pool(runs.runs)
    position = {sample.id: i for i, sample in enumerate(data.table.samples)}
    unknown = [name for name in folds.ids if name not in position]
    if unknown or runs.classes != data.classes:
        what = f"'{unknown[0]}'" if unknown else f"the classes {', '.join(runs.classes)}"
        raise UserError(f"--runs: {runs.name} tested {what}, which this dataset does not have")
    where = np.array([position[name] for name in folds.ids])
    differ = np.flatnonzero(folds.labels != data.table.labels[where])
    if len(differ):
        raise UserError(
            f"--runs: {runs.name} was trained on another label of '{folds.ids[differ[0]]}' "
            f"than this dataset's ({len(differ)} differ)"
        )
    quality = get_label_quality_scores(folds.labels, folds.probabilities)
    with warnings.catch_warnings():  # about small classes; the page has their sizes
        warnings.simplefilter("ignore")
        doubtful = find_label_issues(
            folds.labels, folds.probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    doubtful = np.asarray(doubtful, dtype=np.int64)
    others = np.setdiff1d(np.arange(len(where)), doubtful)
    return Doubtful(
        runs.name,
        len(where),
        where[doubtful],
        folds.probabilities[doubtful].argmax(axis=1),
        quality[doubtful],
        _disagreement(data, where[doubtful]),
        _disagreement(data, where[others]),
        tuple(runs.warning_flags),
    )


def _disagreement(data: CellDataModule, positions: np.ndarray) -> Disagreement | None:
    """Return the annotators' disagreement on some samples; None if there are no votes."""
    known = [i for i in positions if data.table.samples[i].votes is not None]
    if not known:
        return None
    differ = np.array([len(set(data.table.samples[i].votes or ())) > 1 for i in known])
    _, group = np.unique(data.table.groups()[known], return_inverse=True)
    ends = mean_interval(np.bincount(group, differ), np.bincount(group))
    return Disagreement(float(differ.mean()), float(ends[0]), float(ends[1]), len(known))
