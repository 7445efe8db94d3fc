"""CSV files of `predict`: the predictions, and the images that cannot be read."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from cellbench.artifacts.folder import whole_file
from cellbench.artifacts.predictions import PREFIX
from cellbench.data.dataset import Batch
from cellbench.data.unlabelled import UnlabelledImages
from cellbench.inference.contact_sheet import ContactSheet
from cellbench.metrics.probabilities import temper
from cellbench.utils.errors import UserError

_CRLF = "\r\n"


class PredictionTable(Callback):
    """Writes the predictions of each batch as they come, and keeps none in memory.

    Args:
        file: The text file to write to, opened by `open_table`.
        dataset: The images; those that cannot be read get no row.
        classes: The class names.
        temperature: Temperature of the confidences.
        sheet: A contact sheet that every image is added to, or None.

    Attributes:
        written: Number of rows so far, without the header.
    """

    def __init__(
        self,
        file: TextIO,
        dataset: UnlabelledImages,
        classes: Sequence[str],
        temperature: float,
        sheet: ContactSheet | None,
    ) -> None:
        self.written = 0
        self._rows = csv.writer(_LineFeeds(file), lineterminator=_CRLF)
        self._rows.writerow(["file", "predicted", "confidence", *(PREFIX + c for c in classes)])
        self._dataset = dataset
        self._classes = classes
        self._temperature = temperature
        self._sheet = sheet

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a row for each image that could be read.

        Raises:
            UserError: The probabilities of an image are not finite.
        """
        probabilities = outputs.cpu().numpy()
        self._check_finite(batch.positions.tolist(), probabilities)
        confidence = temper(probabilities, self._temperature).max(axis=1).astype(np.float32)
        for i, position in enumerate(batch.positions.tolist()):
            if position in self._dataset.unreadable:
                continue
            predicted = int(probabilities[i].argmax())
            name = self._dataset.names[position]
            names = _escape_formula(name), _escape_formula(self._classes[predicted])
            self._rows.writerow([*names, confidence[i], *map(str, probabilities[i])])
            if self._sheet is not None:
                self._sheet.add(
                    float(confidence[i]), position, predicted, Path(name).name, batch.images[i]
                )
            self.written += 1

    def _check_finite(self, positions: list[int], probabilities: np.ndarray) -> None:
        """Raise UserError if the probabilities of a readable image are not finite."""
        for position, values in zip(positions, probabilities, strict=True):
            if position not in self._dataset.unreadable and not np.isfinite(values).all():
                raise UserError(
                    f"the probabilities of '{self._dataset.names[position]}' are not finite "
                    "numbers: nothing is written; train again with a lower model.lr"
                )


def write_unreadable(path: Path, dataset: UnlabelledImages) -> None:
    """List the images that could not be read, or remove the list of an earlier call.

    Args:
        path: The CSV: file and reason.
        dataset: The images, after the prediction.

    Raises:
        UserError: The file cannot be written.
    """
    if not dataset.unreadable:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as beside, open_table(beside) as file:
        rows = csv.writer(_LineFeeds(file), lineterminator=_CRLF)
        rows.writerow(["file", "reason"])
        rows.writerows(
            [_escape_formula(dataset.names[i]), _escape_formula(reason)]
            for i, reason in dataset.unreadable.items()
        )


def open_table(path: Path) -> TextIO:
    """Open a CSV for writing; file names that are not UTF-8 keep their bytes."""
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")


class _LineFeeds:
    r"""Text file in which rows of a csv.writer end with \n, while cells that hold \r are quoted.

    With lineterminator="\n" Python before 3.13 does not quote such cells, and a file's name could
    begin a new row.

    Args:
        file: The text file to write to.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> None:
        """Write a row, which ends with a carriage return and a line feed."""
        self._file.write(f"{row.removesuffix(_CRLF)}\n")


def _escape_formula(cell: str) -> str:
    """Prefix ' to text that a spreadsheet would take for a formula (OWASP: CSV injection)."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell
