"""Which labels are doubtful, as models that have not seen them say."""

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
    """How often the annotators disagree.

    Attributes:
        share: The share of the images on which they do.
        low: Lower end of its 95 % interval.
        high: Upper end.
        n: The number of images.
    """

    share: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Doubtful:
    """The images whose label is most doubtful (confident learning, Northcutt et al. 2021).

    Attributes:
        experiment: The runs that say so.
        n: The number of images that were tested.
        positions: The doubtful images' positions in the table, the most doubtful first.
        predicted: The class that the models take each for.
        quality: The probability that they give its label.
        doubted: The annotators' disagreement on these; None where there are no annotators.
        others: Their disagreement on the rest.
        stamps: Why the runs' predictions are not what they may seem.
    """

    experiment: str
    n: int
    positions: np.ndarray
    predicted: np.ndarray
    quality: np.ndarray
    doubted: Disagreement | None
    others: Disagreement | None
    stamps: tuple[str, ...]


def find(data: CellDataModule, runs: Condition) -> Doubtful:
    """Lists the doubtful labels of a cross-validation's test predictions.

    Args:
        data: The dataset.
        runs: The folds, with one seed.

    Raises:
        UserError: The predictions are of other images, classes or labels.
    """
    folds = pool(runs.runs)
    position = {sample.id: i for i, sample in enumerate(data.table.samples)}
    lacking = [name for name in folds.ids if name not in position]
    if lacking or runs.classes != data.classes:
        what = f"'{lacking[0]}'" if lacking else f"the classes {', '.join(runs.classes)}"
        raise UserError(f"--runs: {runs.name} tested {what}, which this dataset has not")
    where = np.array([position[name] for name in folds.ids])
    differ = np.flatnonzero(folds.labels != data.table.labels[where])
    if len(differ):
        raise UserError(
            f"--runs: {runs.name} was trained on another label of '{folds.ids[differ[0]]}' "
            f"than this dataset's ({len(differ)} differ)"
        )
    quality = get_label_quality_scores(folds.labels, folds.probabilities)
    with warnings.catch_warnings():  # of classes with few images, whose numbers the page has
        warnings.simplefilter("ignore")
        found = find_label_issues(
            folds.labels, folds.probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    found = np.asarray(found, dtype=np.int64)
    rest = np.setdiff1d(np.arange(len(where)), found)
    return Doubtful(
        runs.name,
        len(where),
        where[found],
        folds.probabilities[found].argmax(axis=1),
        quality[found],
        _disagreement(data, where[found]),
        _disagreement(data, where[rest]),
        tuple(runs.stamps),
    )


def _disagreement(data: CellDataModule, positions: np.ndarray) -> Disagreement | None:
    """Return how often annotators disagree on some samples; None where there are no votes."""
    known = [i for i in positions if data.table.samples[i].votes is not None]
    if not known:
        return None
    differ = np.array([len(set(data.table.samples[i].votes or ())) > 1 for i in known])
    _, group = np.unique(data.table.groups()[known], return_inverse=True)
    ends = mean_interval(np.bincount(group, differ), np.bincount(group))
    return Disagreement(float(differ.mean()), float(ends[0]), float(ends[1]), len(known))
