"""Drawn white blood cells: the embedded default, with no file and no network."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
from numpy.random import Generator

from cellbench.config.bounds import bounds
from cellbench.data.module import CellDataModule
from cellbench.data.preprocessing import resize_mask
from cellbench.data.table import Sample
from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS, Image, Mask

VERSION = 1
"""Part of every drawn image's fingerprint: raise it when the drawing changes."""

MASK_VERSION = 2
"""The same for the masks, which may be shrunk otherwise while the images stay as they are."""

MAX_IMAGES = 1_000_000
"""Largest number of images, and of slides; listing so many takes a minute."""

SIZE = 96
"""Height and width of a drawn image in pixels."""
_SCALE = 2  # drawn larger and shrunk, for smooth edges
_CANVAS = SIZE * _SCALE

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class CellType:
    """Appearance of a class of white cell under a Giemsa stain; the classes overlap on purpose."""

    share: float
    """Share of the cells."""
    radius: tuple[float, float]
    """Mean and standard deviation of the cell's radius, as a share of the image's side."""
    lobes: tuple[int, int]
    """Smallest and largest number of nuclear lobes."""
    nucleus: tuple[float, float]
    """Mean and standard deviation of the nucleus's share of the cell's radius."""
    cytoplasm: Colour
    """Colour of the cytoplasm, RGB."""
    granules: Colour
    """Colour of the granules, RGB."""
    density: float
    """Mean number of granules."""
    granule_radius: float
    """Radius of a granule, as a share of the image's side."""
    indented: float = 0.0
    """Depth of the notch of a kidney-shaped nucleus, as a share of its radius."""


TYPES = {
    "neutrophil": CellType(
        share=0.40,
        radius=(0.25, 0.022),
        lobes=(2, 5),
        nucleus=(0.64, 0.05),
        cytoplasm=(226, 196, 206),
        granules=(206, 160, 182),
        density=60,
        granule_radius=0.006,
    ),
    "lymphocyte": CellType(
        share=0.25,
        radius=(0.22, 0.030),
        lobes=(1, 1),
        nucleus=(0.80, 0.06),
        cytoplasm=(186, 198, 226),
        granules=(150, 120, 180),
        density=4,
        granule_radius=0.008,
        indented=0.15,
    ),
    "monocyte": CellType(
        share=0.20,
        radius=(0.28, 0.030),
        lobes=(1, 1),
        nucleus=(0.70, 0.06),
        cytoplasm=(190, 190, 214),
        granules=(170, 150, 190),
        density=25,
        granule_radius=0.006,
        indented=0.55,
    ),
    "eosinophil": CellType(
        share=0.15,
        radius=(0.25, 0.022),
        lobes=(2, 3),
        nucleus=(0.60, 0.05),
        cytoplasm=(230, 186, 186),
        granules=(222, 128, 112),
        density=75,
        granule_radius=0.011,
    ),
}


