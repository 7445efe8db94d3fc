"""Short looks into image files: sizes and modes from headers, and whether pixels are a mask's."""

import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL.Image

from cellbench.data import files, tiff
from cellbench.data.image_format import RGB, ImageFormat
from cellbench.utils.errors import UserError

T = TypeVar("T")

MAX_LOOKED = 2000
"""Number of headers that are read at most."""
_MAX_VALUES = 24
"""Number of different colours up to which an image may be a mask."""
_FLAT = 0.5
"""Share of the pixels that are as their left neighbour, in a mask of many values: of 64x64 drawn
JPEG masks at quality 40 it is 0.6 and more, of photographs 0.1 and less. The most frequent value is
not counted, which may be a saturated background."""
_NEAR, _MOSTLY = 8, 0.8
"""Distance from black, 128 and white within which most pixels of a compressed or blurred mask are,
and the share of them."""
_MAX_PIXELS = 16_000_000
_LOOKED_PIXELS = 2**16
"""Number of pixels, evenly spread, whose colours are counted."""

_MODES = {
    "1": "grey, 1 bit",
    "L": "grey, 8 bit",
    "P": "palette, 8 bit",
    "LA": "grey with alpha, 8 bit",
    "La": "grey with alpha, 8 bit",
    "PA": "palette with alpha, 8 bit",
    "RGB": "RGB, 8 bit",
    "RGBA": "RGB with alpha, 8 bit",
    "RGBX": "RGB with a fourth plane, 8 bit",
    "CMYK": "CMYK, 8 bit",
    "YCbCr": "RGB, 8 bit",
    "I": "grey, 32 bit",
    "I;16": "grey, 16 bit",
    "I;16B": "grey, 16 bit",
    "I;16L": "grey, 16 bit",
    "F": "grey, 32 bit float",
}
"""Names for Pillow's modes."""


@dataclass
class Headers:
    """Sizes and modes of images, by their headers alone."""

    total: int = 0
    """Number of images there are."""
    looked: int = 0
    """Number of images that were looked at."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of those that could be read."""
    modes: Counter[str] = field(default_factory=Counter)
    """Number of images by colours, bits and pages."""
    unreadable: list[Path] = field(default_factory=list)
    """Files whose header could not be read."""


def read_headers(paths: Sequence[Path]) -> Headers:
    """Read the headers of images, of at most `MAX_LOOKED` evenly spread ones."""
    chosen = spread(paths, MAX_LOOKED)
    found = Headers(len(paths), len(chosen))
    for path in chosen:
        header = _read_header(path)
        if header is None:
            if path.is_file():  # else the reading has named it already
                found.unreadable.append(path)
            continue
        size, mode = header
        found.sizes.append(size)
        found.modes[mode] += 1
    return found


def area(path: Path) -> int | None:
    """Return the number of an image's pixels by its header; None if it cannot be read."""
    header = _read_header(path)
    return None if header is None else header[0][0] * header[0][1]


