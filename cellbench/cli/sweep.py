"""Command `sweep`: run one experiment many times, in parallel."""

from collections.abc import Sequence
from importlib import import_module

from cellbench.sweeps import workers

SWEEPING = "cellbench.cli.execution.sweeping"


def main(args: Sequence[str]) -> int:
    """Run the command."""
    if not {"-h", "--help"} & set(args):
        # It imports them while this process does.
        workers.warm_up([SWEEPING, "cellbench.cli.execution.warm"])
    result: int = import_module(SWEEPING).main(args)
    return result
