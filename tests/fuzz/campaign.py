"""Runs many inputs, a few at a time, and counts what came of them."""

import json
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz import configurations, files, stored, surroundings
from tests.fuzz.box import Box, Input, Outcome
from tests.fuzz.template import Template

Generator = Callable[[Random, Box, Template], Input]
"""Draws an input, and writes what it needs into the working folder."""

KINDS: dict[str, tuple[Generator, int]] = {
    "experiments": (configurations.experiments, 8),
    "command lines": (configurations.command_lines, 6),
    "sweep files": (configurations.sweep_files, 4),
    "run folders": (stored.run_folders, 7),
    "checkpoints": (stored.checkpoints, 5),
    "sweep folders": (stored.sweep_folders, 2),
    "images": (files.images, 4),
    "tables": (files.tables, 4),
    "archives": (files.archives, 4),
    "surroundings": (surroundings.surroundings, 3),
    "Lightning parts": (configurations.lightning_parts, 2),
    "good inputs": (surroundings.good, 1),
}
"""The rows of the table: how an input is drawn, and how many of fifty are of this kind."""

CODES = ("0", "1", "2", "128+")
FAULTS = ("traceback", "hang", "code run", "file outside")
"""The faults with a column of their own."""


LONGER = {"audit": 60.0, "sweep": 30.0}
"""Least limits of two commands, in seconds.

An audit of good data takes twenty. A sweep's processes follow each other, and only those that still
run can tell how long they waited for a processor.
"""


@dataclass(frozen=True)
class Result:
    """An input and its outcome."""

    given: Input
    """The input."""
    outcome: Outcome
    """What came of it."""


def kind_of(number: int) -> str:
    """The kind of an input; every fifty in a row hold all kinds."""
    order = [kind for kind, (_, weight) in KINDS.items() for _ in range(weight)]
    Random(number // len(order)).shuffle(order)
    return order[number % len(order)]


def prepare(seed: int, number: int, template: Template, folder: Path) -> tuple[Input, Box]:
    """Draws an input, and fills a box for it."""
    kind = kind_of(number)
    box = Box(folder)
    template.furnish(box)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = KINDS[kind][0](Random(f"{seed} {number}"), box, template)
    given.kind, given.number = kind, number
    command = given.args[0] if given.args else ""
    given.limit = max(given.limit, LONGER.get(command, 0.0))
    return given, box


def run(
    seed: int, numbers: Sequence[int], *, jobs: int = 2, keep: Path | None = None
) -> Iterator[Result]:
    """Runs inputs, as many at a time as there are jobs, and gives the results as they come.

    Args:
        seed: With an input's number it decides the input.
        numbers: The inputs.
        jobs: How many run at a time.
        keep: A folder that the boxes are kept in; None deletes them.
    """
    parent = Path(tempfile.mkdtemp(prefix="cellbench-fuzz-"))
    parent.chmod(0o755)
    template = Template(parent)
    waiting, running = list(reversed(numbers)), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                given, box = prepare(seed, waiting.pop(), template, keep or parent)
                box.start(given)
                running.append((given, box))
            for each in list(running):
                given, box = each
                outcome = box.poll()
                if outcome is not None:
                    running.remove(each)
                    if keep is None:
                        box.remove()
                    yield Result(given, outcome)
            time.sleep(0.003)
    finally:
        for _, box in running:
            box.end()
        shutil.rmtree(parent, ignore_errors=True)


def table(results: Sequence[Result]) -> str:
    """Counts inputs, exit codes and faults by kind, as Markdown."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for each in results:
        count = counts[each.given.kind]
        code = each.outcome.code
        count["inputs"] += 1
        count[str(code) if 0 <= code <= 2 else "128+" if code > 128 else "other code"] += 1
        for fault in {name for name, _ in each.outcome.faults}:
            count[fault if fault in FAULTS else "other fault"] += 1
    columns = ("inputs", *CODES, "other code", *FAULTS, "other fault")
    heads = [f"exit {c}" if c in CODES else c for c in columns]
    lines = [
        f"| kind | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(columns)}",
        *(
            f"| {kind} | {' | '.join(f'{count[c]:,}' for c in columns)} |"
            for kind, count in counts.items()
        ),
    ]
    total = sum(counts.values(), Counter())
    lines.append(f"| all | {' | '.join(f'{total[c]:,}' for c in columns)} |")
    return "\n".join(lines)


def findings(results: Sequence[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """The results with faults, by kind, fault and place."""
    found: dict[tuple[str, str, str], list[Result]] = {}
    for each in results:
        for name, detail in each.outcome.faults:
            place = detail if name in ("traceback", "hang") else ""
            found.setdefault((each.given.kind, name, place.split(": ")[0]), []).append(each)
    return found


def as_line(result: Result) -> str:
    """A result as a line of JSON, for whoever looks for the causes."""
    outcome = result.outcome
    told = {
        "number": result.given.number,
        "kind": result.given.kind,
        "what": result.given.what,
        "args": [arg[:200] for arg in result.given.args],
        "code": outcome.code,
        "seconds": round(outcome.seconds, 2),
        "work": round(outcome.work, 2),
        "memory": outcome.memory,
        "faults": outcome.faults,
        "err": outcome.err[-1500:],
    }
    return json.dumps(told)


def show_progress(results: Sequence[Result], begun: float) -> None:
    """Says on the terminal how far it is."""
    faulty = sum(bool(each.outcome.faults) for each in results)
    passed = time.monotonic() - begun
    print(f"{len(results):,} inputs, {faulty:,} with faults, {passed:.0f} s", file=sys.stderr)
