"""Stains: normalisation to a reference, and augmentation, in optical density.

Where light passes through stains, their optical densities add up (Beer and Lambert): each pixel is
a mixture of two stains' colours, by their concentrations.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from cellbench.data.views import Image

FORMAT = 2
"""Part of every cache file's name; raise it when the normalisation changes."""


@dataclass(frozen=True, eq=False)
class Stain:
    """Two stains that are used together, the one that absorbs more red first."""

    vectors: NDArray[np.float64]
    """Published optical densities in red, green and blue, (2, 3); the augmentation's."""
    reference: NDArray[np.float64]
    """Colours that images are normalised to, as optical densities, (2, 3)."""
    strengths: NDArray[np.float64]
    """99th percentile of each concentration that images are normalised to, (2,)."""


STAINS = {
    # Vectors: Ruifrok and Johnston, Anal Quant Cytol Histol 2001. Reference: the code published
    # with Macenko et al., ISBI 2009.
    "haematoxylin_eosin": Stain(
        vectors=np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]]),
        reference=np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]]),
        strengths=np.array([1.9705, 1.0308]),
    ),
    # Vectors: methylene blue and eosin in Landini's colour deconvolution for ImageJ. Reference:
    # the medians of what `estimate` finds in the 299 hpv cells.
    "giemsa": Stain(
        vectors=np.array([[0.834750, 0.513556, 0.196330], [0.092789, 0.954111, 0.283111]]),
        reference=np.array([[0.693, 0.698, 0.182], [0.230, 0.965, 0.127]]),
        strengths=np.array([1.47, 4.11]),
    ),
}
"""Stains by name; an entry is all that a new one needs."""

if TYPE_CHECKING:
    Normalisation = str
else:
    Normalisation = Literal["none", *STAINS]
"""Stain to normalise by, or none."""

STAINED = 0.15
"""Optical density below which a pixel is background."""

SAME_STAIN_COSINE = 0.996
"""Cosine between the colours of two stains (5 degrees) above which they count as one stain."""

MIN_PIXELS = 50
"""Number of stained pixels below which an image does not show its stain."""

_DENSITY = -np.log((np.arange(256) + 1) / 256)


def density_of(image: Image) -> NDArray[np.float64]:
    """Return the optical density against the image's own light, its 99th percentile: (H * W, 3).

    Slides are lit in different colours, which are not stains.
    """
    pixels = image.reshape(-1, 3).astype(np.float64)
    light = np.percentile(pixels, 99, axis=0)
    density: NDArray[np.float64] = np.log((light + 1) / (pixels + 1)).clip(0)
    return density


def estimate(image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Estimate an image's two stains after Macenko et al. (ISBI 2009).

    Args:
        image: RGB, uint8, (H, W, 3).

    Returns:
        Their colours as unit vectors of optical density, (2, 3), the bluer first, and the 99th
        percentiles of their concentrations, (2,); None if too little is stained, or by one stain
        alone.
    """
    density = density_of(image)
    stained = density[(density > STAINED).all(axis=1)]
    if len(stained) < MIN_PIXELS:
        return None
    _, axes = np.linalg.eigh(np.cov(stained.T))
    plane = axes[:, 1:]  # the two of most variance
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    angles = np.arctan2(*(stained @ plane).T)
    ends = np.percentile(angles, (1, 99))
    found = np.stack([np.sin(ends), np.cos(ends)], axis=1) @ plane.T
    # Of the two, haematoxylin and methylene blue absorb more red.
    vectors = found[np.argsort(-found[:, 0])].clip(0)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (norms > 0).all():
        return None
    vectors = vectors / norms
    if vectors[0] @ vectors[1] > SAME_STAIN_COSINE:
        return None
    most = np.percentile(stained @ np.linalg.pinv(vectors), 99, axis=0)
    return (vectors, most) if (most > 0).all() else None


def normalise(image: Image, stain: Normalisation) -> Image:
    """Change an image's two stains to the reference's colours and strengths.

    Args:
        image: RGB, uint8, (H, W, 3). Not changed.
        stain: The stain of the slide; none changes nothing.

    Returns:
        An image of the same shape; the given one if too little of it is stained.
    """
    found = None if stain == "none" else estimate(image)
    if found is None or stain == "none":
        return image
    vectors, most = found
    target = STAINS[stain]
    concentrations = density_of(image) @ np.linalg.pinv(vectors)
    return _image((concentrations * (target.strengths / most)) @ target.reference, image.shape)


def _image(density: NDArray[np.float64], shape: tuple[int, ...]) -> Image:
    values = 256 * np.exp(-density) - 1
    return values.round().clip(0, 255).astype(np.uint8).reshape(shape)


class StainJitter(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations has no types
    """Random scale and shift of each stain's concentration, and of the remainder.

    Tellez et al., Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference,
    IEEE Trans Med Imaging 37 (2018).

    Args:
        stain: Stain of the slides.
        scale: Concentrations are multiplied by a factor from 1 - scale to 1 + scale.
        shift: Largest amount that is then added or subtracted.
        p: Probability of changing an image.
    """

    def __init__(self, stain: str, scale: float = 0.2, shift: float = 0.05, p: float = 0.9):
        super().__init__(p=p)
        self.stain, self.scale, self.shift = stain, scale, shift
        first, second = (v / np.linalg.norm(v) for v in STAINS[stain].vectors)
        rest = np.cross(first, second)
        basis = np.stack([first, second, rest / np.linalg.norm(rest)])
        self._basis, self._inverse = basis, np.linalg.inv(basis)

    def get_params(self) -> dict[str, Any]:
        """Draw a factor and a shift for each stain and for the remainder."""
        draw = self.random_generator.uniform
        scales = draw(1 - self.scale, 1 + self.scale, 3)
        return {"scales": scales, "shifts": draw(-self.shift, self.shift, 3)}

    def apply(self, img: Image, scales: Any, shifts: Any, **params: Any) -> Image:
        """Apply the factors and shifts to an RGB image, uint8, (H, W, 3)."""
        # All of it is one affine map of the densities.
        matrix = (self._inverse * scales) @ self._basis
        density = cv2.transform(_DENSITY[img], matrix.T) + shifts @ self._basis
        return _image(density, img.shape)

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """Return the names of the arguments that distinguish two such transforms."""
        return ("stain", "scale", "shift")
