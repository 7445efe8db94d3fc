"""Metrics of predicted probabilities: areas under ROC curves, losses and calibration."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from cellbench.metrics.classification import entry, evaluate
from cellbench.metrics.intervals import (
    LEVEL,
    Shares,
    between_group_df,
    bounded,
    critical,
    mean_contributions,
    moderated,
    of_mean,
    variance_of,
    wider,
)

BINS = 15
"""Number of bins of the calibration diagram, of equal width (Guo et al. 2017)."""

REPLICATES = 1000
"""Number of random replicates of the calibration error."""

MIN_PROBABILITY = 1e-7
"""Smallest probability of which the logarithm is taken."""

MAX_LOG_LOSS = -math.log(MIN_PROBABILITY)
"""Greatest log loss of a sample."""


def score(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    classes: tuple[str, ...],
    prior: np.ndarray,
    run: np.ndarray | None = None,
) -> dict[str, Any]:
    """Score predictions by class, as `evaluate` does, and by their probabilities.

    The baseline knows the training split only: it gives every image the shares of the classes there
    as probabilities, and so always predicts the largest class.

    Args:
        labels: Class indices, (n,); every class must occur.
        probabilities: (n, classes); rows sum to 1.
        groups: Each sample's group, a name or a number, (n,).
        classes: The class names.
        prior: Shares of the classes in the training split of each sample's model, (n, classes).
        run: Number of the run that made each prediction, (n,); None for a single run. A probability
            is ranked only among those of its own run (Forman and Scholz 2010).

    Returns:
        The result of `evaluate`, with more entries. In `metrics`: auroc (mean over the classes,
        each against the rest), log_loss, brier (Brier 1950: summed over classes, 0 to 2) and ece
        (expected calibration error, which is biased upwards; a calibrated model stays below
        `calibrated` in 95 of 100 test sets of this kind). In `classes`: each class's auroc. And
        `calibration`: n, mean confidence and accuracy of each bin that is not empty.
    """
    found = evaluate(labels, probabilities.argmax(axis=1), groups, classes, prior.argmax(axis=1))
    _, group = np.unique(groups, return_inverse=True)
    run = np.zeros(len(labels), np.int64) if run is None else run
    areas = [Area(labels == k, probabilities[:, k], group, run) for k in range(len(classes))]
    found["metrics"]["auroc"] = entry(*mean_area(areas), 0.5)
    for name, area in zip(classes, areas, strict=True):
        found["classes"][name]["auroc"] = entry(area.value, area.interval(), 0.5)
    judged, found["calibration"] = calibration(labels, probabilities, groups, prior)
    found["metrics"] |= judged
    return found


def calibration(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, prior: np.ndarray
) -> tuple[dict[str, dict[str, float]], list[dict[str, float]]]:
    """Compute losses and calibration error; the arguments are those of `score`.

    The variance of a loss is shrunk towards the variance that the probabilities imply, for an
    effective number of samples that is the geometric mean of the numbers of groups and of samples.

    Returns:
        log_loss, brier and ece, and the bins of the calibration diagram.
    """
    _, group = np.unique(groups, return_inverse=True)
    own, base = _losses(labels, probabilities), _losses(labels, prior)
    bins = Bins(labels, probabilities, group)
    counts = np.bincount(group)
    alike = len(labels) ** 2 / (counts**2).sum()  # effective number if a group is alike
    implied = _implied(probabilities) * math.sqrt(len(labels) / alike)
    judged = {}
    for k, (name, worst) in enumerate((("log_loss", MAX_LOG_LOSS), ("brier", 2.0))):
        value = float(own[k].mean())
        shifts = mean_contributions(np.bincount(group, own[k]), counts)
        variance, df = variance_of(shifts)
        shrunk, moderated_df = moderated(variance, df, implied[k])
        # An overconfident network implies too small a variance: with few groups that adds nothing.
        df = min(moderated_df, len(counts) - 1.0)
        ends = bounded(value, shrunk, df, 0.0, worst, len(counts))
        judged[name] = entry(value, ends, base[k].mean())
    base_error = Bins(labels, prior, group).error
    judged["ece"] = entry(bins.error, bins.interval(), base_error) | {"calibrated": bins.by_chance}
    return judged, bins.diagram()


class Area:
    """Area under the ROC curve of one class against the rest.

    Its variance between groups is that of the samples' placements (DeLong et al. 1988; Obuchowski
    1997).

    Args:
        positive: True for samples of the class, (n,); both kinds must occur.
        values: Probability of the class, (n,).
        group: Each sample's group, counted from 0, (n,).
        run: Each sample's run, counted from 0, (n,); only pairs within a run are compared.
    """

    def __init__(
        self, positive: np.ndarray, values: np.ndarray, group: np.ndarray, run: np.ndarray
    ) -> None:
        positives, negatives = (
            np.bincount(run[own], minlength=int(run.max()) + 1).astype(np.float64)
            for own in (positive, ~positive)
        )
        pairs = float(positives @ negatives)
        won = _won(positive, values, run, positives, negatives)
        self.value = float(won[positive].sum() / pairs)
        errors = (won - self.value * np.where(positive, negatives[run], positives[run])) / pairs
        n_groups = int(group.max()) + 1
        self._samples = positives.sum(), negatives.sum()
        self._groups = [len(np.unique(group[own])) for own in (positive, ~positive)]
        one, other = (
            np.bincount(group[own], errors[own], n_groups) * math.sqrt(n / max(n - 1, 1))
            for own, n in zip((positive, ~positive), self._groups, strict=True)
        )
        self._parts = one, other
        self.contributions: np.ndarray = one + other
        """Contribution of each group to the area's error, (groups,)."""

    def _combined_df(self) -> float:
        """Combine the degrees of freedom of both kinds of samples (Satterthwaite 1946)."""
        squares, parts = 0.0, 0.0
        for part, groups in zip(self._parts, self._groups, strict=True):
            df, variance = between_group_df(part, groups), float((part**2).sum())
            squares += variance**2 / df if df else 0.0
            parts += variance
        return parts**2 / squares if squares else 0.0

    def interval(self, df: float | None = None) -> np.ndarray:
        """Return the interval of the area, (2,).

        Few misordered pairs give a poor estimate of the variance. Therefore it is shrunk towards
        that of Hanley and McNeil (1982), for an effective number of samples that is the geometric
        mean of the numbers of groups and of samples. Without variation, a group counts as one
        sample.

        Args:
            df: Degrees of freedom of the variance; None to estimate them.
        """
        a = self.value
        least, most = (_effective_pairs(a, *sizes) for sizes in (self._groups, self._samples))
        variance = float((self.contributions**2).sum()) if min(self._groups) > 1 else 0.0
        df = self._combined_df() if df is None else df
        spread = moderated(variance, df, a * (1 - a) / math.sqrt(least * most))
        return bounded(a, *spread, 0.0, 1.0, least)


