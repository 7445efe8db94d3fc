"""What the folds of a cross-validation say together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from cellbench.runs.folds import Folds, read_folds
from cellbench.runs.metrics import evaluate


@dataclass(frozen=True)
class Pooled:
    """One experiment at one seed, or at several.

    Attributes:
        experiment: Its name.
        seeds: seed_everything of its runs.
        n: The number of samples, each tested once with each seed.
        scores: What `evaluate` says of the pooled predictions; its n counts a sample once a seed.
        stamps: Why the numbers are not what they may seem.
        older: How many runs were left out for a later one of the same fold.
    """

    experiment: str
    seeds: tuple[int, ...]
    n: int
    scores: dict[str, Any]
    stamps: tuple[str, ...]
    older: int


def pool(paths: Sequence[Path]) -> Iterator[Pooled]:
    """Scores the finished runs below some folders, all folds of an experiment and seed together.

    An experiment with several seeds is scored once more over all of them: a sample's predictions
    are of one group then, so that more seeds do not make a test set larger.

    Raises:
        UserError: There is no finished run, or one cannot be read.
    """
    for _, found in groupby(read_folds(paths), key=lambda folds: folds.experiment):
        seeds = list(found)
        for one in seeds:
            yield _pool([one])
        if len(seeds) > 1:
            yield _pool(seeds)


def _pool(seeds: Sequence[Folds]) -> Pooled:
    first = seeds[0]
    return Pooled(
        first.experiment,
        tuple(one.seed for one in seeds),
        len({name for one in seeds for name in one.ids}),
        evaluate(
            np.concatenate([one.labels for one in seeds]),
            np.concatenate([one.probabilities.argmax(axis=1) for one in seeds]),
            np.concatenate([one.groups for one in seeds]),
            first.classes,
            np.concatenate([one.majority for one in seeds]),
        ),
        tuple(sorted({stamp for one in seeds for stamp in one.stamps})),
        sum(one.older for one in seeds),
    )
