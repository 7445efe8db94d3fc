"""Printing of a run's results."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from cellbench.artifacts.folder import RunFolder
from cellbench.utils.terminal import Console, say


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
    for flag in result["stamps"]:
        console.print(f"UNRELIABLE: {flag}", style="bold red")
    written = ["metrics.json", "predictions.csv"]
    if any(folder.below("figures").glob("*.png")):
        written.append("figures")
    say(f"{', '.join(written[:-1])} and {written[-1]} are in {folder.path}")


def _title(part: str, result: Mapping[str, Any]) -> str:
    scores = result[part]
    epoch = "" if result["epoch"] is None else f", weights of epoch {result['epoch']} (from 0)"
    return f"{part} split: n = {scores['n']} in {scores['groups']} groups{epoch}"