def _effective_pairs(area: float, m: float, n: float) -> float:
    """Return the effective number of samples for an area from m positive and n other samples.

    After Hanley and McNeil (1982), symmetrised by Newcombe (2006).
    """
    return m * n / (1 + ((m + n) / 2 - 1) * ((1 - area) / (2 - area) + area / (1 + area)))


def mean_area(areas: Sequence[Area]) -> tuple[float, np.ndarray]:
    """Return the mean of the areas of all classes, and its interval, (2,)."""
    values = np.array([area.value for area in areas])
    contributions = np.mean([area.contributions for area in areas], axis=0)
    groups = len(contributions)
    ends = np.array([area.interval(max(groups - len(areas), 1)) for area in areas])
    mean = float(values.mean())
    shown = bounded(mean, *variance_of(contributions), 0, 1, groups)
    return mean, wider(shown, of_mean(values, ends)).clip(0, 1)


def _won(
    positive: np.ndarray,
    values: np.ndarray,
    run: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
) -> np.ndarray:
    """Count for each sample the correctly ordered pairs with the other kind in its run, (n,).

    A tie counts half.

    Args:
        positive: True for samples of the class, (n,).
        values: Probability of the class, (n,).
        run: Run of each sample, (n,).
        positives: Number of positive samples in each run.
        negatives: Number of other samples in each run.
    """
    order = np.lexsort((values, run))
    own = positive[order]
    begins = np.r_[True, (np.diff(run[order]) > 0) | (np.diff(values[order]) > 0)]
    tie = np.cumsum(begins) - 1
    won = np.empty(len(order))
    for kind, others in ((own, negatives), (~own, positives)):
        tied = np.bincount(tie, ~kind)
        below = np.cumsum(tied) - tied / 2 - (np.cumsum(others) - others)[run[order][begins]]
        won[order[kind]] = below[tie[kind]]
    won[~positive] = positives[run[~positive]] - won[~positive]
    return won


