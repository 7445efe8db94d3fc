"""What each image file is: format, size, sharpness, exposure, colours."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from cellbench.data import result_cache
from cellbench.data.duplicates.registration import to_compare
from cellbench.data.image_store import content_digests
from cellbench.data.module import CellDataModule
from cellbench.data.table import Sample
from cellbench.utils.errors import UserError

FORMAT = 4
"""Part of every kept answer's name: raise it when something is found otherwise."""

THUMBNAIL = 32
BINS = 16
OUTLIER = 4.5
"""Modified z score (Iglewicz and Hoaglin 1993) beyond which a value is an outlier; they take 3.5
for one sample, and here are thousands."""

_MAGIC = {
    b"\xff\xd8": "JPEG",
    b"\x89P": "PNG",
    b"BM": "BMP",
    b"II": "TIFF",
    b"MM": "TIFF",
    b"RI": "WebP",
}
_MODES = {1: "grey", 3: "colour", 4: "colour with transparency"}


@dataclass(frozen=True)
class Images:
    """What was found of the n images of a table, in its order.

    Attributes:
        format: The file's format; empty where the pixels are no file's.
        mode: grey, colour, colour with transparency.
        size: Bytes of the file; -1 where there is none.
        shape: Height and width in pixels, (n, 2).
        blur: Variance of the Laplacian; the less, the less sharp.
        brightness: Mean grey level, 0 to 255.
        clipped: Share of the pixels that are black or white.
        colour: Mean and deviation of red, green and blue, (n, 6).
        histogram: Share of the pixels in each of 16 bins of each channel, (n, 48).
        thumbnail: The image at 32x32, RGB, uint8, (n, 32, 32, 3).
    """

    format: np.ndarray
    mode: np.ndarray
    size: np.ndarray
    shape: np.ndarray
    blur: np.ndarray
    brightness: np.ndarray
    clipped: np.ndarray
    colour: np.ndarray
    histogram: np.ndarray
    thumbnail: np.ndarray

    def outliers(self, name: str) -> np.ndarray:
        """The positions of images whose blur, brightness or clipped share is out of the ordinary.

        By the distance from the median in terms of the median distance; blur on a log scale.
        """
        values = np.asarray(getattr(self, name), np.float64)
        values = np.log(values + 1) if name == "blur" else values
        distance = np.abs(values - np.median(values))
        # Half of the values may be equal, as shares of clipped pixels are; then the mean's scale.
        spread = np.median(distance) / 0.6745 or 1.2533 * distance.mean()
        if spread == 0:
            return np.zeros(0, np.int64)
        found = np.flatnonzero(distance / spread > OUTLIER)
        ordered: np.ndarray = found[np.argsort(-distance[found], kind="stable")]
        return ordered


def look(data: CellDataModule) -> tuple[Images, dict[str, str]]:
    """Reads every image of a data module once, or takes what an earlier audit has found.

    Returns:
        What the readable images are, in the order of their ids, and why the others cannot be read,
        by their ids.

    Raises:
        UserError: No image can be read, or what is found cannot be kept.
    """
    samples = data.listed

    def find(i: int) -> result_cache.Found:
        return {name: np.array([value]) for name, value in _describe(data, samples[i]).items()}

    identities = [f"{FORMAT} {content}" for content in content_digests(data, samples)]
    found = result_cache.for_each("reading the images", identities, lambda: find, data.cache)
    errors = {
        sample.id: str(each["error"][0])
        for sample, each in zip(samples, found, strict=True)
        if each["error"][0]
    }
    readable = [each for each in found if not each["error"][0]]
    if not readable:
        raise UserError(f"none of the {len(samples)} images can be read")
    names = [name for name in readable[0] if name != "error"]
    return Images(
        **{name: np.concatenate([each[name] for each in readable]) for name in names}
    ), errors


def _describe(data: CellDataModule, sample: Sample) -> dict[str, Any]:
    error, image = "", np.zeros((1, 1, 3), np.uint8)
    try:
        image = data.read_image(sample)
    except UserError as mistake:
        # Files of equal content share the answer, wherever they lie.
        error = str(mistake).replace(str(sample.image), "it")
    content = b"" if sample.image is None or error else sample.image.read_bytes()
    grey = to_compare(image)
    small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    pixels = image.reshape(-1, 3)
    return {
        "error": error,
        "format": _MAGIC.get(content[:2], "other") if content else "",
        "mode": _mode(_as_stored(content) if content else image),
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
    """The share of the pixels in each of 16 bins of red, green and blue, (48,)."""
    counts = [cv2.calcHist([image], [c], None, [BINS], [0, 256]).ravel() for c in range(3)]
    shares: np.ndarray = np.concatenate(counts) / (image.shape[0] * image.shape[1])
    return shares


def _as_stored(content: bytes) -> np.ndarray:
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert stored is not None  # it has been read before
    return stored


def _mode(stored: np.ndarray) -> str:
    channels = 1 if stored.ndim == 2 else stored.shape[2]
    if channels == 3 and (stored[..., :1] == stored).all():
        return "grey, stored as colour"
    return _MODES.get(channels, f"{channels} channels")
