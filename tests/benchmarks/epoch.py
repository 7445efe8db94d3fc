"""One epoch of cellbench against a bare PyTorch loop of the same work, and a naive one."""

import logging
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from lightning.pytorch import Callback, Trainer
from torch.nn.functional import cross_entropy

from cellbench.cli.engine import TRAINER_DEFAULTS
from cellbench.data.synthetic import SyntheticDataModule
from cellbench.models.classifier import CellClassifier
from cellbench.runs import precision
from cellbench.runs.recorder import Collector, History

NETWORKS = ("resnet18", "mobilenet_v2")
REPETITIONS = 7
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
    """Seconds of an epoch as `fit` runs it, but for the writing of the best checkpoint."""
    torch.manual_seed(0)
    model = CellClassifier(data.classes, data.input_size, backbone=network)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        defaults = TRAINER_DEFAULTS | {
            "max_epochs": WARM_UP + TIMED,
            "precision": chosen,
            "default_root_dir": folder,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "accelerator": "cpu",
            "callbacks": [History(Path(folder, "history.csv")), Collector(), clock],
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
    model = CellClassifier(data.classes, data.input_size, backbone=network)
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


def _seconds(network: str, chosen: str, loop: str) -> float:
    """Seconds of an epoch of one loop; called in a process of its own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    data = SyntheticDataModule(samples=300, image_size=128, batch_size=16, augment="flips")
    data.setup("fit")
    if loop == "cellbench":
        return cellbench_epoch(data, network, chosen)
    return bare_epoch(data, network, chosen, naive=loop == "naive")


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its ratio with the spread.

    Every measurement has a fresh process, as its user would: what the allocator has learnt from
    one loop changes the next one's time by up to 40 %.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for network in NETWORKS:
        model = CellClassifier(("a", "b"), (128, 128), backbone=network)
        chosen, _ = precision.choose("cpu", grouped=model.grouped)
        bare, naive = [], []
        for _ in range(REPETITIONS):
            seconds = {}
            for loop in ("cellbench", "bare", "naive"):
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    seconds[loop] = pool.submit(_seconds, network, chosen, loop).result()
            bare.append(seconds["cellbench"] / seconds["bare"])
            naive.append(seconds["cellbench"] / seconds["naive"])
        bare_name = f"bare loop, {chosen}, channels_last"
        for what, ratios in ((bare_name, bare), ("naive loop, float32", naive)):
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            yield f"epoch, {network}, against the {what}", f"{median(ratios):.2f} ({spread})"
