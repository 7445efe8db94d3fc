"""Checkpoints of an unfinished training."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from torchmetrics import Metric, MetricCollection

from cellbench.artifacts.folder import RunFolder
from cellbench.data.module import CellDataModule
from cellbench.training.distributed import Ranks
from cellbench.training.signals import SAME_SIGNAL_S, SIGNALS, EndAtSignal
from cellbench.utils.errors import UserError


class Progress(EndAtSignal):
    """Saves last.ckpt at intervals, such that a resumed training has the same bits.

    A checkpoint is saved between two steps, or before an epoch's first step. Lightning resumes from
    both exactly, except for torch's random numbers, the order of the samples, and the metrics of
    an epoch in progress. This callback takes care of those.

    Args:
        folder: The run's folder.
        data: The data module, which is told the epoch and batch to start from.
        every: Seconds between two checkpoints.
        ranks: Processes of the run, which have to stop and save after the same step.
        hint: Advice that is shown after a signal.
    """

    def __init__(
        self, folder: RunFolder, data: CellDataModule, every: float, ranks: Ranks, hint: str
    ) -> None:
        super().__init__(hint)
        self._folder = folder
        self._data = data
        self._every = every
        self._ranks = ranks
        self._saved = time.monotonic()
        self._signum: int | None = None
        self._signalled = 0.0
        self._in_training = False
        self._ended = False
        self._batch: int | None = None

    @property
    def began(self) -> bool:
        """True once the training's steps have begun, after any checkpoint has been restored."""
        return self._in_training

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        """End a training after its step; end anything else, or at a second signal, at once."""
        again = self._signum is not None and time.monotonic() - self._signalled > SAME_SIGNAL_S
        if not self._in_training or again:
            raise self._interrupted(signum)
        if self._signum is None:
            self._signum, self._signalled = signum, time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers."""
        self._watch()
        self._in_training = True
        self._saved = time.monotonic()
        _skip_lightnings_broadcast(trainer)

    def save_end(self, trainer: Trainer) -> None:
        """Save the end of the training, which may be before its last epoch (early stopping).

        Raises:
            Interrupted: A signal came in the last step of the training, or after it.
        """
        self._ended = True
        trainer.save_checkpoint(self._folder.last)
        self._in_training = False
        agreed = self._ranks.greatest(self._signum or 0)
        if agreed:
            raise self._interrupted(agreed)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save between two epochs, if it is time."""
        self._save_in_time(trainer, 0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch by (seed, epoch, batch, rank), so that dropout is the same after a resume."""
        step = f"{self._data.plan.seed} {trainer.current_epoch} {batch_idx}"
        step += f" {self._ranks.rank}" if self._ranks.rank else ""
        digest = hashlib.blake2b(step.encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little")
        # torch.manual_seed formats a traceback for every kind of device that is not there: 1 ms.
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between two steps, if it is time; after an epoch's last step the next epoch does."""
        done = batch_idx + 1
        # Between the batches of a step there are accumulated gradients, which no checkpoint has.
        if done < trainer.num_training_batches and not done % trainer.accumulate_grad_batches:
            self._save_in_time(trainer, done)

    def _save_in_time(self, trainer: Trainer, batch: int) -> None:
        """Save a checkpoint if it is due on any rank, or if a signal came.

        Args:
            trainer: The trainer.
            batch: Number of batches of the epoch that are done.

        Raises:
            Interrupted: A signal came.
        """
        due = self._ranks.first and time.monotonic() - self._saved >= self._every
        agreed = self._ranks.greatest(self._signum or int(due))  # 1 is no signal of ours
        if not agreed:
            return
        if trainer.global_step:
            self._batch = batch
            trainer.save_checkpoint(self._folder.last)
            self._batch = None
        self._saved = time.monotonic()
        if agreed in SIGNALS:
            raise self._interrupted(agreed)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the position in the training, and the metrics of the epoch in progress."""
        if self._batch == 0:
            _count_batches_from_zero(checkpoint)
        checkpoint["progress"] = {
            "epoch": trainer.current_epoch,
            "batch": self._batch or 0,
            "ended": self._ended,
            "metrics": self._ranks.gather(
                {
                    name: {"state": move_data_to_device(dict(metric.metric_state), "cpu")}
                    for name, metric in _train_metrics(pl_module)
                }
            ),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the position in the data, and restore the metrics of the epoch in progress.

        Raises:
            UserError: The run was begun on another number of devices.
            ValueError: The position is not one of a training.
        """
        saved = checkpoint["progress"]
        if not all(isinstance(saved[key], int) and saved[key] >= 0 for key in ("epoch", "batch")):
            raise ValueError("there is no epoch and step to go on from")
        if len(saved["metrics"]) != self._ranks.size:
            raise UserError(
                f"--resume: the run was begun on {len(saved['metrics'])} devices, and here are "
                f"{self._ranks.size}; go on with as many"
            )
        trainer.should_stop = saved["ended"]
        self._data.plan = replace(self._data.plan, epoch=saved["epoch"], batch=saved["batch"])
        if self._ranks.first:
            print(f"goes on from epoch {saved['epoch']}, step {saved['batch']}", flush=True)
        counted = saved["metrics"][self._ranks.rank]
        for name, metric in _train_metrics(pl_module):
            for key, value in counted[name]["state"].items():
                setattr(metric, key, value.to(pl_module.device))


def _skip_lightnings_broadcast(trainer: Trainer) -> None:
    """Keep Lightning from asking all devices before every step whether it has had a signal.

    It has not, as its handlers are replaced. The method is private, and no option turns it off.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def _count_batches_from_zero(checkpoint: dict[str, Any]) -> None:
    """Set the number of finished batches to zero, in a checkpoint before an epoch's first batch.

    Lightning itself does so only after the hook that saves, and would take a resumed epoch for
    finished. The layout of a checkpoint's loops is not documented; the public progress of the
    live loop must not be changed in the middle of a training.
    """
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False


def _train_metrics(module: LightningModule) -> Iterator[tuple[str, Metric]]:
    """Yield the metrics that a training epoch updates, each with a name."""
    for name, child in module.named_children():
        if name.startswith("train_") and isinstance(child, MetricCollection):
            for key, metric in child.items(copy_state=True):
                yield f"{name}.{key}", metric
        elif name.startswith("train_") and isinstance(child, Metric):
            yield name, child