class Bins:
    """Predictions in bins of their confidence, of equal width (Guo et al. 2017).

    Args:
        labels: Class indices, (n,).
        probabilities: (n, classes).
        groups: Each sample's group, a name or a number, (n,).
    """

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray) -> None:
        _, group = np.unique(groups, return_inverse=True)
        confidence = probabilities.max(axis=1)
        hits = (probabilities.argmax(axis=1) == labels).astype(np.float64)
        own = np.minimum((confidence * BINS).astype(int), BINS - 1)
        cell, shape = group * BINS + own, (int(group.max()) + 1, BINS)

        def sums(weights: np.ndarray) -> np.ndarray:
            return np.bincount(cell, weights, math.prod(shape)).reshape(shape)

        self._n, self._confidence = sums(np.ones(len(own))), sums(confidence)
        self._right = sums(hits)
        self._excess = (self._confidence - self._right) / len(own)
        self._counts = self._n.sum(axis=1, keepdims=True) / len(own)
        self._shares = Shares(self._right, self._n)

    @property
    def error(self) -> float:
        """Expected calibration error."""
        return float(np.abs(self._excess.sum(axis=0)).sum())

    def _totals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the samples, the sum of confidences and the hits of each bin, (BINS,) each."""
        return self._n.sum(axis=0), self._confidence.sum(axis=0), self._right.sum(axis=0)

    def diagram(self) -> list[dict[str, float]]:
        """Return n, mean confidence and accuracy of each bin that is not empty."""
        n, confidence, right = self._totals()
        return [
            {"n": int(n[k]), "confidence": confidence[k] / n[k], "accuracy": right[k] / n[k]}
            for k in np.flatnonzero(n)
        ]

    def bars(self) -> np.ndarray:
        """Return the interval of the accuracy in each bin that is not empty, (bins, 2)."""
        bars: np.ndarray = self._shares.pooled()[self._n.sum(axis=0) > 0]
        return bars

    @cached_property
    def by_chance(self) -> float:
        """95th percentile of the calibration error of a perfectly calibrated model.

        Hits of one group, such as those of several runs for one sample, are correlated. The
        replicates have the correlations that the hits show, within bins and between them.
        """
        n, confidence, right = self._totals()
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.sqrt(confidence * (1 - confidence / n) * self._shares.design_effect)
            spread = np.nan_to_num(spread)
            residuals = np.nan_to_num(self._right - self._n * right / n)
            norms = np.linalg.norm(residuals, axis=0)
            correlation = np.nan_to_num(residuals.T @ residuals / np.outer(norms, norms))
        np.fill_diagonal(correlation, 1.0)
        differences = np.random.default_rng(0).multivariate_normal(
            np.zeros(BINS), correlation * np.outer(spread, spread), REPLICATES, method="eigh"
        )
        return float(np.quantile(np.abs(differences).sum(axis=1) / n.sum(), LEVEL))

    def interval(self) -> np.ndarray:
        """Return the interval of the population's calibration error in the same bins, (2,).

        Noise biases the error upwards, most of all if the true error is small. The lower end is
        the smallest true error that could have produced the observed one. The candidates are the
        differences of the bins, all shrunk by the same factor, plus noise with the covariance
        between groups. The upper end is the error minus its bias, plus the larger of two margins:
        that of the intervals of the accuracies in the bins, and that of the error between groups.
        The error is never below the distance between mean confidence and accuracy, so the upper end
        is at least that of this distance: groups that are right or wrong together move all bins at
        once.
        """
        groups, error, differences = len(self._excess), self.error, self._excess.sum(axis=0)
        if groups < 2:
            return np.array([0.0, 1.0])
        rng = np.random.default_rng(0)
        centred = self._excess - self._counts * differences
        covariance = centred.T @ centred * groups / (groups - 1)
        noise = rng.multivariate_normal(np.zeros(BINS), covariance, REPLICATES, method="eigh")
        noise *= np.sqrt((groups - 1) / rng.chisquare(groups - 1, (REPLICATES, 1)))
        factors = np.linspace(0, 1, 21)
        simulated = np.abs(factors[:, None, None] * differences + noise).sum(axis=2)
        possible = (simulated >= error).mean(axis=1) >= (1 - LEVEL) / 2
        low = 0.0 if error <= self.by_chance else factors[possible].min(initial=1.0) * error
        unbiased = 2 * error - float(simulated[-1].mean())

        def margin(weights: np.ndarray) -> float:
            variance, df = variance_of(centred @ weights)
            return float(critical(df)) * math.sqrt(variance) if df else 0.0

        above = max(self._above(), margin(np.sign(differences)))
        overall = abs(float(differences.sum())) + margin(np.ones(BINS))
        return np.array([low, min(max(unbiased + above, overall, error), 1.0)])

    def _above(self) -> float:
        """Return the margin above the error that the intervals of the bins give (MOVER)."""
        n, confidence, right = self._totals()
        filled = n > 0
        n, confidence, right = n[filled], confidence[filled] / n[filled], right[filled] / n[filled]
        farthest = np.abs(self.bars().T - confidence).max(axis=0)
        return float(np.linalg.norm(n * (farthest - np.abs(confidence - right))) / n.sum())


def _implied(probabilities: np.ndarray) -> np.ndarray:
    """Return the variances of the mean log loss and Brier score of independent samples, (2,).

    The probabilities themselves imply these variances. A test set without errors hardly shows how
    much the losses vary.
    """
    logs = -np.log(np.clip(probabilities, MIN_PROBABILITY, None))
    briers = (probabilities**2).sum(axis=1, keepdims=True) - 2 * probabilities + 1
    found = []
    for losses in (logs, briers):
        means = (probabilities * losses).sum(axis=1, keepdims=True)
        found.append((probabilities * (losses - means) ** 2).sum() / len(losses) ** 2)
    return np.array(found)


def _losses(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log loss and the Brier score of each sample, both (n,)."""
    own = probabilities[np.arange(len(labels)), labels]
    brier = (probabilities**2).sum(axis=1) - 2 * own + 1
    return -np.log(np.clip(own, MIN_PROBABILITY, None)), brier


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature that minimises the log loss (Guo et al. 2017), .05 to 20.

    A few validation images without an error would make all other predictions certain. Therefore
    the logarithm of the temperature has a normal prior with a standard deviation of .5.

    Args:
        labels: Class indices, (n,), preferably of the validation split.
        probabilities: (n, classes).
    """

    def loss(log_temperature: float) -> float:
        scaled = temper(probabilities, float(np.exp(log_temperature)))
        return float(_losses(labels, scaled)[0].sum()) + log_temperature**2 / (2 * 0.5**2)

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities at another temperature, (n, classes), with the same order of classes.

    Args:
        probabilities: (n, classes).
        temperature: The temperature; above 1 makes them less certain.
    """
    logits = np.log(np.clip(probabilities.astype(np.float64), MIN_PROBABILITY, None))
    raised = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    scaled: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return scaled
