"""Figures of attribution maps, laid over the images that they explain."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cellbench.artifacts.attributions import TITLES, Method
from cellbench.data.views import Image, Mask, as_rgb
from cellbench.inference.attributions import attribute_by_all
from cellbench.models.classifier import CellClassifier
from cellbench.utils.html_page import plain

INK, WRONG, OUTLINE = "#222222", "#bb3344", "#33ddee"
"""Colours: of text, of the heading of a wrong prediction, of a mask's outline."""

GAP, WORDS, APART = 0.04, 0.42, 0.3
"""Distances, as multiples of an image's width: between the tiles of an example, above a row for its
text, and between examples."""


class Example(NamedTuple):
    """An image with its attribution maps."""

    label: str
    """True class."""
    predicted: str
    """Predicted class."""
    image: Image
    """The image as the network sees it, uint8, (H, W, channels)."""
    mask: Mask | None
    """Its mask, (H, W), whether the view shows it or not."""
    maps: Mapping[Method, np.ndarray]
    """Attribution by method, (H, W) each."""

    @property
    def correct(self) -> bool:
        """True if the prediction is correct."""
        return self.predicted == self.label


def draw_examples(
    examples: Mapping[tuple[str, bool], Sequence[Example]], classes: Sequence[str]
) -> Figure:
    """Draw a row of examples per class, each as the network sees it and under every map.

    Args:
        examples: Examples by class and correctness of the prediction; there is at least one. All
            images have the same size. A row shows the correct ones first.
        classes: The class names.
    """
    rows = [[*examples.get((name, True), ()), *examples.get((name, False), ())] for name in classes]
    rows = [row for row in rows if row]
    height, width, _ = rows[0][0].image.shape
    tall, tiles = height / width, 1 + len(rows[0][0].maps)
    # One pair of axes for all images, in units of their width: a pair each would take seconds.
    block = tiles * (1 + GAP) + APART
    total = (max(map(len, rows)) * block - APART + 2 * GAP, len(rows) * (tall + WORDS) + 0.3)
    figure = Figure(figsize=(1.25 * total[0], 1.25 * total[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for i, row in enumerate(rows):
        for j, example in enumerate(row):
            _draw_example(axes, example, GAP + j * block, i * (tall + WORDS) + WORDS)
    note = "overlaid: positive Grad-CAM, absolute integrated gradients; lines: the masks' outlines"
    axes.text(GAP, total[1] - 0.08, note, fontsize=8, color=INK)
    axes.set(xlim=(0, total[0]), ylim=(total[1], 0), aspect="auto")
    return figure


def _draw_example(axes: Axes, example: Example, left: float, top: float) -> None:
    """Draw an example's heading and tiles, with the upper left corner of the first one given."""
    prediction = "" if example.correct else f", predicted {example.predicted}"
    heading, colour = plain(example.label + prediction), INK if example.correct else WRONG
    axes.text(left, top - 0.21, heading, fontsize=10, color=colour, weight="bold")
    tiles = [("as seen", as_rgb(example.image))]
    tiles += [(TITLES[m], overlay(example.image, heat)) for m, heat in example.maps.items()]
    height, width, _ = example.image.shape
    for k, (title, tile) in enumerate(tiles):
        x = left + k * (1 + GAP)
        axes.text(x, top - 0.05, title, fontsize=8, color=INK)
        axes.imshow(tile, extent=(x, x + 1, top + height / width, top), interpolation="nearest")
        if k and example.mask is not None:
            _draw_outline(axes, example.mask, x, top)


def _draw_outline(axes: Axes, mask: Mask, left: float, top: float) -> None:
    """Draw the outlines of a mask's regions over a tile."""
    levels = np.unique(mask)[1:] - 0.5
    if len(levels):
        height, width = mask.shape
        across = left + (np.arange(width) + 0.5) / width
        down = top + height / width * (np.arange(height) + 0.5) / height
        axes.contour(across, down, mask, levels, colors=OUTLINE, linewidths=0.7)


def side_by_side(model: CellClassifier, images: Tensor, fill: int) -> list[np.ndarray]:
    """Return each image as the network sees it, with the image under every map to its right.

    Args:
        model: A model on any device.
        images: uint8 images, (B, C, H, W), as many as fit in a batch.
        fill: The view's fill.

    Returns:
        A float array for each image, (H, W * n, 3), 0 to 1; n is 3, or 2 if Grad-CAM is not defined
        for the network.
    """
    by_method, _ = attribute_by_all(model, images, fill)
    shown = images.permute(0, 2, 3, 1).cpu().numpy()
    return [
        np.concatenate(
            [as_rgb(image) / 255, *(overlay(image, found.maps[i]) for found in by_method.values())],
            axis=1,
        )
        for i, image in enumerate(shown)
    ]


def overlay(image: Image, heat: np.ndarray) -> np.ndarray:
    """Return a map over the image in grey, float, (H, W, 3), 0 to 1.

    The map is blurred, because single pixels are noisy.

    Args:
        image: uint8 image, (H, W, channels).
        heat: The map, (H, W); its absolute values are shown.
    """
    blurred = cv2.GaussianBlur(np.abs(heat), (0, 0), 0.01 * max(heat.shape))
    share = np.clip(blurred / max(float(np.quantile(blurred, 0.995)), 1e-12), 0, 1)[..., None]
    grey = image.mean(axis=2, keepdims=True) / 255
    colour = colormaps["inferno"](share[..., 0])[..., :3]
    return np.asarray(np.clip((1 - share) * grey + share * colour, 0, 1))
