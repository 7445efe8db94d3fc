"""Callback that keeps the weights of the best epoch."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from cellbench.artifacts.checkpoint import CheckpointConfig, WholeCheckpointIO
from cellbench.models.classifier import CellClassifier
from cellbench.training.callbacks.averaging import Averaging
from cellbench.training.callbacks.recorder import History
from cellbench.training.distributed import Ranks
from cellbench.utils.terminal import say


class BestEpoch(Callback):
    """Keeps the weights of the best epoch in memory, and writes best.ckpt before every last.ckpt.

    Writing the file for every better epoch could take longer than the epochs, and a killed run goes
    on from last.ckpt anyway.

    Args:
        path: The file.
        config: Choice of the best epoch.
        history: The epochs so far.
        averaging: Average of the weights; None if they are not averaged.
        ranks: Processes of the run; the first of them writes.
    """

    def __init__(
        self,
        path: Path,
        config: CheckpointConfig,
        history: History,
        averaging: Averaging | None,
        ranks: Ranks,
    ) -> None:
        self._path = path
        self._config = config
        self._history = history
        self._averaging = averaging
        self._ranks = ranks
        self._unwritten: dict[str, Any] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights if they are the best so far."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        monitor = self._config.monitor
        values = [row[monitor] for row in self._history.rows]
        values.append(float(trainer.callback_metrics[monitor]))
        if self._ranks.first and self._config.best(values) == len(values) - 1:
            # Weights that no phase trains need not be copied.
            groups = [group for each in trainer.optimizers for group in each.param_groups]
            learns = {id(p) for group in groups for p in group["params"]}
            frozen = {name for name, p in pl_module.named_parameters() if id(p) not in learns}
            weights = pl_module.state_dict()
            if self._averaging is not None:
                weights = self._averaging.validated_weights(trainer, pl_module)
            kept = {k: v if k in frozen else v.to("cpu", copy=True) for k, v in weights.items()}
            self._unwritten = {"state_dict": kept, "epoch": trainer.current_epoch}
            pl_module.on_save_checkpoint(self._unwritten)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop a training that has not improved for too long."""
        values = [row[self._config.monitor] for row in self._history.rows]
        assert isinstance(pl_module, CellClassifier)
        patience = self._config.patience
        waited = len(values) - max(self._config.best(values) + 1, pl_module.last_phase)
        if patience is not None and waited >= patience:
            trainer.should_stop = True
            if trainer.is_global_zero and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
                say(f"stops after epoch {trainer.current_epoch}: {patience} without a better one")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the weights."""
        self._write()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write the weights, so that they are not lost."""
        self._write()

    def _write(self) -> None:
        if self._unwritten is not None:
            WholeCheckpointIO().save_checkpoint(self._unwritten, self._path)
            self._unwritten = None
