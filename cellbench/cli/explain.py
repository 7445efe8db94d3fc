"""Command `explain`: attribute predictions to pixels, and measure the share inside the cell."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cellbench.artifacts.attributions import TITLES, Share, read_attributions, summarise
from cellbench.artifacts.conditions import Condition, conditions
from cellbench.artifacts.finished import Finished, read_finished
from cellbench.cli.options.parser import Parser
from cellbench.cli.options.stored import read_data
from cellbench.inference.explain import explain, is_done
from cellbench.utils.errors import UserError, counted, printable
from cellbench.utils.progress_bar import bar
from cellbench.utils.terminal import Console, say

_REGIONS = ("cell", "nucleus", "cytoplasm")


def main(args: Sequence[str]) -> int:
    """Run the command."""
    parser = Parser(
        prog="python -m cellbench explain",
        description="Attribute the predicted class of test images to their pixels, by Grad-CAM "
        "and integrated gradients: write attributions.csv, with the shares in nucleus, cytoplasm "
        "and background where there are masks, and figures/attributions.png into each run's "
        "folder. A run that has them, newer than its checkpoint, is not computed again.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders that hold runs")
    parser.add_argument("--n", type=int, default=200, help="test images of each run, at most")
    given = parser.parse_args(list(args))
    if given.n < 1:
        raise UserError(f"--n: {given.n} is less than 1")
    finished, left = read_finished(given.runs)
    damaged = [f"{run.path}: {run.reason}" for run in left if run.damaged]
    notes = {f"{each}; left out" for each in damaged}
    runs = [run for run in finished if run.folder.best.is_file()]
    if len(runs) < len(finished):
        without = counted(len(finished) - len(runs), "run")
        notes.add(f"{without} without a best.ckpt left out")
    if not runs:
        shown = ", ".join(map(str, given.runs))
        reason = f" ({damaged[0]})" if damaged else ""
        raise UserError(f"explain: there is no finished run with a best.ckpt below {shown}{reason}")
    waiting = [run for run in runs if not is_done(run, given.n)]
    for run in bar(waiting, "explaining", len(waiting)):
        try:
            notes.update(explain(run, read_data(run.folder), given.n))
        except UserError as error:
            raise UserError(f"{run.folder.path}: {error}") from error
    _show(runs, sorted(notes))
    written = "attributions.csv and figures/attributions.png"
    say(f"{written} are in the runs' folders ({len(waiting)} new)")
    return 0


def _show(runs: Sequence[Finished], notes: Sequence[str]) -> None:
    table = Table(
        box=SIMPLE_HEAD,
        caption="share of the attribution [95 % interval] / of the area; n: images with a mask.\n"
        "Compare conditions: even an untrained network differs from the area's share, and "
        "integrated\ngradients depend on the baseline colour, data.fill (black favours bright "
        "pixels).",
    )
    for column in ("condition", "method", "n", *(f"in the {name}" for name in _REGIONS)):
        justify: Literal["left", "right"] = "left" if column in ("condition", "method") else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    by_classes = groupby(sorted(runs, key=lambda run: run.classes), key=lambda run: run.classes)
    for condition in (each for _, some in by_classes for each in conditions(list(some))):
        _add_rows(table, condition)
    console = Console()
    console.width = max(console.width, 132)  # wrapped lines are better than cut intervals
    if table.row_count:
        console.print(table)
    else:
        console.print("NOTE no image has a mask, so there are no shares to show")
    for note in notes:
        console.print(f"NOTE {note}")


def _add_rows(table: Table, condition: Condition) -> None:
    attributions = [a for r in condition.runs for a in read_attributions(r.folder.attributions)]
    groups = {name: group for run in condition.runs for name, group in run.split.group.items()}
    for found in summarise(attributions, groups):
        if found.label is None:
            cells = [_share_text(found.regions.get(name)) for name in _REGIONS]
            table.add_row(printable(condition.name), TITLES[found.method], str(found.n), *cells)


def _share_text(share: Share | None) -> str:
    if share is None:
        return ""
    value, low, high, area = (
        f"{number:.3f}".removeprefix("0")
        for number in (share.value, share.low, share.high, share.area)
    )
    return f"{value} [{low}, {high}] / {area}"
