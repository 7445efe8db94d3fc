"""The trials of a sweep, in a storage that outlives every process, and that machines may share."""

import contextlib
import importlib.util
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import optuna
from filelock import FileLock
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import HyperbandPruner
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from cellbench.config import keys
from cellbench.errors import UserError
from cellbench.foreign import inside
from cellbench.runs.folder import write_text
from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.samplers import build_pruner, build_sampler
from cellbench.sweeps.space import Point
from cellbench.terminal import say

T = TypeVar("T")

BEAT = 15.0
"""Seconds between two signs of life to other machines."""

SILENT = 90.0
"""Seconds without a sign of life after which a machine's trials are run elsewhere."""

_DAMAGED = ("malformed", "not a database", "no such table", "no such column")
"""Words by which SQLite says that waiting will not help."""

WAIT_AT_START, WAIT_LATER, WAIT_AT_END = 60.0, 1800.0, 5.0
"""Seconds that a storage which does not answer is waited for."""


class Study:
    """The trials of one sweep, and which of them this process has.

    A trial is begun by one process and kept in the storage; where that process dies, another one
    runs it with the same parameters. Every call waits for a storage that does not answer.

    Args:
        name: The sweep's name.
        config: The sweep.
        identity: What must be equal for trials to be of one sweep.
        folder: The sweep's folder, which this process alone has on this machine.
        storage: journal or sqlite, for a file in the folder, or a database's address.
        steps: How often a trial is judged at most.
        extend: Whether ranges may have changed.

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
        self._local = storage in ("journal", "sqlite")
        self._place = _place(folder)
        self._owner = f"{self._place}:{uuid.uuid4().hex[:8]}"
        self._patience = WAIT_AT_START
        self._beats: dict[str, tuple[Any, float]] = {}
        self._beat, self._beaten = 0, 0.0
        self._mine: dict[int, Trial] = {}
        sampler, pruner = build_sampler(config), build_pruner(config, steps)
        with _damage_told(storage, folder):
            self._study = self._patiently(
                lambda: optuna.create_study(
                    study_name=name,
                    storage=_open(storage, folder),
                    sampler=sampler,
                    pruner=pruner,
                    directions=config.directions,
                    load_if_exists=True,
                )
            )
            self._patience = WAIT_LATER
            self._check(dict(identity), extend=extend)
            everything = self._patiently(lambda: self._study.get_trials(deepcopy=False))
            for number, trial in enumerate(everything):
                _check_trial(trial, number, config)
        pruner = self._study.pruner
        if isinstance(pruner, HyperbandPruner):
            # Else the trials before the first report of a process are all of one bracket.
            pruner._try_initialization(self._study)
        self.beat()

    def _check(self, identity: dict[str, Any], *, extend: bool) -> None:
        plain = json.loads(json.dumps(identity))
        stored = self._patiently(lambda: self._study.user_attrs).get("sweep")
        if isinstance(stored, dict) and isinstance(stored.get("experiment"), dict):
            # An earlier version counted more keys as the sweep's.
            stored = stored | {"experiment": keys.settings_of_sweep(stored["experiment"])}
        if stored is not None and stored != plain:
            changed = sorted(_differing(stored, plain))
            grid = self._config.grid is not None
            can_extend = not grid and all(_only_ranges(stored, plain, key) for key in changed)
            if not can_extend or not extend:
                advice = "; --extend true goes on with the new range" if can_extend else ""
                raise UserError(
                    f"the sweep {self._study.study_name} was begun with another "
                    f"{', '.join(changed)}{advice}; put it back, or give another --name"
                )
        directions = [StudyDirection[each.upper()] for each in self._config.directions]
        if stored is None and (self.trials() or self._study.directions != directions):
            raise UserError(
                f"the storage has a study {self._study.study_name} that is no sweep of "
                "cellbench's; give another --name"
            )
        if self._study.directions != directions:
            raise _Damaged("it has other directions than its sweep")
        if stored is None:
            self._patiently(lambda: self._study.set_user_attr("id", uuid.uuid4().hex))
        if stored != plain:
            self._patiently(lambda: self._study.set_user_attr("sweep", plain))

    @property
    def identifier(self) -> str:
        """Differs between two studies of the same name."""
        return str(self._patiently(lambda: self._study.user_attrs)["id"])

    def hurry(self) -> None:
        """Waits for the storage a few seconds at most from now on."""
        self._patience = WAIT_AT_END

    def _patiently(self, operation: Callable[[], T]) -> T:
        """Does something with the storage; waits for one that does not answer."""
        begun, told = time.monotonic(), False
        while True:
            try:
                result = operation()
            except (StorageInternalError, SQLAlchemyError) as error:
                cause = str(error.__cause__ or error)
                reason = " ".join(cause.splitlines()[0].split())
                if any(words in cause for words in _DAMAGED):
                    raise _Damaged(reason) from error
                refused = any(word in cause for word in ("disk is full", "readonly")) or (
                    "FATAL" in cause
                    and not any(word in cause for word in ("starting up", "shutting", "recovery"))
                )
                if refused or time.monotonic() - begun > self._patience:
                    self.hurry()  # what is to be tidied up need not wait as long again
                    raise UserError(
                        f"--storage: it cannot be used: {reason[:300]}; nothing is lost: give the "
                        "command again when it can"
                    ) from error
                if not told:
                    say(f"the storage does not answer; waiting ({reason[:160]})", flush=True)
                told = True
                time.sleep(0.5)
                continue
            except OSError as error:
                raise UserError(
                    f"--storage: cannot write {error.filename or 'it'}: {error.strerror}; nothing "
                    "is lost: give the command again when it can be written"
                ) from error
            if told:
                say("the storage answers again", flush=True)
            return result

    # What is there.

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in some states, or in any, by number."""
        found = self._patiently(
            lambda: self._study.get_trials(deepcopy=False, states=states or None)
        )
        return [trial for trial in found if "surplus" not in trial.user_attrs]

    def unfinished(self) -> bool:
        """Whether a trial is running somewhere, or waiting to."""
        return bool(self.trials(TrialState.RUNNING, TrialState.WAITING))

    @property
    def optuna(self) -> optuna.Study:
        """Optuna's own view, for its plots; without what only this class knows."""
        return self._study

    def best(self) -> FrozenTrial | None:
        """The best finished trial of a study with one metric; the first of equals."""
        if len(self._config.metrics) > 1:
            return None
        done = self.trials(TrialState.COMPLETE)
        sign = -1 if self._config.directions[0] == "maximize" else 1
        return min(done, key=lambda trial: sign * trial.values[0], default=None)

    def front(self) -> list[FrozenTrial]:
        """The finished trials that no other one beats in every metric."""
        done = self.trials(TrialState.COMPLETE)
        signs = [1 if each == "minimize" else -1 for each in self._config.directions]

        def beats(a: FrozenTrial, b: FrozenTrial) -> bool:
            pairs = [(s * x, s * y) for s, x, y in zip(signs, a.values, b.values, strict=True)]
            return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

        return [one for one in done if not any(beats(other, one) for other in done)]

    # What this process does.

    def ask(self) -> tuple[Trial, Point] | None:
        """A trial that another process has left, or a new one; None where there are no more.

        Returns:
            The trial and its parameters.
        """
        waiting = self.trials(TrialState.WAITING)
        total = self._config.total
        if not waiting and total is not None and len(self.trials()) >= total:
            return None
        trial = self._patiently(self._study.ask)
        before = sum(other.number < trial.number for other in self.trials())
        if total is not None and before >= total:  # two machines asked for the last one at once
            self._patiently(lambda: trial.set_user_attr("surplus", True))
            self._patiently(lambda: self._study.tell(trial, state=TrialState.FAIL))
            return None
        self._mine[trial.number] = trial
        self._patiently(lambda: trial.set_user_attr("owner", self._owner))
        point: Point = {}
        space = self._config.parameters
        for path, parameter in space.parameters.items():
            if space.active(path, point):
                point[path] = parameter.value(self._suggest(trial, path, parameter.distribution))
        return trial, point

    def _suggest(self, trial: Trial, path: str, distribution: Any) -> Any:
        def draw() -> Any:
            if isinstance(distribution, CategoricalDistribution):
                return trial.suggest_categorical(path, distribution.choices)
            low, high, step, log = (
                getattr(distribution, k) for k in ("low", "high", "step", "log")
            )
            if isinstance(distribution, IntDistribution):
                return trial.suggest_int(path, low, high, step=step, log=log)
            assert isinstance(distribution, FloatDistribution)
            return trial.suggest_float(path, low, high, step=step, log=log)

        return self._patiently(draw)

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Notes how a trial does; returns whether the pruner ends it."""
        if not self.has(trial):
            return False
        frozen = self._frozen(trial)
        if step not in frozen.intermediate_values:
            self._patiently(lambda: trial.report(value, step))
        return self._patiently(trial.should_prune)

    def note(self, trial: Trial, key: str, value: Any) -> None:
        """Keeps something with a trial."""
        if self.has(trial):
            self._patiently(lambda: trial.set_user_attr(key, value))

    def tell(self, trial: Trial, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Ends a trial."""
        if self.has(trial):
            self._patiently(lambda: self._study.tell(trial, values, state, skip_if_finished=True))
        self._mine.pop(trial.number, None)

    def give_back(self, trial: Trial) -> None:
        """Leaves a trial for whoever asks next."""
        if self.has(trial):
            self._wait(trial._trial_id)
        self._mine.pop(trial.number, None)

    def has(self, trial: Trial) -> bool:
        """Whether a trial is still this process'.

        A machine that was not heard of for too long may find that another one has it.
        """
        frozen = self._frozen(trial)
        return frozen.state == TrialState.RUNNING and frozen.user_attrs.get("owner") == self._owner

    def _frozen(self, trial: Trial | FrozenTrial) -> FrozenTrial:
        return self._patiently(lambda: self._study._storage.get_trial(trial._trial_id))

    def _wait(self, trial_id: int) -> None:
        """Makes a trial one that is asked for."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self._patiently(
                lambda: self._study._storage.set_trial_state_values(
                    trial_id, state=TrialState.WAITING
                )
            )

    def beat(self) -> list[int]:
        """Shows other machines that this one is alive, and takes over what dead ones have left.

        Returns:
            The numbers of the trials that others have taken over from this one.
        """
        now = time.monotonic()
        if self._beaten and now - self._beaten < BEAT:
            return []
        if now - self._beaten > 3 * BEAT:  # this machine could not look: nobody was silent
            self._beats.clear()
        self._beat += 1
        self._patiently(lambda: self._study.set_user_attr(f"alive {self._owner}", self._beat))
        self._beaten = time.monotonic()
        attributes = self._patiently(lambda: self._study.user_attrs)
        for trial in self.trials(TrialState.RUNNING):
            owner = trial.user_attrs.get("owner")
            if trial.number not in self._mine and self._is_dead(trial, owner, attributes):
                again = self._frozen(trial)
                if again.state == TrialState.RUNNING and again.user_attrs.get("owner") == owner:
                    self._wait(trial._trial_id)
        return [number for number, trial in self._mine.items() if not self.has(trial)]

    def _is_dead(
        self, trial: FrozenTrial, owner: str | None, attributes: Mapping[str, Any]
    ) -> bool:
        # A folder is one process' at a time, and so are the storages in it.
        if self._local or (owner is not None and owner.startswith(f"{self._place}:")):
            return True
        key = owner or f"trial {trial.number}"
        last = attributes.get(f"alive {owner}")
        seen, since = self._beats.get(key, (None, 0.0))
        if key not in self._beats or last != seen:
            self._beats[key] = (last, time.monotonic())
            return False
        return time.monotonic() - since > SILENT


class _Damaged(UserError):
    """A storage that holds something else than a sweep has written there."""


@contextlib.contextmanager
def _damage_told(storage: str, folder: Path) -> Iterator[None]:
    """Tell in a line whatever Optuna raises where a storage's content is not its own.

    Raises:
        UserError: It is damaged; or what is raised inside.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | MemoryError) and not isinstance(error, _Damaged):
            raise
        files = {"journal": "study.journal", "sqlite": "study.db"}
        kind = "" if isinstance(error, _Damaged) else f"{type(error).__name__}: "
        place = folder / files[storage] if storage in files else "--storage"
        raise UserError(
            f"{place} is damaged ({kind}{error}); put back a copy of it, or give "
            "another --name, which begins the sweep anew"
        ) from error


