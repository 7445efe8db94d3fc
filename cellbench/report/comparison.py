"""Differences between conditions, from runs that were tested on the same samples."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from cellbench.artifacts.conditions import Condition
from cellbench.artifacts.finished import Finished
from cellbench.metrics.intervals import LEVEL
from cellbench.metrics.tests import (
    Difference,
    corrected_t,
    holm_factors,
    mcnemar,
    resampled,
    unvaried,
)
from cellbench.report.metric_values import MetricValues, groups_of

Metric = Literal["accuracy", "balanced_accuracy", "precision_macro", "f1_macro", "mcc", "kappa"]
"""Metrics by which conditions can be compared."""

Repeat = tuple[int | None, int, int]
"""Fold, the split's seed, and seed_everything."""

About = Literal["condition", "trained model"]
"""Subject of a difference. A single run on a single test set does not show how much the runs of its
condition vary, so its difference is one between trained models."""

Judgement = Literal["better", "worse", "the same", "too few data", "not judged", "not compared"]
"""Outcome of a comparison of a condition with the reference."""

CORRECTED_T = "corrected resampled t-test"
MCNEMAR = "McNemar's exact test"
GROUPS = "bootstrap of the test set's groups"
GROUPS_AND_RUNS = "bootstrap of the test set's groups, with the variance between runs"

SIGNIFICANT, EQUIVALENT = 1 - LEVEL, 0.95
"""A p-value below which conditions differ, and a probability above which they are the same."""


@dataclass(frozen=True)
class Pair:
    """Two runs on the same split with the same seed."""

    repeat: Repeat
    """Fold, the split's seed, and seed_everything."""
    reference: float
    """The reference's value."""
    value: float
    """The other condition's value."""


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of conditions, such as the difference of two."""

    difference: Difference | None
    """Estimate of the sum; None if there is no pair."""
    values: tuple[float, ...]
    """Value of each condition over the pooled predictions of its paired runs; empty likewise."""
    about: About
    """Subject of the difference."""
    splits: int
    """Number of different test sets."""
    runs: tuple[int, int]
    """Least and greatest number of runs on one of them."""
    seeds: bool
    """True if these runs differ in seed_everything alone."""
    test: str
    """Name of the test."""
    refused: tuple[str, ...]
    """Pairs that cannot be compared, each with the reason."""
    unpaired: int
    """Number of folds and seeds that not all of the conditions have."""


@dataclass(frozen=True)
class Unpaired:
    """A run without a partner in the other condition."""

    condition: str
    """Name of its condition."""
    repeat: Repeat
    """Fold, the split's seed, and seed_everything."""
    path: str
    """Its folder."""


@dataclass(frozen=True)
class Comparison:
    """A condition against the reference."""

    name: str
    """The condition's name."""
    reference: str
    """The reference's name."""
    judgement: Judgement
    """Outcome for the condition, or for its trained model alone if that is the contrast's
    subject."""
    value: float | None
    """The condition's value over its paired runs; None if there is no pair."""
    reference_value: float | None
    """The reference's value over the same pairs."""
    pairs: tuple[Pair, ...]
    """The runs that were compared."""
    left_out: tuple[Unpaired, ...]
    """Runs of both conditions that were not compared, though the report's table counts them."""
    contrast: Contrast
    """The condition less the reference; its interval is adjusted as p is."""
    p: float | None
    """The p-value, adjusted by Holm's method for all comparisons; None if there is none."""
    n: int
    """Number of different samples that both were tested on."""


@dataclass(frozen=True)
class Effect:
    """A row of a factor table."""

    what: str
    """The factor and level, or two of them for an interaction, against their first levels."""
    interaction: bool
    """True for an interaction of two factors."""
    contrast: Contrast
    """Size of the effect, over all levels of the other factors."""


