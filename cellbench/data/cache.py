"""Cache of decoded images, shared by all epochs, workers, folds and processes."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from joblib import cpu_count

from cellbench.config.bounds import bounds, check_bounds
from cellbench.data.views import Image, Mask
from cellbench.utils.atomic import shared_file, write_at
from cellbench.utils.errors import CannotWrite, UserError
from cellbench.utils.progress_bar import bar

FORMAT = 3
"""Part of every cache file's name; raise it when reading or resizing changes."""

Read = Callable[[int], tuple[Image, Mask | None]]
"""Function that reads the image at a position, and its mask if masks are cached."""


@dataclass(frozen=True)
class CacheConfig:
    """Storage of the decoded images."""

    memory: int = field(default=64, metadata=bounds(0))
    """Largest set, in MiB, that is kept in memory, where every process decodes it for itself."""
    folder: Path | None = None
    """Folder for larger sets: each is decoded once into a file, which is mapped into memory and
    serves every run of the same images at the same size; delete it whenever you like. null is
    cellbench in the user's cache folder (~/.cache)."""
    features: bool = True
    """True to compute a frozen backbone's features once, and keep them there as well."""

    def __post_init__(self) -> None:
        """Raise UserError if a value is out of its bounds."""
        check_bounds(self, "data.cache")

    @property
    def path(self) -> Path:
        """Absolute path of the folder.

        Raises:
            UserError: It is in a home folder, and there is none.
        """
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = self.folder or Path(base, "cellbench")
        try:
            return folder.expanduser().absolute()
        except RuntimeError as error:  # a container's user, for instance
            raise UserError(
                f"data.cache.folder: {folder} is in a home folder, and there is none; set HOME, or "
                "give another folder"
            ) from error

    @contextmanager
    def writing(self, size: int, instead: str) -> Iterator[None]:
        """Turn a failure to write a file of `size` bytes into one line that says what to do."""
        try:
            yield
        except OSError as error:
            raise CannotWrite(
                f"data.cache.folder: cannot keep {size / 2**20:,.0f} MiB in {self.path}: "
                f"{error.strerror or error}; give another folder, or {instead}"
            ) from error


@dataclass(frozen=True)
class Pixels:
    """Images of a table at their final size. Forked loader workers share the memory."""

    images: np.ndarray
    """Images, uint8, (n, H, W, channels)."""
    masks: np.ndarray | None
    """BACKGROUND, CYTOPLASM or NUCLEUS, uint8, (n, H, W); None if the view needs none."""
    where: str
    """Place where they are kept, for the user."""

    def read(self, position: int) -> tuple[Image, Mask | None]:
        """Return one image and its mask."""
        return self.images[position], None if self.masks is None else self.masks[position]

    @classmethod
    def divide(
        cls, block: np.ndarray, shape: tuple[int, int, int, int], where: str, *, with_masks: bool
    ) -> "Pixels":
        """Return a view of a block that holds images, then masks; shape is that of the images."""
        size = int(np.prod(shape))
        masks = block[size:].reshape(shape[:3]) if with_masks else None
        return cls(block[:size].reshape(shape), masks, where)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle a mapped file as its path; NumPy would copy all of it."""
        if not isinstance(self.images, np.memmap):
            return Pixels, (self.images, self.masks, self.where)
        found = self.images.filename, self.images.shape, self.where, self.masks is not None
        return _map, found


def _map(path: Path, shape: tuple[int, int, int, int], where: str, with_masks: bool) -> Pixels:
    return Pixels.divide(np.memmap(path, np.uint8, mode="r"), shape, where, with_masks=with_masks)


def decode(
    config: CacheConfig,
    contents: Sequence[str],
    image_shape: tuple[int, int, int],
    read: Read,
    *,
    with_masks: bool,
) -> Pixels:
    """Read images, or take them from the file of an earlier run.

    Args:
        config: Storage of the images.
        contents: A text for each image that is equal only if what `read` returns is equal.
        image_shape: Their height, width and number of channels.
        read: Returns the image at a position, and its mask if masks are kept, of that shape.
        with_masks: True to keep the masks.

    Raises:
        UserError: The file cannot be written, or what `read` raises.
    """
    shape = len(contents), *image_shape
    height, width, channels = image_shape
    size = len(contents) * height * width * (channels + with_masks)
    if size <= config.memory << 20:
        where = f"{size / 2**20:,.0f} MiB in memory"
        pixels = Pixels.divide(np.empty(size, np.uint8), shape, where, with_masks=with_masks)
        _fill_memory(pixels, read)
        return pixels
    key = json.dumps([FORMAT, cv2.__version__, image_shape, with_masks, list(contents)])
    path = config.path / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.pixels"
    with config.writing(size, "a data.cache.memory (MiB) that holds them"):
        block = shared_file(path, size, lambda file: _fill_file(file, shape, read))
    where = f"{size / 2**20:,.0f} MiB mapped from {path}"
    return Pixels.divide(block, shape, where, with_masks=with_masks)


def _fill_memory(pixels: Pixels, read: Read) -> None:
    def store(position: int, image: Image, mask: Mask | None) -> None:
        pixels.images[position] = image
        if pixels.masks is not None:
            pixels.masks[position] = mask

    _read_all(len(pixels.images), read, store)


def _fill_file(file: int, shape: tuple[int, int, int, int], read: Read) -> None:
    """Write all images, then all masks that `read` returns."""
    n, area, channels = shape[0], shape[1] * shape[2], shape[3]

    def store(position: int, image: Image, mask: Mask | None) -> None:
        write_at(file, image, position * area * channels)
        if mask is not None:
            write_at(file, mask, n * area * channels + position * area)

    _read_all(n, read, store)


def _read_all(
    n: int,
    read: Read,
    store: Callable[[int, Image, Mask | None], None],
) -> None:
    """Read in threads: OpenCV decodes without the interpreter's lock."""
    with ThreadPoolExecutor(min(8, cpu_count())) as pool:
        done = pool.map(lambda position: store(position, *read(position)), range(n))
        for _ in bar(done, "decoding", n):
            pass
