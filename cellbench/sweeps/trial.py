"""A trial that this process runs."""

from collections import Counter, deque
from dataclasses import dataclass, field

from optuna.trial import Trial

from cellbench.artifacts.checkpoint import CheckpointConfig
from cellbench.sweeps.space import Point
from cellbench.sweeps.workers import Job


@dataclass
class OpenTrial:
    """State of a trial that this process runs.

    A trial has one run, or one for each combination of folds and seeds. Runs go by their position
    in `SweepConfig.runs`.
    """

    optuna: Trial
    """Optuna's trial."""
    point: Point
    """Its parameters."""
    waiting: deque[int]
    """Runs that have not started."""
    jobs: dict[int, Job] = field(default_factory=dict)
    """Runs in progress."""
    values: dict[int, list[float]] = field(default_factory=dict)
    """Value of each metric for each finished run."""
    killed: Counter[int] = field(default_factory=Counter)
    """Number of times that each run was killed from outside the sweep."""
    checkpoint: CheckpointConfig | None = None
    """Choice of the best epoch, as the config.yaml of the only run has it; None if not yet read."""
    seen: int = 0
    """Number of epochs of the only run that the pruner has judged."""
    pruned: bool = False
    """True once the pruner has ended the trial."""
    lost: bool = False
    """True once another machine has taken the trial over."""
    failed: str | None = None
    """Reason of the failure; None if the trial has not failed."""
    duration: float = 0.0
    """Seconds that its finished runs took."""

    def stop(self) -> None:
        """End the runs in progress, and start no more."""
        self.waiting.clear()
        for job in self.jobs.values():
            job.end()
