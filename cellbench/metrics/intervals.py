"""95 % intervals of means of dependent samples.

Samples of one group (a slide, a field, the copies of a cell, the predictions of several runs for
one cell) are not independent; groups are. Every interval here is based on the variance between
groups: the sum of squares of each group's linearised contribution to an estimate (Wolter 2007,
chapter 6). As all estimates are bounded, all intervals are Wilson's score intervals, with the
effective number of samples that this variance implies, and with Student's t for the number of
groups that it was estimated from (Korn and Graubard 1998).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtri, stdtrit

LEVEL = 0.95
Z = float(ndtri((1 + LEVEL) / 2))

EXPECTED_DF = 1.0
"""Degrees of freedom given to the expected variance of an estimate (see `moderated`)."""

ROUNDING_VARIANCE = 1e-20
"""Variance below which a value is 0 except for rounding errors."""

Array = np.ndarray


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval (1927) of a share.

    Args:
        share: The share, 0 to 1.
        n: Number of independent trials, above 0; not necessarily whole.
    """
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)


def score_interval(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a share: Wilson's, corrected near 0 and 1.

    Wilson's interval covers too seldom near 0 and 1. There the end next to the bound is replaced by
    the exact one for a one-sided error of .05 (Brown, Cai and DasGupta 2001).

    Args:
        share: The share, 0 to 1; NaN if there is no trial.
        n: Number of independent trials, above 0; not necessarily whole.
    """
    if not math.isfinite(share):
        return 0.0, 1.0
    low, high = wilson(share, n)
    hits, misses = share * n, (1 - share) * n
    if hits > 0:
        low = min(low, float(betaincinv(hits, misses + 1, 1 - LEVEL)))
    if misses > 0:
        high = max(high, 1 - float(betaincinv(misses, hits + 1, 1 - LEVEL)))
    return low, high


def critical(df: ArrayLike) -> NDArray[np.float64]:
    """Return the two-sided critical value of Student's t, infinite for 0 degrees of freedom.

    Args:
        df: Degrees of freedom, of any shape, which the result has as well.
    """
    freedom = np.asarray(df, np.float64)
    values = stdtrit(np.maximum(freedom, 1e-9), (1 + LEVEL) / 2)
    return np.where(freedom > 0, values, np.inf)


class Shares:
    """Shares of hits among samples in groups, k at once.

    Args:
        hits: Number of each group's hits, for each share, (groups, k).
        counts: Number of each group's samples, (groups, k).
        errors: Deviation of each group's hits and counts from their expected values, scaled so that
            the squares sum to a variance, (groups, k) each. None if every group is expected to
            have the mean share.
    """

    def __init__(
        self, hits: Array, counts: Array, errors: tuple[Array, Array] | None = None
    ) -> None:
        hits, counts = np.asarray(hits, np.float64), np.asarray(counts, np.float64)
        self._n = counts.sum(axis=0)
        self._groups = (counts > 0).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN without samples
            self.value = hits.sum(axis=0) / self._n
            # The effective number of samples if all samples of a group are alike.
            self._alike = self._n**2 / (counts**2).sum(axis=0)
            if errors is None:
                factor = np.sqrt(self._groups / np.maximum(self._groups - 1, 1))
                errors = factor * hits, factor * counts
            variance = (((errors[0] - self.value * errors[1]) / self._n) ** 2).sum(axis=0)
            self._variance = np.where(variance > ROUNDING_VARIANCE, variance, 0)
            # The variance if all samples are independent.
            self._simple = self.value * (1 - self.value) / self._n

    def intervals(self) -> Array:
        """Return the interval of each share, (k, 2), from its own variance between groups.

        With one group, or without variation between several, only the number of groups counts.
        Otherwise the effective number of samples is at least that of groups whose samples are all
        alike, and at most that by the common design effect.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = critical(self._n - 1) / critical(self._groups - 1)
            effect = np.maximum(self._variance / self._simple, self.design_effect)
            effective = np.maximum(self._n / effect * ratio**2, self._alike)
        alike = (self._groups > 0) & ~((self._variance > 0) & (self._groups > 1))
        ends = [
            wilson(share, groups) if same else score_interval(share, n)
            for share, n, same, groups in zip(
                self.value, effective, alike, self._groups, strict=True
            )
        ]
        return np.array(ends)

    @property
    def design_effect(self) -> Array:
        """Ratio of each share's variance to that of independent hits, (k,).

        All shares have a common correlation within groups. Few groups do not suffice to estimate
        the variance of a single share, which is 0 for a share without an error.
        """
        several = self._groups > 1
        with np.errstate(invalid="ignore", divide="ignore"):
            grown = self._n / self._alike - 1  # excess variance for a correlation of 1
            within = (self._n**2 * self._simple * grown)[several].sum()
            excess = (self._n**2 * (self._variance - self._simple))[several].sum()
        correlation = np.clip(excess / within, 0, 1) if within > 0 else 1.0
        effect: Array = 1 + np.nan_to_num(grown) * correlation
        return effect

    def pooled(self) -> Array:
        """Return the intervals of the shares, (k, 2), from their common design effect.

        They are meant for the interval of a mean over the shares (see `of_mean`).
        """
        df = np.maximum(self._groups - 1, 0).sum()
        ratio = critical(self._n.sum() - 1) / critical(df) if df > 0 else 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            effective = np.maximum(self._n / self.design_effect * ratio**2, self._alike)
        return np.array([score_interval(*each) for each in zip(self.value, effective, strict=True)])


def mean_contributions(sums: Array, counts: Array) -> Array:
    """Return each group's contribution to the error of a mean over samples, (groups,).

    Args:
        sums: Sum of each group's values, (groups,).
        counts: Number of each group's samples, (groups,).
    """
    contributions: Array = (sums - sums.sum() / counts.sum() * counts) / counts.sum()
    return contributions


def between_group_df(contributions: Array, groups: int) -> float:
    """Return the degrees of freedom of a variance between groups; 0 if the variance is 0.

    If few groups cause most of the variance, there are fewer than the number of groups (Box 1953).

    Args:
        contributions: Contribution of each group to an estimate's error, (n,); they sum to 0.
        groups: Number of groups whose contribution can differ from 0.
    """
    squares = contributions**2
    total = float(squares.sum())
    if groups < 2 or total < ROUNDING_VARIANCE:
        return 0.0
    kurtosis = groups * float((squares**2).sum()) / total**2
    return min(2 * groups / (kurtosis - 1) if kurtosis > 1 else math.inf, groups - 1.0)


def variance_of(contributions: Array) -> tuple[float, float]:
    """Return an estimate's variance, and the degrees of freedom of that variance.

    Args:
        contributions: Contribution of each group to the estimate's error, (groups,); they sum to 0.
    """
    groups = len(contributions)
    df = between_group_df(contributions, groups)
    return (float((contributions**2).sum()) * groups / (groups - 1) if df else 0.0), df


def moderated(variance: float, df: float, expected: float) -> tuple[float, float]:
    """Return a variance shrunk towards its expected value, and its degrees of freedom.

    After Smyth (2004). A variance of 0 stays 0.

    Args:
        variance: The estimated variance.
        df: Its degrees of freedom; 0 without variation.
        expected: The variance to shrink it towards.
    """
    if not df or not variance:
        return 0.0, 0.0
    total = df + EXPECTED_DF
    return (df * variance + EXPECTED_DF * expected) / total, total


def bounded(
    value: float, variance: float, df: float, low: float, high: float, groups: float
) -> Array:
    """Return the interval, (2,), of an estimate between two bounds.

    Args:
        value: The estimate.
        variance: Its variance.
        df: Degrees of freedom of the variance.
        low: Smallest possible value.
        high: Greatest possible value.
        groups: Effective number of samples to assume if nothing varies.
    """
    share, variance = (value - low) / (high - low), variance / (high - low) ** 2
    if variance < ROUNDING_VARIANCE or df == 0 or not 0 < share < 1:
        return low + (high - low) * np.array(wilson(share, groups))
    effective = share * (1 - share) / variance * (Z / float(critical(df))) ** 2
    return low + (high - low) * np.array(score_interval(share, max(effective, 1.0)))


def mean_interval(sums: Array, counts: Array) -> Array:
    """Return the interval, (2,), of a mean of values between 0 and 1.

    Args:
        sums: Sum of each group's values, (groups,).
        counts: Number of each group's samples, (groups,); not all 0.
    """
    mean = float(sums.sum() / counts.sum())
    return bounded(mean, *variance_of(mean_contributions(sums, counts)), 0.0, 1.0, len(sums))


def of_mean(values: Array, ends: Array) -> Array:
    """Return the interval of the mean of independent estimates from their intervals (MOVER).

    After Zou and Donner (Statistics in Medicine 27, 2008).

    Args:
        values: The estimates, (k,).
        ends: Their intervals, (k, 2).
    """
    mean = values.mean()
    below, above = np.sqrt(((ends.T - values) ** 2).sum(axis=1)) / len(values)
    return np.array([mean - below, mean + above])


def wider(one: Array, other: Array) -> Array:
    """Return the smallest interval that contains both."""
    return np.array([min(one[0], other[0]), max(one[1], other[1])])
