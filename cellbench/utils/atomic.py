"""Files that appear whole or not at all."""

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
_looked_at: set[Path] = set()


def remove_left(folder: Path, *, everywhere: bool = False) -> None:
    """Remove from a folder what killed processes had begun to write there.

    Args:
        folder: The folder; those in it are not looked at.
        everywhere: Whether to remove what other machines have begun as well, which may be running:
            only for whoever has the folder to itself.
    """
    try:
        names = os.listdir(folder)
    except OSError:  # it is not there yet
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
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and moves it there once it is on the disk.

    The first time in a folder, what killed processes have left there is removed.

    Raises:
        OSError: The file cannot be written; what lay at `path` before is untouched.
    """
    beside = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _looked_at:
            _looked_at.add(path.parent)
            remove_left(path.parent)
        beside.unlink(missing_ok=True)  # a link that somebody has put there would be followed
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def shared_file(path: Path, size: int, fill: Callable[[int], None]) -> np.ndarray:
    """A file that several processes read and the first of them writes.

    Args:
        path: The file; its name must say all that its content depends on.
        size: Its size in bytes: a file of another size was cut short, and is written anew.
        fill: Writes the content to a file descriptor, best by `write_at`.

    Returns:
        The file, mapped into memory, uint8, (size,).

    Raises:
        OSError: It cannot be written.
    """

    def whole() -> bool:
        return path.is_file() and path.stat().st_size == size

    if not whole():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # who comes second waits, and finds the file
            if not whole():
                for left in path.parent.glob(f".{path.name}.*.part"):  # by a killed process
                    left.unlink()
                if shutil.disk_usage(path.parent).free < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                with replacing(path) as beside, beside.open("wb") as file:
                    fill(file.fileno())
    return np.memmap(path, np.uint8, mode="r")


def write_at(file: int, array: np.ndarray, offset: int) -> None:
    """Writes an array's bytes at an offset of a file, from any thread.

    Raises:
        OSError: The disk is full.
    """
    written = os.pwrite(file, array.tobytes(), offset)
    if written < array.nbytes:  # the next byte would say so
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
