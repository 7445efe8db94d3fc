"""Runs the campaign and prints its table: `python -m tests.fuzz --seed 0 --inputs 5000`."""

import os

# Before anything is imported that reads them: no threads in a process that is forked, no network.
os.environ["OMP_NUM_THREADS"] = "1"
for _name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
    os.environ[_name] = "http://127.0.0.1:9"
for _name in ("WANDB_API_KEY", "CELLBENCH_SHARED", "WORLD_SIZE"):
    os.environ.pop(_name, None)
os.environ["WANDB_SILENT"] = "true"

import argparse
import gc
import signal
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from cellbench.cli import COMMANDS

EVERY = 250
"""Inputs between two words on how far it is."""


def warm_up() -> None:
    """Imports what the commands would, so that an input takes no seconds for it."""
    import_module("cellbench.cli.execution.warm")
    import_module("cellbench.cli.execution.sweeping")
    for command in COMMANDS:
        import_module(f"cellbench.cli.{command}")
    from matplotlib import font_manager, get_cachedir

    from tests.fuzz import box

    font_manager.findfont("sans")  # writes its cache
    box.LIBRARIES.append(Path(get_cachedir()))
    gc.collect()
    gc.freeze()


def main() -> int:
    """Runs the inputs; the exit code is 1 where one has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=5000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument("--only", type=int, nargs="+", help="the numbers of some, kept and shown")
    parser.add_argument("--kinds", nargs="+", help="of these kinds alone")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--log", type=Path, help="a file that gets a line of JSON for each input")
    given = parser.parse_args()
    warm_up()
    from tests.fuzz import campaign

    numbers = given.only or range(given.first, given.first + given.inputs)
    numbers = [n for n in numbers if not given.kinds or campaign.kind_of(n) in given.kinds]
    keep = Path(tempfile.mkdtemp(prefix="cellbench-fuzz-kept-")) if given.only else None
    begun, results = time.monotonic(), []
    log = given.log.open("w") if given.log else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    for result in campaign.run(given.seed, numbers, jobs=given.jobs, keep=keep):
        results.append(result)
        if log is not None:
            print(campaign.as_line(result), file=log, flush=True)
        if given.only:
            outcome = result.outcome
            print(f"{result.given.kind}, {result.given.number}: {result.given.what!a}")
            print(f"args {[arg[:200] for arg in result.given.args]!a}")
            print(f"exit code {outcome.code}, {outcome.seconds:.1f} s, {outcome.memory} MiB")
            print(f"{outcome.out[-2000:]!a}")
            print(outcome.err[-4000:].encode("ascii", "backslashreplace").decode())
            for fault in outcome.faults:
                print(f"FAULT {fault!a}")
            print(f"the box is below {keep}\n")
        elif not len(results) % EVERY:
            campaign.show_progress(results, begun)
    if not given.only:
        print(campaign.table(results))
        work = sum(each.outcome.work for each in results)
        print(f"\n{time.monotonic() - begun:,.0f} s, of which {work:,.0f} s of a processor\n")
        for (kind, name, place), some in campaign.findings(results).items():
            numbers = [each.given.number for each in some]
            details = dict(some[0].outcome.faults)[name]
            print(f"FAULT {kind}: {name} {place!a} ({len(some)}; {numbers[:4]}): {details!a}")
            print(f"      {some[0].given.what!a}")
    gc.unfreeze()  # else libraries complain that something of theirs is left
    return 1 if any(each.outcome.faults for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
