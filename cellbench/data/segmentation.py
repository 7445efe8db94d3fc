"""Masks of white blood cells found in the pixels alone, where no expert has drawn any."""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS, Image, Mask
from cellbench.utils.errors import UserError

FORMAT = 1
"""Part of the name of what is kept of masks: raise it when cells are found otherwise."""

# Chosen on the odd-numbered images of WBC Dataset 1 (Zheng 2018). Lengths are in radii of the
# largest nucleus: an image's scale does not matter.
SEARCH_SIDE = 320  # nuclei are first looked for with this many pixels along the longer side
WORKING_RADIUS = 35  # larger nuclei are shrunk to so many pixels: experts draw no finer outlines
BLUR = 0.02  # evens out the camera's noise, but no outline

PADDING = 20  # darker in all channels is no slide: the black corners of a rotated image
MIN_PURPLE, PURPLE_SHARE, PURPLE_PERCENTILE = 0.3, 0.45, 99.5
"""A nucleus has this share of what the image's most purple pixels have, and no less than the
first: red cells have 0.1, the palest nuclei 0.35."""
MIN_NUCLEUS = 0.002  # of the image's area; less is a platelet
MIN_LOBE, LOBE_DISTANCE = 0.07, 0.4  # a lobe's least share of the nucleus' area; half a gap

RING = (0.05, 0.4)  # how far from a nucleus its cytoplasm is looked for
STAINED = 0.2  # of the nuclei's absorption: certainly no background
EDGE, MAX_EDGE = 0.4, 0.25
"""A cell's outline runs where absorption has this share of the cytoplasm's, but no more than the
second of the nuclei's: what is found around a bare nucleus is its own blurred edge."""
REACH = 2.0  # cytoplasm is no farther from a nucleus
OPENING = 0.63  # of a cell's inscribed circle: what hangs on by a narrower neck is something else
MIN_CELL, MIN_CUT_CELL = 0.2, 0.5
"""Each cell has this share of the largest cell's nucleus; the second where the image's edge cuts
it, so that a cut-out shows its own cell and not the corner of the next."""
NUCLEUS_OPENING = 0.12  # thinner than a lobe's bridge; granules and a cell's dark rim are thinner

NO_CELL = "no white cell's nucleus is in the image"

_Light = NDArray[np.float32]
_Region = NDArray[np.bool_]
_Labels = NDArray[np.int32]


def segment(image: Image) -> Mask:
    """Segment the white cells of a Romanowsky-stained smear (Giemsa, Wright) and their nuclei.

    What is purple is nucleus; what is stained around it, but not as the red cells farther off,
    is cytoplasm; an opening parts the cell from all that touches it; within the cell, Otsu's
    threshold then draws the nucleus.

    Args:
        image: RGB, uint8, (H, W, 3): a cut-out of one cell, or a field with many.

    Returns:
        BACKGROUND, CYTOPLASM and NUCLEUS, uint8, (H, W).

    Raises:
        UserError: No nucleus is in the image.
    """
    scale = min(1.0, SEARCH_SIDE / max(image.shape))
    radius = _nucleus_radius(_purple_regions(_transmittance(_shrink(image, scale), 1.0))) / scale
    scale = min(1.0, WORKING_RADIUS / radius)
    radius *= scale
    light = _transmittance(_shrink(image, scale), BLUR * radius)
    seeds = _without_small(_purple_regions(light), MIN_LOBE * np.pi * radius**2)
    if not seeds.any():
        raise UserError(NO_CELL)
    cells = _choose(_part(_foreground(light, seeds, radius), seeds, round(radius)), seeds)
    mask = np.full(image.shape[:2], BACKGROUND, np.uint8)
    for region, value in ((cells > 0, CYTOPLASM), (_nuclei(light, cells, radius), NUCLEUS)):
        mask[cv2.resize(region.astype(np.float32), image.shape[1::-1]) > 0.5] = value
    return mask


