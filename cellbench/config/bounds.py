"""Bounds of numeric options, declared beside the option's default."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cellbench.utils.errors import UserError

_KEY = "bounds"


@dataclass(frozen=True)
class Bounds:
    """Interval that a number must lie in; None for no bound."""

    at_least: float | None = None
    """Smallest allowed value."""
    at_most: float | None = None
    """Largest allowed value."""
    above: float | None = None
    """Bound that the value must exceed."""
    below: float | None = None
    """Bound that the value must stay below."""

    def check(self, key: str, value: float) -> None:
        """Raise UserError if the value of an option lies outside."""
        if self.at_least is not None and not value >= self.at_least:
            raise UserError(f"{key}: {value} is less than {self.at_least:,}")
        if self.at_most is not None and not value <= self.at_most:
            raise UserError(f"{key}: {value} is more than {self.at_most:,}")
        if self.above is not None and not value > self.above:
            raise UserError(f"{key}: {value} is not greater than {self.above:,}")
        if self.below is not None and not value < self.below:
            raise UserError(f"{key}: {value} is not less than {self.below:,}")


def bounds(
    at_least: float | None = None,
    at_most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Mapping[str, Bounds]:
    """Return the metadata of a dataclass field whose value, or each of whose values, is bounded."""
    return {_KEY: Bounds(at_least, at_most, above, below)}


def check_bounds(options: Any, group: str) -> None:
    """Check the numbers of a dataclass against the bounds of its fields.

    Values that are not numbers are skipped.

    Args:
        options: An instance of a dataclass.
        group: The name of its group of options, with dots, for errors.

    Raises:
        UserError: A number is out of its bounds.
    """
    for field in fields(options):
        allowed: Bounds | None = field.metadata.get(_KEY)
        if allowed is None:
            continue
        given = getattr(options, field.name)
        for value in given if isinstance(given, tuple | list) else [given]:
            if isinstance(value, int | float):
                allowed.check(f"{group}.{field.name}", value)
