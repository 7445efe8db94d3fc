"""What it costs to save a training's state, and to go on from it."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cellbench.artifacts.checkpoint import CheckpointConfig
from cellbench.models.classifier import CellClassifier
from cellbench.models.config import ModelConfig
from cellbench.training.callbacks.progress import Progress
from tests.benchmarks.measure import apart, quietly, ratios, spread

REPETITIONS = 5
OPTIONS = [
    "--data.samples=300",
    "--data.image_size=128",
    "--model.backbone=resnet18",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    "--name=run",
]


class Stop(Exception):
    """Ends a command at its first step."""


def until_first_step(*args: str) -> float:
    """Seconds from the command to its first training step."""
    begun, times = time.perf_counter(), []

    def noted(self, *args) -> None:
        times.append(time.perf_counter() - begun)
        raise Stop

    before = CellClassifier.training_step
    CellClassifier.training_step = noted
    try:
        quietly("fit", *args)
    except Stop:
        pass
    finally:
        CellClassifier.training_step = before
    return times[0]


def save_and_resume(folder: str) -> tuple[float, float, float, float]:
    """Seconds of a step and of a save; and until the first step, afresh and going on."""
    save, saves, steps = Progress._save_in_time, [], []
    step = CellClassifier.on_train_batch_end

    def timed(self, trainer, batch):
        begun = time.perf_counter()
        save(self, trainer, batch)
        saves.append(time.perf_counter() - begun)

    def terminated(self, *args):
        steps.append(time.perf_counter())
        if len(steps) == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *args)

    Progress._save_in_time, CellClassifier.on_train_batch_end = timed, terminated
    runs = f"--runs={folder}"
    assert quietly("fit", *OPTIONS, runs, "--checkpoint.every=0") == 128 + signal.SIGTERM
    Progress._save_in_time, CellClassifier.on_train_batch_end = save, step
    (run,) = Path(folder, "run").iterdir()
    # The first of each pays for what every process pays once.
    going_on = [until_first_step("--resume", str(run)) for _ in range(2)][1]
    afresh = until_first_step(*OPTIONS, runs)
    each = (steps[-1] - steps[2]) / (len(steps) - 3)
    saved = sum(saves[3:]) / len(saves[3:])
    return each - saved, saved, afresh, going_on


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its figure."""
    results = []
    for _ in range(REPETITIONS):
        with tempfile.TemporaryDirectory() as folder:
            results.append(apart(save_and_resume, folder))
    step, save, afresh, going_on = zip(*results, strict=True)
    model = CellClassifier(("a", "b"), (128, 128), ModelConfig("resnet18"))
    size = 12 * sum(p.numel() for p in model.parameters()) / 2**20  # weights and Adam's moments
    what = f"a save of last.ckpt (ResNet-18 and Adam, {size:,.0f} MiB)"
    yield f"{what}: against a step of 16 images at 128 px", ratios(save, step)
    every = CheckpointConfig().every
    share = [100 * value / every for value in save]
    yield f"  share of the time at the default of {every:g} s, %", spread(share)
    yield "from the command to the first step: going on against afresh", ratios(going_on, afresh)
