"""Surroundings in which a good command cannot do all of its work, and inputs that are good."""

import errno
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import yaml

from tests.fuzz.box import Box, Input
from tests.fuzz.files import MODULE
from tests.fuzz.template import PREDICT, SWEEPS, TINY, Template
from tests.fuzz.watch import hook

NOBODY = 54321
"""A user without an entry in /etc/passwd."""

_COMMANDS: tuple[list[str], ...] = (
    ["fit", *TINY],
    ["fit", *TINY[:2], "--trainer.enable_progress_bar=true"],
    ["test", "--run=run"],
    [*PREDICT],
    ["report", "run"],
    ["audit", "--config=experiment.yaml"],
    ["explain", "run", "--n=4"],
    ["fetch", "wbc9", "--archive=archive.zip", "--to=data"],
    ["fetch"],
    ["sweep", "--config=sweep.yaml"],
    ["--help"],
    ["--version"],
    ["fit", "--help"],
    ["fit", *TINY[:1], "--print_config"],
    ["fitt"],
    ["fit", "--model.lrr=1"],
    [],
)

_MODULES = {
    "a syntax error": "class (:\n",
    "a missing package": "import no_such_package_at_all\n",
    "an error": "raise RuntimeError('not today')\n",
    "an exit": "import sys\nsys.exit(3)\n",
    "a broken class": (
        "from dataclasses import dataclass\nfrom cellbench.data.module import CellDataModule\n\n"
        "@dataclass\nclass BrokenDataModule(CellDataModule):\n    extra: int\n"
    ),
    "a NUL": "x = 1\0\n",
    "bytes": "\xff\xfe",
}
"""Files of a dataset that somebody is about to write."""


def surroundings(rng: Random, box: Box, template: Template) -> Input:
    """A good command without an output, a user, a home, files or processes."""
    template.copy("run", box)
    template.copy("cells", box)
    template.archive(box, "archive.zip")
    keys = {"experiment": "experiment.yaml"} | SWEEPS["tpe"]
    (box.work / "sweep.yaml").write_text(yaml.safe_dump(keys))
    given = Input("surroundings", "", list(rng.choice(_COMMANDS)), limit=20)
    ways = _ways(rng, box)
    way = rng.choice(list(ways))
    given.prepare = ways[way]
    given.colours = way == "FORCE_COLOR=1"
    if way.startswith("files of "):
        given.room = int(way.split()[2])
    given.what = f"{way}: {' '.join(given.args)}"
    if way.startswith("a dataset's file"):
        given.args = rng.choice(
            (["fit", *TINY], ["test", "--run=run"], ["audit", "--config=experiment.yaml"])
        )
        given.good = True
    return given


def _ways(rng: Random, box: Box) -> dict[str, Callable[[], None]]:
    # With fewer Python itself cannot open the program.
    files = rng.choice((8, 12, 16, 20, 24, 32, 48))
    size = rng.choice((0, 1, 1000, 100_000, 1_000_000))
    encoding = rng.choice(("ascii", "latin-1", "cp1252"))
    columns = rng.choice(("0", "1", "7", "-5", "x", "1000000", ""))
    variable = rng.choice(
        (
            "OMP_NUM_THREADS=x",
            "CUDA_VISIBLE_DEVICES=7",
            "XDG_CACHE_HOME=/dev/null",
            "TMPDIR=/x/y",
            "XDG_CACHE_HOME=",
            "HOME=",
            "HOME=/dev/null",
            "HOME=relative",
            "TERM=",
            "NO_COLOR=1",
            "FORCE_COLOR=1",
            "PYTHONWARNINGS=error",
            "MPLBACKEND=x",
            "TZ=x",
            "LANG=x",
            "PATH=",
        )
    )
    module = rng.choice(list(_MODULES))
    return {
        "stdout closed": lambda: _close(1),
        "stderr closed": lambda: _close(2),
        "stdin closed": lambda: _close(0),
        "all closed": lambda: _close(0, 1, 2),
        "stdout full": lambda: _full(1),
        "stderr full": lambda: _full(2),
        "both full": lambda: _full(1, 2),
        "stdout without a reader": lambda: _pipe(1, reads=0),
        "stdout whose reader stops": lambda: _pipe(1, reads=20),
        "stderr without a reader": lambda: _pipe(2, reads=0),
        "both without a reader": lambda: _pipe(1, 2, reads=0),
        f"stdout in {encoding}": lambda: sys.stdout.reconfigure(encoding=encoding),  # type: ignore[union-attr]
        f"{files} files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
        f"files of {size} bytes": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        "a user without a name": _become_nobody,
        "a user without a name or a home": lambda: _become_nobody("HOME", "XDG_CACHE_HOME"),
        "a folder that cannot be written": lambda: _lock(box),
        "no threads or processes": _refuse_threads,
        "no variables but HOME": lambda: _forget(*os.environ.keys() - {"HOME"}),
        "no HOME": lambda: _forget("HOME", "XDG_CACHE_HOME"),
        f"COLUMNS={columns}": lambda: _set("COLUMNS", columns),
        variable: lambda: _set(*variable.split("=")),
        "runs is a file": lambda: _block(box, "runs"),
        "the outputs are folders": lambda: _obstruct(box),
        f"a dataset's file with {module}": lambda: _dataset(box, _MODULES[module]),
        f"a dataset's file has {module}": lambda: _dataset(box, _MODULES[module]),
    }


