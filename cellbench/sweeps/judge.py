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

    def judge_epochs(self, one: OpenTrial, number: int) -> None:
        """Judge a trial of a single run by the epochs that are new in its history.csv.

        Args:
            one: The trial; stopped if it is pruned.
            number: Number of the run.
        """
        if len(self._runs) > 1 or self._config.pruner == "none":
            return
        run = self._folder.run(one.trial.number, self._runs[number])
        rows = epochs(run)
        while one.seen < len(rows) and not one.pruned:
            if one.checkpoint is None:
                one.checkpoint = read_checkpoint_config(run)
            one.seen += 1
            seen = rows[: one.seen]
            (value,) = values_at(run, seen, one.checkpoint, self._config.metrics)
            one.pruned = self._study.report(one.trial, one.seen, value)
        if one.pruned:
            one.stop()

    def judge_run(self, one: OpenTrial, number: int) -> None:
        """Note the values of a finished run, and judge a trial of several runs by it.

        Args:
            one: The trial; stopped if it is pruned, or failed if a value is not finite.
            number: Number of the run.
        """
        run = self._folder.run(one.trial.number, self._runs[number])
        self.judge_epochs(one, number)
        values = final_values(run, self._config.metrics)
        for name, value in zip(self._config.metrics, values, strict=True):
            if not math.isfinite(value):
                one.failed = f"{run.path.name}: {name} is {value}"
                one.stop()
                return
        run.last.unlink(missing_ok=True)  # the run is over; a hundred of them would fill a disk
        one.values[number] = values
        if len(self._runs) == 1 or self._config.pruner == "none" or one.pruned:
            return
        first = [values[0] for values in one.values.values()]
        if self._config.pruner == "wilcoxon":
            step, value = number, first[-1]
        else:
            step, value = len(first), fmean(first)
        if self._study.report(one.trial, step, value) and len(first) < len(self._runs):
            one.pruned = True
            one.stop()
