"""What probabilities are worth: metrics that need more than the predicted class."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from cellbench.runs.metrics import (
    LEVEL,
    draws,
    entry,
    evaluate,
    mean_interval,
    percentiles,
    share_intervals,
)

BINS = 15
"""Of the calibration diagram, of equal width (Guo et al. 2017)."""

REPLICATES = 500
"""For the AUROC: every one of them goes through all samples."""

TINY = 1e-7
"""The least probability that a logarithm is taken of."""


def score(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    classes: tuple[str, ...],
    prior: np.ndarray,
    run: np.ndarray | None = None,
) -> dict[str, Any]:
    """Scores predictions with their probabilities: all that `evaluate` does, and more.

    The baseline knows nothing but the training split: it gives every image the classes' shares
    there as probabilities, and so always says the largest class.

    Args:
        labels: Class indices, (n,); every class must occur.
        probabilities: (n, classes); rows sum to 1.
        groups: Each sample's group, a name or a number, (n,).
        classes: The class names.
        prior: The classes' shares of the training split that each sample's model saw,
            (n, classes).
        run: The number of the run that each prediction comes from, (n,), where there are several:
            a probability is ranked among those of its own run (Forman and Scholz 2010).

    Returns:
        What `evaluate` returns, and besides, in `metrics`, auroc (mean of the classes against the
        rest), log_loss, brier (Brier 1950: summed over classes, 0 to 2) and ece (expected
        calibration error, which is biased upwards; a calibrated model stays below its `calibrated`
        in 95 of 100 such sets), in `classes` each one's auroc, and `calibration`: for each bin
        that is not empty n, mean confidence and accuracy.
    """
    found = evaluate(labels, probabilities.argmax(axis=1), groups, classes, prior.argmax(axis=1))
    _, group = np.unique(groups, return_inverse=True)
    run = np.zeros(len(labels), np.int64) if run is None else run
    areas, replicated = aurocs(labels, probabilities, group, run)
    n_groups = np.array([len(np.unique(group[labels == k])) for k in range(len(classes))])
    every = np.full(len(areas), int(group.max()) + 1)
    ends = share_intervals(replicated, areas, every, n_groups)
    mean = mean_interval(replicated.mean(axis=1), areas, ends)
    for k, name in enumerate(classes):
        found["classes"][name]["auroc"] = entry(areas[k], ends[k], 0.5)
    judged, bins = calibration(labels, probabilities, groups, prior)
    found["metrics"] |= {"auroc": entry(areas.mean(), mean, 0.5)} | judged
    found["calibration"] = bins
    return found


def calibration(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, prior: np.ndarray
) -> tuple[dict[str, dict[str, float]], list[dict[str, float]]]:
    """How much the probabilities can be believed; the arguments are those of `score`.

    Returns:
        log_loss, brier and ece, and the bins of the diagram.
    """
    _, group = np.unique(groups, return_inverse=True)
    own, base = _losses(labels, probabilities), _losses(labels, prior)
    binned = _binned(labels, probabilities)
    sums = np.zeros((int(group.max()) + 1, 3 + 3 * BINS))
    np.add.at(sums, group, np.column_stack([np.ones(len(labels)), *own, binned]))
    replicates = np.concatenate([drawn @ sums for drawn in draws(len(sums))])
    means = replicates[:, 1:3] / replicates[:, :1]
    judged = {
        name: entry(own[k].mean(), percentiles(means[:, k]), base[k].mean())
        for k, name in enumerate(("log_loss", "brier"))
    }
    total = binned.sum(axis=0)
    error, errors = _calibration_error(total), _calibration_error(replicates[:, 3:])
    # Resampling adds noise, and noise adds to this error: the replicates lie above the truth, and
    # the estimate itself does. What a calibrated model could have by chance is no evidence.
    ends = percentiles(errors - errors.mean() + error).clip(0, 1)
    chance = _by_chance(probabilities)
    if error <= chance:
        ends[0] = 0.0
    base_error = _calibration_error(_binned(labels, prior).sum(axis=0))
    judged["ece"] = entry(error, ends, base_error) | {"calibrated": chance}
    n, confidence, right = total.reshape(3, BINS)
    bins = [
        {"n": int(n[k]), "confidence": confidence[k] / n[k], "accuracy": right[k] / n[k]}
        for k in range(BINS)
        if n[k]
    ]
    return judged, bins


def aurocs(
    labels: np.ndarray, probabilities: np.ndarray, group: np.ndarray, run: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each class' area under the ROC curve against the rest.

    Args:
        labels: Class indices, (n,); every class must occur.
        probabilities: (n, classes).
        group: Each sample's group, counted from 0, (n,).
        run: Each one's run, counted from 0, (n,): pairs of one run alone are compared.

    Returns:
        The areas, (classes,), and REPLICATES of them with groups resampled, (REPLICATES, classes);
        NaN where a replicate has none of a class, or nothing else.
    """
    ranked = [_Ranked(labels == k, own, group, run) for k, own in enumerate(probabilities.T)]
    n_groups = int(group.max()) + 1
    areas = np.array([one.area(np.ones((1, n_groups), np.float32))[0] for one in ranked])
    replicates = [
        np.stack([one.area(drawn) for one in ranked]) for drawn in draws(n_groups, REPLICATES)
    ]
    return areas, np.concatenate(replicates, axis=1).T


