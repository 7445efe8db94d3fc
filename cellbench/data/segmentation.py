"""Masks of white blood cells found in the pixels alone, where no expert has drawn any."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cellbench.data.outlines import Colours, convex_hull, distance, outline
from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS, Image, Mask
from cellbench.utils.errors import UserError

FORMAT = 2
"""Part of the name of cached masks; raise it when the segmentation changes."""

# Chosen on the odd-numbered images of WBC Dataset 1 (Zheng 2018) and on variants of them
# (tests/benchmarks/masks.py). Lengths are in radii of the largest nucleus: an image's scale does
# not matter.
SEARCH_SIDE = 320  # nuclei are first looked for with this many pixels along the longer side
WORKING_RADIUS = 35  # pixels that larger nuclei are shrunk to: experts draw no finer outlines
BLUR = 0.02  # evens out the camera's noise, but no outline

PADDING = 20  # darker in all channels is not slide but the black corner of a rotated image
MIN_PURPLE, PURPLE_SHARE, PURPLE_PERCENTILE = 0.25, 0.45, 99.5
"""Least purple of a nucleus, absolute (red cells have 0.1, the palest nuclei 0.35) and as a share
of this percentile of the image."""
MODE = 6  # grey levels to each side of the empty slide's
MIN_EMPTY = 0.08  # least share of the image that is empty slide; less is glare, or a white frame
MIN_NOISE = 0.012  # of density: less is a saturated slide
EMPTY = 2.5  # density, in units of noise, below which a pixel may be empty slide
MIN_NUCLEUS = 0.002  # of the image's area; less is a platelet
MIN_LOBE, LOBE_DISTANCE = 0.07, 0.4  # a lobe's least share of the nucleus's area; half a gap
LOBE_GAP, CUT_LOBE_GAP, MAX_EMPTY = 1.0, 0.4, 0.5
"""Largest gap between lobes, in radii of a circle of their area; the same if the image's edge cuts
one of them; and largest share of empty slide between them."""

RING = (0.05, 0.4)  # distances from a nucleus at which its cytoplasm is measured
STAINED = 0.2  # share of the nuclei's absorption above which a pixel is certainly not background
EDGE, MAX_EDGE = 0.4, 0.25
"""Absorption at a cell's outline, as a share of the cytoplasm's, and its limit, as a share of the
nuclei's: around a bare nucleus there is only its own blurred edge."""
REACH = 2.0  # largest distance of cytoplasm from its nucleus
OPENING = 0.63  # of a cell's inscribed circle: a narrower neck leads to another object
MIN_CELL, MIN_CUT_CELL = 0.2, 0.5
"""Least area of a cell as a share of the largest cell's nucleus, inside the image and at its edge,
so that a cut-out shows its own cell and not the corner of the next."""
GREEN = 0.25  # weight of absorbed green beside purple, by which nucleus and cytoplasm differ
NUCLEUS_OPENING = 0.12  # less than the bridge between lobes; removes granules and a cell's dark rim

WINDOW = 2.6  # distance from a nucleus up to which its surroundings are learnt from
AGREEMENT = 0.9  # overlap above which the two ways to find a cell are averaged
CONFIDENCE = (-3.2, 2.6, 8.9)
"""Bias, and weights of the two ways' overlap and of the outline's contrast, of the log odds that a
cell overlaps the expert's by more than 0.85 (logistic regression)."""
DOUBTFUL = 0.8
"""Confidence below which a mask needs to be looked at."""

NO_CELL = "no white cell's nucleus is in the image"

_Light = NDArray[np.float32]
_Region = NDArray[np.bool_]
_Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Segmentation:
    """An automatic mask, and how sure it is."""

    mask: Mask
    """BACKGROUND, CYTOPLASM and NUCLEUS, uint8, (H, W)."""
    confidence: float
    """Estimated probability that the cells overlap an expert's by more than 0.85, 0 to 1; that of
    the least certain cell."""


def segment(image: Image) -> Mask:
    """Return the mask that `segment_with_confidence` finds."""
    return segment_with_confidence(image).mask


