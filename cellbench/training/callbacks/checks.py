"""Check of a user's callbacks, before a run begins."""

from collections.abc import Iterable, Sequence

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    LearningRateFinder,
    LearningRateMonitor,
    ProgressBar,
    ThroughputMonitor,
)

from cellbench.utils.errors import UserError

_LOGGING = (DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor)
"""Lightning's callbacks that write to a logger only."""

_INCOMPLETE = (BaseFinetuning, ProgressBar)
"""Base classes that Lightning leaves to be completed."""

_TUNING = {LearningRateFinder: "model.lr", BatchSizeFinder: "data.batch_size"}
"""Callbacks that change an option after the run's config.yaml has recorded it."""


def check_callbacks(callbacks: Iterable[Callback], metrics: Sequence[str], *, logged: bool) -> None:
    """Make sure that callbacks find what they need, and leave the run's options alone.

    Args:
        callbacks: The user's callbacks.
        metrics: Names of the metrics that a training logs.
        logged: True if there is a logger.

    Raises:
        UserError: One is incomplete, needs a logger, watches a metric that nothing logs, or
            changes an option.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, _LOGGING) and not logged:
            raise UserError(
                f"trainer.callbacks: {name} writes to a logger, and there is none; give "
                "--tensorboard=true or --wandb.mode=offline, or remove it (history.csv has the "
                "learning rate)"
            )
        if type(callback) in _INCOMPLETE:
            raise UserError(
                f"trainer.callbacks: {name} is incomplete; give a class that derives from it"
            )
        for tuner, option in _TUNING.items():
            if isinstance(callback, tuner):
                raise UserError(
                    f"trainer.callbacks: {name} changes {option} after config.yaml has recorded "
                    f"it; remove it, and give {option} or let a sweep choose it"
                )
        watched = getattr(callback, "monitor", None)
        if isinstance(watched, str) and watched not in metrics:
            raise UserError(
                f"trainer.callbacks: {name} watches '{watched}', which no training logs; allowed: "
                f"{', '.join(metrics)}"
            )
