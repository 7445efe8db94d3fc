"""Good runs, sweeps, images and archives, made once, of which every input gets a copy."""

import os
import re
import shutil
import signal
import tarfile
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from cellbench.training.callbacks.progress import Progress
from tests import conftest
from tests.conftest import draw_cell
from tests.fuzz.box import IMPORTED, Box, Input
from tests.fuzz.watch import CANARY

EXPERIMENT: dict[str, Any] = conftest.EXPERIMENT | {
    "data": {
        "class_path": "SyntheticDataModule",
        "init_args": {"samples": 40, "slides": 40, "image_size": 32},
    }
}
"""An experiment of half a second."""

CANARY_CODE = """\
with open({path!r}, "a") as file:
    file.write(__name__ + "{imported}\\n")


def _told(what):
    with open({path!r}, "a") as file:
        file.write(what + " was called\\n")


class X:
    def __init__(self, *args, **kwargs):
        _told("X")


Evil = X


def make(*args, **kwargs):
    _told("make")


run = make
"""

TINY = (
    "--config=experiment.yaml",
    "--figures=false",
    "--trainer.enable_progress_bar=false",
)
"""What makes a fit in a working folder take a second."""

PREDICT = ("predict", "--run=run", "--images=cells", "--output=out.csv")
"""Classifies the images of `cells` with `run`."""

CLASSES = (
    *("bands", "basophils", "blasts", "eosinophils", "lymphocytes", "metamyelocytes"),
    *("monocytes", "myelocytes", "neutrophils"),
)
"""The folders of the dataset whose archives are unpacked, wbc9."""

SWEEPS: dict[str, dict[str, Any]] = {
    "grid": {"sampler": "grid", "space": {"data.view": ["raw", "masked"]}},
    "cmaes": {
        "sampler": "cmaes",
        "trials": 2,
        "space": {
            "model.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "model.l2": {"low": 0.0, "high": 0.1},
        },
    },
    "tpe": {
        "sampler": "tpe",
        "trials": 1,
        "metric": "val/accuracy",
        "space": {
            "model.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "model.optimizer": ["adam", "sgd"],
        },
    },
}
"""The keys of the sweeps' files."""


