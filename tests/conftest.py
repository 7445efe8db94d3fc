"""Look-alikes of the datasets, drawn into temporary folders, and what several tests use."""

import os
import shutil
from pathlib import Path

# Tests run two at once: threads of their own would wait for each other. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest
import yaml

from cellbench.__main__ import main

pytest_plugins = ["tests.lookalikes"]

SHARED = Path(os.environ.get("CELLBENCH_SHARED", Path(__file__).parents[2] / "shared" / "data"))

TINY = [
    "--data.image_size=32",
    "--model.backbone=small_cnn",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
]
"""Options that make any run take a second."""

QUICK = [*TINY, "--figures=false"]
"""Those of fit, and no figures, whose drawing takes as long as the training."""


SWEEP = {
    "experiment": "tiny.yaml",
    "sampler": "grid",
    "space": {"data.view": ["raw", "masked"]},
}
"""A sweep's file, of two trials."""

EXPERIMENT = {
    "data": {
        "class_path": "SyntheticDataModule",
        "init_args": {"samples": 80, "slides": 40, "image_size": 32},
    },
    "model": {"backbone": "small_cnn"},
    "trainer": {"max_epochs": 1, "limit_train_batches": 1},
}
"""Its experiment: a run of a second."""


def last_of_each(args):
    """Drops each --option=value that is given again later, as a shell's command line must."""
    last = {argument.partition("=")[0]: i for i, argument in enumerate(args)}

    def repeated(i, name):
        return name.startswith("--") and not name.endswith("+") and last[name] != i

    return [a for i, a in enumerate(args) if "=" not in a or not repeated(i, a.partition("=")[0])]


def few_cells(args, samples=80):
    """Options that make the drawn cells few, unless the others name a dataset or a file."""
    if any("--data=" in arg or "--config" in arg for arg in args):
        return []
    return [f"--data.samples={samples}", "--data.slides=40"]


LONGEST = (
    "test_fuzz.py",
    "test_devices.py",
    "test_sweep_kills.py",
    "test_sweep_postgresql.py",
    "test_resume.py",
)
"""Files with tests of many seconds, which run first: one at the end would leave a core idle."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no real images at {SHARED}"))


@pytest.fixture(autouse=True)
def _quiet_and_offline(monkeypatch, tmp_path_factory):
    """No test reaches the network: every request goes to a port that nothing listens on."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


_DRAWN = {}


@pytest.fixture
def draw_once(monkeypatch):
    """Lets a cell be drawn by the first test that needs it, and by no other."""
    from cellbench.data.datasets.synthetic import SyntheticDataModule  # it imports torch

    draw = SyntheticDataModule._draw

    def look_up(self, sample):
        key = (self.draw_seed, self.shortcut, sample)
        if key not in _DRAWN:
            _DRAWN[key] = draw(self, sample)
        return tuple(array.copy() for array in _DRAWN[key])

    monkeypatch.setattr(SyntheticDataModule, "_draw", look_up)


@pytest.fixture
def fit(tmp_path, draw_once):
    """Runs fit in-process; returns the run's folder."""

    def run(*args, name="tiny", runs=tmp_path / "runs", samples=80):
        options = [*few_cells(args, samples), *QUICK, *args, f"--runs={runs}", f"--name={name}"]
        assert main(["fit", *options]) == 0
        return max((Path(runs) / name).iterdir(), key=lambda path: path.stat().st_mtime_ns)

    return run


@pytest.fixture(scope="session")
def _shared_run(tmp_path_factory):
    """A finished run, which is trained once for all tests."""
    runs = tmp_path_factory.mktemp("shared")
    assert main(["fit", *few_cells([]), *QUICK, f"--runs={runs}", "--name=tiny"]) == 0
    (run,) = (runs / "tiny").iterdir()
    return run


@pytest.fixture
def run(_shared_run, tmp_path, draw_once):
    """The folder of a finished run: a copy that the test may change."""
    return shutil.copytree(_shared_run, tmp_path / "runs" / "tiny" / _shared_run.name)


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail; returns its one line."""

    def run(*args):
        capsys.readouterr()
        assert main(list(args)) == 2
        lines = [
            line for line in capsys.readouterr().err.splitlines() if "cellbench: error" in line
        ]
        assert len(lines) == 1
        return lines[0].removeprefix("cellbench: error: ")

    return run


@pytest.fixture
def sweep_file(tmp_path):
    """Writes a sweep's file with some keys changed; returns the command line."""

    def write(name="sweep", **changes):
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))
        path = tmp_path / f"{name}.yaml"
        given = {key: value for key, value in (SWEEP | changes).items() if value is not None}
        path.write_text(yaml.safe_dump(given, sort_keys=False))
        return ["sweep", f"--config={path}", f"--runs={tmp_path / 'runs'}"]

    return write


def draw_debris(seed):
    """Purple blots of any shape, among which there is no cell."""
    rng = np.random.default_rng(seed)
    blots = cv2.GaussianBlur(rng.normal(0, 1, (200, 200)), (0, 0), 10) > 0.02
    image = np.full((200, 200, 3), (230, 228, 226), np.float32)
    image[blots] = (110, 70, 165)
    noisy = cv2.GaussianBlur(image, (0, 0), 1) + rng.normal(0, 3, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def draw_cell(rng, label, size):
    """An RGB image and its mask (0, 128, 255): a disc whose colour and nucleus tell the class."""
    image = np.full((size, size, 3), (230, 220, 222), np.uint8)
    mask = np.zeros((size, size), np.uint8)
    centre = (size // 2 + rng.integers(-3, 4), size // 2 + rng.integers(-3, 4))
    cv2.circle(image, centre, size // 4, (200, 150 + 20 * label, 180), -1)
    cv2.circle(mask, centre, size // 4, 128, -1)
    cv2.circle(image, centre, size // 10 + 2 * label, (90, 60, 140), -1)
    cv2.circle(mask, centre, size // 10 + 2 * label, 255, -1)
    noise = rng.normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), mask


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def replace_masks(root):
    """Moves the cell in every mask below `masks`."""
    for path in (root / "masks").rglob("*.png"):
        write_image(path, np.roll(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), 9, axis=0))


@pytest.fixture
def hpv_root(tmp_path):
    """The hpv layout: 50 cells of four classes and one basophil, CRLF, ids without zeros."""
    rng, root = np.random.default_rng(0), tmp_path / "hpv"
    labels = [1] * 20 + [2] * 12 + [3] * 10 + [4] * 8 + [5]
    rows = ["image ID,class label"]
    for number, label in enumerate(labels, start=1):
        image, mask = draw_cell(rng, label, 120 if number % 3 else 90)
        write_image(root / "Dataset 1" / f"{number:03d}.bmp", image)
        write_image(root / "Dataset 1" / f"{number:03d}.png", mask)
        rows.append(f"{number},{label}")
    (root / "Class Labels of Dataset 1.csv").write_bytes(("\r\n".join(rows) + "\r\n").encode())
    return root


@pytest.fixture
def folder_root(tmp_path):
    """Class folders with masks beside them."""
    rng, root = np.random.default_rng(1), tmp_path / "cells"
    for label, name in enumerate(("blast", "normal cell")):
        for number in range(20):
            image, mask = draw_cell(rng, 2 * label, 48)
            write_image(root / name / f"{number} ({label}).jpg", image)
            write_image(root / "masks" / name / f"{number} ({label}).png", mask)
    return root
