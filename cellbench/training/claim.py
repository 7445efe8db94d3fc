"""Claim of a run's folder: its choice, and a lock against other processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import BaseFileLock, FileLock, Timeout

from cellbench.artifacts.folder import RunFolder
from cellbench.utils.errors import CannotWrite, OtherRun, UserError
from cellbench.utils.terminal import say

_ENDING_S = 60.0
"""Seconds to wait for a process that is saving its state in order to end."""


@dataclass(frozen=True)
class Destination:
    """Destination of a command's run; by default a new folder in RUNS/NAME."""

    parent: Path | None = None
    """Folder to make the run's folder in, instead of RUNS/NAME."""
    resume: RunFolder | Literal["auto"] | None = None
    """Run to resume; "auto" for the newest unfinished one of the same configuration, or else a new
    one."""
    folder: RunFolder | None = None
    """Folder of the run itself; an unfinished run in it is resumed."""


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
            to: Destination that the command asks for.
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
        """Unlock the run for other processes."""
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def abandon(self) -> None:
        """Release a run that could not begin, and remove its folder if it is new."""
        self.release()
        if self.fresh:
            self.folder.discard()

    @classmethod
    def _at(cls, folder: RunFolder, config: Mapping[str, Any]) -> "Claim":
        """Claim a given folder, for a new run or for the unfinished one in it."""
        folder.make()
        if not folder.lock.exists():  # put none into a folder of other things
            _check_content(folder, config)
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
                if folder.unfinished:  # check again, now that it is locked
                    return claim
                claim.release()
        return None

    @classmethod
    def _lock_or_refuse(
        cls, folder: RunFolder, option: str, patience: float = 0.0, *, fresh: bool = False
    ) -> "Claim":
        """Lock a run's folder, or raise a UserError if another process has it.

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
        """Lock a run's folder, if no other process has it.

        Raises:
            CannotWrite: The lock cannot be written.
        """
        lock = FileLock(folder.lock)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            return None
        except OSError as error:
            raise CannotWrite(f"cannot write {folder.lock}: {error.strerror}") from error
        return cls(folder, lock, fresh=fresh)


def _check_content(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Check that a given folder is empty, or holds an unfinished run of a configuration.

    Raises:
        UserError: It does not; OtherRun if it holds a run of another configuration.
    """
    if not folder.config.is_file():
        others = [path.name for path in folder.path.iterdir() if path != folder.lock]
        if others:  # the folder is deleted if the run cannot begin
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
