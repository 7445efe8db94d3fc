"""Conditions: groups of runs that differ in fold and seed alone."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from cellbench.artifacts.finished import Finished
from cellbench.config import keys
from cellbench.data.options import DataOptions
from cellbench.utils.errors import counted

FEW_GROUPS = 5
"""Least number of independent groups in a test set for an interval to mean anything."""

# Facts about the data that are not options; shown only if nothing else differs.
_DIGESTS = ("data.images", "data.masks_digest")


@dataclass(frozen=True)
class Pooled:
    """Test predictions of several runs."""

    ids: list[str]
    """Ids of the samples, (n,); a sample that was tested several times occurs as often."""
    labels: np.ndarray
    """True classes as indices, (n,)."""
    probabilities: np.ndarray
    """Probability of each class, (n, classes)."""
    groups: np.ndarray
    """Group of each sample, (n,)."""
    prior: np.ndarray
    """Class shares of the training split of each sample's model, (n, classes)."""
    run: np.ndarray
    """Position of the run that each prediction comes from, (n,)."""


@dataclass(frozen=True)
class Condition:
    """Runs that differ only in fold and seeds."""

    name: str
    """Name, made of the options in which it differs from the other conditions."""
    settings: dict[str, Any]
    """Values of the options that differ between the conditions."""
    runs: tuple[Finished, ...]
    """The last run of each combination of fold and seeds, in their order."""
    older: int
    """Number of earlier runs of the same combinations, which are left out."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""
        return self.runs[0].classes

    @property
    def seeds(self) -> list[int]:
        """Different values of seed_everything, ascending."""
        return sorted({run.seed for run in self.runs})

    @property
    def folds(self) -> list[int]:
        """Folds that were tested, ascending; empty if there are no folds."""
        return sorted({run.fold for run in self.runs if run.fold is not None})

    @property
    def n(self) -> int:
        """Number of different samples that were tested."""
        return len({name for run in self.runs for name in run.test.ids})

    def with_seed(self, seed: int) -> "Condition":
        """Return the condition with only the runs of one value of seed_everything."""
        return replace(self, runs=tuple(run for run in self.runs if run.seed == seed))

    @property
    def warning_flags(self) -> list[str]:
        """Warning flags: reasons why its scores are unreliable."""
        return sorted({flag for run in self.runs for flag in run.metrics["stamps"]})

    @property
    def notes(self) -> list[str]:
        """Warnings: missing folds or seeds, too few test groups, older runs."""
        found = []
        total = self.runs[0].metrics["split"]["folds"]
        if total is not None and len(self.folds) < total:
            missing = ", ".join(str(k) for k in range(total) if k not in self.folds)
            found.append(f"folds {missing} are missing: {self.n} images are tested, and not all")
        elif total is not None:
            seeds: dict[tuple[int, int], set[int | None]] = defaultdict(set)
            for fold, split_seed, seed in (run.repeat for run in self.runs):
                seeds[split_seed, seed].add(fold)
            if any(len(folds) < total for folds in seeds.values()):
                found.append("some seeds lack folds, whose images count less in what is pooled")
        tested = {name: run for run in self.runs for name in run.test.ids}
        found += few_groups(
            [run.split.group[name] for name, run in tested.items()],
            [run.split.label[name] for name, run in tested.items()],
        )
        if self.older:
            older = counted(self.older, "older run")
            found.append(f"{older} of the same folds and seeds left out")
        return found


def few_groups(groups: Sequence[Any], classes: Sequence[str]) -> list[str]:
    """Return a warning if a test set, or a class in it, has too few groups for its intervals.

    Args:
        groups: Group of each test image.
        classes: Class of each test image.
    """
    total = len(set(groups))
    if total < FEW_GROUPS:
        shown = counted(total, "group")
        return [f"the test images are of {shown}: too few for any interval to mean much"]
    counts = Counter(name for _, name in set(zip(groups, classes, strict=True)))
    few = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if n < FEW_GROUPS)
    return [f"few test groups, so that intervals mean little: {few}"] if few else []


def conditions(runs: Sequence[Finished]) -> list[Condition]:
    """Group runs by all of their configuration but fold and seeds.

    Of several runs with the same fold and seeds only the last is kept.

    Args:
        runs: At least one, of the same classes.

    Returns:
        The conditions, in the order of their first runs. A condition's name has the experiment, if
        there are several, and the values of the options that differ.
    """
    plain = _settings_and_data(runs)
    named = sorted({key for settings in plain for key in settings})
    differ = [key for key in named if len({_text(s.get(key)) for s in plain}) > 1]
    by_name: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, settings in enumerate(plain):
        by_name[(runs[i].experiment, *(_text(settings.get(key)) for key in differ))].append(i)
    several = len({run.experiment for run in runs}) > 1
    found = []
    for (experiment, *_), members in by_name.items():
        settings = {key: plain[members[0]].get(key) for key in differ}
        within = [plain[i] for i, run in enumerate(runs) if run.experiment == experiment]
        own = [key for key in differ if len({_text(each.get(key)) for each in within}) > 1]
        shown = ", ".join(_shown(key, settings[key], alone=len(own) == 1) for key in own)
        name = experiment + (f" ({shown})" if shown else "") if several or not shown else shown
        members = sorted(members, key=lambda i: (runs[i].started, i))
        last = {runs[i].repeat: runs[i] for i in members}
        ordered = tuple(run for _, run in sorted(last.items(), key=lambda item: str(item[0])))
        found.append(Condition(name, settings, ordered, len(members) - len(ordered)))
    return found


def _settings_and_data(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """Return each run's options, with facts about its data if the options do not tell them apart.

    Two runs of the same options may have been trained on two folders, on images that have changed,
    or with masks that were replaced in between.
    """
    plain = [_settings(run) for run in runs]
    of_settings: dict[str, set[str]] = defaultdict(set)
    for settings, run in zip(plain, runs, strict=True):
        of_settings[run.experiment + _text(settings)].add(run.split.images)
    if any(len(images) > 1 for images in of_settings.values()):
        for settings, run in zip(plain, runs, strict=True):
            settings |= {"data.root": run.config.get("data.root"), "data.images": run.split.images}
    of_masks: dict[str, set[str]] = defaultdict(set)
    for settings, run in zip(plain, runs, strict=True):
        of_masks[run.experiment + _text(settings)] |= {run.masks} if run.masks else set()
    if any(len(masks) > 1 for masks in of_masks.values()):
        for settings, run in zip(plain, runs, strict=True):
            unknown = run.masks is None  # a run of an earlier version
            masks = "unknown" if unknown else str(run.masks)[:12] or "none"
            settings |= {"data.root": run.config.get("data.root"), "data.masks_digest": masks}
    return plain


def chosen_precisions(found: Sequence[Condition]) -> Counter[str]:
    """Count the runs by precision, if the machine has chosen it and not the configuration.

    Like the machine itself, a chosen precision does not make a condition.
    """
    return Counter(
        str(run.environment["precision"])
        for condition in found
        for run in condition.runs
        if run.config.get("trainer.precision") is None and "precision" in run.environment
    )


def pool(runs: Sequence[Finished]) -> Pooled:
    """Concatenate the test predictions of runs.

    Args:
        runs: At least one, of the same classes.
    """
    tests = [run.test for run in runs]
    priors = {run.split.digest: run.split.prior(run.classes) for run in runs}
    return Pooled(
        [name for test in tests for name in test.ids],
        np.concatenate([test.labels for test in tests]),
        np.concatenate([test.probabilities for test in tests]),
        np.array([run.split.group[name] for run in runs for name in run.test.ids]),
        np.concatenate([np.tile(priors[run.split.digest], (len(run.test.ids), 1)) for run in runs]),
        np.repeat(np.arange(len(runs)), [len(test.ids) for test in tests]),
    )


@cache
def _defaults() -> dict[str, Any]:
    """Return the defaults of the options of all data modules, by their dotted keys."""
    options = asdict(DataOptions())
    return keys.settings_of_condition(dict(keys.flatten({"data": options})))


def _settings(run: Finished) -> dict[str, Any]:
    """Return the options of a run that belong to its condition.

    A run of an earlier version lacks newer options, which then had the effect of their defaults.
    """
    settings = _defaults() | keys.settings_of_condition(run.config)
    if settings.get("data.train_labels") is not None:  # each fold and seed has its own
        settings["data.train_labels"] = "relabelled"
    return settings


def _text(value: Any) -> str:
    """Return a value as text that tells null, "none", 0 and false apart, but not 1 and 1.0."""
    if value == {}:  # an option of an earlier version is missing, which is null
        value = None
    number = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if number else value, sort_keys=True, default=str)


def _shown(key: str, value: Any, *, alone: bool) -> str:
    """Return an option with its value, or the value alone if it is a telling word."""
    if alone and isinstance(value, str) and value != "none" and key not in _DIGESTS:
        return value
    if isinstance(value, list | tuple) and all(isinstance(each, str | int) for each in value):
        value = "+".join(map(str, value))  # such as the channels DAPI+pH3
    return f"{key.rpartition('.')[2]} {'null' if value is None else value}"
