"""A study's trials in its storage."""

import contextlib
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from cellbench.sweeps.waiting import Waiting


class TrialStore:
    """Trials and attributes of a study, read from its storage; every call waits for an answer.

    Args:
        study: Optuna's study.
        storage: Its storage.
        waiting: Waits for the storage.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, waiting: Waiting) -> None:
        self.study = study
        self._storage = storage
        self._waiting = waiting
        self._id = waiting.call(lambda: storage.get_study_id_from_name(study.study_name))

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in some states, or in any state, by number."""
        found = self._waiting.call(
            lambda: self.study.get_trials(deepcopy=False, states=states or None)
        )
        return [trial for trial in found if "surplus" not in trial.user_attrs]

    def get(self, number: int) -> FrozenTrial:
        """Return a trial as the storage has it now."""
        return self._waiting.call(lambda: self._storage.get_trial(self._trial_id(number)))

    def requeue(self, number: int) -> None:
        """Make a trial one that waits to be asked for, unless it has ended."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self._waiting.call(
                lambda: self._storage.set_trial_state_values(
                    self._trial_id(number), state=TrialState.WAITING
                )
            )

    def attributes(self) -> dict[str, Any]:
        """Return the study's attributes."""
        return self._waiting.call(lambda: self.study.user_attrs)

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute of the study."""
        self._waiting.call(lambda: self.study.set_user_attr(key, value))

    def _trial_id(self, number: int) -> int:
        """Return the storage's own number of a trial."""
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
