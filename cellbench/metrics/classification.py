"""Classification metrics with 95 % intervals and the majority baseline."""

from typing import Any

import numpy as np

from cellbench.metrics.intervals import Shares, bounded, of_mean, wider


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return counts by true class (row) and predicted class (column), int64, (classes, classes)."""
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


def confusion_by_group(
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, classes: int
) -> np.ndarray:
    """Return a confusion matrix for each group, sorted by name, (groups, classes, classes)."""
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((int(group.max()) + 1, classes, classes))
    np.add.at(counts, (group, labels, predicted), 1)
    return counts


def _counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each class's correct, true and predicted samples, of matrices (..., C, C)."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return right, confusion.sum(axis=-1), confusion.sum(axis=-2)


def values(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the metrics of confusion matrices, (..., classes, classes).

    Returns:
        Arrays of the leading shape: accuracy; balanced_accuracy, the mean recall of the classes
        that occur; precision_macro and f1_macro, means over the classes that occur or are
        predicted (the precision of a class that is never predicted is 0); mcc, Matthews'
        correlation for several classes (Gorodkin 2004), and Cohen's kappa (1960), both 0 if the
        labels or the predictions have a single class.
    """
    right, true, predicted = _counts(np.asarray(confusion, np.float64))  # int64 would overflow
    n, hits = true.sum(axis=-1), right.sum(axis=-1)
    chance = (true * predicted).sum(axis=-1)
    spread = (n**2 - (true**2).sum(axis=-1)) * (n**2 - (predicted**2).sum(axis=-1))
    occurs = (true + predicted) > 0
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN for classes that do not occur
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
    """Return the derivatives of each metric of `values` by the counts, (classes, classes).

    Derivatives by counts of 0 are left at 0, as no group contributes to these counts.
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


class RowVariances:
    """Variances of metrics between groups, given the number of samples of each true class.

    The test set is stratified, so the mix of classes within a group is not a source of error.
    Therefore each row of a group's confusion matrix is compared with the same row of the whole.

    Args:
        by_group: The groups' confusion matrices, (groups, classes, classes).
    """

    def __init__(self, by_group: np.ndarray) -> None:
        true = by_group.sum(axis=2)
        self._n, self._confusion = true.sum(axis=0), by_group.sum(axis=0)
        self._rows = self._confusion / self._n[:, None]
        self._groups = (true > 0).sum(axis=0)
        self._grown = (true**2).sum(axis=0) / self._n - 1  # excess variance for a correlation of 1
        factor = np.sqrt(self._groups / np.maximum(self._groups - 1, 1))
        self.errors: np.ndarray = (by_group - true[:, :, None] * self._rows) * factor[:, None]
        """Each group's counts minus the expected counts, (groups, classes, classes)."""

    def variance(self, derivative: np.ndarray) -> tuple[float, float]:
        """Return the variance of a function of the confusion matrix, and its degrees of freedom.

        This is the variance between groups. It is at least the variance that follows from a
        common correlation within groups for all classes, because a class with few groups hardly
        shows how much they vary.

        Args:
            derivative: Derivative of the function by the counts, (classes, classes).
        """
        errors = (self.errors * derivative).sum(axis=2)
        shown = float((errors.sum(axis=1) ** 2).sum())
        centred = derivative - (self._rows * derivative).sum(axis=1, keepdims=True)
        simple = (self._confusion * centred**2).sum(axis=1)  # for independent samples
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

    Samples of one group are not independent, so every interval is based on the variance between
    groups (see `intervals`). Precision, F1, MCC and kappa hold for the test set's mix of classes,
    which their intervals take as given.

    Args:
        labels: Class indices, (n,); every class must occur.
        predicted: Class indices, (n,).
        groups: Each sample's group, a name or a number, (n,).
        classes: The class names.
        majority: Largest class of the training split of each sample's model, (n,); the baseline
            always predicts it.

    Returns:
        Values ready for JSON: n, groups, confusion; `metrics`, each with value, low, high and
        baseline; `classes`, each with n, and recall, precision and F1 in the same form.
    """
    by_group = confusion_by_group(labels, predicted, groups, len(classes))
    confusion = by_group.sum(axis=0)
    always = confusion_matrix(labels, majority, len(classes))
    found, baseline = values(confusion), values(always)
    of_class, class_baseline = _of_classes(confusion), _of_classes(always)
    ends, class_ends = _intervals(by_group, found, of_class)

    def class_entries(i: int) -> dict[str, Any]:
        return {
            metric: entry(of_class[metric][i], class_ends[metric][i], class_baseline[metric][i])
            for metric in of_class
        }

    return {
        "n": len(labels),
        "groups": len(by_group),
        "metrics": {name: entry(found[name], ends[name], baseline[name]) for name in found},
        "classes": {
            name: {"n": int(confusion[i].sum())} | class_entries(i)
            for i, name in enumerate(classes)
        },
        "confusion": confusion.astype(int).tolist(),
    }


def _intervals(
    by_group: np.ndarray, found: dict[str, np.ndarray], of_class: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Compute the intervals of all metrics.

    The interval of a mean over classes reaches to the outer ends of two: one from its own variance,
    and one combined from the intervals of the classes, as a class without an error shows no
    variance. F1 is a function of the share of true positives among true positives and errors, and
    gets its interval from that of the share (Flores et al. 2022).

    Args:
        by_group: Confusion matrices, (groups, classes, classes).
        found: Values of the metrics.
        of_class: Values of each class's metrics.

    Returns:
        The interval of each metric, (2,), and those of each class's metrics, (classes, 2).
    """
    rows, by_count = RowVariances(by_group), derivatives(by_group.sum(axis=0))
    right, true, predicted = _counts(by_group)
    right_error, _, predicted_error = _counts(rows.errors)
    recall = Shares(right, true)
    precision = Shares(right, predicted, (right_error, predicted_error))
    either = Shares(right, true + predicted - right, (right_error, predicted_error - right_error))
    accuracy = Shares(right.sum(axis=1, keepdims=True), true.sum(axis=1, keepdims=True))
    combined = {
        "balanced_accuracy": of_mean(of_class["recall"], recall.pooled()),
        "precision_macro": of_mean(of_class["precision"], precision.pooled()),
        "f1_macro": of_mean(of_class["f1"], _f1(either.pooled())),
    }
    ends = {"accuracy": accuracy.intervals()[0]}
    for name, of_classes in combined.items():
        spread = rows.variance(by_count[name])
        own = bounded(float(found[name]), *spread, 0, 1, len(by_group))
        ends[name] = wider(own, of_classes).clip(0, 1)
    for name in ("mcc", "kappa"):
        spread = rows.variance(by_count[name])
        ends[name] = bounded(float(found[name]), *spread, -1, 1, len(by_group))
    return ends, {
        "recall": recall.intervals(),
        "precision": precision.intervals(),
        "f1": _f1(either.intervals()),
    }


def _of_classes(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return each class's recall, precision (0 if it is never predicted) and F1, (classes,)."""
    right, true, predicted = _counts(confusion)
    return {
        "recall": right / true,
        "precision": right / np.maximum(predicted, 1),
        "f1": 2 * right / (true + predicted),
    }


def _f1(shares: np.ndarray) -> np.ndarray:
    """Return F1 for shares of true positives among true positives and errors."""
    found: np.ndarray = 2 * shares / (1 + shares)
    return found


def entry(value: Any, ends: np.ndarray, baseline: Any) -> dict[str, float]:
    """Return a metric in the form of metrics.json."""
    low, high = ends
    return {
        "value": float(value),
        "low": float(low),
        "high": float(high),
        "baseline": float(baseline),
    }
