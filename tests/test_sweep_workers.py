"""Workers of a sweep: how the reason of a failure reaches it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from joblib import cpu_count

from cellbench.sweeps import workers
from cellbench.sweeps.workers import Ending, Job, Slot, wait_for


def refuse(args):
    print("cellbench: error: this is not the reason")
    return Ending(2, f"{args[0]} is wrong on {cpu_count()} core")


def crash(args):
    raise ValueError("a text\nof two lines")


def die(args):
    os.kill(os.getpid(), signal.SIGKILL)


def launch(args):
    """Fails as a run does whose processes, one for each device, have told their reasons."""
    print("cellbench: error: the disk is full; make room\nsome library says goodbye")
    return Ending(2)


def vanish(args):
    return Ending(3)


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        (refuse, 2, "model.lr is wrong on 1 core"),
        (crash, 1, "ValueError: a text of two lines"),
        (die, -signal.SIGKILL, "killed by SIGKILL, as the system does where memory runs out"),
        (launch, 2, "the disk is full; make room"),
        (vanish, 3, "ended with exit code 3"),
    ],
)
def test_the_reason_of_a_failure_reaches_the_sweep(tmp_path, command, code, reason):
    workers.warm_up(["torch", __name__])
    log = tmp_path / "log"
    log.write_text("$ python -m cellbench fit\ncellbench: error: of an earlier attempt\n")
    job = Job(["model.lr"], log, Slot(1), dict(os.environ))
    job.start(command)
    while job.exit_code is None:
        wait_for([job], 0.1)
    assert (job.exit_code, job.why()) == (code, reason)
    assert job.why() == reason  # however often it is asked for
    assert job.killed == (code < 0)


def test_the_fork_server_ends_with_the_sweep_while_it_still_imports(tmp_path):
    (tmp_path / "slow.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    code = (
        "import sys, time; from cellbench.sweeps import workers\n"
        "workers.warm_up(['slow']); time.sleep(2); sys.exit(2)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert process.stdout.readline() == "begun\n"
    assert process.wait() == 2
    ended = time.monotonic()
    assert process.stdout.read() == ""  # its end comes when no process has it open any more
    assert time.monotonic() - ended < 2
