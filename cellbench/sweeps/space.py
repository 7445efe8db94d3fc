"""What a sweep varies: the parameters, their values, and the conditions between them."""

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

from cellbench.errors import UserError, suggest

Point = dict[str, Any]
"""A value for each parameter that is active, by the command line's path."""


@dataclass(frozen=True)
class Choices:
    """One of several values of any kind.

    Attributes:
        values: The values.
        when: The values of other parameters with which this one is active; always where empty.
    """

    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def distribution(self) -> BaseDistribution:
        """What Optuna is told."""
        return CategoricalDistribution([_label(value) for value in self.values])

    def value(self, suggested: Any) -> Any:
        """The value that Optuna's choice stands for."""
        return self.values[[_label(value) for value in self.values].index(suggested)]

    def suggested(self, value: Any) -> Any:
        """The other way round."""
        return _label(value)


@dataclass(frozen=True)
class Range:
    """A number in a range.

    Attributes:
        low: The least value; whole numbers only where `low` and `high` are whole.
        high: The greatest.
        log: Whether its logarithm is drawn evenly.
        step: The distance of the values; None for any in between.
        when: As in Choices.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values; None where they are not given by a step."""
        if self.step is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        # 0.1 + 0.2 is no 0.3: as many digits as the step has
        grid = (round(self.low + i * self.step, 12) for i in range(count))
        return tuple(int(value) if self._whole else value for value in grid)

    @property
    def _whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def distribution(self) -> BaseDistribution:
        """What Optuna is told."""
        if self._whole:
            step = 1 if self.step is None else int(self.step)
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, suggested: Any) -> Any:
        """Optuna's value as it is."""
        return suggested

    suggested = value


@dataclass(frozen=True)
class Space:
    """The parameters of a sweep.

    Attributes:
        parameters: By the command line's path, each behind those that it depends on.
    """

    parameters: dict[str, Choices | Range]

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Space":
        """Reads what stands under `space` in a sweep's file.

        Raises:
            UserError: It is not as it should be.
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
                    raise UserError(
                        f"space: {path}: when: {other} is not in the space{suggest(other, known)}"
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
        """Whether a parameter takes part, beside those before it."""
        conditions = self.parameters[path].when.items()
        return all(other in point and point[other] in values for other, values in conditions)

    def grid(self) -> list[Point]:
        """Every combination, the last parameter's values changing fastest.

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
        """A few points in which each value of each list, and both ends of each range, occur.

        A parameter that is active only beside others' values is covered beside them.
        """
        points = []
        for path, parameter in self.parameters.items():
            values = _known(parameter)
            points += [self._around(path, value) for value in values]
        unique = {json.dumps(point, sort_keys=True, default=str): point for point in points}
        return list(unique.values())

    def _around(self, path: str, value: Any) -> Point:
        """A point that has a value, and else the first of each."""
        wanted = {path: value}
        for name in reversed(self.parameters):  # what it needs stands before it
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
    """All values of a parameter, or the ends of its range."""
    if isinstance(parameter, Range):
        return parameter.values or (parameter.low, parameter.high)
    return parameter.values


def repeats(given: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination of what is repeated inside a trial; one empty point for nothing.

    Raises:
        UserError: A value is no list, or empty.
    """
    for path, values in given.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"repeat: {path}: expected a list of values; got '{values}'")
        if len({_label(value) for value in values}) < len(values):
            raise UserError(f"repeat: {path}: a value stands there twice")
    return [dict(zip(given, values, strict=True)) for values in product(*given.values())]


def _label(value: Any) -> Any:
    """What Optuna takes for a choice: a plain value, or the text of a list or of options."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, sort_keys=True)


def _parameter(path: str, given: Any) -> Choices | Range:
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
    if not isinstance(given, list) or not given:
        raise UserError(f"space: {path}: expected a list of values; got '{given}'")
    labels = [_label(value) for value in given]
    for i, label in enumerate(labels):
        if label in labels[:i]:  # Optuna cannot tell 1, 1.0 and true apart either
            raise UserError(f"space: {path}: {label} stands there twice")
    return Choices(tuple(given), when)


def _range(path: str, given: Mapping[str, Any], when: Mapping[str, tuple[Any, ...]]) -> Range:
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
    """Each behind those that its conditions name."""
    ordered: dict[str, Choices | Range] = {}
    while len(ordered) < len(parameters):
        ready = [
            path
            for path, parameter in parameters.items()
            if path not in ordered and parameter.when.keys() <= ordered.keys()
        ]
        if not ready:
            left = ", ".join(path for path in parameters if path not in ordered)
            raise UserError(f"space: the conditions of {left} go round in a circle")
        for path in ready:
            ordered[path] = parameters[path]
    return ordered


def options(point: Mapping[str, Any]) -> Iterator[str]:
    """A point as the command line's options."""
    for path, value in point.items():
        yield f"--{path}={value if isinstance(value, str) else json.dumps(value)}"
