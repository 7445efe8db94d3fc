"""Views: the part of an image that the network sees. A view decides the pixels, nothing else."""

import colorsys
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

View = Literal["raw", "masked", "nucleus", "crop", "background", "silhouette"]
"""
raw: the whole image.
masked: the cell alone; all outside its outline is filled. Removes the surroundings.
nucleus: the nucleus alone. Removes the cytoplasm too.
crop: the cell's square bounding box, enlarged. Removes what lies farther off, and the size.
background: all but the cell's dilated bounding box, which is filled. Removes the cell: what a
    model scores here, it did not learn from the cell. (The outline would give away the shape.)
silhouette: the cell's outline alone, filled with one value. Removes all but size and shape.
"""

BACKGROUND, CYTOPLASM, NUCLEUS = 0, 1, 2
"""The values of a mask's pixels."""

# Shares of the image's longer side: the experts' outlines run a few pixels inside the halo that
# surrounds a stained cell, and the halo alone tells where the cell is.
BACKGROUND_MARGIN = 0.06
CROP_MARGIN = 0.06

Image = NDArray[np.uint8]
"""An image, (H, W, channels): RGB unless `data.channels` chooses other channels."""
Mask = NDArray[np.uint8]
"""A mask of BACKGROUND, CYTOPLASM and NUCLEUS, (H, W)."""


def needs_mask(view: View) -> bool:
    """Return True if a view cannot be made from the image alone."""
    return view != "raw"


def crop_box(mask: Mask) -> tuple[slice, slice]:
    """Return the square around the cell that `view: crop` shows, moved to lie inside the image.

    Args:
        mask: The image's mask, with a cell in it.

    Returns:
        Rows and columns. Where the image is narrower than the square, the box is as wide as it.
    """
    x, y, width, height = cv2.boundingRect((mask > BACKGROUND).astype(np.uint8))
    margin = round(CROP_MARGIN * max(mask.shape))
    side = max(width, height) + 2 * margin

    def span(start: int, extent: int, limit: int) -> slice:
        first = min(max(start + (extent - side) // 2, 0), max(limit - side, 0))
        return slice(first, min(first + side, limit))

    return span(y, height, mask.shape[0]), span(x, width, mask.shape[1])


def apply_view(image: Image, mask: Mask | None, view: View, fill: int) -> Image:
    """Hide the pixels that the view hides; the last step before the network.

    Args:
        image: uint8, (H, W, channels), after every transform. Not changed.
        mask: The mask after the same geometric transforms, (H, W); None for the raw view.
        view: What to show. `crop` has been done before the resize and changes nothing here.
        fill: The value, 0 to 255, of all that is hidden.

    Returns:
        The image itself, or a new one of the same shape.
    """
    if view in ("raw", "crop"):
        return image
    assert mask is not None
    cell = mask > BACKGROUND
    if view == "silhouette":
        shown = np.full_like(image, fill)
        shown[cell] = silhouette_value(fill)
        return shown
    if view == "background":
        hidden = _boxes(cell)
    else:
        hidden = ~cell if view == "masked" else mask != NUCLEUS
    return np.where(hidden[..., None], np.uint8(fill), image)


def silhouette_value(fill: int) -> int:
    """Return the value of a silhouette: black or white, whichever is farther from the fill."""
    return 255 if fill < 128 else 0


def _boxes(cell: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the dilated bounding boxes of the cell's pieces: reflected borders make several."""
    hidden = np.zeros_like(cell)
    margin = round(BACKGROUND_MARGIN * max(cell.shape))
    _, _, stats, _ = cv2.connectedComponentsWithStats(cell.astype(np.uint8))
    for x, y, width, height, _ in stats[1:]:  # the first is the background
        hidden[
            max(y - margin, 0) : y + height + margin, max(x - margin, 0) : x + width + margin
        ] = True
    return hidden


def as_rgb(image: NDArray[np.uint8]) -> Image:
    """Return an image of any number of channels in colours, for people.

    One channel is grey, and three are red, green and blue. Other numbers are mixed additively, each
    channel in a hue of its own.

    Args:
        image: uint8, (H, W, channels).

    Returns:
        RGB, uint8, (H, W, 3); the image itself if it has three channels.
    """
    channels = image.shape[2]
    if channels == 3:
        return image
    if channels == 1:
        return np.repeat(image, 3, axis=2)
    hues = np.array([colorsys.hsv_to_rgb(i / channels, 1, 1) for i in range(channels)])
    return np.asarray(np.clip(image @ hues, 0, 255), np.uint8)
