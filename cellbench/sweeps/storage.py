"""Storages of a study: a journal or an SQLite file in the sweep's folder, or PostgreSQL."""

import contextlib
import importlib.util
from pathlib import Path

from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from cellbench.utils.errors import UserError
from cellbench.utils.untrusted import inside

LOCAL = ("journal", "sqlite")
"""Storages that are a file in the sweep's folder."""


def check_storage(storage: str) -> None:
    """Check the storage's name before anything is written.

    Args:
        storage: The storage, as --storage has it.

    Raises:
        UserError: There is no such storage, or its address has a password, which would be written
            to files.
    """
    if storage in LOCAL:
        return
    scheme, separator, _ = storage.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise UserError("--storage: expected journal, sqlite or postgresql://USER@HOST/DATABASE")
    try:
        address = make_url(storage)
    except (ArgumentError, ValueError) as error:
        raise UserError(
            "--storage: it is not an address like postgresql://USER@HOST/DATABASE"
        ) from error
    if address.password is not None or "password" in address.query:
        raise UserError(
            "--storage: a password in it would be written down; set PGPASSWORD, or use ~/.pgpass"
        )
    if importlib.util.find_spec("psycopg") is None:
        raise UserError(
            "--storage: PostgreSQL's driver is not installed; pip install 'cellbench[postgresql]'"
        )


def open_storage(storage: str, folder: Path) -> BaseStorage:
    """Open a storage, after creating it if necessary.

    Args:
        storage: The storage, as --storage has it.
        folder: The sweep's folder.
    """
    if storage == "journal":
        path = inside(folder, "study.journal")
        _remove_partial_line(path)
        lock = _SystemLock(inside(folder, "study.lock"))
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    if storage == "sqlite":
        return RDBStorage(f"sqlite:///{inside(folder, 'study.db')}")
    return RDBStorage(
        f"postgresql+psycopg://{storage.partition('://')[2]}",
        engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": 5}},
    )


class _SystemLock(JournalFileOpenLock):
    """Lock that the system releases when its process is killed; Optuna's own would stay.

    Optuna publishes no base class of its locks, hence this parent, of which nothing is used: both
    of the methods that a journal calls are replaced.

    Args:
        path: The lock's file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()


def _remove_partial_line(path: Path) -> None:
    """Cut off a last line that a full disk or a crash has left incomplete."""
    if not path.is_file():
        return
    with contextlib.suppress(OSError), path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
