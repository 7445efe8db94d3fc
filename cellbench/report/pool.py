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
        older: How many runs were left out for a later one of the same fold.
    """

    experiment: str
    seed: int
    scores: dict[str, Any]
    stamps: tuple[str, ...]
    older: int


def pool(paths: Sequence[Path]) -> list[Pooled]:
    """Scores the finished runs below some folders, all folds of an experiment and seed together.

    Raises:
        UserError: There is no finished run, or one cannot be read.
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
            folds.older,
        )
        for folds in read_folds(paths)
    ]