def _check_trial(trial: FrozenTrial, number: int, config: SweepConfig) -> None:
    """Check that a stored trial is one that this sweep may have had.

    Raises:
        _Damaged: It has another number, or values that are none.
        Exception: What a parameter raises on a value that is none of its own.
    """
    attributes = trial.user_attrs
    runs = attributes.get("values", [])
    values = [
        *(trial.values or []),
        *trial.intermediate_values.values(),
        *(value for run in runs for value in run),
        attributes.get("duration", 0.0),
    ]
    counts = {len(config.metrics)}
    texts = [attributes.get(key, "") for key in ("owner", "reason")]
    if (
        trial.number != number
        or not all(type(value) in (int, float) for value in values)
        or not all(isinstance(text, str) for text in texts)
        or not {len(run) for run in runs} <= counts
        or (trial.state == TrialState.COMPLETE and {len(trial.values)} != counts)
    ):
        raise _Damaged(f"trial {number} is not one of this sweep's")
    for path, value in trial.params.items():
        config.parameters.parameters[path].value(value)
        kind: Any = trial.distributions[path]
        if not isinstance(kind, CategoricalDistribution) and not kind.low <= value <= kind.high:
            raise _Damaged(f"trial {number}: {path} is {value}, which is out of its range")


def _place(folder: Path) -> str:
    """A name of a sweep's folder that no other one has, wherever it is moved."""
    path = inside(folder, ".place")
    if not path.is_file():
        write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8", errors="replace")


