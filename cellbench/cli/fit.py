"""fit: trains, then tests the best checkpoint once."""

from collections.abc import Sequence

from cellbench.cli.engine import CellbenchCLI


def main(args: Sequence[str]) -> int:
    """Runs the command."""
    CellbenchCLI("fit", args)
    return 0
