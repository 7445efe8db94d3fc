"""Batches of images, or of their features, from the pixel cache."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cellbench.data.augment import Augmentation
from cellbench.data.cache import Pixels
from cellbench.data.sampling import SampleRequest
from cellbench.data.smote import Smote
from cellbench.data.views import Image, Mask, View, apply_view


class Batch(NamedTuple):
    """Images with their labels: a data module yields it and a model takes it."""

    images: Tensor
    """uint8, (B, channels, H, W), in channels_last memory format; not normalised."""
    labels: Tensor
    """Class indices, int64, (B,); -1 for an unknown class."""
    positions: Tensor
    """Positions of the samples in the data module's table, int64, (B,)."""
    targets: Tensor | None = None
    """Share of each class in the training target, float32, (B, classes); None for the label."""


class FeatureBatch(NamedTuple):
    """Features with their labels: stands in for a `Batch` once the features are known."""

    features: Tensor
    """Output of the frozen part of the model, (B, D)."""
    labels: Tensor
    """Class indices, int64, (B,)."""
    positions: Tensor
    """Positions of the samples in the data module's table, int64, (B,)."""
    targets: Tensor | None = None
    """Share of each class in the training target, float32, (B, classes); None for the label."""


@dataclass(frozen=True, eq=False)
class Features:
    """Features of all images of a table."""

    plain: np.ndarray
    """Features of the images as they are, as bytes, uint8, (n, D * itemsize)."""
    variants: list[np.ndarray]
    """Features of each augmented variant; empty if training shows the images as they are."""
    dtype: torch.dtype
    """Type of the values."""


class FeatureDataset(Dataset[FeatureBatch]):
    """Features of a table's images; the item of a list of requests is a batch.

    Args:
        features: The features.
        labels: Class indices, (n,).
        augmented: True to show the augmented variants, if there are any.
        targets: Share of each class in the training target, (n, classes), or None.
    """

    def __init__(
        self,
        features: Features,
        labels: np.ndarray,
        *,
        augmented: bool,
        targets: np.ndarray | None = None,
    ) -> None:
        self._variants = (augmented and features.variants) or [features.plain]
        self._dtype = features.dtype
        self._labels = labels
        self._targets = targets

    def __getitem__(self, requests: list[SampleRequest]) -> FeatureBatch:
        """Return the batch of some requests."""
        positions = np.array([request.position for request in requests], dtype=np.int64)
        variants = self._variants
        rows = np.stack(
            [variants[request.turn % len(variants)][request.position] for request in requests]
        )
        return FeatureBatch(
            torch.from_numpy(rows).view(self._dtype),
            torch.from_numpy(self._labels[positions]),
            torch.from_numpy(positions),
            _rows(self._targets, positions),
        )


@dataclass(frozen=True, eq=False)
class Rendering:
    """Steps from a decoded image to the one that the network sees."""

    view: View
    """Part of the image that is shown."""
    fill: int
    """Value of hidden pixels, 0 to 255."""
    augmentation: Augmentation | None
    """Transforms of each image; None for validation, test and prediction."""
    seed: int
    """Seed of all random numbers, together with the turn and the sample's own seed."""
    variants: int | None
    """Number of different augmentations of a sample; None for a new one each turn."""


class CellDataset(Dataset[Batch]):
    """Images of a table as the network sees them; the item of a list of requests is a batch.

    Args:
        pixels: Decoded images and masks.
        labels: Class indices, (n,).
        sample_seeds: A number for each sample that depends on its id alone, (n,).
        rendering: Steps from a decoded image to what the network sees.
        targets: Share of each class in the training target, (n, classes), or None.
        smote: Maker of synthetic images; None if no request asks for one.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: np.ndarray,
        sample_seeds: np.ndarray,
        rendering: Rendering,
        targets: np.ndarray | None = None,
        smote: Smote | None = None,
    ) -> None:
        self._pixels = pixels
        self._labels = labels
        self._sample_seeds = sample_seeds
        self._rendering = rendering
        self._targets = targets
        self._smote = smote

    def __getitem__(self, requests: list[SampleRequest]) -> Batch:
        """Return the batch of some requests."""
        positions = np.array([request.position for request in requests], dtype=np.int64)
        shown = np.empty((len(requests), *self._pixels.images.shape[1:]), dtype=np.uint8)
        for i, request in enumerate(requests):
            shown[i] = self._render(request)
        return Batch(
            torch.from_numpy(shown).permute(0, 3, 1, 2),
            torch.from_numpy(self._labels[positions]),
            torch.from_numpy(positions),
            _rows(self._targets, positions),
        )

    def _render(self, request: SampleRequest) -> Image:
        """Return the image of a request as the network sees it."""
        how, sample_seed = self._rendering, int(self._sample_seeds[request.position])
        image, mask = self._read(request, (how.seed, request.turn, sample_seed))
        if how.augmentation is not None:
            # A blend is new each turn; its augmentation is one of the variants.
            turn = request.turn if how.variants is None else request.turn % how.variants
            image, mask = how.augmentation(image, mask, (how.seed, turn, sample_seed))
        return apply_view(image, mask, how.view, how.fill)

    def _read(self, request: SampleRequest, seed: tuple[int, ...]) -> tuple[Image, Mask | None]:
        if request.synthetic:
            assert self._smote is not None
            return self._smote.blend(request.position, seed)
        return self._pixels.read(request.position)


def _rows(targets: np.ndarray | None, positions: np.ndarray) -> Tensor | None:
    return None if targets is None else torch.from_numpy(targets[positions])
