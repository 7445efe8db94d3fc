"""Reading image and label files, with one clear line where one cannot be read."""

import csv
import errno
import hashlib
import io
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

from cellbench.data import tiff
from cellbench.data.image_format import RGB, ImageFormat, Planes
from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS, Image, Mask
from cellbench.utils.errors import UserError
from cellbench.utils.untrusted import open_text

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# The last bytes of a complete file. OpenCV silently fills the missing part of a JPEG or PNG with
# grey.
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}

MAX_PIXELS = 100_000_000
"""Default of the largest image that is decoded: 300 MB as RGB."""

_MAX_BYTES_PER_CHANNEL = 2  # uncompressed, of a pixel

_ORIENTATION = 274  # the tag of EXIF

PIL.Image.MAX_IMAGE_PIXELS = None  # max_pixels is the limit, and may be above Pillow's

_SILENT = (b"\xff\xd8", b"II", b"MM")
"""First bytes of JPEG and TIFF files, whose decoders return wrong pixels for damaged data."""

_COMPLAINTS = re.compile(
    rb"Corrupt JPEG data.*|Premature end of JPEG.*|Inconsistent progression.*|Invalid SOS.*"
    rb"|(?<=TIFF_Error ).*"
)
_REDIRECTED = Lock()
# A process that is forked in the middle of a decoding would wait for it for ever.
os.register_at_fork(
    before=_REDIRECTED.acquire,
    after_in_parent=_REDIRECTED.release,
    after_in_child=_REDIRECTED.release,
)


def images_below(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted; links to folders are not followed."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def read_image(
    path: Path, max_pixels: int = MAX_PIXELS, image_format: ImageFormat | None = None
) -> Image:
    """Read any image file as an image of 8 bits, turned as its EXIF data say.

    Args:
        path: The image file.
        max_pixels: The largest number of pixels; checked in the header, before decoding.
        image_format: Choice and scaling of the channels; None for 8 bits, grey or RGB.

    Returns:
        The image, uint8, (H, W, channels): RGB unless other channels are chosen.

    Raises:
        UserError: The file is missing, not a regular file, damaged, too large, or not an image, or
            `image_format` does not suit it.
    """
    image_format = image_format or ImageFormat()
    return image_format.to_image(read_planes(path, max_pixels, image_format))


