"""A sweep that is killed at any moment ends with its trials, and with the same result."""

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from cellbench.__main__ import main
from tests.conftest import EXPERIMENT, TINY, last_of_each

SEARCH = {
    "experiment": "tiny.yaml",
    "metric": "val/loss",
    "direction": "minimize",
    "sampler": "tpe",
    "space": {
        "model.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "model.optimizer": ["adam", "sgd"],
        "model.weight_decay": {"choices": [0.0]},
    },
}
GRID = {
    "experiment": "tiny.yaml",
    "sampler": "grid",
    "repeat": {"seed_everything": [0, 1]},
    "space": {"data.view": ["raw", "masked", "nucleus"], "model.l2": [0.0, 1e-5, 1e-4, 1e-3, 1e-2]},
}


def begin(file, runs, *options):
    """Starts a sweep as a user does, in a session of its own."""
    command = [sys.executable, "-m", "cellbench", "sweep", f"--config={file}", f"--runs={runs}"]
    root = Path(__file__).parents[1]
    log = open(runs.with_suffix(".log"), "ab")  # noqa: SIM115
    return subprocess.Popen(
        [*command, *last_of_each([*TINY, *options])],
        cwd=root,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def descendants(pid):
    """All processes below one, that of the fork server and the runs."""
    found, parents = [], {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
    seen = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in seen} - seen
        if not more:
            return found
        seen |= more
        found += sorted(more)


def kill(process, what):
    """Kills the sweep, one of its runs, or all at once, as a power failure would."""
    below = descendants(process.pid)
    if what == "worker":
        runs = [pid for pid in below if len(descendants(pid)) == 0 and pid != below[0]]
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(runs[-1], signal.SIGKILL)
        return
    process.kill()
    if what == "machine":
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def rows(runs):
    """trials.csv, without what differs from one time to the next."""
    with (runs / "sweep" / "trials.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "duration"} for row in csv.DictReader(file)]


def write(tmp_path, sweep):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return file


def disturbed(tmp_path, sweep, kills, *options):
    """Runs a sweep undisturbed, and killed so often; returns both tables."""
    file = write(tmp_path, sweep)
    undisturbed = ["sweep", f"--config={file}", f"--runs={tmp_path / 'undisturbed'}"]
    assert main([*undisturbed, *last_of_each([*TINY, *options])]) == 0
    dice, runs = random.Random(0), tmp_path / "disturbed"
    log, done, begun = runs.with_suffix(".log"), 0, 0
    process = None
    while done < kills:
        if process is None:
            process, begun = begin(file, runs, *options), begun + 1
        if dice.random() < 0.2:  # wherever it is, the imports included
            time.sleep(dice.uniform(0, 8))
        else:
            while log.read_text().count("folder     ") < begun and process.poll() is None:
                time.sleep(0.05)
            time.sleep(dice.uniform(0, 2.5))
        if process.poll() is not None:
            break
        what = dice.choice(["sweep", "worker", "machine"])
        kill(process, what)
        done += 1
        if what != "worker":
            process, begun = None, log.read_text().count("folder     ")
    process = process or begin(file, runs, *options)
    assert process.wait() == 0, log.read_text()
    storage = JournalStorage(JournalFileBackend(str(runs / "sweep" / "study.journal")))
    trials = optuna.load_study(study_name="sweep", storage=storage).trials
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    return rows(tmp_path / "undisturbed"), rows(runs), done


def test_a_search_that_is_killed_has_the_same_trials(tmp_path):
    undisturbed, found, kills = disturbed(tmp_path, SEARCH | {"trials": 6}, 2)
    assert kills >= 1  # a fast machine may be done before the second
    assert len(found) == 6
    assert found == undisturbed


@pytest.mark.slow
def test_a_search_killed_twenty_times_has_the_same_trials(tmp_path):
    undisturbed, found, kills = disturbed(tmp_path, SEARCH | {"trials": 30}, 20)
    assert kills == 20
    assert len(found) == 30
    assert found == undisturbed


@pytest.mark.slow
def test_a_grid_killed_while_two_work_on_it_is_complete(tmp_path):
    undisturbed, found, kills = disturbed(tmp_path, GRID, 4, "--workers=2")
    assert kills >= 2
    assert len({(row["data.view"], row["model.l2"]) for row in found}) == 15
    assert found == undisturbed


@pytest.mark.slow
def test_ctrl_c_loses_nothing(tmp_path):
    file = write(tmp_path, SEARCH | {"trials": 3})
    runs = tmp_path / "runs"
    process = begin(file, runs, "--trainer.max_epochs=4", "--checkpoint.every=0")
    while not list(runs.glob("sweep/trials/*/checkpoints/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    log = runs.with_suffix(".log")
    assert "cellbench: SIGINT; nothing is lost: the same command goes on" in log.read_text()
    assert begin(file, runs, "--trainer.max_epochs=4", "--checkpoint.every=0").wait() == 0
    assert [row["state"] for row in rows(runs)] == ["done"] * 3
    logs = "".join(path.read_text() for path in runs.glob("sweep/trials/*.log"))
    assert "goes on from epoch" in logs
