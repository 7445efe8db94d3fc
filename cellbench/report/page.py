"""The report as a single HTML page."""

import csv
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

import cellbench
from cellbench.artifacts.attributions import (
    TITLES,
    Attribution,
    read_attributions,
    summarise,
)
from cellbench.artifacts.conditions import Condition
from cellbench.artifacts.finished import Finished
from cellbench.artifacts.folder import whole_file
from cellbench.config import strict_json, yaml
from cellbench.data import files
from cellbench.data.image_format import ImageFormat, Intensity
from cellbench.data.views import as_rgb
from cellbench.report import figures
from cellbench.report.comparison import Comparison, curves
from cellbench.report.report import (
    Report,
    Scored,
    shown_judgement,
    shown_numbers,
    shown_p,
    shown_size,
)
from cellbench.utils.errors import UserError
from cellbench.utils.html_page import jpeg, png, render
from cellbench.utils.untrusted import inside, open_text

MAX_CONDITIONS = 8
"""Greatest number of conditions that are shown in detail; report.json has all."""

MAX_ERRORS = 12
"""Greatest number of a condition's wrong images on the page, the most confident errors first."""

MAX_LINES = 7
"""Greatest number of lines in a figure of curves."""

PICTURE_WIDTH = 1000
"""Width of a picture of attributions, pixels."""

IMAGE_HEIGHT = 96
"""Height of an image on the page, pixels."""


def render_page(
    report: Report, paths: Sequence[Path], name: str, audit: Path | None, command: Sequence[str]
) -> str:
    """Return the page's HTML, which needs no other file and no network, and runs no script.

    Args:
        report: The report.
        paths: Folders that were read; sweeps may be among them, or below.
        name: Title of the report.
        audit: The dataset's audit.json; None if there is none.
        command: Arguments of the command `report`.

    Raises:
        UserError: The audit cannot be read.
    """
    shown = report.scored[:MAX_CONDITIONS]
    compared = _drawable(report)
    return render(
        Path(__file__).with_name("page.html"),
        name=name,
        version=cellbench.__version__,
        report=report,
        metric=report.metric.replace("_", " "),
        classes=report.scored[0].condition.classes,
        shown=shown,
        shown_judgement=shown_judgement,
        shown_numbers=shown_numbers,
        shown_size=shown_size,
        shown_p=shown_p,
        damaged=[one for one in report.left if one.damaged],
        unfinished=Counter(one.reason for one in report.left if not one.damaged),
        splits=list(_splits(report.conditions)),
        audit=None if audit is None else _audit(audit),
        forest=figures.forest(compared, report.rope, report.metric) if compared else None,
        curves=[figures.curve(report.scored, key, report.metric) for key in _curves(report)],
        learning=_learning_curves(shown),
        calibrations=[figures.calibration(one) for one in shown],
        errors=[_errors(one) for one in shown],
        looks=[look for one in shown if (look := _looks(one.condition)) is not None],
        titles=TITLES,
        images_there=any(_root(one.condition.runs[0]) is not None for one in shown),
        ran=_ran(report.conditions),
        sweeps=list(_sweeps(paths)),
        again=shlex.join(["python", "-m", "cellbench", "report", *command]),
    )


def save_figures(report: Report, folder: Path) -> list[Path]:
    """Write the figures of the comparison as PNG files.

    Returns:
        Paths of the files.

    Raises:
        CannotWrite: One cannot be written.
    """
    by_name = {}
    if compared := _drawable(report):
        by_name["differences"] = figures.forest(compared, report.rope, report.metric)
    if (learning := _learning_curves(report.scored[:MAX_CONDITIONS])) is not None:
        by_name["learning"] = learning
    paths = []
    for name, figure in by_name.items():
        paths.append(folder / f"{name}.png")
        with whole_file(paths[-1]) as beside:
            figure.savefig(beside, format="png", dpi=150)
    return paths


def _drawable(report: Report) -> list[Comparison]:
    """Return the comparisons with an interval that can be drawn."""
    found = [(one, one.contrast.difference) for one in report.comparisons]
    return [one for one, size in found if size is not None and size.low is not None]


def _learning_curves(scored: Sequence[Scored]) -> Figure | None:
    """Draw the learning curves of conditions; None if no run has any."""
    histories = [(one.condition.name, _histories(one.condition)) for one in scored]
    learned = [(name, runs) for name, runs in histories if runs]
    if not learned:
        return None
    names, runs = zip(*learned, strict=True)
    return figures.learning_curves(runs, names)


