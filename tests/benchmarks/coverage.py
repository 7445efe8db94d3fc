"""How often the intervals of metrics.json hold the truth, and how wide they are."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from cellbench.metrics.classification import values
from cellbench.metrics.probabilities import BINS, Bins, score
from tests.benchmarks.measure import CONTEXT

SHARES = np.array([0.59, 0.18, 0.16, 0.07])
"""Of the classes, as hpv has them."""

CLASSES = tuple("abcd")

EASE = np.array([1.1, 1.0, 0.9, 0.9])
"""How far each class lies from the others, relatively."""

NOISE = {"group": 0.2, "sample": 0.4, "run": 0.4}
"""Variance components of a logit: of the group, of the cell within it, of the run."""

SURE = 1.2
"""The factor by which the networks are surer than they may be."""

POPULATION = 400_000
"""Cells of a simulated population, equally many of each class."""

POPULATIONS = 10
"""Number of populations averaged: with one, a rare class' precision is off by .006."""


@dataclass(frozen=True)
class Setting:
    """One kind of test set."""

    n: int
    """The number of cells."""
    size: int
    """The mean number of cells of a group."""
    accuracy: float
    """The true accuracy, 0 to 1, where all classes are equally frequent."""
    seeds: int
    """The number of runs that predict each cell."""
    folds: int
    """The number of folds that the groups are dealt to; 1 for a single test set."""

    def groups(self) -> np.ndarray:
        """Return the number of groups of each class: as SHARES has them, each at least one."""
        wanted = SHARES * max(round(self.n / self.size), len(SHARES))
        counts = np.maximum(np.floor(wanted), 1).astype(int)
        while counts.sum() < round(wanted.sum()):
            counts[np.argmax(wanted - counts)] += 1
        while counts.sum() > round(wanted.sum()):
            counts[np.argmax(counts)] -= 1
        return counts

    def __str__(self) -> str:
        runs = f"{self.seeds} seed{'s' * (self.seeds > 1)}, "
        runs += f"{self.folds} folds" if self.folds > 1 else "one test set"
        return f"n = {self.n}, groups of {self.size}, accuracy {self.accuracy:.2f}, {runs}"


def settings() -> list[Setting]:
    """Return all kinds of test sets with enough groups for every class, in every fold."""
    grid = product((60, 300, 3000), (1, 10, 50), (0.60, 0.93, 0.99), (1, 3), (1, 5))
    found = [Setting(*each) for each in grid if each[0] / each[1] >= len(SHARES)]
    return [each for each in found if each.folds == 1 or each.groups().min() >= each.folds]


@lru_cache
def sharpness(accuracy: float) -> float:
    """Return how far apart the classes are, in standard deviations of the noise."""
    noise = np.random.default_rng(1).normal(size=(100_000, len(SHARES)))
    labels = np.arange(len(noise)) % len(SHARES)

    def excess(apart: float) -> float:
        return float((logits(labels, noise, apart).argmax(axis=1) == labels).mean()) - accuracy

    return float(brentq(excess, 0.1, 10, xtol=1e-3))


def logits(labels: np.ndarray, noise: np.ndarray, apart: float) -> np.ndarray:
    """Return logits, (n, classes), that are true where the classes are equally frequent."""
    means = apart * EASE
    return means * (means[labels][:, None] * np.eye(len(SHARES))[labels] + noise) - means**2 / 2


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return probabilities, (n, classes)."""
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def draw(
    setting: Setting, rng: np.random.Generator, *, calibrated: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, probabilities, groups and runs of a test set, each cell once a seed.

    The shares of the classes are given, as in a stratified test set; the sizes of groups vary.

    Args:
        setting: The kind of test set.
        rng: Draws it.
        calibrated: Whether the probabilities are true.
    """
    counts = setting.groups()
    of_group = np.repeat(np.arange(len(counts)), counts)
    cells = np.round(setting.n / counts.sum() * counts).astype(int)
    sizes = 1 + np.concatenate(
        [
            rng.multinomial(total - groups, np.full(groups, 1 / groups))
            for total, groups in zip(cells, counts, strict=True)
        ]
    )
    group = np.repeat(np.arange(len(of_group)), sizes)
    labels = of_group[group]
    fold = (np.arange(len(of_group)) % setting.folds)[group]
    shape = len(labels), len(counts)
    shared = rng.normal(0, np.sqrt(NOISE["group"]), (len(of_group), len(counts)))[group]
    shared = shared + rng.normal(0, np.sqrt(NOISE["sample"]), shape)
    apart = sharpness(setting.accuracy)
    found = []
    for _ in range(setting.seeds):
        noise = shared + rng.normal(0, np.sqrt(NOISE["run"]), shape)
        scores = logits(labels, noise, apart)
        found.append(
            softmax(scores + np.log(counts / counts.sum()) if calibrated else SURE * scores)
        )
    runs = np.concatenate([fold + setting.folds * seed for seed in range(setting.seeds)])
    again = setting.seeds
    return np.tile(labels, again), np.concatenate(found), np.tile(group, again), runs


