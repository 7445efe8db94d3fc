"""From the pixel cache to a batch."""

from collections.abc import Sequence
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
from cellbench.data.smote import Smote
from cellbench.data.views import (
    BACKGROUND,
    NUCLEUS,
    Image,
    Mask,
    View,
    apply_view,
    silhouette_value,
)


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
        """Makes a batch of what the keys ask for."""
        positions = np.array([key.position for key in keys], dtype=np.int64)
        variants = self._variants
        rows = np.stack([variants[key.turn % len(variants)][key.position] for key in keys])
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
        smote: What makes the synthetic images, where there are any.
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
        smote: Smote | None = None,
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
        self._smote = smote

    def __getitem__(self, keys: list[Key]) -> Batch:
        """Makes a batch of what the keys ask for."""
        positions = np.array([key.position for key in keys], dtype=np.int64)
        labels, where = torch.from_numpy(self._labels[positions]), torch.from_numpy(positions)
        targets = _rows(self._targets, positions)
        variants = self._variants
        # A blend is drawn anew each time, an augmentation from so many variants.
        blends = [(self._seed, key.turn, int(self._keys[key.position])) for key in keys]
        seeds = [(s, turn if variants is None else turn % variants, k) for s, turn, k in blends]
        if isinstance(self._augmentation, BatchAugmentation):
            drawn = np.stack([self._augmentation.draw(seed) for seed in seeds])
            images, masks = self._read_all(keys, positions, blends)
            return Batch(_channels_first(images), labels, where, masks, drawn, targets)
        shown = np.empty((len(keys), *self._pixels.images.shape[1:]), dtype=np.uint8)
        for i, (key, blend, seed) in enumerate(zip(keys, blends, seeds, strict=True)):
            image, mask = self._read(key, blend)
            if self._augmentation is not None:
                image, mask = self._augmentation(image, mask, seed)
            shown[i] = apply_view(image, mask, self._view, self._fill)
        return Batch(_channels_first(shown), labels, where, targets=targets)

    def _read(self, key: Key, seed: tuple[int, ...]) -> tuple[Image, Mask | None]:
        if key.synthetic:
            assert self._smote is not None
            return self._smote.blend(key.position, seed)
        return self._pixels.read(key.position)

    def _read_all(
        self, keys: list[Key], positions: np.ndarray, seeds: Sequence[tuple[int, ...]]
    ) -> tuple[np.ndarray, Tensor | None]:
        if not any(key.synthetic for key in keys):
            masks = None if self._pixels.masks is None else self._pixels.masks[positions]
            return self._pixels.images[positions], _tensor(masks)
        pairs = [self._read(key, seed) for key, seed in zip(keys, seeds, strict=True)]
        read = [mask for _, mask in pairs if mask is not None]
        return np.stack([image for image, _ in pairs]), _tensor(np.stack(read) if read else None)


def _tensor(masks: np.ndarray | None) -> Tensor | None:
    return None if masks is None else torch.from_numpy(masks)


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
        inside = images
        if view == "silhouette":
            inside = torch.full_like(images, silhouette_value(fill))
        images = torch.where(shown, inside, fill)
    return Batch(images, batch.labels, batch.positions, targets=batch.targets)