class _Ranked:
    """The samples in the order of one class' probability, run by run.

    Args:
        positive: Whether a sample is of the class, (n,).
        values: The probability, (n,).
        group: Each sample's group, (n,).
        run: Each sample's run, (n,).
    """

    def __init__(
        self, positive: np.ndarray, values: np.ndarray, group: np.ndarray, run: np.ndarray
    ) -> None:
        order = np.lexsort((values, run))
        self._group = group[order]
        self._positive = positive[order].astype(np.float32)
        changes = np.diff(run[order]) > 0
        begins = np.r_[True, changes | (np.diff(values[order]) > 0)]
        self._begins = None if begins.all() else np.flatnonzero(begins)  # equal values tie
        self._runs = np.flatnonzero(np.r_[True, changes][begins])
        self._sizes = np.diff(np.r_[self._runs, begins.sum()])

    def area(self, drawn: np.ndarray) -> np.ndarray:
        """The area under the curve for several drawings of the groups, (replicates, groups)."""
        weights = drawn[:, self._group]
        above = weights * self._positive
        below = weights - above
        if self._begins is not None:
            above = np.add.reduceat(above, self._begins, axis=1)
            below = np.add.reduceat(below, self._begins, axis=1)
        passed = np.cumsum(below, axis=1, dtype=np.float64)
        before = passed[:, self._runs] - below[:, self._runs]
        passed -= below / 2 + np.repeat(before, self._sizes, axis=1)
        positives, negatives = (np.add.reduceat(w, self._runs, axis=1) for w in (above, below))
        with np.errstate(invalid="ignore"):
            found: np.ndarray = np.einsum("rn,rn->r", above, passed) / np.einsum(
                "rk,rk->r", positives, negatives
            )
        return found


def _losses(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's log loss and Brier score."""
    own = probabilities[np.arange(len(labels)), labels]
    brier = (probabilities**2).sum(axis=1) - 2 * own + 1
    return -np.log(np.clip(own, TINY, None)), brier


def _binned(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Each sample's one, confidence and hit, in the columns of its bin: (n, 3 * BINS)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    own = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = np.zeros((len(labels), 3, BINS))
    rows[np.arange(len(labels)), :, own] = np.column_stack([np.ones(len(own)), confidence, right])
    return rows.reshape(len(labels), -1)


def _by_chance(probabilities: np.ndarray) -> float:
    """The 95th percentile of the calibration error where every confidence is true."""
    confidence, rng = probabilities.max(axis=1), np.random.default_rng(0)
    own = np.minimum((confidence * BINS).astype(int), BINS - 1)
    n = np.bincount(own, minlength=BINS)
    told = np.bincount(own, confidence, minlength=BINS)
    chances = np.divide(told, n, out=np.zeros(BINS), where=n > 0)
    right = rng.binomial(n, chances.clip(0, 1), (REPLICATES, BINS))
    return float(np.quantile(np.abs(right - told).sum(axis=1) / len(confidence), LEVEL))


def _calibration_error(sums: np.ndarray) -> np.ndarray:
    """The expected calibration error of `_binned` sums, (..., 3 * BINS)."""
    n, confidence, right = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, BINS), -2, 0)
    error: np.ndarray = np.abs(confidence - right).sum(axis=-1) / n.sum(axis=-1)
    return error


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature that makes the log loss least (Guo et al. 2017), .05 to 20.

    A validation split of a few images, none of them missed, would make the probabilities of all
    others certain; so its logarithm has a normal prior with a standard deviation of .5.

    Args:
        labels: Class indices, (n,), best of the validation split.
        probabilities: (n, classes).
    """

    def loss(log_temperature: float) -> float:
        scaled = temper(probabilities, float(np.exp(log_temperature)))
        return float(_losses(labels, scaled)[0].sum()) + log_temperature**2 / (2 * 0.5**2)

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at another temperature, (n, classes); the order of the classes stays.

    Args:
        probabilities: (n, classes).
        temperature: Above 1 makes them less certain.
    """
    logits = np.log(np.clip(probabilities.astype(np.float64), TINY, None))
    raised = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    scaled: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return scaled
