"""Outline of one cell, along rays from its centre."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Chosen on the odd-numbered images of WBC Dataset 1 (Zheng 2018) and on variants of them with
# other stains, slides and red cells (tests/benchmarks/masks.py). Lengths are in radii of the
# cell's nucleus.
RAYS = 64
ROUNDS = 2  # each learns its colours from the outline that the one before found
REACH = 1.8  # largest distance of cytoplasm from the nucleus
NEAR, FAR = 0.15, 1.0  # before the first outline: less is cell, more is not
PRIOR, PRIOR_SLOPE = 1.2, 2.0  # log odds of cytoplasm at the nucleus, and their loss per radius

BINS = 20  # of each channel
BIN_BLUR = 0.8  # neighbouring bins that learn from a pixel
UNSEEN = 2.4  # pixels, in a bin that holds none: colours seen nowhere prove nothing
EVIDENCE = 2.5  # largest log odds from one pixel's colour

EDGE_WEIGHT, EDGE_LIMIT, EDGE_WIDTH = 0.12, 1.5, 2
OFF_NUCLEUS = 0.03  # edges nearer than this to the nucleus are its own
CONTRAST_DEPTH = 0.2  # to each side of the outline
BENDING, STEP = 0.05, 2  # cost and limit of a change of radius between neighbouring rays
FINE_BENDING, FINE_STEP = 0.01, 3
RIM = 0.3  # depth to which the outline is corrected
RIM_LEVEL, NUCLEUS_LEVEL = 0.5, 0.35
"""Absorption at the outline, as a share of the cytoplasm's, and its limit, as a share of the
nucleus's: around a bare nucleus there is only its own blurred edge."""
CORE, GAP = 0.2, 0.05  # cytoplasm is measured this far inside the outline, off the nucleus

Region = NDArray[np.bool_]
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Colours:
    """Colours of an image's pixels, on a scale that separates pale stains from the empty slide."""

    stain: Values
    """Density of each channel in units of the slide's noise, compressed, (H, W, 3)."""
    bin: NDArray[np.int64]
    """Bin of each pixel's colour, 0 to BINS**3 - 1, (H, W)."""
    absorbed: Values
    """Largest share of light that is absorbed in a channel, (H, W)."""

    @classmethod
    def of(cls, light: Values, noise: Values) -> "Colours":
        """Return the colours of transmitted light.

        Args:
            light: Transmitted light as a share of the empty slide's, above 0, (H, W, 3).
            noise: Standard deviation of the empty slide's density in each channel, (3,).
        """
        stain = np.arcsinh(-np.log(light) / (2 * noise)).astype(np.float32)
        lowest = -0.7
        highest = np.maximum(stain.max(axis=(0, 1)), 1)
        scaled = (stain - lowest) / (highest - lowest) * BINS
        bins = np.clip(scaled, 0, BINS - 1).astype(np.int64)
        absorbed = 1 - np.minimum(light, 1).min(axis=2)
        return cls(stain, (bins[..., 0] * BINS + bins[..., 1]) * BINS + bins[..., 2], absorbed)

    def cut(self, box: tuple[slice, slice]) -> "Colours":
        """Return the colours of a part of the image."""
        return Colours(self.stain[box], self.bin[box], self.absorbed[box])

    def odds(self, inside: Region, outside: Region) -> Values:
        """Return each pixel's log odds of being inside, by its colour alone, (H, W)."""
        density = []
        for region in (inside, outside):
            count = np.bincount(self.bin[region], minlength=BINS**3).astype(np.float32)
            blurred = ndimage.gaussian_filter(count.reshape(BINS, BINS, BINS), BIN_BLUR, truncate=3)
            density.append(blurred.ravel() / max(region.sum(), 1) + UNSEEN / BINS**3)
        odds = np.log(density[0] / density[1])
        return np.asarray(np.clip(odds, -EVIDENCE, EVIDENCE)[self.bin], np.float32)


