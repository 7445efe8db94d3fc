"""Puts runs together: the folds and seeds of each condition, which differ in nothing else."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cellbench.config import keys
from cellbench.runs.finished import Finished

FEW_GROUPS = 5
"""Fewer independent groups in a test set say next to nothing, however many images they have."""

# Facts about the data that are no options; they are shown where they alone differ.
_DIGESTS = ("data.images", "data.masks_digest")


@dataclass(frozen=True)
class Pooled:
    """The test predictions of several runs together.

    Attributes:
        ids: The samples, (n,); one that was tested several times occurs as often.
        labels: Class indices, (n,).
        probabilities: Of every class, (n, classes).
        groups: Each sample's group, (n,).
        prior: The classes' shares of the training split that each sample's model saw,
            (n, classes).
        run: The number of the run that each comes from, (n,).
    """

    ids: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray
    prior: np.ndarray
    run: np.ndarray


@dataclass(frozen=True)
class Condition:
    """Runs that differ in nothing but fold and seeds.

    Attributes:
        name: What it is called: what it differs in from the others.
        settings: The options that differ between the conditions, with its values.
        runs: The last run of each fold and seeds, in their order.
        older: How many earlier runs of the same were left out.
    """

    name: str
    settings: dict[str, Any]
    runs: tuple[Finished, ...]
    older: int

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""
        return self.runs[0].classes

    @property
    def seeds(self) -> list[int]:
        """The values of seed_everything."""
        return sorted({run.seed for run in self.runs})

    @property
    def folds(self) -> list[int]:
        """The folds that were tested; empty where there are none."""
        return sorted({run.fold for run in self.runs if run.fold is not None})

    @property
    def n(self) -> int:
        """The number of samples that were tested, each counted once."""
        return len({name for run in self.runs for name in run.test.ids})

    def with_seed(self, seed: int) -> "Condition":
        """Its runs with one value of seed_everything."""
        return replace(self, runs=tuple(run for run in self.runs if run.seed == seed))

    @property
    def stamps(self) -> list[str]:
        """Why its numbers are not what they may seem."""
        return sorted({stamp for run in self.runs for stamp in run.metrics["stamps"]})

    @property
    def notes(self) -> list[str]:
        """What there is too little of."""
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
            found.append(f"{self.older} older runs of the same folds and seeds left out")
        return found


def few_groups(groups: Sequence[Any], classes: Sequence[str]) -> list[str]:
    """Return a note where a test set, or a class of it, has too few groups for its intervals.

    Args:
        groups: Each test image's group.
        classes: Each one's class.
    """
    total = len(set(groups))
    if total < FEW_GROUPS:
        shown = "1 group" if total == 1 else f"{total} groups"
        return [f"the test images are of {shown}: too few for any interval to mean much"]
    counts = Counter(name for _, name in set(zip(groups, classes, strict=True)))
    few = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if n < FEW_GROUPS)
    return [f"few test groups, so that intervals mean little: {few}"] if few else []


def conditions(runs: Sequence[Finished]) -> list[Condition]:
    """Groups runs by all of their configuration but fold and seeds.

    Of several runs of the same fold and seeds the last counts.

    Args:
        runs: At least one, of the same classes.

    Returns:
        The conditions, in the order of their first runs. Each is named by the experiment, where
        these differ, and by the values of the options that differ.
    """
    plain = [_settings(run) for run in runs]
    of_settings: dict[str, set[str]] = defaultdict(set)
    for settings, run in zip(plain, runs, strict=True):
        of_settings[run.experiment + _text(settings)].add(run.split.images)
    if any(len(images) > 1 for images in of_settings.values()):  # of two folders, or changed
        for settings, run in zip(plain, runs, strict=True):
            settings |= {"data.root": run.config.get("data.root"), "data.images": run.split.images}
    of_masks: dict[str, set[str]] = defaultdict(set)
    for settings, run in zip(plain, runs, strict=True):
        of_masks[run.experiment + _text(settings)] |= {run.masks} if run.masks else set()
    if any(len(masks) > 1 for masks in of_masks.values()):  # replaced between two runs
        for settings, run in zip(plain, runs, strict=True):
            unknown = run.masks is None  # a run of an earlier version
            masks = "unknown" if unknown else str(run.masks)[:12] or "none"
            settings |= {"data.root": run.config.get("data.root"), "data.masks_digest": masks}
    named = sorted({key for settings in plain for key in settings})
    differ = [key for key in named if len({_text(s.get(key)) for s in plain}) > 1]
    of: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, settings in enumerate(plain):
        of[(runs[i].experiment, *(_text(settings.get(key)) for key in differ))].append(i)
    several = len({run.experiment for run in runs}) > 1
    found = []
    for (experiment, *_), members in of.items():
        settings = {key: plain[members[0]].get(key) for key in differ}
        within = [plain[i] for i, run in enumerate(runs) if run.experiment == experiment]
        own = [key for key in differ if len({_text(each.get(key)) for each in within}) > 1]
        told = ", ".join(_told(key, settings[key], alone=len(own) == 1) for key in own)
        name = experiment + (f" ({told})" if told else "") if several or not told else told
        members = sorted(members, key=lambda i: (runs[i].started, i))
        last = {runs[i].repeat: runs[i] for i in members}
        ordered = tuple(run for _, run in sorted(last.items(), key=lambda item: str(item[0])))
        found.append(Condition(name, settings, ordered, len(members) - len(ordered)))
    return found


def chosen_precisions(found: Sequence[Condition]) -> Counter[str]:
    """Count the runs of each precision that was chosen by a machine and not asked for.

    Like the machine itself, it tells no conditions apart.
    """
    return Counter(
        str(run.environment["precision"])
        for condition in found
        for run in condition.runs
        if run.config.get("trainer.precision") is None and "precision" in run.environment
    )


def pool(runs: Sequence[Finished]) -> Pooled:
    """Puts the test predictions of runs together.

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


def _settings(run: Finished) -> dict[str, Any]:
    settings = keys.settings_of_condition(run.config)
    if settings.get("data.train_labels") is not None:  # each fold and seed has its own
        settings["data.train_labels"] = "relabelled"
    return settings


def _text(value: Any) -> str:
    """A value as a key: null, "none" and 0 and false are four."""
    number = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if number else value, sort_keys=True, default=str)


def _told(key: str, value: Any, *, alone: bool) -> str:
    """Show an option with its value, or the value alone if it is a word that says enough."""
    if alone and isinstance(value, str) and value != "none" and key not in _DIGESTS:
        return value
    return f"{key.rpartition('.')[2]} {'null' if value is None else value}"
