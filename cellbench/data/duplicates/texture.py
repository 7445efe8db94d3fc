"""Evidence in the texture of two registered images that one is a copy of the other.

The outlines of two smooth cells agree after an affine fit, whatever cells they are. The texture
between the outlines, down to the noise, agrees in copies alone.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from cellbench.data.duplicates.registration import overlap

FORMAT = 1
"""Part of every cached result's name; raise it when the measurement changes."""

_FINE, _COARSE = 1.5, 3.0  # the band of the texture: standard deviations in pixels
_AROUND = 3.0  # the neighbourhood in which strength and direction are measured, likewise
_FLOOR = 1.0  # grey levels; weaker texture counts for less
_FAINTEST = 0.25  # grey levels; texture below that is rounding
_STEEPEST = 0.14  # slope of an outline per pixel, in standard deviations of the image
_CLOSEST = 0.9  # a closer correlation counts as this, so that a few details are never enough
_ALIGNED = 0.5  # coherence of the gradients along an edge, 0 (no direction) to 1 (one direction)


@dataclass(frozen=True)
class _Texture:
    """Texture of an image; all are float32 and have the image's shape."""

    values: np.ndarray
    """Band-pass image, divided by its strength around."""
    power: np.ndarray
    """Mean square of the band-pass image around, in squared grey levels."""
    slope: np.ndarray
    """Mean square of the gradient around, relative to the image's variance."""

    def moved(self, transform: np.ndarray, size: tuple[int, int]) -> "_Texture":
        """Return the texture in the pixels of another image of size (width, height)."""
        return _Texture(
            *(
                cv2.warpAffine(each, transform, size, borderMode=cv2.BORDER_REPLICATE)
                for each in (self.values, self.power, self.slope)
            )
        )


def evidence(image: np.ndarray, other: np.ndarray, transform: np.ndarray) -> float:
    """Measure how far the textures of two images agree beyond chance, in standard deviations.

    The correlation of the textures, as Fisher's z (1915), times the square root of the number of
    independent details: for unrelated images about standard normal, for copies far greater.

    Args:
        image: Grey, as `to_compare` gives it.
        other: The same of the other image.
        transform: From the first image's pixels to the other's, (2, 3).
    """
    ours, theirs = _texture(image).moved(transform, other.shape[1::-1]), _texture(other)
    counted = overlap(image, other, transform) & _between_outlines(ours, theirs)
    details = min(_count(ours, counted), _count(theirs, counted))
    if details == 0:
        return 0.0
    correlation = np.corrcoef(ours.values[counted], theirs.values[counted])[0, 1]
    return math.atanh(np.clip(correlation, -_CLOSEST, _CLOSEST)) * math.sqrt(details)


def count_details(image: np.ndarray) -> float:
    """Return the number of independent details between the outlines of a grey image."""
    texture = _texture(image)
    inside = overlap(image, image, np.eye(2, 3))
    return _count(texture, inside & _between_outlines(texture, texture))


def _texture(grey: np.ndarray) -> _Texture:
    values = grey.astype(np.float32)
    smooth = cv2.GaussianBlur(values, (0, 0), _FINE)
    band = smooth - cv2.GaussianBlur(values, (0, 0), _COARSE)
    power = _around(band * band)
    across, down = _gradient(smooth)
    slope = _around(across * across + down * down) / max(float(values.var()), 1e-6)
    return _Texture(band / np.sqrt(power + _FLOOR**2), power, slope)


def _between_outlines(ours: _Texture, theirs: _Texture) -> np.ndarray:
    """Return the pixels that have texture in either image, and an outline in neither, boolean.

    An outline is steep, or all gradients around point one way (structure tensor, Foerstner and
    Guelch 1987), as on the flank of a soft edge.
    """
    gradients = [_gradient(each.values) for each in (ours, theirs)]
    xx, yy, xy = (_around(sum(a[i] * a[k] for a in gradients)) for i, k in ((0, 0), (1, 1), (0, 1)))
    aligned = (xx - yy) ** 2 + 4 * xy**2 >= (_ALIGNED * (xx + yy)) ** 2
    steep = np.maximum(ours.slope, theirs.slope) >= _STEEPEST**2
    faint = np.maximum(ours.power, theirs.power) <= _FAINTEST**2
    between: np.ndarray = ~(aligned | steep | faint)
    return between


def _count(texture: _Texture, counted: np.ndarray) -> float:
    """Return the number of independent details among some pixels.

    In a random texture of variance v and mean squared gradient g, a detail takes 2 pi v / g pixels
    (exact for a Gaussian autocorrelation).
    """
    values = texture.values[counted]
    variance = float(values.var()) if len(values) else 0.0
    if variance == 0:
        return 0.0
    across, down = _gradient(texture.values)
    return float((across**2 + down**2)[counted].sum()) / (2 * math.pi * variance)


def _gradient(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the change per pixel to the right and down (Sobel)."""
    across = cv2.Sobel(values, cv2.CV_32F, 1, 0, scale=1 / 8)
    return across, cv2.Sobel(values, cv2.CV_32F, 0, 1, scale=1 / 8)


def _around(values: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(values, (0, 0), _AROUND)
