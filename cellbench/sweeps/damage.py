"""Damage in a storage: checks of what is read from it, and the error that names it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from cellbench.sweeps.config import SweepConfig
from cellbench.utils.errors import UserError


class DamagedStorage(UserError):
    """A storage that holds something else than a sweep has written there."""


@contextlib.contextmanager
def damage_named(storage: str, folder: Path) -> Iterator[None]:
    """Name the damaged storage in one line, whatever error Optuna makes of it.

    Args:
        storage: The storage, as --storage has it.
        folder: The sweep's folder.

    Raises:
        UserError: The storage is damaged, or the block raises a UserError of its own.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | MemoryError) and not isinstance(error, DamagedStorage):
            raise
        files = {"journal": "study.journal", "sqlite": "study.db"}
        kind = "" if isinstance(error, DamagedStorage) else f"{type(error).__name__}: "
        place = folder / files[storage] if storage in files else "--storage"
        raise UserError(
            f"{place} is damaged ({kind}{error}); put back a copy of it, or give "
            "another --name, which begins the sweep anew"
        ) from error


def check_trial(trial: FrozenTrial, number: int, config: SweepConfig) -> None:
    """Check that a stored trial may be one of a sweep's.

    Args:
        trial: The trial.
        number: The number that it must have.
        config: The sweep.

    Raises:
        DamagedStorage: It has another number, or a value of another kind.
        Exception: Whatever a parameter raises for a value that is not its own.
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
        raise DamagedStorage(f"trial {number} is not one of this sweep's")
    for path, value in trial.params.items():
        config.parameters.parameters[path].value(value)
        kind: Any = trial.distributions[path]
        if not isinstance(kind, CategoricalDistribution) and not kind.low <= value <= kind.high:
            raise DamagedStorage(f"trial {number}: {path} is {value}, which is out of its range")
