"""Contact sheet: the images whose predictions are the least and the most certain."""

import textwrap
from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from cellbench.data.views import Image, as_rgb
from cellbench.utils.html_page import plain

LARGEST = 64
"""Greatest number of images on a sheet: half of them the least certain, half the most certain."""


class _Tile(NamedTuple):
    """An image on the sheet. Tiles are sorted by their first two fields."""

    confidence: float
    """Confidence of the prediction, 0 to 1."""
    position: int
    """Position among all images, which is unique."""
    predicted: int
    """Index of the predicted class."""
    name: str
    """Name of the image's file."""
    image: Image
    """The image as the network sees it, (H, W, channels)."""


class ContactSheet:
    """The least and the most certain of all images seen, however many there are.

    Args:
        classes: The class names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._tiles: list[_Tile] = []
        self._seen = 0

    def add(
        self, confidence: float, position: int, predicted: int, name: str, image: Tensor
    ) -> None:
        """Add an image, and drop one between the least and the most certain if there are too many.

        Args:
            confidence: Confidence of the prediction, 0 to 1.
            position: Position among all images, which is unique.
            predicted: Index of the predicted class.
            name: Name of the image's file.
            image: The image as the network sees it, uint8, (channels, H, W).
        """
        copied = image.permute(1, 2, 0).cpu().numpy().copy()  # a view would keep the whole batch
        insort(self._tiles, _Tile(confidence, position, predicted, name, copied))
        if len(self._tiles) > LARGEST:
            del self._tiles[LARGEST // 2]
        self._seen += 1

    def draw(self) -> Figure:
        """Draw the images, the least certain first, each with predicted class and confidence.

        At least one image must have been added.
        """
        columns = min(8, len(self._tiles))
        height, width = self._tiles[0].image.shape[:2]
        tall, gap, words = height / width, 0.06, 0.3  # as multiples of an image's width
        rows = -(-len(self._tiles) // columns)
        total = (columns * (1 + gap), rows * (tall + words) + words)
        figure = Figure(figsize=(1.3 * total[0], 1.3 * total[1]))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.text(gap, words / 2, self._title(), fontsize=8)
        for i, tile in enumerate(self._tiles):
            x, top = i % columns * (1 + gap), i // columns * (tall + words) + 2 * words
            # There is little room; the end of a long file name says more than its beginning.
            predicted = textwrap.wrap(self._classes[tile.predicted], 20)[0]
            text = f"{plain(tile.name[-22:])}\n{plain(predicted)} {tile.confidence:.3f}"
            axes.text(x + 0.5, top - gap, text, ha="center", fontsize=6)
            axes.imshow(as_rgb(tile.image), extent=(x, x + 1, top + tall, top))
        axes.set(xlim=(0, total[0]), ylim=(total[1], 0), aspect="auto")
        return figure

    def _title(self) -> str:
        """Return the sheet's title."""
        if self._seen <= LARGEST:
            return f"all of {self._seen} images"
        half = LARGEST // 2
        return f"the {half} least and the {half} most certain of {self._seen} images"