@lru_cache
def population(accuracy: float) -> dict[str, np.ndarray]:
    """Return what a network does with each class: what all true values are made of."""
    rng = np.random.default_rng(2)
    drawn = [_population(accuracy, rng) for _ in range(POPULATIONS)]
    return {name: np.mean([each[name] for each in drawn], axis=0) for name in drawn[0]}


def _population(accuracy: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the same for one simulated population."""
    k = len(SHARES)
    labels = np.repeat(np.arange(k), POPULATION // k)
    noise = rng.normal(size=(len(labels), k))
    given = softmax(SURE * logits(labels, noise, sharpness(accuracy)))
    predicted, confidence = given.argmax(axis=1), given.max(axis=1)
    one = np.eye(k)[labels]
    own = np.minimum((confidence * BINS).astype(int), BINS - 1)
    excess = np.zeros((k, BINS))
    np.add.at(excess, (labels, own), confidence - (predicted == labels))
    losses = np.stack(
        [
            -np.log(np.clip(given[np.arange(len(labels)), labels], 1e-7, None)),
            ((given - one) ** 2).sum(axis=1),
        ]
    )
    each = POPULATION // k
    ranked = [[given[labels == j, i] for j in range(k)] for i in range(k)]
    areas = np.full((k, k), np.nan)
    for i, j in product(range(k), range(k)):
        if i != j:
            areas[i, j] = np.searchsorted(np.sort(ranked[i][j]), ranked[i][i]).mean() / each
    return {
        "confusion": one.T @ np.eye(k)[predicted] / each,
        "losses": losses @ one / each,
        "excess": excess / each,
        "areas": areas,
    }


def truth(setting: Setting) -> dict[str, float]:
    """Return the true value of each estimate, with the setting's shares of the classes."""
    of, weights = population(setting.accuracy), setting.groups() / setting.groups().sum()
    confusion = of["confusion"] * weights[:, None]
    found = {name: float(value) for name, value in values(confusion).items()}
    found["log_loss"], found["brier"] = (float(loss) for loss in of["losses"] @ weights)
    found["ece"] = float(np.abs(weights @ of["excess"]).sum())
    areas = []
    for k, name in enumerate(CLASSES):
        others = np.delete(np.arange(len(CLASSES)), k)
        areas.append(float(of["areas"][k, others] @ weights[others] / weights[others].sum()))
        right, true, said = confusion[k, k], confusion[k].sum(), confusion[:, k].sum()
        found |= {f"{name} recall": right / true, f"{name} precision": right / said}
        found |= {f"{name} f1": 2 * right / (true + said), f"{name} auroc": areas[-1]}
    found["auroc"] = float(np.mean(areas))
    return found


def intervals(setting: Setting, rng: np.random.Generator) -> dict[str, Mapping[str, float]]:
    """Return every entry of one simulated metrics.json."""
    labels, probabilities, groups, run = draw(setting, rng)
    prior = np.tile(SHARES, (len(labels), 1))
    found = score(labels, probabilities, groups, CLASSES, prior, run)
    return found["metrics"] | {
        f"{name} {metric}": found["classes"][name][metric]
        for name in CLASSES
        for metric in ("recall", "precision", "f1", "auroc")
    }


@dataclass(frozen=True)
class Measured:
    """What the intervals of one estimate did in simulated test sets of one setting."""

    setting: Setting
    kind: str
    """The metric; for one of a class, with "class" before it."""
    groups: int
    """Of all cells, or of the class."""
    coverage: float
    """The share of the intervals that hold the true value."""
    width: float
    """The mean width over that of 3.92 standard deviations of the estimate."""
    resolved: bool
    """Whether the true value is two standard deviations or more from the metric's bounds."""


@dataclass(frozen=True)
class Criterion:
    """What is asked of the intervals of all metrics."""

    name: str
    """What is measured, and the number of groups."""
    groups: range
    """The numbers of groups that it holds for."""
    least: float | None = None
    """The least coverage that will do; None where the width is measured."""

    def counts(self, one: Measured) -> bool:
        """Return whether a setting's figure is to be held to it.

        A width is not where the true value is within two standard deviations of a bound: there
        the estimates pile up at the bound, and their standard deviation says little.
        """
        return one.groups in self.groups and (self.least is not None or one.resolved)

    def worst(self, some: Sequence[Measured]) -> Measured:
        """Return the least coverage, or the greatest width."""
        return min(some, key=lambda one: one.coverage if self.least else -one.width)

    def figure(self, one: Measured) -> str:
        """Return the figure, with a mark where it falls short."""
        if self.least:
            return f"{100 * one.coverage:.1f}" + " TOO LOW" * (one.coverage < self.least)
        return f"{one.width:.2f}" + " TOO WIDE" * (one.width > WIDEST)


WIDEST = 1.5
"""The greatest width that will do, times 3.92 standard deviations of the estimate."""

CRITERIA = (
    Criterion("10 groups or more: least coverage, %", range(10, POPULATION), 0.93),
    Criterion("6 to 9 groups: least coverage, %", range(6, 10), 0.90),
    Criterion("30 groups or more: greatest mean width, times 3.92 sd", range(30, POPULATION)),
)


def trials(setting: Setting, repetitions: int, seed: int) -> list[Measured]:
    """Simulate test sets of one setting."""
    rng, true = np.random.default_rng(seed), truth(setting)
    names = list(true)
    found = [intervals(setting, rng) for _ in range(repetitions)]
    measured = []
    for name in names:
        value, low, high = (
            np.array([each[name][key] for each in found]) for key in ("value", "low", "high")
        )
        of_class, _, metric = name.rpartition(" ")
        groups = setting.groups()
        own = groups[CLASSES.index(of_class)] if of_class else groups.sum()
        held = np.mean((low <= true[name] + 1e-9) & (true[name] - 1e-9 <= high))
        sd = float(value.std())
        distance = true[name] if metric in ("log_loss", "brier", "ece") else 1 - true[name]
        measured.append(
            Measured(
                setting,
                f"class {metric}" if of_class else metric,
                int(own),
                float(held),
                float((high - low).mean() / (3.92 * max(sd, 1e-12))),
                min(distance, true[name]) >= 2 * sd > 1e-9,
            )
        )
    return measured


def beside(repetitions: int) -> dict[str, float]:
    """Return the coverage of libraries' intervals on 60 independent cells, accuracy .93."""
    setting, rng = Setting(60, 1, 0.93, 1, 1), np.random.default_rng(5)
    true, held = truth(setting), {"accuracy": 0, "log loss": 0}
    for _ in range(repetitions):
        labels, probabilities, _, _ = draw(setting, rng)
        hits = int((probabilities.argmax(axis=1) == labels).sum())
        exact = stats.binomtest(hits, len(labels)).proportion_ci(method="exact")
        held["accuracy"] += exact.low <= true["accuracy"] <= exact.high
        losses = -np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, None))
        drawn = stats.bootstrap((losses,), np.mean, n_resamples=999, rng=rng).confidence_interval
        held["log loss"] += drawn.low <= true["log_loss"] <= drawn.high
    return {name: count / repetitions for name, count in held.items()}


