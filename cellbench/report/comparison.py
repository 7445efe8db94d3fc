"""What separates conditions: differences of runs that were tested on the same samples."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from cellbench.report.statistics import Difference, corrected_t, holm, mcnemar, resampled
from cellbench.runs.conditions import Condition
from cellbench.runs.finished import Finished
from cellbench.runs.metrics import confusion_by_group, confusion_matrix, resample, values

Metric = Literal["accuracy", "balanced_accuracy", "precision_macro", "f1_macro", "mcc", "kappa"]
"""What conditions are compared by."""

Repeat = tuple[int | None, int, int]


@dataclass(frozen=True)
class Pair:
    """Two runs on the same split with the same seed.

    Attributes:
        repeat: Fold, the split's seed, and seed_everything.
        reference: The reference's value.
        value: The other's.
    """

    repeat: Repeat
    reference: float
    value: float


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of conditions, as the difference of two.

    Attributes:
        difference: Its size; None where there is no pair.
        splits: The number of different test sets.
        runs: The least and the greatest number of runs on one of them.
        seeds: Whether these differ in seed_everything alone.
        test: How it was judged.
        refused: Pairs that cannot be compared, each with its reason.
        unpaired: The folds and seeds that not all of the conditions have.
    """

    difference: Difference | None
    splits: int
    runs: tuple[int, int]
    seeds: bool
    test: str
    refused: tuple[str, ...]
    unpaired: int


@dataclass(frozen=True)
class Comparison:
    """A condition against the reference.

    Attributes:
        name: The condition's name.
        reference: The reference's name.
        pairs: The values that were compared.
        contrast: The condition less the reference.
        p: The p-value, by Holm for as many comparisons as there are; None where there is none.
        n: The number of samples tested by both.
    """

    name: str
    reference: str
    pairs: tuple[Pair, ...]
    contrast: Contrast
    p: float | None
    n: int


@dataclass(frozen=True)
class Effect:
    """A row of a factor table.

    Attributes:
        what: The factor and level, or two of them for an interaction, against their first levels.
        interaction: Whether it is one.
        contrast: Its size, over all levels of the other factors.
    """

    what: str
    interaction: bool
    contrast: Contrast


