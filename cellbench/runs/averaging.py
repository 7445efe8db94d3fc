"""Averages of a training's weights and statistics, scored in the place of the last ones."""

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

Average = Literal["none", "ema", "swa"]

SWA_BEGINS = 0.75
"""The share of the epochs after which stochastic weight averaging begins."""


class Averaging(WeightAveraging):
    """Lightning's, told when to begin, and not to validate an average of nothing.

    Args:
        kind: ema or swa.
        decay: How slowly a moving average follows.
    """

    def __init__(self, kind: Average, decay: float) -> None:
        self._kind = kind
        moving = partial(_moving, decay=decay)
        super().__init__(avg_fn=moving if kind == "ema" else None)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the average on the device of the training, which the module is not yet on."""
        self._device = trainer.strategy.root_device
        self._begins = int(SWA_BEGINS * (trainer.max_epochs or 1))
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Averages after each step, or each epoch of the last quarter before it is scored."""
        ends = trainer.is_last_batch and trainer.current_epoch >= self._begins
        self._due = self._kind == "ema" or ends
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether `on_train_batch_end` wants it."""
        return step_idx is not None and self._due

    @property
    def _begun(self) -> bool:
        return self._average_model is not None and bool(self._average_model.n_averaged > 0)

    def scored(self, pl_module: LightningModule) -> Any:
        """The module whose weights were validated last."""
        assert self._average_model is not None
        return self._average_model.module if self._begun else pl_module

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the average, where there is one."""
        if self._begun:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the training its weights back."""
        if self._begun:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the module, where there is one."""
        if self._begun:
            super().on_train_end(trainer, pl_module)
        self._average_model = None  # what follows scores what is loaded


def _moving(mean: Tensor, new: Tensor, n: Any, decay: float) -> Tensor:
    # With few steps behind it, a slow average would still be the random beginning. What is frozen
    # stays as it is, to the bit.
    share = torch.clamp((1 + n) / (10 + n), max=decay)
    return mean + (new - mean) * (1 - share)
