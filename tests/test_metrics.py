"""Metrics against scikit-learn, and their intervals against what they promise."""

import numpy as np
import pytest
import torch
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

from cellbench.models.classifier import CellClassifier
from cellbench.runs.metrics import evaluate, wilson
from cellbench.runs.probabilities import fit_temperature, temper
from cellbench.runs.probabilities import score as score_probabilities

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

    model = CellClassifier(CLASSES, (32, 32), backbone="small_cnn")
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
