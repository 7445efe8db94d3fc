"""Signals that are held back for a moment."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from cellbench.training.signals import SIGNALS


@contextmanager
def hold_signals() -> Iterator[None]:
    """Deliver signals only after the block.

    A signal between the start of a process and the moment that it is on record would leave a
    process that nobody ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
