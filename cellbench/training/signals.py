"""Signals that interrupt a command."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch import Callback, LightningModule, Trainer

from cellbench.utils.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, the end of a scheduler's job, and SLURM's warning before it (--signal=USR1@60)."""

SAME_SIGNAL_S = 1.0
"""Seconds within which two signals count as one: from a scheduler, and passed on by a launcher."""


class EndAtSignal(Callback):
    """Ends a command at a signal, with an exit code of 128 plus the signal.

    Lightning would end a terminated evaluation or prediction with exit code 0. Therefore its signal
    handlers are replaced each time that it installs them.

    Args:
        hint: Advice that is shown after the signal.
    """

    def __init__(self, hint: str) -> None:
        self._hint = hint

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handle signals during the block."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._watch()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _watch(self) -> None:
        """Install the handlers."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        """End the command."""
        raise self._interrupted(signum)

    def _interrupted(self, signum: int) -> Interrupted:
        """Return the exception that ends the command."""
        return Interrupted(signum, f"{signal.Signals(signum).name}; {self._hint}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers."""
        self._watch()

    on_test_start = on_validation_start
    on_predict_start = on_validation_start
