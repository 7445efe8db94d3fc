"""Optuna's samplers and pruners, made for sweeps that may be killed and go on."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.space import Point, Space

FIRST = 5
"""Trials, or runs of one, that a pruner sees before it judges."""


def build_sampler(config: SweepConfig) -> BaseSampler:
    """The sampler of a sweep."""
    points = config.grid
    if points is not None:
        return GridSampler(points, config.parameters)
    samplers: dict[str, Callable[[int], BaseSampler]] = {
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
        "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
        "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
        # A sequence has one seed; its place in it is kept in the storage.
        "qmc": lambda seed: optuna.samplers.QMCSampler(
            scramble=True,
            seed=config.seed,
            independent_sampler=optuna.samplers.RandomSampler(seed=seed),
        ),
    }
    return SeededSampler(samplers[config.sampler], config.seed)


def build_pruner(config: SweepConfig, steps: int) -> BasePruner:
    """The pruner of a sweep.

    Args:
        config: The sweep.
        steps: How often a trial is judged at most.
    """
    if config.pruner == "median":
        # An epoch or two say little; with folds or seeds every value is a whole run's.
        warm_up = steps // 4 if len(config.runs) == 1 else 0
        return optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=warm_up)
    if config.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner()
    if config.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(max_resource=steps)
    if config.pruner == "wilcoxon":
        with warnings.catch_warnings():  # that it is experimental
            warnings.simplefilter("ignore")
            return optuna.pruners.WilcoxonPruner(n_startup_steps=min(FIRST, steps - 1))
    return optuna.pruners.NopPruner()


class GridSampler(BaseSampler):
    """Gives trial k the grid's point k: complete, and none twice, however many machines ask.

    Args:
        points: All points.
        space: Their parameters.
    """

    def __init__(self, points: Sequence[Point], space: Space) -> None:
        self._points = points
        self._space = space

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing is drawn together."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing is drawn together."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The point's value."""
        value = self._points[trial.number % len(self._points)][param_name]
        return self._space.parameters[param_name].suggested(value)


class SeededSampler(BaseSampler):
    """Draws as a function of (seed, trial, parameter) and of the trials before it.

    Optuna's samplers go on from where their random numbers are, which a killed process forgets.

    Args:
        make: Makes a sampler from a seed.
        seed: The sweep's.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed

    def _of(self, trial: FrozenTrial, name: str = "") -> BaseSampler:
        text = f"{self._seed} {trial.number} {name}"
        digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
        with warnings.catch_warnings():  # that some are experimental
            warnings.simplefilter("ignore")
            return self._make(int.from_bytes(digest, "little"))

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What the sampler draws together."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draws that."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draws one of the others."""
        sampler = self._of(trial, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tells the sampler of a trial that begins."""
        self._of(trial).before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tells the sampler of a trial that has ended."""
        self._of(trial).after_trial(study, trial, state, values)
