"""What finished runs say together: the values that the page and the tables show."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import cellbench
from cellbench.errors import UserError, suggest
from cellbench.page import share
from cellbench.report.comparison import Comparer, Comparison, Effect, Metric, effects
from cellbench.report.statistics import Difference
from cellbench.runs.conditions import Condition, Pooled, conditions, pool
from cellbench.runs.finished import Finished, LeftOut, read_finished
from cellbench.runs.probabilities import calibration, fit_temperature, score, temper

SIGNIFICANT, EQUIVALENT = 0.05, 0.95
"""A p-value below which conditions differ, and a probability above which they are the same."""

SENTENCES = 6
"""More comparisons than that are told in numbers."""


@dataclass(frozen=True)
class Scored:
    """A condition and what its predictions are worth.

    Attributes:
        condition: The condition.
        pooled: All of its test predictions.
        scores: What `probabilities.score` says of them: each sample counts once a seed, and its
            predictions stay together in the intervals.
        temperatures: Fitted to each run's validation split; empty where it has none.
        tempered: log_loss, brier and ece after it, with intervals; None without temperatures.
        bins: The calibration diagram's after it.
    """

    condition: Condition
    pooled: Pooled
    scores: dict[str, Any]
    temperatures: list[float]
    tempered: dict[str, dict[str, float]] | None
    bins: list[dict[str, float]]


@dataclass(frozen=True)
class Report:
    """Several conditions, compared with one of them.

    Attributes:
        metric: What is compared.
        rope: Half the width of the region of practical equivalence.
        scored: The conditions, the reference first.
        comparisons: Each of the others against the reference.
        effects: The factors' effects, where the conditions are a grid of several.
        left: Runs that are not counted, with the reasons.
    """

    metric: Metric
    rope: float
    scored: list[Scored]
    comparisons: list[Comparison]
    effects: list[Effect]
    left: list[LeftOut]

    @property
    def conditions(self) -> list[Condition]:
        """The conditions, the reference first."""
        return [one.condition for one in self.scored]

    @property
    def stamps(self) -> list[str]:
        """Why the numbers are not what they may seem."""
        return self._by_reason({each.name: each.stamps for each in self.conditions})

    @property
    def notes(self) -> list[str]:
        """What there is too little of."""
        return self._by_reason({each.name: each.notes for each in self.conditions})

    def _by_reason(self, reasons: Mapping[str, Sequence[str]]) -> list[str]:
        """Each reason once, with the conditions that it holds for, if not for all."""
        of: dict[str, list[str]] = {}
        for name, own in reasons.items():
            for reason in own:
                of.setdefault(reason, []).append(name)
        every = len(reasons)
        return [r if len(names) == every else f"{'; '.join(names)}: {r}" for r, names in of.items()]

    @property
    def verdict(self) -> list[str]:
        """The answer: a sentence for each comparison, or for all of them where there are many."""
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
        if len(sentences) <= SENTENCES:
            return sentences
        kinds = Counter(judgement(one) for one in self.comparisons)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        whole = f"Of {len(sentences)} conditions against {self.comparisons[0].reference}: {told}."
        sizes = [
            float("-inf") if one.contrast.difference is None else one.contrast.difference.mean
            for one in self.comparisons
        ]
        largest = self._sentence(self.comparisons[int(np.argmax(sizes))])
        return [whole, f"The largest difference of {len(sentences)}, and picked by it: {largest}"]

    def _sentence(self, one: Comparison) -> str:
        found, named = one.contrast.difference, self.metric.replace("_", " ")
        if found is None:
            return f"{one.name} cannot be compared with {one.reference}: no two runs are a pair."
        on, splits = f"n = {one.n}", one.contrast.splits
        on += f", {splits} splits" if splits > 1 else ""
        on += f" in {found.n} groups" if splits == 1 and found.n < one.n else ""
        fewest, most = one.contrast.runs
        what = "seed" if one.contrast.seeds else "run"
        runs = f"{fewest} to {most}" if fewest < most else str(most)
        on += f", the mean of {runs} {what}s" if most > 1 else f", one {what}"
        judged = judgement(one)
        if one.p is None or found.low is None:
            return (
                f"{one.name} less {one.reference}: {named} {found.mean:+.3f} ({on}); nothing "
                "varies that this could be judged by."
            )
        size = shown_size(found)
        p = f"; p {shown_p(one.p)}" + (" by Holm" if len(self.comparisons) > 1 else "")
        if found.same is not None and judged in ("the same", "not told apart"):
            p += f"; within ±{self.rope:g} with probability {found.same:.2f}"
        told = {
            "better": f"{one.name} is better than {one.reference}",
            "worse": f"{one.name} is worse than {one.reference}",
            "the same": f"{one.name} is practically as good as {one.reference}",
            "not told apart": f"{one.name} and {one.reference} cannot be told apart",
        }[judged]
        return f"{told}: {named} {size} ({on}{p})."


def judgement(one: Comparison) -> str:
    """better, worse, the same, not told apart, not judged, or not compared."""
    found = one.contrast.difference
    if found is None:
        return "not compared"
    if one.p is None:
        return "not judged"
    if found.same is not None and found.same >= EQUIVALENT:
        return "the same"
    if one.p < SIGNIFICANT:
        return "better" if found.mean > 0 else "worse"
    return "not told apart"


def shown_size(found: Difference) -> str:
    """A difference with its interval, where it has one."""
    if found.low is None:
        return f"{found.mean:+.3f} (nothing varies)"
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def shown_p(p: float) -> str:
    """A p-value, as it stands after "p"."""
    return "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".")


def build(
    paths: Sequence[Path], metric: Metric, rope: float, reference: str | None = None
) -> Report:
    """Reads runs and compares their conditions.

    Args:
        paths: Folders that hold runs.
        metric: What is compared.
        rope: Half the width of the region of practical equivalence.
        reference: The name of the condition that the others are compared with; None for that of
            the first run.

    Raises:
        UserError: There is no finished run, or no such condition.
    """
    runs, left = read_finished(paths)
    if not runs:
        where = ", ".join(map(str, paths))
        if not left:
            raise UserError(f"there is no finished run below {where}; run fit first")
        raise UserError(
            f"no run below {where} can be counted; {left[0].path}: {left[0].reason}"
            + (f" (and {len(left) - 1} more)" if len(left) > 1 else "")
        )
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
    """All values of a report, ready for JSON."""
    return {
        "cellbench": cellbench.__version__,
        "verdict": report.verdict,
        "stamps": report.stamps,
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
    """A row a condition: its scores, and its difference from the reference."""
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
    """Those runs that have the classes that most have, and the others with the reason."""
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
