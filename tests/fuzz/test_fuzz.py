"""The campaign finds nothing, and each of its detectors finds what it is there for."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import box as boxes
from tests.fuzz import files, watch
from tests.fuzz.box import Box, Input
from tests.fuzz.campaign import KINDS, kind_of
from tests.fuzz.template import Template

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it watches processes by /proc")


def _fork_many():
    for _ in range(4):
        if not os.fork():
            os._exit(0)


def _sink(path):
    """Writes a file past Python's own functions."""
    sqlite3.connect(path).execute("CREATE TABLE t (x)")


def _start_copy(path):
    shutil.copy(shutil.which("true"), path)
    subprocess.run([path], check=True)


PLANTED = {
    "traceback": lambda work: [][0],
    "hang": lambda work: time.sleep(60),
    "killed": lambda work: os.kill(os.getpid(), signal.SIGSEGV),
    "exit code": lambda work: sys.exit(3),
    "no one line": lambda work: print("two\nlines", file=sys.stderr) or sys.exit(2),
    "long line": lambda work: _end("x" * 301),
    "control character": lambda work: _end("no file \x1b[31mred"),
    "lost": lambda work: (work / "kept.txt").unlink() or _end("sorry"),
    "followed": lambda work: (work / "lure.yaml").read_text(),
    "network": lambda work: socket.create_connection(("127.0.0.1", 9)),
    "too many processes": lambda work: _fork_many(),
    "memory": lambda work: b"x" * (700 << 20),
}

OUTSIDE = {
    "opens": lambda work: (work / "../outside/new").write_text("x"),
    "removes": lambda work: (work / "../outside/secret.txt").unlink(),
    "renames": lambda work: (work / "kept.txt").rename(work / "../outside/new"),
    "links": lambda work: (work / "../new").symlink_to("x"),
    "makes a folder": lambda work: (work / "../new").mkdir(),
    "writes through a link": lambda work: (work / "link").write_text("x"),
    "reads": lambda work: (work / "../outside/secret.txt").read_text(),
    "writes unseen": lambda work: _sink(work / "../outside/new"),
}

RUNS = {
    "imports": lambda work: __import__("hpv_model.helper"),
    "starts a shell": lambda work: os.system("true"),
    "starts what is called git": lambda work: _start_copy(work / "git"),
    "starts a program": lambda work: subprocess.run(["touch", work / "x"], check=True),
}


