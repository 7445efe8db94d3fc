"""Imported by the process that runs are forked from, and by nothing else.

A scheduler's signal goes to all processes of a job; this one lives as long as the sweep does.
"""

import signal

for _number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(_number, signal.SIG_IGN)
