"""Callbacks that note what a run says of itself: history.csv, and the probabilities."""

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

from cellbench.errors import UserError
from cellbench.runs.folder import write_text
from cellbench.runs.ranks import Ranks


class History(Callback):
    """Writes history.csv, a row an epoch, and stops a training that has diverged.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, float]] = []
        self._begun, self._lr = 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, for a training that goes on from a checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on behind the checkpoint's rows."""
        self.rows = list(state_dict["rows"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the epoch's clock."""
        self._begun = time.perf_counter()

    on_train_start = on_train_epoch_start  # an epoch gone on with has no start of its own

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Notes the learning rate, which a phase may have set as the step began."""
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the epoch's row; the validation has been done by now.

        Raises:
            UserError: The loss is no number any more.
        """
        row: dict[str, float] = {"epoch": trainer.current_epoch, "lr": self._lr}
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row |= {name: logged[name] for name in sorted(logged) if "/" in name}
        row["seconds"] = round(time.perf_counter() - self._begun, 3)
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
    """Keeps the probabilities of the last pass over an evaluation split.

    Args:
        ranks: The processes that have each a share of the split.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._positions: list[Tensor] = []
        self._probabilities: list[Tensor] = []

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Hands over what all processes have kept, in the table's order.

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
        """Forgets the pass before."""
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
        """Keeps a batch."""
        self._positions.append(batch.positions)
        self._probabilities.append(outputs)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
