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
    """Starts the runs of trials, as many at a time as there are workers.

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

    def run_folder(self, one: OpenTrial, number: int) -> RunFolder:
        """Return the folder of a trial's run."""
        return self._folder.run(one.trial.number, self._config.runs[number])

    def start(self, one: OpenTrial, number: int) -> None:
        """Start a trial's run in a free worker."""
        run = self.run_folder(one, number)
        job = Job(
            self._command_line(one, number),
            self._folder.log(run),
            self.free.pop(0),
            dict(os.environ),
            self._config.timeout,
        )
        run.path.parent.mkdir(parents=True, exist_ok=True)
        with hold_signals():
            job.start(self.command)
            one.jobs[number] = job

    def collect(self, one: OpenTrial, number: int) -> Job:
        """Take a run that has ended from its trial, and free its worker."""
        job = one.jobs.pop(number)
        self.free.append(job.slot)
        self.seconds.append(time.monotonic() - job.begun)
        one.duration += self.seconds[-1]
        return job

    def _command_line(self, one: OpenTrial, number: int) -> list[str]:
        """Return the command line of a trial's run."""
        return [
            "fit",
            *self._experiment,
            *options(one.point),
            *options(self._config.runs[number]),
            f"--folder={self.run_folder(one, number).path}",
            f"--test={str(self._config.compares).lower()}",
        ]
