"""Failed trials that the study does not know of yet."""

from optuna.trial import TrialState

from cellbench.sweeps.study import Study
from cellbench.sweeps.trial import OpenTrial


class PendingFailures:
    """Trials that have failed since the last one that succeeded.

    If every trial fails, the cause is rarely in the trials: a full disk, a wrong option. Therefore
    a failure is stored only after a later trial has succeeded. A sweep that is stopped before that
    gives its pending trials back, and the next command runs them again.

    Args:
        study: The sweep's trials.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self.trials: list[OpenTrial] = []

    def add(self, one: OpenTrial) -> None:
        """Add a trial that has failed."""
        self.trials.append(one)

    def store(self) -> None:
        """Mark all pending trials as failed in the study."""
        for one in self.trials:
            self._study.note(one.trial, "reason", one.failed)
            self._study.note(one.trial, "duration", round(one.duration, 1))
            self._study.tell(one.trial, TrialState.FAIL)
        self.trials.clear()
