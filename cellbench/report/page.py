"""The report as one page, with everything in it."""

import csv
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

import cellbench
from cellbench.data import files
from cellbench.errors import UserError
from cellbench.page import jpeg, png, render
from cellbench.report import figures
from cellbench.report.comparison import curves
from cellbench.report.report import Report, Scored, judgement, shown_p
from cellbench.runs.attributions import (
    NAME,
    TITLES,
    Attribution,
    read_attributions,
    summarise,
)
from cellbench.runs.conditions import Condition
from cellbench.runs.finished import Finished
from cellbench.runs.folder import whole_file

SHOWN = 8
"""Conditions whose classes, confusion, calibration and errors are shown; report.json has all."""

ERRORS = 12
"""Wrongly classified images of a condition that are shown, the most certain first."""

LOOK = 1000
"""Pixels of the width of a picture of where a network looks."""

HEIGHT = 96
"""Pixels of an image on the page."""


def render_page(report: Report, paths: Sequence[Path], name: str, audit: Path | None) -> str:
    """The page's HTML: it needs no other file and no network, and runs no script.

    Args:
        report: What it says.
        paths: The folders that were read, for sweeps' own figures, and to say how it was made.
        name: What it is the report of.
        audit: The audit.json of the dataset, if there is one.

    Raises:
        UserError: The audit cannot be read.
    """
    shown = report.scored[:SHOWN]
    compared = [one for one in report.comparisons if one.contrast.difference is not None]
    histories = [_histories(one.condition) for one in shown]
    learned = [k for k, runs in enumerate(histories) if runs]
    return render(
        Path(__file__).with_name("page.html"),
        name=name,
        version=cellbench.__version__,
        report=report,
        metric=report.metric.replace("_", " "),
        classes=report.scored[0].condition.classes,
        shown=shown,
        judgement=judgement,
        shown_p=shown_p,
        damaged=[one for one in report.left if one.damaged],
        unfinished=Counter(one.reason for one in report.left if not one.damaged),
        splits=list(_splits(report.conditions)),
        audit=None if audit is None else _audit(audit),
        forest=figures.forest(compared, report.rope, report.metric) if compared else None,
        curves=[figures.curve(report.scored, key, report.metric) for key in _curves(report)],
        learning=figures.learning_curves(
            [histories[k] for k in learned], [shown[k].condition.name for k in learned]
        )
        if learned
        else None,
        calibrations=[figures.calibration(one) for one in shown],
        errors=[_errors(one) for one in shown],
        looks=[look for one in shown if (look := _looks(one.condition)) is not None],
        titles=TITLES,
        images_there=any(_root(one.condition.runs[0]) is not None for one in shown),
        ran=_ran(report.conditions),
        sweeps=list(_sweeps(paths)),
        again=" ".join(["python -m cellbench report", *map(shlex.quote, map(str, paths))]),
    )


def save_figures(report: Report, folder: Path) -> list[Path]:
    """Writes the figures of the comparison as PNG files.

    Returns:
        The files.

    Raises:
        CannotWrite: One cannot be written.
    """
    drawn = {}
    compared = [one for one in report.comparisons if one.contrast.difference is not None]
    if compared:
        drawn["differences"] = figures.forest(compared, report.rope, report.metric)
    histories = {one.condition.name: _histories(one.condition) for one in report.scored[:SHOWN]}
    learned = {name: runs for name, runs in histories.items() if runs}
    if learned:
        drawn["learning"] = figures.learning_curves(list(learned.values()), list(learned))
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{name}.png")
        with whole_file(paths[-1]) as beside:
            figure.savefig(beside, format="png", dpi=150)
    return paths


def _curves(report: Report) -> list[str]:
    return curves(report.conditions) if report.comparisons else []


def _splits(found: Sequence[Condition]) -> Iterator[dict[str, Any]]:
    """Each kind of split that was used."""
    kinds: dict[tuple[Any, ...], list[Finished]] = {}
    for condition in found:
        for run in condition.runs:
            split = run.metrics["split"]
            key = (split["protocol"], split["folds"], len(run.split.label))
            kinds.setdefault(key, []).append(run)
    for (protocol, folds, n), runs in kinds.items():
        drawn = {run.split.digest: run.split for run in runs}
        yield {
            "protocol": protocol,
            "folds": folds,
            "n": n,
            "groups": len(set(runs[0].split.group.values())),
            "sizes": {
                part: sorted({len(split.parts[part]) for split in drawn.values()})
                for part in ("train", "val", "test")
            },
            "digests": sorted(digest[:12] for digest in drawn),
            "shared": max(len(split.shared) for split in drawn.values()),
        }


