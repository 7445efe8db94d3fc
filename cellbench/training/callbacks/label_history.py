"""Probability that a training gave each of its labels, epoch by epoch."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cellbench.artifacts.folder import write_text
from cellbench.data.module import CellDataModule
from cellbench.training.distributed import Ranks
from cellbench.utils.errors import UserError
from cellbench.utils.untrusted import open_text


class LabelHistory(Callback):
    """Callback that writes label_history.csv: one row per training image, one column per epoch.

    A value is the probability of the image's label in the step that trained on it; in the last such
    step, if an epoch shows an image several times.

    Args:
        path: The file.
        data: The data module.
        ranks: Processes that share every batch; the first of them writes.
    """

    def __init__(self, path: Path, data: CellDataModule, ranks: Ranks) -> None:
        self._path, self._data, self._ranks = path, data, ranks
        self._epochs: list[torch.Tensor] = []
        self._current: torch.Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs so far, and the part of the current one that is done."""
        current = None if self._current is None else self._gathered()
        return {"epochs": self._epochs, "current": current}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._epochs, self._current = list(state_dict["epochs"]), state_dict["current"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the probabilities of a step."""
        if self._current is None:
            self._current = torch.full((len(self._data.table),), torch.nan)
        own = outputs["logits"].softmax(dim=1).gather(1, batch.labels[:, None])[:, 0]
        self._current[batch.positions.cpu()] = own.cpu()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the probabilities of all processes, and write the file."""
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
        """Return the current epoch's probabilities by all processes, (n,); NaN for unseen ones."""
        assert self._current is not None
        return torch.stack(self._ranks.gather(self._current)).nanmean(dim=0)


def read_label_history(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Read a label_history.csv.

    Returns:
        The ids of the images, their labels, and the labels' probabilities, (n, epochs).

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with open_text(path) as file:
            _, *rows = csv.reader(file)
        probabilities = np.array([row[2:] for row in rows], dtype=np.float64)
        if not rows or min(map(len, rows)) < 3:
            raise ValueError("rows are missing")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}; delete its run, and train again") from error
    return [row[0] for row in rows], [row[1] for row in rows], probabilities
