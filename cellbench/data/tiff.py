"""Reading the channels of TIFF files: samples, pages, ImageJ's stacks, OME-TIFF."""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal
from xml.etree import ElementTree

import numpy as np

from cellbench.data.image_format import RGB, NeedsOption, Planes
from cellbench.utils.errors import UserError, reason_of

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

MAX_PAGES = 4096
"""Largest number of pages of a file that is read."""

MAX_XML = 4 * 2**20
"""Largest number of characters of the OME-XML that is parsed."""

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_OPENCV = frozenset(
    {"NONE", "CCITTRLE", "CCITT_T4", "CCITT_T6", "LZW", "OJPEG", "JPEG", "PACKBITS"}
    | {"ADOBE_DEFLATE", "DEFLATE"}
)
"""Compressions that OpenCV's libtiff reads."""

_SAMPLES = {"MINISWHITE": 1, "MINISBLACK": 1, "RGB": 3, "PALETTE": 1, "SEPARATED": 4, "YCBCR": 3}
"""Samples of a pixel in the kinds of pictures that OpenCV converts to RGB."""

_IEEE_FLOAT = 3
"""Value of the tag SampleFormat for floating-point numbers (TIFF 6.0, 1992)."""

_STACKED = {"Z": "z-slices", "T": "time points"}


@dataclass(frozen=True)
class _Ome:
    """Facts in the OME-XML of a file."""

    names: tuple[str, ...]
    """Name of each channel."""
    order: tuple[int, ...] | None
    """Number of each channel's page; None for their own order, or if samples are the channels."""
    stacked: dict[str, int]
    """Number of z-slices and of time points, as `Z` and `T`."""


def is_tiff(data: bytes) -> bool:
    """Return True if a file's bytes begin as those of a TIFF do."""
    return data[:4] in _MAGIC


def picture_kind(
    path: Path, data: bytes, max_pixels: int, channels: tuple[str | int, ...] | None
) -> Literal["grey", "colour", None]:
    """Return the kind of a picture that OpenCV reads right; None for other TIFF files.

    It reads single pictures of at most 8 bits, without opacity or further channels.

    Args:
        path: The file, for errors.
        data: Its bytes.
        max_pixels: Largest number of pixels of a channel.
        channels: The channels that will be taken; None if none were chosen. OpenCV gives no names.

    Raises:
        UserError: The header is damaged, or the image too large.
    """
    with _opened(path, io.BytesIO(data), max_pixels) as tif:
        page = tif.pages.first
        kind = _kind(page)
        grey = kind in ("MINISWHITE", "MINISBLACK")
        right = (
            len(tif.pages) == 1
            and page.dtype in (np.dtype(np.uint8), np.dtype(bool))
            and page.samplesperpixel == _SAMPLES.get(kind)
            and not page.extrasamples
            and getattr(page.compression, "name", "") in _OPENCV
            and (channels is None or not (grey or kind == "RGB"))
        )
        return None if not right else "grey" if grey else "colour"


@dataclass(frozen=True)
class Header:
    """Facts in the header of a TIFF, about its first page but for their number."""

    width: int
    """Width in pixels, as it is stored."""
    height: int
    """Height in pixels, as it is stored."""
    kind: str
    """Meaning of the values, such as RGB."""
    samples: int
    """Number of values of a pixel."""
    bits: int
    """Bits of a value."""
    floats: bool
    """True if the values are floating-point numbers."""
    pages: int
    """Number of pages."""


def read_header(path: Path, file: BinaryIO) -> Header:
    """Read the header of a TIFF, however large its image.

    Raises:
        UserError: It is damaged.
    """
    with _opened(path, file, sys.maxsize) as tif:
        page = tif.pages.first
        return Header(
            int(page.imagewidth),
            int(page.imagelength),
            _kind(page),
            int(page.samplesperpixel),
            int(page.bitspersample),
            page.sampleformat == _IEEE_FLOAT,
            len(tif.pages),
        )