@dataclass(kw_only=True, eq=False, repr=False)
class SyntheticDataModule(CellDataModule):
    """Drawn white blood cells with masks; nothing is read or downloaded.

    Four classes that differ as white cells do, in nuclear lobes, size, granules and stain, and
    that overlap as they do too, among red cells and debris. Every slide has its own stain and
    light: the slide is the group. The drawing depends on `draw_seed` alone.
    """

    samples: int = field(default=600, metadata=bounds(len(TYPES), MAX_IMAGES))
    """Number of images."""
    slides: int = field(default=60, metadata=bounds(1, MAX_IMAGES))
    """Number of slides that they come from."""
    draw_seed: int = field(default=0, metadata=bounds(0))
    """Seed of the drawing."""
    shortcut: float = field(default=0.0, metadata=bounds(0, 1))
    """Probability, 0 to 1, that the colour of the background gives away the class, so that a model
    which sees the background alone can find it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """neutrophil, lymphocyte, monocyte, eosinophil."""
        return tuple(TYPES)

    def list_samples(self) -> list[Sample]:
        """List the cells to draw, in fixed class proportions, assigned to the slides at random."""
        rng = np.random.default_rng((self.draw_seed, VERSION))
        edges = np.cumsum([kind.share for kind in TYPES.values()])
        quantiles = (np.arange(self.samples) + 0.5) / self.samples
        labels = rng.permutation(np.searchsorted(edges, quantiles * edges[-1]))
        width = len(str(self.samples - 1))
        return [
            Sample(f"cell{i:0{width}d}", int(label), group=f"slide{rng.integers(self.slides):03d}")
            for i, label in enumerate(labels)
        ]

    def fingerprint(self, sample: Sample) -> str:
        """Return a digest of all that the drawing depends on."""
        # As the sample was written when the first digests were made: splits must keep theirs.
        cell = (
            f"Sample(id={sample.id!r}, label={sample.label!r}, image=None, mask=None, "
            f"group={sample.group!r}, split=None, votes=None)"
        )
        what = f"{VERSION} {self.draw_seed} {self.shortcut} {cell}"
        return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()

    def mask_fingerprint(self, sample: Sample) -> str:
        """Return the digest of the mask, which is drawn with the image."""
        return f"{self.fingerprint(sample)} {MASK_VERSION}"

    def has_mask(self, sample: Sample) -> bool:
        """Return True: every drawn cell has a mask."""
        return True

    def read_image(self, sample: Sample) -> Image:
        """Draw the image: RGB, uint8, (96, 96, 3)."""
        return self._draw(sample)[0]

    def read_mask(self, sample: Sample, image: Image) -> Mask:
        """Draw the mask, (96, 96)."""
        return self._draw(sample)[1]

    @cached_property
    def _type_of(self) -> list[CellType]:
        return list(TYPES.values())

    def _draw(self, sample: Sample) -> tuple[Image, Mask]:
        number, slide = int(sample.id.removeprefix("cell")), int((sample.group or "")[5:])
        slide_rng = np.random.default_rng((self.draw_seed, VERSION, 1, slide))
        rng = np.random.default_rng((self.draw_seed, VERSION, 2, number))
        plasma = np.array([233.0, 221, 224]) + slide_rng.normal(0, 6, 3)
        stain = slide_rng.normal(0, 8, 3)  # shifts every stained colour of the slide
        if rng.random() < self.shortcut:
            plasma += (sample.label - (len(TYPES) - 1) / 2) * np.array([-11.0, 3, 11])
        canvas = np.full((_CANVAS, _CANVAS, 3), plasma, np.float32)
        mask = np.zeros((_CANVAS, _CANVAS), np.uint8)
        _draw_surroundings(canvas, rng, stain)
        _draw_cell(canvas, mask, self._type_of[sample.label], rng, stain)
        return _photograph(canvas, rng), resize_mask(mask, (SIZE, SIZE))


def _blob(centre: np.ndarray, radius: float, rough: float, rng: Generator) -> np.ndarray:
    """Return a closed outline: a circle with a few random waves, int32, (64, 1, 2)."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = np.zeros_like(angle)
    for order in (2, 3, 4, 5):
        amplitude, phase = rng.normal(0, rough / order), rng.uniform(0, 2 * np.pi)
        waves += amplitude * np.cos(order * angle + phase)
    points = centre + radius * (1 + waves)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    outline: np.ndarray = points.round().astype(np.int32)[:, None]
    return outline


def _fill(canvas: np.ndarray, outline: np.ndarray, colour: np.ndarray) -> None:
    cv2.fillPoly(canvas, [outline], colour.tolist(), cv2.LINE_AA)


def _draw_surroundings(canvas: np.ndarray, rng: Generator, stain: np.ndarray) -> None:
    """Draw red cells with a pale centre, and platelets, mostly outside the middle."""
    for _ in range(rng.poisson(5)):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.34, 0.7) * _CANVAS
        centre = _CANVAS / 2 + distance * np.array([np.cos(angle), np.sin(angle)])
        radius = rng.normal(0.135, 0.012) * _CANVAS
        colour = np.array([221.0, 172, 176]) + 0.5 * stain + rng.normal(0, 5, 3)
        _fill(canvas, _blob(centre, radius, 0.05, rng), colour)
        _fill(canvas, _blob(centre, 0.45 * radius, 0.08, rng), colour + 18)
    for _ in range(rng.poisson(1.5)):
        centre, radius = rng.uniform(0, _CANVAS, 2), rng.uniform(0.015, 0.035) * _CANVAS
        _fill(canvas, _blob(centre, radius, 0.2, rng), np.array([168.0, 128, 178]) + stain)


