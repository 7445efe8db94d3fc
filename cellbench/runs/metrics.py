"""Each metric with its 95 % interval and the majority baseline."""

from typing import Any

import numpy as np
from scipy.stats import binomtest

LEVEL = 0.95
REPLICATES = 2000


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64, (classes, classes): a row a true class, a column a predicted one."""
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


def values(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of confusion matrices, (..., classes, classes).

    Returns:
        accuracy, balanced_accuracy (mean recall of the classes that occur), f1_macro (mean F1 of
        the classes that occur or are predicted): arrays of the leading shape.
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        recall, f1 = right / true, 2 * right / (true + predicted)  # NaN where there is none
    return {
        "accuracy": right.sum(axis=-1) / confusion.sum(axis=(-2, -1)),
        "balanced_accuracy": np.nanmean(recall, axis=-1),
        "f1_macro": np.nanmean(f1, axis=-1),
    }


def evaluate(
    labels: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    classes: tuple[str, ...],
    majority: int,
) -> dict[str, Any]:
    """Scores predictions.

    Where every sample is its own group, accuracy and recall have Wilson's interval (1927). All
    else has the percentile interval of a bootstrap that resamples groups, as samples of one group
    are not independent. Where that bootstrap cannot vary (no mistake at all), a metric has the
    Wilson interval of the class with the fewest samples, which is wide enough for each of them.

    Args:
        labels: Class indices, (n,); every class must occur.
        predicted: Class indices, (n,).
        groups: A number for each sample's group, (n,).
        classes: The class names.
        majority: The training split's largest class: the baseline always says this one.

    Returns:
        n, groups, confusion, and for each metric value, low, high and baseline, also for each
        class' recall; ready for JSON.
    """
    n = len(classes)
    confusion = confusion_matrix(labels, predicted, n)
    baseline = confusion_matrix(labels, np.full_like(labels, majority), n)
    _, group = np.unique(groups, return_inverse=True)
    n_groups = int(group.max()) + 1
    by_group = np.zeros((n_groups, n, n))
    np.add.at(by_group, (group, labels, predicted), 1)
    alone = n_groups == len(labels)
    resampled = _resample(by_group)
    smallest = int(confusion.sum(axis=1).min())

    def with_interval(
        value: float, base: float, replicates: np.ndarray, trials: int, wilson: bool
    ) -> dict[str, float | str]:
        known = replicates[~np.isnan(replicates)]
        if wilson or np.ptp(known) == 0:
            interval = binomtest(round(value * trials), trials).proportion_ci(LEVEL, "wilson")
            low, high, method = interval.low, interval.high, f"Wilson, n = {trials}"
        else:
            low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            method = f"bootstrap of {n_groups} groups, {REPLICATES} replicates"
        low, high = min(float(low), value), max(float(high), value)
        return {"value": value, "low": low, "high": high, "baseline": base, "interval": method}

    found, always, replicates = values(confusion), values(baseline), values(resampled)
    metrics = {
        name: with_interval(
            float(found[name]),
            float(always[name]),
            replicates[name],
            len(labels) if alone and name == "accuracy" else smallest,
            alone and name == "accuracy",
        )
        for name in found
    }
    with np.errstate(invalid="ignore"):
        recalls = np.diagonal(resampled, axis1=1, axis2=2) / resampled.sum(axis=2)
    recall = {}
    for i, name in enumerate(classes):
        n_class = int(confusion[i].sum())
        value = float(confusion[i, i] / n_class)
        recall[name] = {
            "n": n_class,
            **with_interval(value, float(i == majority), recalls[:, i], n_class, alone),
        }
    return {
        "n": len(labels),
        "groups": n_groups,
        "metrics": metrics,
        "recall": recall,
        "confusion": confusion.tolist(),
    }


def _resample(by_group: np.ndarray) -> np.ndarray:
    """Confusion matrices of REPLICATES draws of as many groups, with replacement.

    Args:
        by_group: A confusion matrix for each group, (groups, classes, classes).

    Returns:
        (REPLICATES, classes, classes); the same for the same input.
    """
    n_groups, rng = len(by_group), np.random.default_rng(0)
    flat, shares = by_group.reshape(n_groups, -1), np.full(n_groups, 1 / n_groups)
    # A hundred at a time: the counts of all replicates of 100,000 groups would take 1.6 GB.
    replicates = [rng.multinomial(n_groups, shares, 100) @ flat for _ in range(REPLICATES // 100)]
    return np.concatenate(replicates).reshape(REPLICATES, *by_group.shape[1:])
