"""Which original an augmented image comes from, found in the pixels."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from threading import local

import cv2
import numpy as np

from cellbench import cores
from cellbench.atomic import replacing
from cellbench.bar import bar
from cellbench.data import files
from cellbench.data.cache import CacheConfig
from cellbench.data.table import Sample
from cellbench.data.views import Image

FORMAT = 1
"""Part of every answer's name: raise it when copies are recognised otherwise."""

FEATURES = 400
SIDE = 320
"""Images are compared with this many pixels along their longer side."""
CANDIDATES = 2
"""So many originals with the most votes are fitted; where none fits, all of the rest are."""
MIN_INLIERS = 20
"""A fit with fewer is none: the second best original of a real copy has 6 in the median."""
RATIO, REPROJECTION = 0.8, 3.0  # Lowe's test; the fit's tolerance in pixels

# Descriptors are looked up by some of their bits, in several tables. Few of a copy's differ from
# its original's, and by chance 22 bits are rarely equal.
_TABLES, _BITS, _CROWDED = 12, 22, 64


@dataclass(frozen=True)
class Keypoints:
    """What is compared of an image.

    Attributes:
        places: x and y in pixels, float32, (k, 2).
        descriptors: ORB's 256 bits, uint8, (k, 32).
    """

    places: np.ndarray
    descriptors: np.ndarray


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


_own = local()


def find_keypoints(image: Image) -> Keypoints:
    """ORB keypoints of an image (Rublee et al. 2011)."""
    if not hasattr(_own, "orb"):  # a detector is not to be shared by threads
        _own.orb = cv2.ORB.create(nfeatures=FEATURES, fastThreshold=7)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = SIDE / max(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    points, descriptors = _own.orb.detectAndCompute(grey, None)
    if descriptors is None:
        return Keypoints(np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8))
    return Keypoints(np.array([p.pt for p in points], np.float32), descriptors)


def fit(image: Keypoints, other: Keypoints) -> int:
    """How many keypoints of two images agree with one affine transform (RANSAC)."""
    if min(len(image.places), len(other.places)) < 2:
        return 0
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(image.descriptors, other.descriptors, k=2)
    good = [(a.queryIdx, a.trainIdx) for a, b in pairs if a.distance < RATIO * b.distance]
    if len(good) < 6:
        return 0
    ours, theirs = np.array(good).T
    _, inliers = cv2.estimateAffine2D(
        image.places[ours],
        other.places[theirs],
        method=cv2.RANSAC,
        ransacReprojThreshold=REPROJECTION,
    )
    return 0 if inliers is None else int(inliers.sum())


class Originals:
    """Originals to be recognised in their augmented copies.

    Copies may be turned, shifted, sheared, scaled a little and mirrored; recoloured as far as their
    corners stay.

    Args:
        images: The originals.
    """

    def __init__(self, images: Sequence[Image]) -> None:
        # ORB bears turns and not mirrors.
        both = [view for image in images for view in (image, np.ascontiguousarray(image[:, ::-1]))]
        self._keypoints = [find_keypoints(image) for image in both]
        counts = [len(each.places) for each in self._keypoints]
        owners = np.repeat(np.arange(len(both)), counts)
        bits = np.unpackbits(np.concatenate([k.descriptors for k in self._keypoints]), axis=1)
        chance = np.random.default_rng(0)
        self._tables = []
        for _ in range(_TABLES):
            chosen = chance.choice(bits.shape[1], _BITS, replace=False)
            keys = _key(bits, chosen)
            order = np.argsort(keys, kind="stable")
            self._tables.append((chosen, keys[order], owners[order]))

    def match(self, image: Image) -> Match:
        """Finds the original of a copy."""
        keypoints = find_keypoints(image)
        order = np.argsort(-self._votes(keypoints.descriptors), kind="stable")
        found: dict[int, int] = {}
        for rank, candidate in enumerate(order):
            if rank >= CANDIDATES and max(found.values()) >= MIN_INLIERS:
                break
            inliers = fit(keypoints, self._keypoints[candidate])
            original = int(candidate) // 2
            found[original] = max(found.get(original, 0), inliers)
        ranked = sorted(found.items(), key=lambda item: -item[1])
        best, second = ranked[0], (ranked[1][1] if len(ranked) > 1 else 0)
        return Match(best[0] if best[1] >= MIN_INLIERS else -1, best[1], second)

    def _votes(self, descriptors: np.ndarray) -> np.ndarray:
        """How often a descriptor of each original is found, mirrored ones apart."""
        bits = np.unpackbits(descriptors, axis=1)
        votes = np.zeros(len(self._keypoints))
        for chosen, keys, owners in self._tables:
            own = _key(bits, chosen)
            first = np.searchsorted(keys, own)
            count = np.searchsorted(keys, own, side="right") - first
            useful = (count > 0) & (count <= _CROWDED)
            first, count = first[useful], count[useful]
            offsets = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            hits = owners[np.repeat(first, count) + offsets]
            votes += np.bincount(hits, minlength=len(votes))
        return votes


def _key(bits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    key: np.ndarray = bits[:, chosen] @ (1 << np.arange(len(chosen), dtype=np.int64))
    return key


def find_sources(
    copies: Sequence[Sample], originals: Sequence[Sample], cache: CacheConfig
) -> list[Match]:
    """Finds the original of every copy, or takes what an earlier run has found.

    Args:
        copies: The copies, with their files.
        originals: The originals, with theirs.
        cache: Where the answer is kept, under a name made of the files' contents.

    Returns:
        A match for each copy, in their order.

    Raises:
        UserError: An image cannot be read, or the answer cannot be kept.
    """
    with ThreadPoolExecutor() as pool:
        ours, theirs = (list(pool.map(_content, each)) for each in (copies, originals))
    identity = json.dumps([FORMAT, cv2.__version__, ours, theirs])
    digest = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    path = cache.path / f"{digest}.sources.json"
    if path.is_file():
        return [Match(*values) for values in json.loads(path.read_text(encoding="utf-8"))]
    found = recover([_path(sample) for sample in copies], [_path(sample) for sample in originals])
    with (
        cache.writing(64 * len(found), "make room there"),
        replacing(path) as new,
    ):
        new.write_text(json.dumps([astuple(match) for match in found]), encoding="utf-8")
    return found


def recover(copies: Sequence[Path], originals: Sequence[Path]) -> list[Match]:
    """Finds the original of every copy, in threads."""
    with ThreadPoolExecutor(cores.available()) as pool, _one_thread_each():
        known = Originals(list(pool.map(files.read_image, originals)))
        found = pool.map(lambda path: known.match(files.read_image(path)), copies)
        return list(bar(found, "finding the originals", len(copies)))


def _path(sample: Sample) -> Path:
    assert sample.image is not None
    return sample.image


def _content(sample: Sample) -> str:
    return files.fingerprint(_path(sample))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """OpenCV's own threads would only be in the way of ours."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