def _audit(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"verdict": str(found["verdict"]), "holds": bool(found["holds"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--audit: {path} is not an audit.json ({error})") from error


def _histories(condition: Condition) -> list[dict[str, np.ndarray]]:
    """The validation curves of each run that has them."""
    found = []
    for run in condition.runs:
        with suppress(OSError, KeyError, ValueError), run.folder.history.open(newline="") as file:
            rows = list(csv.DictReader(file))
            found.append(
                {
                    name: np.array([float(row[f"val/{name}"]) for row in rows])
                    for name in ("loss", "accuracy")
                }
            )
    return [curves for curves in found if len(curves["loss"])]


def _errors(one: Scored) -> dict[str, Any]:
    """The condition's wrongly classified samples: how often, and the most certain as pictures."""
    pooled, condition = one.pooled, one.condition
    predicted = pooled.probabilities.argmax(axis=1)
    confidence = pooled.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != pooled.labels)
    tested, missed = Counter(pooled.ids), Counter(pooled.ids[i] for i in wrong)
    first: dict[str, int] = {}
    for i in wrong[np.argsort(-confidence[wrong], kind="stable")]:
        first.setdefault(pooled.ids[i], int(i))
    root = _root(condition.runs[0])
    return {
        "samples": len(first),
        "always": sum(missed[sample] == tested[sample] for sample in first),
        "images": [
            {
                "id": sample,
                "image": _picture(root, sample),
                "true": condition.classes[pooled.labels[i]],
                "predicted": condition.classes[predicted[i]],
                "confidence": float(confidence[i]),
                "missed": missed[sample],
                "tested": tested[sample],
            }
            for sample, i in list(first.items())[:ERRORS]
        ],
    }


def _looks(condition: Condition) -> dict[str, Any] | None:
    """Where the networks look, if `explain` has been run; a damaged file does not count."""
    found: list[Attribution] = []
    groups: dict[str, str] = {}
    pictures: list[Path] = []
    for run in condition.runs:
        with suppress(UserError):
            found += read_attributions(run.folder.path / NAME)
            groups |= run.split.group
            pictures.append(run.folder.figure("attributions"))
    if not found:
        return None
    shown = [path for path in pictures if path.is_file()]
    return {
        "condition": condition,
        "runs": len(pictures),
        "summaries": summarise(found, groups),
        "picture": jpeg(_sized(files.read_image(shown[0]), width=LOOK)) if shown else "",
    }


def _sized(image: np.ndarray, width: int) -> np.ndarray:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def _root(run: Finished) -> Path | None:
    """The folder that the samples' ids are paths below, where it is here."""
    root = run.config.get("data.root")
    return Path(root) if root is not None and Path(root).is_dir() else None


def _picture(root: Path | None, sample: str) -> str:
    """A sample's image as a data URL; empty where it is no file below the root."""
    if root is None:
        return ""
    path = (root / sample).resolve()
    if not path.is_relative_to(root.resolve()):  # the name may be anybody's
        return ""
    try:
        image = files.read_image(path)
    except UserError:
        return ""
    width = min(max(1, round(image.shape[1] * HEIGHT / image.shape[0])), 3 * HEIGHT)
    return jpeg(_sized(image, width))


def _ran(found: Sequence[Condition]) -> dict[str, Any]:
    """What was run, on what, and for how long."""
    runs = [run for condition in found for run in condition.runs]
    keys = sorted({key for run in runs for key in run.config})
    values = {key: {str(run.config.get(key)) for run in runs} for key in keys}
    environments = [own for run in runs if (own := _environment(run)) is not None]
    seconds = [_seconds(run) for run in runs]
    machines = Counter(
        ", ".join(str(own.get(key)) for key in ("gpu", "cpu", "cores", "platform") if own.get(key))
        for own in environments
    )
    versions: dict[str, set[str]] = {}
    for own in environments:
        for package, version in {
            "python": own["python"],
            "cellbench": f"{own['cellbench']} ({own.get('commit') or 'no commit'})",
            **own["packages"],
        }.items():
            versions.setdefault(package, set()).add(version)
    commands = Counter(
        shlex.join(["python", "-m", "cellbench", *own["command"][1:]]) for own in environments
    )
    return {
        "runs": len(runs),
        "same": {key: next(iter(own)) for key, own in values.items() if len(own) == 1},
        "differ": [key for key in keys if key in found[0].settings],
        "hours": sum(seconds) / 3600,
        "median": float(np.median(seconds)),
        "machines": machines,
        "devices": sorted({f"{own['device']} x {own['devices']}" for own in environments}),
        "precisions": sorted({str(own["precision"]) for own in environments}),
        "versions": {package: sorted(own) for package, own in sorted(versions.items())},
        "commands": commands.most_common(5),
        "more": max(len(commands) - 5, 0),
    }


def _seconds(run: Finished) -> float:
    """Seconds of training, times the devices."""
    with suppress(OSError, KeyError, ValueError), run.folder.history.open(newline="") as file:
        trained = sum(float(row["seconds"]) for row in csv.DictReader(file))
        return trained * int(run.config.get("trainer.devices") or 1)
    return 0.0


def _environment(run: Finished) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        found = json.loads(run.folder.environment.read_text(encoding="utf-8"))
        if {"devices", "device", "python", "packages", "command", "precision"} <= found.keys():
            return dict(found)
    return None


def _sweeps(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """What the sweeps among the folders have drawn, and how they were begun."""
    for path in paths:
        if not (path / "sweep.yaml").is_file():
            continue
        with suppress(OSError, yaml.YAMLError, AttributeError):
            told = yaml.safe_load((path / "sweep.yaml").read_text(encoding="utf-8"))
            drawn = sorted((path / "figures").glob("*.png"))
            yield {
                "name": path.name,
                "command": f"python -m cellbench {told.get('command', '')}",
                "figures": [{"name": each.stem, "image": png(each)} for each in drawn],
            }
