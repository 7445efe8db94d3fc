"""How far a training has come: saved now and then, so that it can go on exactly from there."""

import hashlib
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import Metric, MetricCollection

from cellbench.data.module import CellDataModule
from cellbench.errors import Interrupted, UserError
from cellbench.runs.folder import RunFolder
from cellbench.runs.ranks import Ranks

# Ctrl-C, a scheduler's end, and what SLURM sends before it with --signal=USR1@60.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


TOGETHER = 1.0
"""Seconds within which two signals are one: a scheduler's own, and its sweep's or launcher's."""


class EndAtSignal(Callback):
    """Ends a command at a signal, with 128 more as its exit code.

    Lightning would end an evaluation or a prediction that is terminated with exit code 0, so that
    the signals are taken back from it whenever it begins.

    Args:
        hint: What to do then.
    """

    def __init__(self, hint: str) -> None:
        self._hint = hint

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handles signals as long as it lasts."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._watch()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _watch(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        raise self._interrupted(signum)

    def _interrupted(self, signum: int) -> Interrupted:
        return Interrupted(signum, f"{signal.Signals(signum).name}; {self._hint}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back."""
        self._watch()

    on_test_start = on_validation_start
    on_predict_start = on_validation_start


class Progress(EndAtSignal):
    """Saves last.ckpt at a time interval, and makes what follows a function of the step alone.

    A checkpoint is taken between two steps, or before an epoch's first: Lightning goes on from both
    as if nothing had happened, but for torch's random numbers, the order of the samples and the
    metrics of an epoch that has begun, which are seen to here.

    Args:
        folder: Where last.ckpt lies.
        data: Told where to begin when a training goes on.
        every: Seconds between two checkpoints.
        ranks: The processes that must stop and save after the same step.
        hint: What to do after a signal.
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
        """Training ends after its step and saves; anything else, and the second time, at once."""
        again = self._signum is not None and time.monotonic() - self._signalled > TOGETHER
        if not self._in_training or again:
            raise self._interrupted(signum)
        if self._signum is None:
            self._signum, self._signalled = signum, time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back."""
        self._watch()
        self._in_training = True
        self._saved = time.monotonic()
        # Lightning would ask all devices before every step whether it has had a signal; it has not.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def save_end(self, trainer: Trainer) -> None:
        """Saves the end of the training, which may be before its last epoch (early stopping).

        Raises:
            Interrupted: A signal came in the training's last step, or after it.
        """
        self._ended = True
        trainer.save_checkpoint(self._folder.last)
        self._in_training = False
        agreed = self._ranks.greatest(self._signum or 0)
        if agreed:
            raise self._interrupted(agreed)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves between two epochs, where it is time."""
        self._save_in_time(trainer, 0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Makes dropout and the like a function of (seed, step): the same after a restart."""
        step = f"{self._data.plan.seed} {trainer.current_epoch} {batch_idx}"
        step += f" {self._ranks.rank}" if self._ranks.rank else ""
        digest = hashlib.blake2b(step.encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little")
        # torch.manual_seed notes a traceback for every kind of device that is not there: 1 ms.
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves between two steps, where it is time; an epoch's last step leaves it to the next."""
        done = batch_idx + 1
        # Between the batches of one step there are gradients, which no checkpoint holds.
        if done < trainer.num_training_batches and not done % trainer.accumulate_grad_batches:
            self._save_in_time(trainer, done)

    def _save_in_time(self, trainer: Trainer, batch: int) -> None:
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
        """Adds where the training is, and the metrics of the epoch that has begun."""
        if self._batch == 0:
            # Lightning counts an epoch's batches from zero only once its loop runs: gone on with
            # as it stands, the epoch would be taken for finished.
            batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            batches["current"] = dict.fromkeys(batches["current"], 0)
            batches["is_last_batch"] = False
        checkpoint["progress"] = {
            "epoch": trainer.current_epoch,
            "batch": self._batch or 0,
            "ended": self._ended,
            "metrics": self._ranks.gather(
                {
                    name: {
                        "count": metric.update_count,
                        "state": move_data_to_device(dict(metric.metric_state), "cpu"),
                    }
                    for name, metric in _train_metrics(pl_module)
                }
            ),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tells the data where to begin, and gives the metrics back what they had counted.

        Raises:
            UserError: The run was begun on another number of devices.
            ValueError: Where the training is, is no place in it.
        """
        saved = checkpoint["progress"]
        if not all(isinstance(saved[key], int) and saved[key] >= 0 for key in ("epoch", "batch")):
            raise ValueError("no epoch and step to go on from")
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
            metric._update_count = counted[name]["count"]


def _train_metrics(module: LightningModule) -> Iterator[tuple[str, Metric]]:
    """The metrics that a training epoch fills, each with a name."""
    for name, child in module.named_children():
        if name.startswith("train_") and isinstance(child, MetricCollection):
            for key, metric in child.items(copy_state=True):
                yield f"{name}.{key}", metric
        elif name.startswith("train_") and isinstance(child, Metric):
            yield name, child
