"""Decoded images and masks of a dataset, and digests of the files that they come from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from cellbench.data import files, result_cache
from cellbench.data.cache import FORMAT, CacheConfig, Pixels, decode
from cellbench.data.hooks import DatasetHooks
from cellbench.data.image_format import FORMAT as LIMITS_FORMAT
from cellbench.data.image_format import ImageFormat, NeedsOption, visible
from cellbench.data.preprocessing import FORMAT as SIZE_FORMAT
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.stain import FORMAT as STAIN_FORMAT
from cellbench.data.table import Sample, SampleTable
from cellbench.data.views import Image, Mask, needs_mask
from cellbench.utils.errors import UserError


def content_digests(source: DatasetHooks, samples: Sequence[Sample]) -> list[str]:
    """Return a digest of each sample's content."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(source.fingerprint, samples))


def mask_file_digests(source: DatasetHooks, samples: Sequence[Sample]) -> list[str]:
    """Return a digest of each sample's mask file; empty without a mask."""

    def digest(sample: Sample) -> str:
        return source.mask_fingerprint(sample) if source.has_mask(sample) else ""

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, samples))


def digest_masks(masks: Mapping[str, str]) -> str:
    """Return one digest of the masks of all samples.

    Args:
        masks: For each sample's id a text that is equal only for equal masks.
    """
    return hashlib.blake2b(json.dumps(list(masks.items())).encode(), digest_size=16).hexdigest()


_LONG_ID = 60
"""Number of characters up to which an id has room in a message."""

MEASURED = 2**22
"""Number of pixels, spread evenly over the images, that percentiles of a dataset are taken of; all
of them if there are no more."""


def measure_limits(
    source: DatasetHooks,
    samples: Sequence[Sample],
    contents: Sequence[str],
    image_format: ImageFormat,
    cache: CacheConfig,
) -> tuple[tuple[float, float], ...]:
    """Return the low and the high end of each channel over some images, from their files.

    Args:
        source: The dataset.
        samples: The samples.
        contents: Digests of their content.
        image_format: Format with percentiles of a dataset.
        cache: Cache of the result.

    Raises:
        UserError: An image cannot be read, or the result cannot be cached.
    """
    intensity = image_format.intensity
    assert intensity is not None
    if not samples:
        raise UserError("data.intensity: there is no training image to take percentiles of")
    most = max(64, MEASURED // len(samples))

    def some_values(sample: Sample) -> np.ndarray:
        """Return the values of some pixels of an image, (k, channels)."""
        assert sample.image is not None
        try:
            planes = files.read_planes(sample.image, source.max_pixels, image_format)
            values = visible(image_format.choose(planes), planes)
        except UserError as error:
            raise with_remedy(error, sample) from error
        if len(values) <= most:
            return values
        return values[np.random.default_rng(0).integers(0, len(values), most)]

    def measure(_: int) -> result_cache.Found:
        with ThreadPoolExecutor() as pool:
            values = list(pool.map(some_values, samples))
        first = values[0].dtype
        for sample, own in zip(samples, values, strict=True):
            if own.dtype != first:  # the images of fewer bits would become black
                raise UserError(
                    f"data.intensity: '{samples[0].id}' has {first} values and '{sample.id}' "
                    f"{own.dtype}: no scale of the dataset fits both; convert the images, or "
                    "give per: image"
                )
        return {"limits": intensity.limits(np.concatenate(values))}

    identity = f"{LIMITS_FORMAT} {replace(image_format, fill=0)} {MEASURED} {list(contents)}"
    found = result_cache.for_each("measuring intensities", [identity], lambda: measure, cache)
    return tuple((low, high) for low, high in found[0]["limits"].T.tolist())


def with_remedy(error: UserError, sample: Sample) -> UserError:
    """Return the error of a sample that cannot be read, with the way to leave it out."""
    if isinstance(error, NeedsOption):
        return error
    if len(sample.id) > _LONG_ID:
        return UserError(f"{error}; audit lists all such files with their ids, for data.exclude")
    return UserError(
        f"{error}; to leave it out: --data.exclude \"['{sample.id}']\"; audit lists all"
    )


class ImageStore:
    """Images of a table at the network's input size, with the masks that the view needs.

    Nothing is read before `pixels` is asked for.

    Args:
        source: The dataset.
        table: Its samples.
        preprocessing: Steps from a decoded image to the input size.
        cache: Storage of the decoded images.
        masks: For each sample's id a text that is equal only for equal masks; not used if the view
            needs none.
    """

    def __init__(
        self,
        source: DatasetHooks,
        table: SampleTable,
        preprocessing: Preprocessing,
        cache: CacheConfig,
        masks: Mapping[str, str],
    ) -> None:
        self._masks = masks
        self._source = source
        self._table = table
        self._preprocessing = preprocessing
        self._cache = cache
        self._with_masks = needs_mask(preprocessing.view)
        self._by_expert = self._with_masks and preprocessing.masks == "expert"

    @cached_property
    def pixels(self) -> Pixels:
        """Decoded images and masks, read now or taken from the file of an earlier run.

        Raises:
            UserError: An image or a mask is missing or cannot be read, or the cache not be written.
        """
        if self._by_expert:
            self._check_masks()
        # Automatic masks take longer than decoding: they are kept on disk, however small the set.
        cache = self._cache
        if self._with_masks and not self._by_expert:
            cache = replace(cache, memory=0)
        shape = *self._preprocessing.image_size, self._preprocessing.n_channels
        return decode(cache, self._contents, shape, self._prepare, with_masks=self._with_masks)

    @property
    def identity(self) -> list[Any]:
        """Plain values that differ if the pixels do."""
        return [FORMAT, cv2.__version__, asdict(self._preprocessing), self._contents]

    @cached_property
    def _contents(self) -> list[str]:
        """Text for each sample that is equal only if the pixels read from its files are equal."""
        prepared, view = self._preprocessing, self._preprocessing.view
        prefix = f"{SIZE_FORMAT} {prepared.image_format.identity} {prepared.fit}"
        if prepared.stain != "none":
            prefix += f" {prepared.stain} {STAIN_FORMAT}"
        contents = [f"{prefix} {content}" for content in self._table.fingerprints]
        if not self._with_masks:
            return contents
        masks = [self._masks[sample.id] for sample in self._table.samples]
        # These views change how the image is read; the others hide pixels after the cache.
        kind: str = view if view in ("crop", "nucleus") else "whole"
        if self._by_expert:
            kind = f"{kind} {self._preprocessing.mask_format}"
        return [f"{kind} {a} {b}" for a, b in zip(contents, masks, strict=True)]

    def _check_masks(self) -> None:
        self._table.check_masks()
        samples, view = self._table.samples, self._preprocessing.view
        lacking = [sample.id for sample in samples if not self._source.has_mask(sample)]
        if lacking:
            instead = "data.masks: auto" if self._source.shows_cells else "view raw"
            places = self._source.mask_places
            where = f"; {places}; data.mask_pattern names another place" if places else "; add them"
            raise UserError(
                f"data.view: {view} needs a mask, and '{lacking[0]}' has none "
                f"({len(lacking)} of {len(samples)} images have none){where}, or use {instead}"
            )

    def _prepare(self, position: int) -> tuple[Image, Mask | None]:
        """Read a sample's image and, if an expert drew it, its mask; bring both to input size."""
        sample = self._table.samples[position]
        try:
            image, mask = self._source.read_image(sample), None
            if self._by_expert:
                mask = self._source.read_mask(sample, image)
            return self._preprocessing.prepare(image, mask, sample.id)
        except UserError as error:
            raise with_remedy(error, sample) from error
