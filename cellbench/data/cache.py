"""Every image decoded once, for all epochs and workers."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
    """Reads n images.

    Args:
        n: How many.
        image_size: Their height and width.
        read: Gives the image at a position, and its mask where masks are kept, at that size.
        with_masks: Whether to keep the masks.

    Raises:
        UserError: What `read` raises.
    """
    images = np.empty((n, *image_size, 3), dtype=np.uint8)
    masks = np.empty((n, *image_size), dtype=np.uint8) if with_masks else None

    def load(position: int) -> None:
        images[position], mask = read(position)
        if masks is not None and mask is not None:
            masks[position] = mask

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(load, range(n)):
            pass
    return Pixels(images, masks)
