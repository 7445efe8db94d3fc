"""report: what finished runs say together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cellbench.cli.parsing import Parser
from cellbench.report.pool import pool


def main(args: Sequence[str]) -> int:
    """Runs the command."""
    parser = Parser(
        prog="python -m cellbench report",
        description="Pools the folds of each experiment below the given folders: accuracy and "
        "macro F1 with 95 % intervals, beside the majority class.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders that hold runs")
    table = Table(box=SIMPLE_HEAD, caption="value [95 % interval]; baseline: the majority class")
    for column in ("experiment", "seeds", "n", "accuracy", "macro F1", "baseline"):
        justify: Literal["left", "right"] = "left" if column == "experiment" else "right"
        table.add_column(column, justify=justify, no_wrap=column != "experiment")
    stamps, notes = [], []
    for one in pool(parser.parse_args(list(args)).runs):
        metrics = one.scores["metrics"]
        table.add_row(
            escape(one.experiment),
            ", ".join(map(str, one.seeds)),
            str(one.n),
            _shown(metrics["accuracy"]),
            _shown(metrics["f1_macro"]),
            f"{metrics['accuracy']['baseline']:.3f}",
        )
        if len(one.seeds) > 1:  # said of each seed above
            continue
        if one.older:
            notes.append(f"{one.experiment}: {one.older} older runs of the same folds left out")
        stamps += [f"{one.experiment}: {stamp}" for stamp in one.stamps]
    console = Console(emoji=False)
    console.width = max(console.width, 100)  # a cut interval would be worse than a wrapped one
    console.print(table)
    for note in notes:
        console.print(f"NOTE {note}", markup=False)
    for stamp in stamps:
        console.print(f"NOT TO BE BELIEVED: {stamp}", style="bold red", markup=False)
    return 0


def _shown(entry: dict[str, Any]) -> str:
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]".replace("[", "\\[")
