"""Which original an augmented image comes from, found in the pixels."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass

import numpy as np

from cellbench import cores
from cellbench.data import kept, registration
from cellbench.data.cache import CacheConfig
from cellbench.data.registration import Index, find_keypoints, fit, mirror, to_compare
from cellbench.data.views import Image

CANDIDATES = 2
"""So many originals with the most votes are fitted; where none fits, all of the rest are."""
MIN_INLIERS = 20
"""A fit with fewer is none: two images that show different things have 18 at most in 4,000."""


@dataclass(frozen=True)
class Match:
    """An image's original.

    Attributes:
        original: Its position; -1 where none fits.
        inliers: How many keypoints agree with one affine transform.
        second: The same of the next best original that was tried.
    """

    original: int
    inliers: int
    second: int


class Originals:
    """Originals to be recognised in their augmented copies.

    Copies may be turned, shifted, sheared, scaled a little and mirrored; recoloured as far as their
    corners stay.

    Args:
        images: The originals, in grey, as `to_compare` gives them.
    """

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._keypoints = [find_keypoints(g) for grey in images for g in (grey, mirror(grey))]
        self._index = Index([keypoints.descriptors for keypoints in self._keypoints])

    def match(self, image: Image) -> Match:
        """Finds the original of a copy."""
        keypoints = find_keypoints(to_compare(image))
        order = np.argsort(-self._index.votes(keypoints.descriptors), kind="stable")
        found: dict[int, int] = {}
        for rank, candidate in enumerate(order):
            if rank >= CANDIDATES and max(found.values()) >= MIN_INLIERS:
                break
            inliers = fit(keypoints, self._keypoints[candidate]).inliers
            original = int(candidate) // 2
            found[original] = max(found.get(original, 0), inliers)
        ranked = sorted(found.items(), key=lambda item: -item[1])
        best, second = ranked[0], (ranked[1][1] if len(ranked) > 1 else 0)
        return Match(best[0] if best[1] >= MIN_INLIERS else -1, best[1], second)


def find_sources(
    copies: Sequence[str],
    read_copy: Callable[[int], Image],
    originals: Sequence[str],
    read_original: Callable[[int], Image],
    cache: CacheConfig,
) -> list[Match]:
    """Finds the original of every copy, or takes what an earlier run has found.

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
    text = json.dumps([registration.FORMAT, CANDIDATES, MIN_INLIERS, list(originals)])
    of_originals = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def begin() -> Callable[[int], kept.Found]:
        with ThreadPoolExecutor(cores.available()) as pool:
            grey = pool.map(lambda i: to_compare(read_original(i)), range(len(originals)))
            known = Originals(list(grey))

        def find(position: int) -> kept.Found:
            return {"match": np.array([astuple(known.match(read_copy(position)))])}

        return find

    identities = [f"{content} {of_originals}" for content in copies]
    found = kept.for_each("finding the originals", identities, begin, cache)
    return [Match(*map(int, each["match"][0])) for each in found]
