"""Parameters of a sweep: their values, and the conditions between them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cellbench.utils.errors import UserError, suggest

Point = dict[str, Any]
"""Value of each active parameter, by its option on the command line, as `data.view`."""


@dataclass(frozen=True)
class Choices:
    """Parameter with one of several values of any kind."""

    values: tuple[Any, ...]
    """The values."""
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of other parameters that make this one active; empty if it is always active."""

    @property
    def distribution(self) -> BaseDistribution:
        """Optuna's distribution of the parameter."""
        return CategoricalDistribution([_label(value) for value in self.values])

    def value(self, suggested: Any) -> Any:
        """Return the value that Optuna's choice stands for."""
        return self.values[[_label(value) for value in self.values].index(suggested)]

    def suggested(self, value: Any) -> Any:
        """Return Optuna's choice for a value."""
        return _label(value)


@dataclass(frozen=True)
class Range:
    """Parameter with a number in a range; a whole number if both ends are whole."""

    low: float
    """Least value."""
    high: float
    """Greatest value."""
    log: bool = False
    """True to draw the logarithm uniformly."""
    step: float | None = None
    """Distance between the values; None to allow all numbers in between."""
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of other parameters that make this one active; empty if it is always active."""

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values; None if there is no step."""
        if self.step is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        # Rounded, since 0.1 + 0.2 is not 0.3.
        grid = (round(self.low + i * self.step, 12) for i in range(count))
        return tuple(int(value) if self._whole else value for value in grid)

    @property
    def _whole(self) -> bool:
        """True if both ends are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def distribution(self) -> BaseDistribution:
        """Optuna's distribution of the parameter."""
        if self._whole:
            step = 1 if self.step is None else int(self.step)
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, suggested: Any) -> Any:
        """Return Optuna's value, which is the parameter's own."""
        return suggested

    suggested = value


@dataclass(frozen=True)
class Space:
    """Parameters of a sweep."""

    parameters: dict[str, Choices | Range]
    """Parameters by their option, each after those that it depends on."""

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Space":
        """Read the entry `space` of a sweep's file.

        Raises:
            UserError: A parameter is not written as it should be, or depends on unknown values.
        """
        if not given:
            raise UserError(
                "space: it is empty; give at least one parameter, as data.view: [raw, masked]"
            )
        parameters = {path: _parameter(path, value) for path, value in given.items()}
        for path, parameter in parameters.items():
            for other, values in parameter.when.items():
                if other not in parameters:
                    known = [key for key in parameters if key != path]
                    hint = suggest(other, known) or "; add it, or remove the condition"
                    raise UserError(f"space: {path}: when: {other} is not in the space{hint}")
                if not values:
                    raise UserError(
                        f"space: {path}: when: {other} has no value; give those for which the "
                        "parameter counts, or remove the condition"
                    )
                allowed = parameters[other].values
                for value in values:
                    if allowed is None or value not in allowed:
                        raise UserError(
                            f"space: {path}: when: {other} is never {value}; it is one of "
                            f"{parameters[other].values or 'a range'}"
                        )
        return cls(_in_order(parameters))

    def active(self, path: str, point: Mapping[str, Any]) -> bool:
        """Return True if a parameter is active, given the values of those before it."""
        conditions = self.parameters[path].when.items()
        return all(other in point and point[other] in values for other, values in conditions)

    def grid(self) -> list[Point]:
        """Return every combination; the values of the last parameter change fastest.

        Raises:
            UserError: A range has no step.
        """
        points: list[Point] = [{}]
        for path, parameter in self.parameters.items():
            if parameter.values is None:
                raise UserError(
                    f"space: {path}: a grid has no end over a range; give a list, or a step, or "
                    "another sampler"
                )
            values = parameter.values
            points = [
                extended
                for point in points
                for extended in (
                    [point | {path: value} for value in values]
                    if self.active(path, point)
                    else [point]
                )
            ]
        return points

    def covering(self) -> list[Point]:
        """Return a few points that cover each value of each list, and both ends of each range.

        A parameter that depends on others is covered together with the values that it needs.
        """
        points = []
        for path, parameter in self.parameters.items():
            values = _known(parameter)
            points += [self._around(path, value) for value in values]
        unique = {json.dumps(point, sort_keys=True, default=str): point for point in points}
        return list(unique.values())

    def _around(self, path: str, value: Any) -> Point:
        """Return a point with one value given, and the first value of the other parameters."""
        wanted = {path: value}
        for name in reversed(self.parameters):  # the parameters it depends on come before it
            if name in wanted:
                for other, values in self.parameters[name].when.items():
                    wanted.setdefault(other, values[0])
        point: Point = {}
        for name, parameter in self.parameters.items():
            if self.active(name, point):
                first = _known(parameter)[0]
                point[name] = wanted.get(name, first)
        return point


