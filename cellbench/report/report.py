"""Values and sentences of a report, for its page and its tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import cellbench
from cellbench.artifacts.conditions import (
    Condition,
    Pooled,
    chosen_precisions,
    conditions,
    pool,
)
from cellbench.artifacts.finished import Finished, LeftOut, read_finished
from cellbench.metrics.probabilities import calibration, fit_temperature, score, temper
from cellbench.metrics.tests import Difference
from cellbench.report.comparison import (
    Comparer,
    Comparison,
    Effect,
    Judgement,
    Metric,
    Unpaired,
    effects,
)
from cellbench.utils.errors import UserError, suggest
from cellbench.utils.html_page import share

MAX_SENTENCES = 6
"""Greatest number of comparisons with a sentence each; of more only the largest has one."""

MAX_NAMED = 3
"""Greatest number of runs left out that are named; more are counted."""

DECIMALS = range(3, 10)
"""Numbers of decimals that differences may be shown with; the first that suffices is used."""

LONG_WORDS: dict[Judgement, str] = {"too few data": "too few data to tell"}
"""Longer words for some judgements."""


@dataclass(frozen=True)
class Scored:
    """A condition with its scores."""

    condition: Condition
    """The condition."""
    pooled: Pooled
    """All of its test predictions."""
    scores: dict[str, Any]
    """Scores of the pooled predictions, as `probabilities.score` gives them. A sample counts once
    per seed, and its predictions stay together in the intervals."""
    temperatures: list[float]
    """Temperature of each run, fitted to its validation split; empty if a run has none."""
    tempered: dict[str, dict[str, float]] | None
    """log_loss, brier and ece after temperature scaling, with intervals; None without
    temperatures."""
    bins: list[dict[str, float]]
    """Bins of the calibration diagram after temperature scaling."""


@dataclass(frozen=True)
class Report:
    """Several conditions, compared with one of them."""

    metric: Metric
    """Metric of the comparisons."""
    rope: float
    """Half the width of the region of practical equivalence."""
    scored: list[Scored]
    """The conditions, the reference first."""
    comparisons: list[Comparison]
    """Comparison of each other condition with the reference."""
    effects: list[Effect]
    """Effects of the factors; empty unless the conditions are a full grid of several factors."""
    left: list[LeftOut]
    """Runs that are not counted, with the reasons."""

    @property
    def conditions(self) -> list[Condition]:
        """The conditions, the reference first."""
        return [one.condition for one in self.scored]

    @property
    def warning_flags(self) -> list[str]:
        """Warning flags: reasons why the scores are unreliable."""
        return self._by_reason({each.name: each.warning_flags for each in self.conditions})

    @property
    def notes(self) -> list[str]:
        """Warnings about the data that the scores rest on."""
        found = self._by_reason({each.name: each.notes for each in self.conditions})
        chosen = chosen_precisions(self.conditions)
        if len(chosen) > 1:
            counts = ", ".join(f"{name} ({n} of the runs)" for name, n in sorted(chosen.items()))
            found.append(
                f"the machines chose different precisions: {counts}; trainer.precision sets one"
            )
        return found

    def _by_reason(self, reasons: Mapping[str, Sequence[str]]) -> list[str]:
        """Return each reason once, with the conditions that it holds for if not for all."""
        conditions: dict[str, list[str]] = {}
        for name, own in reasons.items():
            for reason in own:
                conditions.setdefault(reason, []).append(name)
        every = len(reasons)
        return [
            r if len(names) == every else f"{'; '.join(names)}: {r}"
            for r, names in conditions.items()
        ]

    @property
    def verdict(self) -> list[str]:
        """The answer: a sentence per comparison, or a summary if there are many."""
        named = self.metric.replace("_", " ")
        if not self.comparisons:
            (only,) = self.scored
            entry = only.scores["metrics"][self.metric]
            return [
                f"There is one condition alone, {only.condition.name}, and nothing to compare it "
                f"with: {named} {share(entry)} on "
                f"n = {only.condition.n}, where the majority class has {entry['baseline']:.3f}."
            ]
        sentences = [self._sentence(one) for one in self.comparisons]
        if len(sentences) <= MAX_SENTENCES:
            return sentences
        kinds = Counter(shown_judgement(one) for one in self.comparisons)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        whole = f"Of {len(sentences)} conditions against {self.comparisons[0].reference}: {counts}."
        sizes = {
            k: abs(one.contrast.difference.mean)
            for k, one in enumerate(self.comparisons)
            if one.contrast.difference is not None
        }
        if not sizes:
            return [whole]
        largest = sentences[max(sizes, key=lambda k: sizes[k])]
        return [whole, f"The largest difference of {len(sentences)}, and picked by it: {largest}"]

    def _sentence(self, one: Comparison) -> str:
        """Return a sentence on one comparison: n, judgement, both values, difference, p."""
        found, named = one.contrast.difference, self.metric.replace("_", " ")
        shown = shown_numbers(one)
        if found is None or shown is None:
            return f"{one.name} cannot be compared with {one.reference}: no two runs are a pair."
        size = shown.size
        if one.judgement == "too few data" and shown.interval is not None:
            low, high = shown.interval
            size = f"{shown.difference}, and it may be anything from {low} to {high}"
        parts = [
            f"{self._statement(one)}: {named} {shown.value} against {shown.reference_value}, "
            f"difference {size}"
        ]
        if found.same is not None and one.judgement in ("the same", "too few data"):
            parts.append(f"within ±{self.rope:g} with probability {found.same:.2f}")
        elif one.judgement == "the same":
            parts.append(f"all of it within ±{self.rope:g}")
        if one.p is not None:
            parts.append(f"p {shown_p(one.p)}{self._adjusted}")
        if one.left_out:
            parts.append(f"left out, as they have no pair: {_unpaired(one.left_out)}")
        return "; ".join(parts) + "."

    @property
    def _adjusted(self) -> str:
        """A remark that p and interval are adjusted; empty if they are not."""
        judged = sum(one.p is not None for one in self.comparisons)
        return f" (p and interval by Holm for {judged} comparisons)" if judged > 1 else ""

    def _statement(self, one: Comparison) -> str:
        """Return the conditions that were compared, the data, and the judgement."""
        against = f"{one.name} against {one.reference} ({_basis(one)})"
        if one.judgement == "not judged":
            found = one.contrast.difference
            alone = found is not None and found.n == 1
            why = "all test images are of one group" if alone else "nothing varies"
            return f"{against}: not to be judged, as {why}"
        if one.contrast.about == "trained model":
            judgement = {
                "better": "this trained model is better on these cells",
                "worse": "this trained model is worse on these cells",
                "the same": "these trained models are practically the same on these cells",
                "too few data": "too few data to tell which of these trained models is better",
            }[one.judgement]
            return f"{against}: {judgement}; other seeds were not tried"
        basis = f"({_basis(one)})"
        if one.judgement == "too few data":
            return f"{against}: too few data to tell which is better"
        if one.judgement == "the same":
            return f"{one.name} is practically as good as {one.reference} {basis}"
        return f"{one.name} is {one.judgement} than {one.reference} {basis}"


def _basis(one: Comparison) -> str:
    """Return the amounts of data that a comparison rests on."""
    contrast = one.contrast
    parts = [f"n = {one.n}"]
    if contrast.splits > 1:
        parts.append(f"{contrast.splits} splits")
    elif contrast.difference is not None and contrast.difference.n < one.n:
        groups = contrast.difference.n
        parts.append(f"{groups} group{'s' if groups != 1 else ''}")
    fewest, most = contrast.runs
    what = "seed" if contrast.seeds else "run"
    number = f"{fewest} to {most}" if fewest < most else "one" if most == 1 else str(most)
    parts.append(f"{number} {what}{'s' if most > 1 else ''} each")
    return ", ".join(parts)


def _unpaired(left_out: Sequence[Unpaired]) -> str:
    """Return the names of the runs that were left out, or their number if there are many."""
    repeats: dict[str, list[str]] = {}
    for run in left_out:
        fold, split_seed, seed = run.repeat
        parts = [] if fold is None else [f"fold {fold}"]
        parts += [f"split seed {split_seed}"] if split_seed else []
        repeats.setdefault(run.condition, []).append(" ".join([*parts, f"seed {seed}"]))
    return ", ".join(
        f"{' and '.join(own) if len(own) <= MAX_NAMED else f'{len(own)} runs'} of {name}"
        for name, own in repeats.items()
    )


def shown_judgement(one: Comparison) -> str:
    """Return a judgement in a word or two, and whether it is of a trained model alone."""
    words = LONG_WORDS.get(one.judgement, one.judgement)
    judged = one.judgement not in ("not judged", "not compared")
    alone = judged and one.contrast.about == "trained model"
    return f"{words} (this trained model)" if alone else words


@dataclass(frozen=True)
class Shown:
    """A comparison's numbers as text, all with the same number of decimals."""

    value: str
    """The condition's value."""
    reference_value: str
    """The reference's value."""
    difference: str
    """The first less the second, as they are shown."""
    interval: tuple[str, str] | None
    """Ends of the difference's interval; None if it has none."""

    @property
    def size(self) -> str:
        """The difference with its interval."""
        if self.interval is None:
            return f"{self.difference} (no interval)"
        return f"{self.difference} [{', '.join(self.interval)}]"