def _close(*numbers: int) -> None:
    for number in numbers:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)


def _full(*numbers: int) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    for number in numbers:
        os.dup2(full, number)


def _pipe(*numbers: int, reads: int) -> None:
    """Makes an output one whose reader takes so many bytes, and goes."""
    reader, writer = os.pipe()
    if reads and not os.fork():
        os.close(writer)
        for number in numbers:
            os.close(number)
        os.read(reader, reads)
        os._exit(0)
    os.close(reader)
    for number in numbers:
        os.dup2(writer, number)
    os.close(writer)


def _become_nobody(*forgotten: str) -> None:
    """Becomes a user without an entry in /etc/passwd, as far as Python can see.

    A real one could read neither the interpreter nor the box on many a machine.
    """
    _forget(*forgotten)
    os.getuid = os.geteuid = lambda: NOBODY  # type: ignore[assignment]


def _lock(box: Box) -> None:
    """Refuses what would be written into the working folder; a superuser could write it."""
    sys.addaudithook(hook(lambda fault, what: None, [box.home, box.tmp, Path("/dev")], box.outside))


def _refuse_threads() -> None:
    """Refuses new threads and processes, as the system does where a user has too many."""

    def start(self: object) -> None:
        raise RuntimeError("can't start new thread")

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    threading.Thread.start = start  # type: ignore[method-assign,assignment]
    os.fork = fork


def _forget(*names: str) -> None:
    for name in names:
        os.environ.pop(name, None)


def _set(name: str, value: str) -> None:
    os.environ[name] = value


def _block(box: Box, name: str) -> None:
    (box.work / name).write_text("a file in the way")


def _obstruct(box: Box) -> None:
    for name in (
        "out.csv",
        "run/report.html",
        "run/report.json",
        "data/x",
        "audits/experiment/audit.html",
    ):
        (box.work / name).mkdir(parents=True, exist_ok=True)


def _dataset(box: Box, code: str) -> None:
    """Adds a dataset's file to the package, as far as this process can see."""
    import cellbench.data

    folder = box.tmp / "datasets"
    folder.mkdir()
    (folder / "unfinished.py").write_bytes(code.encode("latin-1"))
    cellbench.data.__path__.append(str(folder))


def good(rng: Random, box: Box, template: Template) -> Input:
    """An input with nothing wrong; the command must do its work."""
    name = rng.choice([*_GOOD, *_GOOD, "export"] if rng.random() < 0.2 else list(_GOOD))
    args, needed, made = _GOOD.get(
        name, (["export", "--run=run"], ["run"], "run/export/model.onnx")
    )
    for each in needed:
        if each.startswith("archive"):
            template.archive(box, each)
        else:
            template.copy(each, box)

    def check(work: Path, _: object) -> str | None:
        return None if not made or list(work.glob(made)) else f"there is no {made}"

    return Input("good inputs", name, list(args), good=True, limit=30, check=check)


_GOOD: dict[str, tuple[list[str], list[str], str]] = {
    "fit": (["fit", *TINY], [], "runs/experiment/*/metrics.json"),
    "fit with figures": (["fit", TINY[0], TINY[2]], [], "runs/experiment/*/figures/*.png"),
    "fit of folders": (["fit", *MODULE, "--name=x"], ["cells"], "runs/x/*/metrics.json"),
    "fit of a table": (
        ["fit", *MODULE, "--data.csv=table.csv", "--data.view=masked", "--name=x"],
        ["cells"],
        "runs/x/*/metrics.json",
    ),
    "resume": (["fit", "--resume=run"], ["begun"], "run/metrics.json"),
    "test": (["test", "--run=run"], ["run"], "run/test/*/metrics.json"),
    "validate": (["validate", "--run=run"], ["run"], "run/validate/*/metrics.json"),
    "predict": ([*PREDICT], ["run", "cells"], "out.csv"),
    "contact sheet": ([*PREDICT, "--contact_sheet=x.png"], ["run", "cells"], "x.png"),
    "report": (["report", "run"], ["run"], "run/report.html"),
    "report of a sweep": (["report", "runs/sweep"], ["grid"], "runs/sweep/report.html"),
    "explain": (["explain", "run", "--n=4"], ["run"], "run/attributions.csv"),
    "audit": (["audit", "--config=experiment.yaml"], [], "audits/experiment/audit.html"),
    "zip": (["fetch", "wbc9", "--archive=archive.zip", "--to=data"], ["archive.zip"], "data/wbc"),
    "tar": (["fetch", "wbc9", "--archive=archive.tar", "--to=data"], ["archive.tar"], "data/wbc"),
    "tar.gz": (
        ["fetch", "wbc9", "--archive=archive.tar.gz", "--to=data"],
        ["archive.tar.gz"],
        "data/wbc",
    ),
    "grid": (["sweep", "--config=sweep.yaml"], ["grid"], "runs/sweep/trials.csv"),
    "cmaes": (["sweep", "--config=sweep.yaml"], ["cmaes"], "runs/sweep/best.yaml"),
    "SQLite": (
        ["sweep", "--config=sweep.yaml", "--storage=sqlite"],
        ["tpe"],
        "runs/sweep/best.yaml",
    ),
    "help": (["--help"], [], ""),
    "help of fit": (["fit", "--help"], [], ""),
    "fetch": (["fetch"], [], ""),
    "print_config": (["fit", TINY[0], "--print_config"], [], ""),
}
"""Command lines, what they need in the working folder, and a file that they make."""