class Comparer:
    """Comparison of conditions by one metric.

    Args:
        metric: The metric.
        rope: Half the width of the region of practical equivalence.
    """

    def __init__(self, metric: Metric, rope: float) -> None:
        self._metric = metric
        self._rope = rope
        self._values = MetricValues(metric)

    def against(self, reference: Condition, others: Sequence[Condition]) -> list[Comparison]:
        """Compare each condition with the reference.

        Each interval is at the level at which Holm's method tests its difference, so that
        interval and p agree.
        """
        weighted = [[(reference, -1.0), (other, 1.0)] for other in others]
        first = [self.contrast(each).difference for each in weighted]
        factors = iter(holm_factors([d.p for d in first if d is not None and d.p is not None]))
        found = []
        for other, each, difference in zip(others, weighted, first, strict=True):
            judged = difference is not None and difference.p is not None
            factor = next(factors) if judged else 1.0
            contrast = self.contrast(each, 1 - SIGNIFICANT / factor)
            found.append(self._comparison(reference, other, contrast, factor))
        return found

    def _comparison(
        self, reference: Condition, other: Condition, contrast: Contrast, factor: float
    ) -> Comparison:
        """Put a comparison together.

        Args:
            reference: The reference.
            other: The condition that is compared with it.
            contrast: The condition less the reference, with the adjusted interval.
            factor: Factor of the p-value by Holm's method.
        """
        runs = _by_repeat(reference), _by_repeat(other)
        matched = [key for key in runs[0] if key in runs[1] and _same(runs[0][key], runs[1][key])]
        difference = contrast.difference
        p = None if difference is None or difference.p is None else min(1.0, factor * difference.p)
        return Comparison(
            other.name,
            reference.name,
            _judgement(difference, p, self._rope),
            contrast.values[1] if contrast.values else None,
            contrast.values[0] if contrast.values else None,
            tuple(
                Pair(key, self._values.pooled([runs[0][key]]), self._values.pooled([runs[1][key]]))
                for key in matched
            ),
            tuple(
                Unpaired(condition.name, run.repeat, str(run.folder.path))
                for condition in (reference, other)
                for run in condition.runs
                if run.repeat not in matched
            ),
            contrast,
            p,
            len({name for key in matched for name in runs[0][key].test.ids}),
        )

    def contrast(
        self, weighted: Sequence[tuple[Condition, float]], level: float = LEVEL
    ) -> Contrast:
        """Sum conditions over the splits and seeds that all of them have.

        A condition's value is that of the pooled predictions of its runs, as in the report's
        table. Differences on several test sets are judged by the corrected t-test; on a single
        one, its groups are resampled, and several runs add the variance between them.

        Args:
            weighted: Conditions with their weights, which sum to 0.
            level: Confidence level of the interval.
        """
        splits, refused, unpaired = _matched([condition for condition, _ in weighted])
        weights = np.array([weight for _, weight in weighted])
        if not splits:
            return Contrast(None, (), "condition", 0, (0, 0), True, "no pair", refused, unpaired)
        counts = [len(same) for same in splits]
        seeds = [len({several[0].seed for several in same}) for same in splits]
        of_condition = list(zip(*(several for same in splits for several in same), strict=True))
        pooled = tuple(self._values.pooled(own) for own in of_condition)
        difference = float(weights @ pooled)
        if len(splits) > 1:
            found, test = self._on_several_splits(splits, weights, difference, level), CORRECTED_T
        else:
            found, test = self._on_one_split(of_condition, weights, difference, level)
        return Contrast(
            self._bounded(found, weights),
            pooled,
            "trained model" if counts == [1] else "condition",
            len(splits),
            (min(counts), max(counts)),
            seeds == counts,
            test,
            refused,
            unpaired,
        )

    def _on_several_splits(
        self,
        splits: Sequence[Sequence[Sequence[Finished]]],
        weights: np.ndarray,
        difference: float,
        level: float,
    ) -> Difference:
        """Judge by the splits' differences; for each its runs, one per condition."""
        by_split = [list(zip(*same, strict=True)) for same in splits]
        differences = [
            float(weights @ [self._values.pooled(own) for own in of_condition])
            for of_condition in by_split
        ]
        tested = np.array([sum(len(several[0].test.ids) for several in same) for same in splits])
        ratio = float(np.mean([_ratio(same[0][0]) for same in splits]))
        within = 0.0
        if np.ptp(differences) < 1e-12:  # by chance; how sure each of them is says more
            within = float(
                np.mean([self._values.sampling_variance(own, weights) for own in by_split])
            )
        found = corrected_t(
            differences,
            ratio,
            self._rope,
            mean=difference,
            shares=tested / tested.sum(),
            within=within,
            level=level,
        )
        if found.p is None:
            groups = len({g for same in splits for g in groups_of(same[0][0])})
            return self._unvaried(difference, weights, groups, level)
        return found

    def _on_one_split(
        self,
        of_condition: Sequence[Sequence[Finished]],
        weights: np.ndarray,
        difference: float,
        level: float,
    ) -> tuple[Difference, str]:
        """Judge by the groups of the test set, and by the runs if there are several."""
        run, several = of_condition[0][0], len(of_condition[0]) > 1
        n, groups = len(run.test.ids), len(groups_of(run))
        if len(weights) == 2 and not several and groups == n and self._metric == "accuracy":
            right = [own[0].test.predicted == own[0].test.labels for own in of_condition]
            worse, better = (right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum()
            return mcnemar(int(worse), int(better), n, level), MCNEMAR
        between = []
        if several:
            for weight, own in zip(weights, of_condition, strict=True):
                variance = np.var([self._values.pooled([run]) for run in own], ddof=1)
                between.append((float(weight**2 * variance / len(own)), len(own) - 1))
        found = resampled(
            difference, self._values.replicates(of_condition, weights), groups, between, level
        )
        if found.p is None:
            found = self._unvaried(difference, weights, groups, level)
        return found, GROUPS_AND_RUNS if several else GROUPS

    def _bounded(self, found: Difference, weights: np.ndarray) -> Difference:
        """Cut the interval off at the greatest difference that the metric allows."""
        if found.low is None or found.high is None:
            return found
        width = 2.0 if self._metric in ("mcc", "kappa") else 1.0  # from -1, or from 0, to 1
        bound = width * float(np.abs(weights).sum()) / 2
        return replace(found, low=max(found.low, -bound), high=min(found.high, bound))

    def _unvaried(
        self, difference: float, weights: np.ndarray, groups: int, level: float
    ) -> Difference:
        """Judge a difference that no group and no split varies."""
        if self._metric == "accuracy" and len(weights) == 2:
            return unvaried(difference, groups, level)
        return Difference(difference, None, None, None, groups, level)


def _judgement(found: Difference | None, p: float | None, rope: float) -> Judgement:
    """Judge a difference by its adjusted p-value, and its equivalence before that.

    With a posterior, equivalence is a probability of .95 within the region; without one, the
    whole interval must lie in it.
    """
    if found is None:
        return "not compared"
    if p is None or found.low is None or found.high is None:
        return "not judged"
    inside = -rope <= found.low and found.high <= rope
    if inside if found.same is None else found.same >= EQUIVALENT:
        return "the same"
    if p < SIGNIFICANT:
        return "better" if found.mean > 0 else "worse"
    return "too few data"


def effects(compare: Comparer, found: Sequence[Condition]) -> list[Effect]:
    """Compute main effects and interactions of a full grid of two factors or more.

    Returns:
        A row for each factor's levels but the first, then one for each pair of such levels of two
        factors; empty where there is no such grid.
    """
    levels = _grid(found)
    if levels is None:
        return []
    by_point = {tuple(str(each.settings[key]) for key in levels): each for each in found}
    shown = {key: key.rpartition(".")[2] for key in levels}
    names = list(levels)
    rows = []

    def contrast(chosen: Mapping[str, str]) -> Contrast:
        """Multiply (level - first level) over some factors, and average over the others."""
        weighted = []
        for point, condition in by_point.items():
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
    """Return the options with three numbers or more, over which a curve can be drawn."""
    keys = found[0].settings
    return [key for key in keys if len(_numbers(found, key)) >= 3]


def _numbers(found: Sequence[Condition], key: str) -> set[float]:
    """Return the values of an option; empty if one of them is not a number."""
    own = [condition.settings[key] for condition in found]
    plain = [v for v in own if isinstance(v, int | float) and not isinstance(v, bool)]
    return set(plain) if len(plain) == len(own) else set()


def _grid(found: Sequence[Condition]) -> dict[str, list[str]] | None:
    """Return each factor's levels, in their order, if the conditions are a full grid of them."""
    keys = found[0].settings
    levels = {key: list(dict.fromkeys(str(each.settings[key]) for each in found)) for key in keys}
    size = int(np.prod([len(own) for own in levels.values()]))
    points = {tuple(str(each.settings[key]) for key in levels) for each in found}
    full = len(points) == len(found) == size
    return levels if len(levels) > 1 and full else None


def _by_repeat(condition: Condition) -> dict[Repeat, Finished]:
    """Return the runs of a condition by fold and seeds."""
    return {run.repeat: run for run in condition.runs}


def _matched(
    conditions: Sequence[Condition],
) -> tuple[list[list[list[Finished]]], tuple[str, ...], int]:
    """Match the runs of conditions by fold and seeds.

    Returns:
        For each test set its matched runs, one per condition; the matches that cannot be compared,
        each with the reason; and the number of folds and seeds that not all conditions have.
    """
    runs = [_by_repeat(condition) for condition in conditions]
    common = sorted(set.intersection(*(set(own) for own in runs)), key=str)
    refused = []
    of_split: dict[tuple[str, ...], list[list[Finished]]] = defaultdict(list)
    for key in common:
        several = [own[key] for own in runs]
        reasons = [
            f"{other.folder.path} and {one.folder.path}: {reason}"
            for one, other in combinations(several, 2)
            if (reason := _unlike(other, one)) is not None
        ]
        refused += reasons[:1]
        if not reasons:
            # An official split's seed draws another validation split, and the same test set.
            of_split[tuple(several[0].test.ids)].append(several)
    unpaired = len({key for own in runs for key in own}) - len(common)
    return list(of_split.values()), tuple(refused), unpaired


def _same(one: Finished, other: Finished) -> bool:
    """Return True if two runs are a pair."""
    return _unlike(one, other) is None


def _unlike(one: Finished, other: Finished) -> str | None:
    """Return the reason why two runs are not a pair; None if they are one.

    Views with masks and without may be compared, and so may masks by an expert and by cellbench.
    """
    digests = {"splits": (one.split.digest, other.split.digest)}
    source = one.config.get("data.masks"), other.config.get("data.masks")
    if one.masks and other.masks and source[0] == source[1]:
        digests["masks"] = one.masks, other.masks
    for what, (ours, theirs) in digests.items():
        if ours != theirs:
            return f"their {what} differ (digests {ours[:12]} and {theirs[:12]})"
    return None


def _ratio(run: Finished) -> float:
    """Compute the number of test images for each training image."""
    return len(run.split.parts["test"]) / len(run.split.parts["train"])