def _curves(report: Report) -> list[str]:
    """Return the options over which curves of a few lines can be drawn."""
    found = report.conditions
    keys = curves(found) if report.comparisons else []
    return [
        key for key in keys if len(figures.lines(report.scored, key)) in range(1, MAX_LINES + 1)
    ]


def _splits(found: Sequence[Condition]) -> Iterator[dict[str, Any]]:
    """Yield a summary of each kind of split that was used."""
    kinds: dict[tuple[Any, ...], list[Finished]] = {}
    for condition in found:
        for run in condition.runs:
            split = run.metrics["split"]
            key = (split["protocol"], split["folds"], len(run.split.label))
            kinds.setdefault(key, []).append(run)
    for (protocol, folds, n), runs in kinds.items():
        of_digest = {run.split.digest: run.split for run in runs}
        yield {
            "protocol": protocol,
            "folds": folds,
            "n": n,
            "groups": len(set(runs[0].split.group.values())),
            # Runs of earlier versions do not say.
            "known": runs[0].metrics["split"].get("groups", ""),
            "sizes": {
                part: sorted({len(split.parts[part]) for split in of_digest.values()})
                for part in ("train", "val", "test")
            },
            "digests": sorted(digest[:12] for digest in of_digest),
            "shared": max(len(split.shared) for split in of_digest.values()),
        }


def _audit(path: Path) -> dict[str, Any]:
    """Return the verdict of an audit.json."""
    try:
        found = strict_json.read_mapping(path)
        return {"verdict": str(found["verdict"]), "holds": bool(found["holds"])}
    except (UserError, KeyError) as error:
        raise UserError(f"--audit: {path} is not an audit.json ({error})") from error


def _histories(condition: Condition) -> list[dict[str, np.ndarray]]:
    """Return the validation curves of each run that has them."""
    found = []
    for run in condition.runs:
        with suppress(KeyError, ValueError, TypeError):  # a damaged file is left out
            rows = _history(run)
            found.append(
                {
                    name: np.array([float(row[f"val/{name}"]) for row in rows])
                    for name in ("loss", "accuracy")
                }
            )
    return [curves for curves in found if len(curves["loss"])]


def _history(run: Finished) -> list[dict[str, str]]:
    """Return the rows of a run's history.csv; empty if it cannot be read."""
    try:
        with open_text(run.folder.history) as file:
            return list(csv.DictReader(file))
    except (UserError, OSError, ValueError, csv.Error):
        return []


def _errors(one: Scored) -> dict[str, Any]:
    """Return a condition's errors: their numbers, and images of the most confident ones."""
    pooled, condition = one.pooled, one.condition
    predicted = pooled.probabilities.argmax(axis=1)
    confidence = pooled.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != pooled.labels)
    tested, missed = Counter(pooled.ids), Counter(pooled.ids[i] for i in wrong)
    first: dict[str, int] = {}
    for i in wrong[np.argsort(-confidence[wrong], kind="stable")]:
        first.setdefault(pooled.ids[i], int(i))
    run = condition.runs[0]
    return {
        "samples": len(first),
        "several": max(tested.values()) > 1,
        "always": sum(missed[sample] == tested[sample] for sample in first),
        "images": [
            {
                "id": sample,
                "image": _picture(run, sample),
                "true": condition.classes[pooled.labels[i]],
                "predicted": condition.classes[predicted[i]],
                "confidence": float(confidence[i]),
                "missed": missed[sample],
                "tested": tested[sample],
            }
            for sample, i in list(first.items())[:MAX_ERRORS]
        ],
    }


def _looks(condition: Condition) -> dict[str, Any] | None:
    """Return a condition's attributions; None if there are none, or their files are damaged."""
    found: list[Attribution] = []
    groups: dict[str, str] = {}
    pictures: list[Path] = []
    for run in condition.runs:
        path, picture = run.folder.attributions, run.folder.figure("attributions")
        with suppress(UserError):
            found += read_attributions(path)
            groups |= run.split.group
            pictures.append(picture)
    if not found:
        return None
    shown = [path for path in pictures if path.is_file()]
    return {
        "condition": condition,
        "runs": len(pictures),
        "summaries": summarise(found, groups),
        "picture": jpeg(_sized(files.read_image(shown[0]), width=PICTURE_WIDTH)) if shown else "",
    }