def _shrink(image: Image, scale: float) -> Image:
    size = (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0])))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _transmittance(image: Image, sigma: float) -> _Light:
    """Return the transmitted light of each channel, as a share of the empty slide's, (H, W, 3)."""
    slide = cv2.erode(image.max(2), np.ones((5, 5), np.uint8)) > PADDING
    if not slide.any():
        raise UserError(NO_CELL)
    blurred = cv2.GaussianBlur(image, (0, 0), sigma)
    green = blurred[..., 1]  # which every stain absorbs, and haemoglobin too
    level, _ = cv2.threshold(green[slide][None], 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    empty = np.maximum(np.median(blurred[slide & (green >= level)], axis=0), 1)
    light = np.asarray(np.clip(blurred / empty, 0.01, 1), np.float32)
    light[~slide] = 1
    return light


def _purple(light: _Light) -> _Light:
    """Return the excess of absorbed green over absorbed blue, 0 to 1.

    Azure and eosin on DNA absorb at 552 nm (the Romanowsky effect; Friedrich et al. 1990,
    Histochemistry 93:247); haemoglobin absorbs blue as well.
    """
    return np.asarray(np.clip(1 - light[..., 1] / light[..., 2], 0, 1), np.float32)


def _purple_regions(light: _Light) -> _Region:
    purple = _purple(light)
    most = float(np.percentile(purple, PURPLE_PERCENTILE))
    return _open(purple > max(MIN_PURPLE, PURPLE_SHARE * most), 1)


def _nucleus_radius(regions: _Region) -> float:
    """Return the radius in pixels of a circle as large as the largest nucleus, all its lobes."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(regions.astype(np.uint8), connectivity=4)
    area = stats[1:, cv2.CC_STAT_AREA].max(initial=0)
    if area < MIN_NUCLEUS * regions.size:
        raise UserError(NO_CELL)
    near = _distance(~regions) < LOBE_DISTANCE * np.sqrt(area / np.pi)
    _, groups = cv2.connectedComponents(near.astype(np.uint8))
    return float(np.sqrt(np.bincount(groups[regions]).max() / np.pi))


def _foreground(light: _Light, seeds: _Region, radius: float) -> _Region:
    """Return the seeds and the stained pixels around them, without red cells."""
    absorbed = 1 - light.min(2)
    nuclear = np.median(absorbed[seeds])
    away = _distance(~seeds) / radius
    stained = (absorbed > STAINED * nuclear) & ~seeds
    ring = stained & (away > RING[0]) & (away < RING[1])
    red = stained & _red_cells(light, ring, stained & (away > REACH), radius)
    edge = MAX_EDGE * nuclear
    if (ring & ~red).any():
        edge = min(edge, EDGE * np.median(absorbed[ring & ~red]))
    return np.asarray(seeds | ((absorbed > edge) & (away < REACH) & ~red))


def _red_cells(light: _Light, ring: _Region, far: _Region, radius: float) -> _Region:
    """Return the pixels coloured as those far from all nuclei (Fisher's discriminant, 1936).

    Of a cut-out, too little is far off to learn from, and nothing is taken for a red cell.
    """
    if far.sum() < np.pi * radius**2 or ring.sum() < 2:
        return np.zeros_like(far)
    density = np.log(light)  # proportional to the amount of stain (Beer and Lambert)
    red, white = density[far], density[ring]
    spread = np.cov(red.T) + np.cov(white.T) + 1e-4 * np.eye(3)
    axis = np.linalg.solve(spread, red.mean(0) - white.mean(0))
    score = cv2.GaussianBlur((density @ axis).astype(np.float32), (0, 0), 0.1 * radius)
    return np.asarray(score > axis @ (red.mean(0) + white.mean(0)) / 2)


def _part(foreground: _Region, seeds: _Region, margin: int) -> _Labels:
    """Label the cells: each piece is opened by a share of the largest circle in it."""
    padded = np.pad(foreground, margin, mode="edge")  # what the edge cuts goes on beyond it
    filled = ndimage.binary_fill_holes(padded)
    count, pieces = cv2.connectedComponents(filled.astype(np.uint8), connectivity=4)
    depth = _distance(filled)
    seeded = np.where(np.pad(seeds, margin), depth, 0)
    opening = OPENING * np.asarray(ndimage.maximum(seeded, pieces, np.arange(count)))[pieces]
    outside_cores = (opening == 0) | (depth <= opening)
    away, cells = cv2.distanceTransformWithLabels(
        outside_cores.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5
    )
    cells[(opening == 0) | (away > opening)] = 0
    return np.asarray(cells[margin:-margin, margin:-margin])


def _choose(cells: _Labels, seeds: _Region) -> _Labels:
    """Keep the cells with enough of a nucleus."""
    nuclear = np.bincount(cells[seeds], minlength=cells.max() + 1)
    nuclear[0] = 0
    least = np.full(len(nuclear), MIN_CELL)
    least[np.concatenate([cells[0], cells[-1], cells[:, 0], cells[:, -1]])] = MIN_CUT_CELL
    return np.where((nuclear >= least * nuclear.max())[cells], cells, 0)


def _nuclei(light: _Light, cells: _Labels, radius: float) -> _Region:
    """Segment the nuclei by Otsu's threshold (1979), each within its cell."""
    purple = (255 * _purple(light)).astype(np.uint8)
    found = np.zeros(cells.shape, bool)
    for cell in np.unique(cells[cells > 0]):
        inside = cells == cell
        level, _ = cv2.threshold(purple[inside][None], 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        found |= inside & (purple > level)
    filled = ndimage.binary_fill_holes(_open(found, round(NUCLEUS_OPENING * radius)))
    return _without_small(filled, MIN_LOBE * np.pi * radius**2)


def _open(region: _Region, radius: int) -> _Region:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.morphologyEx(region.astype(np.uint8), cv2.MORPH_OPEN, disc) > 0)


def _without_small(region: _Region, area: float) -> _Region:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=4)
    return np.asarray(region & (stats[:, cv2.CC_STAT_AREA] >= area)[labels])


def _distance(region: _Region) -> _Light:
    """Return the distance of each pixel of a region from its outside, in pixels."""
    return np.asarray(
        cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5), np.float32
    )
