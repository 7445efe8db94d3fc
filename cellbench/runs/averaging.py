"""Averages of a training's weights and statistics, scored in the place of the last ones."""

from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from cellbench.data.module import CellDataModule
from cellbench.models.classifier import CellClassifier

Average = Literal["none", "ema", "swa"]

SWA_BEGINS = 0.75
"""The share of the epochs after which stochastic weight averaging begins."""


class Averaging(WeightAveraging):
    """Lightning's weight averaging, told when to begin and how to treat batch norm's statistics.

    ema averages the statistics like the weights: both follow the training closely. The mean of the
    weights of several epochs is another network, so swa computes its statistics anew over the
    training images (Izmailov et al., UAI 2018, section 3.2).

    Args:
        kind: ema or swa.
        decay: How slowly a moving average follows.
    """

    def __init__(self, kind: Average, decay: float) -> None:
        self._kind = kind
        moving = partial(_moving, decay=decay)
        super().__init__(avg_fn=moving if kind == "ema" else None, use_buffers=kind == "ema")

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
        if self._kind == "swa" and self._due:
            assert isinstance(pl_module, CellClassifier)
            self._compute_statistics(trainer, pl_module)

    @torch.no_grad()
    def _compute_statistics(self, trainer: Trainer, model: CellClassifier) -> None:
        """Give the average's batch norms the mean statistics of the epoch's training batches.

        torch's `update_bn` would change what is frozen as well. Dropout is off, so that no random
        number is drawn that the training would miss.
        """
        assert self._average_model is not None
        average: Any = self._average_model.module
        norms: list[Any] = [
            average.get_submodule(name) for name in model.norms_trained_since(self._begins)
        ]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        average.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches, each counted alike
            norm.train()
        data: CellDataModule = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.training_batches(trainer.current_epoch)
        for batch in islice(batches, int(trainer.num_training_batches)):
            moved = data.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
            with trainer.precision_plugin.forward_context():
                average.logits(moved)
        average.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            for statistic in (norm.running_mean, norm.running_var):
                statistic.copy_(trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))

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
