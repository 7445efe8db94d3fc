"""The report of a thousand runs: its seconds and its memory."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import spread
from tests.drawn_runs import draw

REPETITIONS = 3
CONDITIONS, SEEDS = 20, 10
TESTED = 300
"""Predictions of each run; five folds of it are the set."""

PEAK = (
    "import resource, sys; from cellbench.__main__ import main; code = main(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10); sys.exit(code)"
)


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its figure."""
    seconds, memory = [], []
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder, "runs")
        for k in range(CONDITIONS):
            for fold in range(5):
                for seed in range(SEEDS):
                    path = runs / f"{k}-{fold}-{seed}"
                    draw(path, fold=fold, seed=seed, n=5 * TESTED, lr=(k + 1) * 1e-4)
        for _ in range(REPETITIONS):
            begun = time.perf_counter()
            command = [sys.executable, "-c", PEAK, "report", str(runs)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds.append(time.perf_counter() - begun)
            memory.append(float(done.stdout.split()[-1]))
    n = CONDITIONS * 5 * SEEDS
    yield f"report of {n:,} runs with {TESTED} predictions each: seconds", spread(seconds, 1)
    yield "  peak memory, MiB", spread(memory, 0)
