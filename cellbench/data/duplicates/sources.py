"""Search for the original of an augmented image, in the pixels."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass

import numpy as np
from joblib import cpu_count

from cellbench.data import result_cache
from cellbench.data.cache import CacheConfig
from cellbench.data.duplicates import registration
from cellbench.data.duplicates.registration import Index, find_keypoints, fit, mirror, to_compare
from cellbench.data.views import Image

MIN_INLIERS = 20
"""A fit with fewer is none: images that show different things have 13 at most (copies.py)."""


@dataclass(frozen=True)
class Match:
    """An image's original."""

    original: int
    """Position of the original; -1 if none fits."""
    inliers: int
    """Number of keypoints that agree with one affine transform."""


class Originals:
    """Originals that are recognised in their augmented copies.

    Copies may be turned, shifted, sheared, scaled a little and mirrored; recoloured as far as their
    corners stay.

    Args:
        images: The originals, in grey, as `to_compare` gives them.
    """

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._keypoints = [find_keypoints(g) for grey in images for g in (grey, mirror(grey))]
        self._index = Index([keypoints.descriptors for keypoints in self._keypoints])

    def match(self, image: Image) -> Match:
        """Find the original of a copy.

        Of two photographs of one field both may fit, and then the votes tell better than the
        inliers which of them it is; so the first that fits is taken.
        """
        keypoints = find_keypoints(to_compare(image))
        votes = self._index.votes(keypoints.descriptors)
        for candidate in np.argsort(-votes, kind="stable").tolist():
            inliers = fit(keypoints, self._keypoints[candidate]).inliers
            if inliers >= MIN_INLIERS:
                return Match(candidate // 2, inliers)
        return Match(-1, 0)


def find_sources(
    copies: Sequence[str],
    read_copy: Callable[[int], Image],
    originals: Sequence[str],
    read_original: Callable[[int], Image],
    cache: CacheConfig,
) -> list[Match]:
    """Find the original of every copy, or take it from an earlier run.

    Args:
        copies: A digest of each copy's content.
        read_copy: Reads the copy at a position.
        originals: A digest of each original's content.
        read_original: Reads the original at a position.
        cache: Where the answer is kept.

    Returns:
        A match for each copy, in their order.

    Raises:
        UserError: An image cannot be read, or the answer cannot be kept.
    """
    text = json.dumps([registration.FORMAT, MIN_INLIERS, list(originals)])
    of_originals = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def begin() -> Callable[[int], result_cache.Found]:
        with ThreadPoolExecutor(cpu_count()) as pool:
            grey = pool.map(lambda i: to_compare(read_original(i)), range(len(originals)))
            known = Originals(list(grey))

        def find(position: int) -> result_cache.Found:
            return {"match": np.array([astuple(known.match(read_copy(position)))])}

        return find

    identities = [f"{content} {of_originals}" for content in copies]
    found = result_cache.for_each("finding the originals", identities, begin, cache)
    return [Match(*map(int, each["match"][0])) for each in found]
