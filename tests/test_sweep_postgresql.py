"""Machines that share a sweep through PostgreSQL, on a server of the test's own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests import forked
from tests.conftest import EXPERIMENT, TINY
from tests.test_sweep_kills import rows

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
pytestmark = pytest.mark.skipif(not BINARIES, reason="no PostgreSQL server; .ci/run installs it")


class Server:
    """A PostgreSQL server on loopback."""

    def __init__(self, folder):
        self.data = folder / "postgresql"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # The server refuses to run as root.
        self.user = "postgres" if os.geteuid() == 0 else None
        self.data.mkdir()
        if self.user:
            shutil.chown(self.data, self.user)
            for parent in self.data.parents:
                if parent != Path("/"):
                    with contextlib.suppress(PermissionError):
                        parent.chmod(parent.stat().st_mode | 0o011)
        self.call("initdb", "-D", self.data, "-U", "cellbench", "-A", "trust", "-N")
        self.start()
        self.url = f"postgresql://cellbench@127.0.0.1:{self.port}/postgres"

    def call(self, program, *args):
        subprocess.run(
            [str(BINARIES[-1] / program), *map(str, args)],
            user=self.user,
            check=True,
            capture_output=True,
            cwd="/",
        )

    def start(self):
        options = f"-p {self.port} -h 127.0.0.1 -k {self.data} -c fsync=off"
        self.call("pg_ctl", "-D", self.data, "-l", self.data / "log", "-w", "-o", options, "start")

    def stop(self):
        self.call("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")


@pytest.fixture
def server(tmp_path_factory):
    # Not below pytest's own folder, which nobody else may enter.
    folder = Path("/tmp") / f"cellbench-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    made = Server(folder)
    yield made
    with contextlib.suppress(subprocess.CalledProcessError):
        made.stop()
    shutil.rmtree(folder)


def write(tmp_path, trials):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    file = tmp_path / "sweep.yaml"
    sweep = {
        "experiment": "tiny.yaml",
        "sampler": "grid",
        "space": {"model.l2": [k / 1000 for k in range(trials)]},
    }
    file.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return file


def begin(file, runs, server, *options):
    """Start a sweep, with its output in a log beside its folder."""
    places = [f"--config={file}", f"--runs={runs}", f"--storage={server.url}"]
    return forked.start(["sweep", *places, *TINY, *options], runs.with_suffix(".log"))


def share(tmp_path, server, trials, machines, workers, between):
    """Runs a sweep on several machines, as far as folders make them; returns all its rows."""
    file = write(tmp_path, trials)
    folders = [tmp_path / f"machine{i}" for i in range(machines)]
    processes = [begin(file, folder, server, f"--workers={workers}") for folder in folders]
    between(folders, processes)
    for folder, process in zip(folders, processes, strict=True):
        process.join()
        assert process.exitcode == 0, folder.with_suffix(".log").read_text()
    tables = [rows(folder) for folder in folders]
    assert all(table == tables[0] for table in tables)
    runs = [path.parent.name for f in folders for path in f.glob("sweep/trials/*/metrics.json")]
    assert sorted(runs) == [f"{number:04d}" for number in range(trials)]  # each once, somewhere
    return tables[0]


def until(condition, process):
    while not condition():
        assert process.is_alive()
        time.sleep(0.1)


def test_two_machines_share_a_sweep_whose_server_is_restarted(tmp_path, server):
    def restart(folders, processes):
        until(lambda: list(folders[0].glob("sweep/trials/*/metrics.json")), processes[0])
        server.stop()
        time.sleep(3)
        server.start()

    found = share(tmp_path, server, 6, machines=2, workers=1, between=restart)
    assert [row["state"] for row in found] == ["done"] * 6
    assert len({row["model.l2"] for row in found}) == 6
    said = "".join((tmp_path / f"machine{i}.log").read_text() for i in range(2))
    assert "the storage does not answer; waiting" in said
    assert "the storage answers again" in said


@pytest.mark.slow
def test_eight_workers_do_two_hundred_trials(tmp_path, server):
    """Four machines of two workers; the server restarted, away for 30 s, one machine killed."""

    def disturb(folders, processes):
        def done(count):
            return lambda: len(list(tmp_path.glob("machine*/sweep/trials/*/metrics.json"))) > count

        until(done(20), processes[0])
        server.stop()
        server.start()
        until(done(60), processes[0])
        server.stop()
        time.sleep(30)
        server.start()
        until(done(100), processes[0])
        os.killpg(processes[3].pid, signal.SIGKILL)
        processes[3].join()
        processes[3] = begin(tmp_path / "sweep.yaml", folders[3], server, "--workers=2")

    found = share(tmp_path, server, 200, machines=4, workers=2, between=disturb)
    assert [row["state"] for row in found] == ["done"] * 200
    assert len({row["model.l2"] for row in found}) == 200


@pytest.mark.slow
def test_a_server_that_is_not_there_at_first_is_waited_for(tmp_path, server):
    server.stop()
    file = write(tmp_path, 2)
    process = begin(file, tmp_path / "runs", server)
    log = tmp_path / "runs.log"
    until(lambda: "the storage does not answer; waiting" in log.read_text(), process)
    server.start()
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert len(rows(tmp_path / "runs")) == 2


@pytest.mark.slow
def test_a_database_that_is_none_is_said_at_once(tmp_path, server):
    file = write(tmp_path, 2)
    begun = time.monotonic()
    server.url = server.url.replace("/postgres", "/nowhere")
    process = begin(file, tmp_path / "runs", server)
    process.join()
    assert process.exitcode == 2
    said = (tmp_path / "runs.log").read_text()
    assert "--storage: it cannot be used" in said
    assert 'database "nowhere" does not exist' in said
    assert time.monotonic() - begun < 50
