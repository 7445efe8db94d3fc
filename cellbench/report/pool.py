"""What the folds of a cross-validation say together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellbench.runs.folds import read_folds
from cellbench.runs.metrics import evaluate


@dataclass(frozen=True)
class Pooled:
    """One experiment at one seed.

    Attributes:
        experiment: Its name.
        seed: seed_everything.
        scores: What `evaluate` says of the pooled predictions.
        stamps: Why the numbers are not what they may seem.
    """

    experiment: str
    seed: int
    scores: dict[str, Any]
    stamps: tuple[str, ...]


def pool(paths: Sequence[Path]) -> list[Pooled]:
    """Scores the finished runs below some folders, all folds of an experiment and seed together.

    Raises:
        UserError: There is no finished run, or runs of one experiment are configured differently.
    """
    return [
        Pooled(
            folds.experiment,
            folds.seed,
            evaluate(
                folds.labels,
                folds.probabilities.argmax(axis=1),
                folds.groups,
                folds.classes,
                folds.majority,
            ),
            folds.stamps,
        )
        for folds in read_folds(paths)
    ]
