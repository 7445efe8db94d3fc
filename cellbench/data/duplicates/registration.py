"""Test of two images for the same content: local features, an affine fit, and agreement."""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import local

import cv2
import numpy as np

from cellbench.data.image_format import to_grey
from cellbench.data.views import Image

FORMAT = 5
"""Part of every cached result's name; raise it when the comparison changes."""

FEATURES = 200
LONGEST, SHORTEST = 320, 128
"""Largest and smallest number of pixels along the longer side of compared images."""
RATIO, REPROJECTION = 0.8, 3.0  # Lowe's test (2004); the fit's tolerance in pixels

_MARGIN = 15  # pixels at the border that have no keypoints
# Descriptors are looked up by some of their bits, in several tables. Few of a copy's differ from
# its original's, and by chance 22 bits are rarely equal.
_TABLES, _BITS = 12, 22
_CROWDED = 64  # entries of a table's cell that are looked at: some corners occur in all images


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of an image, the strongest first."""

    places: np.ndarray
    """x and y in pixels of `to_compare`, float32, (k, 2)."""
    descriptors: np.ndarray
    """ORB's 256 bits, uint8, (k, 32)."""


@dataclass(frozen=True)
class Fit:
    """Position of one image in another."""

    inliers: int
    """Number of keypoints that agree with one affine transform."""
    transform: np.ndarray | None
    """That transform, (2, 3), from pixels of the first image to the second; None for none."""


_own = local()


def to_compare(image: Image) -> np.ndarray:
    """Return an image in grey, uint8, at the size at which images are compared."""
    grey = to_grey(image)
    longer = max(grey.shape)
    scale = min(max(longer, SHORTEST), LONGEST) / longer
    if scale == 1:
        return grey
    height, width = (max(1, round(side * scale)) for side in grey.shape)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(grey, (width, height), interpolation=interpolation)


def find_keypoints(grey: np.ndarray) -> Keypoints:
    """ORB keypoints (Rublee et al. 2011) of what `to_compare` gives."""
    if min(grey.shape) <= 2 * _MARGIN:
        return Keypoints(np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8))
    if not hasattr(_own, "orb"):  # a detector is not to be shared by threads
        # ORB's own margin of 31 pixels would leave nothing of a cell at the border.
        _own.orb = cv2.ORB.create(nfeatures=FEATURES, fastThreshold=7, edgeThreshold=_MARGIN)
    points, descriptors = _own.orb.detectAndCompute(grey, None)
    if descriptors is None:
        return Keypoints(np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8))
    order = np.argsort([-point.response for point in points], kind="stable")
    return Keypoints(np.array([p.pt for p in points], np.float32)[order], descriptors[order])


def mirror(grey: np.ndarray) -> np.ndarray:
    """Return the mirror image: ORB is invariant to rotation but not to mirroring."""
    return np.ascontiguousarray(grey[:, ::-1])


def fit(image: Keypoints, other: Keypoints) -> Fit:
    """Fit the affine transform that most keypoints of two images agree with (RANSAC)."""
    if min(len(image.places), len(other.places)) < 2:
        return Fit(0, None)
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(image.descriptors, other.descriptors, k=2)
    good = [(a.queryIdx, a.trainIdx) for a, b in pairs if a.distance < RATIO * b.distance]
    if len(good) < 6:
        return Fit(0, None)
    ours, theirs = np.array(good).T
    transform, inliers = cv2.estimateAffine2D(
        image.places[ours],
        other.places[theirs],
        method=cv2.RANSAC,
        ransacReprojThreshold=REPROJECTION,
    )
    return Fit(0, None) if transform is None else Fit(int(inliers.sum()), transform)


def agreement(image: np.ndarray, other: np.ndarray, transform: np.ndarray) -> float:
    """Return the correlation of two images' details in their overlap, -1 to 1.

    Args:
        image: Grey, as `to_compare` gives it.
        other: The same of the other image. Black (8 or less of 255) counts for nothing.
        transform: From the first image's pixels to the other's, (2, 3).
    """
    size = other.shape[1::-1]
    # What is black is most often the filling of a turned image's corners, which no other has.
    shown = cv2.warpAffine((image > 8).astype(np.uint8), transform, size)
    shown[other <= 8] = 0
    inside = cv2.erode(shown, np.ones((15, 15)), borderValue=0).astype(bool)
    if inside.mean() < 0.1:
        return 0.0
    moved = cv2.warpAffine(_details(image), transform, size, borderMode=cv2.BORDER_REPLICATE)
    ours, theirs = moved[inside], _details(other)[inside]
    if min(ours.std(), theirs.std()) == 0:
        return 0.0
    return float(np.corrcoef(ours, theirs)[0, 1])


def _details(grey: np.ndarray) -> np.ndarray:
    """Return the band-pass image (difference of Gaussians), contrast-normalised, float32.

    Relative to its own strength around: else two nuclei of one shape would outweigh all that
    differs about them.
    """
    values = grey.astype(np.float32)
    details = cv2.GaussianBlur(values, (0, 0), 1.5) - cv2.GaussianBlur(values, (0, 0), 5)
    relative: np.ndarray = details / np.sqrt(cv2.GaussianBlur(details**2, (0, 0), 8) + 1)
    return relative


class Index:
    """Index for images with descriptors similar to another's.

    Args:
        descriptors: ORB's descriptors of each image, uint8, (k, 32).
    """

    def __init__(self, descriptors: Sequence[np.ndarray]) -> None:
        self._n = len(descriptors)
        owners = np.repeat(np.arange(self._n, dtype=np.int32), [len(each) for each in descriptors])
        together = np.concatenate([*descriptors, np.zeros((0, 32), np.uint8)])
        chance = np.random.default_rng(0)
        self._tables = []
        for _ in range(_TABLES):
            chosen = chance.choice(256, _BITS, replace=False)
            keys = _key(together, chosen)
            order = np.argsort(keys, kind="stable")
            self._tables.append((chosen, keys[order], owners[order]))

    def votes(self, descriptors: np.ndarray) -> np.ndarray:
        """Count the entries of each image in the tables that match one of the descriptors, (n,)."""
        found = []
        for chosen, keys, owners in self._tables:
            own = _key(descriptors, chosen)
            first = np.searchsorted(keys, own)
            count = np.minimum(np.searchsorted(keys, own, side="right") - first, _CROWDED)
            offsets = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            found.append(owners[np.repeat(first, count) + offsets])
        return np.bincount(np.concatenate(found), minlength=self._n)


def _key(descriptors: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return chosen bits of each descriptor, (k, 32), as one number, int32, (k,)."""
    key = np.zeros(len(descriptors), np.int32)
    for place, bit in enumerate(chosen):
        key |= ((descriptors[:, bit >> 3] >> (bit & 7)) & 1).astype(np.int32) << place
    return key
