"""Launcher that runs a command in one process for each device of this machine."""

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

AFTER_INTERRUPT_S, AFTER_FAILURE_S = 60.0, 5.0
"""Seconds that the other processes have to end once the first was interrupted, or has failed."""


def launch(args: Sequence[str], processes: int) -> int:
    """Run `python -m cellbench ARGS` in several processes that share the work.

    Signals are passed on to all of them. Rank 0 writes to this process's output. The output of
    another process is shown if it is the first to fail.

    Returns:
        The exit code of the first process that fails, or 128 plus the signal that has killed it;
        else 0.
    """
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        LAUNCHED: "1",
    }
    # Several processes with many threads each would compete for the cores.
    shared.setdefault("OMP_NUM_THREADS", str(max(cpu_count() // processes, 1)))
    ranks: list[subprocess.Popen[bytes]] = []
    outputs: list[IO[bytes] | None] = []
    with ExitStack() as files, _passed_on(ranks):
        for rank in range(processes):
            outputs.append(files.enter_context(tempfile.TemporaryFile()) if rank else None)
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "cellbench", *args],
                    env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.PIPE,  # its closed end tells them that this process has ended
                    stdout=subprocess.DEVNULL if rank else None,
                    stderr=outputs[rank],
                    start_new_session=True,  # Ctrl-C reaches them through this process, once
                )
            )
        failed = _wait(ranks)
        if failed is None:
            return 0
        code, output = ranks[failed].returncode, outputs[failed]
        # The first process prints an error that it shares itself.
        if output is not None and code < 128 and ranks[0].returncode != code:
            output.seek(0)
            sys.stderr.write(output.read().decode(errors="replace"))
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
    """Wait for all processes; kill those that still run some time after one has failed.

    Returns:
        The rank of the first process to fail; None if all succeed.
    """
    failed, deadline = None, 0.0
    while any(process.poll() is None for process in ranks):
        if failed is None:
            failed = _first_failed(ranks)
            interrupted = failed is not None and ranks[failed].returncode > 128
            deadline = time.monotonic() + (AFTER_INTERRUPT_S if interrupted else AFTER_FAILURE_S)
        elif time.monotonic() > deadline:
            for process in ranks:
                process.kill()
        time.sleep(0.05)
    return _first_failed(ranks) if failed is None else failed


def _first_failed(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Return the process that failed first; a killed one comes before those that lost contact."""
    codes = {rank: process.returncode for rank, process in enumerate(ranks) if process.returncode}
    return min(codes, key=lambda rank: (codes[rank] > 0, rank), default=None)


@contextmanager
def _passed_on(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass signals on to the processes during the block."""

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
