"""One epoch of cellbench against a bare PyTorch loop of the same work, and a naive one."""

import logging
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch.nn.functional import cross_entropy

from cellbench.artifacts.checkpoint import CheckpointConfig
from cellbench.artifacts.folder import RunFolder
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.models.classifier import CellClassifier
from cellbench.models.config import ModelConfig
from cellbench.training import precision
from cellbench.training.distributed import Ranks
from cellbench.training.run import RunCallbacks
from cellbench.training.trainer import TRAINER_DEFAULTS
from tests.benchmarks.measure import apart, ratios, spread

NETWORKS = ("resnet18", "mobilenet_v2")
REPETITIONS = 5
WARM_UP, TIMED = 1, 2  # epochs a repetition


class Clock(Callback):
    """Notes when each epoch begins and when the training ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, trainer, pl_module) -> None:
        self.times.append(time.perf_counter())


def cellbench_epoch(data: SyntheticDataModule, network: str, chosen: str) -> float:
    """Seconds of an epoch with all the callbacks of a run of `fit`."""
    torch.manual_seed(0)
    model = CellClassifier(data.classes, data.input_size, ModelConfig(network))
    clock = Clock()
    with tempfile.TemporaryDirectory() as path:
        ours = RunCallbacks.make(RunFolder(Path(path)), data, CheckpointConfig(), Ranks(), "")
        defaults = TRAINER_DEFAULTS | {
            "max_epochs": WARM_UP + TIMED,
            "precision": chosen,
            "default_root_dir": path,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "accelerator": "cpu",
            "callbacks": [*ours.in_order(), clock],
        }
        Trainer(**defaults).fit(model, datamodule=data)
    return (clock.times[-1] - clock.times[WARM_UP]) / TIMED


def bare_epoch(data: SyntheticDataModule, network: str, chosen: str, *, naive: bool) -> float:
    """Seconds of an epoch of a plain loop over the same batches.

    Args:
        data: Gives the batches.
        network: The backbone.
        chosen: Lightning's name of the precision; not used where naive.
        naive: float32 in torch's default memory format, instead of the chosen precision in
            channels_last.
    """
    torch.manual_seed(0)
    model = CellClassifier(data.classes, data.input_size, ModelConfig(network))
    if naive:
        model.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=None if naive else True)
    mixed = chosen == "bf16-mixed" and not naive
    train, val = data.train_dataloader(), data.val_dataloader()

    def batches(loader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in loader:
            yield batch.images.contiguous() if naive else batch.images, batch.labels

    def forward(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            return model(images).float()

    begun = 0.0
    for epoch in range(WARM_UP + TIMED):
        if epoch == WARM_UP:
            begun = time.perf_counter()
        train.sampler.set_epoch(epoch)
        model.train()
        for images, labels in batches(train):
            optimizer.zero_grad()
            cross_entropy(forward(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for images, labels in batches(val):
                logits = forward(images)
                cross_entropy(logits, labels).item()
                (logits.argmax(dim=1) == labels).sum().item()
    return (time.perf_counter() - begun) / TIMED


def input_path(data: SyntheticDataModule) -> float:
    """Seconds that the batches of an epoch take, without a network."""
    train, val = data.train_dataloader(), data.val_dataloader()
    begun = time.perf_counter()
    for loader in (train, val):
        for _ in loader:
            pass
    return time.perf_counter() - begun


def _run(network: str, chosen: str, loop: str) -> tuple[float, float]:
    """Seconds of an epoch of one loop, and the peak MiB; called in a process of its own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    data = SyntheticDataModule(samples=300, image_size=128, batch_size=16, augment="flips")
    data.setup("fit")
    if loop == "cellbench":
        seconds = cellbench_epoch(data, network, chosen)
    elif loop == "input":
        seconds = input_path(data)
    else:
        seconds = bare_epoch(data, network, chosen, naive=loop == "naive")
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its figure."""
    loops = ("cellbench", "bare", "naive", "input")
    for network in NETWORKS:
        model = CellClassifier(("a", "b"), (128, 128), ModelConfig(network))
        chosen, _ = precision.choose("cpu", grouped=model.grouped)
        results = [
            {loop: apart(_run, network, chosen, loop) for loop in loops} for _ in range(REPETITIONS)
        ]
        seconds = {loop: [result[loop][0] for result in results] for loop in loops}
        memory = {loop: [result[loop][1] for result in results] for loop in loops}
        epoch = f"epoch, {network}, 300 images at 128 px"
        bare = f"a bare loop ({chosen}, channels_last)"
        yield f"{epoch}: against {bare}", ratios(seconds["cellbench"], seconds["bare"])
        yield (
            f"{epoch}: against a naive float32 loop",
            ratios(seconds["cellbench"], seconds["naive"]),
        )
        share = ratios(seconds["input"], seconds["cellbench"])
        yield f"{epoch}: share of the input path (`flips`)", share
        peak = ratios(memory["cellbench"], memory["bare"])
        what = f"{epoch}: peak memory, MiB; against {bare}"
        yield what, f"{spread(memory['cellbench'], 0)}; {peak}"
