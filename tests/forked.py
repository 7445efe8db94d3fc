"""`python -m cellbench` in a fork of the tests' process, which has done its imports."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from cellbench.__main__ import program
from cellbench.sweeps import workers
from cellbench.utils import streams

FORK = multiprocessing.get_context("fork")


def start(args: list[str], log: Path) -> BaseProcess:
    """Start `python -m cellbench ARGS`, with its output in a log.

    The runs of a sweep are forked from its process, not from a fork server.
    """
    process = FORK.Process(target=_run, args=(args, log))
    process.start()
    return process


def _run(args: list[str], log: Path) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(output, number)
    workers._context = FORK  # type: ignore[assignment]
    workers.warm_up = lambda modules: None
    sys.exit(_program(args))


def _program(args: Sequence[str]) -> int:
    """Run the program as a new interpreter would, with what is open as 1 and 2 as its output."""
    sys.stdout, sys.stderr = streams.lasting(1), streams.lasting(2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["cellbench", *args]
    return program()


def fork_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the launcher fork the processes of several devices."""
    names = {"Popen": Rank, "PIPE": subprocess.PIPE, "DEVNULL": subprocess.DEVNULL}
    monkeypatch.setattr("cellbench.cli.execution.launch.subprocess", SimpleNamespace(**names))


class Rank:
    """Fork with what the launcher uses of subprocess.Popen."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        stdin: int,
        stdout: int | None,
        stderr: IO[bytes] | None,
        start_new_session: bool,
    ) -> None:
        assert command[:3] == [sys.executable, "-m", "cellbench"]
        assert stdin == subprocess.PIPE
        assert start_new_session
        self.returncode: int | None = None
        reading, self._stdin = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(reading)
            return
        code = 1
        try:
            os.setsid()
            os.close(self._stdin)
            os.dup2(reading, 0)
            if stdout == subprocess.DEVNULL:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if stderr is not None:
                os.dup2(stderr.fileno(), 2)
            os.environ.clear()
            os.environ.update(env)
            code = _program(command[3:])
        finally:
            sys.stdout.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """Return the exit code once the process has ended."""
        if self.returncode is None:
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
                os.close(self._stdin)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self._pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)
