"""SMOTE on pixels, image by image: memory does not grow with the number of synthetic images.

Chawla et al., SMOTE: synthetic minority over-sampling technique, JAIR 16 (2002).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from sklearn.neighbors import NearestNeighbors

from cellbench.config.bounds import bounds, check_bounds
from cellbench.data.cache import Pixels
from cellbench.data.views import Image, Mask, View, apply_view
from cellbench.utils.errors import UserError

SIDE = 32
"""Height and width of the thumbnails in which neighbours are searched."""

_STREAM = 1  # of random numbers, beside the augmentation's


@dataclass(frozen=True)
class SmoteConfig:
    """Synthetic images for the smaller classes of the training split.

    Each is a blend of an image and one of its nearest neighbours of the same class, a new one every
    time.
    """

    count: int | None = field(default=None, metadata=bounds(2, 10_000_000))
    """Number of images of each class that an epoch has at least; null for as many as the largest
    class has."""
    neighbours: int = field(default=5, metadata=bounds(1))
    """Number of neighbours to choose from; a class of n images has at most n - 1."""

    def __post_init__(self) -> None:
        """Raise UserError if a value is out of its bounds."""
        check_bounds(self, "data.smote")


class Smote:
    """Blending of the images of a training split with their neighbours.

    Args:
        pixels: The decoded images.
        positions: The training split's, (n,).
        labels: Their class indices, (n,).
        quotas: Number of images of each class in an epoch.
        config: The options.
        classes: The class names.
        view: The view of the images that the network sees.
        fill: Value of hidden pixels.

    Raises:
        UserError: A class that needs synthetic images has only one image.
    """

    def __init__(
        self,
        pixels: Pixels,
        positions: np.ndarray,
        labels: np.ndarray,
        quotas: Sequence[int],
        config: SmoteConfig,
        classes: Sequence[str],
        view: View,
        fill: int,
    ) -> None:
        self._pixels, self._view, self._fill = pixels, view, fill
        self._neighbours: dict[int, np.ndarray] = {}
        for label, quota in enumerate(quotas):
            own = positions[labels == label]
            if quota <= len(own):
                continue
            if len(own) < 2:
                raise UserError(
                    f"data.smote: class '{classes[label]}' has a single image in the training "
                    "split, and nothing to blend it with; use data.balance, or exclude it"
                )
            copies = np.stack([self._copy(int(position)) for position in own])
            k = min(config.neighbours, len(own) - 1)
            search = NearestNeighbors(n_neighbors=k).fit(copies)
            found = own[search.kneighbors(return_distance=False)]  # not counting itself
            self._neighbours |= dict(zip(own.tolist(), found, strict=True))

    def _copy(self, position: int) -> np.ndarray:
        image, mask = self._pixels.read(position)
        shown = apply_view(image, mask, self._view, self._fill)
        parts = np.split(shown, range(4, shown.shape[2], 4), axis=2)  # OpenCV takes four channels
        small = [cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for part in parts]
        return np.dstack(small).astype(np.float32).ravel()

    def blend(self, position: int, seed: tuple[int, ...]) -> tuple[Image, Mask | None]:
        """Return a synthetic image, and the union of the two masks.

        Args:
            position: The image that it begins with.
            seed: Non-negative integers that alone decide the neighbour and the share.
        """
        generator = np.random.default_rng((*seed, _STREAM))
        other = int(generator.choice(self._neighbours[position]))
        share = float(generator.uniform())
        pair = [self._pixels.read(position), self._pixels.read(other)]
        # What a view hides of one image must not shine through where the other is shown.
        first, second = (apply_view(image, mask, self._view, self._fill) for image, mask in pair)
        blended = np.asarray(cv2.addWeighted(first, 1 - share, second, share, 0), np.uint8)
        blended = blended.reshape(first.shape)  # OpenCV drops the axis of one channel
        masks = [mask for _, mask in pair if mask is not None]
        return blended, np.maximum(*masks) if masks else None