def looks_like_mask(path: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> bool | None:
    """Return True if an image has few different colours; None if it has one, or is not readable.

    Args:
        path: An image, or an array of numpy.save.
        read: Function that returns the content of the file.
    """
    with suppress(Exception), warnings.catch_warnings():  # Pillow raises many kinds
        warnings.simplefilter("ignore")
        pixels = _read_pixels(path, read)
        if pixels is None:
            return None
        step = _step(pixels)
        values = len(np.unique(_as_numbers(pixels[::step, ::step])))
        return None if values == 1 else values <= _MAX_VALUES
    return None


def looks_like_photograph(
    path: Path, read: Callable[[Path], bytes] = Path.read_bytes
) -> bool | None:
    """Return True if an image cannot be a mask: it has many colours, and hardly two equal pixels.

    Masks of many cells, and those that compression has changed, have many values too.

    Args:
        path: An image, or an array of numpy.save.
        read: Function that returns the content of the file.

    Returns:
        None if it has one colour, or is not readable.
    """
    with suppress(Exception), warnings.catch_warnings():  # Pillow raises many kinds
        warnings.simplefilter("ignore")
        pixels = _read_pixels(path, read)
        if pixels is None:
            return None
        rows = pixels[:: _step(pixels)]
        numbers = _as_numbers(rows)
        values, counts = np.unique(numbers, return_counts=True)
        if len(values) <= _MAX_VALUES:
            return None if len(values) == 1 else False
        inside = numbers[:, 1:] != values[counts.argmax()]
        if (numbers[:, 1:] == numbers[:, :-1])[inside].mean() >= _FLAT:
            return False
        return not _is_nearly_a_mask(rows)
    return None


def _is_nearly_a_mask(pixels: np.ndarray) -> bool:
    """Return True if most pixels are nearly black, white or 128."""
    if pixels.dtype != np.uint8:
        return False
    channels = pixels.reshape(*pixels.shape[:2], -1)[..., :3].astype(int)
    grey = channels[..., 0]
    if (channels - grey[..., None]).max() > _NEAR:
        return False
    distance = np.min([abs(grey - value) for value in (0, 128, 255)], axis=0)
    return bool((distance <= _NEAR).mean() >= _MOSTLY)


def _read_pixels(path: Path, read: Callable[[Path], bytes]) -> np.ndarray | None:
    """Return the pixels of a file, (H, W) or (H, W, channels); None if it has none, or too many."""
    if not path.is_file():
        return None
    file = io.BytesIO(read(path))
    if path.suffix.lower() == ".npy":
        pixels = np.load(file, allow_pickle=False)
        pixels = pixels.squeeze(0) if pixels.ndim == 3 and len(pixels) == 1 else pixels
    else:
        with PIL.Image.open(file) as image:
            if image.width * image.height > _MAX_PIXELS:
                return None
            pixels = np.asarray(image)
    return pixels if pixels.ndim in (2, 3) and pixels.size else None


def _step(pixels: np.ndarray) -> int:
    """Return the distance of evenly spread pixels of which there are enough."""
    height, width = pixels.shape[:2]
    return max(1, round(math.sqrt(height * width / _LOOKED_PIXELS)))


def _as_numbers(pixels: np.ndarray) -> np.ndarray:
    """Return one number for each pixel, (H, W): sorting whole rows is ten times slower."""
    if pixels.ndim == 2:
        return pixels
    steps = [(np.iinfo(pixels.dtype).max + 1) ** plane for plane in range(pixels.shape[2])]
    return pixels.astype(np.uint64) @ np.array(steps, np.uint64)


def spread(items: Sequence[T], most: int) -> Sequence[T]:
    """Return at most so many of some items, evenly spread."""
    return items[:: -(-len(items) // most)] if items else items


def _read_header(path: Path) -> tuple[tuple[int, int], str] | None:
    """Return width and height, and a description of the pixels; None if it cannot be read."""
    with suppress(Exception), warnings.catch_warnings():  # Pillow raises many kinds
        warnings.simplefilter("ignore")
        if not os.path.isfile(path):
            return None
        if path.suffix.lower() in (".tif", ".tiff"):
            with suppress(UserError):
                return _read_tiff_header(path)
        with PIL.Image.open(path) as image:
            mode = _MODES.get(image.mode, image.mode)
            pages = getattr(image, "n_frames", 1)
            return image.size, mode if pages == 1 else f"{mode}, {pages} pages"
    return None


def pixel_options(path: Path) -> dict[str, object]:
    """Return the options of the data that an image needs to be read: its channels and intensity.

    Args:
        path: An image, which is decoded.

    Returns:
        The options by name: all channels of an image that is neither grey nor RGB, and percentiles
        for one of other than 8 bits. Empty for an ordinary image, or one that cannot be read.
    """
    try:
        planes = files.read_planes(path, files.MAX_PIXELS, ImageFormat())
    except UserError:  # audit names it
        return {}
    options: dict[str, object] = {}
    if planes.values.shape[2] not in (1, len(RGB)):
        names = planes.names
        named = len(set(names)) == len(names) and not any(map(str.isdecimal, names))
        options["channels"] = list(names) if named else list(range(len(names)))
    if planes.values.dtype not in (np.dtype(np.uint8), np.dtype(bool)):
        options["intensity"] = {"low": "percentile 1", "high": "percentile 99", "per": "dataset"}
    return options


_COLOURS = {1: "grey", 3: "RGB"}


def _read_tiff_header(path: Path) -> tuple[tuple[int, int], str]:
    """Return width and height, and a description of the pixels, of any TIFF.

    Pillow does not open images of two or five planes.
    """
    with path.open("rb") as file:
        header = tiff.read_header(path, file)
    if header.kind == "PALETTE" and header.samples == 1:
        colours = "palette"
    elif header.kind == "SEPARATED":
        colours = "CMYK"
    else:
        colours = _COLOURS.get(header.samples, f"{header.samples} planes")
    depth = f"{header.bits} bit" + (" float" if header.floats else "")
    pages = f", {header.pages} pages" if header.pages > 1 else ""
    return (header.width, header.height), f"{colours}, {depth}{pages}"