class _SystemLock(JournalFileOpenLock):
    """A lock that the system takes back from a killed process; Optuna's own would stay."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        """Waits for the lock."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Gives it back."""
        self._lock.release()


def _open(storage: str, folder: Path) -> BaseStorage:
    """Opens a storage, and makes it if there is none."""
    if storage == "journal":
        path = inside(folder, "study.journal")
        _mend(path)
        lock = _SystemLock(inside(folder, "study.lock"))
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    if storage == "sqlite":
        return RDBStorage(f"sqlite:///{inside(folder, 'study.db')}")
    return RDBStorage(
        f"postgresql+psycopg://{storage.partition('://')[2]}",
        engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": 5}},
    )


def check_storage(storage: str) -> None:
    """Makes sure that a storage can be one, before anything is written.

    Raises:
        UserError: It cannot, or its address has a password, which files would have then.
    """
    if storage in ("journal", "sqlite"):
        return
    scheme, separator, _ = storage.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise UserError("--storage: expected journal, sqlite or postgresql://USER@HOST/DATABASE")
    try:
        address = make_url(storage)
    except (ArgumentError, ValueError) as error:
        raise UserError("--storage: it is no address as postgresql://USER@HOST/DATABASE") from error
    if address.password is not None or "password" in address.query:
        raise UserError(
            "--storage: a password in it would be written down; set PGPASSWORD, or use ~/.pgpass"
        )
    if importlib.util.find_spec("psycopg") is None:
        raise UserError(
            "--storage: PostgreSQL's driver is not installed; pip install 'cellbench[postgresql]'"
        )


