"""Trials of a sweep, in a storage that outlives processes and may be shared by machines."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.damage import DamagedStorage, check_trial, damage_named
from cellbench.sweeps.identity import check_identity
from cellbench.sweeps.ownership import Ownership
from cellbench.sweeps.samplers import build_pruner, build_sampler
from cellbench.sweeps.space import Point
from cellbench.sweeps.storage import LOCAL, open_storage
from cellbench.sweeps.trial_store import TrialStore
from cellbench.sweeps.waiting import Waiting
from cellbench.utils.errors import UserError


class Study:
    """Trials of one sweep.

    A trial is started by one process and kept in the storage. If that process dies, another one
    runs the trial with the same parameters.

    Args:
        name: The sweep's name.
        config: The sweep.
        identity: Values that must be equal for trials to belong to one sweep.
        folder: The sweep's folder, which only this process uses on this machine.
        storage: journal or sqlite, for a file in the folder, or a database's address.
        steps: Greatest number of times that the pruner judges a trial.
        extend: True if ranges may have changed.

    Raises:
        UserError: The storage cannot be reached, is damaged, or has another sweep of this name.
    """

    def __init__(
        self,
        name: str,
        config: SweepConfig,
        identity: Mapping[str, Any],
        folder: Path,
        storage: str,
        steps: int,
        *,
        extend: bool = False,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config = config
        self._waiting = Waiting()
        with damage_named(storage, folder):
            opened = self._waiting.call(lambda: open_storage(storage, folder))
            pruner = build_pruner(config, steps)
            study = self._waiting.call(
                lambda: optuna.create_study(
                    study_name=name,
                    storage=opened,
                    sampler=build_sampler(config, opened),
                    pruner=pruner,
                    directions=config.directions,
                    load_if_exists=True,
                )
            )
            self._waiting.be_patient()
            self._store = TrialStore(study, opened, self._waiting)
            self._check(identity, extend=extend)
            everything = self._waiting.call(lambda: study.get_trials(deepcopy=False))
            for number, trial in enumerate(everything):
                check_trial(trial, number, config)
        if isinstance(pruner, HyperbandPruner):
            # It counts its brackets when it first judges a trial, and until then takes all trials
            # to be of one bracket. So it judges one without values, which it never prunes.
            empty = optuna.trial.create_trial(state=TrialState.RUNNING)
            self._waiting.call(lambda: pruner.prune(study, empty))
        self._ownership = Ownership(self._store, folder, local=storage in LOCAL)
        self.beat()

    def _check(self, identity: Mapping[str, Any], *, extend: bool) -> None:
        """Make sure that the storage holds this sweep, or nothing yet, and note which it is.

        Raises:
            UserError: It holds another sweep, or another kind of study.
            DamagedStorage: Its directions are not its sweep's.
        """
        study = self._store.study
        stored = self._store.attributes().get("sweep")
        current = check_identity(
            study.study_name,
            stored,
            identity,
            grid=self._config.grid is not None,
            extend=extend,
        )
        directions = [StudyDirection[each.upper()] for each in self._config.directions]
        if stored is None and (self.trials() or study.directions != directions):
            raise UserError(
                f"the storage has a study {study.study_name} that is not a sweep of cellbench; "
                "give another --name"
            )
        if study.directions != directions:
            raise DamagedStorage("it has other directions than its sweep")
        if stored is None:
            self._store.set_attribute("id", uuid.uuid4().hex)
        if current is not None:
            self._store.set_attribute("sweep", current)

    @property
    def identifier(self) -> str:
        """A name that differs between any two studies."""
        return str(self._store.attributes()["id"])

    @property
    def optuna(self) -> optuna.Study:
        """Optuna's own study, for its plots."""
        return self._store.study

    def hurry(self) -> None:
        """Wait for the storage for a few seconds at most from now on."""
        self._waiting.hurry()

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in some states, or in any state, by number."""
        return self._store.trials(*states)

    def unfinished(self) -> bool:
        """Return True if a trial is running somewhere, or waiting to."""
        return bool(self.trials(TrialState.RUNNING, TrialState.WAITING))

    @property
    def is_over(self) -> bool:
        """True if all trials have ended; of a sweep without a number of trials, all so far."""
        total = self._config.total
        return not self.unfinished() and (total is None or len(self.trials()) >= total)

    def best(self) -> FrozenTrial | None:
        """Return the best finished trial of a study with one metric; the first of equals."""
        if len(self._config.metrics) > 1:
            return None
        done = self.trials(TrialState.COMPLETE)
        sign = -1 if self._config.directions[0] == "maximize" else 1
        return min(done, key=lambda trial: sign * trial.values[0], default=None)

    def front(self) -> list[FrozenTrial]:
        """Return the Pareto front: the finished trials that no other one dominates."""
        done = self.trials(TrialState.COMPLETE)
        signs = [1 if each == "minimize" else -1 for each in self._config.directions]

        def dominates(a: FrozenTrial, b: FrozenTrial) -> bool:
            pairs = [(s * x, s * y) for s, x, y in zip(signs, a.values, b.values, strict=True)]
            return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

        return [trial for trial in done if not any(dominates(other, trial) for other in done)]

    def best_trials(self) -> list[FrozenTrial]:
        """Return the best trial, or the Pareto front of a study with several metrics."""
        best = self.best()
        return self.front() if len(self._config.metrics) > 1 else [best] if best else []

    def ask(self) -> tuple[Trial, Point] | None:
        """Return a trial to run with its parameters; None if there is none now.

        Trials that another process has left come before new ones.
        """
        waiting = self.trials(TrialState.WAITING)
        total = self._config.total
        if not waiting and total is not None and len(self.trials()) >= total:
            return None
        call = self._waiting.call
        trial = call(self._store.study.ask)
        before = sum(other.number < trial.number for other in self.trials())
        if (
            total is not None and before >= total
        ):  # two machines asked for the last one at the same time
            call(lambda: trial.set_user_attr("surplus", True))
            call(lambda: self._store.study.tell(trial, state=TrialState.FAIL))
            return None
        self._ownership.add(trial)
        call(lambda: trial.set_user_attr("owner", self._ownership.name))
        point: Point = {}
        space = self._config.parameters
        for path, parameter in space.parameters.items():
            if space.active(path, point):
                point[path] = parameter.value(self._suggest(trial, path, parameter.distribution))
        return trial, point

    def _suggest(self, trial: Trial, path: str, distribution: Any) -> Any:
        """Return Optuna's value of a parameter."""

        def suggest() -> Any:
            if isinstance(distribution, CategoricalDistribution):
                return trial.suggest_categorical(path, distribution.choices)
            low, high, step, log = (
                getattr(distribution, k) for k in ("low", "high", "step", "log")
            )
            if isinstance(distribution, IntDistribution):
                return trial.suggest_int(path, low, high, step=step, log=log)
            assert isinstance(distribution, FloatDistribution)
            return trial.suggest_float(path, low, high, step=step, log=log)

        return self._waiting.call(suggest)

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Store an intermediate value of a trial; return True if the pruner ends it."""
        if not self._ownership.has(trial):
            return False
        frozen = self._store.get(trial.number)
        if step not in frozen.intermediate_values:
            self._waiting.call(lambda: trial.report(value, step))
        return self._waiting.call(trial.should_prune)

    def note(self, trial: Trial, key: str, value: Any) -> None:
        """Store an attribute of a trial."""
        if self._ownership.has(trial):
            self._waiting.call(lambda: trial.set_user_attr(key, value))

    def tell(self, trial: Trial, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Store the outcome of a trial."""
        if self._ownership.has(trial):
            self._waiting.call(
                lambda: self._store.study.tell(trial, values, state, skip_if_finished=True)
            )
        self._ownership.remove(trial)

    def give_back(self, trial: Trial) -> None:
        """Leave a trial to whoever asks next."""
        if self._ownership.has(trial):
            self._store.requeue(trial.number)
        self._ownership.remove(trial)

    def beat(self) -> list[int]:
        """Send a heartbeat if it is due, and requeue the trials of dead machines.

        Returns:
            Numbers of the trials that others have taken over from this process.
        """
        return self._ownership.beat()
