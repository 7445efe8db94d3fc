"""Progress bar, shown in a terminal only."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.progress import track

T = TypeVar("T")


def bar(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """Yield the items, and show how many are done if the output is a terminal.

    Args:
        items: The items.
        label: Text before the bar.
        total: Number of items, if they have no length.
    """
    return track(items, label, total, transient=True, disable=not sys.stdout.isatty())