def shown_numbers(one: Comparison) -> Shown | None:
    """Return a comparison's numbers with as few decimals as agree; None if there is no pair.

    They agree if the difference is that of both values as they are shown, if it lies in its
    interval, and if nothing but 0 is shown as 0.
    """
    found = one.contrast.difference
    if found is None or one.value is None or one.reference_value is None:
        return None
    ends = [] if found.low is None or found.high is None else [found.low, found.high]
    for decimals in DECIMALS:
        value, reference = (round(v, decimals) for v in (one.value, one.reference_value))
        difference = round(value - reference, decimals)
        shown = [round(end, decimals) for end in ends]
        inside = not shown or shown[0] <= difference <= shown[1]
        numbers = zip([difference, *shown], [found.mean, *ends], strict=True)
        if inside and not any(_vanishes(short, full) for short, full in numbers):
            break
    return Shown(
        f"{value:.{decimals}f}",
        f"{reference:.{decimals}f}",
        _signed(difference, decimals),
        (_signed(shown[0], decimals), _signed(shown[1], decimals)) if shown else None,
    )


def shown_size(found: Difference) -> str:
    """Return a difference as text, with its interval if it has one."""
    known = found.low is not None and found.high is not None
    numbers = [v for v in (found.mean, found.low, found.high) if v is not None]
    for decimals in DECIMALS:
        if not any(_vanishes(round(v, decimals), v) for v in numbers):
            break
    mean, *ends = (_signed(v, decimals) for v in numbers)
    return f"{mean} [{', '.join(ends)}]" if known else f"{mean} (no interval)"


