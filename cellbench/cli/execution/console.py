"""Printing of results, and filtering of Lightning's messages."""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from cellbench.artifacts.folder import RunFolder
from cellbench.utils.terminal import Console, say

# Advice that does not apply here (the loaders need no workers, a frozen backbone is in evaluation
# mode, a run resumes in its own folder at the exact batch), and Lightning's own use of torch.
_NOISE = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*in eval mode at the start of training.*",
    ".*exists and is not empty.*",
    ".*your dataloader is not resumable.*",
    ".*Grad strides do not match bucket view strides.*",
)


def quieten_lightning() -> None:
    """Hide Lightning's hints, and its moving progress bar unless the output is a terminal.

    Errors are still shown.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    if not sys.stdout.isatty():
        # With FORCE_COLOR, rich not only colors the progress bar but also moves the cursor.
        os.environ.pop("FORCE_COLOR", None)


def show(folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Print a run's scores on its last split beside the baseline, and the place of its files."""
    console = Console()
    part = "test" if "test" in result else "val"
    scores = result[part]
    table = Table(title=_title(part, result))
    for column in ("metric", "value", "95 % interval", "majority baseline"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, value in scores["metrics"].items():
        interval = f"{value['low']:.3f} to {value['high']:.3f}"
        table.add_row(name, f"{value['value']:.3f}", interval, f"{value['baseline']:.3f}")
    console.print(table)
    for stamp in result["stamps"]:
        console.print(f"UNRELIABLE: {stamp}", style="bold red")
    written = ["metrics.json", "predictions.csv"]
    if any(folder.below("figures").glob("*.png")):
        written.append("figures")
    say(f"{', '.join(written[:-1])} and {written[-1]} are in {folder.path}")


def _title(part: str, result: Mapping[str, Any]) -> str:
    scores = result[part]
    epoch = "" if result["epoch"] is None else f", weights of epoch {result['epoch']} (from 0)"
    return f"{part} split: n = {scores['n']} in {scores['groups']} groups{epoch}"
