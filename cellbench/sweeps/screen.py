"""Progress of a sweep on the screen: a live table in a terminal, else one line per trial."""

import sys
import time
from collections import Counter
from statistics import fmean

from optuna.trial import TrialState
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.table import Table

from cellbench.sweeps.folder import epochs
from cellbench.sweeps.space import Point
from cellbench.sweeps.sweep import Sweep
from cellbench.sweeps.trial import OpenTrial
from cellbench.utils.errors import printable
from cellbench.utils.terminal import Console

EVERY_S = 0.5
"""Seconds between two updates of the table."""


class Screen:
    """Display of a sweep's progress, as a context manager."""

    def __init__(self) -> None:
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._shown = 0.0

    def __enter__(self) -> "Screen":
        """Start the live table, if the output is a terminal."""
        if sys.stdout.isatty():
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the live table."""
        if self._live.is_started:
            self._live.stop()

    def show(self, sweep: Sweep, ended: OpenTrial | None) -> None:
        """Show the trial that has ended, or else the state of the sweep.

        Args:
            sweep: The sweep.
            ended: A trial that has just ended; None if there is none.
        """
        if ended is not None:
            self._console.print(_line(sweep, ended), soft_wrap=True)
        elif self._live.is_started and time.monotonic() - self._shown > EVERY_S:
            self._shown = time.monotonic()
            self._live.update(_state(sweep), refresh=True)


def shown(point: Point) -> str:
    """Return parameters in one line, by the last parts of their names."""
    values = {
        path.rpartition(".")[2]: f"{value:.3g}" if isinstance(value, float) else value
        for path, value in point.items()
    }
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _line(sweep: Sweep, ended: OpenTrial) -> str:
    """Return the outcome of a trial in one line."""
    number = f"trial {ended.optuna.number}"
    if ended.failed is not None:
        return f"{number} failed: {ended.failed} ({shown(ended.point)})"
    means = [fmean(values) for values in zip(*ended.values.values(), strict=True)]
    scores = ", ".join(
        f"{name} {mean:.4g}" for name, mean in zip(sweep.config.metrics, means, strict=False)
    )
    if ended.pruned:
        return f"{number} pruned ({shown(ended.point)})"
    return f"{number}: {scores} ({shown(ended.point)}); {_counts(sweep)}"


def _counts(sweep: Sweep) -> str:
    """Return the numbers of trials by state, the time left, and the best trial."""
    states = Counter(trial.state for trial in sweep.study.trials())
    total = sweep.config.total
    done = states[TrialState.COMPLETE] + states[TrialState.PRUNED] + states[TrialState.FAIL]
    parts = [f"{done} of {total} done" if total is not None else f"{done} done"]
    names = {"running": TrialState.RUNNING, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    parts += [f"{states[state]} {name}" for name, state in names.items() if states[state]]
    if total is not None and sweep.launcher.seconds and done < total:
        left = (total - done) * len(sweep.config.runs) - sum(
            len(trial.values) for trial in sweep.open
        )
        parts.append(f"about {_time(left * fmean(sweep.launcher.seconds) / sweep.workers)} left")
    best = None if sweep.config.compares else sweep.study.best()
    if best is not None:
        parts.append(f"best {best.values[0]:.4g} (trial {best.number})")
    return ", ".join(parts)


def _time(seconds: float) -> str:
    """Return a duration in hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(int(max(seconds, 1)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _state(sweep: Sweep) -> Group:
    """Return the live table: the runs in progress, and the numbers of trials."""
    table = Table(box=SIMPLE_HEAD)
    for column in ("trial", "run", "parameters", "epoch", "seconds"):
        table.add_column(column)
    for trial in sweep.open:
        for run_index, job in trial.jobs.items():
            run = sweep.folder.run(trial.optuna.number, sweep.config.runs[run_index])
            rows = epochs(run)
            table.add_row(
                str(trial.optuna.number),
                f"{run_index + 1} of {len(sweep.config.runs)}",
                printable(shown(trial.point | sweep.config.runs[run_index])),
                str(len(rows)),
                f"{time.monotonic() - job.begun:.0f}",
            )
    return Group(table, f"{sweep.name}: {_counts(sweep)}")
