"""Reads finished runs back, and says of every other why it is left out."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np

from cellbench.config import keys, strict_json, yaml
from cellbench.data.splits import read_split
from cellbench.data.table import Part
from cellbench.errors import UserError
from cellbench.runs.folder import RunFolder
from cellbench.runs.predictions import Predictions, read_predictions


@dataclass(frozen=True)
class Drawn:
    """A split, as split.csv has it.

    Attributes:
        digest: Of the file; the same for runs that can be compared.
        parts: Each part's sample ids, in the table's order.
        label: Each sample's class.
        group: Each sample's group.
        content: Each sample's content digest.
        images: A digest of all samples, their classes and contents, however they are divided.
        shared: The groups and contents that stand in more than one of train, val and test.
    """

    digest: str
    parts: Mapping[str, list[str]]
    label: Mapping[str, str]
    group: Mapping[str, str]
    content: Mapping[str, str]
    images: str
    shared: frozenset[str]

    def prior(self, classes: Sequence[str]) -> np.ndarray:
        """The classes' shares of the training split, (classes,)."""
        counts = Counter(self.label[name] for name in self.parts["train"])
        return np.array([counts[name] for name in classes]) / max(counts.total(), 1)


@dataclass(frozen=True)
class Finished:
    """A run that has been tested.

    Attributes:
        folder: Where it lies.
        config: Its configuration, flat: dotted keys as on the command line.
        metrics: What metrics.json holds.
        split: Its split.
        classes: The class names.
        parts: Its predictions of each part; the test split's are there.
        environment: What environment.json holds; empty where it is not to be read.
    """

    folder: RunFolder
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    split: Drawn
    classes: tuple[str, ...]
    parts: Mapping[Part, Predictions]
    environment: Mapping[str, Any]

    @property
    def started(self) -> str:
        """When it began, so that later is greater; empty where that is not known."""
        try:
            return datetime.fromisoformat(self.environment["started"]).astimezone(UTC).isoformat()
        except (KeyError, TypeError, ValueError):
            return ""

    @property
    def experiment(self) -> str:
        """Its name."""
        return str(self.metrics["experiment"])

    @property
    def fold(self) -> int | None:
        """Which fold it was tested on; None where there are none."""
        return self.metrics["split"]["fold"]  # type: ignore[no-any-return]

    @property
    def masks(self) -> str | None:
        """A digest of the masks that the view uses; empty if it uses none, None if not known."""
        return self.metrics["split"].get("masks")  # type: ignore[no-any-return]

    @property
    def seed(self) -> int:
        """seed_everything."""
        return int(self.metrics["seed"])

    @property
    def repeat(self) -> tuple[int | None, int, int]:
        """Fold, the split's seed, and its own: what is repeated within a condition."""
        return self.fold, int(self.config.get("data.split.seed") or 0), self.seed

    @property
    def test(self) -> Predictions:
        """Its predictions of the test split."""
        return self.parts["test"]


@dataclass(frozen=True)
class LeftOut:
    """A run that cannot be counted.

    Attributes:
        path: Its folder.
        reason: Why.
        damaged: Whether something is wrong with it; one that is not finished, or not tested, is
            only not done.
    """

    path: Path
    reason: str
    damaged: bool = True


def read_finished(paths: Sequence[Path]) -> tuple[list[Finished], list[LeftOut]]:
    """Reads all runs below some folders.

    The test of a run that was trained without one (a search's choice) is looked for in its folder
    `test`.

    Returns:
        The runs that have been tested, in the order of the paths and names, and those left out.
    """
    splits: dict[str, Drawn] = {}
    finished, left = [], []
    for folder in _runs_below(paths):
        try:
            finished.append(_read(folder, splits))
        except UserError as error:
            left.append(LeftOut(folder.path, str(error)))
        except _NotDone as reason:
            left.append(LeftOut(folder.path, str(reason), damaged=False))
    return finished, left


class _NotDone(Exception):
    """A run that has not been tested, or not yet."""


def _runs_below(paths: Sequence[Path]) -> Iterator[RunFolder]:
    seen = set()
    for path in paths:
        for config in sorted(_configs(path)):
            parent = config.parent.parent
            scored = (
                parent.name in ("test", "validate") and (parent.parent / "config.yaml").is_file()
            )
            place = config.parent.resolve()
            if not scored and place not in seen:  # else a later test of that run
                seen.add(place)
                yield RunFolder(config.parent)


def _configs(path: Path) -> Iterator[Path]:
    """Yield the config.yaml of every run below a folder, those that are lost as well.

    Links to folders are not followed.
    """
    for folder, _, names in os.walk(path):
        if not {"config.yaml", "metrics.json"}.isdisjoint(names):
            yield Path(folder, "config.yaml")


