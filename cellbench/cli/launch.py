"""Launcher of a command in one process for each device of this machine."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import IO

from joblib import cpu_count

from cellbench.training.signals import SIGNALS
from cellbench.utils.streams import LAUNCHED

GRACE = {True: 60.0, False: 5.0}
"""Seconds that the others have to end, by whether the first was interrupted, or has failed."""


def launch(args: Sequence[str], processes: int) -> int:
    """Run `python -m cellbench ARGS` in several processes that share the work.

    Signals are passed on to all of them. Rank 0 writes to this process's output; what another one
    prints is shown if it is the first to fail.

    Returns:
        The exit code of the first process that fails, 128 more than the signal where one has
        killed it; else 0.
    """
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        LAUNCHED: "1",
    }
    # Processes of many threads each would fight for the cores.
    shared.setdefault("OMP_NUM_THREADS", str(max(cpu_count() // processes, 1)))
    ranks: list[subprocess.Popen[bytes]] = []
    said: list[IO[bytes] | None] = []
    with ExitStack() as files, _passed_on(ranks):
        for rank in range(processes):
            said.append(files.enter_context(tempfile.TemporaryFile()) if rank else None)
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "cellbench", *args],
                    env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.PIPE,  # its end tells them that this process is no more
                    stdout=subprocess.DEVNULL if rank else None,
                    stderr=said[rank],
                    start_new_session=True,  # Ctrl-C comes through this process, once
                )
            )
        failed = _wait(ranks)
        if failed is None:
            return 0
        code, words = ranks[failed].returncode, said[failed]
        if words is not None and code < 128 and ranks[0].returncode != code:  # else it has said it
            words.seek(0)
            sys.stderr.write(words.read().decode(errors="replace"))
    if code < 0:
        name = signal.Signals(-code).name
        print(f"cellbench: the process of device {failed} was killed by {name}", file=sys.stderr)
    return code if code > 0 else 128 - code


def _free_port() -> int:
    """Return a network port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all processes; kill those that still run a while after one has failed.

    Returns:
        The number of the first to fail, if any has.
    """
    failed, deadline = None, 0.0
    while any(process.poll() is None for process in ranks):
        if failed is None:
            failed = _first_failed(ranks)
            interrupted = failed is not None and ranks[failed].returncode > 128
            deadline = time.monotonic() + GRACE[interrupted]
        elif time.monotonic() > deadline:
            for process in ranks:
                process.kill()
        time.sleep(0.05)
    return _first_failed(ranks) if failed is None else failed


def _first_failed(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Return the first process to blame: one that was killed comes before those that missed it."""
    codes = {rank: process.returncode for rank, process in enumerate(ranks) if process.returncode}
    return min(codes, key=lambda rank: (codes[rank] > 0, rank), default=None)


@contextmanager
def _passed_on(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass signals on to the processes while this lasts."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signum)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
