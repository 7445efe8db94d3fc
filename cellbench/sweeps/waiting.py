"""Waiting for a storage that does not answer."""

import time
from collections.abc import Callable
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from cellbench.sweeps.damage import DamagedStorage
from cellbench.utils.errors import UserError
from cellbench.utils.terminal import say

T = TypeVar("T")

AT_START_S, LATER_S, AT_END_S = 60.0, 1800.0, 5.0
"""Seconds that a storage is waited for: when it is opened, during the sweep, and at its end."""

RETRY_S = 0.5
"""Seconds between two attempts."""

_DAMAGED = ("malformed", "not a database", "no such table", "no such column")
"""Words of SQLite's that mean damage, so that waiting does not help."""

_REFUSED = ("disk is full", "readonly")
"""Words that mean a refusal for another reason than damage."""

_STARTING = ("starting up", "shutting", "recovery")
"""Words in a fatal error of PostgreSQL's that soon passes."""


class Waiting:
    """Calls to a storage, repeated until it answers.

    A server may be restarted, or the network be down, while runs of hours are in progress.
    """

    def __init__(self) -> None:
        self._limit = AT_START_S

    def be_patient(self) -> None:
        """Wait for longer from now on: the storage is open, and there are runs to lose."""
        self._limit = LATER_S

    def hurry(self) -> None:
        """Wait for a few seconds at most from now on: the command is about to end."""
        self._limit = AT_END_S

    def call(self, operation: Callable[[], T]) -> T:
        """Return what an operation on the storage returns, as soon as it succeeds.

        Raises:
            UserError: The storage is damaged, refuses the operation, or does not answer in time.
        """
        begun, waiting = time.monotonic(), False
        while True:
            try:
                result = operation()
            except (StorageInternalError, SQLAlchemyError) as error:
                reason = self._reason_to_wait(error, time.monotonic() - begun)
                if not waiting:
                    say(f"the storage does not answer; waiting ({reason[:160]})", flush=True)
                waiting = True
                time.sleep(RETRY_S)
            except OSError as error:
                raise UserError(
                    f"--storage: cannot write {error.filename or 'it'}: {error.strerror}; nothing "
                    "is lost: give the command again when it can be written"
                ) from error
            else:
                if waiting:
                    say("the storage answers again", flush=True)
                return result

    def _reason_to_wait(self, error: Exception, waited: float) -> str:
        """Return an error's text in one line, if waiting may help.

        Args:
            error: The error.
            waited: Seconds that have passed.

        Raises:
            UserError: Waiting does not help, or it has taken too long.
        """
        cause = str(error.__cause__ or error)
        reason = " ".join(cause.splitlines()[0].split())
        if any(words in cause for words in _DAMAGED):
            raise DamagedStorage(reason) from error
        fatal = "FATAL" in cause and not any(words in cause for words in _STARTING)
        refused = fatal or any(words in cause for words in _REFUSED)
        if refused or waited > self._limit:
            self.hurry()  # the cleaning up need not wait as long again
            raise UserError(
                f"--storage: it cannot be used: {reason[:300]}; nothing is lost: give the "
                "command again when it can"
            ) from error
        return reason
