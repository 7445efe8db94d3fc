"""Reads the test predictions of a cross-validation's folds together: they partition the data."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cellbench.data.splits import read_split
from cellbench.errors import UserError
from cellbench.runs.folder import RunFolder
from cellbench.runs.predictions import read_predictions

# What may differ between the runs of one cross-validation.
_FREE = (
    "runs",
    "name",
    "wandb",
    "tensorboard",
    "label_history",
    "test",
    "figures",
    "trainer.enable_progress_bar",
    "data.split.fold",
)


@dataclass(frozen=True)
class Folds:
    """The test predictions of one experiment at one seed, over all its folds.

    Attributes:
        experiment: Its name.
        seed: seed_everything.
        classes: The class names.
        ids: The samples, each tested once, by a model that has not seen it.
        labels: Class indices, (n,).
        probabilities: Of every class, (n, classes).
        groups: Each sample's group, (n,).
        prior: The classes' shares of the training split that each sample's model saw,
            (n, classes).
        stamps: Why the numbers are not what they may seem.
        older: How many runs of the same were left out for a later one of the same fold.
    """

    experiment: str
    seed: int
    classes: tuple[str, ...]
    ids: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray
    prior: np.ndarray
    stamps: tuple[str, ...]
    older: int = 0


@dataclass(frozen=True)
class _Run:
    folder: RunFolder
    metrics: dict[str, Any]
    config: dict[str, Any]


def read_folds(paths: Sequence[Path]) -> list[Folds]:
    """Reads the finished runs below some folders, for each experiment, configuration and seed.

    Of several runs of one fold the last counts, in the order of the paths and of time. Runs of one
    name that are configured differently are told apart by what differs.

    Raises:
        UserError: There is no finished run, or one cannot be read.
    """
    of_name: dict[str, list[_Run]] = defaultdict(list)
    for path in paths:
        for run in _finished(path):
            of_name[run.metrics["experiment"]].append(run)
    if not of_name:
        shown = ", ".join(map(str, paths))
        raise UserError(f"there is no finished run below {shown}; run fit first")
    joined = []
    for name, runs in sorted(of_name.items()):
        keys = {key for run in runs for key in run.config if not _is_free(key)}
        differ = sorted(key for key in keys if len({str(run.config.get(key)) for run in runs}) > 1)
        groups: dict[tuple[str, ...], list[_Run]] = defaultdict(list)
        for run in runs:  # oldest first
            groups[tuple(str(run.config.get(key)) for key in differ)].append(run)
        for values, same in sorted(groups.items()):
            told = [
                f"{key.rpartition('.')[2]} {value}"
                for key, value in zip(differ, values, strict=True)
                if key != "seed_everything"
            ]
            by_fold = {run.metrics["split"]["fold"]: run for run in same}
            label = f"{name} ({', '.join(told)})" if told else name
            joined.append(_join(label, same[0].metrics["seed"], by_fold, len(same) - len(by_fold)))
    return joined


def _is_free(key: str) -> bool:
    return key in _FREE or key.startswith(tuple(f"{free}." for free in _FREE))


def _finished(path: Path) -> Iterator[_Run]:
    for config in sorted(path.rglob("config.yaml")):
        folder = RunFolder(config.parent)
        if not folder.metrics.is_file() or not folder.best.is_file():
            continue  # not finished, or a later test of a run
        try:
            metrics = json.loads(folder.metrics.read_text(encoding="utf-8"))
            plain = dict(_flat(yaml.safe_load(config.read_text(encoding="utf-8"))))
            if plain.get("data.train_labels") is not None:  # each fold and seed has its own
                plain["data.train_labels"] = "relabelled"
            if "test" in metrics:  # a search leaves it out
                yield _Run(folder, metrics, plain)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"cannot read the run {folder.path}: {error}") from error


def _join(experiment: str, seed: int, by_fold: dict[int | None, _Run], older: int) -> Folds:
    runs = list(by_fold.values())
    labels, probabilities, groups, majority = [], [], [], []
    tested: dict[str, Path] = {}
    classes: tuple[str, ...] = ()
    for run in runs:
        classes, parts = read_predictions(run.folder.predictions)
        test = parts["test"]
        group = {row["id"]: row["group"] for row in read_split(run.folder.split)}
        labels.append(test.labels)
        probabilities.append(test.probabilities)
        groups += [group[name] for name in test.ids]
        for name in test.ids:
            if name in tested:
                raise UserError(f"'{name}' is tested in both {tested[name]} and {run.folder.path}")
            tested[name] = run.folder.path
        largest = classes.index(run.metrics["majority_class"])
        majority.append(np.full(len(test.ids), largest))
    total = runs[0].metrics["split"]["folds"]
    stamps = {stamp for run in runs for stamp in run.metrics["stamps"]}
    if total is not None and len(runs) < total:
        stamps.add(f"folds {', '.join(map(str, sorted(set(range(total)) - set(by_fold))))} missing")
    return Folds(
        experiment,
        seed,
        classes,
        list(tested),
        np.concatenate(labels),
        np.concatenate(probabilities),
        np.array(groups),
        np.concatenate(majority),
        tuple(sorted(stamps)),
        older,
    )


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{prefix}{key}".replace("data.init_args.", "data.")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value
