"""Each metric with its 95 % interval and the majority baseline."""

from typing import Any

import numpy as np

from cellbench.metrics.intervals import Shares, bounded, of_mean, wider


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64, (classes, classes): a row a true class, a column a predicted one."""
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


def confusion_by_group(
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, classes: int
) -> np.ndarray:
    """A confusion matrix for each group, in the order of names: (groups, classes, classes)."""
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((int(group.max()) + 1, classes, classes))
    np.add.at(counts, (group, labels, predicted), 1)
    return counts


def _counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each class of confusion matrices (..., C, C): the right, the true and the predicted."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return right, confusion.sum(axis=-1), confusion.sum(axis=-2)


def values(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of confusion matrices, (..., classes, classes).

    Returns:
        accuracy, balanced_accuracy (mean recall of the classes that occur), precision_macro and
        f1_macro (means over the classes that occur or are predicted; the precision of one that is
        never predicted is 0), mcc (Matthews' correlation for several classes, Gorodkin 2004) and
        kappa (Cohen's), both 0 where either side has a single class: arrays of the leading shape.
    """
    right, true, predicted = _counts(np.asarray(confusion, np.float64))  # int64 would overflow
    n, hits = true.sum(axis=-1), right.sum(axis=-1)
    chance = (true * predicted).sum(axis=-1)
    spread = (n**2 - (true**2).sum(axis=-1)) * (n**2 - (predicted**2).sum(axis=-1))
    occurs = (true + predicted) > 0
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN where there is none
        recall, f1 = right / true, 2 * right / (true + predicted)
        precision = np.where(occurs, np.where(predicted > 0, right / predicted, 0), np.nan)
        mcc = np.where(spread > 0, (hits * n - chance) / np.sqrt(spread), 0)
        kappa = np.where(n**2 > chance, (hits * n - chance) / (n**2 - chance), 0)
    return {
        "accuracy": hits / n,
        "balanced_accuracy": np.nanmean(recall, axis=-1),
        "precision_macro": np.nanmean(precision, axis=-1),
        "f1_macro": np.nanmean(f1, axis=-1),
        "mcc": mcc,
        "kappa": kappa,
    }