def exceeded(setting: Setting, repetitions: int) -> float:
    """Return how often a calibrated network's error exceeds what it stays below in 95 of 100."""
    rng, above = np.random.default_rng(6), 0
    for _ in range(repetitions):
        labels, probabilities, groups, _ = draw(setting, rng, calibrated=True)
        bins = Bins(labels, probabilities, groups)
        above += bins.error > bins.by_chance
    return above / repetitions


def measure(repetitions: int = 100) -> Iterator[tuple[str, str]]:
    """Yield rows of the table: what, and its figure.

    The worst setting of many is the worst by chance, too: it is measured again, with five times
    as many test sets, and that figure is shown.

    Args:
        repetitions: The number of simulated test sets of each setting.
    """
    with ProcessPoolExecutor(mp_context=CONTEXT, max_workers=2) as pool:
        every = sorted(settings(), key=lambda one: -one.n * one.seeds)
        calibrated = [each for each in every if each.accuracy < 0.99 and each.folds == 1]
        above = pool.map(exceeded, calibrated, [repetitions] * len(calibrated))
        found = pool.map(trials, every, [repetitions] * len(every), range(len(every)))
        first = [one for some in found for one in some]
        worst = {
            (kind, criterion): criterion.worst(some)
            for kind in dict.fromkeys(one.kind for one in first)
            for criterion in CRITERIA
            if (some := [one for one in first if one.kind == kind and criterion.counts(one)])
        }
        chosen = list(dict.fromkeys(one.setting for one in worst.values()))
        many, seeds = [5 * repetitions] * len(chosen), range(1000, 1000 + len(chosen))
        again = dict(zip(chosen, pool.map(trials, chosen, many, seeds), strict=True))
        shares = list(above)
    for (kind, criterion), one in worst.items():
        same = again[one.setting] if criterion.least else [*chain(*again.values())]
        same = [each for each in same if each.kind == kind and criterion.counts(each)]
        one = criterion.worst(same or [one])
        figure = criterion.figure(one)
        yield f"95 % interval of {kind}, {criterion.name}", f"{figure} ({one.setting})"
    for name, share in beside(repetitions).items():
        library = "binomtest, exact" if name == "accuracy" else "bootstrap, BCa"
        what = f"  beside it: scipy's {library}, {name}, 60 cells, accuracy .93, %"
        yield what, f"{100 * share:.1f}"
    at = int(np.argmax(shares))
    yield (
        f"calibrated networks above `calibrated`, most of {len(shares)} kinds of test sets, %",
        f"{100 * shares[at]:.1f} ({calibrated[at]}); mean {100 * np.mean(shares):.1f}",
    )
