"""Preparation of decoded images for the network, the same in training and prediction."""

from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

from cellbench.data import cellpose, segmentation
from cellbench.data.cellpose import DEFAULT, CellposeConfig
from cellbench.data.image_format import ImageFormat
from cellbench.data.mask_format import UNKNOWN, MaskFormat, keep_centre
from cellbench.data.stain import Normalisation, normalise
from cellbench.data.views import (
    BACKGROUND,
    CYTOPLASM,
    NUCLEUS,
    Image,
    Mask,
    View,
    crop_box,
    needs_mask,
)
from cellbench.utils.errors import UserError

Masks = Literal["expert", "auto", "cellpose"]

Fit = Literal["stretch", "pad", "crop"]
"""How an image of another shape is brought to that of the network's input.

stretch: both sides are scaled to the input's; cells become wider or taller.
pad: the image is scaled, then its shorter side is filled up on both ends.
crop: the longer side loses as much on both ends, then the image is scaled.
"""

_OPENCV_CHANNELS = 4
"""Largest number of channels that OpenCV averages by area."""

FORMAT = 2
"""Part of every name of cached images; raise it when images are brought to the input size by
another rule."""

SMALLEST_SIDE, LARGEST_SIDE = 8, 4096
"""Pixels of a side of the network's input: larger ones fit no machine's memory."""


