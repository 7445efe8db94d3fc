"""Signal handlers of the process that runs are forked from; nothing else imports this module.

A scheduler sends its signals to all processes of a job. This process has to ignore them, as it is
needed until the sweep's own process ends. Then it ends itself at once: Python would first complete
the imports, which take longer than a sweep that is refused.
"""

import atexit
import os
import signal
from types import FrameType

_POLL_S = 0.5
"""Seconds between two looks at the sweep's process."""

_SWEEP = os.getppid()


def _end_with_the_sweep(signum: int, frame: FrameType | None) -> None:
    if os.getppid() != _SWEEP:
        os.kill(os.getpid(), signal.SIGKILL)


# A forked process inherits the handler, but not the timer.
signal.signal(signal.SIGALRM, _end_with_the_sweep)
signal.setitimer(signal.ITIMER_REAL, _POLL_S, _POLL_S)
atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # where a test imports this module
for _number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(_number, signal.SIG_IGN)
