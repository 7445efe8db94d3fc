"""Shortcuts: prediction of the class from size, colour, surroundings or outline of the cell."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from joblib import cpu_count
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold

from cellbench.audit.images import FORMAT, Images, histogram, in_three_channels
from cellbench.data import result_cache, segmentation
from cellbench.data.module import CellDataModule
from cellbench.data.preprocessing import Preprocessing, resize
from cellbench.data.segmentation import segment
from cellbench.data.views import View, apply_view
from cellbench.metrics.classification import evaluate
from cellbench.utils.errors import UserError

FOLDS, TREES = 5, 100
"""Folds of the cross-validation, trees of the random forest."""

MOST = 4000
"""Greatest number of images; larger datasets are sampled, stratified by class."""

SIDE, COARSE = 64, 12
"""Sides, in pixels, of a view and of its thumbnail; the classifier sees the thumbnail, and the
histogram of the view."""


@dataclass(frozen=True)
class Shortcut:
    """Prediction of the class from features that should not determine it."""

    name: str
    """Name of the features."""
    scores: dict[str, Any] | None
    """Scores of the cross-validated predictions, from `evaluate`; None if there are none."""
    note: str = ""
    """Reason why there are no predictions, or a remark on the features."""

    @property
    def tells(self) -> bool:
        """True if the interval of accuracy or balanced accuracy lies above its baseline."""
        if self.scores is None:
            return False
        metrics = self.scores["metrics"]  # F1 is left out: its baseline is too low to matter
        both = (metrics["accuracy"], metrics["balanced_accuracy"])
        return any(metric["low"] > metric["baseline"] for metric in both)


def find_shortcuts(data: CellDataModule, images: Images, groups: np.ndarray) -> list[Shortcut]:
    """Predict the class from each set of features, by a random forest cross-validated by group.

    Args:
        data: The data module.
        images: Properties of its n images.
        groups: Group of each image as a number, (n,).

    Raises:
        UserError: Results cannot be cached.
    """
    chosen = _sample(data.table.labels)
    files = images.size[chosen, None] / 1024
    height, width = images.shape[chosen].T.astype(float)
    sources: dict[str, Callable[[], tuple[np.ndarray, str]]] = {
        "file size": lambda: (files, ""),
        "image size": lambda: (np.stack([height, width, height / width], axis=1), ""),
        "mean colour": lambda: (images.colour[chosen], "of the whole image"),
        "background alone": lambda: _view_features(data, "background", chosen),
        "silhouette alone": lambda: _view_features(data, "silhouette", chosen),
    }
    shortcuts = []
    for name, source in sources.items():
        try:
            features, note = source()
        except UserError as error:
            shortcuts.append(Shortcut(name, None, str(error)))
            continue
        if name == "file size" and (files < 0).any():
            shortcuts.append(Shortcut(name, None, "not every image has a file of its own"))
        elif (features == features[0]).all():
            shortcuts.append(Shortcut(name, None, "it is the same for all images"))
        else:
            shortcuts.append(_predict(name, note, data, features, chosen, groups[chosen]))
    return shortcuts


def _view_features(data: CellDataModule, view: View, chosen: np.ndarray) -> tuple[np.ndarray, str]:
    """Return features of a view: its thumbnail of 12x12 pixels and its histogram.

    If no cell is found, or the expert's mask cannot be read, nothing is hidden.

    Args:
        data: The data module.
        view: The view.
        chosen: Positions of the k images in the table, (k,).

    Returns:
        The features, (k, 480), and the source of the masks in words.

    Raises:
        UserError: The images show no single cells, so that there are no masks.
    """
    samples = [data.table.samples[i] for i in chosen]
    by_expert = all(data.has_mask(sample) for sample in samples)
    if not by_expert and not data.segments:
        why = "have channels other than RGB" if data.shows_cells else "show tissue"
        raise UserError(f"the images {why}, in which no single cell can be cut out")
    preprocessing = Preprocessing((SIDE, SIDE), view, 0)

    def measure(i: int) -> result_cache.Found:
        """Return the features of one image, (1, 480), and True if its mask has a cell."""
        image = data.read_image(samples[i])
        try:
            mask = data.read_mask(samples[i], image) if by_expert else segment(image)
            small, cell = preprocessing.prepare(in_three_channels(image), mask, samples[i].id)
        except UserError:  # there is no cell
            small = resize(in_three_channels(image), (SIDE, SIDE))
            cell = np.zeros((SIDE, SIDE), np.uint8)
        shown = apply_view(small, cell, view, 0)
        coarse = cv2.resize(shown, (COARSE, COARSE), interpolation=cv2.INTER_AREA)
        row = np.concatenate([coarse.ravel() / 255, histogram(shown)])
        return {"row": row[None], "cell": np.array([np.any(cell)])}

    identities = [
        f"{FORMAT} {segmentation.FORMAT} {preprocessing} {data.image_format.identity} "
        f"{data.table.fingerprints[i]} "
        f"{f'{data.mask_fingerprint(sample)} {data.mask_format}' if by_expert else ''}"
        for i, sample in zip(chosen, samples, strict=True)
    ]
    results = result_cache.for_each(
        f"looking at the {view}", identities, lambda: measure, data.cache
    )
    source = "experts'" if by_expert else "automatic"
    without = sum(not each["cell"][0] for each in results)
    missing = f"; no cell in {without} of {len(results)} images" if without else ""
    return np.concatenate([each["row"] for each in results]), f"{source} masks{missing}"


def _sample(labels: np.ndarray) -> np.ndarray:
    """Return the positions of at most `MOST` images, sorted, in the proportions of the classes."""
    if len(labels) <= MOST:
        return np.arange(len(labels))
    order = np.random.default_rng(0).permutation(len(labels))
    # Sorted by class, in random order within a class: even steps take each class in proportion.
    ranked = order[np.argsort(labels[order], kind="stable")]
    return np.sort(ranked[np.linspace(0, len(ranked) - 1, MOST).round().astype(int)])


def _predict(
    name: str,
    note: str,
    data: CellDataModule,
    features: np.ndarray,
    chosen: np.ndarray,
    groups: np.ndarray,
) -> Shortcut:
    """Predict the class from features by cross-validation.

    Args:
        name: Name of the features.
        note: Remark on the features.
        data: The data module.
        features: Features of the k chosen images, (k, features).
        chosen: Their positions in the table, (k,).
        groups: Their groups, (k,).
    """
    labels, classes = data.table.labels[chosen], data.classes
    groups_of = [len(np.unique(groups[labels == label])) for label in range(len(classes))]
    if min(groups_of) < FOLDS:
        few = classes[int(np.argmin(groups_of))]
        return Shortcut(name, None, f"class '{few}' has {min(groups_of)} groups for {FOLDS} folds")
    predicted, majority = np.empty_like(labels), np.empty_like(labels)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(features, labels, groups):
        forest = RandomForestClassifier(
            TREES, min_samples_leaf=2, random_state=0, n_jobs=cpu_count()
        )
        predicted[test] = forest.fit(features[train], labels[train]).predict(features[test])
        majority[test] = np.bincount(labels[train]).argmax()
    return Shortcut(name, evaluate(labels, predicted, groups, classes, majority), note)