@dataclass(frozen=True)
class Preprocessing:
    """Steps from a decoded image to the network's input size; stored with every model."""

    image_size: tuple[int, int]
    """Height and width, in pixels."""
    view: View
    """Part of the image that is shown."""
    fill: int
    """Value of hidden pixels."""
    masks: Masks = "expert"
    """Source of the outlines: an expert, `segmentation.segment`, or `cellpose.segment`."""
    stain: Normalisation = "none"
    """Stain to normalise by, or none."""
    mask_format: MaskFormat = UNKNOWN
    """Meaning of the values in expert masks; of others, the cells that count."""
    cellpose: CellposeConfig = DEFAULT
    """Model of Cellpose."""
    fit: Fit = "stretch"
    """How an image of another shape is brought to that of `image_size`."""
    image_format: ImageFormat = field(default_factory=ImageFormat)
    """Choice and scaling of the channels in the file, before everything else."""

    @property
    def n_channels(self) -> int:
        """Number of channels of the network's input."""
        return self.image_format.n_channels

    @property
    def segments(self) -> str:
        """Name and version of the segmentation that makes the masks; empty if an expert did."""
        if self.masks == "expert":
            return ""
        if self.masks == "auto":
            centre = " centre" if self.mask_format.instance == "centre" else ""
            return f"auto {segmentation.FORMAT}{centre}"
        return f"{cellpose.identify(self.cellpose)} {self.mask_format.instance}"

    def segment(self, image: Image, name: str) -> Mask:
        """Make the mask of an image; only where `masks` is no expert.

        Raises:
            UserError: No cell is found, or Cellpose cannot be used.
        """
        try:
            if self.masks == "auto":
                mask = segmentation.segment(image)
                if self.mask_format.instance == "all":
                    return mask
                return keep_centre(mask, "by data.masks: auto")
            return cellpose.segment(image, self.cellpose, self.mask_format)
        except UserError as error:
            raise UserError(f"'{name}': {error}") from error

    def prepare(self, image: Image, mask: Mask | None, name: str) -> tuple[Image, Mask | None]:
        """Normalise stains, crop and resize; `apply_view` does the rest after augmentation.

        Args:
            image: uint8, (H, W, channels), at its native size.
            mask: Its mask at the same size, or None; other masks than an expert's are made here.
            name: The image's name, for errors.

        Returns:
            The image and, where the view needs it, the mask, both at `image_size`.

        Raises:
            UserError: The view needs a mask, or a nucleus in it, and there is none, or none is
                left at `image_size`.
        """
        if not needs_mask(self.view):
            return self._resize(normalise(image, self.stain)), None
        if self.masks != "expert":
            mask = self.segment(image, name)
        if mask is None:
            raise UserError(f"data.view: {self.view} needs a mask, and '{name}' has none")
        if self.view == "nucleus" and not (mask == NUCLEUS).any():
            raise UserError(
                f"data.view: nucleus, but the mask of '{name}' marks none (values: "
                f"{self.mask_format.describe()})"
            )
        image = normalise(image, self.stain)
        if self.view == "crop":
            box = crop_box(mask)
            image, mask = image[box], mask[box]
        mask = self._crop(mask)
        small = self._pad(resize_mask(mask, self._shown_size(mask)), BACKGROUND)
        if not (small == NUCLEUS if self.view == "nucleus" else small > BACKGROUND).any():
            region = "nucleus" if self.view == "nucleus" else "cell"
            height, width = self.image_size
            remedy = ", or data.fit: pad" if self.fit == "crop" else ""
            raise UserError(
                f"data.view: {self.view}, but at {height}x{width} pixels nothing is left of the "
                f"{region} in '{name}'; use a larger data.image_size{remedy}"
            )
        return self._resize(image), small

    def _resize(self, image: Image) -> Image:
        """Return an image at `image_size`."""
        image = self._crop(image)
        return self._pad(resize(image, self._shown_size(image)), self.fill)

    def _crop(self, array: np.ndarray) -> np.ndarray:
        """Return the centre of an image or a mask in the shape of `image_size`, if it is cropped.

        Args:
            array: The image or mask at its native size.
        """
        if self.fit != "crop":
            return array
        height, width = array.shape[:2]
        if width * self.image_size[0] > height * self.image_size[1]:  # wider than image_size
            width = max(1, round(height * self.image_size[1] / self.image_size[0]))
        else:
            height = max(1, round(width * self.image_size[0] / self.image_size[1]))
        top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
        return array[top : top + height, left : left + width]

    def _shown_size(self, array: np.ndarray) -> tuple[int, int]:
        """Return the height and width that an image or a mask has within `image_size`."""
        if self.fit != "pad":
            return self.image_size
        factor = min(new / old for new, old in zip(self.image_size, array.shape, strict=False))
        height, width = (max(1, round(factor * side)) for side in array.shape[:2])
        return height, width

    def _pad(self, array: np.ndarray, fill: int) -> np.ndarray:
        """Fill an image or a mask up to `image_size`, as much on both ends to the nearest pixel.

        It comes after resizing: to pad first would make a square of the longer side, which fills
        the memory for an image of 1 x 50,000,000 pixels.
        """
        missing = [new - old for new, old in zip(self.image_size, array.shape, strict=False)]
        margins = [(n // 2, n - n // 2) for n in missing] + [(0, 0)] * (array.ndim - 2)
        return np.pad(array, margins, constant_values=fill) if any(missing) else array


def resize(image: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Resize an array to (height, width) without keeping the aspect ratio.

    Each axis that shrinks is averaged by area, each axis that grows is interpolated linearly.
    OpenCV's area interpolation does not average where one axis shrinks and the other grows, so
    the two are separate steps.

    Args:
        image: uint8 or float32, (H, W) or (H, W, channels).
        image_size: The new height and width.
    """
    if image.ndim == 3 and image.shape[2] > _OPENCV_CHANNELS:
        parts = range(0, image.shape[2], _OPENCV_CHANNELS)
        some = [resize(image[..., i : i + _OPENCV_CHANNELS], image_size) for i in parts]
        return np.concatenate(some, axis=2)
    shrunk = (min(image.shape[0], image_size[0]), min(image.shape[1], image_size[1]))
    resized = _scale(_scale(image, shrunk, cv2.INTER_AREA), image_size, cv2.INTER_LINEAR)
    return resized.reshape(*image_size, *image.shape[2:])  # OpenCV drops the axis of one channel


def resize_mask(mask: Mask, image_size: tuple[int, int]) -> Mask:
    """Resize a mask as `resize` does its image.

    A new pixel belongs to the cell, or to the nucleus, if more than half of it does. Nearest
    neighbours would not do: cv2.INTER_NEAREST moves a mask by half a pixel against its image.

    Args:
        mask: BACKGROUND, CYTOPLASM and NUCLEUS, (H, W).
        image_size: The new height and width.
    """
    if mask.shape == image_size:
        return mask
    resized = np.full(image_size, BACKGROUND, np.uint8)
    for region, value in ((mask > BACKGROUND, CYTOPLASM), (mask == NUCLEUS, NUCLEUS)):
        resized[resize(region.astype(np.float32), image_size) > 0.5] = value
    return resized


def _scale(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    return cv2.resize(array, (size[1], size[0]), interpolation=interpolation)
