"""sweep: many runs of one experiment, in parallel."""

from collections.abc import Sequence
from importlib import import_module

from cellbench.sweeps import workers


def main(args: Sequence[str]) -> int:
    """Runs the command."""
    if not {"-h", "--help"} & set(args):
        workers.warm_up()  # imports, beside this process, what it is about to import itself
    result: int = import_module("cellbench.cli.sweeping").main(args)
    return result