def _vanishes(shown: float, value: float) -> bool:
    """Return True if a number that is not 0 is shown as 0."""
    return shown == 0 and abs(value) > 1e-9  # less is rounding


def _signed(value: float, decimals: int) -> str:
    """Return a number as text with its sign; 0 has none."""
    shown = round(value, decimals)
    return f"{shown:+.{decimals}f}" if shown else f"{0:.{decimals}f}"


def shown_p(p: float) -> str:
    """Return a p-value as text to follow "p"; a value below .05 is not shown as .05."""
    if p < 0.001:
        return "< .001"
    shown = f"{p:.3f}"
    return "< .05" if p < 0.05 and shown == "0.050" else f"= {shown}".replace("0.", ".")


def build(
    paths: Sequence[Path], metric: Metric, rope: float, reference: str | None = None
) -> Report:
    """Read runs and compare their conditions.

    Args:
        paths: Folders that hold runs.
        metric: Metric of the comparisons.
        rope: Half the width of the region of practical equivalence.
        reference: Name of the condition that the others are compared with; None for that of the
            first run.

    Raises:
        UserError: There is no finished run, or no such condition.
    """
    runs, left = read_finished(paths)
    if not runs:
        if not left:
            where = ", ".join(map(str, paths))
            raise UserError(f"there is no finished run below {where}; run fit first")
        first, others = left[0], f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        named = "" if str(first.path) in first.reason else f"{first.path}: "
        raise UserError(f"no run can be counted; {named}{first.reason}{others}")
    runs, strange = _of_one_kind(runs)
    found = conditions(runs)
    if reference is not None:
        chosen = [
            each for each in found if reference in (each.name, *map(str, each.settings.values()))
        ]
        if len(chosen) > 1:
            several = "; ".join(each.name for each in chosen)
            raise UserError(f"--reference: '{reference}' is of several conditions: {several}")
        if not chosen:
            names = [each.name for each in found]
            raise UserError(f"--reference: no condition '{reference}'{suggest(reference, names)}")
        found = [chosen[0], *(each for each in found if each is not chosen[0])]
    compare = Comparer(metric, rope)
    return Report(
        metric,
        rope,
        [_scored(each) for each in found],
        compare.against(found[0], found[1:]),
        effects(compare, found),
        [*left, *strange],
    )


