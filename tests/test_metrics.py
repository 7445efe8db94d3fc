"""Metrics against scikit-learn, and their intervals against what they promise."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

from cellbench.models.classifier import CellClassifier
from cellbench.runs.metrics import evaluate, wilson

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