def read_size(path: Path, file: BinaryIO, max_pixels: int) -> tuple[int, int]:
    """Return the height and width of a TIFF's first page, turned as its orientation tag says."""
    with _opened(path, file, max_pixels) as tif:
        page = tif.pages.first
        height, width = int(page.imagelength), int(page.imagewidth)
        return (width, height) if _orientation(page) >= 5 else (height, width)


def read_planes(
    path: Path, data: bytes, max_pixels: int, channels: tuple[str | int, ...] | None
) -> Planes:
    """Return the channels of a TIFF.

    Args:
        path: The file, for errors.
        data: Its bytes.
        max_pixels: Largest number of pixels of a channel.
        channels: The channels that will be taken; None if none were chosen.

    Raises:
        UserError: The file is damaged, too large, or holds more than one image.
    """
    with _opened(path, io.BytesIO(data), max_pixels) as tif:
        page = tif.pages.first
        ome = _read_ome(path, page.description)
        series = tif.series
        if len(series) != 1:
            raise UserError(
                f"{path} has {len(series)} images of different sizes or kinds; give one per file"
            )
        axes, shape = series[0].axes, series[0].shape
        others = [axis for axis in axes if axis not in "YX"]
        sizes = dict(zip(axes, shape, strict=True))
        pages = [axis for axis in others if axis != "S" and sizes[axis] > 1]
        _refuse_stack(path, sizes if ome is None else ome.stacked)
        known = ome is not None or pages in ([], ["C"])
        n_pages = int(np.prod([sizes[axis] for axis in pages]))
        samples = sizes.get("S", 1)
        if n_pages > 1 and (samples > 1 or (channels is None and not known)):
            choice = "" if samples > 1 else ", or take pages as channels with data.channels"
            what = f" of {samples} channels" if samples > 1 else ""
            raise NeedsOption(f"{path} has {n_pages} pages{what}; give one image per file{choice}")
        _check_values(path, page, n_pages * samples, max_pixels, channels)
        _check_storage(series[0], len(data))
        values = series[0].asarray(maxworkers=1)
        order = [axes.index("Y"), axes.index("X"), *(axes.index(axis) for axis in others)]
        values = values.transpose(order).reshape(sizes["Y"], sizes["X"], -1)
        values = _turn(_upright_values(path, page, values), _orientation(page))
        names = _names(tif, page, values.shape[2], ome)
        if ome is not None:
            values, names = _by_ome(path, ome, values, names, samples)
        alpha = None
        if page.extrasamples and int(page.extrasamples[-1]) in (1, 2):  # associated or not
            values, alpha = _split_alpha(values, associated=int(page.extrasamples[-1]) == 1)
            names = names[:-1]
        return Planes(path, values, names, alpha)


@contextmanager
def _opened(path: Path, file: BinaryIO, max_pixels: int) -> Iterator["TiffFile"]:
    """Open a TIFF whose image is not too large, and turn the errors of tifffile into one line."""
    import tifffile  # takes half a second, and few need it

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its complaints are exceptions, too
    try:
        # A series of these kinds may be spread over several files, which tifffile would open.
        with tifffile.TiffFile(file, is_ome=False, is_mmstack=False, is_ndtiff=False) as tif:
            if len(tif.pages) > MAX_PAGES:
                raise UserError(f"{path} has {len(tif.pages):,} pages; at most {MAX_PAGES:,}")
            page = tif.pages.first
            width, height = page.imagewidth, page.imagelength
            if not (width and height):
                raise ValueError("it has no pixels")
            if page.is_tiled:  # a tile is decoded in whole, however small the image in it
                width, height = max(width, page.tilewidth), max(height, page.tilelength)
            if width * height > max_pixels:
                raise UserError(
                    f"cannot read {path}: it has {width:,} x {height:,} pixels, more than "
                    f"max_pixels = {max_pixels:,}; remove it, or raise max_pixels"
                )
            yield tif
    except (UserError, MemoryError):
        raise
    except Exception as error:  # tifffile raises many kinds on damaged files
        raise UserError(
            f"cannot read {path}: the file is damaged ({reason_of(error)}); restore or remove it"
        ) from error


