"""Automatic masks against the experts': on the even images of WBC Dataset 1, and on variants.

The variants imitate other laboratories: another stain, camera or slide, paler cytoplasm, and
cut-outs of 300x300 in which the cell lies among the red cells of another dataset.
"""

import time
import zlib
from collections.abc import Iterator
from functools import lru_cache

import cv2
import numpy as np

from cellbench.data.files import read_image
from cellbench.data.mask_files import read_mask
from cellbench.data.segmentation import DOUBTFUL, segment_with_confidence
from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS
from cellbench.utils.errors import UserError
from tests.conftest import SHARED

FIRST, STEP = 2, 2
SIDE = 300
TONES = ((0.24, 0.20, 0.08), (0.10, 0.25, 0.12), (0.15, 0.20, 0.12))
"""Density of bluish, pinkish and greyish cytoplasm."""
NUCLEAR = (1.0, 1.55, 0.5)
STRENGTH = {"laboratory": 1.0, "pale laboratory": 0.6, "palest laboratory": 0.35}
"""Density of the cytoplasm, as a share of `TONES`."""
VARIANTS = (
    "as it is",
    "bluer stain",
    "redder stain",
    "weak stain",
    "bright gamma",
    "dark gamma",
    "blurred",
    "JPEG",
    "pale cytoplasm",
    "palest cytoplasm",
    *STRENGTH,
)


def blur(image, sigma):
    """A Gaussian blur, also of a mask."""
    return cv2.GaussianBlur(np.asarray(image, np.float32), (0, 0), sigma)


def jpeg(image, quality):
    """The image after JPEG compression."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def slide_colour(image, mask):
    """Median colour of the brighter half of what lies off the cell."""
    off = cv2.dilate((mask > 0).astype(np.uint8), np.ones((9, 9))) == 0
    pixels = image[off & (cv2.erode(image.max(2), np.ones((5, 5))) > 20)]
    bright = pixels[pixels[:, 1] >= np.median(pixels[:, 1])]
    return np.maximum(np.median(bright, axis=0), 1)


def stain(image, mask, change, slide=None):
    """The image with another density of stain, and on a slide of another colour."""
    colour = slide_colour(image, mask)
    density = -np.log(np.clip(image / colour, 0.02, 1.2))
    changed = (colour if slide is None else slide) * np.exp(-change(density))
    changed[image.max(2) <= 20] = 0
    return np.clip(changed, 0, 255).astype(np.uint8)


def fade(image, mask, share):
    """The image with cytoplasm of a share of its density."""
    rim = cv2.dilate((mask > 0).astype(np.uint8), np.ones((5, 5))) > 0
    cytoplasm = blur(rim & (mask != NUCLEUS), 1) * (1 - blur(mask == NUCLEUS, 1))
    return stain(image, mask, lambda density: density * (1 - cytoplasm[..., None] * (1 - share)))


@lru_cache(maxsize=400)
def field(path):
    """Density of a blood smear's field, and where no white cell is near."""
    image = read_image(path)
    count = np.convolve(np.bincount(image[..., 1].ravel(), minlength=256), np.ones(9), "same")
    mode = np.flatnonzero(count[151:] > 0.5 * count[151:].max())[-1] + 151
    near = np.abs(image[..., 1].astype(int) - mode) < 8
    density = -np.log(np.clip(image / np.median(image[near], axis=0), 0.02, 1.05))
    purple = (density[..., 1] - density[..., 2] > 0.4).astype(np.uint8)
    white = cv2.dilate(cv2.erode(purple, np.ones((9, 9))), np.ones((61, 61)))
    return density.astype(np.float32), white == 0


def red_cells(rng):
    """Density of a random part of a field without a white cell."""
    paths = sorted((SHARED / "blood_cells" / "Original_Images").glob("*.jpg"))
    while True:
        density, free = field(paths[rng.integers(len(paths))])
        y, x = rng.integers(0, np.array(free.shape) - SIDE + 1)
        if free[y : y + SIDE, x : x + SIDE].all():
            return density[y : y + SIDE, x : x + SIDE]


