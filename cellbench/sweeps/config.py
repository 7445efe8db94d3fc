"""Content of a sweep's file, with types."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from cellbench.sweeps.space import Point, Space, repeats
from cellbench.utils.errors import UserError, suggest

Sampler = Literal["grid", "random", "tpe", "gp", "cmaes", "qmc"]
Pruner = Literal["none", "median", "hyperband", "halving", "wilcoxon"]
Direction = Literal["maximize", "minimize"]
Metric = Literal[
    "val/loss", "val/accuracy", "val/balanced_accuracy", "val/f1_macro", "seconds", "parameters"
]


@dataclass(frozen=True)
class SweepConfig:
    """Content of a sweep's file."""

    experiment: Path
    """Experiment that is varied, relative to the sweep's file."""
    space: dict[str, Any]
    """Parameters: for each option of the command line a list of values, {low, high, log, step}, or
    {choices}; `when: {option: value}` in it makes it depend on another parameter."""
    metric: str | list[str] = "val/f1_macro"
    """Metric that trials are judged by: a validation score of the best epoch, the seconds of the
    training, or the number of parameters; several give a Pareto front."""
    direction: Direction | list[Direction] = "maximize"
    """maximize or minimize, for each metric."""
    sampler: Sampler = "tpe"
    """Choice of the trials: grid compares every combination; the others search: random, tpe
    (Bergstra et al., NeurIPS 2011), gp (a Gaussian process), cmaes (Hansen and Ostermeier 2001;
    numbers only), qmc (a Sobol sequence)."""
    seed: int = 0
    """Seed of the sampler's draws."""
    pruner: Pruner = "none"
    """Rule that ends a bad trial early, applied after every epoch, or after every run if `repeat`
    gives a trial several: median, hyperband (Li et al., JMLR 2018), halving, or wilcoxon (the
    signed-rank test against the best trial, run by run); none for never."""
    trials: int | None = None
    """Number of trials; null for a grid, or if `time` sets an end."""
    time: float | None = None
    """Seconds after which a command starts no more trials."""
    timeout: float | None = None
    """Seconds after which a run is ended, and its trial fails."""
    repeat: dict[str, Any] = field(default_factory=dict)
    """Options that are repeated inside a trial, such as folds and seeds, each with a list of
    values. A trial's value is the mean over all combinations."""

    def __post_init__(self) -> None:
        """Raise UserError if values contradict each other."""
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
        _ = self.parameters, self.runs, self.grid  # each checks its values
        if self.pruner == "wilcoxon" and len(self.runs) < 2:
            raise UserError("pruner: wilcoxon compares run by run; give folds or seeds in repeat")
        if self.pruner != "none" and self.metrics[0] in ("seconds", "parameters"):
            raise UserError(f"pruner: {self.metrics[0]} is known only at the end; remove pruner")
        numeric = all(isinstance(value, dict) for value in self.space.values())
        if self.sampler == "cmaes" and not (numeric and len(self.space) > 1):
            raise UserError("sampler: cmaes needs at least two parameters, all of them ranges")
        for path in self.repeat.keys() & self.space.keys():
            raise UserError(f"repeat: {path} is in the space as well; choose one")

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return [self.metric] if isinstance(self.metric, str) else self.metric

    @property
    def directions(self) -> list[Direction]:
        """Direction of each metric."""
        if isinstance(self.direction, str):
            return [self.direction] * len(self.metrics)
        return self.direction

    @property
    def parameters(self) -> Space:
        """Parameters that are varied."""
        return Space.read(self.space)

    @property
    def runs(self) -> list[Point]:
        """Options of each run of a trial, in which the runs differ."""
        return repeats(self.repeat)

    @property
    def grid(self) -> list[Point] | None:
        """All points of a grid; None if a sampler draws the points."""
        return self.parameters.grid() if self.sampler == "grid" else None

    @property
    def total(self) -> int | None:
        """Number of trials; None if only the time ends the sweep."""
        return self.trials if self.grid is None else len(self.grid)

    @property
    def compares(self) -> bool:
        """True if each run is tested: a grid compares conditions and chooses none of them."""
        return self.sampler == "grid"

    def identity(self, experiment: Mapping[str, Any]) -> dict[str, Any]:
        """Return plain values that differ between two sweeps whose trials must not be mixed.

        Args:
            experiment: The experiment's configuration.
        """
        return {
            "space": self.space,
            "repeat": self.repeat,
            "order": [*self.space, *self.repeat],  # decides the numbers of points and runs
            "metric": self.metrics,
            "direction": self.directions,
            "sampler": self.sampler,
            "seed": self.seed,
            "pruner": self.pruner,
            "experiment": experiment,
        }
