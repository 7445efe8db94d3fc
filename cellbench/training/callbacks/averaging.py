"""Averages of the weights of a training, which are validated and scored in place of the last."""

from functools import partial
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from cellbench.artifacts.checkpoint import Average
from cellbench.data.module import CellDataModule
from cellbench.models.classifier import CellClassifier

SWA_START = 0.75
"""Share of the epochs after which stochastic weight averaging starts."""


class Averaging(WeightAveraging):
    """Lightning's weight averaging, with a start, and with batch norm statistics for swa.

    ema updates the average after each step, batch norm statistics included. swa is the mean of the
    weights after each of the last epochs; as that is another network, its statistics are computed
    anew over the training images (Izmailov et al., UAI 2018, section 3.2).

    Lightning's own `EMAWeightAveraging` has a constant decay, so that a short training would be
    scored with weights close to the random ones that it started from.

    Args:
        kind: ema or swa.
        decay: Share of the moving average that each step keeps, 0 to 1; less in the first steps.
    """

    def __init__(self, kind: Average, decay: float) -> None:
        self._kind = kind
        self._swa_start = 0  # epoch
        self._training = False
        self._due = False
        self._begun = False  # the average has been updated at least once
        moving = partial(_move, decay=decay) if kind == "ema" else None
        super().__init__(device=None, avg_fn=moving, use_buffers=kind == "ema")

    @property
    def _active(self) -> bool:
        return self._training and self._begun

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average on the device of the training."""
        if stage != "fit":
            return
        pl_module.to(trainer.strategy.root_device)  # Lightning moves it only after this
        self._training = True
        self._swa_start = int(SWA_START * (trainer.max_epochs or 1))
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average: after each step, or after the last step of each of the last epochs.

        Lightning's update at the end of an epoch would come after the validation.
        """
        epoch_ends = trainer.is_last_batch and trainer.current_epoch >= self._swa_start
        self._due = self._kind == "ema" or epoch_ends
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return True after a step that `on_train_batch_end` wants."""
        update = step_idx is not None and self._due
        self._begun = self._begun or update
        return update

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the average into the module, if there is one."""
        if not self._active:
            return
        super().on_validation_epoch_start(trainer, pl_module)
        if self._kind == "swa":
            assert isinstance(pl_module, CellClassifier)
            self._compute_statistics(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap the training's weights back."""
        if self._active:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module; later evaluations score the weights that are loaded."""
        if self._active:
            super().on_train_end(trainer, pl_module)
        self._training = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the average during the training; after it, the module holds the average."""
        if self._training:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the average."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._begun = int(checkpoint.get("averaging_state", {}).get("n_averaged", 0)) > 0

    def validated_weights(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Return the state dict that the last validation scored."""
        checkpoint: dict[str, Any] = {"state_dict": pl_module.state_dict()}
        if self._active:
            self.on_save_checkpoint(trainer, pl_module, checkpoint)
        weights: dict[str, Tensor] = checkpoint["state_dict"]
        return weights

    @torch.no_grad()
    def _compute_statistics(self, trainer: Trainer, model: CellClassifier) -> None:
        """Give the batch norms the mean statistics of the epoch's training batches.

        torch's `update_bn` would also change frozen batch norms. Dropout stays off, so that no
        random numbers are drawn.

        Args:
            trainer: The trainer.
            model: The model in evaluation mode, with the averaged weights.
        """
        names = model.norms_trained_since(self._swa_start)
        norms: list[Any] = [model.get_submodule(name) for name in names]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over the batches, with equal weights
            norm.train()
        data: CellDataModule = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.training_batches(trainer.current_epoch)
        for batch in islice(batches, int(trainer.num_training_batches)):
            moved = data.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
            with trainer.precision_plugin.forward_context():
                model.logits(moved)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
            for statistic in (norm.running_mean, norm.running_var):
                statistic.copy_(trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))


def _move(mean: Tensor, new: Tensor, n: Any, decay: float) -> Tensor:
    """Return a moving average after one more value; equal values stay the same to the bit.

    Args:
        mean: The average of `n` values.
        new: The next value.
        n: Their number.
        decay: Share of the average that is kept; less while `n` is small.
    """
    kept = torch.clamp((1 + n) / (10 + n), max=decay)
    return mean + (new - mean) * (1 - kept)
