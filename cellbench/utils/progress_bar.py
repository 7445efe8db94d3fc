"""A bar that shows how far something is, where somebody watches."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.progress import track

T = TypeVar("T")


def bar(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Gives the items, and shows how many are done; nothing where the output is no terminal."""
    return track(items, what, total, transient=True, disable=not sys.stdout.isatty())
