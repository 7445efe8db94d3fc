"""Signal handlers of the process that runs are forked from; nothing else imports this module.

A scheduler sends its signals to all processes of a job. This process has to ignore them, as it is
needed until the sweep's own process ends.
"""

import signal

for _number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(_number, signal.SIG_IGN)