def _end(message):
    print(f"cellbench: error: {message}", file=sys.stderr)
    sys.exit(2)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a function in a box; returns the names of the faults."""
    monkeypatch.setattr(boxes, "MEMORY", 500)
    monkeypatch.setattr(watch, "FORKS", 2)

    def run(function, args=(), **given):
        box = Box(tmp_path)
        package = box.work / "hpv_model"
        package.mkdir()
        (package / "__init__.py").write_text("")
        canary = f"open({str(box.folder / 'canary')!r}, 'w').write('ran')"
        (package / "helper.py").write_text(canary)
        (box.work / "kept.txt").write_text("kept")
        (box.work / "lure.yaml").write_text("")
        (box.work / "link").symlink_to("../outside/secret.txt")

        def command(args):
            sys.path.insert(0, str(box.work))
            function(box.work)

        outcome = box.run(Input("planted", "", list(args), **given), command)
        faults = {name for name, _ in outcome.faults}
        assert not (box.outside / "new").exists() or "file outside" in faults
        box.remove()
        assert not list(tmp_path.iterdir())
        return faults

    return run


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault, run):
    assert fault in run(PLANTED[fault], limit=1.0 if fault == "hang" else 10.0)


@pytest.mark.parametrize("way", OUTSIDE)
def test_what_touches_files_of_others_is_found(way, run):
    assert "file outside" in run(OUTSIDE[way])


@pytest.mark.parametrize("way", RUNS)
def test_code_that_runs_is_found(way, run):
    assert "code run" in run(RUNS[way])


def test_what_is_not_as_expected_is_found(run):
    assert run(lambda work: None, refused=True) == {"accepted"}
    assert run(lambda work: _end("no"), good=True) == {"exit code"}
    assert "code run" in run(RUNS["imports"], own_code=True)  # it writes more than its import
    assert run(lambda work: None, check=lambda work, outcome: "wrong") == {"accepted"}


def test_a_file_outside_is_read_only_where_the_users_own_input_names_it(run):
    reads, args = OUTSIDE["reads"], ["--data.csv=../outside/secret.txt"]
    assert run(reads, args, own_code=True) == set()
    assert "file outside" in run(reads, args)
    assert "file outside" in run(reads, own_code=True)
    assert "file outside" in run(lambda work: print(reads(work)), args, own_code=True)
    assert "file outside" in run(OUTSIDE["writes through a link"], args, own_code=True)


def test_only_wandbs_installed_program_counts_as_network(run, monkeypatch, tmp_path_factory):
    installed = tmp_path_factory.mktemp("bin") / "wandb-core"
    installed.symlink_to(shutil.which("true"))
    monkeypatch.setattr(watch, "SENDER", str(installed))

    def start(work):
        subprocess.run([installed], check=True)

    def start_another(work):
        (work / "wandb-core").symlink_to(installed)
        subprocess.run([work / "wandb-core"], check=True)

    assert run(start) == {"network"}
    assert run(start, network=True) == set()
    assert run(start_another, network=True) == {"code run"}


def test_colours_are_accepted_where_they_were_asked_for_and_nothing_else(run):
    assert run(lambda work: print("\x1b[1;31mred\x1b[0m"), colours=True) == set()
    for text in ("\x1b[2J", "\x1b[1A", "\x1b]0;title\x07", "\x1b[?25l", "\x9b31m"):
        assert run(lambda work, text=text: print(text), colours=True) == {"control character"}


def test_what_is_right_has_no_fault(run):
    assert run(lambda work: print("done"), good=True) == set()
    assert run(lambda work: _end("x" * 300), refused=True) == set()
    assert run(lambda work: (work / "new").mkdir() or _end("no")) == set()


def test_a_long_work_that_ends_when_it_is_told_to_does_not_hang(run):
    def work(folder):
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
        time.sleep(60)

    assert run(work, limit=0.5, may_last=True) == set()
    assert run(lambda folder: time.sleep(60), limit=0.5, may_last=True) == {"hang"}


def test_fifty_in_a_row_hold_every_kind():
    assert sum(weight for _, weight in KINDS.values()) == 50
    for first in (0, 50, 4950):
        assert {kind_of(number) for number in range(first, first + 50)} == set(KINDS)


@pytest.mark.parametrize("generator", [files.images, files.tables, files.archives])
def test_an_input_is_drawn_from_its_number_alone(generator, tmp_path):
    template = Template(tmp_path)

    def drawn(number):
        box = Box(tmp_path)
        given = generator(Random(f"0 {number}"), box, template)
        lie = sorted(os.fsencode(path.relative_to(box.work)) for path in box.work.rglob("*"))
        return given.what.replace(str(box.folder), ""), given.args, lie

    # Of the numbers whose command needs no run: none is trained here.
    seeds = [n for n in range(12) if generator is not files.images or not _needs_run(n, tmp_path)]
    first = [drawn(number) for number in seeds]
    assert first == [drawn(number) for number in seeds]
    assert len({what for what, _, _ in first}) > len(seeds) // 2


def _needs_run(number: int, folder: Path) -> bool:
    class Stub(Template):
        def copy(self, name, box):
            if name == "run":
                raise LookupError
            super().copy(name, box)

    try:
        files.images(Random(f"0 {number}"), Box(folder), Stub(folder))
    except LookupError:
        return True
    return False


def _campaign(*args, seconds):
    command = [sys.executable, "-m", "tests.fuzz", *args]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, cwd=Path(__file__).parents[2]
    )
    print(done.stdout)
    assert "| all |" in done.stdout, done.stderr
    return done


def test_a_few_inputs():
    kinds = ["experiments", "run folders", "checkpoints", "images", "tables", "archives"]
    done = _campaign("--inputs=25", "--kinds", *kinds, seconds=300)
    assert done.returncode == 0, done.stdout
    few = sum(kind_of(number) in kinds for number in range(25))
    assert f"| all | {few} |" in done.stdout


@pytest.mark.slow
def test_the_campaign(capfd):
    done = _campaign("--seed=0", "--inputs=5000", seconds=3 * 3600)
    assert done.returncode == 0, done.stdout
    assert "| all | 5,000 |" in done.stdout
