"""How well the class is told without a look into the cell: size, colour, surroundings, outline."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from joblib import cpu_count
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold

from cellbench.audit.images import FORMAT, Images, histogram
from cellbench.data import result_cache, segmentation
from cellbench.data.module import CellDataModule
from cellbench.data.preprocessing import Preprocessing, resize
from cellbench.data.segmentation import segment
from cellbench.data.views import View, apply_view
from cellbench.metrics.classification import evaluate
from cellbench.utils.errors import UserError

FOLDS, TREES = 5, 100
MOST = 4000
"""So many images are drawn of larger sets, in the proportions of the classes."""
SIDE, COARSE = 64, 12
"""A view is made at 64x64 pixels, and shown to the classifier at 12x12 beside its histogram."""


@dataclass(frozen=True)
class Shortcut:
    """How well the class is predicted from something that should not tell it.

    Attributes:
        name: What it is predicted from.
        scores: What `evaluate` says of the cross-validated predictions; None where they cannot be
            made.
        note: Why they cannot, or what to know of them.
    """

    name: str
    scores: dict[str, Any] | None
    note: str = ""

    @property
    def tells(self) -> bool:
        """Whether the accuracy's or the balanced accuracy's interval lies above the baseline."""
        if self.scores is None:
            return False
        metrics = self.scores["metrics"]  # the baseline's F1 is so low that anything is above it
        both = (metrics["accuracy"], metrics["balanced_accuracy"])
        return any(metric["low"] > metric["baseline"] for metric in both)


def look(data: CellDataModule, images: Images, groups: np.ndarray) -> list[Shortcut]:
    """Predicts the class by a random forest, cross-validated with whole groups kept together.

    Args:
        data: The data module.
        images: What is known of its images.
        groups: Numbers of what belongs together, (n,).

    Raises:
        UserError: What is found cannot be kept.
    """
    chosen = _draw(data.table.labels)
    files = images.size[chosen, None] / 1024
    height, width = images.shape[chosen].T.astype(float)
    sources: dict[str, Callable[[], tuple[np.ndarray, str]]] = {
        "file size": lambda: (files, ""),
        "image size": lambda: (np.stack([height, width, height / width], axis=1), ""),
        "mean colour": lambda: (images.colour[chosen], "of the whole image"),
        "background alone": lambda: _view(data, "background", chosen),
        "silhouette alone": lambda: _view(data, "silhouette", chosen),
    }
    found = []
    for name, source in sources.items():
        try:
            features, note = source()
        except UserError as error:
            found.append(Shortcut(name, None, str(error)))
            continue
        if name == "file size" and (files < 0).any():
            found.append(Shortcut(name, None, "the images are not a file each"))
        elif (features == features[0]).all():
            found.append(Shortcut(name, None, "it is the same for all images"))
        else:
            found.append(_predict(name, note, data, features, chosen, groups[chosen]))
    return found


def _view(data: CellDataModule, view: View, chosen: np.ndarray) -> tuple[np.ndarray, str]:
    """What a view shows of some images, coarsely, (k, 480): 12x12 pixels and the histogram.

    Where no cell is found, or the expert's mask cannot be read, nothing is hidden.

    Returns:
        The features, and whose masks they rest on.

    Raises:
        UserError: There is no mask to cut the cells out by.
    """
    samples = [data.table.samples[i] for i in chosen]
    by_expert = all(data.has_mask(sample) for sample in samples)
    if not by_expert and not data.shows_cells:
        raise UserError("the images show tissue, in which no single cell can be cut out")
    preprocessing = Preprocessing((SIDE, SIDE), view, 0)

    def find(i: int) -> result_cache.Found:
        image = data.read_image(samples[i])
        try:
            mask = data.read_mask(samples[i], image) if by_expert else segment(image)
            small, cell = preprocessing.prepare(image, mask, samples[i].id)
        except UserError:  # there is no cell
            small, cell = resize(image, (SIDE, SIDE)), np.zeros((SIDE, SIDE), np.uint8)
        shown = apply_view(small, cell, view, 0)
        coarse = cv2.resize(shown, (COARSE, COARSE), interpolation=cv2.INTER_AREA)
        row = np.concatenate([coarse.ravel() / 255, histogram(shown)])
        return {"row": row[None], "cell": np.array([np.any(cell)])}

    identities = [
        f"{FORMAT} {segmentation.FORMAT} {preprocessing} {data.table.fingerprints[i]} "
        f"{data.mask_fingerprint(sample) if by_expert else ''}"
        for i, sample in zip(chosen, samples, strict=True)
    ]
    found = result_cache.for_each(f"looking at the {view}", identities, lambda: find, data.cache)
    whose = "experts'" if by_expert else "automatic"
    without = sum(not each["cell"][0] for each in found)
    lacking = f"; no cell in {without} of {len(found)} images" if without else ""
    note = f"{whose} masks{lacking}"
    return np.concatenate([each["row"] for each in found]), note


def _draw(labels: np.ndarray) -> np.ndarray:
    if len(labels) <= MOST:
        return np.arange(len(labels))
    order = np.random.default_rng(0).permutation(len(labels))
    ranked = order[np.argsort(labels[order], kind="stable")]  # by class, at random within
    return np.sort(ranked[np.linspace(0, len(ranked) - 1, MOST).round().astype(int)])


def _predict(
    name: str,
    note: str,
    data: CellDataModule,
    features: np.ndarray,
    chosen: np.ndarray,
    groups: np.ndarray,
) -> Shortcut:
    labels, classes = data.table.labels[chosen], data.classes
    of_class = [len(np.unique(groups[labels == label])) for label in range(len(classes))]
    if min(of_class) < FOLDS:
        few = classes[int(np.argmin(of_class))]
        return Shortcut(name, None, f"class '{few}' has {min(of_class)} groups for {FOLDS} folds")
    predicted, majority = np.empty_like(labels), np.empty_like(labels)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(features, labels, groups):
        forest = RandomForestClassifier(
            TREES, min_samples_leaf=2, random_state=0, n_jobs=cpu_count()
        )
        predicted[test] = forest.fit(features[train], labels[train]).predict(features[test])
        majority[test] = np.bincount(labels[train]).argmax()
    return Shortcut(name, evaluate(labels, predicted, groups, classes, majority), note)
