"""Content of metrics.json, computed from a run's predictions."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from cellbench.artifacts.predictions import Predictions
from cellbench.data.module import CellDataModule
from cellbench.data.table import Part
from cellbench.metrics import probabilities


def summarise(
    predictions: Mapping[Part, Predictions],
    data: CellDataModule,
    rows: Sequence[Mapping[str, str]],
    *,
    experiment: str,
    warning_flags: Sequence[str],
    epoch: int | None,
    parameters: int,
) -> dict[str, Any]:
    """Build the content of a run's metrics.json.

    The values are those that predictions.csv and split.csv give when they are read back.

    Args:
        predictions: Predictions of each part that was scored.
        data: The data module, set up.
        rows: Rows of the run's split.csv.
        experiment: The experiment's name.
        warning_flags: The run's warning flags.
        epoch: The epoch whose weights were scored; None if it is not known.
        parameters: Number of the network's parameters.
    """
    prior = _training_shares(data)
    split = data.partition
    result: dict[str, Any] = {
        "experiment": experiment,
        "stamps": list(warning_flags),
        "split": {
            "digest": split.digest,
            "masks": data.mask_set.digest,
            "protocol": data.split.protocol,
            "groups": data.table.known_groups,
            "folds": split.folds,
            "fold": split.fold,
            "n": {part: len(split.indices(part)) for part in get_args(Part)},
        },
        "epoch": epoch,
        "view": data.view,
        "seed": data.plan.seed,
        "majority_class": data.classes[prior.argmax()],
        "parameters": parameters,
    }
    group = {row["id"]: row["group"] for row in rows}
    for part, own in predictions.items():
        groups = np.array([group[name] for name in own.ids])
        baseline = np.tile(prior, (len(groups), 1))
        result[part] = probabilities.score(
            own.labels, own.probabilities, groups, data.classes, baseline
        )
    return result


def _training_shares(data: CellDataModule) -> np.ndarray:
    """Return each class's share of the training split, float64, (classes,)."""
    labels = data.table.labels[data.partition.indices("train")]
    counts = np.bincount(labels, minlength=len(data.classes))
    shares: np.ndarray = counts / counts.sum()
    return shares
