"""Where a sweep's files lie, and what a run of it has to say."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellbench.config import keys, strict_json, values, yaml
from cellbench.errors import UserError
from cellbench.foreign import inside, open_text
from cellbench.runs.checkpoint import CheckpointConfig
from cellbench.runs.folder import RunFolder
from cellbench.sweeps.space import Point


@dataclass(frozen=True)
class SweepFolder:
    """The files of one sweep.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def lock(self) -> Path:
        """Held by the process that runs the sweep on this machine."""
        return inside(self.path, ".lock")

    @property
    def file(self) -> Path:
        """The sweep's file, the experiment's configuration and the command's options."""
        return inside(self.path, "sweep.yaml")

    @property
    def trials(self) -> Path:
        """A row a trial."""
        return inside(self.path, "trials.csv")

    @property
    def best(self) -> Path:
        """The best parameters, as an experiment."""
        return inside(self.path, "best.yaml")

    def figure(self, name: str) -> Path:
        """A figure's file."""
        return inside(self.path, "figures", f"{name}.png")

    def run(self, trial: int, repeat: Mapping[str, Any]) -> RunFolder:
        """The folder of a trial's run.

        Args:
            trial: The trial's number.
            repeat: The run's fold, seed or whatever is repeated.
        """
        parts = [f"{path.rpartition('.')[2]}{value}" for path, value in repeat.items()]
        safe = "-".join([f"{trial:04d}", *parts]).replace("/", "_").replace(" ", "")
        return RunFolder(inside(self.path, "trials", safe))

    def log(self, run: RunFolder) -> Path:
        """What a run has printed; beside its folder, which is made anew where it never began."""
        return inside(self.path, "trials", f"{run.path.name}.log")


def epochs(run: RunFolder) -> list[dict[str, float]]:
    """Return the epochs that a run has finished, as its history.csv tells them.

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


def values_at(run: RunFolder, rows: list[dict[str, float]], metrics: list[str]) -> list[float]:
    """What a training is worth if it ends after some epochs: the scores of the best of them."""
    config = yaml.read_mapping(run.config).get("checkpoint")
    values.check("checkpoint", config, CheckpointConfig, closed=True)
    checkpoint = CheckpointConfig(**config)  # type: ignore[arg-type]  # just checked
    judged = [row.get(checkpoint.monitor, 0.0) for row in rows]
    best = rows[checkpoint.best(judged)]
    try:
        return [best[name] for name in metrics]
    except KeyError as error:
        raise _unreadable(run, error) from error


def final_values(run: RunFolder, metrics: list[str]) -> list[float]:
    """What a finished run is worth.

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
    """An experiment's own keys, with some of them set.

    Args:
        experiment: The experiment's file.
        point: Values by the command line's paths.
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
