"""Decoded images and masks of a dataset, and digests of the files that they come from."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import cv2

from cellbench.data.cache import FORMAT, CacheConfig, Pixels, decode
from cellbench.data.hooks import DatasetHooks
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


def mask_digests(
    source: DatasetHooks, samples: Sequence[Sample], preprocessing: Preprocessing
) -> list[str]:
    """Return a text for each sample that is equal only for equal masks; empty without a mask."""
    if preprocessing.masks != "expert":
        return [preprocessing.segments] * len(samples)
    return mask_file_digests(source, samples)


def digest_masks(
    source: DatasetHooks, samples: Sequence[Sample], preprocessing: Preprocessing
) -> str:
    """Return one digest of the masks of all samples: of their files, or of the segmentation."""
    digests = mask_digests(source, samples, preprocessing)
    named = [(sample.id, mask) for sample, mask in zip(samples, digests, strict=True)]
    return hashlib.blake2b(json.dumps(named).encode(), digest_size=16).hexdigest()


class ImageStore:
    """Images of a table at the network's input size, with the masks that the view needs.

    Nothing is read before `pixels` is asked for.

    Args:
        source: The dataset.
        table: Its samples.
        preprocessing: Steps from a decoded image to the input size.
        cache: Storage of the decoded images.
    """

    def __init__(
        self,
        source: DatasetHooks,
        table: SampleTable,
        preprocessing: Preprocessing,
        cache: CacheConfig,
    ) -> None:
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
        size = self._preprocessing.image_size
        return decode(cache, self._contents, size, self._prepare, with_masks=self._with_masks)

    @property
    def identity(self) -> list[Any]:
        """Plain values that differ if the pixels do."""
        return [FORMAT, cv2.__version__, asdict(self._preprocessing), self._contents]

    @cached_property
    def _contents(self) -> list[str]:
        """Text for each sample that is equal only if the pixels read from its files are equal."""
        contents, view = self._table.fingerprints, self._preprocessing.view
        if self._preprocessing.stain != "none":
            prefix = f"{self._preprocessing.stain} {STAIN_FORMAT}"
            contents = [f"{prefix} {content}" for content in contents]
        if not self._with_masks:
            return contents
        masks = mask_digests(self._source, self._table.samples, self._preprocessing)
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
            raise UserError(
                f"{error}; to leave it out: --data.exclude \"['{sample.id}']\"; audit lists "
                "all that cannot be read"
            ) from error
