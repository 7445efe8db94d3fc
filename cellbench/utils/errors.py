"""Exceptions for mistakes that the user can correct, and the text of their messages."""

import errno
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

MAX_MESSAGE = 280
"""Greatest number of characters of a message; with the program's name, a line has at most 300."""

SHORT = 36
"""Number of characters of a name that a message shows."""


def one_line(text: object) -> str:
    """Return a message as one line that a terminal can show.

    Control characters, which a file name may contain, are escaped. A text that is too long loses
    the middle, first of its longest words (values, paths), then of the whole.
    """
    words = _elide(str(text), 20_000).split()
    for longest in (120, 60):
        if sum(map(len, words)) + len(words) > MAX_MESSAGE:
            words = [_elide(word, longest) for word in words]
    line = printable(_elide(" ".join(words), MAX_MESSAGE))
    return _elide(line, MAX_MESSAGE)


def _elide(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    tail = (longest - 5) // 3
    return f"{text[: longest - 5 - tail]} ... {text[-tail:]}"


def printable(text: str) -> str:
    """Return a text with its control characters escaped as in Python, safe to print on a terminal.

    The name of a file may contain escape sequences, or bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def clip(name: object, longest: int = SHORT) -> str:
    """Return a name for a message; a long one loses its middle."""
    text = str(name)
    if len(text) <= longest:
        return text
    head = (longest - 3) // 2
    return f"{text[:head]}...{text[head + 3 - longest :]}"


def clip_path(path: object) -> str:
    """Return the path of a table or a folder for a message."""
    return clip(path, 90)


def enumerate_some(names: Sequence[str], most: int = 3) -> str:
    """Return the first names in quotation marks, and the number of the others."""
    shown = ", ".join(f"'{clip(name)}'" for name in names[:most])
    more = len(names) - most
    return f"{shown} and {more:,} other{'s' if more > 1 else ''}" if more > 0 else shown


def short_name(name: object, longest: int = 60) -> str:
    """Return the last parts of a path for a message, without the middle of a long name."""
    return clip("/".join(str(name).split("/")[-3:]), longest)


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun.

    Args:
        n: The number.
        noun: The noun in the singular.
        plural: Its plural, if an s at its end does not make it.
    """
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def short_path(path: Path) -> str:
    """Return a path for a message, with ~ for the user's home folder."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):  # it lies elsewhere, or there is no home
        return str(path)


class UserError(Exception):
    """A mistake in the user's input: shown as one line, without a traceback, with exit code 2.

    The message says what is wrong, where (file or key), and what to do.
    """


def reason_of(error: Exception) -> str:
    """Return a library's error in one short line: its text, or its kind if the text says nothing.

    Some libraries raise errors whose whole text is a number.
    """
    text = " ".join(str(error).split())
    return f"{text:.80}" if re.search(r"[^\W\d]{2}", text) else type(error).__name__


class CannotWrite(UserError):
    """A file that cannot be written; later files could not be written either."""


class OtherRun(UserError):
    """A folder with an unfinished run of another configuration."""


class Interrupted(BaseException):
    """The end of a run by a signal, with an exit code of 128 plus its number.

    Not an Exception, so that no handler of errors catches it.

    Args:
        signum: The signal.
        message: The signal's name and how to resume, in one line.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def find_user_error(error: BaseException | None) -> UserError | None:
    """Return the UserError behind an error that a library may have wrapped in its own."""
    while error is not None and not isinstance(error, UserError):
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return UserError(f"{error.filename}: the file name is too long")
        error = error.__cause__ or error.__context__
    return error


def suggest(name: object, allowed: Iterable[object], prefix: str = "") -> str:
    """Suggest the allowed names closest to `name`, or list all of them if they are few.

    An allowed name that consists of the initials is the closest: `lr` of `learning_rate`.

    Args:
        name: The name that was given.
        allowed: The allowed names.
        prefix: Text to put before each suggested name.

    Returns:
        The end of a message, such as ``"; closest: resnet18, resnet50"``; empty if no name is
        close and the list is long.
    """
    known = [str(each) for each in allowed]  # a key in a file may be a number
    initials = "".join(word[:1] for word in str(name).rpartition(".")[2].split("_"))
    close = [each for each in known if "_" in str(name) and each.rpartition(".")[2] == initials]
    close = sorted(close, key=len)[:3] or get_close_matches(str(name), known, n=3, cutoff=0.6)
    if close:
        return f"; closest: {', '.join(prefix + each for each in close)}"
    return f"; allowed: {', '.join(known)}" if 0 < len(known) <= 12 else ""
