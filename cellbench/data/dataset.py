"""From the pixel cache to a batch."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cellbench.data.augment import Augmentation
from cellbench.data.cache import Pixels
from cellbench.data.sampling import Key
from cellbench.data.views import View, apply_view


class Batch(NamedTuple):
    """What a data module gives and a model takes.

    Attributes:
        images: uint8 RGB, (B, 3, H, W), in channels_last memory format; not normalised.
        labels: Class indices, int64, (B,); -1 where the class is not known.
        positions: The samples' positions in the data module's table, int64, (B,).
    """

    images: Tensor
    labels: Tensor
    positions: Tensor


class CellDataset(Dataset[Batch]):
    """The images of a table as the network sees them; the item of a list of keys is a batch.

    Args:
        pixels: The decoded images and masks.
        labels: Class indices, (n,).
        keys: A number for each sample that depends on its id alone, (n,).
        view: What of the image to show.
        fill: The value of what is hidden.
        augmentation: None for validation, test and prediction.
        seed: With the turn and the sample's key, decides the augmentation.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: np.ndarray,
        keys: np.ndarray,
        view: View,
        fill: int,
        augmentation: Augmentation | None,
        seed: int,
    ) -> None:
        self._pixels = pixels
        self._labels = labels
        self._keys = keys
        self._view = view
        self._fill = fill
        self._augmentation = augmentation
        self._seed = seed

    def __getitem__(self, keys: list[Key]) -> Batch:
        """Makes a batch of the samples at the given (turn, position) keys."""
        positions = np.array([position for _, position in keys], dtype=np.int64)
        images = np.empty((len(keys), *self._pixels.images.shape[1:]), dtype=np.uint8)
        for i, (turn, position) in enumerate(keys):
            image, mask = self._pixels.read(position)
            if self._augmentation is not None:
                seed = (self._seed, turn, int(self._keys[position]))
                image, mask = self._augmentation(image, mask, seed)
            images[i] = apply_view(image, mask, self._view, self._fill)
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(self._labels[positions]),
            torch.from_numpy(positions),
        )
