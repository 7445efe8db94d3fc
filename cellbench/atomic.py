"""Files that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and moves it there once it is on the disk.

    Raises:
        OSError: The file cannot be written; what lay at `path` before is untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
