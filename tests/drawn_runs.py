"""Run folders without a training: what `report` reads, with predictions that are drawn."""

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import yaml

from cellbench.artifacts.predictions import Predictions, write_predictions
from cellbench.data.splits import digest_of

CLASSES = ("a", "b", "c")


def draw(
    folder: Path,
    *,
    view: str = "raw",
    recall: float = 0.9,
    fold: int | None = 0,
    folds: int | None = 5,
    seed: int = 0,
    n: int = 100,
    groups: int | None = None,
    classes: tuple[str, ...] = CLASSES,
    experiment: str = "cells",
    names: str = "cell {:03d}.png",
    contents: list[str] | None = None,
    split_seed: int = 0,
    started: str = "2026-11-22T10:00:00+0000",
    data_root: Path | None = None,
    masks: str | None = None,
    **settings,
) -> Path:
    """Writes a finished run; its test predictions are right with a probability of `recall`.

    Predictions depend on the view, the fold, the seed and all settings; labels and splits on the
    samples alone. `masks` is the digest of the masks; None as in a run of an earlier version.
    """
    told = f"{view} {fold} {seed} {sorted(settings.items())}"
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(told.encode()).digest()[:4]))
    labels = np.arange(n) % len(classes)
    ids = [names.format(i) for i in range(n)]
    group = [f"group {i * (groups or n) // n}" for i in range(n)]
    number = np.array([i * (groups or n) // n for i in range(n)])
    part = np.where(number % (folds or 5) == (fold or 0), "test", "train")
    spared = ((fold or 0) + 1 + split_seed) % (folds or 5)
    spared = (spared + 1) % (folds or 5) if spared == (fold or 0) else spared
    part[(number % (folds or 5) == spared) & (number % 2 == 0)] = "val"
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "class", "group", "split", "content"])
    for i in range(n):
        content = f"{i:032x}" if contents is None else contents[i]
        rows.writerow([ids[i], classes[labels[i]], group[i], part[i], content])
    folder.mkdir(parents=True)
    (folder / "split.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    parts = {}
    for name in ("val", "test"):
        own = np.flatnonzero(part == name)
        right = rng.random(len(own)) < recall
        said = np.where(right, labels[own], (labels[own] + 1) % len(classes))
        sure = rng.uniform(0.5, 1, len(own))[:, None]
        probabilities = np.full((len(own), len(classes)), 1.0) * (1 - sure) / (len(classes) - 1)
        probabilities[np.arange(len(own)), said] = sure[:, 0]
        parts[name] = Predictions(
            [ids[i] for i in own], labels[own], probabilities.astype(np.float32)
        )
    write_predictions(folder / "predictions.csv", classes, parts)
    sizes = {name: int((part == name).sum()) for name in ("train", "val", "test")}
    split = {
        "digest": digest_of(text.getvalue()),
        "protocol": "grouped",
        "folds": folds,
        "fold": fold,
        "n": sizes,
    }
    if masks is not None:  # earlier versions did not tell it
        split["masks"] = masks
    metrics = {"experiment": experiment, "seed": seed, "stamps": [], "split": split}
    (folder / "metrics.json").write_text(json.dumps(metrics | {"test": {}}))
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": 2, "devices": 1},
        "model": {"backbone": "resnet18", "lr": 0.001} | settings,
        "data": {
            "class_path": "FolderDataModule",
            "init_args": {
                "root": str(data_root or folder.parent),
                "view": view,
                "split": {"folds": folds, "fold": fold, "seed": split_seed},
            },
        },
        "name": experiment,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    history = "epoch,val/loss,val/accuracy,seconds\n0,1.1,0.4,2.0\n1,0.7,0.8,2.5\n"
    (folder / "history.csv").write_text(history)
    environment = {
        "cellbench": "0.1.0",
        "commit": None,
        "command": ["cellbench", "fit", "--config=x.yaml"],
        "started": started,
        "python": "3.11.7",
        "packages": {"torch": "2.15.0"},
        "platform": "Linux",
        "cpu": "a CPU",
        "cores": 2,
        "device": "cpu",
        "devices": 1,
        "gpu": None,
        "precision": "32-true",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def cross_validation(root: Path, *, seeds: int = 1, folds: int = 5, **given) -> None:
    """A run for each fold and seed, below a folder named by the view."""
    view = given.get("view", "raw")
    for fold in range(folds):
        for seed in range(seeds):
            path = root / f"{given.get('experiment', 'cells')}-{view}" / f"{fold}-{seed}"
            draw(path, fold=fold, folds=folds, seed=seed, **given)
