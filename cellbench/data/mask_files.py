"""Reading of mask files."""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from cellbench.data import files
from cellbench.data.mask_format import UNKNOWN, Labels, MaskFormat
from cellbench.data.mask_recognition import MaskSet, recognise
from cellbench.data.views import Image, Mask
from cellbench.utils.errors import UserError, short_name

MASK_SUFFIXES = files.IMAGE_SUFFIXES | {".npy"}
"""Suffixes of the files that `read_labels` reads."""

NEAR_GREY, DARK = 8, 64
"""Largest difference between the channels of a grey pixel, which JPEG does not keep equal, and the
brightness that such a mask must exceed: labels may be 1, 2 and 3 in the red channel alone."""


def read_content(path: Path, max_pixels: int = files.MAX_PIXELS) -> bytes:
    """Return the content of a file that may be a mask.

    Raises:
        UserError: The file cannot be read, is not a regular file, or is too large for an image.
    """
    with files.open_file(path, max_pixels) as file:
        return file.read()


def read_mask(
    path: Path,
    image: Image,
    mask_format: MaskFormat = UNKNOWN,
    max_pixels: int = files.MAX_PIXELS,
) -> Mask:
    """Read a mask file.

    Args:
        path: The mask file.
        image: The image it belongs to; the sizes must agree.
        mask_format: Meaning of its values; if it is unknown, it is recognised from this file alone.
        max_pixels: The largest number of pixels; checked in the header, before decoding.

    Returns:
        BACKGROUND, CYTOPLASM and NUCLEUS, uint8, (H, W).

    Raises:
        UserError: The file is missing or not a mask of the format, has another size, or shows no
            cell.
    """
    labels = read_labels(path, max_pixels)
    if labels.pixels.shape != image.shape[:2]:
        mask_size, image_size = labels.pixels.shape[::-1], image.shape[1::-1]
        turned = " (turn the mask, as the image's EXIF data may turn the image)"
        raise UserError(
            f"mask {short_name(path)} is {mask_size[0]}x{mask_size[1]} but its image is "
            f"{image_size[0]}x{image_size[1]}; the two must match"
            f"{turned if mask_size == image_size[::-1] else ''}"
        )
    if mask_format.kind == "unknown":
        mask_format = recognise(MaskSet.of_one(short_name(path), labels), mask_format.instance)
    return mask_format.read(labels, short_name(path))


def read_labels(path: Path, max_pixels: int = files.MAX_PIXELS) -> Labels:
    """Read the pixels of a mask file as they are stored.

    Of a file with transparency, whichever varies counts: the colour, black where it is transparent,
    or the transparency. Colours that are all grey are grey levels, in a palette as well; a palette
    of other colours gives its indices, as Pascal VOC's.

    Args:
        path: An image file, or an array of whole numbers as numpy.save writes it.
        max_pixels: The largest number of pixels; checked in the header, before decoding.

    Raises:
        UserError: The file is missing or damaged, or has several planes, or other than whole
            numbers.
    """
    data = read_content(path, max_pixels)
    if path.suffix.lower() == ".npy":
        return Labels(_whole(_read_array(path, data, max_pixels), path))
    files.check_picture(path, data, max_pixels)
    with PIL.Image.open(io.BytesIO(data)) as header:
        mode = header.mode
        if mode == "P":
            return _read_palette(header, path)
    keep_alpha = mode in ("RGBA", "LA", "PA", "La", "RGBa")
    flags = cv2.IMREAD_UNCHANGED if keep_alpha else cv2.IMREAD_ANYCOLOR
    pixels = files.decode(path, data, flags)
    if pixels.ndim == 2:
        return Labels(_whole(pixels, path))
    return _from_channels(pixels, path)


def _from_channels(pixels: NDArray[Any], path: Path) -> Labels:
    """Return grey levels or colours of pixels with channels, blue first, (H, W, 3 or 4)."""
    colour = pixels[..., :3]
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3]
        if alpha.min() != alpha.max():
            if (colour == colour[0, 0]).all():
                return Labels(_whole(alpha, path))
            colour = np.where(alpha[..., None] > np.iinfo(alpha.dtype).max // 2, colour, 0)
    spread = int((colour.max(2) - colour.min(2)).max())
    if spread == 0:
        return Labels(_whole(colour[..., 0], path))
    if colour.dtype != np.uint8:
        raise UserError(
            f"mask {short_name(path)} has colours of {8 * colour.itemsize} bits; save it with one "
            "channel, or with 8 bits per colour"
        )
    if spread <= NEAR_GREY and colour.max() > DARK:
        return Labels(colour[..., 1])
    return Labels(_pack(colour[..., ::-1]), coloured=True)


def _pack(colours: NDArray[Any]) -> NDArray[np.int64]:
    """Return colours, (..., 3), red first, as numbers 0xRRGGBB."""
    return np.asarray(colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1]), np.int64)


def _read_palette(image: PIL.Image.Image, path: Path) -> Labels:
    """Return the indices of a file with a palette, or the grey levels if all in use are grey."""
    try:
        indices = np.asarray(image, np.uint8)
    except Exception as error:  # Pillow raises many kinds on damaged data
        raise files.unreadable(path, "the file is damaged; restore or remove it") from error
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise UserError(f"mask {short_name(path)} has {pages} pages; give one mask per file")
    palette = np.zeros((256, 3), np.uint8)
    entries = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    palette[: len(entries)] = entries
    used = palette[np.unique(indices)]
    if (used == used[:, :1]).all() and len(np.unique(used[:, 0])) == len(used):
        return Labels(palette[:, 0][indices])
    return Labels(indices, palette=_pack(palette))


def _read_array(path: Path, data: bytes, max_pixels: int) -> NDArray[Any]:
    """Read the content of a file of numpy.save with one plane; nothing in it can run code."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise files.unreadable(path, "it is not a file of numpy.save; remove it") from error
    if dtype.hasobject:
        raise UserError(
            f"mask {short_name(path)} is a pickle, as Cellpose's _seg.npy, and could run code; "
            "save the masks as PNG or TIFF (Cellpose: File, Save masks as PNG: x_cp_masks.png)"
        )
    if np.prod(shape, dtype=object) > max_pixels:
        raise files.unreadable(
            path, f"its shape {shape} has more than max_pixels = {max_pixels:,} pixels"
        )
    file.seek(0)
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise files.unreadable(path, "the file is cut short; restore or remove it") from error
    planes = [side for side in array.shape if side != 1]
    if array.ndim not in (2, 3) or (array.ndim == 3 and len(planes) > 2):
        raise UserError(
            f"mask {short_name(path)} has the shape {array.shape}; give one plane, (height, width)"
        )
    if array.ndim == 3:
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    return np.asarray(array)


def is_pickle(path: Path) -> bool:
    """Return True for a file that numpy reads only as a pickle; only its header is read."""
    with suppress(ValueError), files.open_file(path, files.MAX_PIXELS) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
        return bool(read(file)[2].hasobject)
    return True


def _whole(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return pixels as whole numbers.

    Raises:
        UserError: Some are not.
    """
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if np.issubdtype(pixels.dtype, np.integer):
        return pixels if pixels.dtype in (np.uint8, np.uint16) else pixels.astype(np.int64)
    if np.issubdtype(pixels.dtype, np.floating):
        whole = np.isfinite(pixels).all() and np.abs(pixels).max(initial=0) < 2**53
        if whole and (pixels == np.round(pixels)).all():
            return pixels.astype(np.int64)
    raise UserError(
        f"mask {short_name(path)} has fractions; save whole numbers, such as 0 for background and "
        "1 for cell"
    )