def _sized(image: np.ndarray, width: int) -> np.ndarray:
    """Return an image scaled to a width in pixels."""
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def _root(run: Finished) -> Path | None:
    """Return the folder that the samples' ids are relative to; None if it is not here."""
    root = run.config.get("data.root")
    return Path(root) if isinstance(root, str) and Path(root).is_dir() else None


def _shown_format(run: Finished) -> ImageFormat:
    """Return the format in which a run's images can be shown: each with limits of its own."""
    scaled = any(key.startswith("data.intensity.") for key in run.config)
    channels = run.config.get("data.channels")
    try:
        return ImageFormat(
            None if channels is None else tuple(channels),
            Intensity("percentile 1", "percentile 99") if scaled else None,
        )
    except (UserError, TypeError):
        return ImageFormat()  # no run has such a configuration


def _picture(run: Finished, sample: str) -> str:
    """Return a sample's image as a data URL; empty if it is not exactly the one that was tested.

    The folder and the names come from files that anybody may have written. No other file of this
    machine may get onto a page that is passed on.
    """
    root = _root(run)
    try:
        if root is None or files.fingerprint(root / sample) != run.split.content[sample]:
            return ""
        image = as_rgb(files.read_image(root / sample, image_format=_shown_format(run)))
    except (UserError, ValueError):
        return ""
    width = min(max(1, round(image.shape[1] * IMAGE_HEIGHT / image.shape[0])), 3 * IMAGE_HEIGHT)
    return jpeg(_sized(image, width))


def _ran(found: Sequence[Condition]) -> dict[str, Any]:
    """Return the settings, machines, versions, commands and times of the runs."""
    runs = [run for condition in found for run in condition.runs]
    keys = sorted({key for run in runs for key in run.config})
    values = {key: {str(run.config.get(key)) for run in runs} for key in keys}
    seconds = [_seconds(run) for run in runs]
    environments = [run.environment for run in runs]

    def different(*keys: str) -> list[str]:
        """Return the different values of some keys of environment.json."""
        shown = (", ".join(str(own[k]) for k in keys if own.get(k)) for own in environments)
        return sorted({each for each in shown if each})

    versions: dict[str, set[str]] = defaultdict(set)
    for own in environments:
        known = own.get("packages")
        for package, version in (known if isinstance(known, dict) else {}).items():
            versions[str(package)].add(str(version))
        for package in ("python", "cellbench", "commit"):
            if own.get(package):
                versions[package].add(str(own[package]))
    commands = Counter(
        shlex.join(["python", "-m", "cellbench", *map(str, own["command"][1:])])
        for own in environments
        if isinstance(own.get("command"), list)
    )
    return {
        "runs": len(runs),
        "same": {key: next(iter(own)) for key, own in values.items() if len(own) == 1},
        "differ": [key for key in keys if key in found[0].settings],
        "hours": sum(seconds) / 3600,
        "median": float(np.median(seconds)),
        "machines": different("gpu", "cpu", "cores", "platform"),
        "devices": different("device", "devices"),
        "precisions": different("precision"),
        "versions": {package: sorted(own) for package, own in sorted(versions.items())},
        "commands": commands.most_common(5),
        "more": max(len(commands) - 5, 0),
    }


def _seconds(run: Finished) -> float:
    """Return the seconds of a training times its devices; 0 if they are not known."""
    with suppress(KeyError, ValueError, TypeError):
        trained = sum(float(row["seconds"]) for row in _history(run))
        return trained * int(run.environment.get("devices") or 1)
    return 0.0


def _sweeps(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the figures and the command of each sweep below the folders.

    Raises:
        UserError: A figure is a link to somewhere else.
    """
    for file in sorted({each for path in paths for each in path.rglob("sweep.yaml")}):
        path = file.parent
        source = inside(path, "sweep.yaml")
        found = sorted(inside(path, "figures").glob("*.png"))
        pictures = [inside(path, "figures", each.name) for each in found]
        try:
            stored = yaml.read_mapping(source)
        except UserError:  # damaged; its runs are reported all the same
            continue
        yield {
            "name": path.name,
            "command": f"python -m cellbench {stored.get('command', '')}",
            "figures": [{"name": each.stem, "image": png(each)} for each in pictures],
        }
