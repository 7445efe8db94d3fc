"""Metrics against scikit-learn, and their intervals against what they promise."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm, sem
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)

from cellbench.metrics.classification import evaluate, values
from cellbench.metrics.intervals import score_interval, wilson
from cellbench.metrics.probabilities import Area, Bins, calibration, fit_temperature, temper
from cellbench.metrics.probabilities import score as score_probabilities
from cellbench.models.classifier import CellClassifier
from cellbench.models.config import ModelConfig
from tests.benchmarks.coverage import Setting, intervals
from tests.benchmarks.coverage import draw as draw_test_set

CLASSES = ("a", "b", "c", "d")


def draw(rng, sizes, recalls):
    """Labels, and predictions that are right with each class' recall."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    right = rng.random(len(labels)) < np.array(recalls)[labels]
    return labels, np.where(right, labels, (labels + rng.integers(1, 4, len(labels))) % 4)


def score(labels, predicted, groups=None):
    groups = np.arange(len(labels)) if groups is None else groups
    return evaluate(labels, predicted, groups, CLASSES, np.zeros_like(labels))


@pytest.mark.parametrize("seed", range(5))
def test_values_agree_with_scikit_learn_and_torchmetrics(seed):
    labels, predicted = draw(np.random.default_rng(seed), (35, 11, 10, 4), (0.9, 0.8, 0.5, 0.3))
    found = score(labels, predicted)
    values = {name: entry["value"] for name, entry in found["metrics"].items()}
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert values["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    recalls = [own["recall"]["value"] for own in found["classes"].values()]
    assert recalls == pytest.approx(list(recall_score(labels, predicted, average=None)))

    model = CellClassifier(CLASSES, (32, 32), ModelConfig(backbone="small_cnn"))
    model.val_metrics.update(torch.tensor(predicted), torch.tensor(labels))
    for name, value in model.val_metrics.compute().items():
        assert values[name.removeprefix("val/")] == pytest.approx(float(value), abs=1e-6)


def test_the_baseline_says_the_majority_class_of_each_samples_training_split():
    labels = np.repeat([0, 1, 2, 3], [6, 2, 1, 1])
    found = score(labels, labels)
    assert found["metrics"]["accuracy"]["baseline"] == pytest.approx(0.6)
    assert found["metrics"]["f1_macro"]["baseline"] == pytest.approx(0.75 / 4)
    assert [own["recall"]["baseline"] for own in found["classes"].values()] == [1, 0, 0, 0]


def test_wilson_agrees_with_the_published_example():
    # Newcombe 1998, table I, method 3: 81 of 263 and 0 of 20
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_groups_of_copies_widen_the_intervals_to_those_of_the_groups():
    rng = np.random.default_rng(0)
    labels, predicted = draw(rng, (30, 30, 30, 30), (0.8, 0.8, 0.8, 0.8))
    copies = [np.repeat(array, 10) for array in (labels, predicted, np.arange(len(labels)))]
    alone, copied = score(labels, predicted), score(*copies)
    assert copied["groups"] == alone["n"] == 120
    for name, entry in alone["metrics"].items():
        width = copied["metrics"][name]["high"] - copied["metrics"][name]["low"]
        assert width == pytest.approx(entry["high"] - entry["low"], rel=0.1)


def test_no_mistake_is_no_certainty():
    labels = np.repeat([0, 1, 2, 3], [35, 11, 10, 4])
    found = score(labels, labels)["metrics"]
    assert found["accuracy"]["low"] == pytest.approx(wilson(1.0, 60)[0])
    assert found["balanced_accuracy"]["low"] < 0.9
    assert all(entry["high"] == pytest.approx(1) == entry["value"] for entry in found.values())


@pytest.mark.parametrize(
    ("sizes", "recalls"),
    [((35, 11, 10, 4), (0.97, 0.9, 0.85, 0.7)), ((35, 11, 10, 4), (0.99, 0.98, 0.98, 0.97))],
)
def test_intervals_hold_the_truth_as_often_as_they_say(sizes, recalls):
    rng = np.random.default_rng(0)
    truth = {}
    labels, predicted = draw(rng, np.array(sizes) * 20_000, recalls)
    large = np.stack([np.bincount(predicted[labels == i], minlength=4) for i in range(4)])
    truth["accuracy"] = np.diag(large).sum() / large.sum()
    truth["balanced_accuracy"] = (np.diag(large) / large.sum(1)).mean()
    truth["f1_macro"] = (2 * np.diag(large) / (large.sum(0) + large.sum(1))).mean()
    held = dict.fromkeys(truth, 0)
    for _ in range(300):
        found = score(*draw(rng, sizes, recalls))["metrics"]
        for name, value in truth.items():
            held[name] += found[name]["low"] <= value <= found[name]["high"]
    assert min(held.values()) >= 0.92 * 300  # a standard error of .0126 below .95, twice


def draw_probabilities(rng, n=200, sharp=2.0):
    """Labels, and probabilities that know something of them."""
    labels = rng.integers(0, 4, n)
    logits = rng.normal(size=(n, 4)) + sharp * np.eye(4)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def with_probabilities(labels, probabilities, groups=None):
    groups = np.arange(len(labels)) if groups is None else groups
    prior = np.tile([0.4, 0.3, 0.2, 0.1], (len(labels), 1))
    return score_probabilities(labels, probabilities, groups, CLASSES, prior)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_probabilities_agree_with_scikit_learn(seed):
    labels, probabilities = draw_probabilities(np.random.default_rng(seed))
    probabilities = probabilities.round(2) / probabilities.round(2).sum(axis=1, keepdims=True)
    found = with_probabilities(labels, probabilities)  # rounded, so that there are ties
    predicted = probabilities.argmax(axis=1)
    expected = {
        "auroc": roc_auc_score(labels, probabilities, multi_class="ovr"),
        "log_loss": log_loss(labels, np.clip(probabilities, 1e-7, None)),
        "brier": ((probabilities - np.eye(4)[labels]) ** 2).sum(axis=1).mean(),
        "mcc": matthews_corrcoef(labels, predicted),
        "kappa": cohen_kappa_score(labels, predicted),
        "precision_macro": precision_score(labels, predicted, average="macro"),
    }
    for name, value in expected.items():
        entry = found["metrics"][name]
        assert entry["value"] == pytest.approx(value, rel=1e-4), name
        assert entry["low"] <= entry["value"] <= entry["high"]
    for k, name in enumerate(CLASSES):
        own = roc_auc_score(labels == k, probabilities[:, k])
        assert found["classes"][name]["auroc"]["value"] == pytest.approx(own)
    f1 = f1_score(labels, predicted, average=None)
    assert [own["f1"]["value"] for own in found["classes"].values()] == pytest.approx(list(f1))


def test_the_baseline_of_probabilities_says_the_classes_shares():
    labels, probabilities = draw_probabilities(np.random.default_rng(0), 1000)
    found = with_probabilities(labels, probabilities)["metrics"]
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    assert found["log_loss"]["baseline"] == pytest.approx(-np.log(shares)[labels].mean())
    assert found["auroc"]["baseline"] == 0.5
    assert found["mcc"]["baseline"] == found["kappa"]["baseline"] == 0
    assert found["ece"]["baseline"] == pytest.approx(abs(0.4 - (labels == 0).mean()))


def test_calibration_is_measured_and_mended_by_the_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 4)) * 2
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(4, p=p) for p in true])
    sure = temper(true, 1 / 3)  # three times as sure as it may be
    assert fit_temperature(labels, sure) == pytest.approx(3, rel=0.06)
    honest, boasting = (with_probabilities(labels, p)["metrics"]["ece"] for p in (true, sure))
    assert honest["value"] < 0.02 < 0.1 < boasting["low"]
    mended = with_probabilities(labels, temper(sure, 3.0))["metrics"]["ece"]
    assert mended["value"] == pytest.approx(honest["value"], abs=2e-3)
    few = np.eye(4)[[0, 1, 2, 3]] * 0.6 + 0.1
    assert 0.5 < fit_temperature(np.arange(4), few) < 1  # no mistake in four is no certainty


