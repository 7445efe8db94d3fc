"""Nearly equal names of classes and groups."""

import re
import unicodedata
from collections.abc import Mapping

from cellbench.utils.errors import SHORT, clip


def describe_alike(counts: Mapping[str, int], kind: str, unit: str) -> str | None:
    """Describe two names that are probably meant to be one; None if there are none.

    Args:
        counts: How often each name occurs.
        kind: What the names are, in the plural, such as groups.
        unit: What is counted, in the plural, such as rows.
    """
    first: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        other = first.setdefault(_essence(name), name)
        if other != name:
            quote = _escape if _look_equal(other, name) else _quote
            return (
                f"{kind} {quote(other)} ({counts[other]} {unit}) and {quote(name)} "
                f"({counts[name]}) differ only in case, blanks, zeros or the form of a character"
            )
    return None


def _essence(name: str) -> str:
    """Return what two names that are meant to be one have in common.

    Case, form of the characters, blanks (but between two digits), and the zeros that begin a whole
    number or follow its decimal point do not count.
    """
    name = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    name = re.sub(r"(?<!\d) | (?!\d)", "", name)
    name = re.sub(r"(?<![\d.,])0+(?=\d)", "", name)
    return re.sub(r"(?<![\d.,])(\d+)[.,]0*$", r"\1", name)


def _quote(name: str) -> str:
    return f"'{clip(name)}'"


def _escape(name: str) -> str:
    """Return a name with its blanks and its characters beyond ASCII as codes."""
    return clip(ascii(name).replace(" ", r"\x20"), 2 * SHORT)


def _look_equal(a: str, b: str) -> bool:
    """Return True for names that look the same on a screen."""
    a, b = (" ".join(unicodedata.normalize("NFC", name).split()) for name in (a, b))
    return a == b
