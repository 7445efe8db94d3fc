"""Main loop of a sweep: ask for trials, give their runs to workers, store the outcomes."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

from optuna.trial import TrialState

from cellbench.artifacts.folder import RunFolder
from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.failures import PendingFailures
from cellbench.sweeps.final_test import FinalTest
from cellbench.sweeps.folder import SweepFolder
from cellbench.sweeps.judge import Judge
from cellbench.sweeps.launcher import Launcher
from cellbench.sweeps.study import Study
from cellbench.sweeps.trial import OpenTrial
from cellbench.sweeps.workers import TRIES, Command, Job, Slot, wait_for
from cellbench.utils.errors import UserError

UNWRITABLE, OTHER_RUN = 74, 75
"""Exit codes of a run: a file cannot be written, so that other runs would fail too; and the run's
folder holds an unfinished run of another configuration."""

MAX_FAILURES = 5
"""Number of consecutive failed trials that stops a sweep."""

ASK_AGAIN_S = 2.0
"""Seconds between two requests for a trial while there is none."""

POLL_S = 0.1
"""Seconds between two checks of the runs' files."""

FULL_DISK = 1 << 20
"""Bytes of free space below which a disk counts as full."""

Show = Callable[["Sweep", OpenTrial | None], None]
"""Function that shows the progress of a sweep; called in every round, and for each ended trial."""


class Sweep:
    """A sweep in progress.

    Args:
        config: The sweep.
        name: Its name.
        study: Its trials.
        folder: Its folder.
        command: The function that a worker calls with a command line.
        experiment: Options of the command line that all runs share.
        slots: Resources of each worker.
    """

    def __init__(
        self,
        config: SweepConfig,
        name: str,
        study: Study,
        folder: SweepFolder,
        command: Command,
        experiment: Sequence[str],
        slots: Sequence[Slot],
    ) -> None:
        self.config = config
        self.name = name
        self.study = study
        self.folder = folder
        self.open: list[OpenTrial] = []
        self.workers = len(slots)
        self.launcher = Launcher(config, folder, command, experiment, slots)
        self._begun = time.monotonic()
        self._runs = config.runs
        self._judge = Judge(config, study, folder)
        self._failures = PendingFailures(study)
        self._asked_in_vain = -ASK_AGAIN_S

    def run(self, show: Show) -> None:
        """Run trials until there is nothing left to do.

        Args:
            show: Shows the progress.

        Raises:
            UserError: No run can continue, or too many trials in a row have failed.
        """
        with self._ending():
            while True:
                self._start_runs()
                show(self, None)
                if not self.open:
                    self._failures.store()  # no later trial can succeed
                    if self._time_is_up or not self.study.unfinished():
                        break
                wait_for(self._jobs, POLL_S if self.open else ASK_AGAIN_S)
                self._check_runs(show)
                self._drop_lost_trials()

    def test_best(self) -> list[RunFolder]:
        """Score the best trial of a search on the test split, once; see `FinalTest`."""
        command, slot = self.launcher.command, self.launcher.free[0]
        return FinalTest(self.config, self.study, self.folder, command, slot).run()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """End the runs in progress and give their trials back, whatever happens in the block."""
        try:
            yield
        except UserError:
            self.study.hurry()
            raise
        finally:
            for trial in self.open:
                trial.stop()
            while self._jobs:
                wait_for(self._jobs, POLL_S)
                for trial in self.open:
                    for run_index, job in list(trial.jobs.items()):
                        job.watch()
                        if job.exit_code is not None:
                            del trial.jobs[run_index]
            for trial in [*self.open, *self._failures.trials]:
                self.study.give_back(trial.optuna)

    @property
    def _jobs(self) -> list[Job]:
        """The runs in progress."""
        return [job for trial in self.open for job in trial.jobs.values()]

    @property
    def _time_is_up(self) -> bool:
        """True once the command may start no more trials."""
        limit = self.config.time
        return limit is not None and time.monotonic() - self._begun > limit

    def _drop_lost_trials(self) -> None:
        """Stop the trials that another machine has taken over."""
        lost = self.study.beat()
        for trial in self.open:
            if trial.optuna.number in lost:
                trial.lost = True
                trial.stop()

    def _start_runs(self) -> None:
        """Give every free worker a run; one that an earlier command has finished needs none."""
        while self.launcher.free:
            trial = next((trial for trial in self.open if trial.waiting), None)
            if trial is None and any(not other.jobs for other in self.open):
                return  # the study must know that these trials have ended before it is asked
            trial = trial or self._next_trial()
            if trial is None:
                return
            run_index = trial.waiting.popleft()
            if self.launcher.run_folder(trial, run_index).metrics.is_file():
                self._judge.judge_run(trial, run_index)
            else:
                self.launcher.start(trial, run_index)

    def _next_trial(self) -> OpenTrial | None:
        """Ask the study for a trial; None if there is none now."""
        if self._time_is_up or time.monotonic() - self._asked_in_vain < ASK_AGAIN_S:
            return None
        asked = self.study.ask()
        if asked is None:
            self._asked_in_vain = time.monotonic()
            return None
        trial = OpenTrial(*asked, deque(range(len(self._runs))))
        self.open.append(trial)
        return trial

    def _check_runs(self, show: Show) -> None:
        """Take the results of the runs that have ended, and judge the others by their epochs."""
        for trial in list(self.open):
            for run_index, job in list(trial.jobs.items()):
                job.watch()
                ended = job.exit_code is not None  # asked first, so that its last files are read
                self._judge.judge_epochs(trial, run_index)
                if ended:
                    self._take(trial, run_index, self.launcher.collect(trial, run_index))
            if not trial.jobs and not trial.waiting:
                self._conclude(trial, show)

    def _take(self, trial: OpenTrial, run_index: int, job: Job) -> None:
        """Take the result of a run that has ended: values, a failure, or another try."""
        run = self.launcher.run_folder(trial, run_index)
        if trial.pruned or trial.lost or trial.failed is not None:
            return
        if job.exit_code == OTHER_RUN:  # begun on another kind of machine, or by another version
            shutil.rmtree(run.path)
            trial.checkpoint = None  # of that other run
            trial.waiting.appendleft(run_index)
            return
        if job.exit_code == 0 and run.metrics.is_file():
            self._judge.judge_run(trial, run_index)
            return
        if job.killed and trial.killed[run_index] + 1 < TRIES:
            trial.killed[run_index] += 1
            trial.waiting.appendleft(run_index)
            return
        reason = job.why()
        trial.failed = f"{run.path.name}: {reason}"
        trial.stop()
        if job.exit_code == UNWRITABLE or shutil.disk_usage(self.folder.path).free < FULL_DISK:
            raise UserError(
                f"{reason}; no run could go on; nothing is lost: make room, and give the same "
                "command again"
            )

    def _conclude(self, trial: OpenTrial, show: Show) -> None:
        """Store the outcome of a trial whose runs have all ended."""
        self.open.remove(trial)
        if trial.lost:
            return
        if trial.failed is not None:
            self._failures.add(trial)
            show(self, trial)
            if len(self._failures.trials) >= MAX_FAILURES:
                raise UserError(
                    f"{MAX_FAILURES} trials in a row have failed, the last for: {trial.failed}; "
                    f"their logs are in {self.folder.path / 'trials'}; give the same command "
                    "again to run them again"
                )
            return
        self._failures.store()
        self.study.note(trial.optuna, "duration", round(trial.duration, 1))
        if trial.pruned:
            self.study.tell(trial.optuna, TrialState.PRUNED)
        else:
            self.study.note(trial.optuna, "values", [trial.values[k] for k in sorted(trial.values)])
            means = [fmean(values) for values in zip(*trial.values.values(), strict=True)]
            self.study.tell(trial.optuna, TrialState.COMPLETE, means)
        if not self.config.compares:
            self._delete_checkpoints()
        show(self, trial)

    def _delete_checkpoints(self) -> None:
        """Delete all checkpoints but the best trial's; a hundred networks would fill a disk."""
        kept = {trial.number for trial in self.study.best_trials()}
        for trial in self.study.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
            for repeat in [] if trial.number in kept else self._runs:
                run = self.folder.run(trial.number, repeat)
                shutil.rmtree(run.best.parent, ignore_errors=True)
