"""Every image decoded once, for all epochs and workers."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from cellbench.data.views import Image, Mask


@dataclass(frozen=True)
class Pixels:
    """The images of a table at their final size. Forked loader workers share the memory.

    Attributes:
        images: RGB, uint8, (n, H, W, 3).
        masks: BACKGROUND, CYTOPLASM or NUCLEUS, uint8, (n, H, W); None where the view needs none.
    """

    images: np.ndarray
    masks: np.ndarray | None

    def read(self, position: int) -> tuple[Image, Mask | None]:
        """One image and its mask."""
        return self.images[position], None if self.masks is None else self.masks[position]


def decode_all(
    n: int,
    image_size: tuple[int, int],
    read: Callable[[int], tuple[Image, Mask | None]],
    *,
    with_masks: bool,
) -> Pixels:
    """Reads and resizes n images.

    Args:
        n: How many.
        image_size: Height and width to resize to; the aspect is not kept.
        read: Gives the image at a position, and its mask, at any size.
        with_masks: Whether to keep the masks.

    Raises:
        UserError: What `read` raises.
    """
    images = np.empty((n, *image_size, 3), dtype=np.uint8)
    masks = np.empty((n, *image_size), dtype=np.uint8) if with_masks else None

    def load(position: int) -> None:
        image, mask = read(position)
        images[position] = resize(image, image_size)
        if masks is not None:
            assert mask is not None
            masks[position] = _scale(mask, image_size, cv2.INTER_NEAREST)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(load, range(n)):
            pass
    return Pixels(images, masks)


def resize(image: Image, image_size: tuple[int, int]) -> Image:
    """Resizes an RGB image to (height, width), by area where it shrinks, else linearly."""
    shrinks = image.shape[0] * image.shape[1] > image_size[0] * image_size[1]
    return _scale(image, image_size, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _scale(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    return cv2.resize(array, (size[1], size[0]), interpolation=interpolation)