def _draw_cell(
    canvas: np.ndarray, mask: np.ndarray, kind: CellType, rng: Generator, stain: np.ndarray
) -> None:
    radius = rng.normal(*kind.radius) * _CANVAS
    centre = _CANVAS / 2 + rng.normal(0, 0.03 * _CANVAS, 2)
    cell = _blob(centre, radius, 0.06, rng)
    cytoplasm = np.array(kind.cytoplasm) + stain + rng.normal(0, 7, 3)
    _fill(canvas, cell, cytoplasm)
    cv2.fillPoly(mask, [cell], CYTOPLASM)

    granule = np.array(kind.granules) + stain + rng.normal(0, 12, 3)
    visible = rng.uniform(0.25, 1.0)  # a weak stain hides what tells the classes apart
    granule = visible * granule + (1 - visible) * cytoplasm
    for _ in range(rng.poisson(kind.density * rng.uniform(0.5, 1.2))):
        angle, distance = rng.uniform(0, 2 * np.pi), radius * 0.93 * np.sqrt(rng.random())
        at = (centre + distance * np.array([np.cos(angle), np.sin(angle)])).round().astype(int)
        size = max(1, round(kind.granule_radius * _CANVAS * rng.uniform(0.7, 1.3)))
        if mask[tuple(np.clip(at[::-1], 0, _CANVAS - 1))] != BACKGROUND:
            cv2.circle(canvas, at.tolist(), size, granule.tolist(), -1, cv2.LINE_AA)

    nucleus = _nucleus(kind, centre, radius, rng) & (mask != BACKGROUND)
    colour = np.array([112.0, 74, 148]) + 0.8 * stain + rng.normal(0, 12, 3)
    soft = cv2.GaussianBlur(nucleus.astype(np.float32), (0, 0), _SCALE * 0.8)[..., None]
    texture = cv2.GaussianBlur(rng.normal(0, 45, canvas.shape[:2]), (0, 0), 3)[..., None]
    canvas[:] = (1 - soft) * canvas + soft * (colour + texture)
    mask[nucleus] = NUCLEUS


def _nucleus(kind: CellType, centre: np.ndarray, radius: float, rng: Generator) -> np.ndarray:
    """Return a boolean nucleus: round, kidney-shaped, or lobes on an arc with bridges."""
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
    extent = radius * np.clip(rng.normal(*kind.nucleus), 0.4, 0.92)
    lobes, turn = int(rng.integers(kind.lobes[0], kind.lobes[1] + 1)), rng.uniform(0, 2 * np.pi)
    if lobes == 1:
        cv2.fillPoly(canvas, [_blob(centre, extent, 0.05, rng)], 1)
        depth = kind.indented * rng.uniform(0.2, 1.3)
        bite = centre + extent * 1.25 * np.array([np.cos(turn), np.sin(turn)])
        cv2.fillPoly(canvas, [_blob(bite, max(extent * depth, 1), 0.1, rng)], 0)
        return canvas > 0
    arc = turn + np.linspace(0, rng.uniform(0.5, 0.8) * 2 * np.pi, lobes)
    distance = extent * rng.uniform(0.5, 0.62)
    centres = centre + distance * np.stack([np.cos(arc), np.sin(arc)], 1)
    for lobe in centres:
        size = extent * rng.uniform(0.85, 1.1) * (0.52 if lobes < 4 else 0.42)
        cv2.fillPoly(canvas, [_blob(lobe, size, 0.08, rng)], 1)
    bridge = max(1, round(extent * rng.uniform(0.1, 0.3)))
    cv2.polylines(canvas, [centres.round().astype(np.int32)], False, 1, bridge)
    return canvas > 0


def _photograph(canvas: np.ndarray, rng: Generator) -> Image:
    """Shrink a canvas, and add what a camera adds: uneven light, blur, noise."""
    shrunk = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    image = np.asarray(cv2.GaussianBlur(shrunk, (0, 0), rng.uniform(0.4, 1.3)), np.float64)
    across = np.linspace(-1, 1, SIZE, dtype=np.float32)
    slope = rng.normal(0, 4, 2)
    image += (slope[0] * across[:, None] + slope[1] * across[None, :])[..., None]
    image += rng.normal(0, rng.uniform(1.5, 5), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
