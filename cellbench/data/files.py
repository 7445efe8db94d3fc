"""Reading of image files, with one clear line where one cannot be read."""

import errno
import hashlib
import io
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
import PIL.Image

from cellbench.data.views import Image
from cellbench.utils.errors import UserError

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)

# The last bytes of a complete file. OpenCV silently fills the missing part of a JPEG or PNG with
# grey.
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}

MAX_PIXELS = 100_000_000
"""Default of the largest image that is decoded: 300 MB as RGB."""

_MAX_BYTES_PER_PIXEL = 8  # uncompressed: four channels of 16 bits

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


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image:
    """Read any image file as RGB, uint8, (H, W, 3), turned as its EXIF data say.

    Args:
        path: The image file.
        max_pixels: The largest number of pixels; checked in the header, before decoding.

    Raises:
        UserError: The file is missing, not a regular file, damaged, too large, or not an image.
    """
    pixels = decode(path, read_bytes(path, max_pixels), cv2.IMREAD_COLOR)
    if pixels.dtype != np.uint8:  # else 12 bits stored in 16 would silently turn black
        raise UserError(
            f"{path} has {8 * pixels.itemsize} bits per channel; convert the images to 8 bits, all "
            "with one scale"
        )
    image: Image = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
    return image


def read_bytes(path: Path, max_pixels: int = MAX_PIXELS) -> bytes:
    """Read a complete image file whose header claims no more than `max_pixels` pixels.

    Raises:
        UserError: The file is missing, not a regular file, cut short, too large, or not an image.
    """
    with open_file(path, max_pixels) as file:
        data = file.read()
    end = _ENDS.get(data[:2])
    if not data:
        raise unreadable(path, "the file is empty; restore or remove it")
    if end is not None and end not in data[-4096:]:
        raise unreadable(path, "the file is cut short; restore or remove it")
    _check_size(path, data, max_pixels)
    return data


def decode(path: Path, data: bytes, flags: int) -> np.ndarray:
    """Decode an image at any depth, and refuse damaged files and files of several pages.

    Args:
        path: The file, for messages and the number of its pages.
        data: The file's content.
        flags: OpenCV's flags; the depth is always the file's own.

    Returns:
        The pixels, (H, W) or (H, W, channels), colours in OpenCV's order.

    Raises:
        UserError: The file is damaged, not an image that OpenCV reads, or has several pages.
    """
    try:
        pixels, complaint = _imdecode(data, flags | cv2.IMREAD_ANYDEPTH)
    except OSError as error:  # no file or descriptor is left
        raise unreadable(path, error.strerror or str(error)) from error
    if pixels is None:
        raise unreadable(path, "the file is not an image OpenCV reads; restore or remove it")
    if complaint:
        raise unreadable(path, f"the file is damaged ({complaint}); restore or remove it")
    if path.suffix.lower() in (".tif", ".tiff") and cv2.imcount(str(path)) > 1:
        raise UserError(f"{path} has {cv2.imcount(str(path))} pages; give one image per file")
    return pixels


def unreadable(path: Path, reason: str) -> UserError:
    """Return the error for a file that cannot be read."""
    return UserError(f"cannot read {path}: {reason}")


@contextmanager
def open_file(path: Path, max_pixels: int) -> Iterator[io.BufferedReader]:
    """Open a regular file that is no larger than an image of so many pixels can be.

    Raises:
        UserError: It is not such a file, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a FIFO may block the reader, and a device has no end
            raise unreadable(path, "it is not a regular file; remove it")
        if status.st_size > _MAX_BYTES_PER_PIXEL * max_pixels + 2**20:
            raise unreadable(
                path,
                f"its {status.st_size / 2**20:,.0f} MiB are more than an image of max_pixels = "
                f"{max_pixels:,} pixels can have; remove it, or raise max_pixels",
            )
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error


def _check_size(path: Path, data: bytes, max_pixels: int) -> None:
    """Read an image's size from its header alone, and refuse too large a one.

    Raises:
        UserError: It is too large, or the header is not valid.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as header:
            width, height = header.size
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
    with open_file(path, max_pixels) as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()
