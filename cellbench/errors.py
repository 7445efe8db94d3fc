"""The one exception for mistakes that the user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what the user gave: shown as one line, without a traceback, exit code 2.

    The message says what is wrong, where (file or key), and what to do.
    """


class CannotWrite(UserError):
    """A file that cannot be written: whatever comes next could not be, either."""


class OtherRun(UserError):
    """A folder that holds an unfinished run of another configuration."""


class Interrupted(BaseException):
    """A signal has ended a run; the exit code is 128 more. No handler of errors must stop it.

    Args:
        signum: The signal.
        message: What it was, and how to go on, in a line.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def printable(text: str) -> str:
    """Return a text with all that a terminal would obey, and not show, escaped as in Python.

    A file's name may hold escape sequences, or bytes that are no UTF-8.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def find_user_error(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an error, which a library may have wrapped in one of its own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def suggest(name: str, allowed: Iterable[str]) -> str:
    """Says which of the allowed names is closest to `name`, or lists them all when there are few.

    Returns:
        Text to put behind a message, such as ``"; closest: resnet18, resnet50"``; empty if
        nothing is close and the list is long.
    """
    allowed = list(allowed)
    close = get_close_matches(name, allowed, n=3, cutoff=0.6)
    if close:
        return f"; closest: {', '.join(close)}"
    return f"; allowed: {', '.join(allowed)}" if len(allowed) <= 12 else ""
