"""The processes that a sweep's runs have, one each: begun warm, watched, ended."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from joblib import cpu_count

from cellbench import streams
from cellbench.errors import UserError

Command = Callable[[list[str]], int]
"""Runs a command line and returns its exit code: cellbench's main."""

GRACE = 90.0
"""Seconds that a run has to save itself, once it was told to end."""

_context = multiprocessing.get_context("forkserver")


def warm_up(modules: list[str]) -> None:
    """Starts the process that the runs are forked from.

    Args:
        modules: What it imports once, so that no run has to. None of it may touch a GPU.
    """
    _context.set_forkserver_preload([f"{__package__}.forkserver", *modules])
    forkserver.ensure_running()


@dataclass(frozen=True)
class Slot:
    """What one run at a time may use.

    Attributes:
        threads: Processor cores.
        gpus: The numbers of its GPUs, as CUDA_VISIBLE_DEVICES has them; None for whatever is there.
    """

    threads: int
    gpus: tuple[str, ...] | None = None


def divide(workers: int, gpus: Sequence[str], per_run: float) -> list[Slot]:
    """Divides a machine among workers.

    Args:
        workers: How many.
        gpus: The machine's GPUs, as CUDA_VISIBLE_DEVICES has them; none for a CPU alone.
        per_run: GPUs for each run; below 1 several runs share one.

    Raises:
        UserError: There are too few GPUs.
    """
    if workers < 1:
        raise UserError(f"--workers: {workers} is less than 1")
    threads = max(cpu_count() // workers, 1)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(asked)) if asked.isdigit() and int(asked) else threads
    if not gpus:
        return [Slot(threads)] * workers
    if per_run <= 0 or (per_run > 1 and per_run != int(per_run)):
        raise UserError(f"--gpus: {per_run:g} is neither a share of one nor a whole number")
    if per_run <= 1:
        shared = int(1 / per_run + 1e-9)
        groups = [(gpu,) for _ in range(shared) for gpu in gpus]  # each GPU once before any twice
    else:
        n = int(per_run)
        groups = [tuple(gpus[i : i + n]) for i in range(0, len(gpus) - n + 1, n)]  # type: ignore[misc]
    if workers > len(groups):
        raise UserError(
            f"--workers: {workers} with {per_run:g} GPUs each, and here are {len(gpus)} GPUs; at "
            f"most {len(groups)} workers, or a smaller --gpus"
        )
    return [Slot(threads, group) for group in groups[:workers]]


@dataclass
class Job:
    """A command in a process of its own.

    Attributes:
        args: The command line.
        log: The file that has what it prints.
        slot: What it may use.
        environment: What it sees of the environment.
        timeout: Seconds after which it is ended; None for never.
    """

    args: list[str]
    log: Path
    slot: Slot
    environment: Mapping[str, str]
    timeout: float | None = None
    timed_out: bool = field(default=False, init=False)
    begun: float = field(default=0.0, init=False)
    _ended: float | None = field(default=None, init=False)
    _process: ForkServerProcess | None = field(default=None, init=False)

    def start(self, command: Command) -> None:
        """Begins it."""
        self.begun = time.monotonic()
        args = (command, self.args, self.log, self.slot, dict(self.environment))
        self._process = _context.Process(target=_work, args=args)
        try:
            self._process.start()
        except (EOFError, ConnectionError):  # something has just killed the fork server: a new one
            self._process = _context.Process(target=_work, args=args)
            self._process.start()

    @property
    def sentinel(self) -> int:
        """Ready when the process has ended."""
        assert self._process is not None
        return self._process.sentinel

    @property
    def exit_code(self) -> int | None:
        """None while it runs; below 0 for the signal that has killed it."""
        assert self._process is not None
        return self._process.exitcode

    def watch(self) -> None:
        """Ends it where its time is over, and kills it where it does not end."""
        now = time.monotonic()
        if self._ended is None and self.timeout is not None and now - self.begun > self.timeout:
            self.timed_out = True
            self.end()
        if self._ended is not None and now - self._ended > GRACE and self.exit_code is None:
            assert self._process is not None
            self._process.kill()

    def end(self) -> None:
        """Tells it to save itself and end; tells it once."""
        assert self._process is not None
        if self._ended is None and self._process.pid is not None:
            self._ended = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    @property
    def killed(self) -> bool:
        """Whether something else than the sweep has ended it."""
        code = self.exit_code
        return self._ended is None and code is not None and (code < 0 or code > 128)

    def why(self) -> str:
        """Why it has failed, in a line."""
        if self.timed_out:
            return f"timed out after {self.timeout:g} s"
        assert self.exit_code is not None
        lines = self.said().splitlines()
        told = [line for line in lines if line.startswith("cellbench: ")]
        if told:
            return told[-1].removeprefix("cellbench: ").removeprefix("error: ")
        if self.exit_code == -signal.SIGKILL:
            return "killed by SIGKILL, as the system does where memory runs out"
        if self.exit_code < 0:
            return f"killed by {signal.Signals(-self.exit_code).name}"
        last = [line for line in lines if line.strip()]
        return last[-1].strip()[:300] if last else f"ended with exit code {self.exit_code}"

    def said(self) -> str:
        """The end of what this process has printed."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 20_000, 0))
                return file.read().decode(errors="replace").rpartition(_MARK)[2]
        except OSError:
            return ""


def wait_for(jobs: Sequence[Job], seconds: float) -> None:
    """Waits until one has ended, for so long at most."""
    if jobs:
        wait([job.sentinel for job in jobs], timeout=seconds)
    else:
        time.sleep(seconds)


_MARK = "$ python -m cellbench "


def _work(
    command: Command, args: list[str], log: Path, slot: Slot, environment: dict[str, str]
) -> None:
    """What a run's process does."""
    os.setsid()  # Ctrl-C comes through the sweep, which ends what it began
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)
    sys.argv = ["cellbench", *args]  # else it is the sweep's
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    if slot.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(output, number)
    sys.stdout, sys.stderr = streams.lasting(1), streams.lasting(2)
    os.environ["LOKY_MAX_CPU_COUNT"] = str(slot.threads)  # what joblib.cpu_count returns
    import torch

    torch.set_num_threads(slot.threads)
    print(_MARK + " ".join(args), flush=True)
    sys.exit(command(args))


def _end_with_the_sweep() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
