"""How often a report's verdict is wrong, and whether its intervals of differences cover."""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from scipy import stats

from cellbench.metrics.intervals import Z
from cellbench.metrics.tests import (
    Difference,
    corrected_t,
    mcnemar,
    paired_interval,
    resample,
    resampled,
    unvaried,
)

SIZES = (60, 300, 3000)
"""Numbers of tested cells."""

GROUPS = (1, 10, 50)
"""Numbers of cells in a group."""

ACCURACIES = (0.60, 0.93, 0.99)

SEEDS = (1, 2, 3, 5)
"""Numbers of runs of each of the two sets of one condition."""

RUN_SD = 0.025
"""Standard deviation of a run's true accuracy, at most half of its distance from 1."""

TRIALS = 500
"""Simulated comparisons for each figure."""

RATES = ((0.0, 0.02), (0.0, 0.005), (0.002, 0.002), (0.01, 0.01), (0.01, 0.04), (0.05, 0.1))
"""Shares of the cells that the first, or the second, alone has right."""

RIGHT = 0.9
"""Share of the other cells that both have right, on which Newcombe's interval depends."""

Interval = Callable[[int, int, int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Ends of an interval for the counts `first` and `second` of n, with several counts of both
right."""


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its figure."""
    yield from _coverages()
    yield from _shares()
    yield from _libraries()


def _coverages() -> Iterator[tuple[str, str]]:
    kinds = {
        "the verdict's (Tango 1998)": ours,
        "Newcombe's (1998, method 10)": newcombe,
        "Agresti's and Min's (2005)": agresti_min,
    }
    for n in SIZES:
        for name, interval in kinds.items():
            found = [coverage(interval, n, *rates) for rates in RATES]
            yield (
                f"95 % interval of a paired difference, n = {n:,}, exact: {name} covers, least "
                f"and mean of {len(RATES)} pairs of rates",
                f"{min(found):.3f}, {np.mean(found):.3f}",
            )


def _shares() -> Iterator[tuple[str, str]]:
    worst = {"with": 0.0, "without": 0.0}
    for n in SIZES:
        for size in GROUPS:
            for seeds in SEEDS:
                shares = []
                for accuracy in ACCURACIES:
                    judged = on_one_test_set(TRIALS, n, size, seeds, accuracy)
                    shares.append(_called(judged[0]))
                    if seeds == 3:
                        worst["with"] = max(worst["with"], shares[-1])
                        worst["without"] = max(worst["without"], _called(judged[1]))
                claim = "the trained model" if seeds == 1 else f"the condition, {seeds} seeds"
                yield _row(f"one test set, n = {n:,}, groups of {size}: {claim}", shares)
            if n // size >= 5:
                for seeds in (1, 3):
                    shares = [_called(on_five_folds(TRIALS, n, size, seeds, a)) for a in ACCURACIES]
                    what = f"5 folds, n = {n:,}, groups of {size}: the condition, {seeds} seed(s)"
                    yield _row(what, shares)
    yield "largest false share on one test set, 3 seeds", f"{worst['with']:.3f}"
    yield "  without the variance between runs", f"{worst['without']:.3f}"
    for seeds in (2, 3, 5):
        judged = on_one_test_set(TRIALS, 300, 1, seeds, 0.85, run_sd=0.01, better=0.08)
        what = f"a true difference of .08 is found, n = 300, run sd .01, {seeds} seeds"
        yield what, f"{_called(judged[0]):.3f}"


def _row(what: str, shares: list[float]) -> tuple[str, str]:
    shown = ", ".join(f"{share:.3f}" for share in shares)
    return f"false better or worse at accuracy .60, .93, .99, {what}", shown


def _called(judged: list[Difference]) -> float:
    """Share of differences that are called better or worse."""
    return float(np.mean([one.p is not None and one.p < 0.05 for one in judged]))


def _libraries() -> Iterator[tuple[str, str]]:
    """Compare with other libraries' McNemar and correlated t-test."""
    import baycomp
    from statsmodels.stats.contingency_tables import mcnemar as other

    tables = [(a, b) for a in range(15) for b in range(15)]
    apart = [
        abs(mcnemar(a, b, 100).p - other([[60, a], [b, 40 - a - b]], exact=True).pvalue)  # type: ignore[operator]
        for a, b in tables
    ]
    yield (
        f"McNemar's p, largest difference from statsmodels in {len(tables)} tables",
        f"{max(apart):.1e}",
    )
    rng, largest = np.random.default_rng(0), 0.0
    for _ in range(100):
        first, second = rng.normal(0.8, 0.02, 5), rng.normal(0.81, 0.02, 5)
        theirs = baycomp.two_on_single(first, second, rope=0.01)
        found = corrected_t(second - first, 1 / 4, 0.01)
        ours = (found.worse, found.same, found.better)
        largest = max(largest, *(abs(a - b) for a, b in zip(theirs, ours, strict=True)))  # type: ignore[operator]
    yield "posterior of 5 folds, largest difference from baycomp in 100", f"{largest:.1e}"


def ours(first: int, second: int, n: int, both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the verdict's interval, which does not depend on how many both have right."""
    low, high = _ours(first, second, n)
    return np.full(len(both), low), np.full(len(both), high)


@cache
def _ours(first: int, second: int, n: int) -> tuple[float, float]:
    return paired_interval(first, second, n)


def agresti_min(first: int, second: int, n: int, both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Agresti and Min (Statistics in Medicine 24, 2005): Wald's with half a sample in each cell."""
    b, c, total = first + 0.5, second + 0.5, n + 2
    half = Z * np.sqrt(b + c - (c - b) ** 2 / total) / total
    middle = np.full(len(both), (c - b) / total)
    return middle - half, middle + half


def newcombe(first: int, second: int, n: int, both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newcombe (Statistics in Medicine 17, 1998), method 10: square and add Wilson's intervals."""
    neither = n - first - second - both
    p, q = (both + second) / n, (both + first) / n
    (p_low, p_high), (q_low, q_high) = _wilson(p, n), _wilson(q, n)
    product = both * neither - first * second
    product = np.where(product > n / 2, product - n / 2, np.minimum(product, 0))
    sides = (both + second) * (first + neither) * (both + first) * (second + neither)
    phi = np.where(sides > 0, product / np.sqrt(np.maximum(sides, 1)), 0)

    def add(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(one**2 - 2 * phi * one * other + other**2, 0))

    return p - q - add(p - p_low, q_high - q), p - q + add(p_high - p, q - q_low)


def _wilson(share: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return centre - half, centre + half


def coverage(interval: Interval, n: int, first: float, second: float, tail: float = 1e-5) -> float:
    """Enumerate all tables and add up the probability of those whose interval covers.

    Args:
        interval: The interval.
        n: Number of samples.
        first: Share of the samples that the first alone has right.
        second: Share that the second alone has right.
        tail: Probability on either side of a count that is left out.
    """
    total = covered = 0.0
    share = RIGHT  # of those that both have right or wrong
    for b in _likely(n, first, tail):
        for c in _likely(n - b, second / (1 - first), tail):
            both = _likely(n - b - c, share, tail)
            weight = stats.binom.pmf(b, n, first) * stats.binom.pmf(c, n - b, second / (1 - first))
            weights = weight * _pmf(n - b - c, tail)
            low, high = interval(int(b), int(c), n, both)
            inside = (low - 1e-9 <= second - first) & (second - first <= high + 1e-9)
            total += weights.sum()
            covered += weights[inside].sum()
    return covered / total


def _likely(n: int, share: float, tail: float) -> np.ndarray:
    low, high = stats.binom.ppf([tail, 1 - tail], n, share)
    return np.arange(max(int(low), 0), int(high) + 1)


@cache
def _pmf(n: int, tail: float) -> np.ndarray:
    return stats.binom.pmf(_likely(n, RIGHT, tail), n, RIGHT)


def on_one_test_set(
    trials: int,
    n: int,
    size: int,
    seeds: int,
    accuracy: float,
    *,
    run_sd: float = RUN_SD,
    better: float = 0.0,
) -> tuple[list[Difference], list[Difference]]:
    """Judge two sets of runs on one test set, as `report` does.

    A single seed is only judged as a trained model: there both true accuracies are equal.

    Args:
        trials: Number of comparisons.
        n: Number of cells.
        size: Number of cells in a group.
        seeds: Number of runs in a set.
        accuracy: The runs' mean true accuracy.
        run_sd: Standard deviation of a run's true accuracy.
        better: By how much the second set is better.

    Returns:
        The differences, and those without the variance between runs.
    """
    rng = np.random.default_rng([n, size, seeds, int(100 * accuracy)])
    sd = 0.0 if seeds == 1 else min(run_sd, (1 - accuracy) / 2)
    right, sizes = learners(rng, trials, n, size, [accuracy, accuracy + better], sd, seeds)
    by_run = right.sum(axis=2) / n  # (2, seeds, trials)
    mean = by_run.mean(axis=1)[1] - by_run.mean(axis=1)[0]
    if seeds == 1 and size == 1:
        first = (right[0, 0] > right[1, 0]).sum(axis=0)
        second = (right[1, 0] > right[0, 0]).sum(axis=0)
        judged = [mcnemar(int(b), int(c), n) for b, c in zip(first, second, strict=True)]
        return judged, judged
    drawn = resample(np.column_stack([sizes, (right[1] - right[0]).mean(axis=0)]))
    replicates = drawn[:, 1:] / drawn[:, :1]
    variances = by_run.var(axis=1, ddof=1) / seeds if seeds > 1 else None
    found: tuple[list[Difference], list[Difference]] = [], []
    for k in range(trials):
        between = [] if variances is None else [(float(v), seeds - 1) for v in variances[:, k]]
        for kept, own in zip(found, (between, []), strict=True):
            one = resampled(float(mean[k]), replicates[:, k], len(sizes), own)
            kept.append(unvaried(float(mean[k]), len(sizes)) if one.p is None else one)
    return found


def on_five_folds(trials: int, n: int, size: int, seeds: int, accuracy: float) -> list[Difference]:
    """Judge two sets of runs of one condition by the differences of five folds."""
    rng = np.random.default_rng([n, size, seeds, int(100 * accuracy), 5])
    sd = min(RUN_SD, (1 - accuracy) / 2)
    whole = -(-n // size)  # groups
    tested, differences = [], []
    for fold in range(5):
        own = min(len(range(fold, whole, 5)) * size, n)
        right, _ = learners(rng, trials, own, size, [accuracy] * 2, sd, seeds)
        by_set = right.sum(axis=2).mean(axis=1) / own
        tested.append(own)
        differences.append(by_set[1] - by_set[0])
    shares = np.array(tested) / sum(tested)
    ratio = float(np.mean([own / (sum(tested) - own) for own in tested]))
    found = []
    for own in np.array(differences).T:
        mean = float(shares @ own)
        one = corrected_t(own, ratio, 0.01, mean=mean, shares=shares)
        found.append(unvaried(mean, whole) if one.p is None else one)
    return found


def learners(
    rng: np.random.Generator,
    trials: int,
    n: int,
    size: int,
    accuracies: list[float],
    run_sd: float,
    seeds: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate runs that find the same cells and groups hard, and differ in accuracy.

    A cell is right if the run's skill, the cell's difficulty (of which the group has a part) and
    the run's own noise are together above 0.

    Returns:
        Cells right by group, (sets, seeds, groups, trials), and the groups' sizes.
    """
    group = np.arange(n) // size
    starts = np.arange(0, n, size)
    of_group = rng.standard_normal((len(starts), trials), np.float32)[group]
    of_cell = rng.standard_normal((n, trials), np.float32)
    difficulty = np.float32(0.3**0.5) * of_group + np.float32(0.7**0.5) * of_cell
    right = np.empty((len(accuracies), seeds, len(starts), trials))
    for k, accuracy in enumerate(accuracies):
        for seed in range(seeds):
            true = np.clip(accuracy + run_sd * rng.standard_normal(trials), 0.01, 0.9999)
            skill = stats.norm.ppf(true).astype(np.float32)
            noise = rng.standard_normal((n, trials), np.float32)
            above = np.float32(0.7**0.5) * difficulty + np.float32(0.3**0.5) * noise + skill > 0
            right[k, seed] = np.add.reduceat(above, starts, axis=0, dtype=np.int32)
    return right, np.bincount(group)
