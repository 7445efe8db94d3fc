"""Command `report`: compare finished runs."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cellbench.artifacts.folder import write_text
from cellbench.cli.options.parser import Parser
from cellbench.report.comparison import Metric
from cellbench.report.page import render_page, save_figures
from cellbench.report.report import Report, as_plain, build, rows, shown_p, shown_size
from cellbench.utils.errors import UserError, counted, printable
from cellbench.utils.html_page import share
from cellbench.utils.terminal import Console, say
from cellbench.utils.untrusted import check_replaceable, has_mark, inside


def main(args: Sequence[str]) -> int:
    """Run the command."""
    if any(argument.partition("=")[0] == "--tensorboard" for argument in args):
        raise UserError(
            "--tensorboard was removed from report: the figures and numbers are in report.html and "
            "report.json; for TensorBoard's curves of the runs use fit --tensorboard true"
        )
    given = _parser().parse_args(list(args))
    paths = list(dict.fromkeys(given.runs))
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no folder {path}")
    if not 0 <= given.rope < 1:
        raise UserError(f"--rope: {given.rope} is not in 0 to 1")
    output = given.output or (paths[0] if len(paths) == 1 else Path("report"))
    _check_output(output)
    report = build(paths, given.metric, given.rope, given.reference)
    page = render_page(report, paths, output.resolve().name, given.audit, args)
    text = json.dumps(as_plain(report), indent=1, allow_nan=False, default=str)
    write_text(output / "report.json", text + "\n")
    write_text(output / "report.html", page)
    _show(report)
    say(f"report.html and report.json are in {_near(output)}")
    if given.wandb is not None:
        # Imported here: torch takes seconds that few reports need.
        from cellbench.report import wandb

        entity, _, project = given.wandb.rpartition("/")
        where = wandb.publish(
            output,
            entity or None,
            project,
            given.wandb_mode,
            output.resolve().name,
            list(report.conditions[0].settings),
            output / "report.html",
            save_figures(report, inside(output, "report")),
            rows(report),
        )
        say(f"W&B: {'' if given.wandb_mode == 'online' else 'wandb sync '}{where}")
    return 0


def _check_output(output: Path) -> None:
    """Check that the folder can take a report, and that nothing but an earlier one is replaced."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output: {output} is a file; give a folder")
    check_replaceable("--output", output / "report.html", has_mark(b"<title>Report: "))
    check_replaceable("--output", output / "report.json", has_mark(b'{\n "cellbench": '))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m cellbench report",
        description="Compares the conditions of the runs below the given folders, and writes "
        "report.html and report.json. Runs that differ in nothing but fold and seeds are one "
        "condition.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders that hold runs")
    parser.add_argument("--metric", type=Metric, default="accuracy", help="what is compared")
    parser.add_argument(
        "--reference",
        type=str | None,
        help="the condition that the others are compared with, by its name or value (that of the "
        "first run)",
    )
    parser.add_argument(
        "--rope", type=float, default=0.01, help="a difference up to this one is none in practice"
    )
    parser.add_argument(
        "--wandb",
        type=str | None,
        help="ENTITY/PROJECT on W&B, which gets the report as a run, and a workspace",
    )
    parser.add_argument("--wandb_mode", type=Literal["online", "offline"], default="online")
    parser.add_argument("--audit", type=Path | None, help="the dataset's audit.json")
    parser.add_argument(
        "--output",
        type=Path | None,
        help="a folder (that which holds the runs; of several, report)",
    )
    return parser


def _show(report: Report) -> None:
    console = Console()
    console.width = max(console.width, 110)  # a cut interval would be worse than a wrapped one
    table = Table(box=SIMPLE_HEAD, caption="value [95 % interval]; baseline: the majority class")
    table.add_column("condition", overflow="fold")
    for column in ("runs", "n", "accuracy", "macro F1", "baseline"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in report.scored:
        metrics = one.scores["metrics"]
        table.add_row(
            printable(one.condition.name),
            str(len(one.condition.runs)),
            str(one.condition.n),
            share(metrics["accuracy"]),
            share(metrics["f1_macro"]),
            f"{metrics['accuracy']['baseline']:.3f}",
        )
    console.print(table)
    for sentence in report.verdict:
        console.print(sentence, style="bold")
    for effect in report.effects:
        found = effect.contrast.difference
        if found is not None:
            kind = "interaction" if effect.interaction else "effect"
            p = "" if found.p is None else f", p {shown_p(found.p)}, not adjusted"
            alone = effect.contrast.about == "trained model"
            scope = " (of these trained models; other seeds were not tried)" if alone else ""
            console.print(
                f"{kind:11} {effect.what}: {shown_size(found)}{p}{scope}",
            )
    for note in report.notes:
        console.print(f"NOTE {note}")
    refused = {reason for one in report.comparisons for reason in one.contrast.refused}
    for reason in sorted(refused):
        console.print(f"NOT PAIRED {reason}", style="bold red")
    for left in report.left:
        if left.damaged:
            told = f"LEFT OUT {left.path}: {left.reason}"
            console.print(told, style="bold red")
    for reason, n in Counter(left.reason for left in report.left if not left.damaged).items():
        console.print(f"NOTE {counted(n, 'run')} left out: {reason}")
    for flag in report.warning_flags:
        console.print(f"UNRELIABLE: {flag}", style="bold red")


def _near(path: Path) -> Path:
    """Return a path as a user would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