def segment_with_confidence(image: Image) -> Segmentation:
    """Segment the white cells of a Romanowsky-stained smear (Giemsa, Wright) and their nuclei.

    Purple regions are nuclei. The cell around each is found twice: as the stained region that is
    coloured differently from the red cells farther off, and as the closed outline that best
    separates the colours inside from those outside. Where both agree, the cell is their mean;
    elsewhere it is the outline, which also finds pale cytoplasm. Within the cell, Otsu's threshold
    (1979) then gives the nucleus.

    Args:
        image: RGB, uint8, (H, W, 3): a cut-out of one cell, or a field with many.

    Raises:
        UserError: No nucleus is in the image.
    """
    scale = min(1.0, SEARCH_SIDE / max(image.shape))
    light, _, _ = _transmittance(_shrink(image, scale), 1.0)
    radius = _nucleus_radius(_purple_regions(light)) / scale
    scale = min(1.0, WORKING_RADIUS / radius)
    radius *= scale
    light, slide, noise = _transmittance(_shrink(image, scale), BLUR * radius)
    seeds = _without_small(_purple_regions(light), MIN_LOBE * np.pi * radius**2)
    if not seeds.any():
        raise UserError(NO_CELL)
    cells, confidence = _cells(light, slide, noise, seeds, radius)
    mask = np.full(image.shape[:2], BACKGROUND, np.uint8)
    for region, value in ((cells > 0, CYTOPLASM), (_nuclei(light, cells, radius), NUCLEUS)):
        mask[cv2.resize(region.astype(np.float32), image.shape[1::-1]) > 0.5] = value
    return Segmentation(mask, confidence)


def _cells(
    light: _Light, slide: _Region, noise: _Light, seeds: _Region, radius: float
) -> tuple[_Labels, float]:
    """Label the cells, and return the least confidence of any."""
    opaque = np.minimum(light, 1)
    pieces = _part(_foreground(opaque, seeds, radius), seeds, round(radius))
    empty = np.asarray((np.abs(np.log(light)) < EMPTY * noise).all(axis=2))
    nuclei = _choose(_join_lobes(seeds, empty), seeds)
    colours = Colours.of(light, noise)
    cells, confidence = np.zeros_like(nuclei), 1.0
    for label in np.unique(nuclei[nuclei > 0]):
        nucleus = nuclei == label
        box = _window(nucleus, WINDOW * radius)
        others = (seeds & ~nucleus)[box]
        outlined, contrast = outline(colours.cut(box), nucleus[box], others, slide[box])
        stained = np.isin(pieces, np.setdiff1d(pieces[nucleus], [0]))[box]
        overlap = float((outlined & stained).sum() / max((outlined | stained).sum(), 1))
        if overlap > AGREEMENT:
            outlined = _mean_region(outlined, stained)
        cells[box][outlined] = label
        confidence = min(confidence, _confidence(overlap, contrast))
    return cells, confidence


def _confidence(overlap: float, contrast: float) -> float:
    """Return the estimated probability that a cell is outlined as by an expert."""
    bias, by_overlap, by_contrast = CONFIDENCE
    return float(1 / (1 + np.exp(-(bias + by_overlap * overlap + by_contrast * contrast))))


def _mean_region(a: _Region, b: _Region) -> _Region:
    """Return the region whose signed distance is the mean of two regions' distances."""
    return np.asarray(distance(a) - distance(~a) + distance(b) - distance(~b) > 0)


def _window(region: _Region, margin: float) -> tuple[slice, slice]:
    """Return the box around a region, with a margin in pixels, inside the image."""
    ends = []
    for axis in (1, 0):
        used = np.flatnonzero(region.any(axis=axis))
        ends.append(slice(max(0, int(used[0] - margin)), int(used[-1] + margin) + 1))
    return ends[0], ends[1]


def _join_lobes(seeds: _Region, empty: _Region) -> _Labels:
    """Label the nuclei: neighbouring lobes are one, unless the slide shows between them.

    Args:
        seeds: Purple regions, (H, W).
        empty: Pixels that look like the empty slide, (H, W).
    """
    count, found = cv2.connectedComponents(seeds.astype(np.uint8), connectivity=4)
    labels = np.asarray(found, np.int32)
    lobes = list(range(1, count))
    while pair := next(_pairs(labels, lobes, empty), None):
        labels[labels == pair[1]] = pair[0]
        lobes.remove(pair[1])
    return labels


