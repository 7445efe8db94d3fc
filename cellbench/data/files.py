"""Reading image and label files, with one clear line where one cannot be read."""

import errno
import hashlib
import io
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator
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
from cellbench.data.views import Image
from cellbench.utils.errors import UserError, reason_of, short_name

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)

# The last bytes of a complete file. OpenCV silently fills the missing part of a JPEG or PNG with
# grey.
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}

_PNG = b"\x89PNG\r\n\x1a\n"
"""First bytes of a PNG file."""

MAX_PIXELS = 100_000_000
"""Default of the largest image that is decoded: 300 MB as RGB."""

_MAX_BYTES_PER_CHANNEL = 2  # uncompressed, of a pixel

_ORIENTATION = 274  # the tag of EXIF

PIL.Image.MAX_IMAGE_PIXELS = None  # max_pixels is the limit, and may be above Pillow's

_SILENT = (b"\xff\xd8", b"II", b"MM")
"""First bytes of JPEG and TIFF files, whose decoders return wrong pixels for damaged data."""

_OWN_LOG = re.compile(rb"\[ ?(?:ERROR|WARN)[:@]")
"""Beginning of OpenCV's own lines, which say the same in its words."""

_COMPLAINTS = re.compile(
    rb"Corrupt JPEG data.*|Premature end of JPEG.*|Inconsistent progression.*|Invalid SOS.*"
    rb"|(?<=TIFF_Error ).*"
)
_REDIRECTED = Lock()
# A process that is forked in the middle of a decoding would wait for it for ever.
if hasattr(os, "register_at_fork"):  # Windows does not fork
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
    with open_file(path, max_pixels) as file:
        is_tiff = tiff.is_tiff(file.read(4))
        file.seek(0)
        if is_tiff:
            return tiff.read_size(path, file, max_pixels)
        return _read_header(path, file, max_pixels).size


def check_picture(path: Path, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
    """Check that the content of an image file is whole, as far as its ends and its header show.

    Raises:
        UserError: It is cut short, has more than `max_pixels` pixels, or is not an image.
    """
    _check_ends(path, data)
    _read_header(path, io.BytesIO(data), max_pixels)


def decode(path: Path, data: bytes, flags: int) -> np.ndarray:
    """Decode an image at any depth, and refuse damaged files and files of several pages.

    Args:
        path: The file, for messages.
        data: The file's content.
        flags: OpenCV's flags; the depth is always the file's own.

    Returns:
        The pixels, (H, W) or (H, W, channels), colours in OpenCV's order.

    Raises:
        UserError: The file is damaged, not an image that OpenCV reads, or has several pages.
    """
    pixels = _decode_bytes(path, data, flags)
    if tiff.is_tiff(data[:4]):
        with PIL.Image.open(io.BytesIO(data)) as header:
            pages = getattr(header, "n_frames", 1)
        if pages > 1:
            raise UserError(f"{short_name(path)} has {pages} pages; give one image per file")
    return pixels


def _read(path: Path, max_pixels: int, n_channels: int = 4) -> bytes:
    """Return the bytes of a file, if it is complete as far as its ends show."""
    with open_file(path, max_pixels, n_channels) as file:
        data = file.read()
    _check_ends(path, data)
    return data


def _check_ends(path: Path, data: bytes) -> None:
    """Refuse the content of a file that is empty, or lacks the end of its format."""
    end = _ENDS.get(data[:2])
    if not data:
        raise unreadable(path, "the file is empty; restore or remove it")
    if end is not None and end not in data[-4096:]:
        raise unreadable(path, "the file is cut short; restore or remove it")


def _decode_bytes(path: Path, data: bytes, flags: int) -> np.ndarray:
    """Decode a picture of any depth."""
    if data[:8] == _PNG and not _png_is_whole(data):
        raise unreadable(path, "the file is damaged; restore or remove it")
    try:
        pixels, complaint = _imdecode(data, flags | cv2.IMREAD_ANYDEPTH)
    except OSError as error:  # no file or descriptor is left
        raise unreadable(path, error.strerror or str(error)) from error
    if pixels is None:
        raise unreadable(path, "the file is not an image OpenCV reads; restore or remove it")
    if complaint:
        raise unreadable(path, f"the file is damaged ({complaint}); restore or remove it")
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
        raise unreadable(
            path, f"the file is damaged ({reason_of(error)}); restore or remove it"
        ) from error
    return pixels[..., :3], pixels[..., 3].astype(np.float32) / np.float32(255)


def unreadable(path: Path, reason: str) -> UserError:
    """Return the error for a file that cannot be read."""
    return UserError(f"cannot read {path}: {reason}")


@contextmanager
def open_file(path: Path, max_pixels: int, n_channels: int = 4) -> Iterator[io.BufferedReader]:
    """Open a regular file that is no larger than an image of so many pixels can be.

    Args:
        path: The file.
        max_pixels: The largest number of pixels.
        n_channels: Number of channels that are wanted of it; four are allowed in any case.

    Raises:
        UserError: It is not such a file, or cannot be read.
    """
    if path.is_symlink() and not os.path.lexists(os.path.join(path.parent, os.readlink(path))):
        raise unreadable(path, "it is a link to a file that does not exist; remove it")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a FIFO may block the reader, and a device has no end
            raise unreadable(path, "it is not a regular file; remove it")
        largest = _MAX_BYTES_PER_CHANNEL * max(4, n_channels) * max_pixels + 2**20
        if status.st_size > largest:
            raise unreadable(
                path,
                f"its {status.st_size / 2**20:,.0f} MiB are more than an image of max_pixels = "
                f"{max_pixels:,} pixels can have; remove it, or raise max_pixels",
            )
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error


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
        raise unreadable(
            path, "the file is not an image that Pillow knows; restore or remove it"
        ) from error
    if width * height > max_pixels:
        raise unreadable(
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


def _png_is_whole(data: bytes) -> bool:
    """Return True if the checksums of a PNG's critical chunks are right.

    libpng would write of wrong ones to the standard error stream.
    """
    at = len(_PNG)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 8 + length
        stored = data[end : end + 4]
        if kind[:1].isupper() and zlib.crc32(data[at + 4 : end]).to_bytes(4) != stored:
            return False
        if kind == b"IEND":
            return True
        at = end + 4
    return False


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
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # damaged TIFFs
            pixels = _try_to_decode(array, flags)
        finally:
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
            os.dup2(stderr, 2)
            os.close(stderr)
        written.seek(0)
        complaint = ""
        for line in written.read().splitlines(keepends=True):
            found = _COMPLAINTS.search(line)
            if found is None:
                if pixels is None and (not line.strip() or _OWN_LOG.match(line)):
                    continue
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
    with open_file(path, max_pixels) as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()
