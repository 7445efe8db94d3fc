"""Samplers and pruners for sweeps that may be killed and continued."""

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cmaes
import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.space import Point, Space

STARTUP_STEPS = 5
"""Number of trials, or of runs of a trial, that a pruner sees before it judges."""


def build_sampler(config: SweepConfig, storage: BaseStorage) -> BaseSampler:
    """Return the sampler of a sweep.

    Args:
        config: The sweep.
        storage: The storage of its study.
    """
    points = config.grid
    if points is not None:
        return GridSampler(points, config.parameters)
    samplers: dict[str, Callable[[int], BaseSampler]] = {
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
        "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
        "cmaes": lambda seed: CmaEsSampler(seed, storage),
        # A Sobol sequence has one seed; the position in it is kept in the storage.
        "qmc": lambda seed: optuna.samplers.QMCSampler(
            scramble=True,
            seed=config.seed,
            independent_sampler=optuna.samplers.RandomSampler(seed=seed),
        ),
    }
    return SeededSampler(samplers[config.sampler], config.seed)


def build_pruner(config: SweepConfig, steps: int) -> BasePruner:
    """Return the pruner of a sweep.

    Args:
        config: The sweep.
        steps: Greatest number of times that a trial is judged.
    """
    if config.pruner == "median":
        # The first epochs say little; with folds or seeds every value is that of a whole run.
        warm_up = steps // 4 if len(config.runs) == 1 else 0
        return optuna.pruners.MedianPruner(n_startup_trials=STARTUP_STEPS, n_warmup_steps=warm_up)
    if config.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner()
    if config.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(max_resource=steps)
    if config.pruner == "wilcoxon":
        with warnings.catch_warnings():  # it is experimental
            warnings.simplefilter("ignore")
            return optuna.pruners.WilcoxonPruner(n_startup_steps=min(STARTUP_STEPS, steps - 1))
    return optuna.pruners.NopPruner()


class GridSampler(BaseSampler):
    """Sampler that gives trial k point k of the grid, on any number of machines.

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
        """Return nothing: each parameter is looked up on its own."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing: each parameter is looked up on its own."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the value of the trial's point."""
        value = self._points[trial.number % len(self._points)][param_name]
        return self._space.parameters[param_name].suggested(value)


class CmaEsSampler(BaseSampler):
    """CMA-ES (Hansen and Ostermeier 2001) that computes its state anew from the trials.

    Optuna's own sampler keeps its state as a pickle in the storage, so that a sweep's folder from
    elsewhere, or a shared database, could run code here. Replaying all trials takes milliseconds.

    Args:
        seed: Seed of the next draw alone.
        storage: The study's storage, which keeps the generation of each trial.
    """

    GENERATION = "cellbench:generation"
    """Trial attribute that holds its generation."""

    def __init__(self, seed: int, storage: BaseStorage) -> None:
        self._seed = seed
        self._storage = storage
        self._independent = optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the ranges that all finished trials share."""
        found = IntersectionSearchSpace().calculate(study)
        return {name: kind for name, kind in found.items() if _is_range(kind)}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw from the distribution after all finished generations."""
        if not search_space:
            return {}
        optimizer = self._replay(study, search_space)
        if (
            self.GENERATION not in trial.system_attrs
        ):  # else it is run again, with its old parameters
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(
                self._storage.get_study_id_from_name(study.study_name), trial.number
            )
            self._storage.set_trial_system_attr(trial_id, self.GENERATION, optimizer.generation)
        optimizer.reseed_rng(self._seed)
        point = optimizer.ask()
        return {
            name: _from_unit(float(value), kind)
            for value, (name, kind) in zip(point, search_space.items(), strict=True)
        }

    def _replay(self, study: Study, space: Mapping[str, BaseDistribution]) -> cmaes.CMA:
        """Return a new optimizer with all finished generations, in units of `_to_unit`."""
        n = len(space)
        optimizer = cmaes.CMA(
            mean=np.full(n, 0.5),
            sigma=1 / 6,
            bounds=np.tile([0.0, 1.0], (n, 1)),
            n_max_resampling=10 * n,
            seed=0,
        )
        sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        # In the order in which they ended, so that a late one does not change earlier generations.
        done.sort(
            key=lambda trial: (
                trial.datetime_complete is None,
                trial.datetime_complete,
                trial.number,
            )
        )
        solved: dict[int, list[tuple[np.ndarray, float]]] = {}
        for ended in done:
            generation = ended.system_attrs.get(self.GENERATION)
            if isinstance(generation, int) and space.keys() <= ended.params.keys():
                point = np.array(
                    [_to_unit(ended.params[name], kind) for name, kind in space.items()]
                )
                solved.setdefault(generation, []).append((point, sign * float(ended.values[0])))
        size = optimizer.population_size
        while len(solutions := solved.get(optimizer.generation, [])) >= size:
            optimizer.tell(solutions[:size])
        return optimizer

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter that CMA-ES does not draw, at random."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def _is_range(kind: BaseDistribution) -> bool:
    return isinstance(kind, FloatDistribution | IntDistribution) and not kind.single()


def _ends(kind: BaseDistribution) -> tuple[float, float]:
    """Return the ends of a range, half a step beyond if there are steps.

    Without the half steps both ends would be half as likely as the other values.
    """
    assert isinstance(kind, FloatDistribution | IntDistribution)
    half = (kind.step or 0) / 2
    low, high = kind.low - half, kind.high + half
    return (math.log(low), math.log(high)) if kind.log else (low, high)


def _to_unit(value: float, kind: BaseDistribution) -> float:
    """Return the position of a value in its range, 0 to 1; values outside count as the ends."""
    assert isinstance(kind, FloatDistribution | IntDistribution)
    low, high = _ends(kind)
    place = math.log(max(value, kind.low)) if kind.log else value
    return float(np.clip((place - low) / (high - low), 0, 1))


def _from_unit(share: float, kind: BaseDistribution) -> float:
    """Return the value at a position in a range, the inverse of `_to_unit`.

    Args:
        share: The position, 0 to 1.
        kind: The range.
    """
    assert isinstance(kind, FloatDistribution | IntDistribution)
    low, high = _ends(kind)
    place = low + share * (high - low)
    value = math.exp(place) if kind.log else place
    if kind.step is not None:
        value = kind.low + round((value - kind.low) / kind.step) * kind.step
    value = min(max(value, kind.low), kind.high)
    return round(value) if isinstance(kind, IntDistribution) else value


class SeededSampler(BaseSampler):
    """Sampler whose draws depend on the seed, the trial, the parameter and earlier trials alone.

    Optuna's samplers continue their random numbers, whose state is lost with a killed process.

    Args:
        make: Makes a sampler from a seed.
        seed: The sweep's seed.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed

    def _of(self, trial: FrozenTrial, name: str = "") -> BaseSampler:
        """Return the sampler of a trial's parameters, or of the parameter that is named."""
        text = f"{self._seed} {trial.number} {name}"
        digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
        with warnings.catch_warnings():  # some are experimental
            warnings.simplefilter("ignore")
            return self._make(int.from_bytes(digest, "little"))

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that the sampler draws jointly."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the joint parameters."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one of the other parameters."""
        sampler = self._of(trial, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the sampler that a trial begins."""
        self._of(trial).before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the sampler that a trial has ended."""
        self._of(trial).after_trial(study, trial, state, values)
