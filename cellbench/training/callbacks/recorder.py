"""Callbacks that record the course of a run: history.csv, and the predicted probabilities."""

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from cellbench.artifacts.folder import write_text
from cellbench.training.distributed import Ranks
from cellbench.utils.errors import UserError


class History(Callback):
    """Callback that writes history.csv, one row per epoch, and ends a diverged training.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, float]] = []
        self._started, self._lr = 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.rows = list(state_dict["rows"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._started = time.perf_counter()

    on_train_start = on_train_epoch_start  # a resumed epoch has no start of its own

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Record the learning rate, which a new phase sets only at the start of its first step."""
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row; the epoch has been validated by now.

        Raises:
            UserError: The training loss is not finite.
        """
        row: dict[str, float] = {"epoch": trainer.current_epoch, "lr": self._lr}
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row |= {name: logged[name] for name in sorted(logged) if "/" in name}
        row["seconds"] = round(time.perf_counter() - self._started, 3)
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()
        if not math.isfinite(row["train/loss"]):
            raise UserError(
                f"the training diverged: train/loss is {row['train/loss']} in epoch "
                f"{trainer.current_epoch}; lower model.lr (it was {self._lr:g}), or use "
                "trainer.precision: 32-true"
            )

    def _write(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self._path, text.getvalue())


class Collector(Callback):
    """Callback that collects the probabilities of the last evaluation of a split.

    Args:
        ranks: Processes that share the split.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._positions: list[Tensor] = []
        self._probabilities: list[Tensor] = []

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities of all processes, in the order of the table.

        Returns:
            The samples' positions in the table, (n,), and their probabilities, (n, classes).
        """
        own = (
            torch.cat(self._positions).cpu().numpy(),
            torch.cat(self._probabilities).cpu().numpy(),
        )
        shares = self._ranks.gather(own)
        positions = np.concatenate([share[0] for share in shares])
        probabilities = np.concatenate([share[1] for share in shares])
        order = np.argsort(positions)
        return positions[order], probabilities[order]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the last evaluation."""
        self._positions, self._probabilities = [], []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch."""
        self._positions.append(batch.positions)
        self._probabilities.append(outputs)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
