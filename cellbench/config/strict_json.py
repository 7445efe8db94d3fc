"""JSON, read strictly: one value, no key twice, and limits on everything."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from cellbench.utils.errors import UserError
from cellbench.utils.untrusted import read_bytes

MAX_BYTES = 100_000_000
MAX_DEPTH = 50


def read(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file, in UTF-8.

    Raises:
        UserError: The file cannot be read, is larger or deeper than the limits above, or is not
            JSON: no key may stand there twice, no number be NaN or infinite.
    """
    content = read_bytes(path, MAX_BYTES)
    try:
        found = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_float,
        )
        _check(found)
    except RecursionError as error:
        raise UserError(f"{path} is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # not JSON, not UTF-8, or more digits than Python reads
        raise UserError(f"{path} is not valid JSON: {error}") from error
    return found


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        UserError: As `read`; or the file holds something else.
    """
    found = read(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key '{name}' is given twice")
        found[name] = value
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _check(value: Any) -> None:
    """Check the depth of a value, and that all of its text can be written again.

    Raises:
        RecursionError: It is too deep.
        UnicodeEncodeError: A string has half of a surrogate pair.
    """
    waiting = [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(each, str):
            each.encode()
        elif isinstance(each, dict):
            waiting += [(inner, depth + 1) for pair in each.items() for inner in pair]
        elif isinstance(each, list):
            waiting += [(inner, depth + 1) for inner in each]
