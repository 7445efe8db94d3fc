"""Check of a user's callbacks, before a run begins."""

from collections.abc import Iterable, Sequence

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor

from cellbench.errors import UserError

_LOGGING = (DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor)
"""Lightning's callbacks that write to a logger only."""


def check_callbacks(callbacks: Iterable[Callback], metrics: Sequence[str], *, logged: bool) -> None:
    """Make sure that callbacks have the logger and the metrics that they need.

    Args:
        callbacks: The user's callbacks.
        metrics: Names of the metrics that a training logs.
        logged: True if there is a logger.

    Raises:
        UserError: One needs a logger, or watches a metric that is not logged.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, _LOGGING) and not logged:
            raise UserError(
                f"trainer.callbacks: {name} writes to a logger, and there is none; give "
                "--tensorboard=true or --wandb.mode=offline, or remove it (history.csv has the "
                "learning rate)"
            )
        watched = getattr(callback, "monitor", None)
        if isinstance(watched, str) and watched not in metrics:
            raise UserError(
                f"trainer.callbacks: {name} watches '{watched}', which no training logs; allowed: "
                f"{', '.join(metrics)}"
            )
