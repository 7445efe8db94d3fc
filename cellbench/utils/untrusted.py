"""Safe reading of files and folders from untrusted sources."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from cellbench.utils.errors import UserError

_MARKED = 4096
"""Bytes at the beginning of a file that `has_mark` looks at."""


def inside(folder: Path, *parts: str) -> Path:
    """Return a path inside a folder; it need not exist.

    Raises:
        UserError: A link on the way leaves the folder, or the path is neither a file nor a folder,
            such as a pipe, on which a reader would wait for ever.
    """
    path = folder.joinpath(*parts)
    try:
        leads_out = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a cycle of links
        leads_out = True
    if leads_out:
        raise UserError(
            f"{path} is, or lies behind, a link that leaves the folder '{folder.name}'; put the "
            "file itself there, or remove the link"
        )
    try:
        mode = path.stat().st_mode
    except OSError:
        return path
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is neither a file nor a folder; remove it")
    return path


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of limited size.

    Args:
        path: The file.
        limit: Largest allowed size in bytes.

    Raises:
        UserError: The file cannot be read, is a pipe or a device, or is larger.
    """
    try:
        _check_regular(path)
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}") from error
    if len(content) > limit:
        raise UserError(f"{path} is larger than {limit:,} bytes")
    return content


def open_text(path: Path, encoding: str = "utf-8") -> TextIO:
    """Open a text file for reading, with its line ends unchanged.

    Raises:
        UserError: The path is a pipe, a device or a folder.
        OSError: The file cannot be opened.
    """
    _check_regular(path)
    return path.open(encoding=encoding, newline="")


def check_replaceable(option: str, path: Path, is_own: Callable[[Path], bool]) -> None:
    """Check that writing a file destroys nothing but an earlier output of the same kind.

    Args:
        option: Option that gave the path, for errors.
        path: File that is about to be written; an empty one may be replaced by anything.
        is_own: Returns True for an output of the same kind.

    Raises:
        UserError: There is a file of another kind, or a folder.
    """
    try:
        status = path.stat()
    except OSError:  # it is not there; if it cannot be written, writing it says why
        return
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{option}: {path} is a folder; give a file")
    regular = stat.S_ISREG(status.st_mode)
    if not regular or (status.st_size and not is_own(path)):
        raise UserError(
            f"{option}: {path} exists and would be overwritten, and it is not an earlier output "
            "of this command; give another path, or remove it"
        )


def has_mark(mark: bytes) -> Callable[[Path], bool]:
    """Return a function that looks for some bytes among the first of a file."""

    def found(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                return mark in file.read(_MARKED)
        except OSError:
            return False

    return found


def _check_regular(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe may block, and a device has no end
        raise UserError(f"{path} is not a file")
