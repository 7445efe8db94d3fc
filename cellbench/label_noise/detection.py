"""Easy, hard and noisy samples, told apart by their training history.

Zhu et al., Hard sample aware noise robust learning for histopathology image classification, IEEE
Trans Med Imaging 41 (2022), with the constants of the authors' code.
"""

import warnings
from typing import Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

Kind = Literal["easy", "hard", "noisy"]

SUSPECTED = 1.5
"""Samples that are not taken for easy, as a multiple of the rate of wrong labels."""

SETTLING = 1 / 8
"""The share of the epochs at the beginning that says nothing yet of a sample."""


def easy(history: np.ndarray, noise_rate: float) -> np.ndarray:
    """Whether each sample is easy: the mean probability of its label is not among the lowest.

    Args:
        history: The label's probability by epoch, (n, epochs).
        noise_rate: The share of wrong labels, as far as it is known.

    Returns:
        (n,), bool.
    """
    mean = history[:, int(SETTLING * history.shape[1]) :].mean(axis=1)
    suspected = int(SUSPECTED * noise_rate * len(mean))
    chosen = np.ones(len(mean), dtype=bool)
    chosen[np.argsort(mean, kind="stable")[:suspected]] = False
    return chosen


def noisy(
    history: np.ndarray, artificial: np.ndarray, flipped: np.ndarray, seed: int
) -> np.ndarray:
    """Whether each suspected sample is rather noisy than hard.

    Args:
        history: The histories of the suspected samples, (n, epochs).
        artificial: Those of easy samples in a training with some of their labels flipped,
            (m, epochs).
        flipped: Which of these were flipped, (m,), bool.
        seed: Of the classifier's beginning.

    Returns:
        (n,), bool.
    """
    classifier = MLPClassifier(
        hidden_layer_sizes=(200,),
        solver="sgd",
        learning_rate_init=0.02,
        momentum=0.0,
        batch_size=len(artificial),
        max_iter=500,
        n_iter_no_change=500,
        random_state=seed,
    )
    with warnings.catch_warnings():  # as many steps as published, settled or not
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(artificial, flipped)
    found: np.ndarray = classifier.predict(history).astype(bool)
    return found


def correct(
    given: np.ndarray, predicted: np.ndarray, is_easy: np.ndarray, is_noisy: np.ndarray
) -> np.ndarray:
    """The labels to train on: -1 where the two judges disagree.

    A suspected sample is kept with its label where it was found hard and the correction agrees
    with the label, and relabelled where it was found noisy and the correction differs.

    Args:
        given: The labels, (n,).
        predicted: The correction's, by a model that the suspected noisy samples did not train.
        is_easy: Which samples are not suspected, (n,).
        is_noisy: Which of the rest are noisy, (n,).
    """
    changed = predicted != given
    agreed = is_easy | (changed == is_noisy)
    return np.where(is_easy, given, np.where(agreed, predicted, -1))