def _pairs(labels: _Labels, lobes: list[int], empty: _Region) -> Iterator[tuple[int, int]]:
    """Yield the pairs of lobes that belong to one nucleus, the closest first."""
    gaps = []
    cut = set(np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])))
    for i, first in enumerate(lobes):
        away = distance(labels != first)
        for second in lobes[i + 1 :]:
            area = ((labels == first) | (labels == second)).sum()
            gap = away[labels == second].min() / np.sqrt(area / np.pi)
            if gap < (CUT_LOBE_GAP if (first in cut) != (second in cut) else LOBE_GAP):
                gaps.append((gap, first, second))
    for _, first, second in sorted(gaps):
        a, b = labels == first, labels == second
        between = convex_hull(a | b) & ~convex_hull(a) & ~convex_hull(b)
        if not between.any() or empty[between].mean() < MAX_EMPTY:
            yield first, second


def _shrink(image: Image, scale: float) -> Image:
    size = (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0])))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _transmittance(image: Image, sigma: float) -> tuple[_Light, _Region, _Light]:
    """Measure the transmitted light, as a share of the empty slide's.

    Returns:
        Light of each channel, 0.01 to 1.3, (H, W, 3); pixels that show the slide, and not a black
        frame, (H, W); and the noise of the empty slide's density in each channel, (3,).
    """
    slide = cv2.erode(image.max(2), np.ones((5, 5), np.uint8)) > PADDING
    if not slide.any():
        raise UserError(NO_CELL)
    blurred = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    empty = slide & _empty(blurred[..., 1], slide)
    level = np.maximum(np.median(blurred[empty], axis=0), 1)
    light = np.asarray(np.clip(blurred / level, 0.01, 1.3), np.float32)
    noise = np.maximum(np.log(light[empty]).std(axis=0), MIN_NOISE).astype(np.float32)
    light[~slide] = 1
    return light, slide, noise


def _empty(green: NDArray[np.uint8], slide: _Region) -> _Region:
    """Return the pixels of the empty slide: the brightest mode of green that enough pixels share.

    Every stain absorbs green, and haemoglobin does too.
    """
    count = np.bincount(green[slide], minlength=256).astype(float)
    smooth = ndimage.gaussian_filter1d(count, 2.5, mode="constant")
    width = 2 * MODE + 1
    share = ndimage.uniform_filter1d(count, width, mode="constant") * width / count.sum()
    highest = smooth >= ndimage.maximum_filter1d(smooth, 9, mode="constant")
    modes = np.flatnonzero(highest & (share > MIN_EMPTY))
    mode = modes[-1] if len(modes) else smooth.argmax()
    return np.asarray(np.abs(green.astype(int) - mode) <= MODE)


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
    near = distance(~regions) < LOBE_DISTANCE * np.sqrt(area / np.pi)
    _, groups = cv2.connectedComponents(near.astype(np.uint8))
    return float(np.sqrt(np.bincount(groups[regions]).max() / np.pi))


def _foreground(light: _Light, seeds: _Region, radius: float) -> _Region:
    """Return the seeds and the stained pixels around them, without red cells."""
    absorbed = 1 - light.min(2)
    nuclear = np.median(absorbed[seeds])
    away = distance(~seeds) / radius
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
    depth = distance(filled)
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
    darkness = 1 - np.minimum(light[..., 1], 1)
    chromatin = (200 * (_purple(light) + GREEN * darkness)).astype(np.uint8)
    found = np.zeros(cells.shape, bool)
    for cell in np.unique(cells[cells > 0]):
        inside = cells == cell
        level, _ = cv2.threshold(chromatin[inside][None], 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        found |= inside & (chromatin > level)
    filled = ndimage.binary_fill_holes(_open(found, round(NUCLEUS_OPENING * radius)))
    return _without_small(filled, MIN_LOBE * np.pi * radius**2)


def _open(region: _Region, radius: int) -> _Region:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.morphologyEx(region.astype(np.uint8), cv2.MORPH_OPEN, disc) > 0)


def _without_small(region: _Region, area: float) -> _Region:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=4)
    return np.asarray(region & (stats[:, cv2.CC_STAT_AREA] >= area)[labels])
