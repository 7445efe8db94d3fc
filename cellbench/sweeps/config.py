"""A sweep's file, as a typed value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from cellbench.errors import UserError, suggest
from cellbench.sweeps.space import Point, Space, repeats

Sampler = Literal["grid", "random", "tpe", "gp", "cmaes", "qmc"]
Pruner = Literal["none", "median", "hyperband", "halving", "wilcoxon"]
Direction = Literal["maximize", "minimize"]
Metric = Literal[
    "val/loss", "val/accuracy", "val/balanced_accuracy", "val/f1_macro", "seconds", "parameters"
]


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep's file holds.

    Attributes:
        experiment: The experiment that is varied, relative to the sweep's file.
        space: For each of the command line's paths a list of values, {low, high, log, step}, or
            {choices}; `when: {path: value}` in it makes it depend on another parameter.
        metric: What a trial is judged by: the best epoch's validation scores, the seconds of its
            training, or its parameters; several give a Pareto front.
        direction: maximize or minimize, for each metric.
        sampler: grid compares every combination; the others search: random, tpe (Bergstra et al.,
            NeurIPS 2011), gp (a Gaussian process), cmaes (Hansen and Ostermeier 2001; numbers
            only), qmc (a Sobol sequence).
        seed: Of the sampler's draws.
        pruner: What ends a trial that does badly, judged after every epoch, or after every run
            where `repeat` gives it several: median, hyperband (Li et al., JMLR 2018), halving, or
            wilcoxon (the signed-rank test against the best trial, run by run); none for never.
        trials: How many; null for a grid, and where `time` sets an end.
        time: Seconds after which a command begins no more trials.
        timeout: Seconds after which a run is ended, and its trial failed.
        repeat: What is repeated inside a trial, as the folds and the seeds: for each path a list.
            A trial's value is the mean over all combinations.
    """

    experiment: Path
    space: dict[str, Any]
    metric: str | list[str] = "val/f1_macro"
    direction: Direction | list[Direction] = "maximize"
    sampler: Sampler = "tpe"
    seed: int = 0
    pruner: Pruner = "none"
    trials: int | None = None
    time: float | None = None
    timeout: float | None = None
    repeat: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UserError where values contradict each other."""
        known = get_args(Metric)
        for name in self.metrics:
            if name not in known:
                raise UserError(f"metric: unknown metric '{name}'{suggest(name, known)}")
        if len(set(self.metrics)) < len(self.metrics) or not self.metrics:
            raise UserError(f"metric: expected one, or several different ones; got {self.metric}")
        if len(self.directions) != len(self.metrics):
            raise UserError(
                f"direction: {len(self.directions)} for {len(self.metrics)} metrics; give one each"
            )
        if self.sampler == "grid" and self.trials is not None:
            raise UserError("trials: a grid has as many as it has combinations; remove trials")
        if self.sampler != "grid" and self.trials is None and self.time is None:
            raise UserError(f"trials: the sampler {self.sampler} has no end; give trials or time")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed: {self.seed} is not in 0 to 2**32 - 1")
        for name in ("trials", "time", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}: {value} is not greater than 0")
        if self.pruner != "none" and len(self.metrics) > 1:
            raise UserError(f"pruner: {self.pruner} judges by one metric; remove it, or the others")
        _ = self.parameters, self.runs, self.grid  # which say what is wrong with them
        if self.pruner == "wilcoxon" and len(self.runs) < 2:
            raise UserError("pruner: wilcoxon compares run by run; give folds or seeds in repeat")
        if self.pruner != "none" and self.metrics[0] in ("seconds", "parameters"):
            raise UserError(f"pruner: {self.metrics[0]} is known at the end alone; remove pruner")
        numeric = all(isinstance(value, dict) for value in self.space.values())
        if self.sampler == "cmaes" and not (numeric and len(self.space) > 1):
            raise UserError("sampler: cmaes needs at least two parameters, all of them ranges")
        for path in self.repeat.keys() & self.space.keys():
            raise UserError(f"repeat: {path} is in the space as well; choose one")

    @property
    def metrics(self) -> list[str]:
        """The metrics, one or several."""
        return [self.metric] if isinstance(self.metric, str) else self.metric

    @property
    def directions(self) -> list[Direction]:
        """A direction for each of them."""
        if isinstance(self.direction, str):
            return [self.direction] * len(self.metrics)
        return self.direction

    @property
    def parameters(self) -> Space:
        """What is varied."""
        return Space.read(self.space)

    @property
    def runs(self) -> list[Point]:
        """What a trial's runs differ in."""
        return repeats(self.repeat)

    @property
    def grid(self) -> list[Point] | None:
        """All points of a grid; None where a sampler draws them."""
        return self.parameters.grid() if self.sampler == "grid" else None

    @property
    def total(self) -> int | None:
        """The number of trials; None where only the time ends them."""
        return self.trials if self.grid is None else len(self.grid)

    @property
    def compares(self) -> bool:
        """Whether each run is tested: a grid compares conditions, and chooses none by it."""
        return self.sampler == "grid"

    def identity(self, experiment: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values that differ where two sweeps' trials must not be mixed.

        Args:
            experiment: The whole configuration of its experiment.
        """
        return {
            "space": self.space,
            "repeat": self.repeat,
            "order": [*self.space, *self.repeat],  # numbers a grid's points, and a trial's runs
            "metric": self.metrics,
            "direction": self.directions,
            "sampler": self.sampler,
            "seed": self.seed,
            "pruner": self.pruner,
            "experiment": experiment,
        }
