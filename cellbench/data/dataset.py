"""From the pixel cache to a batch."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cellbench.data.augment import Augmentation
from cellbench.data.augment_batch import BatchAugmentation
from cellbench.data.cache import Pixels
from cellbench.data.sampling import Key
from cellbench.data.views import BACKGROUND, NUCLEUS, View, apply_view


class Batch(NamedTuple):
    """What a data module gives and a model takes.

    Attributes:
        images: uint8 RGB, (B, 3, H, W), in channels_last memory format; not normalised.
        labels: Class indices, int64, (B,); -1 where the class is not known.
        positions: The samples' positions in the data module's table, int64, (B,).
        masks: What is still to be transformed with the images, uint8, (B, H, W), or None.
        drawn: What the augmentation on the device is to do, (B, P); None where all is done. It is
            no tensor, and so stays in main memory, where reading it makes nobody wait.
        targets: What training aims at where that is no single class: each class' share, float32,
            (B, classes).
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    masks: Tensor | None = None
    drawn: np.ndarray | None = None
    targets: Tensor | None = None


class FeatureBatch(NamedTuple):
    """What a data module gives in the place of images whose features are known.

    Attributes:
        features: What the frozen part of the model made of the images, (B, D).
        labels: Class indices, int64, (B,).
        positions: The samples' positions in the data module's table, int64, (B,).
        targets: As a batch's.
    """

    features: Tensor
    labels: Tensor
    positions: Tensor
    targets: Tensor | None = None


@dataclass(frozen=True)
class Features:
    """The features of a table's images.

    Attributes:
        plain: Those of the images as they are, as bytes, uint8, (n, D * itemsize).
        variants: Those of each augmented variant; none where training shows the images as they are.
        dtype: The type of the values.
    """

    plain: np.ndarray
    variants: list[np.ndarray]
    dtype: torch.dtype


class FeatureDataset(Dataset[FeatureBatch]):
    """The features of a table's images; the item of a list of keys is a batch.

    Args:
        features: The features.
        labels: Class indices, (n,).
        augmented: Whether to show the augmented variants, where there are any.
        targets: Each class' share in what training aims at, (n, classes), or None.
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

    def __getitem__(self, keys: list[Key]) -> FeatureBatch:
        """Makes a batch of the samples at the given (turn, position) keys."""
        positions = np.array([position for _, position in keys], dtype=np.int64)
        variants = self._variants
        rows = np.stack([variants[turn % len(variants)][position] for turn, position in keys])
        return FeatureBatch(
            torch.from_numpy(rows).view(self._dtype),
            torch.from_numpy(self._labels[positions]),
            torch.from_numpy(positions),
            _rows(self._targets, positions),
        )


class CellDataset(Dataset[Batch]):
    """The images of a table as the network sees them; the item of a list of keys is a batch.

    Args:
        pixels: The decoded images and masks.
        labels: Class indices, (n,).
        keys: A number for each sample that depends on its id alone, (n,).
        view: What of the image to show.
        fill: The value of what is hidden.
        augmentation: What is done to each image, or is drawn here and left to `finish`; None for
            validation, test and prediction.
        seed: With the turn and the sample's key, decides the augmentation.
        variants: The number of different augmentations of a sample; None for one each turn.
        targets: Each class' share in what training aims at, (n, classes), or None.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: np.ndarray,
        keys: np.ndarray,
        view: View,
        fill: int,
        augmentation: Augmentation | BatchAugmentation | None,
        seed: int,
        variants: int | None,
        targets: np.ndarray | None = None,
    ) -> None:
        self._pixels = pixels
        self._labels = labels
        self._keys = keys
        self._view = view
        self._fill = fill
        self._augmentation = augmentation
        self._seed = seed
        self._variants = variants
        self._targets = targets

    def __getitem__(self, keys: list[Key]) -> Batch:
        """Makes a batch of the samples at the given (turn, position) keys."""
        positions = np.array([position for _, position in keys], dtype=np.int64)
        labels, where = torch.from_numpy(self._labels[positions]), torch.from_numpy(positions)
        targets = _rows(self._targets, positions)
        if self._variants is not None:
            keys = [(turn % self._variants, position) for turn, position in keys]
        seeds = [(self._seed, turn, int(self._keys[position])) for turn, position in keys]
        if isinstance(self._augmentation, BatchAugmentation):
            pixels, drawn = self._pixels, [self._augmentation.draw(seed) for seed in seeds]
            masks = None if pixels.masks is None else torch.from_numpy(pixels.masks[positions])
            images = _channels_first(pixels.images[positions])
            return Batch(images, labels, where, masks, np.stack(drawn), targets)
        shown = np.empty((len(keys), *self._pixels.images.shape[1:]), dtype=np.uint8)
        for i, (position, seed) in enumerate(zip(positions, seeds, strict=True)):
            image, mask = self._pixels.read(int(position))
            if self._augmentation is not None:
                image, mask = self._augmentation(image, mask, seed)
            shown[i] = apply_view(image, mask, self._view, self._fill)
        return Batch(_channels_first(shown), labels, where, targets=targets)


def _rows(targets: np.ndarray | None, positions: np.ndarray) -> Tensor | None:
    return None if targets is None else torch.from_numpy(targets[positions])


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def finish(batch: Batch, augmentation: BatchAugmentation, view: View, fill: int) -> Batch:
    """Augments a batch on its device, and shows of it what the view shows.

    Args:
        batch: What `CellDataset` gives with this augmentation.
        augmentation: The augmentation.
        view: Any but background, whose boxes are found image by image.
        fill: The value of what is hidden.
    """
    if batch.drawn is None:
        return batch
    images, masks = augmentation.apply(batch.images, batch.masks, torch.from_numpy(batch.drawn))
    if masks is not None and view != "crop":
        shown = (masks == NUCLEUS if view == "nucleus" else masks > BACKGROUND)[:, None]
        inside = torch.full_like(images, 255 - fill) if view == "silhouette" else images
        images = torch.where(shown, inside, fill)
    return Batch(images, batch.labels, batch.positions, targets=batch.targets)
