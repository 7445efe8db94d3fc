"""Properties of each image file: format, size, sharpness, exposure, colours."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from cellbench.data import files, result_cache
from cellbench.data.duplicates.registration import to_compare
from cellbench.data.image_format import to_grey
from cellbench.data.image_store import content_digests
from cellbench.data.module import CellDataModule
from cellbench.data.table import Sample
from cellbench.data.views import Image
from cellbench.utils.errors import UserError, counted

FORMAT = 5
"""Version of the cached results, part of their keys; raise it when results change."""

THUMBNAIL = 32
"""Side of a thumbnail, in pixels."""

BINS = 16
"""Bins of a histogram, per colour channel."""

OUTLIERS = ("blur", "brightness", "clipped")
"""Properties whose outliers are reported."""

OUTLIER = 4.5
"""Modified z score beyond which a value is an outlier. Iglewicz and Hoaglin (1993) recommend 3.5
for one small sample; datasets have thousands of images."""

_MAGIC = {
    b"\xff\xd8": "JPEG",
    b"\x89P": "PNG",
    b"BM": "BMP",
    b"II": "TIFF",
    b"MM": "TIFF",
    b"RI": "WebP",
}


@dataclass(frozen=True)
class Images:
    """Properties of the n images of a table, in its order."""

    format: np.ndarray
    """Format of the file, (n,), text; empty if the image does not come from a file."""
    mode: np.ndarray
    """Colour mode, (n,), text: grey, colour, colour with transparency, 2 chosen channels."""
    size: np.ndarray
    """Size of the file in bytes, (n,); -1 if there is no file."""
    shape: np.ndarray
    """Height and width in pixels, (n, 2)."""
    blur: np.ndarray
    """Variance of the Laplacian, (n,); it is low for a blurred image."""
    brightness: np.ndarray
    """Mean grey level, (n,), 0 to 255."""
    clipped: np.ndarray
    """Share of the pixels that are black or white, (n,), 0 to 1."""
    colour: np.ndarray
    """Mean, then standard deviation, of red, green and blue, (n, 6)."""
    histogram: np.ndarray
    """Share of the pixels in each of 16 bins of each channel, (n, 48)."""
    thumbnail: np.ndarray
    """The image at 32x32 pixels, RGB, uint8, (n, 32, 32, 3)."""

    def outliers(self, name: str) -> np.ndarray:
        """Return the positions of outliers, (k,), the most extreme first.

        Distances from the median are compared with the median distance; blur on a log scale.

        Args:
            name: One of `OUTLIERS`.
        """
        values = np.asarray(getattr(self, name), np.float64)
        values = np.log(values + 1) if name == "blur" else values
        distance = np.abs(values - np.median(values))
        # If half of the values are equal, as shares of clipped pixels are: the mean distance.
        spread = np.median(distance) / 0.6745 or 1.2533 * distance.mean()
        if spread == 0:
            return np.zeros(0, np.int64)
        outliers = np.flatnonzero(distance / spread > OUTLIER)
        ordered: np.ndarray = outliers[np.argsort(-distance[outliers], kind="stable")]
        return ordered


def measure_images(data: CellDataModule) -> tuple[Images, dict[str, str]]:
    """Read every image of a data module, or take the results from the cache.

    Returns:
        Properties of the readable images, in the order of their ids, and the reasons why the others
        cannot be read, by their ids.

    Raises:
        UserError: No image can be read, or results cannot be cached.
    """
    samples = data.listed

    def measure(i: int) -> result_cache.Found:
        """Return the properties of one image, as arrays of length 1."""
        return {name: np.array([value]) for name, value in _measure(data, samples[i]).items()}

    how = f"{FORMAT} {data.image_format.identity}"
    identities = [f"{how} {content}" for content in content_digests(data, samples)]
    results = result_cache.for_each("reading the images", identities, lambda: measure, data.cache)
    errors = {
        sample.id: str(each["error"][0])
        for sample, each in zip(samples, results, strict=True)
        if each["error"][0]
    }
    readable = [each for each in results if not each["error"][0]]
    if not readable:
        name, reason = next(iter(errors.items()))
        raise UserError(f"none of the {len(samples)} images can be read; '{name}': {reason}")
    names = [name for name in readable[0] if name != "error"]
    images = Images(**{name: np.concatenate([each[name] for each in readable]) for name in names})
    return images, errors


def _measure(data: CellDataModule, sample: Sample) -> dict[str, Any]:
    """Return the properties of one image, and the error if it cannot be read (else empty)."""
    error, image, mode = "", np.zeros((1, 1, 3), np.uint8), ""
    try:
        image = data.read_image(sample)
        mode = _mode(data, sample, image)
        image = in_three_channels(image)
    except UserError as mistake:
        # Files of equal content share the result, so the message must not name one of them.
        error = str(mistake).replace(str(sample.image), "it")
    content = b"" if sample.image is None or error else sample.image.read_bytes()
    grey = to_compare(image)
    small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    pixels = image.reshape(-1, 3)
    return {
        "error": error,
        "format": _MAGIC.get(content[:2], "other") if content else "",
        "mode": mode,
        "size": len(content) if content else -1,
        "shape": image.shape[:2],
        "blur": float(cv2.Laplacian(grey, cv2.CV_64F).var()),
        "brightness": float(grey.mean()),
        "clipped": float(((grey <= 2) | (grey >= 253)).mean()),
        "colour": np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)]),
        "histogram": histogram(image),
        "thumbnail": small,
    }


def histogram(image: np.ndarray) -> np.ndarray:
    """Return the share of the pixels in each of 16 bins of red, green and blue, (48,)."""
    counts = [cv2.calcHist([image], [c], None, [BINS], [0, 256]).ravel() for c in range(3)]
    shares: np.ndarray = np.concatenate(counts) / (image.shape[0] * image.shape[1])
    return shares


def in_three_channels(image: Image) -> Image:
    """Return an image as it is if it has three channels, else its mean in each of three."""
    return image if image.shape[2] == 3 else np.repeat(to_grey(image)[..., None], 3, axis=2)


def _mode(data: CellDataModule, sample: Sample, image: Image) -> str:
    """Return the colour mode of an image: that of its file, or of the channels taken from it."""
    if data.channels is not None:
        return counted(len(data.channels), "chosen channel")
    grey = bool((image[..., :1] == image).all())
    if sample.image is None:
        return "grey, stored as colour" if grey else "colour"
    stored = files.read_planes(sample.image, data.max_pixels, data.image_format)
    mode = "grey" if len(stored.names) == 1 else "colour"
    if stored.alpha is not None:
        mode += " with transparency"
    elif mode == "colour" and grey:
        mode = "grey, stored as colour"
    return mode if stored.values.dtype == np.uint8 else f"{mode}, {stored.values.dtype}"