def read_planes(path: Path, max_pixels: int, image_format: ImageFormat) -> Planes:
    """Read the channels of an image file as it stores them.

    Pictures are decoded by OpenCV. Other TIFF files are read by tifffile, and transparent pictures
    by Pillow, as OpenCV would drop channels, pages and opacity.

    Raises:
        UserError: As for `read_image`.
    """
    data = _read(path, max_pixels, image_format.n_channels)
    alpha = None
    if tiff.is_tiff(data):
        kind = tiff.picture_kind(path, data, max_pixels, image_format.channels)
        if kind is None:
            return tiff.read_planes(path, data, max_pixels, image_format.channels)
        grey = kind == "grey"
    else:
        header = _read_header(path, io.BytesIO(data), max_pixels)
        grey = header.grey
        if header.transparent:
            pixels, alpha = _decode_transparent(path, data)
    if alpha is None:
        pixels = cv2.cvtColor(_decode_bytes(path, data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    if grey:
        return Planes(path, pixels[..., :1], ("0",), alpha)
    return Planes(path, pixels, RGB, alpha)


def read_size(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the height and width of an image, as it is shown; only its header is decoded.

    Raises:
        UserError: The file is missing, damaged, too large, or not an image.
    """
    with _open(path, max_pixels) as file:
        is_tiff = tiff.is_tiff(file.read(4))
        file.seek(0)
        if is_tiff:
            return tiff.read_size(path, file, max_pixels)
        return _read_header(path, file, max_pixels).size


def read_mask(path: Path, image: Image, max_pixels: int = MAX_PIXELS) -> Mask:
    """Read a mask file: one channel, either two values, or 0, 128 and 255.

    Two values mean background (0) and cell; three mean background, cytoplasm and nucleus.

    Args:
        path: The mask file.
        image: The image it belongs to; the sizes must agree.
        max_pixels: The largest number of pixels; checked in the header, before decoding.

    Returns:
        BACKGROUND, CYTOPLASM and NUCLEUS, uint8, (H, W).

    Raises:
        UserError: The file is missing or not a mask, has another size, or shows no cell.
    """
    pixels = _decode(path, cv2.IMREAD_GRAYSCALE, max_pixels)
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


def _decode(path: Path, flags: int, max_pixels: int) -> np.ndarray:
    """Decode a mask: one page of 8 bits."""
    data = _read(path, max_pixels)
    _read_header(path, io.BytesIO(data), max_pixels)
    pixels = _decode_bytes(path, data, flags)
    if pixels.dtype != np.uint8:
        raise UserError(f"{path} has {8 * pixels.itemsize} bits per channel; convert it to 8 bits")
    if path.suffix.lower() in (".tif", ".tiff") and cv2.imcount(str(path)) > 1:
        raise UserError(f"{path} has {cv2.imcount(str(path))} pages; give one image per file")
    return pixels


def _read(path: Path, max_pixels: int, n_channels: int = 4) -> bytes:
    """Return the bytes of a file, if it is complete as far as its ends show."""
    with _open(path, max_pixels, n_channels) as file:
        data = file.read()
    end = _ENDS.get(data[:2])
    if not data:
        raise _unreadable(path, "the file is empty; restore or remove it")
    if end is not None and end not in data[-4096:]:
        raise _unreadable(path, "the file is cut short; restore or remove it")
    return data


def _decode_bytes(path: Path, data: bytes, flags: int) -> np.ndarray:
    """Decode a picture of any depth."""
    try:
        pixels, complaint = _imdecode(data, flags | cv2.IMREAD_ANYDEPTH)
    except OSError as error:  # no file or descriptor is left
        raise _unreadable(path, error.strerror or str(error)) from error
    if pixels is None:
        raise _unreadable(path, "the file is not an image OpenCV reads; restore or remove it")
    if complaint:
        raise _unreadable(path, f"the file is damaged ({complaint}); restore or remove it")
    return pixels


def _decode_transparent(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decode a picture with opacity: its RGB, and its opacity from 0 to 1.

    Raises:
        UserError: It is damaged, or has 16 bits.
    """
    if data[:4] == b"\x89PNG" and data[24] > 8:  # Pillow drops the lower 8 bits
        raise UserError(
            f"{path} has 16 bits per channel and transparency; save it without an alpha channel"
        )
    try:
        with PIL.Image.open(io.BytesIO(data)) as file:
            pixels = np.asarray(PIL.ImageOps.exif_transpose(file).convert("RGBA"))
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise _unreadable(
            path, f"the file is damaged ({error!s:.80}); restore or remove it"
        ) from error
    return pixels[..., :3], pixels[..., 3].astype(np.float32) / np.float32(255)


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"cannot read {path}: {reason}")


@contextmanager
def _open(path: Path, max_pixels: int, n_channels: int = 4) -> Iterator[io.BufferedReader]:
    """Open a regular file that is no larger than an image of so many pixels can be.

    Args:
        path: The file.
        max_pixels: The largest number of pixels.
        n_channels: Number of channels that are wanted of it; four are allowed in any case.

    Raises:
        UserError: It is not such a file, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a FIFO may block the reader, and a device has no end
            raise _unreadable(path, "it is not a regular file; remove it")
        largest = _MAX_BYTES_PER_CHANNEL * max(4, n_channels) * max_pixels + 2**20
        if status.st_size > largest:
            raise _unreadable(
                path,
                f"its {status.st_size / 2**20:,.0f} MiB are more than an image of max_pixels = "
                f"{max_pixels:,} pixels can have; remove it, or raise max_pixels",
            )
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


@dataclass(frozen=True)
class _Header:
    """Facts in the header of an image file."""

    size: tuple[int, int]
    """Height and width in pixels, as the image is shown."""
    grey: bool
    """True if the image has no colour."""
    transparent: bool
    """True if some of its pixels may be transparent."""


def _read_header(path: Path, file: BinaryIO, max_pixels: int) -> _Header:
    """Read an image's header alone, and refuse too large an image.

    Raises:
        UserError: It is too large, has several frames, or the header is not valid.
    """
    try:
        header = PIL.Image.open(file)
        width, height = header.size
        # The further pictures of an MPO, which cameras write, are previews of the first.
        several = header.format not in ("MPO", "TIFF") and getattr(header, "is_animated", False)
    except Exception as error:  # Pillow raises many kinds on a damaged header
        raise _unreadable(
            path, "the file is not an image that Pillow knows; restore or remove it"
        ) from error
    if width * height > max_pixels:
        raise _unreadable(
            path,
            f"it has {width:,} x {height:,} pixels, more than max_pixels = {max_pixels:,}; remove "
            "it, or raise max_pixels",
        )
    if several:
        raise UserError(f"{path} is an animation; give one image per file")
    mode, exif = header.mode, PIL.Image.Exif()
    with suppress(Exception):  # a damaged one is ignored, as OpenCV does
        exif.load(header.info.get("exif") or b"")
    turned = exif.get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return _Header(
        (width, height) if turned else (height, width),
        grey=mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;16"),
        transparent="transparency" in header.info or mode.upper() in ("LA", "PA", "RGBA"),
    )


def _imdecode(data: bytes, flags: int) -> tuple[np.ndarray | None, str]:
    """Decode an image, and return the decoder's complaint about damage; empty if none.

    libjpeg and libtiff decode damaged data to wrong pixels, and report it only on the standard
    error stream. So its descriptor is redirected. As all threads share it, such formats are decoded
    one at a time, and the output of others is passed on.
    """
    array = np.frombuffer(data, np.uint8)
    if data[:2] not in _SILENT:
        return _try_to_decode(array, flags), ""
    with _REDIRECTED, tempfile.TemporaryFile() as written:
        try:
            stderr = os.dup(2)
        except OSError as error:
            if error.errno != errno.EBADF:  # closed: there is nothing to redirect
                raise
            return _try_to_decode(array, flags), ""
        try:
            os.dup2(written.fileno(), 2)
            pixels = _try_to_decode(array, flags)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        written.seek(0)
        complaint = ""
        for line in written.read().splitlines(keepends=True):
            found = _COMPLAINTS.search(line)
            if found is None:
                with suppress(OSError):
                    os.write(2, line)
            elif not complaint:
                complaint = found[0].decode("ascii", "replace").strip()
    return pixels, complaint


def _try_to_decode(array: np.ndarray, flags: int) -> np.ndarray | None:
    with suppress(cv2.error):
        return cv2.imdecode(array, flags)
    return None


def fingerprint(path: Path, max_pixels: int = MAX_PIXELS) -> str:
    """Return a digest of a file's bytes, 32 hexadecimal digits.

    Raises:
        UserError: The file cannot be read, is not a regular file, or is too large for an image.
    """
    with _open(path, max_pixels) as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()


def read_table(
    path: Path, columns: set[str], empty: Set[str] = frozenset()
) -> list[dict[str, str]]:
    """Read a CSV file with a header as one dictionary per row.

    Args:
        path: The file, UTF-8, with or without a byte-order mark.
        columns: The columns that it must have, with a value in every row.
        empty: Further columns that it must have, where a value may be missing.

    Raises:
        UserError: It is missing, not such a file, or lacks a column or a value.
    """
    try:
        with open_text(path, "utf-8-sig") as file:
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
            "(columns are separated by commas)"
        )
    for number, row in enumerate(rows, start=2):
        lacking = sorted(name for name in columns if not row[name])
        if lacking:
            raise UserError(f"{path}, line {number}: no value for '{lacking[0]}'")
    return rows