class _Rays:
    """Samples of an image along rays from a centre, one pixel apart, (RAYS, length)."""

    def __init__(self, centre: tuple[float, float], length: int) -> None:
        self._centre = centre
        angles = np.arange(RAYS) * 2 * np.pi / RAYS
        self._direction = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self.radii = np.arange(length, dtype=np.float32)
        places = np.asarray(centre)[:, None, None] + self._direction.T[..., None] * self.radii
        self._x, self._y = places.astype(np.float32)

    def sample(self, image: Values, beyond: float | None = None) -> Values:
        """Return the image along the rays; outside the image, `beyond` or the nearest pixel."""
        border = cv2.BORDER_REPLICATE if beyond is None else cv2.BORDER_CONSTANT
        sampled = cv2.remap(
            image, self._x, self._y, cv2.INTER_LINEAR, borderMode=border, borderValue=beyond or 0
        )
        return np.asarray(sampled, np.float32)

    def fill(self, path: NDArray[np.int64], shape: tuple[int, ...]) -> Region:
        """Return the region inside an outline that passes each ray at a radius, (RAYS,)."""
        corners = np.asarray(self._centre) + self._direction * (path[:, None] + 0.5)
        region = np.zeros(shape, np.uint8)
        cv2.fillPoly(region, [np.round(corners * 16).astype(np.int32)], 1, shift=4)
        return region > 0


def outline(
    colours: Colours, nucleus: Region, others: Region, slide: Region
) -> tuple[Region, float]:
    """Find the cell around a nucleus: the closed outline that best separates two colourings.

    The colours of the cell and those of its surroundings (slide, red cells) are learnt from the
    image itself. An outline gains by pixels of the cell inside it and by running along edges, and
    loses by bending; dynamic programming finds the best one.

    Args:
        colours: The image's colours.
        nucleus: Pixels that certainly are this cell's nucleus, at least one, (H, W).
        others: Nuclei of other cells, (H, W).
        slide: Pixels that show the slide, and not a black frame, (H, W).

    Returns:
        The cell, (H, W), and how well colour alone separates its rim from what lies around it: the
        mean difference of probability, -1 to 1.
    """
    radius = float(np.sqrt(nucleus.sum() / np.pi))
    hull = convex_hull(nucleus)
    away = distance(~hull) / radius
    own = slide & (distance(~nucleus) <= distance(~others)) if others.any() else slide
    around = slide & ~others
    outside = around & (away > FAR)
    if outside.sum() < 0.1 * outside.size:
        outside = around & (away >= np.percentile(away[around], 85))
    inside = own & (away < NEAR)
    prior = np.clip(PRIOR - PRIOR_SLOPE * away, -2, PRIOR)
    y, x = np.nonzero(hull)
    centre = float(x.mean()), float(y.mean())
    for _ in range(ROUNDS):
        odds = colours.odds(inside, outside)
        cell = np.tanh((odds + prior) / 2)
        cell[hull] = 1
        cell[~own] = -1
        length = radius * REACH + np.hypot(x - centre[0], y - centre[1]).max() + 2
        rays = _Rays(centre, int(min(length, max(hull.shape))))
        gain = np.cumsum(rays.sample(cell, 0.0) * (rays.radii + 0.5) / radius, axis=1)
        edges = _edges(rays.sample(colours.stain)) * (rays.sample(away) > OFF_NUCLEUS)
        path = best_path(gain + EDGE_WEIGHT * radius * edges, BENDING * radius, STEP)
        region = rays.fill(path, hull.shape)
        inside, outside = region & own, around & ~region
        centre = _centre(inside, centre)
    path = best_path(
        _rim_gain(colours, nucleus, region, rays, path), FINE_BENDING * radius, FINE_STEP
    )
    contrast = _contrast(rays.sample(np.tanh(odds / 2)), path, CONTRAST_DEPTH * radius)
    return rays.fill(path, hull.shape) & own, contrast


