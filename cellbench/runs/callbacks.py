"""Lightning's own callbacks that cannot work in a run, refused before it begins."""

from collections.abc import Iterable, Sequence

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor

from cellbench.errors import UserError

_LOGGING = (DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor)


def check_callbacks(callbacks: Iterable[Callback], metrics: Sequence[str], *, logged: bool) -> None:
    """Make sure that callbacks find what they need.

    Args:
        callbacks: The callbacks that the user has asked for.
        metrics: The names that a training logs.
        logged: Whether there is a logger.

    Raises:
        UserError: One needs a logger, or watches a metric that nothing logs.
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
