"""The terminal, the pipe or the log may go; what a command is there for goes on."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from cellbench.utils import streams
from tests.conftest import QUICK, last_of_each

PROGRAM = [sys.executable, "-m", "cellbench"]
FIT = [*PROGRAM, "fit", "--data.samples=80", "--data.slides=40", *QUICK]

PRINTS = """
import os, sys, time
from cellbench.utils import streams
streams.protect()
for number in range(2000):
    print("a line that is long enough to fill what is buffered", number)
print("and one of mistakes", file=sys.stderr)
os.write(3, b"done")
"""


def shell(text, *args):
    """Runs a shell's line, in which "$@" is the command; returns its exit code and errors."""
    command = ["bash", "-c", text, "bash", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "where",
    ["| true", "| head -1", ">/dev/full 2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/null"],
)
def test_what_prints_goes_on_without_a_reader(tmp_path, where):
    line = f'"$@" 3>{tmp_path}/done {where}; exit ${{PIPESTATUS[0]}}'
    code, error = shell(line, sys.executable, "-c", PRINTS)
    assert (code, error.replace("and one of mistakes\n", "")) == (0, "")
    assert (tmp_path / "done").read_text() == "done"


def test_a_closed_stream_is_no_other_file(tmp_path):
    code = (
        "from cellbench.utils import streams; streams.protect(); f = open('x', 'w'); print('stray')"
    )
    subprocess.run(
        ["bash", "-c", 'exec "$@" >&-', "bash", sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert (tmp_path / "x").read_text() == ""


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_what_is_only_printed_fails_where_it_cannot_be(option):
    code, error = shell('"$@" >/dev/full', *PROGRAM, option)
    assert code == 2
    assert error == (
        "cellbench: error: cannot write to the standard output: No space left on device; send it "
        "elsewhere\n"
    )
    code, error = shell('"$@" >&-', *PROGRAM, option)
    assert code == 2
    assert "Bad file descriptor" in error
    # A reader that has read nothing, and is gone before anything is written.
    code, error = shell('exec 4> >(exec true); wait $!; "$@" >&4', *PROGRAM, option)
    assert (code, error) == (128 + signal.SIGPIPE, "")


def test_a_pipe_that_does_not_block_loses_nothing():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    child = os.fork()
    if not child:
        os.close(reader)
        stream = streams.lasting(writer)
        stream.write("x" * 1_000_000 + "\n")
        stream.flush()
        os._exit(0)
    os.close(writer)
    time.sleep(0.1)  # until it is full
    with os.fdopen(reader) as file:
        assert len(file.read()) == 1_000_001
    os.waitpid(child, 0)


def in_a_terminal(command):
    """Runs a command in a terminal that is closed once the training has begun.

    Returns:
        The exit code.
    """
    child, terminal = pty.fork()
    if not child:
        os.execv(command[0], command)
    seen = b""
    while b"run        " not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_training_outlives_its_terminal(tmp_path):
    options = [f"--runs={tmp_path}", "--name=x", "--trainer.max_epochs=6"]
    assert in_a_terminal(last_of_each([*FIT, *options])) == 0
    assert len(list(tmp_path.glob("x/*/metrics.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("where", ["| true", "2>&1 | head -1", ">/dev/full 2>/dev/full"])
def test_a_training_has_its_own_exit_code(tmp_path, where):
    line = f'"$@" {where}; exit ${{PIPESTATUS[0]}}'
    assert shell(line, *FIT, f"--runs={tmp_path}", "--name=x")[0] == 0
    assert len(list(tmp_path.glob("x/*/metrics.json"))) == 1
    assert shell(line, *FIT, f"--runs={tmp_path}", "--model.lr=-1")[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("where", ["| true", ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("devices", [[], ["--trainer.accelerator=cpu", "--trainer.devices=2"]])
def test_a_sweep_and_several_devices_have_their_own_exit_code(tmp_path, sweep_file, where, devices):
    line = f'"$@" {where}; exit ${{PIPESTATUS[0]}}'
    command = [*FIT, f"--runs={tmp_path / 'runs'}", "--name=sweep", *devices]
    if not devices:
        command = [*PROGRAM, *sweep_file()]
    assert shell(line, *command)[0] == 0
    assert list(tmp_path.glob("runs/sweep/**/metrics.json"))
