"""Sizes of paired differences, with intervals and p-values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from cellbench.metrics.intervals import LEVEL

NONE = 1e-12
"""A standard error below this is rounding: nothing varies."""

REPLICATES = 2000
"""Number of bootstrap replicates."""


@dataclass(frozen=True)
class Difference:
    """The size of a difference between two conditions, with its interval and p-value."""

    mean: float
    """The estimate, as a difference of the metric."""
    low: float | None
    """Lower end of its interval; None if its variance cannot be estimated."""
    high: float | None
    """Upper end; None likewise."""
    p: float | None
    """Two-sided p-value of no difference; None likewise."""
    n: int
    """Number of test sets, or on a single one of the groups that were resampled."""
    level: float = LEVEL
    """Confidence level of the interval; more than .95 if it is adjusted for several comparisons."""
    worse: float | None = None
    """Posterior probability of a difference below the region of practical equivalence; None if
    the test has no posterior."""
    same: float | None = None
    """Posterior probability of a difference inside that region."""
    better: float | None = None
    """Posterior probability of a difference above it."""


def corrected_t(
    differences: Sequence[float],
    ratio: float,
    rope: float,
    *,
    mean: float | None = None,
    shares: Sequence[float] | None = None,
    within: float = 0.0,
    level: float = LEVEL,
) -> Difference:
    """Run the t-tests for resampled training sets, which overlap.

    Differences between folds, or random splits, are not independent: most training images are
    shared. Nadeau and Bengio (Machine Learning 52, 2003) replace the factor 1/n before the
    variance by 1/n + n_test/n_train. The Bayesian correlated t-test (Corani and Benavoli, Machine
    Learning 100, 2015) has a Student posterior with the same location and scale, for a
    correlation of n_test/(n_test + n_train); its 95 % interval is the test's.

    Args:
        differences: One per split, at least two.
        ratio: Test images for each training image.
        rope: Half the width of the region of practical equivalence.
        mean: The estimate, if it is not the mean of the differences but weighted by `shares`, as
            that of pooled predictions.
        shares: Each split's share of the estimate, with a sum of 1; None for equal ones.
        within: Sampling variance of a single difference. It replaces the variance between the
            differences if these are all equal by chance.
        level: Confidence level of the interval.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    mean = float(values.mean()) if mean is None else mean
    weights = np.full(n, 1 / n) if shares is None else np.asarray(shares)
    variance = float(values.var(ddof=1))
    if variance < NONE**2:
        variance = within
    scale = float(np.sqrt((weights @ weights + ratio) * variance))
    found = _student(mean, scale, n - 1, n, level)
    if found.p is None:
        return found
    worse, better = (float(special.stdtr(n - 1, (-rope + x) / scale)) for x in (-mean, mean))
    return Difference(
        mean, found.low, found.high, found.p, n, level, worse, 1 - worse - better, better
    )


def mcnemar(first: float, second: float, n: int, level: float = LEVEL) -> Difference:
    """Run McNemar's exact test (1947), with a score interval of the difference.

    The test is more cautious than the interval where few samples are discordant. There the
    interval is extended to 0, so that it always contains 0 if p does not exclude it.

    Args:
        first: Number of samples that the first alone has right.
        second: Number of samples that the second alone has right.
        n: Number of all samples.
        level: Confidence level of the interval.
    """
    discordant = first + second
    # The binomial distribution's tail, for counts that need not be whole.
    fewer = min(first, second)
    tail = float(special.betainc(discordant - fewer, fewer + 1, 0.5)) if discordant else 1.0
    p = min(1.0, 2 * tail)
    low, high = paired_interval(first, second, n, level)
    if p >= 1 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference((second - first) / n, low, high, p, n, level)


def paired_interval(
    first: float, second: float, n: int, level: float = LEVEL
) -> tuple[float, float]:
    """Compute Tango's score interval of a difference of paired shares, (second - first) / n.

    Tango (Statistics in Medicine 17, 1998). It contains 0 if and only if McNemar's asymptotic
    test does not reject. By exact enumeration it covers in .94 or more of all samples
    (tests/benchmarks/verdicts.py, beside Newcombe's and Agresti's and Min's).

    Args:
        first: Number of samples that the first alone has right.
        second: Number of samples that the second alone has right.
        n: Number of all samples.
        level: Confidence level.

    Returns:
        Its ends, from -1 to 1.
    """
    z = float(special.ndtri((1 + level) / 2))
    return _lower(first, second, n, z), -_lower(second, first, n, z)


def _lower(first: float, second: float, n: int, z: float) -> float:
    """Find the least difference whose score statistic is at most z."""

    def excess(difference: float) -> float:
        # The maximum-likelihood share of `first` for this difference, Tango's equation (9).
        a, c = 2 * n, -first * difference * (1 - difference)
        b = (2 * n - second + first) * difference - first - second
        share = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * share + difference * (1 - difference))
        surplus = second - first - n * difference
        if surplus < 1e-9 * n:  # at the estimate itself, where the variance may be 0 as well
            return -z
        return float(surplus / np.sqrt(variance)) - z if variance > 0 else np.inf

    found = (second - first) / n
    below = -1 + 1e-9  # at -1 itself the statistic has no variance
    if found <= below or excess(below) < 0:
        return -1.0
    above = min(found, 1 - 1e-9)
    return float(optimize.brentq(excess, below, above)) if excess(above) < 0 else above