class Comparer:
    """Compares conditions by one metric.

    Args:
        metric: The metric.
        rope: Half the width of the region of practical equivalence.
    """

    def __init__(self, metric: Metric, rope: float) -> None:
        self._metric = metric
        self._rope = rope
        self._resampled: dict[Path, np.ndarray] = {}

    def against(self, reference: Condition, others: Sequence[Condition]) -> list[Comparison]:
        """Compares each condition with the reference."""
        found = []
        for other in others:
            contrast = self.contrast([(reference, -1.0), (other, 1.0)])
            first, second = _by_repeat(reference), _by_repeat(other)
            matched = [key for key in first if key in second and _same(first[key], second[key])]
            pairs = tuple(
                Pair(key, self._value(first[key]), self._value(second[key])) for key in matched
            )
            p = None if contrast.difference is None else contrast.difference.p
            tested = {name for key in matched for name in first[key].test.ids}
            found.append(Comparison(other.name, reference.name, pairs, contrast, p, len(tested)))
        judged = [i for i, one in enumerate(found) if one.p is not None]
        for i, p in zip(judged, holm([float(found[i].p or 0) for i in judged]), strict=True):
            found[i] = replace(found[i], p=p)
        return found

    def contrast(self, weighted: Sequence[tuple[Condition, float]]) -> Contrast:
        """Sums conditions, run by run, over the splits and seeds that all of them have.

        Several runs on one test set share its samples, so that their mean is one difference.
        Differences on several test sets are judged by the corrected t-test; on a single one, its
        groups are resampled.

        Args:
            weighted: Conditions with their weights, which sum to 0.
        """
        runs = [_by_repeat(condition) for condition, _ in weighted]
        common = sorted(set.intersection(*(set(own) for own in runs)), key=str)
        refused = []
        of_split: dict[tuple[str, ...], list[list[Finished]]] = defaultdict(list)
        for key in common:
            several = [own[key] for own in runs]
            strange = [run for run in several if not _same(several[0], run)]
            for run in strange:
                refused.append(
                    f"{run.folder.path} and {several[0].folder.path}: their splits differ "
                    f"(digests {run.split.digest[:12]} and {several[0].split.digest[:12]})"
                )
            if not strange:
                # An official split's seed draws another validation split, and the same test set.
                of_split[tuple(several[0].test.ids)].append(several)
        weights = np.array([weight for _, weight in weighted])
        unpaired = len({key for own in runs for key in own}) - len(common)
        if not of_split:
            return Contrast(None, 0, (0, 0), True, "no pair", tuple(refused), unpaired)
        counts = [len(same) for same in of_split.values()]
        seeds = [len({several[0].seed for several in same}) for same in of_split.values()]
        differences = [
            float(np.mean([weights @ list(map(self._value, several)) for several in same]))
            for same in of_split.values()
        ]
        if len(of_split) > 1:
            ratios = [_ratio(same[0][0]) for same in of_split.values()]
            found = corrected_t(differences, float(np.mean(ratios)), self._rope)
            test = "corrected resampled t-test"
        else:
            found, test = self._on_one_split(next(iter(of_split.values())), weights, differences[0])
        return Contrast(
            found,
            len(of_split),
            (min(counts), max(counts)),
            seeds == counts,
            test,
            tuple(refused),
            unpaired,
        )

    def _on_one_split(
        self, same: Sequence[Sequence[Finished]], weights: np.ndarray, difference: float
    ) -> tuple[Difference, str]:
        run = same[0][0]
        groups = len({run.split.group[name] for name in run.test.ids})
        pair = len(weights) == 2 and len(same) == 1 and groups == len(run.test.ids)
        if pair and self._metric == "accuracy":
            right = [each.test.predicted == each.test.labels for each in same[0]]
            worse, better = (right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum()
            return mcnemar(int(worse), int(better), len(run.test.ids)), "McNemar's exact test"
        replicates = np.mean(
            [
                sum(
                    weight * self._replicates(each)
                    for weight, each in zip(weights, several, strict=True)
                )
                for several in same
            ],
            axis=0,
        )
        found = resampled(difference, replicates, groups)
        return found, "bootstrap of the test set's groups"

    def _replicates(self, run: Finished) -> np.ndarray:
        """The metric with the test set's groups resampled: the same draws for every run."""
        path = run.folder.path
        if path not in self._resampled:
            test = run.test
            names = np.array([run.split.group[name] for name in test.ids])
            counts = confusion_by_group(test.labels, test.predicted, names, len(run.classes))
            self._resampled[path] = values(resample(counts))[self._metric]
        return self._resampled[path]

    def _value(self, run: Finished) -> float:
        test = run.test
        matrix = confusion_matrix(test.labels, test.predicted, len(run.classes))
        return float(values(matrix)[self._metric])


def effects(compare: Comparer, found: Sequence[Condition]) -> list[Effect]:
    """Main effects and interactions, where the conditions are a full grid of two factors or more.

    Returns:
        A row for each factor's levels but the first, then one for each pair of such levels of two
        factors; empty where there is no such grid.
    """
    levels = _grid(found)
    if levels is None:
        return []
    of = {tuple(str(each.settings[key]) for key in levels): each for each in found}
    shown = {key: key.rpartition(".")[2] for key in levels}
    names = list(levels)
    rows = []

    def contrast(chosen: Mapping[str, str]) -> Contrast:
        """The product of (level - first level) over the chosen factors, the mean over others."""
        weighted = []
        for point, condition in of.items():
            weight = 1.0
            for key, level in zip(names, point, strict=True):
                if key not in chosen:
                    weight /= len(levels[key])
                else:
                    weight *= (level == chosen[key]) - (level == levels[key][0])
            if weight:
                weighted.append((condition, weight))
        return compare.contrast(weighted)

    for key in names:
        for level in levels[key][1:]:
            what = f"{shown[key]}: {level} against {levels[key][0]}"
            rows.append(Effect(what, False, contrast({key: level})))
    for one, other in combinations(names, 2):
        for level in levels[one][1:]:
            for second in levels[other][1:]:
                what = f"{shown[one]} {level} x {shown[other]} {second}"
                rows.append(Effect(what, True, contrast({one: level, other: second})))
    return rows


def curves(found: Sequence[Condition]) -> list[str]:
    """The options that take three numbers or more: what a curve is drawn over."""
    keys = found[0].settings
    return [key for key in keys if len(_numbers(found, key)) >= 3]


def _numbers(found: Sequence[Condition], key: str) -> set[float]:
    own = [condition.settings[key] for condition in found]
    plain = [v for v in own if isinstance(v, int | float) and not isinstance(v, bool)]
    return set(plain) if len(plain) == len(own) else set()


def _grid(found: Sequence[Condition]) -> dict[str, list[str]] | None:
    """Each factor's levels in their order, if every combination of them is there once."""
    keys = found[0].settings
    levels = {key: list(dict.fromkeys(str(each.settings[key]) for each in found)) for key in keys}
    size = int(np.prod([len(own) for own in levels.values()]))
    points = {tuple(str(each.settings[key]) for key in levels) for each in found}
    full = len(points) == len(found) == size
    return levels if len(levels) > 1 and full else None


def _by_repeat(condition: Condition) -> dict[Repeat, Finished]:
    return {run.repeat: run for run in condition.runs}


def _same(one: Finished, other: Finished) -> bool:
    return one.split.digest == other.split.digest


def _ratio(run: Finished) -> float:
    """Test images for each training image."""
    return len(run.split.parts["test"]) / len(run.split.parts["train"])