def _refuse_stack(path: Path, sizes: dict[str, int]) -> None:
    for axis, what in _STACKED.items():
        if sizes.get(axis, 1) > 1:
            raise UserError(
                f"{path} is a stack of {sizes[axis]} {what}; give one image per file, such as one "
                "of them or a projection"
            )


def _check_values(
    path: Path,
    page: "TiffPage",
    planes: int,
    max_pixels: int,
    channels: tuple[str | int, ...] | None,
) -> None:
    """Refuse a file that would unpack to more values than max_pixels allows."""
    values = page.imagewidth * page.imagelength * planes
    if values > max_pixels * max(4, len(channels or ())):
        raise UserError(
            f"cannot read {path}: its {planes:,} channels unpack to {values:,} values, more than "
            f"max_pixels = {max_pixels:,} allows; remove it, or raise max_pixels"
        )


def _check_storage(series: "TiffPageSeries", size: int) -> None:
    """Check that every strip or tile is in the file: a missing one would be black."""
    for page in series.pages:
        if page is None and (series.dataoffset or size) + series.nbytes > size:
            raise ValueError("a page is missing")
        if page is None:  # the pages follow one another, and only the first is described
            continue
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if count == 0 or offset + count > size:
                raise ValueError("a part of the image is not in the file")


def _upright_values(path: Path, page: "TiffPage", values: np.ndarray) -> np.ndarray:
    """Return values that grow with the brightness.

    Raises:
        UserError: They are not brightness, but indices or colours of another kind.
    """
    kind = _kind(page)
    if values.dtype == bool or (values.dtype == np.uint8 and page.bitspersample < 8):
        values = (values * (255 / (2**page.bitspersample - 1))).astype(np.uint8)
    if kind == "MINISWHITE" and values.dtype.kind == "u":
        largest = max(2**page.bitspersample - 1, 255)
        return np.asarray(largest - values, values.dtype)
    decoded = kind == "YCBCR" and getattr(page.compression, "name", "") == "JPEG"
    if kind not in ("MINISBLACK", "RGB") and not decoded:
        raise UserError(
            f"{path} is a TIFF of the kind {kind} with {page.bitspersample} bits and "
            f"{page.samplesperpixel} samples, which cannot be read; convert it to grey or RGB"
        )
    return values


def _kind(page: "TiffPage") -> str:
    """Return the name of the meaning of a page's values, such as RGB."""
    return str(getattr(page.photometric, "name", "MINISBLACK"))


def _orientation(page: "TiffPage") -> int:
    tag = page.tags.get(274)
    return int(tag.value) if tag is not None else 1


def _turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image as the tag Orientation says (TIFF 6.0, 1992)."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


