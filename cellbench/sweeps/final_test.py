"""Test of the configuration that a search has chosen, once, on the test split."""

import json
import os

from cellbench.artifacts.finished import read_metrics
from cellbench.artifacts.folder import RunFolder, write_text
from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.folder import SweepFolder
from cellbench.sweeps.results import warning_flag
from cellbench.sweeps.signals import hold_signals
from cellbench.sweeps.study import Study
from cellbench.sweeps.workers import TRIES, Command, Job, Slot, wait_for
from cellbench.utils.errors import UserError


class FinalTest:
    """Scores the best trial's runs on the test split, each in a process of its own.

    Args:
        config: The sweep.
        study: Its trials.
        folder: The sweep's folder.
        command: The function that a worker calls with a command line.
        slot: Resources of the process.
    """

    def __init__(
        self,
        config: SweepConfig,
        study: Study,
        folder: SweepFolder,
        command: Command,
        slot: Slot,
    ) -> None:
        self._config = config
        self._study = study
        self._folder = folder
        self._command = command
        self._slot = slot

    def run(self) -> list[RunFolder]:
        """Test each run of the best trial, unless an earlier command has done so.

        Returns:
            Folders of the tests; empty if the checkpoints are on another machine.

        Raises:
            UserError: A test has failed.
        """
        best = self._study.best()
        assert best is not None
        runs = [self._folder.run(best.number, repeat) for repeat in self._config.runs]
        if not all(run.best.is_file() for run in runs):
            return []
        return [self._tested(run) for run in runs]

    def _tested(self, run: RunFolder) -> RunFolder:
        """Return the test of a run, after running it if there is none."""
        killed = 0
        while not run.tests:
            job = self._test(run)
            if not job.exit_code:
                continue
            killed += job.killed
            if not job.killed or killed == TRIES:
                raise UserError(f"the best trial could not be tested: {job.why()}")
        tested = RunFolder(run.tests[0].parent)
        for flag in (warning_flag(self._config), self._chosen_again()):
            if flag is not None:
                _add_warning_flag(tested, flag)
        return tested

    def _test(self, run: RunFolder) -> Job:
        """Run the command that tests a run, to its end."""
        job = Job(
            ["test", f"--run={run.path}", "--trainer.enable_progress_bar=false"],
            self._folder.log(run),
            self._slot,
            dict(os.environ),
        )
        try:
            with hold_signals():
                job.start(self._command)
            while job.exit_code is None:
                wait_for([job], 1.0)
        finally:
            job.end()
        return job

    def _chosen_again(self) -> str | None:
        """Return a warning flag if the test split was scored for several choices."""
        tested = self._folder.path.glob("trials/*/test/*/metrics.json")
        choices = sorted({path.parents[2].name.partition("-")[0] for path in tested})
        if len(choices) < 2:
            return None
        return f"this search's test split was scored for its choices {', '.join(choices)}"


def _add_warning_flag(tested: RunFolder, flag: str) -> None:
    """Add a warning flag to a test's metrics.json, which its own command could not know."""
    found = read_metrics(tested)
    if flag not in found["stamps"]:
        found["stamps"].append(flag)
        write_text(tested.metrics, json.dumps(found, indent=2) + "\n")
