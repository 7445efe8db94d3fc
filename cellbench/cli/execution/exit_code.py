"""Exit code and message of a command that ended with an exception."""

import errno
import sys

from cellbench.utils.errors import Interrupted, find_user_error, one_line

_FILES = "no more files can be opened; raise the limit (ulimit -n), or close other programs"
_THREADS = (
    "no more threads or processes can be started; raise the limit (ulimit -u), or end other "
    "programs"
)
_MEMORY = (
    "there is not enough memory; end other programs, or give smaller batches or images, or a "
    "smaller network"
)
_EXHAUSTED = {
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EAGAIN: _THREADS,
    errno.ENOMEM: _MEMORY,
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk's quota is used up; make room",
}
"""Advice for each errno that means an exhausted resource."""

_EXHAUSTED_WORDS = {
    "Too many open files": _FILES,
    "can't start new thread": _THREADS,
    "Resource temporarily unavailable": _THREADS,
    "can't allocate memory": _MEMORY,
    "out of memory": _MEMORY,
    "Cannot allocate memory": _MEMORY,
}
"""The same advice by the error's text, for libraries that drop the errno."""


def exit_code(error: BaseException, *, debug: bool) -> int:
    """Print in one line why a command has ended, and return its exit code.

    Args:
        error: The exception that it raised.
        debug: True to raise the error, for its traceback.

    Returns:
        The exit code.

    Raises:
        BaseException: The error itself, if the user cannot correct it.
    """
    if isinstance(error, KeyboardInterrupt):  # no command was running yet that handles signals
        print("cellbench: SIGINT", file=sys.stderr)
        return 130
    if isinstance(error, Interrupted):
        print(f"cellbench: {one_line(error)}", file=sys.stderr)
        return 128 + error.signum
    message = ""
    if isinstance(error, Exception):
        message = str(find_user_error(error) or _exhausted(error))
    if not message or debug:
        raise error
    print(f"cellbench: error: {one_line(message)}", file=sys.stderr)
    return 2


def _exhausted(error: BaseException | None) -> str:
    """Return advice if an error means an exhausted resource, else an empty string."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            file = f"{error.filename}: " if error.filename else ""
            return file + _EXHAUSTED[error.errno]
        if isinstance(error, MemoryError):
            return _MEMORY
        if isinstance(error, OSError | RuntimeError | ImportError):
            for words, advice in _EXHAUSTED_WORDS.items():
                if words in str(error):
                    return advice
        error = error.__cause__ or error.__context__
    return ""
