"""Reading image and label files, with one clear line where one cannot be read."""

import csv
import hashlib
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS, Image, Mask
from cellbench.errors import UserError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# How a whole file ends. OpenCV fills what is missing of a JPEG or PNG with grey and says nothing.
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}


def images_below(folder: Path) -> list[Path]:
    """The image files in a folder and its folders, sorted; links to folders are not followed."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def read_image(path: Path) -> Image:
    """Reads any image file as RGB, uint8, (H, W, 3), turned as its EXIF data say.

    Raises:
        UserError: The file is missing, cut short, or no image.
    """
    pixels = _decode(path, cv2.IMREAD_COLOR)
    image: Image = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
    return image


def read_mask(path: Path, image: Image) -> Mask:
    """Reads a mask file: one channel, either two values, or 0, 128 and 255.

    Two values mean background (0) and cell; three mean background, cytoplasm and nucleus.

    Args:
        path: The mask file.
        image: The image it belongs to; the sizes must agree.

    Returns:
        BACKGROUND, CYTOPLASM and NUCLEUS, uint8, (H, W).

    Raises:
        UserError: The file is missing or no mask, has another size, or shows no cell.
    """
    pixels = _decode(path, cv2.IMREAD_GRAYSCALE)
    if pixels.shape != image.shape[:2]:
        mask_size, image_size = pixels.shape[::-1], image.shape[1::-1]
        raise UserError(
            f"mask {path} is {mask_size[0]}x{mask_size[1]} but its image is "
            f"{image_size[0]}x{image_size[1]}; the two must match"
        )
    values = np.unique(pixels)
    mask = np.full(pixels.shape, BACKGROUND, np.uint8)
    if len(values) == 2 and values[0] == 0 and values[1] != 128:
        mask[pixels > 0] = CYTOPLASM
    elif np.isin(values, (0, 128, 255)).all() and len(values) > 1:
        mask[pixels == 128] = CYTOPLASM
        mask[pixels == 255] = NUCLEUS
    else:
        shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
        raise UserError(
            f"mask {path} has the values {shown}; expected 0 and one other (cell), or 0, 128 "
            "(cytoplasm) and 255 (nucleus)"
        )
    return mask


def _decode(path: Path, flags: int) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    end = _ENDS.get(data[:2])
    whole = end is None or end in data[-4096:]
    pixels = None
    if data and whole:
        with suppress(cv2.error):  # a header of more pixels than OpenCV takes
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_ANYDEPTH)
    if pixels is None:
        why = "empty" if not data else "cut short" if not whole else "not an image OpenCV reads"
        raise UserError(f"cannot read {path}: the file is {why}; restore or remove it")
    if pixels.dtype != np.uint8:  # 12 bits in 16 would turn black, and say nothing
        raise UserError(
            f"{path} has {8 * pixels.itemsize} bits a channel; convert the images to 8 bits, all "
            "with one scale"
        )
    if path.suffix.lower() in (".tif", ".tiff") and cv2.imcount(str(path)) > 1:
        raise UserError(f"{path} has {cv2.imcount(str(path))} pages; give one image a file")
    return pixels


def fingerprint(path: Path) -> str:
    """A digest of a file's bytes, 32 hexadecimal digits.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def read_table(
    path: Path, columns: set[str], empty: Set[str] = frozenset()
) -> list[dict[str, str]]:
    """Reads a CSV file with a header as one dictionary a row.

    Args:
        path: The file, UTF-8, with or without a byte-order mark.
        columns: The columns that it must have, with a value in every row.
        empty: Further columns that it must have, where a value may be missing.

    Raises:
        UserError: It is missing, not such a file, or lacks a column or a value.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            header = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the table {path}: {reason}") from error
    missing = sorted((columns | empty) - set(header))
    if missing:
        raise UserError(
            f"{path}: no column '{missing[0]}'; it has {', '.join(header) or 'none'} "
            "(columns are parted by commas)"
        )
    for number, row in enumerate(rows, start=2):
        lacking = sorted(name for name in columns if not row[name])
        if lacking:
            raise UserError(f"{path}, line {number}: no value for '{lacking[0]}'")
    return rows
