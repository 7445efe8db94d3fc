"""Comparison of a sweep with the one that a storage was begun with."""

import json
from collections.abc import Mapping
from typing import Any

from cellbench.config import keys
from cellbench.utils.errors import UserError


def check_identity(
    name: str, stored: Any, current: Mapping[str, Any], *, grid: bool, extend: bool
) -> dict[str, Any] | None:
    """Refuse to continue a sweep whose trials could not be mixed with those of the stored one.

    Args:
        name: The study's name, for errors.
        stored: Identity in the storage, as `SweepConfig.identity` gave it; None if there is none.
        current: Identity of the sweep at hand.
        grid: True if the sweep is a grid, whose points are numbered.
        extend: True to accept other ends of ranges.

    Returns:
        The identity to store; None if it is there already.

    Raises:
        UserError: The two sweeps differ.
    """
    plain: dict[str, Any] = json.loads(json.dumps(current))
    if isinstance(stored, dict) and isinstance(stored.get("experiment"), dict):
        # An earlier version counted more keys as the sweep's.
        stored = stored | {"experiment": keys.settings_of_sweep(stored["experiment"])}
    if stored == plain:
        return None
    if stored is not None:
        changed = sorted(_differing(stored, plain))
        can_extend = not grid and all(_only_ranges(stored, plain, key) for key in changed)
        if not can_extend or not extend:
            advice = "; --extend true goes on with the new range" if can_extend else ""
            raise UserError(
                f"the sweep {name} was begun with another {', '.join(changed)}{advice}; put it "
                "back, or give another --name"
            )
    return plain


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ.

    Args:
        a: One mapping.
        b: The other one.
        prefix: Name of the group that they are in.
    """
    found: list[str] = []
    for key in a.keys() | b.keys():
        first, second = a.get(key), b.get(key)
        if first == second:
            continue
        # A parameter of the space is compared as a whole.
        if isinstance(first, dict) and isinstance(second, dict) and prefix != "space: ":
            found += _differing(first, second, f"{prefix}{key}{': ' if not prefix else '.'}")
        else:
            found.append(f"{prefix}{key}")
    return found


def _only_ranges(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> bool:
    """Return True if only the ends of a range differ, which Optuna allows.

    Args:
        a: One sweep's identity.
        b: The other's.
        key: A key in which they differ, as `_differing` gives it.
    """
    if not key.startswith("space: "):
        return False
    name = key.removeprefix("space: ")
    first, second = a["space"].get(name), b["space"].get(name)
    if not (isinstance(first, dict) and isinstance(second, dict)) or "low" not in first:
        return False
    rest = [{k: v for k, v in each.items() if k not in ("low", "high")} for each in (first, second)]
    same_kind = all(
        isinstance(first[k], int) == isinstance(second.get(k), int) for k in ("low", "high")
    )
    return rest[0] == rest[1] and "low" in second and same_kind
