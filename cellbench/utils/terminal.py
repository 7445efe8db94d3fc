"""Printing to a terminal, which must not obey the names of files and classes."""

from typing import Any

import rich.console

from cellbench.utils.errors import printable


def say(text: str, *, end: str = "\n", flush: bool = False) -> None:
    """Print lines.

    Args:
        text: The lines; all else that a terminal would obey is shown escaped.
        end: What follows them.
        flush: Whether to print them at once.
    """
    print(_lines(text), end=end, flush=flush)


class Console(rich.console.Console):
    """rich's console, to which no text is markup, and which shows text as `say` does.

    The cells of tables are printed as they are given.
    """

    def __init__(self) -> None:
        super().__init__(emoji=False, markup=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects as rich does, and text as `say` does."""
        shown = [_lines(each) if isinstance(each, str) else each for each in objects]
        super().print(*shown, **options)


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
