"""How probable a training found each of its labels, epoch by epoch."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cellbench.data.module import CellDataModule
from cellbench.errors import UserError
from cellbench.foreign import open_text
from cellbench.runs.folder import write_text
from cellbench.runs.ranks import Ranks


class LabelHistory(Callback):
    """Writes label_history.csv: a row a training image, its label, a column an epoch.

    The probability is that of the step that trained on the image, the last one of an epoch.

    Args:
        path: The file.
        data: The data module.
        ranks: The processes that have each a share of every batch; the first of them writes.
    """

    def __init__(self, path: Path, data: CellDataModule, ranks: Ranks) -> None:
        self._path, self._data, self._ranks = path, data, ranks
        self._epochs: list[torch.Tensor] = []
        self._current: torch.Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far, and what all processes have seen of the one that has begun."""
        current = None if self._current is None else self._gathered()
        return {"epochs": self._epochs, "current": current}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on behind the checkpoint's."""
        self._epochs, self._current = list(state_dict["epochs"]), state_dict["current"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes a step."""
        if self._current is None:
            self._current = torch.full((len(self._data.table),), torch.nan)
        own = outputs["logits"].softmax(dim=1).gather(1, batch.labels[:, None])[:, 0]
        self._current[batch.positions.cpu()] = own.cpu()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the processes' shares together, and writes the file."""
        self._epochs.append(self._gathered())
        self._current = None
        if not self._ranks.first:
            return
        positions, labels = self._data.training.positions, self._data.training.all_labels
        rows = torch.stack(self._epochs, dim=1)[positions].tolist()
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", "label", *range(len(self._epochs))])
        for position, row in zip(positions, rows, strict=True):
            sample, label = self._data.table.samples[position], self._data.classes[labels[position]]
            writer.writerow([sample.id, label, *(f"{p:.6f}" for p in row)])
        write_text(self._path, text.getvalue())

    def _gathered(self) -> torch.Tensor:
        assert self._current is not None
        return torch.stack(self._ranks.gather(self._current)).nanmean(dim=0)


def read_label_history(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Read it back.

    Returns:
        The ids, their labels, and the probabilities of these, (n, epochs).

    Raises:
        UserError: It cannot be read.
    """
    try:
        with open_text(path) as file:
            _, *rows = csv.reader(file)
        probabilities = np.array([row[2:] for row in rows], dtype=np.float64)
        if not rows or min(map(len, rows)) < 3:
            raise ValueError("rows are missing")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}; delete its run, and train anew") from error
    return [row[0] for row in rows], [row[1] for row in rows], probabilities
