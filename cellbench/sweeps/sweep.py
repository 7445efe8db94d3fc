"""Runs a sweep: asks for trials, gives their runs to workers, and notes what becomes of them."""

import json
import math
import os
import shutil
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

from optuna.trial import FrozenTrial, Trial, TrialState

from cellbench.errors import UserError
from cellbench.runs.finished import read_metrics
from cellbench.runs.folder import RunFolder, write_text
from cellbench.runs.progress import SIGNALS
from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.folder import SweepFolder, epochs, final_values, values_at
from cellbench.sweeps.results import stamp
from cellbench.sweeps.space import Point, options
from cellbench.sweeps.study import Study
from cellbench.sweeps.workers import Command, Job, Slot, wait_for

UNWRITABLE, OTHER_RUN = 74, 75
"""A run's exit codes where a file cannot be written, so that no other run could go on either, and
where its folder holds an unfinished run of another configuration."""

IN_A_ROW = 5
"""Failed trials, one after the other, that stop a sweep."""

TRIES = 3
"""How often a run is begun that something else has killed, as the system does without memory."""

PATIENCE = 2.0
"""Seconds between two questions for a trial where there was none."""

POLL = 0.1
"""Seconds between two looks at what the runs have written."""


Show = Callable[["Sweep", "OpenTrial | None"], None]
"""Shows how a sweep does; called often, and with each trial that ends."""


@dataclass
class OpenTrial:
    """A trial that this process runs.

    Attributes:
        trial: Optuna's.
        point: Its parameters.
        waiting: The numbers of its runs that have not begun.
        jobs: Those that go on.
        values: What the finished ones are worth.
        killed: How often each was killed by something else.
        seen: Epochs of the only run that the pruner has judged.
        pruned: Whether the pruner has ended it.
        lost: Whether another machine has it.
        failed: Why it has failed; None where it has not.
        duration: Seconds of its runs that have ended.
    """

    trial: Trial
    point: Point
    waiting: deque[int]
    jobs: dict[int, Job] = field(default_factory=dict)
    values: dict[int, list[float]] = field(default_factory=dict)
    killed: Counter[int] = field(default_factory=Counter)
    seen: int = 0
    pruned: bool = False
    lost: bool = False
    failed: str | None = None
    duration: float = 0.0

    def stop(self) -> None:
        """Ends what goes on of it."""
        self.waiting.clear()
        for job in self.jobs.values():
            job.end()


