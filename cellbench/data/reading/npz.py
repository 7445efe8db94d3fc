"""MedMNIST's archives: arrays of images and labels for each part (Yang et al., 2023)."""

import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import get_args

import numpy as np

from cellbench.data.reading.layout import refuse_one_class
from cellbench.data.reading.listing import is_image
from cellbench.data.reading.reading import FolderOptions, Reading
from cellbench.data.table import Part, Sample
from cellbench.data.views import Image
from cellbench.utils.errors import UserError

_RATIO = 1032
"""Largest ratio of deflate's compression (zlib's technical details)."""
_MAX_LABELS = 100_000_000


def find_archive(root: Path) -> Path | None:
    """Return the archive that a root is, or that is the only file of its kind in it.

    Raises:
        UserError: There are several archives and nothing else.
    """
    if root.is_file() and root.suffix.lower() == ".npz":
        return root
    if not root.is_dir():
        return None
    entries = [path for path in root.iterdir() if not path.name.startswith(".")]
    archives = sorted(path for path in entries if path.suffix.lower() == ".npz" and path.is_file())
    if not archives or any(path.is_dir() or is_image(path.name) for path in entries):
        return None
    if len(archives) > 1:
        raise UserError(
            f"data.root: {root} has {len(archives)} archives, such as {archives[0].name} and "
            f"{archives[1].name}; give one of them as data.root"
        )
    return archives[0]


class Archive:
    """Images and labels of an archive; each part is decompressed when it is first asked for.

    Args:
        path: The .npz file.

    Raises:
        UserError: It is not such an archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                headers = {
                    member.filename.removesuffix(".npy"): _header(file, member)
                    for member in file.infolist()
                    if member.filename.endswith(".npy")
                }
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}; is it a whole .npz file?") from error
        self._parts: list[Part] = [
            part for part in get_args(Part) if {f"{part}_images", f"{part}_labels"} <= set(headers)
        ]
        if not self._parts:
            raise UserError(
                f"{path} has the arrays {', '.join(headers) or 'none'}; expected MedMNIST's "
                "train_images, train_labels and so on"
            )
        for part in self._parts:
            self._check(part, headers[f"{part}_images"], headers[f"{part}_labels"])
        self._loaded: dict[str, np.ndarray] = {}
        self._lock = Lock()

    def _check(self, part: str, images: "_Header", labels: "_Header") -> None:
        where = f"{self.path}: {part}"
        shape = images[0]
        if images[1] != np.uint8 or len(shape) not in (3, 4) or (
            len(shape) == 4 and shape[3] not in (1, 3)
        ):  # fmt: skip
            raise UserError(
                f"{where}_images is {images[1]} of shape {shape}; expected uint8 of shape "
                "(n, height, width) or (n, height, width, 3), not volumes"
            )
        if len(labels[0]) == 2 and labels[0][1] > 1:
            raise UserError(
                f"{where}_labels has {labels[0][1]} labels for each image; only one class for each "
                "is supported"
            )
        if not np.issubdtype(labels[1], np.integer) or labels[0][:1] != shape[:1]:
            raise UserError(
                f"{where}_labels is {labels[1]} of shape {labels[0]} for {shape[0]} images; "
                "expected one whole number for each"
            )
        if labels[0][0] > _MAX_LABELS:
            raise UserError(f"{where}_labels has {labels[0][0]:,} rows, more than can be read")

    @cached_property
    def labels(self) -> Mapping[Part, np.ndarray]:
        """The labels of each part, (n,)."""
        return {part: self._array(f"{part}_labels").reshape(-1) for part in self._parts}

    def image(self, sample_id: str) -> Image:
        """Return an image as RGB, uint8, (H, W, 3)."""
        part, number = sample_id.split("/")
        with self._lock:  # threads would each unpack it
            if part not in self._loaded:
                self._loaded[part] = self._array(f"{part}_images")
        image: Image = self._loaded[part][int(number)]
        if image.ndim == 3 and image.shape[2] == 3:
            return image
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)

    def _array(self, name: str) -> np.ndarray:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                array: np.ndarray = file[name]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"cannot read {self.path}: {name}: {error}") from error
        return array

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the first part's images."""
        with zipfile.ZipFile(self.path) as file:
            shape, _ = _header(file, file.getinfo(f"{self._parts[0]}_images.npy"))
        return shape[2], shape[1]


def read_archive(path: Path, options: FolderOptions) -> Reading:
    """Read an archive as MedMNIST has them, with its own parts.

    Args:
        path: The archive.
        options: Must name no masks and no groups: the archive has none.

    Raises:
        UserError: It is not such an archive.
    """
    for name in ("mask_pattern", "group_pattern"):
        if getattr(options, name) is not None:
            raise UserError(f"data.{name}: {path} has no names and no masks; leave it out")
    archive = Archive(path)
    labels = archive.labels
    values = sorted({int(value) for each in labels.values() for value in each})
    width = len(str(values[-1])) if values else 1
    classes = tuple(f"{value:0{width}d}" for value in values)
    refuse_one_class(classes, str(path))
    position = {value: i for i, value in enumerate(values)}
    samples = [
        Sample(f"{part}/{number:06d}", position[int(value)], split=part)
        for part, each in labels.items()
        for number, value in enumerate(each)
    ]
    parts = ", ".join(f"{part} {len(each)}" for part, each in labels.items())
    return Reading(
        classes,
        tuple(sorted(samples, key=lambda sample: sample.id)),
        {
            "classes": f"numbers of {path.name}, which holds no names",
            "parts": f"{parts} images, from {path.name}",
        },
    )


_Header = tuple[tuple[int, ...], np.dtype]


def _header(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Header:
    """Return shape and type of an array in an archive.

    Raises:
        ValueError: It is not an array of numbers, or its size does not fit its file's.
    """
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds Python objects, which could run code")
    size = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    if size > _RATIO * member.compress_size:
        raise ValueError(f"{member.filename} would unpack to {size:,} bytes")
    return shape, dtype
