"""Every image decoded once, for all epochs, workers, folds and processes."""

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

from cellbench import cores
from cellbench.atomic import shared_file, write_at
from cellbench.bar import bar
from cellbench.config.bounds import bounds, check_bounds
from cellbench.data.views import Image, Mask
from cellbench.errors import CannotWrite, UserError

FORMAT = 2
"""Part of every cache file's name: raise it when images are read or resized otherwise."""


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
        """The folder.

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
        """Says in one line why a file of so many bytes cannot be kept, and what to do instead."""
        try:
            yield
        except OSError as error:
            raise CannotWrite(
                f"data.cache.folder: cannot keep {size / 2**20:,.0f} MiB in {self.path}: "
                f"{error.strerror or error}; give another folder, or {instead}"
            ) from error


@dataclass(frozen=True)
class Pixels:
    """The images of a table at their final size. Forked loader workers share the memory.

    Attributes:
        images: RGB, uint8, (n, H, W, 3).
        masks: BACKGROUND, CYTOPLASM or NUCLEUS, uint8, (n, H, W); None where the view needs none.
        where: Where they are kept, in words.
    """

    images: np.ndarray
    masks: np.ndarray | None
    where: str

    def read(self, position: int) -> tuple[Image, Mask | None]:
        """One image and its mask."""
        return self.images[position], None if self.masks is None else self.masks[position]

    @classmethod
    def divide(
        cls, block: np.ndarray, shape: tuple[int, int, int], where: str, *, with_masks: bool
    ) -> "Pixels":
        """Takes a block of bytes for images and the masks behind them; shape is (n, H, W)."""
        size = int(np.prod(shape)) * 3
        masks = block[size:].reshape(shape) if with_masks else None
        return cls(block[:size].reshape(*shape, 3), masks, where)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """A mapped file is mapped anew by who unpickles it; numpy would copy all it holds."""
        if not isinstance(self.images, np.memmap):
            return Pixels, (self.images, self.masks, self.where)
        shape = self.images.shape[:3]
        return _map, (self.images.filename, shape, self.where, self.masks is not None)


def _map(path: Path, shape: tuple[int, int, int], where: str, with_masks: bool) -> Pixels:
    return Pixels.divide(np.memmap(path, np.uint8, mode="r"), shape, where, with_masks=with_masks)


def decode(
    config: CacheConfig,
    contents: Sequence[str],
    image_size: tuple[int, int],
    read: Callable[[int], tuple[Image, Mask | None]],
    *,
    with_masks: bool,
) -> Pixels:
    """Reads images, or takes them from the file that an earlier run has left.

    Args:
        config: Where they are kept.
        contents: For each image a text that is equal only where what `read` gives is equal.
        image_size: Their height and width.
        read: Gives the image at a position, and its mask where masks are kept, at that size.
        with_masks: Whether to keep the masks.

    Raises:
        UserError: The file cannot be written, or what `read` raises.
    """
    n, (height, width) = len(contents), image_size
    of_image, of_mask = height * width * 3, height * width if with_masks else 0
    size = n * (of_image + of_mask)

    if size <= config.memory << 20:
        where, block = f"{size / 2**20:,.0f} MiB in memory", np.empty(size, np.uint8)
        kept = Pixels.divide(block, (n, height, width), where, with_masks=with_masks)

        def keep(position: int, image: Image, mask: Mask | None) -> None:
            kept.images[position] = image
            if kept.masks is not None:
                kept.masks[position] = mask

        _read_all(n, read, keep)
        return kept

    key = json.dumps([FORMAT, cv2.__version__, image_size, with_masks, list(contents)])
    path = config.path / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.pixels"

    def fill(file: int) -> None:
        def store(position: int, image: Image, mask: Mask | None) -> None:
            write_at(file, image, position * of_image)
            if with_masks and mask is not None:
                write_at(file, mask, n * of_image + position * of_mask)

        _read_all(n, read, store)

    with config.writing(size, "a data.cache.memory (MiB) that holds them"):
        block = shared_file(path, size, fill)
    where = f"{size / 2**20:,.0f} MiB mapped from {path}"
    return Pixels.divide(block, (n, height, width), where, with_masks=with_masks)


def _read_all(
    n: int,
    read: Callable[[int], tuple[Image, Mask | None]],
    store: Callable[[int, Image, Mask | None], None],
) -> None:
    """Reads in threads: OpenCV decodes without the interpreter's lock."""
    with ThreadPoolExecutor(min(8, cores.available())) as pool:
        done = pool.map(lambda position: store(position, *read(position)), range(n))
        for _ in bar(done, "decoding", n):
            pass
