"""Printing to a terminal, with control characters in names escaped."""

from typing import Any

import rich.console

from cellbench.utils.errors import printable


def say(text: str, *, end: str = "\n", flush: bool = False) -> None:
    """Print lines.

    Args:
        text: The lines; control characters are shown escaped.
        end: Text after the last line.
        flush: True to flush the output.
    """
    print(_lines(text), end=end, flush=flush)


class Console(rich.console.Console):
    """rich's console without markup; it shows text as `say` does.

    The cells of tables are not escaped.
    """

    def __init__(self) -> None:
        super().__init__(emoji=False, markup=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects as rich does, and text as `say` does."""
        shown = [_lines(each) if isinstance(each, str) else each for each in objects]
        super().print(*shown, **options)


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