class Template:
    """The folders that inputs are made from; each is made when it is first asked for.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def furnish(self, box: Box) -> None:
        """Fills a working folder with an experiment, lures, and modules that tell when they run."""
        package = box.work / "hpv_model"
        package.mkdir(exist_ok=True)
        code = CANARY_CODE.format(path=str(box.folder / CANARY), imported=IMPORTED)
        (package / "__init__.py").write_text(code)
        (package / "helper.py").write_text(code)
        text = yaml.safe_dump(EXPERIMENT)
        (box.work / "experiment.yaml").write_text(text)
        (box.work / "lure.yaml").write_text(text)
        shutil.copy(self.cells / "cells" / "blast" / "0.png", box.outside / "secret.png")
        (box.work / "loop").symlink_to("loop")
        os.mkfifo(box.work / "fifo")

    def copy(self, name: str, box: Box) -> None:
        """Copies a folder's content into the working folder."""
        shutil.copytree(getattr(self, name), box.work, symlinks=True, dirs_exist_ok=True)

    @cached_property
    def experiment(self) -> dict[str, Any]:
        """Every option of fit with its default, as `fit --print_config` shows them."""
        found: dict[str, Any] = yaml.safe_load(self._said(["fit", *TINY, "--print_config"]))
        return found

    @cached_property
    def options(self) -> dict[str, list[str]]:
        """The options of the other commands, as their help names them."""
        commands = ("report", "predict", "export", "explain", "fetch", "audit", "sweep", "relabel")
        return {
            command: sorted(set(re.findall(r"--([a-z][\w.]*)", self._said([command, "--help"]))))
            for command in commands
        }

    def _said(self, args: list[str]) -> str:
        box = Box(self._folder)
        (box.work / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
        outcome = box.run(Input("template", "", args, limit=300))
        box.remove()
        return outcome.out

    @cached_property
    def predicted(self) -> str:
        """The probabilities that `run` gives to the images of `cells`."""
        box = Box(self._folder)
        self.copy("run", box)
        self.copy("cells", box)
        box.run(Input("template", "", [*PREDICT], limit=300))
        text = (box.work / "out.csv").read_text()
        box.remove()
        return text

    @cached_property
    def run(self) -> Path:
        """`run`, which is finished."""
        return self._made("run", ["fit", *TINY, "--folder=run"])

    @cached_property
    def begun(self) -> Path:
        """`run`, which was interrupted after an epoch."""
        args = ["fit", *TINY, "--folder=run", "--trainer.max_epochs=2"]
        return self._made("begun", args, interrupt=True)

    @cached_property
    def grid(self) -> Path:
        """`sweep.yaml` and `runs/sweep` of two trials, in a journal."""
        return self._swept("grid")

    @cached_property
    def cmaes(self) -> Path:
        """The same of a sampler that keeps a state."""
        return self._swept("cmaes")

    @cached_property
    def tpe(self) -> Path:
        """The same in SQLite."""
        return self._swept("tpe", "--storage=sqlite")

    @cached_property
    def cells(self) -> Path:
        """`cells`: six images of two classes, and their masks; `cells/table.csv` lists them."""
        folder = self._folder / "cells"
        rng = np.random.default_rng(0)
        rows = ["path,label,mask,group,split"]
        for label, name in enumerate(("blast", "normal")):
            for number in range(6):
                image, mask = draw_cell(rng, 2 * label, 32)
                for path, pixels in (
                    (folder / "cells" / name / f"{number}.png", image),
                    (folder / "cells" / "masks" / name / f"{number}.png", mask),
                ):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(path), pixels)
                part = ("train", "train", "train", "val", "test", "test")[number]
                path = f"{name}/{number}.png"
                rows.append(f"{path},{name},masks/{path},{name} {number},{part}")
        (folder / "cells" / "table.csv").write_text("\n".join(rows) + "\n")
        return folder

    @cached_property
    def members(self) -> dict[str, bytes]:
        """What a good archive of the dataset wbc9 holds."""
        rng = np.random.default_rng(1)
        found = {}
        for label, name in enumerate(CLASSES):
            for number in range(2):
                image, _ = draw_cell(rng, label % 4, 32)
                found[f"wbc/{name}/{number}_1_2_3_{label}.png"] = encode(".png", image)
        return found

    def archive(self, box: Box, name: str) -> Path:
        """Writes a good archive into a working folder."""
        path = box.work / name
        if name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as packed:
                for member, content in self.members.items():
                    packed.writestr(member, content)
            return path
        source = box.tmp / "members"
        with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as tar:
            for member, content in self.members.items():
                source.write_bytes(content)
                tar.add(source, member)
        source.unlink()
        return path

    def _made(self, name: str, args: list[str], *, interrupt: bool = False) -> Path:
        """What a good command leaves behind in its working folder."""
        box = Box(self._folder)
        (box.work / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
        if name in SWEEPS:
            keys = {"experiment": "experiment.yaml"} | SWEEPS[name]
            (box.work / "sweep.yaml").write_text(yaml.safe_dump(keys, sort_keys=False))
        given = Input("template", name, args, limit=300, prepare=_interrupt if interrupt else None)
        outcome = box.run(given)
        if outcome.code != (143 if interrupt else 0):
            raise RuntimeError(f"the template {name} cannot be made: {outcome}")
        if not interrupt:  # it serves no other command, and each copy would take a while
            for path in box.work.rglob("last.ckpt"):
                path.unlink()
        return box.work

    def _swept(self, name: str, *args: str) -> Path:
        return self._made(name, ["sweep", "--config=sweep.yaml", *args])


def _interrupt() -> None:
    """Makes the training of this process end with a signal when its second epoch begins."""
    begin = Progress.on_train_epoch_start

    def interrupted(self: Progress, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        begin(self, trainer, module)

    Progress.on_train_epoch_start = interrupted  # type: ignore[method-assign]


def encode(suffix: str, pixels: np.ndarray) -> bytes:
    """An image file's content."""
    return bytes(cv2.imencode(suffix, pixels)[1])