def resample(by_group: np.ndarray) -> np.ndarray:
    """Draw bootstrap replicates of a sum over groups.

    Args:
        by_group: Each group's summand, such as its confusion matrix, (groups, ...).

    Returns:
        The sums, (REPLICATES, ...); the same for the same input.
    """
    flat = by_group.reshape(len(by_group), -1)
    replicates = [counts @ flat for counts in _group_counts(len(by_group))]
    return np.concatenate(replicates).reshape(REPLICATES, *by_group.shape[1:])


def _group_counts(groups: int) -> Iterator[np.ndarray]:
    """Yield how often each group is drawn in each replicate, (100, groups) at a time, float32.

    All replicates of 100,000 groups would take 800 MB; those of a few thousand are kept, as every
    metric of every condition needs the same.
    """
    small = groups * REPLICATES <= 10_000_000
    yield from _kept_group_counts(groups) if small else _new_group_counts(groups)


def _new_group_counts(groups: int) -> Iterator[np.ndarray]:
    """Yield the numbers of `_group_counts`."""
    rng, shares = np.random.default_rng(0), np.full(groups, 1 / groups)
    for _ in range(REPLICATES // 100):
        yield rng.multinomial(groups, shares, 100).astype(np.float32)


@lru_cache(maxsize=2)
def _kept_group_counts(groups: int) -> list[np.ndarray]:
    """Return the numbers of `_group_counts`, which are kept in memory."""
    return list(_new_group_counts(groups))


def resampled(
    mean: float,
    replicates: np.ndarray,
    groups: int,
    between: Sequence[tuple[float, int]] = (),
    level: float = LEVEL,
) -> Difference:
    """Judge a difference on one test set, by a bootstrap over its groups and by its runs.

    A test set is a sample of groups, and the runs on it are a sample of those that the training
    could have given, as the cases and readers of a study of diagnostic imaging (Obuchowski and
    Rockette, Communications in Statistics 24, 1995). So the variance between runs is added to the
    bootstrap's. The sum goes into a t-test with Satterthwaite's degrees of freedom (Hillis,
    Statistics in Medicine 26, 2007). What runs and groups share is counted in both, which errs on
    the side of caution. Percentiles of a bootstrap of few groups would find differences where
    there are none (in 25 % of simulated test sets with three groups; tests/test_statistics.py).

    Args:
        mean: The difference.
        replicates: Bootstrap replicates of the difference, (replicates,).
        groups: Number of groups that were resampled.
        between: For each condition with several runs the variance that these add to the
            difference, and its degrees of freedom.
        level: Confidence level of the interval.
    """
    if groups < 2:
        return Difference(mean, None, None, None, groups, level)
    parts = [(float(replicates.var()) * groups / (groups - 1), groups - 1), *between]
    variance = sum(part for part, _ in parts)
    if variance < NONE**2:
        return Difference(mean, None, None, None, groups, level)
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    return _student(mean, float(np.sqrt(variance)), freedom, groups, level)


def unvaried(mean: float, groups: int, level: float = LEVEL) -> Difference:
    """Judge a difference of accuracies that is the same in every group.

    Nothing varies, and yet other groups could differ: as many single samples as there are groups
    would still leave McNemar's interval.

    Args:
        mean: The difference, in each group.
        groups: Number of groups.
        level: Confidence level of the interval.
    """
    if groups < 2:
        return Difference(mean, None, None, None, groups, level)
    return mcnemar(max(-mean, 0.0) * groups, max(mean, 0.0) * groups, groups, level)


def _student(mean: float, scale: float, freedom: float, n: int, level: float) -> Difference:
    """Run a t-test.

    Args:
        mean: The difference.
        scale: Its standard error.
        freedom: Degrees of freedom.
        n: Number of test sets or groups.
        level: Confidence level of the interval.
    """
    if scale < NONE:
        return Difference(mean, None, None, None, n, level)
    # Student's distribution as functions: scipy.stats takes a hundred times as long.
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * scale
    p = float(2 * special.stdtr(freedom, -abs(mean) / scale))
    return Difference(mean, mean - half, mean + half, p, n, level)


def holm_factors(p_values: Sequence[float]) -> list[float]:
    """Return the factor by which to multiply each p-value, in the same order.

    Holm (Scandinavian Journal of Statistics 6, 1979). An interval at the level 1 - .05/factor
    excludes 0 if and only if the adjusted p-value, factor times p, is below .05.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.arange(len(p), 0, -1)
    raised = np.maximum.accumulate(p[order] * steps)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(p[order] > 0, raised / p[order], steps)
    factors = np.empty_like(p)
    factors[order] = found
    return [float(factor) for factor in factors]