def _known(parameter: Choices | Range) -> tuple[Any, ...]:
    """Return all values of a parameter, or the ends of its range."""
    if isinstance(parameter, Range):
        return parameter.values or (parameter.low, parameter.high)
    return parameter.values


def repeats(given: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Return every combination of the options that are repeated inside a trial.

    Args:
        given: The entry `repeat` of a sweep's file.

    Returns:
        The combinations; a single empty one if nothing is repeated.

    Raises:
        UserError: A value is not a list, or is empty.
    """
    for path, values in given.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"repeat: {path}: expected a list of values; got '{values}'")
        if len({_label(value) for value in values}) < len(values):
            raise UserError(f"repeat: {path}: a value is listed twice")
    return [dict(zip(given, values, strict=True)) for values in product(*given.values())]


def _label(value: Any) -> Any:
    """Return a value as a choice of Optuna's: a plain value, or the JSON of a list or mapping."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, sort_keys=True)


def _parameter(path: str, given: Any) -> Choices | Range:
    """Read one parameter of a sweep's file."""
    if isinstance(given, list):
        return _choices(path, given, {})
    if not isinstance(given, dict):
        raise UserError(
            f"space: {path}: expected a list of values, or {{low: ..., high: ...}}; got '{given}'"
        )
    allowed = ["choices", "low", "high", "log", "step", "when"]
    for key in given:
        if key not in allowed:
            raise UserError(f"space: {path}: unknown key '{key}'{suggest(key, allowed)}")
    when = given.get("when") or {}
    if not isinstance(when, dict):
        raise UserError(f"space: {path}: when: expected other parameters' values; got '{when}'")
    conditions = {
        other: tuple(values) if isinstance(values, list) else (values,)
        for other, values in when.items()
    }
    if "choices" in given:
        if given.keys() & {"low", "high", "log", "step"}:
            raise UserError(f"space: {path}: give choices, or a range from low to high")
        return _choices(path, given["choices"], conditions)
    return _range(path, given, conditions)


def _choices(path: str, given: Any, when: Mapping[str, tuple[Any, ...]]) -> Choices:
    """Read a list of values."""
    if not isinstance(given, list) or not given:
        raise UserError(f"space: {path}: expected a list of values; got '{given}'")
    labels = [_label(value) for value in given]
    for i, label in enumerate(labels):
        if label in labels[:i]:  # Optuna cannot tell 1, 1.0 and true apart either
            raise UserError(f"space: {path}: {label} is listed twice")
    return Choices(tuple(given), when)


def _range(path: str, given: Mapping[str, Any], when: Mapping[str, tuple[Any, ...]]) -> Range:
    """Read a range."""
    low: Any = given.get("low")
    high: Any = given.get("high")
    step: Any = given.get("step")
    numbers = [low, high, 1 if step is None else step]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise UserError(f"space: {path}: low, high and step must be numbers; got {dict(given)}")
    log = given.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"space: {path}: log: expected true or false; got '{log}'")
    if not np.isfinite([low, high]).all() or not low < high:
        raise UserError(f"space: {path}: low must be less than high; got {low} and {high}")
    if log and (low <= 0 or step is not None):
        raise UserError(f"space: {path}: with log: true low is above 0, and there is no step")
    if step is not None and not 0 < step <= high - low:
        raise UserError(f"space: {path}: step {step} does not fit between {low} and {high}")
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, float):
        low, high = float(low), float(high)
    return Range(low, high, log, step, when)


def _in_order(parameters: Mapping[str, Choices | Range]) -> dict[str, Choices | Range]:
    """Return the parameters such that each comes after those that it depends on.

    Raises:
        UserError: They depend on each other in a circle.
    """
    ordered: dict[str, Choices | Range] = {}
    while len(ordered) < len(parameters):
        ready = [
            path
            for path, parameter in parameters.items()
            if path not in ordered and parameter.when.keys() <= ordered.keys()
        ]
        if not ready:
            left = ", ".join(path for path in parameters if path not in ordered)
            raise UserError(f"space: the conditions of {left} depend on one another in a circle")
        for path in ready:
            ordered[path] = parameters[path]
    return ordered


def options(point: Mapping[str, Any]) -> Iterator[str]:
    """Yield a point as options of the command line."""
    for path, value in point.items():
        yield f"--{path}={value if isinstance(value, str) else json.dumps(value)}"
