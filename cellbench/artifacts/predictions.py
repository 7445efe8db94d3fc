"""Predictions of a run, and predictions.csv, from which all metrics can be computed."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, get_args

import numpy as np

from cellbench.artifacts.folder import write_text
from cellbench.data.table import Part
from cellbench.utils.errors import UserError
from cellbench.utils.untrusted import open_text

PREFIX = "p_"
"""Prefix of a class's name in the header of its column of probabilities."""


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for one part of a split."""

    ids: list[str]
    """Ids of the samples, in the table's order."""
    labels: np.ndarray
    """True classes as indices, int64, (n,)."""
    probabilities: np.ndarray
    """Probability of each class, float32, (n, classes); each row sums to 1."""

    @property
    def predicted(self) -> np.ndarray:
        """Most probable class of each sample, int64, (n,)."""
        predicted: np.ndarray = self.probabilities.argmax(axis=1)
        return predicted


def write_predictions(
    path: Path, classes: Sequence[str], parts: Mapping[Part, Predictions]
) -> None:
    """Write predictions.csv: id, split, label, predicted, and the probability of each class.

    Args:
        path: The file.
        classes: The class names.
        parts: Predictions of each part that was scored.

    Raises:
        UserError: The file cannot be written.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "split", "label", "predicted", *(f"{PREFIX}{name}" for name in classes)])
    for part, given in parts.items():
        for name, label, predicted, probabilities in zip(
            given.ids, given.labels, given.predicted, given.probabilities, strict=True
        ):
            # repr of a float32 is the shortest text that reads back as the same number
            shown = [str(np.float32(p)) for p in probabilities]
            rows.writerow([name, part, classes[label], classes[predicted], *shown])
    write_text(path, text.getvalue())


def read_predictions(path: Path) -> tuple[tuple[str, ...], dict[Part, Predictions]]:
    """Read a predictions.csv.

    Returns:
        The class names, and the predictions of each part in the file.

    Raises:
        UserError: The file is missing, or is not a predictions.csv.
    """
    try:
        with open_text(path) as file:
            header, rows = _read_rows(file)
        classes = tuple(name.removeprefix(PREFIX) for name in header[4:])
        parts: dict[Part, Predictions] = {}
        for part in get_args(Part):
            own = [row for row in rows if row[1] == part]
            if own:
                labels = np.array([classes.index(row[2]) for row in own], dtype=np.int64)
                probabilities = np.array([row[4:] for row in own]).astype(np.float32)
                finite = np.isfinite(probabilities).all(axis=1)
                if not finite.all():
                    bad = own[int(np.flatnonzero(~finite)[0])][0]
                    raise ValueError(f"the probabilities of '{bad}' are not numbers")
                parts[part] = Predictions([row[0] for row in own], labels, probabilities)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read the predictions {path}: {error}") from error
    return classes, parts


def _read_rows(file: TextIO) -> tuple[list[str], list[list[str]]]:
    """Read the header and the rows of a predictions.csv.

    Raises:
        ValueError: It has another header, or a row of another length.
    """
    reader = csv.reader(file)
    header = next(reader, [])
    if header[:4] != ["id", "split", "label", "predicted"]:
        raise ValueError("wrong header")
    rows = []
    for row in reader:
        if len(row) != len(header):
            what = "cut short" if len(row) < len(header) else "too long"
            raise ValueError(f"line {reader.line_num} is {what}; restore it")
        rows.append(row)
    return header, rows