class Sweep:
    """A sweep that runs.

    Args:
        config: What is swept.
        name: Its name.
        study: Its trials.
        folder: Where everything is written.
        command: What a worker calls with a command line.
        experiment: The command line's options that all runs share.
        slots: What each worker may use.
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
        self.seconds: list[float] = []
        self.begun = time.monotonic()
        self._command = command
        self._experiment = list(experiment)
        self._free = list(slots)
        self._runs = config.runs
        self._streak: list[OpenTrial] = []
        self._asked_in_vain = -PATIENCE

    def run(self, show: Show) -> None:
        """Runs until there is nothing left to do.

        Args:
            show: Shows how it does.

        Raises:
            UserError: No run could go on, or too many trials in a row have failed.
        """
        with self._ending():
            while True:
                self._begin()
                show(self, None)
                if not self.open:
                    self._tell_failed()  # nothing comes after them that could be told first
                    if self._time_is_up or not self.study.unfinished():
                        break
                wait_for(self._jobs, POLL if self.open else PATIENCE)
                self._look(show)
                self._beat()

    def _beat(self) -> None:
        """Leaves alone what another machine has taken over."""
        for number in self.study.beat():
            for one in [one for one in self.open if one.trial.number == number]:
                one.lost = True
                one.stop()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Ends what goes on, whatever happens, and leaves it to the next command."""
        try:
            yield
        except UserError:
            self.study.hurry()
            raise
        finally:
            for one in self.open:
                one.stop()
            while self._jobs:
                wait_for(self._jobs, POLL)
                for one in self.open:
                    for number, job in list(one.jobs.items()):
                        job.watch()
                        if job.exit_code is not None:
                            del one.jobs[number]
            for one in [*self.open, *self._streak]:
                self.study.give_back(one.trial)

    @property
    def _jobs(self) -> list[Job]:
        return [job for one in self.open for job in one.jobs.values()]

    @property
    def _time_is_up(self) -> bool:
        limit = self.config.time
        return limit is not None and time.monotonic() - self.begun > limit

    def _begin(self) -> None:
        """Gives every free worker a run; what has finished before needs none."""
        while self._free:
            one = next((one for one in self.open if one.waiting), None)
            if one is None and any(not other.jobs for other in self.open):
                return  # which are to be told before another one is asked for
            one = one or self._next_trial()
            if one is None:
                return
            number = one.waiting.popleft()
            run = self._run_folder(one, number)
            if run.metrics.is_file():
                self._note_value(one, number)
                continue
            job = Job(
                self._command_line(one, number),
                self.folder.log(run),
                self._free.pop(0),
                dict(os.environ),
                self.config.timeout,
            )
            run.path.parent.mkdir(parents=True, exist_ok=True)
            with _unsignalled():  # a process that nobody knows of would never be ended
                job.start(self._command)
                one.jobs[number] = job

    def _next_trial(self) -> OpenTrial | None:
        if self._time_is_up or time.monotonic() - self._asked_in_vain < PATIENCE:
            return None
        asked = self.study.ask()
        if asked is None:
            self._asked_in_vain = time.monotonic()
            return None
        one = OpenTrial(*asked, deque(range(len(self._runs))))
        self.open.append(one)
        return one

    def _run_folder(self, one: OpenTrial, number: int) -> RunFolder:
        return self.folder.run(one.trial.number, self._runs[number])

    def _command_line(self, one: OpenTrial, number: int) -> list[str]:
        return [
            "fit",
            *self._experiment,
            *options(one.point),
            *options(self._runs[number]),
            f"--folder={self._run_folder(one, number).path}",
            f"--test={str(self.config.compares).lower()}",
        ]

    def _look(self, show: Show) -> None:
        """Notes what has become of the runs."""
        for one in list(self.open):
            for number, job in list(one.jobs.items()):
                job.watch()
                ended = job.exit_code is not None  # asked first: what it wrote last is read then
                self._judge_epochs(one, number)
                if ended:
                    self._free.append(job.slot)
                    self.seconds.append(time.monotonic() - job.begun)
                    one.duration += self.seconds[-1]
                    del one.jobs[number]
                    self._take(one, number, job)
            if not one.jobs and not one.waiting:
                self._conclude(one, show)

    def _take(self, one: OpenTrial, number: int, job: Job) -> None:
        """Takes what a run that has ended is worth, or why it is worth nothing."""
        run = self._run_folder(one, number)
        if one.pruned or one.lost or one.failed is not None:
            return
        if job.exit_code == OTHER_RUN:  # begun on another kind of machine, or by another version
            shutil.rmtree(run.path)
            one.waiting.appendleft(number)
            return
        if job.exit_code == 0 and run.metrics.is_file():
            self._note_value(one, number)
            return
        if job.killed and one.killed[number] + 1 < TRIES:
            one.killed[number] += 1
            one.waiting.appendleft(number)
            return
        one.failed = f"{run.path.name}: {job.why()}"
        one.stop()
        if job.exit_code == UNWRITABLE or shutil.disk_usage(self.folder.path).free < 1 << 20:
            raise UserError(
                f"{job.why()}; no run could go on; nothing is lost: make room, and give the same "
                "command again"
            )

    def _judge_epochs(self, one: OpenTrial, number: int) -> None:
        """Lets the pruner judge a trial of one run by its epochs."""
        if len(self._runs) > 1 or self.config.pruner == "none":
            return
        run = self._run_folder(one, number)
        rows = epochs(run)
        while one.seen < len(rows) and not one.pruned:
            one.seen += 1
            (value,) = values_at(run, rows[: one.seen], self.config.metrics)
            one.pruned = self.study.report(one.trial, one.seen, value)
        if one.pruned:
            one.stop()

    def _note_value(self, one: OpenTrial, number: int) -> None:
        """Notes what a finished run is worth, and lets the pruner judge by it."""
        run = self._run_folder(one, number)
        self._judge_epochs(one, number)
        values = final_values(run, self.config.metrics)
        for name, value in zip(self.config.metrics, values, strict=True):
            if not math.isfinite(value):
                one.failed = f"{run.path.name}: {name} is {value}"
                one.stop()
                return
        run.last.unlink(missing_ok=True)  # the run is over; a hundred of them would fill a disk
        one.values[number] = values
        if len(self._runs) == 1 or self.config.pruner == "none" or one.pruned:
            return
        first = [values[0] for values in one.values.values()]
        if self.config.pruner == "wilcoxon":
            step, value = number, first[-1]
        else:
            step, value = len(first), fmean(first)
        if self.study.report(one.trial, step, value) and len(first) < len(self._runs):
            one.pruned = True
            one.stop()

    def _conclude(self, one: OpenTrial, show: Show) -> None:
        """Ends a trial."""
        self.open.remove(one)
        if one.lost:
            return
        if one.failed is not None:
            self._streak.append(one)
            show(self, one)
            if len(self._streak) >= IN_A_ROW:
                raise UserError(
                    f"{IN_A_ROW} trials in a row have failed, the last for: {one.failed}; their "
                    f"logs are in {self.folder.path / 'trials'}; give the same command again to "
                    "run them again"
                )
            return
        self._tell_failed()
        self.study.note(one.trial, "duration", round(one.duration, 1))
        if one.pruned:
            self.study.tell(one.trial, TrialState.PRUNED)
        else:
            by_metric = zip(*one.values.values(), strict=True)
            self.study.note(one.trial, "values", [one.values[k] for k in sorted(one.values)])
            means = [fmean(values) for values in by_metric]
            self.study.tell(one.trial, TrialState.COMPLETE, means)
        if not self.config.compares:
            self._keep_the_best()
        show(self, one)

    def _tell_failed(self) -> None:
        """Fails what is not the beginning of an end: a trial that succeeded came after it."""
        for one in self._streak:
            self.study.note(one.trial, "reason", one.failed)
            self.study.note(one.trial, "duration", round(one.duration, 1))
            self.study.tell(one.trial, TrialState.FAIL)
        self._streak.clear()

    def _keep_the_best(self) -> None:
        """Deletes the checkpoints of the others: a hundred networks would fill a disk."""
        kept = {trial.number for trial in self.best_trials()}
        for trial in self.study.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
            for repeat in [] if trial.number in kept else self._runs:
                run = self.folder.run(trial.number, repeat)
                shutil.rmtree(run.best.parent, ignore_errors=True)

    def best_trials(self) -> list[FrozenTrial]:
        """The best trial, or those of the Pareto front."""
        best = self.study.best()
        return self.study.front() if len(self.config.metrics) > 1 else [best] if best else []

    @property
    def is_over(self) -> bool:
        """Whether a search has run all of its trials; one without a number of them, its time."""
        total = self.config.total
        return not self.study.unfinished() and (total is None or len(self.study.trials()) >= total)

    def test_best(self) -> list[RunFolder]:
        """Scores the test split with the configuration that a search has chosen, once.

        Returns:
            Where the scores are; empty where the chosen runs are on another machine.

        Raises:
            UserError: A test has failed.
        """
        best = self.study.best()
        assert best is not None
        runs = [self.folder.run(best.number, repeat) for repeat in self._runs]
        if not all(run.best.is_file() for run in runs):
            return []
        return [self._tested(run) for run in runs]

    def _tested(self, run: RunFolder) -> RunFolder:
        """A run's test, which an interrupted command may have done."""
        tries = 0
        while not (done := run.tests):
            job = Job(
                ["test", f"--run={run.path}", "--trainer.enable_progress_bar=false"],
                self.folder.log(run),
                self._free[0],
                dict(os.environ),
            )
            with _unsignalled():
                job.start(self._command)
            try:
                while job.exit_code is None:
                    wait_for([job], 1.0)
            finally:
                job.end()
            tries += 1
            if job.exit_code and (tries == TRIES or not job.killed):
                raise UserError(f"the best trial could not be tested: {job.why()}")
        tested = self.folder.path.glob("trials/*/test/*/metrics.json")
        choices = sorted({path.parents[2].name.partition("-")[0] for path in tested})
        again = f"this search's test split was scored for its choices {', '.join(choices)}"
        for reason in (stamp(self.config), again if len(choices) > 1 else None):
            _note(RunFolder(done[0].parent), reason)
        return RunFolder(done[0].parent)


def _note(tested: RunFolder, stamp: str | None) -> None:
    """Adds to a test's stamps what its own command could not know."""
    found = read_metrics(tested)
    if stamp is not None and stamp not in found["stamps"]:
        found["stamps"].append(stamp)
        write_text(tested.metrics, json.dumps(found, indent=2) + "\n")


@contextmanager
def _unsignalled() -> Iterator[None]:
    """Keeps signals back as long as it lasts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