def test_an_interval_of_the_auroc_counts_groups():
    labels, probabilities = draw_probabilities(np.random.default_rng(1), 120, sharp=1.0)
    alone = with_probabilities(labels, probabilities)["metrics"]["auroc"]
    copies = np.repeat(np.arange(120), 10)
    copied = with_probabilities(labels[copies], probabilities[copies], copies)["metrics"]["auroc"]
    assert copied["value"] == pytest.approx(alone["value"])
    width = alone["high"] - alone["low"]
    assert copied["high"] - copied["low"] == pytest.approx(width, rel=0.1)
    perfect = with_probabilities(labels, np.eye(4)[labels] * 0.8 + 0.05)["metrics"]
    assert perfect["auroc"]["low"] < 0.97
    assert perfect["mcc"]["low"] < 0.97


@pytest.mark.parametrize("n", [80_000, 100_000, 200_000, 1_000_000])
def test_no_product_of_counts_overflows(n):
    labels, predicted = draw(np.random.default_rng(0), [n // 4] * 4, (0.9, 0.95, 0.9, 0.95))
    found = score(labels, predicted, np.arange(n) // 10)["metrics"]
    for name, of in (("mcc", matthews_corrcoef), ("kappa", cohen_kappa_score)):
        assert found[name]["value"] == pytest.approx(of(labels, predicted), rel=1e-9)
        assert found[name]["low"] < found[name]["value"] < found[name]["high"] < 0.95
    counts = np.array([[n // 2 - 7, 7], [3, n // 2 - 3]])  # integers, as a caller may have them
    sure = (n - 10) / n
    assert values(counts)["kappa"] == pytest.approx(2 * sure - 1, abs=1e-6)


def test_the_area_under_the_curve_is_exact_in_a_large_test_set():
    rng, n = np.random.default_rng(0), 300_000
    labels = (rng.random(n) < 0.3).astype(int)
    own = (0.3 * labels + rng.random(n)).clip(0, 1).round(3)
    area = Area(labels == 1, own, np.arange(n), np.zeros(n, int))
    assert area.value == pytest.approx(roc_auc_score(labels, own), abs=1e-12)


@pytest.mark.parametrize("share", [0.75, 0.93])
def test_one_group_of_a_class_counts_once(share):
    # Two healthy slides and one of a tumour, of 2,000 cells each
    labels = np.repeat([0, 0, 1], 2000)
    right = np.tile(np.arange(2000) < share * 2000, 3)
    groups = np.repeat(["first", "second", "third"], 2000)
    predicted = np.where(right, labels, 1 - labels)
    found = evaluate(labels, predicted, groups, ("healthy", "tumour"), np.zeros_like(labels))
    recall = {name: own["recall"] for name, own in found["classes"].items()}
    assert (recall["tumour"]["low"], recall["tumour"]["high"]) == pytest.approx(wilson(share, 1))
    assert (recall["healthy"]["low"], recall["healthy"]["high"]) == pytest.approx(wilson(share, 2))
    accuracy = found["metrics"]["accuracy"]  # the same in all three
    assert (accuracy["low"], accuracy["high"]) == pytest.approx(wilson(share, 3))


def test_one_group_in_the_whole_test_set_says_next_to_nothing():
    rng = np.random.default_rng(0)
    labels, probabilities = draw_probabilities(rng, 2000)
    found = with_probabilities(labels, probabilities, np.zeros(2000, int))
    accuracy = found["metrics"]["accuracy"]
    ends = accuracy["low"], accuracy["high"]
    assert ends == pytest.approx(wilson(accuracy["value"], 1))
    for name, entry in found["metrics"].items():
        assert entry["low"] < 0.8 * entry["value"], name
        assert entry["high"] > min(1.2 * entry["value"], 0.95), name


def test_the_precisions_groups_are_those_with_predictions_of_the_class():
    labels, predicted = np.repeat([0, 1], 50), np.r_[np.ones(49, int), 0, np.ones(50, int)]
    found = evaluate(labels, predicted, np.arange(100), ("a", "b"), labels)
    own = found["classes"]["a"]["precision"]
    assert (own["low"], own["high"]) == pytest.approx(wilson(1.0, 1))
    # All predictions of the class are of one slide, and its true cells of fifty
    labels, predicted = np.repeat([0, 1], 100), np.r_[[0] * 10, [1] * 190]
    groups = np.r_[np.zeros(10, int), np.arange(1, 91), np.arange(91, 191)]
    own = evaluate(labels, predicted, groups, ("a", "b"), labels)["classes"]["a"]
    assert (own["precision"]["low"], own["precision"]["high"]) == pytest.approx(wilson(1.0, 1))
    assert own["recall"]["high"] < 0.3  # where all 91 groups count


def calibrated_error(rng, n, seeds, own):
    """The calibration of a network whose probabilities are true, by several runs."""
    labels, shared = rng.integers(0, 4, n), rng.normal(size=(n, 4))
    found = []
    for _ in range(seeds):
        noise = np.sqrt(1 - own) * shared + np.sqrt(own) * rng.normal(size=(n, 4))
        logits = 1.6 * (1.6 * np.eye(4)[labels] + noise)
        found.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    flat = np.full((n * seeds, 4), 0.25)
    labels, groups = np.tile(labels, seeds), np.tile(np.arange(n), seeds)
    return calibration(labels, np.concatenate(found), groups, flat)[0]["ece"]


@pytest.mark.parametrize(("seeds", "own"), [(1, 0.5), (3, 0.2), (3, 0.0)])
@pytest.mark.parametrize("n", [60, 300])
def test_the_calibrated_stay_below_their_bound(n, seeds, own):
    rng = np.random.default_rng(0)
    errors = [calibrated_error(rng, n, seeds, own) for _ in range(100)]
    above = np.mean([error["value"] > error["calibrated"] for error in errors])
    assert above < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 100)
    assert np.mean([error["low"] == 0 for error in errors]) > 0.9


def test_the_calibration_error_may_be_as_large_as_the_overall_one():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, probabilities, groups, _ = draw_test_set(Setting(3000, 50, 0.60, 1, 1), rng)
        excess = probabilities.max(axis=1) - (probabilities.argmax(axis=1) == labels)
        of_groups = np.bincount(groups, excess - excess.mean()) * (groups.max() + 1) / len(labels)
        _, high = Bins(labels, probabilities, groups).interval()
        assert high > abs(excess.mean()) + 1.96 * sem(of_groups)


def test_groups_that_move_bins_in_opposite_directions_widen_the_calibration_error():
    rng, held = np.random.default_rng(0), 0
    for _ in range(60):
        shifts = rng.normal(0, 0.1, 5).repeat(50)
        groups = np.tile(np.arange(5).repeat(50), 2)
        confidence = np.repeat([0.9, 0.6], 250)
        true = np.concatenate([0.85 + shifts, 0.6 - shifts]).clip(0, 1)
        labels = (rng.random(500) > true).astype(int)
        low, high = Bins(labels, np.stack([confidence, 1 - confidence], 1), groups).interval()
        held += low <= 0.025 <= high
    assert held >= 54


def test_simulated_test_sets_are_stratified():
    setting = Setting(300, 10, 0.93, 1, 1)  # 18, 5, 5 and 2 groups
    labels, _, groups, _ = draw_test_set(setting, np.random.default_rng(0))
    assert list(np.bincount(labels)) == [180, 50, 50, 20]
    assert len(np.unique(np.bincount(groups))) > 1


def test_bars_of_the_reliability_diagram_do_not_narrow_with_copies():
    labels, probabilities = draw_probabilities(np.random.default_rng(0), 300)
    groups = np.arange(300)
    alone = Bins(labels, probabilities, groups).bars()
    copies = np.tile(groups, 5)
    again = Bins(labels[copies], probabilities[copies], copies).bars()
    assert np.diff(again) == pytest.approx(np.diff(alone), rel=0.05)


def test_few_groups_have_wide_intervals():
    logits = 1 + np.random.default_rng(1).normal(0, np.sqrt(1.36), 1_000_000)
    loss, brier = np.log1p(np.exp(-logits)).mean(), (2 / (1 + np.exp(logits)) ** 2).mean()
    rng, held = np.random.default_rng(0), dict.fromkeys(("log_loss", "brier"), 0)
    for _ in range(200):
        labels = np.repeat([0, 1, 0, 1, 0, 1], 20)
        groups = np.repeat(np.arange(6), 20)
        own = 1 / (1 + np.exp(-1 - rng.normal(0, 0.6, 6)[groups] - rng.normal(size=120)))
        probabilities = np.where(labels[:, None] == [0, 1], own[:, None], 1 - own[:, None])
        judged, _ = calibration(labels, probabilities, groups, np.full((120, 2), 0.5))
        for name, true in (("log_loss", loss), ("brier", brier)):
            held[name] += judged[name]["low"] <= true <= judged[name]["high"]
    assert min(held.values()) >= 0.9 * 200


def test_an_interval_of_a_classes_area_is_as_wide_as_it_varies():
    rng, areas = np.random.default_rng(0), []
    for _ in range(200):
        labels = np.repeat(np.arange(40) % 2, 10)
        groups = np.repeat(np.arange(40), 10)
        own = labels * 2.6 + rng.normal(0, 0.4, 40)[groups] + rng.normal(size=400)
        area = Area(labels == 1, own, groups, np.zeros(400, int))
        areas.append((area.value, *area.interval()))
    value, low, high = np.array(areas).T
    assert (high - low).mean() < 1.5 * 3.92 * value.std()
    true = norm.cdf(2.6 / np.sqrt(2 * 1.16))
    assert np.mean((low <= true) & (true <= high)) >= 0.92


@pytest.mark.parametrize(("share", "n"), [(0.985, 10), (0.93, 10), (0.99, 30), (0.98, 60)])
def test_shares_near_one_are_covered(share, n):
    hits = np.arange(n + 1)
    ends = np.array([score_interval(k / n, n) for k in hits])
    held = (ends[:, 0] <= share) & (share <= ends[:, 1])
    assert binom.pmf(hits, n, share)[held].sum() >= 0.93  # Wilson's: .86 of ten, .985


def test_of_a_class_that_is_never_predicted_the_precision_may_be_anything():
    labels = np.repeat([0, 1, 2, 3], 5)
    found = score(labels, np.zeros_like(labels))
    own = found["classes"]["b"]["precision"]
    assert (own["value"], own["low"], own["high"]) == (0, 0, 1)
    assert json.loads(json.dumps(found)) == found  # nothing is NaN


@pytest.mark.parametrize(
    ("setting", "names", "most"),
    [
        # Groups of one class each: the mix of classes is given, and no part of the error
        (
            Setting(3000, 50, 0.93, 1, 1),
            ("a precision", "a f1", "precision_macro", "f1_macro", "mcc"),
            1.5,
        ),
        (Setting(3000, 1, 0.99, 1, 1), ("auroc", "log_loss", "brier"), 2),  # next to the bound
        (Setting(300, 10, 0.99, 3, 1), ("kappa", "mcc"), 1.5),  # few misses
        (Setting(300, 50, 0.99, 1, 1), ("log_loss", "brier"), 4),  # often no miss at all
    ],
)
def test_intervals_are_not_much_wider_than_they_must_be(setting, names, most):
    rng = np.random.default_rng(0)
    found = [intervals(setting, rng) for _ in range(60)]
    for name in names:
        value, low, high = np.array(
            [[each[name][k] for k in ("value", "low", "high")] for each in found]
        ).T
        assert 0.8 < (high - low).mean() / (3.92 * value.std()) < most, name
