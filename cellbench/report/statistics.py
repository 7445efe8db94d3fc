"""The tests of paired differences: effect and interval first, p after."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cellbench.runs.metrics import LEVEL


@dataclass(frozen=True)
class Difference:
    """How much one condition is better than another.

    Attributes:
        mean: The mean difference.
        low: Lower end of its 95 % interval; None where nothing varies, so that there is nothing to
            judge by.
        high: Upper end.
        p: Of no difference; None likewise.
        n: The number of independent differences, or of groups that were resampled.
        worse: The posterior probability that it is worse by more than the region of practical
            equivalence; None where the test has no posterior.
        same: That the two are practically equivalent.
        better: That it is better.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    worse: float | None = None
    same: float | None = None
    better: float | None = None


def corrected_t(differences: Sequence[float], ratio: float, rope: float) -> Difference:
    """The t-tests for resampled training sets, which overlap.

    Differences between folds, or random splits, are not independent: most training images are
    shared. Nadeau and Bengio (Machine Learning 52, 2003) put the factor 1/n + n_test/n_train in
    the place of 1/n before the variance. The Bayesian correlated t-test (Corani and Benavoli,
    Machine Learning 100, 2015) has a Student posterior with the same location and scale, for a
    correlation of n_test/(n_test + n_train); its 95 % interval is the test's.

    Args:
        differences: One a split, at least two.
        ratio: Test images for each training image.
        rope: Half the width of the region of practical equivalence.
    """
    values = np.asarray(differences, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    scale = float(np.sqrt((1 / n + ratio) * values.var(ddof=1)))
    if scale < 1e-12:  # not one of them differs from another
        return Difference(mean, None, None, None, n)
    posterior = stats.t(n - 1, mean, scale)
    low, high = posterior.interval(LEVEL)
    worse, better = float(posterior.cdf(-rope)), float(posterior.sf(rope))
    p = float(2 * stats.t(n - 1).sf(abs(mean) / scale))
    return Difference(mean, float(low), float(high), p, n, worse, 1 - worse - better, better)


def mcnemar(first: int, second: int, n: int) -> Difference:
    """McNemar's exact test (1947), and the interval of the difference that agrees with it.

    The interval is Clopper's and Pearson's of the second's share of the discordant samples; without
    any of these, it is the shares that would still have gone unseen.

    Args:
        first: Samples that the first alone has right.
        second: Samples that the second alone has right.
        n: All samples.
    """
    discordant = first + second
    if discordant == 0:
        unseen = 1 - ((1 - LEVEL) / 2) ** (1 / n)
        return Difference(0.0, -unseen, unseen, 1.0, n)
    found = stats.binomtest(second, discordant)
    share = found.proportion_ci(LEVEL, method="exact")
    low, high = ((2 * end - 1) * discordant / n for end in (share.low, share.high))
    return Difference((second - first) / n, float(low), float(high), float(found.pvalue), n)


def resampled(mean: float, replicates: np.ndarray, groups: int) -> Difference:
    """A difference on one test set, from a bootstrap over its groups.

    The bootstrap's standard error goes into a t-test with one degree of freedom less than there
    are groups: percentiles of a bootstrap of few groups find differences where there are none (in
    25 % of simulated test sets with three groups; tests/test_statistics.py).

    Args:
        mean: The difference.
        replicates: Of the difference, (replicates,).
        groups: How many were resampled.
    """
    scale = float(replicates.std()) * np.sqrt(groups / max(groups - 1, 1))
    if groups < 2 or scale < 1e-12:
        return Difference(mean, None, None, None, groups)
    t = stats.t(groups - 1)
    half = float(t.ppf((1 + LEVEL) / 2)) * scale
    return Difference(mean, mean - half, mean + half, float(2 * t.sf(abs(mean) / scale)), groups)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scandinavian Journal of Statistics 6, 1979), in the same order."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    adjusted = np.empty_like(p)
    adjusted[order] = raised
    return [float(value) for value in adjusted]