def as_plain(report: Report) -> dict[str, Any]:
    """Return all values of a report as JSON can hold them."""
    return {
        "cellbench": cellbench.__version__,
        "verdict": report.verdict,
        "stamps": report.warning_flags,
        "notes": report.notes,
        "metric": report.metric,
        "rope": report.rope,
        "conditions": [
            {
                "name": one.condition.name,
                "settings": one.condition.settings,
                "runs": [str(run.folder.path) for run in one.condition.runs],
                "older": one.condition.older,
                "samples": one.condition.n,
                "seeds": one.condition.seeds,
                "folds": one.condition.folds,
                "temperatures": one.temperatures,
                "tempered": one.tempered,
            }
            | one.scores
            for one in report.scored
        ],
        "comparisons": [asdict(one) for one in report.comparisons],
        "effects": [asdict(one) for one in report.effects],
        "left_out": [
            {"path": str(one.path), "reason": one.reason, "damaged": one.damaged}
            for one in report.left
        ],
    }


def rows(report: Report) -> list[dict[str, Any]]:
    """Return one row per condition: its scores, and its difference from the reference."""
    found = []
    for one, comparison in zip(report.scored, [None, *report.comparisons], strict=True):
        condition, metrics = one.condition, one.scores["metrics"]
        row = {"condition": condition.name, "runs": len(condition.runs), "n": condition.n}
        for name in dict.fromkeys(("accuracy", "f1_macro", report.metric)):
            row |= {name: metrics[name]["value"]}
            row |= {f"{name}_{end}": metrics[name][end] for end in ("low", "high", "baseline")}
        contrast = None if comparison is None else comparison.contrast.difference
        row |= {
            "difference": None if contrast is None else contrast.mean,
            "difference_low": None if contrast is None else contrast.low,
            "difference_high": None if contrast is None else contrast.high,
            "p_holm": None if comparison is None else comparison.p,
        }
        found.append(row)
    return found


def _of_one_kind(runs: Sequence[Finished]) -> tuple[list[Finished], list[LeftOut]]:
    """Return the runs with the most common classes, and the others with the reason."""
    ((classes, _),) = Counter(run.classes for run in runs).most_common(1)
    strange = [
        LeftOut(
            run.folder.path,
            f"its classes are {', '.join(run.classes)}, and those of the others "
            f"{', '.join(classes)}",
        )
        for run in runs
        if run.classes != classes
    ]
    return [run for run in runs if run.classes == classes], strange


def _scored(condition: Condition) -> Scored:
    """Score a condition's pooled predictions, before and after temperature scaling."""
    pooled = pool(condition.runs)
    scores = score(
        pooled.labels,
        pooled.probabilities,
        pooled.groups,
        condition.classes,
        pooled.prior,
        pooled.run,
    )
    vals = [run.parts.get("val") for run in condition.runs]
    if any(val is None for val in vals):
        return Scored(condition, pooled, scores, [], None, [])
    temperatures = [fit_temperature(v.labels, v.probabilities) for v in vals if v is not None]
    scaled = [
        temper(run.test.probabilities, t)
        for run, t in zip(condition.runs, temperatures, strict=True)
    ]
    tempered, bins = calibration(pooled.labels, np.concatenate(scaled), pooled.groups, pooled.prior)
    return Scored(condition, pooled, scores, temperatures, tempered, bins)
