"""Finished runs, read from their folders, and the reasons why others are left out."""

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

from cellbench.artifacts.folder import RunFolder
from cellbench.artifacts.predictions import Predictions, read_predictions
from cellbench.config import keys, strict_json, yaml
from cellbench.data.splits import read_split
from cellbench.data.table import Part
from cellbench.utils.errors import UserError


@dataclass(frozen=True)
class StoredSplit:
    """A split, as read from split.csv."""

    digest: str
    """Digest of the file; equal for runs that can be compared."""
    parts: Mapping[str, list[str]]
    """Ids of the samples in each part, in the table's order."""
    label: Mapping[str, str]
    """Class of each sample."""
    group: Mapping[str, str]
    """Group of each sample."""
    content: Mapping[str, str]
    """Digest of each sample's content."""
    images: str
    """Digest of all samples with their classes and contents, without the division into parts."""
    shared: frozenset[str]
    """Groups and contents that are in more than one of train, val and test."""

    def prior(self, classes: Sequence[str]) -> np.ndarray:
        """Return each class's share of the training split, float64, (classes,)."""
        counts = Counter(self.label[name] for name in self.parts["train"])
        return np.array([counts[name] for name in classes]) / max(counts.total(), 1)


@dataclass(frozen=True)
class Finished:
    """A run that has been tested."""

    folder: RunFolder
    """The run's folder."""
    config: Mapping[str, Any]
    """The configuration, flat, with dotted keys as on the command line."""
    metrics: Mapping[str, Any]
    """Content of metrics.json."""
    split: StoredSplit
    """The split."""
    classes: tuple[str, ...]
    """The class names."""
    parts: Mapping[Part, Predictions]
    """Predictions of each part that was scored, the test split among them."""
    environment: Mapping[str, Any]
    """Content of environment.json; empty if it cannot be read."""

    @property
    def started(self) -> str:
        """Time of its start in ISO format and UTC; empty if it is not known."""
        try:
            return datetime.fromisoformat(self.environment["started"]).astimezone(UTC).isoformat()
        except (KeyError, TypeError, ValueError):
            return ""

    @property
    def experiment(self) -> str:
        """Name of its experiment."""
        return str(self.metrics["experiment"])

    @property
    def fold(self) -> int | None:
        """Number of the fold that it was tested on; None if there are no folds."""
        return self.metrics["split"]["fold"]  # type: ignore[no-any-return]

    @property
    def masks(self) -> str | None:
        """Digest of the masks that the view uses; empty if it uses none, None if not known."""
        return self.metrics["split"].get("masks")  # type: ignore[no-any-return]

    @property
    def seed(self) -> int:
        """Value of seed_everything."""
        return int(self.metrics["seed"])

    @property
    def repeat(self) -> tuple[int | None, int, int]:
        """Fold, seed of the split, and own seed, in which the runs of one condition differ."""
        return self.fold, int(self.config.get("data.split.seed") or 0), self.seed

    @property
    def test(self) -> Predictions:
        """Predictions of the test split."""
        return self.parts["test"]


@dataclass(frozen=True)
class LeftOut:
    """A run that cannot be counted."""

    path: Path
    """The run's folder."""
    reason: str
    """Reason why it is left out."""
    damaged: bool = True
    """True if something is wrong with it, False if it is only not finished or not tested."""


def read_finished(paths: Sequence[Path]) -> tuple[list[Finished], list[LeftOut]]:
    """Read all runs below some folders.

    A run that was trained without a test, as in a search, may have been tested later; its test is
    read from its folder `test`.

    Returns:
        The runs that have been tested, in the order of the paths and names, and those left out.
    """
    splits: dict[str, StoredSplit] = {}
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
    """Error for a run that is not finished, or not tested."""


def _runs_below(paths: Sequence[Path]) -> Iterator[RunFolder]:
    """Yield each run below some folders once, without the later tests in a run's folder."""
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
    """Yield the path of config.yaml for every run below a folder, even if that file is missing.

    Links to folders are not followed.
    """
    for folder, _, names in os.walk(path):
        if not {"config.yaml", "metrics.json"}.isdisjoint(names):
            yield Path(folder, "config.yaml")


def _read(folder: RunFolder, splits: dict[str, StoredSplit]) -> Finished:
    """Read a run.

    Args:
        folder: The run's folder.
        splits: Splits that were read before, by digest; new ones are added.

    Raises:
        UserError: A file is missing, damaged, or contradicts another one.
        _NotDone: The run is not finished, or not tested.
    """
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
    """Return the configuration in a config.yaml, with dotted keys."""
    try:
        return dict(keys.flatten(yaml.read_mapping(path)))
    except UserError as error:
        raise UserError(f"cannot read config.yaml: {error}") from error


def read_metrics(folder: RunFolder) -> dict[str, Any]:
    """Read a run's metrics.json, and check the entries that identify the run.

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
            (split.get("groups"), str | None),
            (split["protocol"], str),
            (split["folds"], int | None),
            (split["fold"], int | None),
        )
        for value, kind in (*known, *((flag, str) for flag in found["stamps"])):
            if not isinstance(value, kind):
                raise TypeError(f"unexpected {value!r}")
    except UserError as error:
        raise UserError(f"cannot read metrics.json: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"cannot read metrics.json: {error!r}") from error
    return found


def _environment(folder: RunFolder) -> dict[str, Any]:
    """Return the content of environment.json; empty if it cannot be read."""
    with suppress(UserError):
        return strict_json.read_mapping(folder.environment)
    return {}


def _split(folder: RunFolder, splits: dict[str, StoredSplit]) -> StoredSplit:
    """Return the split of a run, which is parsed only if it is not in `splits` yet."""
    try:
        digest = hashlib.sha256(folder.split.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read split.csv: {error.strerror}") from error
    if digest not in splits:
        rows = read_split(folder.split)
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for row in rows:
            parts.setdefault(row["split"], []).append(row["id"])
        splits[digest] = StoredSplit(
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
    """Return a digest of all samples with their classes and contents."""
    table = sorted((row["id"], row["class"], row["content"]) for row in rows)
    return hashlib.blake2b(repr(table).encode(), digest_size=6).hexdigest()


def _shared(rows: Sequence[Mapping[str, str]]) -> frozenset[str]:
    """Return the groups and contents that are in more than one of train, val and test."""
    where: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        if row["split"] in get_args(Part):  # purged samples are in none of them
            where["group", row["group"]].add(row["split"])
            where["content", row["content"]].add(row["split"])
    return frozenset(name for (_, name), parts in where.items() if len(parts) > 1)


def _check(part: Part, given: Predictions, classes: tuple[str, ...], split: StoredSplit) -> None:
    """Check the predictions of a part against the split.

    Raises:
        UserError: They are of other samples or labels, or their probabilities do not add up to 1.
    """
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
