"""Command `audit`: check a dataset, and the split that an experiment makes of it."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cellbench.artifacts.conditions import Condition, conditions
from cellbench.artifacts.finished import read_finished
from cellbench.artifacts.folder import write_text
from cellbench.audit.audit import Audit, audit
from cellbench.audit.page import render
from cellbench.audit.plain import as_plain
from cellbench.cli.options.parser import Parser, refuse_sweep_file, take_option
from cellbench.config import yaml
from cellbench.data.module import CellDataModule
from cellbench.utils.errors import Interrupted, UserError, printable
from cellbench.utils.html_page import share
from cellbench.utils.terminal import Console, say
from cellbench.utils.untrusted import check_replaceable, has_mark


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code is 1 if the chosen split leaks."""
    config, rest = take_option(args, "--config")
    if take_option(rest, "--config")[0] is not None:
        raise UserError("--config: one experiment at a time")
    given = _parser().parse_args([*_data_of(config), *rest])
    data: CellDataModule = _parser().instantiate(given).data
    runs = _cross_validations(given.runs) if given.runs else []
    name = Path(config).stem if config else type(data).__name__
    output = given.output or Path("audits", name)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make {output}: {error.strerror}") from error
    check_replaceable("--output", output / "audit.json", has_mark(b'{\n "cellbench": '))
    check_replaceable("--output", output / "audit.html", has_mark(b"<title>Audit of "))
    try:
        found = audit(data, runs)
        plain = as_plain(found)
        page = render(found, plain, name)
    except KeyboardInterrupt:
        raise Interrupted(
            signal.SIGINT, "SIGINT; the results so far are kept: give the same command to go on"
        ) from None
    write_text(output / "audit.json", json.dumps(plain, indent=1, allow_nan=False))
    write_text(output / "audit.html", page)
    _show(found, plain)
    say(f"audit.html and audit.json are in {output}")
    return 0 if found.holds else 1


def _cross_validations(paths: Sequence[Path]) -> list[Condition]:
    """Return the cross-validations whose predictions question labels, by condition and seed."""
    runs, left = read_finished(paths)
    for one in left:
        if one.damaged:
            raise UserError(f"--runs: {one.path}: {one.reason}")
    if not runs:
        raise UserError(f"--runs: there is no finished run below {', '.join(map(str, paths))}")
    return [each.with_seed(seed) for each in conditions(runs) for seed in each.seeds]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m cellbench audit",
        description="Look for copies, leaks, conflicting labels and shortcuts in a dataset, and "
        "write audit.html and audit.json. Exit code 1: the split leaks, or cannot be drawn.",
    )
    parser.add_argument("--config", type=Path | None, help="an experiment whose data to check")
    parser.add_subclass_arguments(CellDataModule, "data", fail_untyped=False, required=True)
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        default=[],
        help="folders of cross-validated runs, to find doubtful labels",
    )
    parser.add_argument("--output", type=Path | None, help="folder for the page (audits/NAME)")
    return parser


def _data_of(config: str | None) -> list[str]:
    """Return the data of an experiment as an option of the command line."""
    if config is None:
        return []
    content = yaml.read_mapping(Path(config), "--config")
    refuse_sweep_file(config, content)
    if "data" not in content:
        raise UserError(f"--config: {config} has no data")
    data = content["data"]
    return [f"--data={data if isinstance(data, str) else json.dumps(data)}"]


def _show(found: Audit, plain: dict[str, Any]) -> None:
    console = Console()
    console.width = max(console.width, 120)  # wrapped lines are better than cut intervals
    for name, noun, rest in (
        ("unreadable", "unreadable file", ""),
        ("identical", "set", " of identical images"),
        ("near_copies", "pair", " of near copies, confirmed by registration"),
        ("conflicts", "pair", " of the same cell with different labels"),
    ):
        what = f"{noun if len(plain[name]) == 1 else f'{noun}s'}{rest}"
        first = f": {', '.join(map(_named, list(plain[name])[:3]))}" if plain[name] else ""
        more = ", ..." if len(plain[name]) > 3 else ""
        console.print(f"{len(plain[name]):6,} {what}{first}{more}")
    table = Table(box=SIMPLE_HEAD, title="the class, predicted without looking into the cell")
    for column in ("from", "n", "accuracy", "majority class", "balanced accuracy", "chance"):
        table.add_column(column, justify="left" if column == "from" else "right")
    for each in found.shortcuts:
        if each.scores is None:
            table.add_row(each.name, printable(each.note))
            continue
        metrics = each.scores["metrics"]
        table.add_row(
            each.name,
            str(each.scores["n"]),
            share(metrics["accuracy"]),
            f"{metrics['accuracy']['baseline']:.3f}",
            share(metrics["balanced_accuracy"]),
            f"{metrics['balanced_accuracy']['baseline']:.3f}",
        )
    console.print(table)
    for check in found.checks:
        if not check.holds:
            console.print(f"NOTE expected {check.expected}; found {check.found}")
    if not found.checks and found.data.note:  # else the checks have said it
        for line in found.data.note.splitlines():
            console.print(f"NOTE {line}", soft_wrap=True)
    console.print(found.verdict, style="bold" if found.holds else "bold red")


def _named(entry: Any) -> str:
    """Return the id of an image, or the first two ids of several."""
    if isinstance(entry, dict):
        entry = [entry["first"], entry["second"]]
    return entry if isinstance(entry, str) else " and ".join(entry[:2])