def _split_alpha(values: np.ndarray, *, associated: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the colours and the opacity of an image whose last channel is the opacity.

    Args:
        values: The channels, (H, W, n).
        associated: True if the colours have been multiplied by the opacity.
    """
    colours, last = values[..., :-1], values[..., -1].astype(np.float32)
    alpha = last if values.dtype.kind == "f" else last / np.float32(np.iinfo(values.dtype).max)
    if associated:
        whole = colours / np.where(alpha > 0, alpha, 1)[..., None]
        if values.dtype.kind != "f":
            whole = np.rint(whole).clip(0, np.iinfo(values.dtype).max)
        colours = whole.astype(values.dtype)
    return colours, alpha.clip(0, 1)


def _names(tif: "TiffFile", page: "TiffPage", n: int, ome: _Ome | None) -> tuple[str, ...]:
    """Return the names of the channels: those of OME or ImageJ, or R, G and B, or numbers."""
    if ome is not None and len(ome.names) == n:
        return ome.names
    labels = (tif.imagej_metadata or {}).get("Labels", [])
    if isinstance(labels, list) and len(labels) == n and all(map(str, labels)):
        return tuple(map(str, labels))
    colour = _kind(page) in ("RGB", "YCBCR")
    first = RGB if colour and page.samplesperpixel >= 3 and n == page.samplesperpixel else ()
    return (*first, *(str(number) for number in range(len(first), n)))


def _by_ome(
    path: Path, ome: _Ome, values: np.ndarray, names: tuple[str, ...], samples: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the channels in the order of the OME-XML.

    Raises:
        UserError: There are not as many as it says.
    """
    n = values.shape[2]
    if len(ome.names) != n:
        raise UserError(
            f"{path}: its OME-XML describes {len(ome.names)} channels, and it has {n}; write it "
            "again, one image per file"
        )
    if ome.order is None or samples > 1 or ome.order == tuple(range(n)):
        return values, names
    if sorted(ome.order) != list(range(n)):
        raise UserError(f"{path}: its OME-XML does not say which page is which channel")
    return values[..., list(ome.order)], names


def _read_ome(path: Path, text: str) -> _Ome | None:
    """Return what the OME-XML of a file says; None if it has none.

    Raises:
        UserError: It is not valid, too long, or describes several images or files.
    """
    if not text.rstrip().endswith("OME>"):
        return None
    if len(text) > MAX_XML:
        raise UserError(f"{path}: its OME-XML has {len(text):,} characters; at most {MAX_XML:,}")
    if "<!" in text.replace("<!--", "").replace("<![CDATA[", ""):  # entities can grow without bound
        raise UserError(f"{path}: its OME-XML declares entities or a document type; remove them")
    try:
        root = ElementTree.fromstring(text)
        images = root.findall("{*}Image")
        if len(images) != 1:
            raise UserError(f"{path} holds {len(images)} images of OME; give one per file")
        pixels = images[0].find("{*}Pixels")
        assert pixels is not None
        stacked = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in _STACKED}
        n = int(pixels.get("SizeC", 1))
        names = _ome_names(pixels, n)
        order = _ome_order(path, root, pixels, n)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: its OME-XML is not valid ({reason_of(error)})") from error
    return _Ome(names, order, stacked)


def _ome_names(pixels: ElementTree.Element, n: int) -> tuple[str, ...]:
    """Return the name of each of n channels; its number where it has none."""
    names: list[str] = []
    for channel in pixels.findall("{*}Channel"):
        samples = int(channel.get("SamplesPerPixel", 1))
        name = channel.get("Name", "").strip()
        if samples == 3 and not name:
            names += RGB
        elif samples == 1:
            names.append(name or str(len(names)))
        else:
            names += [f"{name} {i}".strip() for i in range(min(samples, n))]
    return tuple(names + [str(i) for i in range(len(names), min(n, MAX_PAGES))])


def _ome_order(
    path: Path, root: ElementTree.Element, pixels: ElementTree.Element, n: int
) -> tuple[int, ...] | None:
    """Return the page of each channel; None if the file does not say.

    Raises:
        UserError: A page is in another file.
    """
    page_of: dict[int, int] = {}
    for block in pixels.findall("{*}TiffData"):
        other = block.find("{*}UUID")
        if other is not None and (other.text or "").strip() != root.get("UUID", "").strip():
            raise UserError(
                f"{path}: its channels are spread over several files; write them to one OME-TIFF"
            )
        first, page = int(block.get("FirstC", 0)), int(block.get("IFD", 0))
        count = int(block.get("PlaneCount", n if block.get("IFD") is None else 1))
        for i in range(min(count, n)):
            page_of[first + i] = page + i
    if sorted(page_of) != list(range(n)):
        return None
    return tuple(page_of[channel] for channel in range(n))