def derivatives(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return the derivatives of each of `values` by the counts, (classes, classes).

    Those by counts of 0 are left 0: no group has a part in them.
    """
    step = 1e-3
    filled = np.argwhere(confusion > 0)
    changed = np.tile(confusion, (2, len(filled), 1, 1))
    one, (row, column) = np.arange(len(filled)), filled.T
    changed[0, one, row, column] *= 1 + step
    changed[1, one, row, column] *= 1 - step
    found = {}
    for name, (up, down) in values(changed).items():
        found[name] = np.zeros(confusion.shape)
        found[name][row, column] = (up - down) / (2 * step * confusion[row, column])
    return found


class Rows:
    """Confusion matrices of groups, with the number of samples of each true class given.

    The mix of classes is the test set's, which is stratified: that of a group is no error. So each
    group's row is compared with that of its class.

    Args:
        by_group: The groups' confusion matrices, (groups, classes, classes).
    """

    def __init__(self, by_group: np.ndarray) -> None:
        true = by_group.sum(axis=2)
        self._n, self._confusion = true.sum(axis=0), by_group.sum(axis=0)
        self._rows = self._confusion / self._n[:, None]
        self._groups = (true > 0).sum(axis=0)
        self._grown = (true**2).sum(axis=0) / self._n - 1  # of a variance, by a correlation of 1
        factor = np.sqrt(self._groups / np.maximum(self._groups - 1, 1))
        self.errors: np.ndarray = (by_group - true[:, :, None] * self._rows) * factor[:, None]
        """Each group's counts less those expected, (groups, classes, classes)."""

    def variance(self, derivative: np.ndarray) -> tuple[float, float]:
        """Return the variance of a function of the confusion matrix, and its degrees of freedom.

        It is that between groups, but at least that which follows from one correlation within
        groups for all classes: a class of few groups hardly shows how they vary.

        Args:
            derivative: That of the function by the counts, (classes, classes).
        """
        errors = (self.errors * derivative).sum(axis=2)
        shown = float((errors.sum(axis=1) ** 2).sum())
        centred = derivative - (self._rows * derivative).sum(axis=1, keepdims=True)
        simple = (self._confusion * centred**2).sum(axis=1)  # where all samples are independent
        weights = self._n**2 * (self._groups > 1)
        within = float((weights * simple * self._grown).sum())
        excess = float((weights * ((errors**2).sum(axis=0) - simple)).sum())
        correlation = min(max(excess / within, 0.0), 1.0) if within > 0 else 1.0
        expected = float((simple * (1 + correlation * self._grown)).sum())
        return max(shown, expected), float(np.maximum(self._groups - 1, 0).sum())


def evaluate(
    labels: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    classes: tuple[str, ...],
    majority: np.ndarray,
) -> dict[str, Any]:
    """Score predictions.

    Samples of one group are not independent, so that every interval rests on the variance between
    groups (see `intervals`). A mean over classes has the wider end of two intervals: that by its
    own variance, and that of the classes' intervals put together, as a class without a miss shows
    no variance. F1 has the interval of true positives among true positives and errors, of which it
    is a function (Flores et al. 2022). Precision and F1 are those of the test set's mix of classes.

    Args:
        labels: Class indices, (n,); every class must occur.
        predicted: Class indices, (n,).
        groups: Each sample's group, a name or a number, (n,).
        classes: The class names.
        majority: The largest class of the training split that each sample's model saw, (n,): the
            baseline always says this one.

    Returns:
        n, groups, confusion; `metrics`, each with value, low, high and baseline; `classes`, each
        with n, and its recall, precision and F1 as entries of the same kind; ready for JSON.
    """
    by_group = confusion_by_group(labels, predicted, groups, len(classes))
    confusion = by_group.sum(axis=0)
    always = confusion_matrix(labels, majority, len(classes))
    found, baseline = values(confusion), values(always)
    own, own_baseline = _of_classes(confusion), _of_classes(always)
    rows, by_count = Rows(by_group), derivatives(confusion)
    right, true, said = _counts(by_group)
    right_error, _, said_error = _counts(rows.errors)
    recall = Shares(right, true)
    precision = Shares(right, said, (right_error, said_error))
    either = Shares(right, true + said - right, (right_error, said_error - right_error))
    accuracy = Shares(right.sum(axis=1, keepdims=True), true.sum(axis=1, keepdims=True))
    own_ends = {
        "recall": recall.intervals(),
        "precision": precision.intervals(),
        "f1": _f1(either.intervals()),
    }
    of_means = {
        "balanced_accuracy": of_mean(own["recall"], recall.pooled()),
        "precision_macro": of_mean(own["precision"], precision.pooled()),
        "f1_macro": of_mean(own["f1"], _f1(either.pooled())),
    }
    ends = {"accuracy": accuracy.intervals()[0]}
    for name, together in of_means.items():
        spread = rows.variance(by_count[name])
        shown = bounded(float(found[name]), *spread, 0, 1, len(by_group))
        ends[name] = wider(shown, together).clip(0, 1)
    for name in ("mcc", "kappa"):
        spread = rows.variance(by_count[name])
        ends[name] = bounded(float(found[name]), *spread, -1, 1, len(by_group))
    return {
        "n": len(labels),
        "groups": len(by_group),
        "metrics": {name: entry(found[name], ends[name], baseline[name]) for name in found},
        "classes": {
            name: {"n": int(confusion[i].sum())}
            | {
                metric: entry(own[metric][i], own_ends[metric][i], own_baseline[metric][i])
                for metric in own
            }
            for i, name in enumerate(classes)
        },
        "confusion": confusion.astype(int).tolist(),
    }


def _of_classes(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return each class' recall, precision (0 where it is never predicted) and F1, (classes,)."""
    right, true, said = _counts(confusion)
    return {
        "recall": right / true,
        "precision": right / np.maximum(said, 1),
        "f1": 2 * right / (true + said),
    }


def _f1(shares: np.ndarray) -> np.ndarray:
    """Return F1 of shares of true positives among true positives and errors."""
    found: np.ndarray = 2 * shares / (1 + shares)
    return found


def entry(value: Any, ends: np.ndarray, baseline: Any) -> dict[str, float]:
    """A metric as metrics.json has it."""
    low, high = ends
    return {
        "value": float(value),
        "low": float(low),
        "high": float(high),
        "baseline": float(baseline),
    }
