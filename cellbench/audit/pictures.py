"""Pictures of the page: images, outlines of masks, mean images, histograms."""

from collections.abc import Sequence
from contextlib import suppress

import cv2
import numpy as np
from matplotlib.figure import Figure

from cellbench.audit.images import BINS, Images
from cellbench.data import segmentation
from cellbench.data.module import CellDataModule
from cellbench.data.preprocessing import resize, resize_mask
from cellbench.data.views import BACKGROUND, NUCLEUS, Image, Mask, as_rgb
from cellbench.utils.errors import UserError
from cellbench.utils.html_page import jpeg, plain

HEIGHT = 110
"""Height of an image on the page, in pixels."""

AUTOMATIC, EXPERT = (230, 60, 60), (40, 160, 70)
"""Colours of the outlines, RGB."""


def image_url(data: CellDataModule, position: int) -> str:
    """Return a sample's image at the page's size, as a data URL; empty if it cannot be read."""
    try:
        return jpeg(_sized(as_rgb(data.read_image(data.table.samples[position]))))
    except UserError:
        return ""


def outlines_url(data: CellDataModule, position: int) -> str:
    """Return a sample's image with the outlines of its masks, as a data URL.

    The outlines of cell and nucleus are shown for the automatic mask, and for the expert's if there
    is one.
    """
    sample = data.table.samples[position]
    image = data.read_image(sample)
    masks: list[tuple[Mask, tuple[int, int, int]]] = []
    if data.has_mask(sample):
        with suppress(UserError):  # the page lists unreadable masks elsewhere
            masks.append((data.read_mask(sample, image), EXPERT))
    if data.segments:
        with suppress(UserError):  # no cell was found
            masks.append((segmentation.segment(image), AUTOMATIC))
    large = np.ascontiguousarray(_sized(as_rgb(image), 2 * HEIGHT))
    for mask, colour in masks:
        resized = resize_mask(mask, (large.shape[0], large.shape[1]))
        for region in (resized > BACKGROUND, resized == NUCLEUS):
            contours, _ = cv2.findContours(
                region.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(large, contours, -1, colour, 1, cv2.LINE_AA)
    return jpeg(large)


def mean_images(images: Images, labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return the mean image of each class, as data URLs.

    Args:
        images: Properties of the n images.
        labels: Their classes as indices, (n,).
        classes: The class names.
    """
    means = [images.thumbnail[labels == label].mean(axis=0) for label in range(len(classes))]
    return [jpeg(_sized(mean.round().astype(np.uint8))) for mean in means]


def draw_histograms(images: Images, labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the mean histograms of red, green and blue of each class.

    Args:
        images: Properties of the n images.
        labels: Their classes as indices, (n,).
        classes: The class names.
    """
    figure = Figure(figsize=(8.5, 2.2), layout="constrained")
    centres = (np.arange(BINS) + 0.5) * 256 / BINS
    for channel, axes in enumerate(figure.subplots(1, 3, sharey=True)):
        for label, name in enumerate(classes):
            own = images.histogram[labels == label]
            mean = own[:, channel * BINS : (channel + 1) * BINS].mean(axis=0)
            axes.plot(centres, mean, label=plain(name), linewidth=1.2)
        axes.set_title(("red", "green", "blue")[channel], fontsize=9)
        axes.set_xlabel("value", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("share of the pixels", fontsize=8)
    figure.axes[0].legend(fontsize=7, frameon=False)
    return figure


def _sized(image: Image, height: int = HEIGHT) -> Image:
    """Return an image scaled to a height in pixels, at most four times as wide."""
    width = min(max(1, round(image.shape[1] * height / image.shape[0])), 4 * height)
    return np.asarray(resize(image, (height, width)))
