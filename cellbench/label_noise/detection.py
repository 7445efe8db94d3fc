"""Detection of easy, hard and noisy samples by their training history.

After Zhu et al., Hard sample aware noise robust learning for histopathology image classification,
IEEE Trans Med Imaging 41 (2022), with the constants of the authors' code.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

SUSPECTED = 1.5
"""Share of samples that are not considered easy, as a multiple of the share of wrong labels."""

SETTLING = 1 / 8
"""Share of the epochs, at the beginning, that are left out because they do not yet distinguish
samples."""


def easy(history: np.ndarray, noise_rate: float) -> np.ndarray:
    """Find easy samples: the mean probability of their label is not among the lowest.

    Args:
        history: Probability of the label by epoch, (n, epochs).
        noise_rate: Share of wrong labels, as far as it is known, 0 to 1.

    Returns:
        True for each easy sample, (n,), bool.
    """
    mean = history[:, int(SETTLING * history.shape[1]) :].mean(axis=1)
    suspected = int(SUSPECTED * noise_rate * len(mean))
    is_easy = np.ones(len(mean), dtype=bool)
    is_easy[np.argsort(mean, kind="stable")[:suspected]] = False
    return is_easy


def noisy(
    history: np.ndarray, artificial: np.ndarray, flipped: np.ndarray, seed: int
) -> np.ndarray:
    """Find the noisy ones among suspected samples; the others are hard.

    A classifier learns to distinguish them from samples with flipped labels.

    Args:
        history: Histories of the suspected samples, (n, epochs).
        artificial: Histories of easy samples in a training with some labels flipped, (m, epochs).
        flipped: True for each of these whose label was flipped, (m,), bool.
        seed: Seed of the classifier.

    Returns:
        True for each noisy sample, (n,), bool.
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
    with warnings.catch_warnings():  # the published number of steps, converged or not
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(artificial, flipped)
    is_noisy: np.ndarray = classifier.predict(history).astype(bool)
    return is_noisy


def correct(
    given: np.ndarray, predicted: np.ndarray, is_easy: np.ndarray, is_noisy: np.ndarray
) -> np.ndarray:
    """Return the labels to train on.

    Easy samples keep their labels. A hard sample keeps its label if the model predicts it too. A
    noisy sample gets the predicted label if this is another one. All others are left out.

    Args:
        given: The labels as indices, (n,).
        predicted: Predictions of a model that was not trained on the noisy samples, (n,).
        is_easy: True for each easy sample, (n,).
        is_noisy: True for each noisy sample, (n,).

    Returns:
        The labels as indices, -1 for samples to leave out, (n,).
    """
    changed = predicted != given
    agreed = is_easy | (changed == is_noisy)
    return np.where(is_easy, given, np.where(agreed, predicted, -1))
