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

    def add(self, trial: OpenTrial) -> None:
        """Add a trial that has failed."""
        self.trials.append(trial)

    def store(self) -> None:
        """Mark all pending trials as failed in the study."""
        for trial in self.trials:
            self._study.note(trial.optuna, "reason", trial.failed)
            self._study.note(trial.optuna, "duration", round(trial.duration, 1))
            self._study.tell(trial.optuna, TrialState.FAIL)
        self.trials.clear()
