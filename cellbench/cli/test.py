"""Command `test`: score a run's best checkpoint on its test split."""

from collections.abc import Sequence

from cellbench.cli.execution.scoring import score


def main(args: Sequence[str]) -> int:
    """Run the command."""
    return score("test", args)
