"""Atomic writing: a file appears complete or not at all."""

import errno
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

_HOST = hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
_PART = re.compile(r"\..+?(?:\.(?P<host>[0-9a-f]{8}))?\.(?P<process>\d+)\.part")
_cleaned: set[Path] = set()


def remove_left(folder: Path, *, everywhere: bool = False) -> None:
    """Remove the unfinished files of killed processes from a folder.

    Args:
        folder: The folder; its subfolders are left alone.
        everywhere: True to remove those of other machines as well, whose processes may still be
            running. Only for a caller that has locked the folder.
    """
    try:
        names = os.listdir(folder)
    except OSError:  # the folder does not exist yet
        return
    for name in names:
        found = _PART.fullmatch(name)
        if found is None or (found["host"] != _HOST and not everywhere):
            continue
        if found["host"] not in (None, _HOST) or not _is_running(int(found["process"])):
            (folder / name).unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process, or a number out of range
        return True
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` once it is on the disk.

    The first call for a folder also removes the unfinished files of killed processes there.

    Raises:
        OSError: The file cannot be written; an older file at `path` is unchanged.
    """
    beside = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _cleaned:
            _cleaned.add(path.parent)
            remove_left(path.parent)
        beside.unlink(missing_ok=True)  # else a symbolic link there would be followed
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def shared_file(path: Path, size: int, fill: Callable[[int], None]) -> np.ndarray:
    """Open a file that several processes read, and that the first of them writes.

    Args:
        path: The file. Its name must change with everything that its content depends on.
        size: Size in bytes; a file of another size is incomplete, and is written again.
        fill: Writes the content to a file descriptor, for example by `write_at`.

    Returns:
        The file, mapped into memory, uint8, (size,).

    Raises:
        OSError: The file cannot be written.
    """

    def whole() -> bool:
        return path.is_file() and path.stat().st_size == size

    if not whole():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # the second process waits, and finds the file
            if not whole():
                for left in path.parent.glob(f".{path.name}.*.part"):  # of a killed process
                    left.unlink()
                if shutil.disk_usage(path.parent).free < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                with replacing(path) as beside, beside.open("wb") as file:
                    fill(file.fileno())
    return np.memmap(path, np.uint8, mode="r")


def write_at(file: int, array: np.ndarray, offset: int) -> None:
    """Write an array's bytes at an offset of a file; safe from any thread.

    Raises:
        OSError: The disk is full.
    """
    written = os.pwrite(file, array.tobytes(), offset)
    if written < array.nbytes:  # pwrite reports a full disk only at the next byte
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
