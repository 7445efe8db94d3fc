"""Standard streams whose loss does not end the command.

A training continues after its terminal is closed, after a reader such as `head` has stopped
reading, and while a log cannot be written because the disk is full.
"""

import errno
import io
import os
import select
import signal
import sys
from typing import Any

LAUNCHED = "CELLBENCH_LAUNCHED"
"""Environment variable of the processes that cellbench's launcher starts, and whose stdin ends with
it."""


class _Lasting(io.FileIO):
    """A file descriptor that is replaced by the null device as soon as a write fails.

    Args:
        number: The file descriptor.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes, or drop them if that fails."""
        try:
            while (written := super().write(data)) is None:  # a full non-blocking pipe
                select.select([], [self.fileno()], [])
        except OSError as error:
            self.failure = error
            null = os.open(os.devnull, os.O_WRONLY)
            # Replacing the descriptor also covers libraries and child processes that write to it.
            os.dup2(null, self.fileno())
            os.close(null)
            return memoryview(data).nbytes
        return written


def lasting(number: int, like: Any = None) -> io.TextIOWrapper:
    """Return a text stream over a file descriptor whose writes do not fail.

    Args:
        number: The file descriptor.
        like: A stream whose encoding and buffering to copy; None for UTF-8, line by line.
    """
    lines = like is None or like.line_buffering or like.write_through
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number)),
        encoding="utf-8" if like is None else like.encoding,
        errors="backslashreplace",  # for file names that are not UTF-8
        line_buffering=lines,
    )


def protect() -> None:
    """Let this process outlive its terminal and the reader of its output."""
    closed = []
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # else the next file to be opened would get its number
            closed.append(number)
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = lasting(1, sys.stdout), lasting(2, sys.stderr)
    if 1 in closed:
        _raw(sys.stdout).failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def output_failure() -> OSError | None:
    """Return the error of a failed write to the protected standard output; None if all worked."""
    sys.stdout.flush()
    return _raw(sys.stdout).failure


def _raw(stream: Any) -> _Lasting:
    raw = stream.buffer.raw
    assert isinstance(raw, _Lasting)
    return raw
