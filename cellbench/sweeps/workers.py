"""Processes of a sweep's runs: started from a warm process, watched, and ended."""

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
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from joblib import cpu_count

from cellbench.utils import streams
from cellbench.utils.errors import UserError, counted

GRACE_S = 90.0
"""Seconds that a run has to save its state and end."""

TRIES = 3
"""Number of attempts at a run that is killed from outside, such as for lack of memory."""

MAX_REASON = 4000
"""Greatest number of bytes of a reason; a pipe transmits this many at once, never in part."""

LOG_END = 20_000
"""Bytes at the end of a log that are searched for a reason."""

_STARTS = 10
"""Number of attempts to start a process while the fork server is being replaced."""

_MARK = "$ python -m cellbench "
"""Start of each command line in a log."""

_context = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Ending:
    """End of a command."""

    exit_code: int
    """The exit code."""
    reason: str = ""
    """Reason of a failure, in one line; empty if there is none, or it is only in the log."""


Command = Callable[[list[str]], Ending]
"""Function that runs a command line, such as cellbench's main."""


def warm_up(modules: list[str]) -> None:
    """Start the process that the runs are forked from.

    Args:
        modules: Modules that it imports once, so that no run has to. None of them may use a GPU.
    """
    _context.set_forkserver_preload([f"{__package__}.forkserver", *modules])
    # Not documented, but in the module's __all__. Without it the imports would begin with the first
    # run, and not while the sweep's own process does its imports.
    forkserver.ensure_running()


@dataclass(frozen=True)
class Slot:
    """Resources of one run at a time."""

    threads: int
    """Number of processor cores."""
    gpus: tuple[str, ...] | None = None
    """Numbers of the GPUs, as CUDA_VISIBLE_DEVICES has them; None for all that there are."""


