"""Ownership of trials among processes and machines that share a study."""

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from cellbench.artifacts.folder import write_text
from cellbench.sweeps.trial_store import TrialStore
from cellbench.utils.untrusted import inside

BEAT_S = 15.0
"""Seconds between two heartbeats."""

SILENT_S = 90.0
"""Seconds without a heartbeat after which other machines take over a machine's trials."""


class Ownership:
    """Trials that this process owns, and the takeover of those whose owner is dead.

    Each running trial has its owner's name, and each owner counts up a heartbeat in the study. A
    process that sees an owner's heartbeat stand still requeues that owner's trials. Clocks of
    different machines are never compared.

    Args:
        store: The study's trials.
        folder: The sweep's folder, which only this process uses on this machine.
        local: True if the storage is in that folder as well, so that no other process uses it.
    """

    def __init__(self, store: TrialStore, folder: Path, *, local: bool) -> None:
        self._store = store
        self._local = local
        self._place = _place(folder)
        self._name = f"{self._place}:{uuid.uuid4().hex[:8]}"
        self._own: dict[int, Trial] = {}
        self._seen: dict[str, tuple[Any, float]] = {}  # others' last heartbeats, and since when
        self._count, self._last = 0, 0.0  # this process's heartbeats, and the time of the last one

    @property
    def name(self) -> str:
        """Name of this process, unique among all that ever share the study."""
        return self._name

    def add(self, trial: Trial) -> None:
        """Note that this process owns a trial; its `owner` is set by whoever asked for it."""
        self._own[trial.number] = trial

    def remove(self, trial: Trial) -> None:
        """Note that this process no longer owns a trial."""
        self._own.pop(trial.number, None)

    def has(self, trial: Trial) -> bool:
        """Return True if this process still owns a trial.

        A machine that was silent for too long may find that another one has taken its trials over.
        """
        frozen = self._store.get(trial.number)
        return frozen.state == TrialState.RUNNING and frozen.user_attrs.get("owner") == self._name

    def beat(self) -> list[int]:
        """Send a heartbeat if it is due, and requeue the trials of dead owners.

        Returns:
            Numbers of the trials that others have taken over from this process.
        """
        now = time.monotonic()
        if self._last and now - self._last < BEAT_S:
            return []
        if now - self._last > 3 * BEAT_S:  # this process did not look: nobody was silent
            self._seen.clear()
        self._count += 1
        self._store.set_attribute(f"alive {self._name}", self._count)
        self._last = time.monotonic()
        attributes = self._store.attributes()
        for trial in self._store.trials(TrialState.RUNNING):
            owner = trial.user_attrs.get("owner")
            if trial.number not in self._own and self._is_dead(trial, owner, attributes):
                again = self._store.get(trial.number)
                if again.state == TrialState.RUNNING and again.user_attrs.get("owner") == owner:
                    self._store.requeue(trial.number)
        return [number for number, trial in self._own.items() if not self.has(trial)]

    def _is_dead(
        self, trial: FrozenTrial, owner: str | None, attributes: Mapping[str, Any]
    ) -> bool:
        """Return True if a trial's owner has ended, or has been silent for too long.

        Args:
            trial: A running trial of another owner.
            owner: The owner's name; None if it died before it set one.
            attributes: The study's attributes.
        """
        # Only one process at a time uses a folder and the storage in it.
        if self._local or (owner is not None and owner.startswith(f"{self._place}:")):
            return True
        key = owner or f"trial {trial.number}"
        last = attributes.get(f"alive {owner}")
        seen, since = self._seen.get(key, (None, 0.0))
        if key not in self._seen or last != seen:
            self._seen[key] = (last, time.monotonic())
            return False
        return time.monotonic() - since > SILENT_S


def _place(folder: Path) -> str:
    """Return a unique name of a sweep's folder, which stays if the folder is moved."""
    path = inside(folder, ".place")
    if not path.is_file():
        write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8", errors="replace")
