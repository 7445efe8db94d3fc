"""Signal handlers of the process that runs are forked from; nothing else imports this module.

A scheduler sends its signals to all processes of a job. This process has to ignore them, as it is
needed until the sweep's own process ends. Then it ends at once: Python would first complete its
imports, and free all modules, which takes seconds longer than a sweep that is refused.
"""

import os
import signal
import sys
from types import FrameType

_POLL_S = 0.5
"""Seconds between two looks at the sweep's process."""

_SWEEP = os.getppid()


def _end_with_the_sweep(signum: int, frame: FrameType | None) -> None:
    if os.getppid() != _SWEEP:
        os.kill(os.getpid(), signal.SIGKILL)


if any("multiprocessing.forkserver" in argument for argument in sys.orig_argv):
    for _number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(_number, signal.SIG_IGN)
    # A forked process inherits the handler, but not the timer. As Python exits it resets the
    # handler, and the next signal of the timer ends the process.
    signal.signal(signal.SIGALRM, _end_with_the_sweep)
    signal.setitimer(signal.ITIMER_REAL, _POLL_S, _POLL_S)
