"""A run's folder: which one a command gets, and how other processes are kept off it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import BaseFileLock, FileLock, Timeout

from cellbench.artifacts.folder import RunFolder
from cellbench.utils.errors import OtherRun, UserError
from cellbench.utils.terminal import say

_ENDING_S = 60.0
"""Seconds to wait for a process that was just told to end, and saves its state."""


@dataclass(frozen=True)
class Destination:
    """Where a command's run is to be written; by default to a new folder in RUNS/NAME."""

    parent: Path | None = None
    """Folder to make the run's folder in, instead of RUNS/NAME."""
    resume: RunFolder | Literal["auto"] | None = None
    """Run to go on with; "auto" for the newest unfinished one of the same configuration, or else a
    new one."""
    folder: RunFolder | None = None
    """The run's own folder; an unfinished run in it goes on."""


class Claim:
    """A run's folder, locked by this process until `release`.

    Args:
        folder: The folder.
        lock: Its lock, held.
        fresh: True if the folder was made for this run, or had nothing in it.
    """

    def __init__(self, folder: RunFolder, lock: BaseFileLock, *, fresh: bool) -> None:
        self.folder = folder
        self.fresh = fresh
        self._lock = lock

    @classmethod
    def acquire(cls, to: Destination, parent: Path, config: Mapping[str, Any]) -> "Claim":
        """Find or make a run's folder, and lock it.

        Args:
            to: What the command asks for.
            parent: RUNS/NAME.
            config: The run's configuration, as its config.yaml has it or will have it.

        Raises:
            UserError: The folder cannot be made, holds something else, or is in use.
        """
        parent = to.parent or parent
        if isinstance(to.resume, RunFolder):
            return cls._lock_or_refuse(to.resume, "--resume")
        if to.folder is not None:
            return cls._at(to.folder, config)
        if to.resume == "auto":
            if found := cls._newest_unfinished(parent, config):
                return found
            say("--resume auto: no unfinished run of this configuration; a new one begins")
        return cls._lock_or_refuse(RunFolder.create(parent), "--runs", fresh=True)

    def release(self) -> None:
        """Let other processes have the run."""
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def abandon(self) -> None:
        """Release a run that could not begin; its folder is removed if it is new."""
        self.release()
        if self.fresh:
            self.folder.discard()

    @classmethod
    def _at(cls, folder: RunFolder, config: Mapping[str, Any]) -> "Claim":
        """Claim a given folder, for a new run or for the unfinished one that it holds."""
        folder.make()
        claim = cls._lock_or_refuse(folder, "--folder", patience=_ENDING_S)
        try:
            claim.fresh = not folder.config.is_file()
            _check_content(folder, config)
        except UserError:
            claim.release()
            raise
        return claim

    @classmethod
    def _newest_unfinished(cls, parent: Path, config: Mapping[str, Any]) -> "Claim | None":
        """Claim the newest unfinished run of a configuration that no other process has."""
        if not parent.is_dir():
            return None
        for folder in map(RunFolder, sorted(parent.iterdir(), reverse=True)):
            if folder.unfinished and folder.has_config(config) and (claim := cls._try(folder)):
                if folder.unfinished:  # still, now that nobody else has it
                    return claim
                claim.release()
        return None

    @classmethod
    def _lock_or_refuse(
        cls, folder: RunFolder, option: str, patience: float = 0.0, *, fresh: bool = False
    ) -> "Claim":
        """Lock a run's folder, or say that another process has it.

        Args:
            folder: The folder.
            option: The option that named it, for errors.
            patience: Seconds to wait for another process.
            fresh: As in `Claim`.
        """
        claim = cls._try(folder, patience, fresh=fresh)
        if claim is None:
            raise UserError(f"{option}: another process has the run {folder.path} open")
        return claim

    @classmethod
    def _try(
        cls, folder: RunFolder, patience: float = 0.0, *, fresh: bool = False
    ) -> "Claim | None":
        """Lock a run's folder, if no other process has it."""
        lock = FileLock(folder.lock)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            return None
        return cls(folder, lock, fresh=fresh)


def _check_content(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Check that a given folder is empty, or holds an unfinished run of a configuration.

    Raises:
        UserError: It does not; OtherRun where it holds the run of another configuration.
    """
    if not folder.config.is_file():
        others = [path.name for path in folder.path.iterdir() if path != folder.lock]
        if others:  # where nothing comes of the run, its folder is deleted
            raise UserError(
                f"--folder: {folder.path} holds no run, but {others[0]}; give an empty folder, or "
                "none yet"
            )
    elif not folder.unfinished:
        raise UserError(f"--folder: the run {folder.path} is finished; give another folder")
    elif not folder.has_config(config):
        raise OtherRun(
            f"--folder: the run in {folder.path} has another configuration, as its config.yaml "
            "tells; give another folder"
        )
