"""What the benchmarks share: a process of its own for each measurement, and its figures."""

import io
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from statistics import median
from typing import Any

from cellbench.__main__ import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["cellbench.cli.execution.running"])


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in a fresh process that has done the imports, as a user's would.

    What the allocator has learnt from one measurement changes the next one's time by up to 40 %.
    """
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        return pool.submit(function, *args).result()


def quietly(*args: str) -> int:
    """Runs a command in this process; what it prints is not the table's."""
    with redirect_stdout(io.StringIO()):
        return main(args)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and greatest."""
    low, high = min(values), max(values)
    return f"{median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratios(above: Sequence[float], below: Sequence[float]) -> str:
    """The spread of the ratios of measurements that were taken in turn."""
    return spread([a / b for a, b in zip(above, below, strict=True)])
