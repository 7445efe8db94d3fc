"""Values of a trial's runs, and the pruner's judgement of them."""

import math
from statistics import fmean

from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.folder import (
    SweepFolder,
    epochs,
    final_values,
    read_checkpoint_config,
    values_at,
)
from cellbench.sweeps.study import Study
from cellbench.sweeps.trial import OpenTrial


class Judge:
    """Reader of the values of runs, which lets the pruner judge their trials.

    A trial with a single run is judged after every epoch, one with several runs after every run.

    Args:
        config: The sweep.
        study: Its trials; holds the pruner.
        folder: The sweep's folder.
    """

    def __init__(self, config: SweepConfig, study: Study, folder: SweepFolder) -> None:
        self._config = config
        self._study = study
        self._folder = folder
        self._runs = config.runs

    def judge_epochs(self, trial: OpenTrial, run_index: int) -> None:
        """Judge a trial of a single run by the epochs that are new in its history.csv.

        Args:
            trial: The trial; stopped if it is pruned.
            run_index: Position of the run in `SweepConfig.runs`.
        """
        if len(self._runs) > 1 or self._config.pruner == "none":
            return
        run = self._folder.run(trial.optuna.number, self._runs[run_index])
        rows = epochs(run)
        while trial.seen < len(rows) and not trial.pruned:
            if trial.checkpoint is None:
                trial.checkpoint = read_checkpoint_config(run)
            trial.seen += 1
            seen = rows[: trial.seen]
            (value,) = values_at(run, seen, trial.checkpoint, self._config.metrics)
            trial.pruned = self._study.report(trial.optuna, trial.seen, value)
        if trial.pruned:
            trial.stop()

    def judge_run(self, trial: OpenTrial, run_index: int) -> None:
        """Note the values of a finished run, and judge a trial of several runs by it.

        Args:
            trial: The trial; stopped if it is pruned, or failed if a value is not finite.
            run_index: Position of the run in `SweepConfig.runs`.
        """
        run = self._folder.run(trial.optuna.number, self._runs[run_index])
        self.judge_epochs(trial, run_index)
        values = final_values(run, self._config.metrics)
        for name, value in zip(self._config.metrics, values, strict=True):
            if not math.isfinite(value):
                trial.failed = f"{run.path.name}: {name} is {value}"
                trial.stop()
                return
        run.last.unlink(missing_ok=True)  # the run is over; a hundred of them would fill a disk
        trial.values[run_index] = values
        if len(self._runs) == 1 or self._config.pruner == "none" or trial.pruned:
            return
        first = [values[0] for values in trial.values.values()]
        if self._config.pruner == "wilcoxon":
            step, value = run_index, first[-1]
        else:
            step, value = len(first), fmean(first)
        if self._study.report(trial.optuna, step, value) and len(first) < len(self._runs):
            trial.pruned = True
            trial.stop()
