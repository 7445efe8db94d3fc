"""Start of a trial's runs in free workers."""

import os
import time
from collections.abc import Sequence

from cellbench.artifacts.folder import RunFolder
from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.folder import SweepFolder
from cellbench.sweeps.signals import hold_signals
from cellbench.sweeps.space import options
from cellbench.sweeps.trial import OpenTrial
from cellbench.sweeps.workers import Command, Job, Slot


class Launcher:
    """Launcher of trials' runs, one at a time in each worker.

    Args:
        config: The sweep.
        folder: Its folder.
        command: The function that a worker calls with a command line.
        experiment: Options of the command line that all runs share.
        slots: Resources of each worker.
    """

    def __init__(
        self,
        config: SweepConfig,
        folder: SweepFolder,
        command: Command,
        experiment: Sequence[str],
        slots: Sequence[Slot],
    ) -> None:
        self.command = command
        self.free = list(slots)
        self.seconds: list[float] = []  # that each run took
        self._config = config
        self._folder = folder
        self._experiment = list(experiment)

    def run_folder(self, trial: OpenTrial, run_index: int) -> RunFolder:
        """Return the folder of a trial's run."""
        return self._folder.run(trial.optuna.number, self._config.runs[run_index])

    def start(self, trial: OpenTrial, run_index: int) -> None:
        """Start a trial's run in a free worker."""
        run = self.run_folder(trial, run_index)
        job = Job(
            self._command_line(trial, run_index),
            self._folder.log(run),
            self.free.pop(0),
            dict(os.environ),
            self._config.timeout,
        )
        run.path.parent.mkdir(parents=True, exist_ok=True)
        with hold_signals():
            job.start(self.command)
            trial.jobs[run_index] = job

    def collect(self, trial: OpenTrial, run_index: int) -> Job:
        """Take a run that has ended from its trial, and free its worker."""
        job = trial.jobs.pop(run_index)
        self.free.append(job.slot)
        self.seconds.append(time.monotonic() - job.begun)
        trial.duration += self.seconds[-1]
        return job

    def _command_line(self, trial: OpenTrial, run_index: int) -> list[str]:
        """Return the command line of a trial's run."""
        return [
            "fit",
            *self._experiment,
            *options(trial.point),
            *options(self._config.runs[run_index]),
            f"--folder={self.run_folder(trial, run_index).path}",
            f"--test={str(self._config.compares).lower()}",
        ]