def best_path(gain: Values, bending: float, step: int) -> NDArray[np.int64]:
    """Return the radius on each ray that gains most in all, as a closed outline.

    Args:
        gain: Gain of each radius on each ray, (rays, radii).
        bending: Loss for the squared change of radius between neighbouring rays.
        step: Largest such change.
    """
    rays, radii = gain.shape
    shifts = np.arange(-step, step + 1)
    padded = np.full(radii + 2 * step, -np.inf, np.float32)
    reachable = np.lib.stride_tricks.sliding_window_view(padded, radii)
    loss = (bending * shifts**2)[:, None].astype(np.float32)
    # Going round twice closes the outline: in the middle, its two ends are forgotten.
    came_from = np.empty((2 * rays, radii), np.int64)
    padded[step:-step] = gain[0]
    for k in range(1, 2 * rays):
        totals = reachable - loss
        came_from[k] = totals.argmax(axis=0)
        padded[step:-step] = totals.max(axis=0) + gain[k % rays]
    path = np.empty(2 * rays, np.int64)
    path[-1] = padded[step:-step].argmax()
    for k in range(2 * rays - 1, 0, -1):
        path[k - 1] = path[k] + came_from[k, path[k]] - step
    middle = rays // 2
    return np.roll(path[middle : middle + rays], middle)


def convex_hull(region: Region) -> Region:
    """Return the convex hull of a region that is not empty."""
    points = np.argwhere(region)[:, ::-1].astype(np.int32)
    hull = np.zeros(region.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    return hull > 0


def distance(region: Region) -> Values:
    """Return the distance of each pixel of a region from its outside, in pixels."""
    return np.asarray(
        cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5), np.float32
    )


def _edges(stain: Values) -> Values:
    """Return the change of colour along each ray, limited, (rays, radii)."""
    edges = np.zeros(stain.shape[:2], np.float32)
    change = stain[:, : -2 * EDGE_WIDTH] - stain[:, 2 * EDGE_WIDTH :]
    edges[:, EDGE_WIDTH:-EDGE_WIDTH] = np.linalg.norm(change, axis=2)
    return np.minimum(edges, EDGE_LIMIT)


def _centre(region: Region, otherwise: tuple[float, float]) -> tuple[float, float]:
    """Return the centroid (x, y) of a region, if it lies inside."""
    y, x = np.nonzero(region)
    if len(y) == 0 or not region[int(y.mean()), int(x.mean())]:
        return otherwise
    return float(x.mean()), float(y.mean())


def _rim_gain(
    colours: Colours, nucleus: Region, region: Region, rays: _Rays, path: NDArray[np.int64]
) -> Values:
    """Return the gain of each radius by absorption, which places the outline within its rim."""
    radius = np.sqrt(nucleus.sum() / np.pi)
    absorbed = colours.absorbed
    level = float(NUCLEUS_LEVEL * np.median(absorbed[nucleus]))
    core = region & (distance(region) > CORE * radius) & (distance(~nucleus) > GAP * radius)
    if core.sum() > 20:
        level = min(level, float(RIM_LEVEL * np.median(absorbed[core])))
    level = max(level, 0.01)
    stained = np.clip(rays.sample(absorbed) / level - 1, -1, 1)
    beyond = rays.radii - path[:, None]
    stained[beyond < -RIM * radius] = 1
    stained[beyond > 0] = -1
    return np.asarray(np.cumsum(stained * (rays.radii + 0.5) / radius, axis=1), np.float32)


def _contrast(probability: Values, path: NDArray[np.int64], depth: float) -> float:
    """Return the mean step of -1 to 1 values across an outline, halved."""
    beyond = np.arange(probability.shape[1]) - path[:, None]
    inner, outer = (beyond >= -depth) & (beyond <= 0), (beyond > 0) & (beyond <= depth)
    if not outer.any():
        return 0.0
    return float(probability[inner].mean() - probability[outer].mean()) / 2
