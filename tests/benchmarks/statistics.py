"""Whether a report's statistics keep their promises: tests, intervals, verdicts."""

from collections.abc import Iterator

import numpy as np

from tests.benchmarks import coverage, verdicts
from tests.test_statistics import nearest_mean, rejected

TRIALS = 1000
FARTHER = 0.25
"""How much farther apart the classes of the better classifier are, in standard deviations."""


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its figure."""
    yield from _corrected()
    yield from verdicts.measure()
    yield from coverage.measure(max(TRIALS // 20, 1))


def _corrected() -> Iterator[tuple[str, str]]:
    """Count how often the corrected and the plain paired t-test find a difference."""
    rng = np.random.default_rng(0)
    drawn = [nearest_mean(rng, 100, 5, 3, FARTHER).mean() for _ in range(TRIALS)]
    for farther, size in ((0.0, 0.0), (FARTHER, float(np.mean(drawn)))):
        corrected, naive = rejected(farther, TRIALS)
        what = f"{TRIALS} cross-validations (n = 100, 3 x 5 folds), true difference {size:.2f}"
        yield f"{what}: found by the corrected test, %", f"{100 * corrected:.1f}"
        yield "  by the plain paired t-test, %", f"{100 * naive:.1f}"
