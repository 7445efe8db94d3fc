"""Execution of a sweep: run its trials, write its files, show its results."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cellbench.artifacts.finished import read_metrics
from cellbench.artifacts.folder import RunFolder
from cellbench.cli import report
from cellbench.config import yaml
from cellbench.sweeps import results
from cellbench.sweeps.folder import merged
from cellbench.sweeps.screen import Screen, shown
from cellbench.sweeps.sweep import Sweep
from cellbench.sweeps.trial import OpenTrial
from cellbench.utils.errors import UserError, counted
from cellbench.utils.terminal import say

_WRITE_EVERY_S = 10.0
"""Seconds between two writings of trials.csv and best.yaml while a sweep runs."""


def run_sweep(sweep: Sweep, given: Sequence[str]) -> int:
    """Run a sweep's trials, and show the results.

    Args:
        sweep: The sweep.
        given: The options of the experiment that were given on the command line, as --key=value.

    Returns:
        The exit code: 1 if trials have failed.
    """
    config, folder = sweep.config, sweep.folder
    total = "" if config.total is None else f"{counted(config.total, 'trial')} of "
    say(
        f"sweep      {sweep.name}: {total}{counted(len(config.runs), 'run')}, {config.sampler}, "
        f"{counted(sweep.workers, 'worker')}\nfolder     {folder.path}",
        flush=True,
    )
    _run_trials(sweep, _experiment(sweep, given))
    failed = _show_counts(sweep)
    drawn = results.draw(folder, config, sweep.study)
    if drawn:
        say(f"figures    {folder.path / 'figures'}: {', '.join(drawn)}")
    if config.compares and list((folder.path / "trials").glob("*/metrics.json")):
        report.main([str(folder.path)])  # of those that this machine has
    if len(config.metrics) > 1:
        _show_front(sweep)
    elif not config.compares:
        _show_best(sweep)
        if sweep.study.best() is not None and sweep.study.is_over:
            _show_tests(sweep.test_best())
    return 1 if failed else 0


def _experiment(sweep: Sweep, given: Sequence[str]) -> dict[str, Any]:
    """Return the content of the experiment's file, updated by the command line, for best.yaml."""
    own = yaml.read_mapping(sweep.config.experiment)
    halves = (option.removeprefix("--").partition("=") for option in given)
    return merged(own, {name: yaml.value_of(text) for name, _, text in halves})


def _run_trials(sweep: Sweep, experiment: dict[str, Any]) -> None:
    """Run the trials; write trials.csv and best.yaml from time to time, and at the end."""
    written = time.monotonic()

    def write() -> None:
        nonlocal written
        results.write_trials(sweep.folder, sweep.config, sweep.study)
        results.write_best(sweep.folder, sweep.name, sweep.config, sweep.study, experiment)
        written = time.monotonic()

    try:
        with Screen() as screen:

            def show(sweep: Sweep, ended: OpenTrial | None) -> None:
                screen.show(sweep, ended)
                if ended is not None and time.monotonic() - written > _WRITE_EVERY_S:
                    write()

            sweep.run(show)
    finally:
        write()


def _show_counts(sweep: Sweep) -> int:
    """Show the number of trials by outcome, and return the number of failed ones."""
    states = Counter(trial.state.name for trial in sweep.study.trials())
    counts = [f"{states[state]} {word}" for state, word in results.STATES.items() if states[state]]
    total = counted(states.total(), "trial")
    say(f"{total}: {', '.join(counts) or 'none'}; trials.csv has them all")
    if states["FAIL"]:
        say("NOTE       failed trials stay failed; to run them again give another --name")
    return states["FAIL"]


def _show_front(sweep: Sweep) -> None:
    """Show the Pareto front of several metrics; no trial is chosen from it."""
    config = sweep.config
    say("no trial is better in every metric than these:")
    for trial in sweep.study.front():
        values = zip(config.metrics, trial.values, strict=True)
        scores = ", ".join(f"{name} {value:.4g}" for name, value in values)
        say(f"  trial {trial.number}: {scores} ({shown(results.point_of(config, trial))})")
    if config.compares:
        say("a grid chooses none of them; report compares all conditions on the test split")
    else:
        say("choose one, and test it: python -m cellbench test --run RUN")
    if flag := results.warning_flag(config):
        say(f"UNRELIABLE: {flag}")


def _show_best(sweep: Sweep) -> None:
    """Show the best trial of a search, so far."""
    config, study = sweep.config, sweep.study
    best = study.best()
    if best is None:
        say("no trial has finished")
        return
    say(
        f"best       trial {best.number}, validation {config.metrics[0]} {best.values[0]:.4f}: "
        f"{shown(results.point_of(config, best))}\n"
        f"again      python -m cellbench fit --config {sweep.folder.best}"
    )
    if not study.is_over:
        say("test       once all trials are done: give the same command again")


def _show_tests(tests: Sequence[RunFolder]) -> None:
    """Show the test scores of the best trial; other machines have none."""
    for run in tests:
        found = read_metrics(run)
        try:
            say(f"test       {_scores(found['test'])} ({run.path})")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"cannot read {run.metrics}: {error!r}; delete {run.path}, and go on"
            ) from error
        for flag in found["stamps"]:
            say(f"UNRELIABLE: {flag}")
    if not tests:
        say("test       on the machine that has the best trial's checkpoint")


def _scores(test: Mapping[str, Any]) -> str:
    """Format the scores of a test split, given the content of metrics.json, as a line."""
    scores = test["metrics"]
    told = ", ".join(
        f"{key} {scores[key]['value']:.3f} [{scores[key]['low']:.3f}, {scores[key]['high']:.3f}]"
        for key in ("accuracy", "f1_macro")
    )
    baseline = scores["accuracy"]["baseline"]
    return f"n = {test['n']}: {told}; majority class {baseline:.3f}"