def _mend(path: Path) -> None:
    """Cuts off a last line that a full disk or a crash has left without its end."""
    if not path.is_file():
        return
    with contextlib.suppress(OSError), path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The paths of what is not equal."""
    found: list[str] = []
    for key in a.keys() | b.keys():
        one, other = a.get(key), b.get(key)
        if one == other:
            continue
        # A parameter is one thing, and so is what is not of one kind.
        if isinstance(one, dict) and isinstance(other, dict) and prefix != "space: ":
            found += _differing(one, other, f"{prefix}{key}{': ' if not prefix else '.'}")
        else:
            found.append(f"{prefix}{key}")
    return found


def _only_ranges(a: Mapping[str, Any], b: Mapping[str, Any], path: str) -> bool:
    """Whether a change is one that Optuna allows: of a range's ends."""
    if not path.startswith("space: "):
        return False
    name = path.removeprefix("space: ")
    one, other = a["space"].get(name), b["space"].get(name)
    if not (isinstance(one, dict) and isinstance(other, dict)) or "low" not in one:
        return False
    rest = [{k: v for k, v in each.items() if k not in ("low", "high")} for each in (one, other)]
    same_kind = all(
        isinstance(one[k], int) == isinstance(other.get(k), int) for k in ("low", "high")
    )
    return rest[0] == rest[1] and "low" in other and same_kind