def transplant(image, mask, strength, rng):
    """The cell among red cells, stained anew, on a cut-out of 300x300, with its mask."""
    density = -np.log(np.clip(image / slide_colour(image, mask), 0.02, 1.05)).astype(np.float32)
    zoom = rng.uniform(1.4, 2.5)
    y, x = np.nonzero(mask)
    shift = SIDE // 2 - zoom * np.array([x.min() + x.max(), y.min() + y.max()]) / 2
    shift += rng.integers(-8, 9, 2)
    warp = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]], np.float32)
    size = (SIDE, SIDE)
    density = cv2.warpAffine(density, warp, size, borderMode=cv2.BORDER_REPLICATE)
    cell, nucleus = (
        cv2.warpAffine(part.astype(np.float32), warp, size) > 0.5
        for part in (mask > BACKGROUND, mask == NUCLEUS)
    )
    tone = np.array(TONES[rng.integers(3)]) * strength * rng.uniform(0.85, 1.15)
    nuclear = np.array(NUCLEAR) * rng.uniform(0.7, 1.1) * rng.uniform(0.9, 1.1, 3)
    mean = density.mean(2, keepdims=True)
    texture = mean / max(mean[cell & ~nucleus].mean(), 0.05)
    cytoplasm = tone * np.clip(texture, 0, 2) ** 0.8
    chromatin = nuclear * np.clip(mean / mean[nucleus].mean(), 0, 1.5)
    soft = blur(nucleus, 0.9 * zoom)[..., None]
    inside = soft * chromatin + (1 - soft) * cytoplasm
    colour = rng.uniform(0.6, 1.1) * np.array([rng.uniform(0.8, 1.6), 1, rng.uniform(0.5, 1)])
    soft = blur(cell, 0.7 * zoom)[..., None]
    slide = rng.uniform((205, 200, 205), (245, 240, 245))
    light = slide * np.exp(-(soft * inside + (1 - soft) * red_cells(rng) * colour))
    light = blur(light, rng.uniform(0.5, 1.2)) + rng.normal(0, rng.uniform(1, 3), light.shape)
    drawn = np.where(nucleus, NUCLEUS, np.where(cell, CYTOPLASM, BACKGROUND))
    return jpeg(np.clip(light, 0, 255).astype(np.uint8), int(rng.integers(70, 95))), drawn


def vary(name, image, mask, seed):
    """A variant of an image, with its mask."""
    bluer = np.array([[0.8, 0.1, 0], [0.2, 0.9, 0.1], [0, 0.1, 0.8]])
    if name in STRENGTH:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return transplant(image, mask, STRENGTH[name], rng)
    varied = {
        "as it is": lambda: image,
        "bluer stain": lambda: stain(image, mask, lambda d: d @ bluer, (225, 220, 228)),
        "redder stain": lambda: stain(image, mask, lambda d: d * (1.4, 0.9, 0.8), (235, 230, 215)),
        "weak stain": lambda: stain(image, mask, lambda d: 0.6 * d),
        "bright gamma": lambda: (255 * (image / 255) ** 0.6).astype(np.uint8),
        "dark gamma": lambda: (255 * (image / 255) ** 1.5).astype(np.uint8),
        "blurred": lambda: blur(image, 1.5).astype(np.uint8),
        "JPEG": lambda: jpeg(image, 50),
        "pale cytoplasm": lambda: fade(image, mask, 0.6),
        "palest cytoplasm": lambda: fade(image, mask, 0.35),
    }
    return varied[name](), mask


def overlaps(found, drawn):
    """Intersection over union of the cell and of the nucleus."""
    pairs = [(found > BACKGROUND, drawn > BACKGROUND), (found == NUCLEUS, drawn == NUCLEUS)]
    return [float((a & b).sum() / (a | b).sum()) for a, b in pairs]


def compare(name, numbers):
    """Overlap of cell and nucleus, and confidence of each image, (n, 3), and seconds in all."""
    rows, seconds = [], 0.0
    for number in numbers:
        path = SHARED / "hpv" / "Dataset 1" / f"{number:03d}.bmp"
        image = read_image(path)
        image, drawn = vary(name, image, read_mask(path.with_suffix(".png"), image), number)
        begun = time.process_time()
        try:
            found = segment_with_confidence(image)
            rows.append([*overlaps(found.mask, drawn), found.confidence])
        except UserError:
            rows.append([0.0, 0.0, 0.0])
        seconds += time.process_time() - begun
    return np.array(rows), seconds


def measure() -> Iterator[tuple[str, str]]:
    """The rows of the table."""
    if not SHARED.is_dir():
        return
    numbers, found = range(FIRST, 301, STEP), []
    for name in VARIANTS:
        rows, seconds = compare(name, numbers)
        found.append(rows)
        cell, nucleus = rows[:, 0], rows[:, 1]
        yield (
            f"automatic masks, {name}: IoU of the cell, nucleus (5th percentiles); doubtful; ms",
            f"{cell.mean():.3f}, {nucleus.mean():.3f} ({np.percentile(cell, 5):.3f}, "
            f"{np.percentile(nucleus, 5):.3f}); {np.mean(rows[:, 2] < DOUBTFUL):.1%}; "
            f"{1000 * seconds / len(rows):.0f}",
        )
    every = np.concatenate(found)
    for low, high in ((0, 0.5), (0.5, 0.8), (0.8, 0.95), (0.95, 1.01)):
        chosen = every[(every[:, 2] >= low) & (every[:, 2] < high), 0]
        if len(chosen):
            yield (
                f"  confidence {low} to {min(high, 1)}: images; share with IoU above 0.85; mean",
                f"{len(chosen)}; {np.mean(chosen > 0.85):.2f}; {chosen.mean():.3f}",
            )
