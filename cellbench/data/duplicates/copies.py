"""Search for images that show the same thing: copies, near copies, augmented copies."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from cellbench.data import result_cache
from cellbench.data.cache import CacheConfig
from cellbench.data.duplicates import registration, texture
from cellbench.data.duplicates.registration import (
    Index,
    Keypoints,
    agreement,
    find_keypoints,
    fit,
    mirror,
    to_compare,
)
from cellbench.data.views import Image

MAX_KEYPOINTS = 128
"""Number of keypoints of every image that are looked up in the others."""
MAX_CANDIDATES = 8
"""Number of images, those with the most votes, that are fitted to each image."""
MIN_INLIERS, MIN_AGREEMENT = 12, 0.7
"""Real images that show one field have 16 inliers, and .89 (hpv) or in 79 of 80 pairs .75 (blood
cells) at least. Two cells of smooth outlines may reach 63 and .99 without being copies."""
MIN_EVIDENCE = 8.0
"""Least evidence of a copy in the texture, in standard deviations. The same real images have 8.7
(hpv) and 8.9 (blood cells) at least; of 5,826 pairs of drawn cells that fit and agree without
being copies, one has 8.4, and none of the others more than 7.7."""
MIN_DETAILS, MIN_KEYPOINTS = 30, 36
"""An image with less than either is too plain for its near copies to be recognised. If a copy's
texture correlates by .9, 30 details reach the least evidence; and about a third of the keypoints
are found again in an augmented copy (blood cells: 44 of 200 in one of ten)."""


@dataclass(frozen=True)
class Copy:
    """Two images that show the same thing."""

    first: int
    """Position of one image."""
    second: int
    """Position of the other."""
    inliers: int
    """Number of keypoints that agree with one affine transform."""
    agreement: float
    """Correlation of their details after registration, at most 1."""
    evidence: float
    """Agreement of their texture between the outlines beyond chance, in standard deviations."""


def find_copies(
    contents: Sequence[str], read: Callable[[int], Image], cache: CacheConfig
) -> list[Copy]:
    """Find near copies among images of different content.

    Local features propose pairs (rotated, shifted, sheared and mirrored copies too), and
    registration confirms them: in the overlap the details must agree, and between the outlines the
    texture, so that cells which only look alike are not copies. An interrupted search resumes,
    except for the confirmations, which depend on one another.

    Args:
        contents: A digest of each image's content; only the first of equal ones is compared.
        read: Reads the image at a position.
        cache: Cache of the result.

    Returns:
        Pairs that join all images of the same thing, without a cycle: 99 for 100 copies.

    Raises:
        UserError: An image cannot be read, or the answer cannot be kept.
    """
    first: dict[str, int] = {}
    for position, content in enumerate(contents):
        first.setdefault(content, position)
    distinct = sorted(first)  # so that the answer does not depend on the images' order
    positions = [first[content] for content in distinct]
    text = json.dumps([registration.FORMAT, MAX_KEYPOINTS, MAX_CANDIDATES, MIN_INLIERS, distinct])
    of_all = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def read_grey(i: int) -> np.ndarray:
        return to_compare(read(positions[i]))

    def begin() -> Callable[[int], result_cache.Found]:
        return _candidates(_keypoints(distinct, read_grey, cache), read_grey)

    identities = [f"{content} {of_all}" for content in distinct]
    found = result_cache.for_each("proposing copies", identities, begin, cache)
    proposed = [(i, *row) for i, each in enumerate(found) for row in each["candidates"]]
    proposed.sort(key=lambda row: (-row[3], row[0], row[1]))

    def confirm(_: int) -> result_cache.Found:
        rows = list(_confirm(len(distinct), proposed, read_grey))
        return {"copies": np.array(rows, np.float64).reshape(-1, 5)}

    identity = f"{MIN_AGREEMENT} {texture.FORMAT} {MIN_EVIDENCE} {of_all}"
    confirmed = result_cache.for_each("confirming copies", [identity], lambda: confirm, cache)
    return [
        Copy(positions[int(a)], positions[int(b)], int(inliers), float(agrees), float(proof))
        for a, b, inliers, agrees, proof in confirmed[0]["copies"]
    ]


def _keypoints(
    contents: Sequence[str], read_grey: Callable[[int], np.ndarray], cache: CacheConfig
) -> list[Keypoints]:
    def find(i: int) -> result_cache.Found:
        keypoints = find_keypoints(read_grey(i))
        return {"places": keypoints.places, "descriptors": keypoints.descriptors}

    identities = [f"{registration.FORMAT} {content}" for content in contents]
    found = result_cache.for_each("finding keypoints", identities, lambda: find, cache)
    return [Keypoints(each["places"], each["descriptors"]) for each in found]


def _candidates(
    known: Sequence[Keypoints], read_grey: Callable[[int], np.ndarray]
) -> Callable[[int], result_cache.Found]:
    """Return a function that finds the images that fit one.

    It gives rows of position, mirrored, inliers and transform.
    """
    index = Index([keypoints.descriptors[:MAX_KEYPOINTS] for keypoints in known])

    def find(i: int) -> result_cache.Found:
        views = (known[i], find_keypoints(mirror(read_grey(i))))
        votes = np.stack([index.votes(view.descriptors) for view in views])
        votes[:, i] = 0
        rows = []
        some = np.flatnonzero(votes)
        best = some[np.argsort(-votes.ravel()[some], kind="stable")[:MAX_CANDIDATES]]
        for mirrored, other in (divmod(int(each), len(known)) for each in best):
            fitted = fit(views[mirrored], known[other])
            if fitted.inliers >= MIN_INLIERS and fitted.transform is not None:
                rows.append([other, mirrored, fitted.inliers, *fitted.transform.flatten()])
        return {"candidates": np.array(rows, np.float64).reshape(-1, 9)}

    return find


def _confirm(
    n: int, proposed: Sequence[tuple[float, ...]], read_grey: Callable[[int], np.ndarray]
) -> Iterator[tuple[float, float, float, float, float]]:
    """Confirm proposed pairs, the best fit first, and skip those that are joined already."""
    joined = DisjointSet(range(n))
    for i, other, mirrored, inliers, *transform in proposed:
        if joined.connected(int(i), int(other)):
            continue
        ours, theirs = read_grey(int(i)), read_grey(int(other))
        if mirrored:
            ours = mirror(ours)
        position = np.array(transform).reshape(2, 3)
        agrees = agreement(ours, theirs, position)
        if agrees < MIN_AGREEMENT:
            continue
        proof = texture.evidence(ours, theirs, position)
        if proof >= MIN_EVIDENCE:
            joined.merge(int(i), int(other))
            yield i, other, inliers, agrees, proof


def is_plain(image: Image) -> bool:
    """Return True if an image has too little texture for its near copies to be recognised."""
    grey = to_compare(image)
    few = len(find_keypoints(grey).places) < MIN_KEYPOINTS
    return few or texture.count_details(grey) < MIN_DETAILS
