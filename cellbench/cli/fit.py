"""fit: trains, then tests the best checkpoint once."""

from collections.abc import Sequence

from cellbench.cli.engine import CellbenchCLI
from cellbench.cli.parsing import check_yaml


def main(args: Sequence[str]) -> int:
    """Runs the command."""
    check_yaml(args)
    CellbenchCLI("fit", args)
    return 0
