"""Files of a sweep, and what its runs have written."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellbench.artifacts.checkpoint import CheckpointConfig
from cellbench.artifacts.folder import RunFolder
from cellbench.config import keys, strict_json, values, yaml
from cellbench.sweeps.space import Point
from cellbench.utils.errors import UserError
from cellbench.utils.untrusted import inside, open_text


@dataclass(frozen=True)
class SweepFolder:
    """Files of one sweep."""

    path: Path
    """The folder."""

    @property
    def lock(self) -> Path:
        """Lock of the process that runs the sweep on this machine."""
        return inside(self.path, ".lock")

    @property
    def file(self) -> Path:
        """The sweep's file, the experiment's configuration and the command's options."""
        return inside(self.path, "sweep.yaml")

    @property
    def trials(self) -> Path:
        """Table of the trials, one row each."""
        return inside(self.path, "trials.csv")

    @property
    def best(self) -> Path:
        """The best parameters, as an experiment."""
        return inside(self.path, "best.yaml")

    def figure(self, name: str) -> Path:
        """Return the path of a figure."""
        return inside(self.path, "figures", f"{name}.png")

    def run(self, trial: int, repeat: Mapping[str, Any]) -> RunFolder:
        """Return the folder of a trial's run.

        Args:
            trial: Number of the trial.
            repeat: The run's fold, seed, or whatever else is repeated.
        """
        parts = [f"{path.rpartition('.')[2]}{value}" for path, value in repeat.items()]
        safe = "-".join([f"{trial:04d}", *parts]).replace("/", "_").replace(" ", "")
        return RunFolder(inside(self.path, "trials", safe))

    def log(self, run: RunFolder) -> Path:
        """Return the path of a run's output.

        It lies beside the run's folder, which is deleted if the run is refused before it begins.
        """
        return inside(self.path, "trials", f"{run.path.name}.log")


def epochs(run: RunFolder) -> list[dict[str, float]]:
    """Return the finished epochs of a run, as its history.csv has them.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with open_text(run.history) as file:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, csv.Error) as error:  # TypeError: a row too long
        raise _unreadable(run, error) from error


def read_checkpoint_config(run: RunFolder) -> CheckpointConfig:
    """Return a run's choice of its best epoch, as its config.yaml has it.

    Raises:
        UserError: The file cannot be read, or has a value that is none.
    """
    config = yaml.read_mapping(run.config).get("checkpoint")
    values.check("checkpoint", config, CheckpointConfig, closed=True)
    return CheckpointConfig(**config)  # type: ignore[arg-type]  # just checked


def values_at(
    run: RunFolder,
    rows: Sequence[Mapping[str, float]],
    checkpoint: CheckpointConfig,
    metrics: Sequence[str],
) -> list[float]:
    """Return the values that a training would have if it ended after some epochs.

    Args:
        run: The run, for errors.
        rows: The epochs, at least one, as `epochs` gives them.
        checkpoint: Choice of the best of them.
        metrics: Names of the values.

    Raises:
        UserError: The best epoch lacks a metric.
    """
    judged = [row.get(checkpoint.monitor, 0.0) for row in rows]
    best = rows[checkpoint.best(judged)]
    try:
        return [best[name] for name in metrics]
    except KeyError as error:
        raise _unreadable(run, error) from error


def final_values(run: RunFolder, metrics: Sequence[str]) -> list[float]:
    """Return the values of a finished run.

    Args:
        run: The run.
        metrics: Names of the values.

    Raises:
        UserError: Its files cannot be read.
    """
    try:
        result = strict_json.read_mapping(run.metrics)
        rows = epochs(run)
        known = {f"val/{k}": float(v["value"]) for k, v in result["val"]["metrics"].items()}
        known["seconds"] = sum(row["seconds"] for row in rows)
        known["parameters"] = float(result["parameters"])
        known["val/loss"] = next(r for r in rows if r["epoch"] == result["epoch"])["val/loss"]
        return [known[name] for name in metrics]
    except (UserError, OSError, ValueError, LookupError, TypeError, StopIteration) as error:
        raise _unreadable(run, error) from error


def _unreadable(run: RunFolder, error: Exception) -> UserError:
    return UserError(f"cannot read the run {run.path}: {error}; delete it, and go on")


def merged(experiment: Mapping[str, Any], point: Point) -> dict[str, Any]:
    """Return a copy of an experiment with some of its keys set.

    Args:
        experiment: Content of the experiment's file.
        point: The values to set, by their option on the command line, as `data.view`.
    """
    result: dict[str, Any] = json.loads(json.dumps(dict(experiment)))
    if isinstance(result.get("data"), str):
        result["data"] = {"class_path": result["data"]}
    for path, value in point.items():
        *groups, name = ["data", "class_path"] if path == "data" else keys.path_in_yaml(path)
        inner = result
        for group in groups:
            if not isinstance(inner.get(group), dict):
                inner[group] = {}
            inner = inner[group]
        inner[name] = value
    return result