def _read(folder: RunFolder, splits: dict[str, Drawn]) -> Finished:
    folder.check()
    if not folder.config.is_file():
        raise UserError("it has no config.yaml, so that its condition is not known; restore it")
    if not folder.metrics.is_file():
        raise _NotDone("it is not finished: there is no metrics.json")
    config = _plain(folder.config)
    metrics = read_metrics(folder)
    tested = folder
    if "test" not in metrics:
        own = metrics["split"]["digest"]
        later = [folder.tested(p.parent.name) for p in folder.tests]
        same = [each for each in later if read_metrics(each)["split"]["digest"] == own]
        if not same:
            raise _NotDone("its test split has not been scored")
        tested = same[0]  # a search's one test
        metrics = read_metrics(tested)
    split = _split(tested, splits)
    if split.digest != metrics["split"]["digest"]:
        raise UserError(
            f"split.csv has the digest {split.digest[:12]}, and metrics.json says "
            f"{metrics['split']['digest'][:12]}"
        )
    classes, parts = read_predictions(tested.predictions)
    if tested is not folder and folder.predictions.is_file():
        parts = read_predictions(folder.predictions)[1] | parts  # the validation split's
    if "test" not in parts:
        raise UserError("predictions.csv holds no test split")
    for part, given in parts.items():
        _check(part, given, classes, split)
    return Finished(folder, config, metrics, split, classes, parts, _environment(folder))


def _plain(path: Path) -> dict[str, Any]:
    try:
        return dict(keys.flatten(yaml.read_mapping(path)))
    except UserError as error:
        raise UserError(f"cannot read config.yaml: {error}") from error


def read_metrics(folder: RunFolder) -> dict[str, Any]:
    """Read a run's metrics.json, and check what says which run it is.

    Raises:
        UserError: It cannot be read, or lacks a key.
    """
    try:
        found = strict_json.read_mapping(folder.metrics)
        split = found["split"]
        known = (
            (found["experiment"], str),
            (found["seed"], int),
            (found["stamps"], list),
            (split["digest"], str),
            (split.get("masks"), str | None),
            (split["protocol"], str),
            (split["folds"], int | None),
            (split["fold"], int | None),
        )
        for value, kind in (*known, *((stamp, str) for stamp in found["stamps"])):
            if not isinstance(value, kind):
                raise TypeError(f"unexpected {value!r}")
    except UserError as error:
        raise UserError(f"cannot read metrics.json: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"cannot read metrics.json: {error!r}") from error
    return found


def _environment(folder: RunFolder) -> dict[str, Any]:
    with suppress(UserError):
        return strict_json.read_mapping(folder.environment)
    return {}


def _split(folder: RunFolder, splits: dict[str, Drawn]) -> Drawn:
    """The split; one that many runs share is parsed once."""
    try:
        digest = hashlib.sha256(folder.split.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read split.csv: {error.strerror}") from error
    if digest not in splits:
        rows = read_split(folder.split)
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for row in rows:
            parts.setdefault(row["split"], []).append(row["id"])
        splits[digest] = Drawn(
            digest,
            parts,
            {row["id"]: row["class"] for row in rows},
            {row["id"]: row["group"] for row in rows},
            {row["id"]: row["content"] for row in rows},
            _images(rows),
            _shared(rows),
        )
    return splits[digest]


def _images(rows: Sequence[Mapping[str, str]]) -> str:
    table = sorted((row["id"], row["class"], row["content"]) for row in rows)
    return hashlib.blake2b(repr(table).encode(), digest_size=6).hexdigest()


def _shared(rows: Sequence[Mapping[str, str]]) -> frozenset[str]:
    where: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        if row["split"] in get_args(Part):  # what is purged is in none
            where["group", row["group"]].add(row["split"])
            where["content", row["content"]].add(row["split"])
    return frozenset(name for (_, name), parts in where.items() if len(parts) > 1)


def _check(part: Part, given: Predictions, classes: tuple[str, ...], split: Drawn) -> None:
    ids = split.parts[part]
    if given.ids != ids:
        raise UserError(
            f"predictions.csv has {len(given.ids)} samples of the {part} split, and split.csv "
            f"{len(ids)}"
            if len(given.ids) != len(ids)
            else f"predictions.csv has other samples in the {part} split than split.csv"
        )
    if lacking := set(classes) - {split.label[name] for name in ids} if part == "test" else set():
        raise UserError(f"the test split has no '{sorted(lacking)[0]}'")
    values = given.probabilities
    if (values < 0).any() or np.abs(values.sum(axis=1) - 1).max() > 1e-2:
        raise UserError(f"predictions.csv: probabilities of the {part} split do not add up to 1")
    if [classes[label] for label in given.labels] != [split.label[name] for name in ids]:
        raise UserError(f"predictions.csv has other labels in the {part} split than split.csv")
