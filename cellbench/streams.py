"""The standard streams: losing them must not end what a command is there for.

A training outlives its terminal, a reader such as `head`, and a log on a full disk.
"""

import errno
import io
import os
import select
import signal
import sys
from typing import Any


class _Lasting(io.FileIO):
    """A file descriptor that becomes the null device once it cannot be written any more.

    Args:
        number: The file descriptor.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes, or drop them where they cannot be written."""
        try:
            while (written := super().write(data)) is None:  # a pipe that does not block is full
                select.select([], [self.fileno()], [])
        except OSError as error:
            self.failure = error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # as what is printed by libraries, and by processes begun
            os.close(null)
            return memoryview(data).nbytes
        return written


def lasting(number: int, like: Any = None) -> io.TextIOWrapper:
    """Return a text stream over a file descriptor whose writes do not fail.

    Args:
        number: The file descriptor.
        like: The stream whose encoding and buffering it takes over; None for a log's.
    """
    lines = like is None or like.line_buffering or like.write_through
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number)),
        encoding="utf-8" if like is None else like.encoding,
        errors="backslashreplace",  # a file name that is no UTF-8 is shown all the same
        line_buffering=lines,
    )


def protect() -> None:
    """Make this process independent of its terminal and of whoever reads its output."""
    closed = []
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # the next file to be opened would be taken for the stream
            closed.append(number)
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = lasting(1, sys.stdout), lasting(2, sys.stderr)
    if 1 in closed:
        _raw(sys.stdout).failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def output_failure() -> OSError | None:
    """Return why the protected standard output could not be written; None where it was."""
    sys.stdout.flush()
    return _raw(sys.stdout).failure


def _raw(stream: Any) -> _Lasting:
    raw = stream.buffer.raw
    assert isinstance(raw, _Lasting)
    return raw
