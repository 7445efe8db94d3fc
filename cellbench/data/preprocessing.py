"""From a decoded image to the size that the network sees: the same in training and prediction."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from cellbench.data.segmentation import segment
from cellbench.data.stain import Normalisation, normalise
from cellbench.data.views import NUCLEUS, Image, Mask, View, crop_box, needs_mask
from cellbench.errors import UserError

Masks = Literal["expert", "auto"]

SMALLEST_SIDE, LARGEST_SIDE = 8, 4096
"""Pixels of a side of the network's input: larger ones fit no machine's memory."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to the pixels before the model: with the model, all that predict needs.

    Attributes:
        image_size: Height and width, in pixels.
        view: What of the image is shown.
        fill: The value of what is hidden.
        masks: Who outlines the cells: an expert, or `segment`.
        stain: What the images' stains are normalised as.
    """

    image_size: tuple[int, int]
    view: View
    fill: int
    masks: Masks = "expert"
    stain: Normalisation = "none"

    def prepare(self, image: Image, mask: Mask | None, name: str) -> tuple[Image, Mask | None]:
        """Normalises stains, crops and resizes; the rest of the view comes last of all.

        Args:
            image: RGB, uint8, at its native size.
            mask: Its mask at the same size, or None; automatic masks are made here.
            name: The image's name, for errors.

        Returns:
            The image and, where the view needs it, the mask, both at `image_size`.

        Raises:
            UserError: The view needs a mask, or a nucleus in it, that is not there.
        """
        if not needs_mask(self.view):
            return resize(normalise(image, self.stain), self.image_size), None
        if self.masks == "auto":
            try:
                mask = segment(image)
            except UserError as error:
                raise UserError(f"'{name}': {error}") from error
        if mask is None:
            raise UserError(f"data.view: {self.view} needs a mask, and '{name}' has none")
        if self.view == "nucleus" and not (mask == NUCLEUS).any():
            raise UserError(
                f"data.view: nucleus, but the mask of '{name}' marks none (0, 128 and 255 are "
                "background, cytoplasm and nucleus)"
            )
        image = normalise(image, self.stain)
        if self.view == "crop":
            box = crop_box(mask)
            image, mask = image[box], mask[box]
        return resize(image, self.image_size), _scale(mask, self.image_size, cv2.INTER_NEAREST)


def resize(image: Image, image_size: tuple[int, int]) -> Image:
    """Resizes an RGB image to (height, width), by area where it shrinks, else linearly.

    The aspect is not kept.
    """
    shrinks = image.shape[0] * image.shape[1] > image_size[0] * image_size[1]
    return _scale(image, image_size, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _scale(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    return cv2.resize(array, (size[1], size[0]), interpolation=interpolation)