def divide(workers: int, gpus: Sequence[str], per_run: float) -> list[Slot]:
    """Divide a machine among workers.

    Args:
        workers: Number of workers.
        gpus: The machine's GPUs, as CUDA_VISIBLE_DEVICES has them; empty to run on the CPU.
        per_run: GPUs for each run; below 1 several runs share a GPU.

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
            f"--workers: {workers}, each with --gpus {per_run:g}, and the machine has "
            f"{counted(len(gpus), 'GPU')}; at most {counted(len(groups), 'worker')}, or a smaller "
            "--gpus"
        )
    return [Slot(threads, group) for group in groups[:workers]]


@dataclass
class Job:
    """A command in a process of its own."""

    args: list[str]
    """The command line."""
    log: Path
    """File that the output is appended to."""
    slot: Slot
    """Resources of the process."""
    environment: Mapping[str, str]
    """Its environment variables."""
    timeout: float | None = None
    """Seconds after which it is ended; None for no limit."""
    timed_out: bool = field(default=False, init=False)
    """True once it was ended because of its timeout."""
    begun: float = field(default=0.0, init=False)
    """Time of its start, by the monotonic clock."""
    _ended: float | None = field(default=None, init=False)
    _process: BaseProcess | None = field(default=None, init=False)
    _inbox: Connection | None = field(default=None, init=False)
    _reason: str = field(default="", init=False)

    def start(self, command: Command) -> None:
        """Start the process.

        Args:
            command: A function of a module's own, as the process imports it.
        """
        self.begun = time.monotonic()
        self._inbox, outbox = _context.Pipe(duplex=False)
        args = (command, self.args, self.log, self.slot, dict(self.environment), outbox)
        try:
            for tries_left in reversed(range(_STARTS)):
                self._process = _context.Process(target=_work, args=args)
                try:
                    self._process.start()
                    break
                except (EOFError, ConnectionError):
                    # The fork server was just killed, and may need a moment to be gone; then a
                    # new one is started.
                    if not tries_left:
                        raise
                    time.sleep(0.1)
        finally:
            outbox.close()  # the process has its own copy of this end

    @property
    def sentinel(self) -> int:
        """Handle that is ready once the process has ended."""
        assert self._process is not None
        return self._process.sentinel

    @property
    def exit_code(self) -> int | None:
        """Exit code; None while the process runs, minus the signal if one has killed it."""
        assert self._process is not None
        return self._process.exitcode

    def watch(self) -> None:
        """End the process if its time is over, and kill it if it does not end in time."""
        now = time.monotonic()
        if self._ended is None and self.timeout is not None and now - self.begun > self.timeout:
            self.timed_out = True
            self.end()
        if self._ended is not None and now - self._ended > GRACE_S and self.exit_code is None:
            assert self._process is not None
            self._process.kill()

    def end(self) -> None:
        """Tell the process, once, to save its state and end."""
        assert self._process is not None
        if self._ended is None and self._process.pid is not None:
            self._ended = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    @property
    def killed(self) -> bool:
        """True if a signal from outside the sweep has ended the process."""
        code = self.exit_code
        return self._ended is None and code is not None and (code < 0 or code > 128)

    def why(self) -> str:
        """Return the reason of a failure, in one line."""
        if self.timed_out:
            return f"timed out after {self.timeout:g} s"
        code = self.exit_code
        assert code is not None
        if reason := self._sent_reason():
            return reason
        if code == -signal.SIGKILL:
            return "killed by SIGKILL, as the system does where memory runs out"
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return self._logged_reason() or f"ended with exit code {code}"

    def _sent_reason(self) -> str:
        """Return the reason that the process has sent; empty if it has sent none."""
        assert self._inbox is not None
        with contextlib.suppress(EOFError, OSError):
            if self._inbox.poll():
                self._reason = self._inbox.recv_bytes(MAX_REASON).decode(errors="replace")
        return self._reason

    def _logged_reason(self) -> str:
        """Return the last message in the log; empty if there is none.

        A run on several devices starts processes of its own, whose messages are in the log alone.
        """
        try:
            with self.log.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - LOG_END, 0))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        if _MARK in text:
            text = text.rpartition(_MARK)[2].partition("\n")[2]
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        messages = [line for line in lines if line.startswith("cellbench: ")]
        last = [*lines, *messages][-1] if lines else ""
        return last.removeprefix("cellbench: ").removeprefix("error: ")[:300]


def wait_for(jobs: Sequence[Job], seconds: float) -> None:
    """Wait until a job has ended, but no longer than some seconds."""
    if jobs:
        wait([job.sentinel for job in jobs], timeout=seconds)
    else:
        time.sleep(seconds)


def _work(
    command: Command,
    args: list[str],
    log: Path,
    slot: Slot,
    environment: dict[str, str],
    outbox: Connection,
) -> None:
    """Run a command in a process of its own, with its output in a log.

    Args:
        command: Runs the command line.
        args: The command line.
        log: File that the output is appended to.
        slot: Resources of the process.
        environment: Its environment variables.
        outbox: Pipe that takes the reason of a failure.
    """
    os.setsid()  # Ctrl-C comes through the sweep, which ends what it has started
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)
    sys.argv = ["cellbench", *args]  # not the sweep's
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    if slot.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout, sys.stderr = streams.lasting(1), streams.lasting(2)
    os.environ["LOKY_MAX_CPU_COUNT"] = str(slot.threads)  # the most that joblib.cpu_count returns
    import torch

    torch.set_num_threads(slot.threads)
    print(_MARK + " ".join(args), flush=True)
    try:
        ending = command(args)
    except Exception as error:
        _send(outbox, f"{type(error).__name__}: {error}")
        raise
    if ending.reason:
        _send(outbox, ending.reason)
    sys.exit(ending.exit_code)


def _send(outbox: Connection, reason: str) -> None:
    """Send a reason to the sweep, unless the sweep has gone."""
    line = " ".join(reason.split())[:300]
    with contextlib.suppress(OSError):
        outbox.send_bytes(line.encode(errors="backslashreplace")[:MAX_REASON])


def _end_with_the_sweep() -> None:
    """End this process once the sweep's has ended, by whatever signal."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
