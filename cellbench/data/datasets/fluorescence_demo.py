"""Drawn fluorescence images of cell cycle stages: four channels, 16 bits, OME-TIFF."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.random import Generator

from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.download.transfer import Drawn

CHANNELS = ("DAPI", "tubulin", "actin", "pH3")
"""Names of the channels, as the OME metadata have them: DNA, two parts of the skeleton, and a
protein that is phosphorylated in mitosis."""

CLASSES = ("interphase", "metaphase", "prophase")
SIZE = 96
"""Height and width of an image in pixels."""
DONORS, IMAGES = 24, 15
"""Number of donors, and of images from each."""

_LEVELS = (1400.0, 900.0, 700.0, 1100.0)  # camera counts of each channel's brightest structure
_OFFSET = 110.0  # counts of a dark pixel

_OME = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
    f'SizeX="{SIZE}" SizeY="{SIZE}" SizeC="{len(CHANNELS)}" SizeZ="1" SizeT="1">'
    + "".join(f'<Channel ID="Channel:0:{i}" Name="{name}"/>' for i, name in enumerate(CHANNELS))
    + "<TiffData/></Pixels></Image></OME>"
)


def draw(root: Path) -> None:
    """Draw the images and their instance masks below a folder.

    `prophase/donor03_07.ome.tif` is an image, (4, 96, 96), uint16, and its mask is
    `prophase/donor03_07_masks.tif`, (96, 96), uint16: 0 is background, and every other number one
    cell, that of the image's centre among them.

    Args:
        root: The folder, which exists.
    """
    for donor in range(DONORS):
        gains = np.random.default_rng((7, donor)).lognormal(0, 0.25, len(CHANNELS))
        for number in range(IMAGES):
            rng = np.random.default_rng((11, donor, number))
            label = int(rng.integers(len(CLASSES)))
            counts, mask = _draw_field(label, gains, rng)
            folder = root / CLASSES[label]
            folder.mkdir(exist_ok=True)
            name = f"donor{donor:02d}_{number:02d}"
            _write(folder / f"{name}.ome.tif", counts, _OME)
            _write(folder / f"{name}_masks.tif", mask)


def _write(path: Path, planes: np.ndarray, description: str | None = None) -> None:
    """Write a TIFF file, the same bytes each time: tifffile's own OME-XML has a random UUID."""
    tifffile.imwrite(
        path, planes, photometric="minisblack", description=description, metadata=None, software=""
    )


def _draw_field(label: int, gains: np.ndarray, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the camera counts of a field, (4, SIZE, SIZE), and its instances, (SIZE, SIZE)."""
    light = np.zeros((len(CHANNELS), SIZE, SIZE), np.float32)
    mask = np.zeros((SIZE, SIZE), np.uint16)
    centres = [SIZE / 2 + rng.normal(0, 2, 2)]
    for _ in range(rng.poisson(2)):  # neighbours, in any stage
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.42, 0.6) * SIZE
        centres.append(SIZE / 2 + distance * np.array([np.cos(angle), np.sin(angle)]))
    order = rng.permutation(len(centres))  # the cell in the centre has any number
    for position in [*order[order != 0].tolist(), 0]:  # and lies above its neighbours
        stage = label if position == 0 else int(rng.integers(len(CLASSES)))
        _draw_cell(light, mask, int(order[position]) + 1, centres[position], stage, rng)
    for channel in light:
        cv2.GaussianBlur(channel, (0, 0), rng.uniform(0.8, 1.6), dst=channel)
    expected = _OFFSET + light * (np.array(_LEVELS) * gains)[:, None, None]
    return rng.poisson(expected).astype(np.uint16), mask


def _draw_cell(
    light: np.ndarray,
    mask: np.ndarray,
    number: int,
    centre: np.ndarray,
    stage: int,
    rng: Generator,
) -> None:
    """Add one cell to the light of the channels, and to the mask under its number."""
    radius, turn = rng.normal(20, 2), rng.uniform(0, 180)
    body = _ellipse(centre, (radius, radius * rng.uniform(0.8, 1)), turn)
    mask[body] = number
    light[:, body] = 0
    light[1][body] = rng.uniform(0.15, 0.3) + 0.1 * rng.random(int(body.sum()))
    edge = body & ~_ellipse(centre, (radius - 2.5, radius * 0.9 - 2.5), turn)
    light[2][body], light[2][edge] = 0.15, rng.uniform(0.6, 1.0)
    if CLASSES[stage] == "metaphase":  # chromosomes in a plate, between the poles of the spindle
        dna = _ellipse(centre, (radius * 0.6, radius * rng.uniform(0.14, 0.24)), turn)
        for side in (-1, 1):
            across = np.deg2rad(turn + 90)
            pole = centre + side * 0.55 * radius * np.array([np.cos(across), np.sin(across)])
            light[1][_ellipse(pole, (3, 3), 0) & body] = rng.uniform(0.7, 1.0)
        marker = rng.uniform(0.6, 1.0)
    else:
        dna = _ellipse(centre, (radius * rng.uniform(0.5, 0.62), radius * 0.5), turn)
        # Prophase differs from interphase in the marker, and little in the texture of its DNA.
        marker = rng.uniform(0.4, 0.9) if CLASSES[stage] == "prophase" else rng.uniform(0, 0.15)
    grain = 0.25 if CLASSES[stage] == "interphase" else 0.35
    texture = cv2.GaussianBlur(rng.normal(0, 3, dna.shape).astype(np.float32), (0, 0), 1.5)
    light[0][dna] = np.clip(0.65 + grain * texture[dna], 0.2, 1.2)
    light[3][dna] = marker * np.clip(0.8 + 0.2 * texture[dna], 0.2, 1.2)


def _ellipse(centre: np.ndarray, axes: Sequence[float], turn: float) -> np.ndarray:
    """Return a filled ellipse, bool, (SIZE, SIZE); the turn is in degrees."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    box = (centre.tolist(), (2 * axes[0], 2 * axes[1]), turn)
    cv2.ellipse(canvas, box, 1, -1)
    return canvas > 0


@dataclass(kw_only=True, eq=False, repr=False)
class FluorescenceDemoDataModule(FolderDataModule):
    """Drawn fluorescence images: 360 cells in interphase, prophase or metaphase, of 24 donors.

    Four channels of 16 bits (DAPI, tubulin, actin, pH3) in OME-TIFF files, with instance masks
    beside them. Prophase and interphase look alike in all channels but pH3. Every donor has its own
    brightness in each channel: the donor is the group.

    Layout: `prophase/donor03_07.ome.tif` and `prophase/donor03_07_masks.tif`, and so on. Nothing is
    downloaded: `fetch fluorescence_demo` draws the files.
    """

    root: Path = Path("data/fluorescence_demo")
    group_pattern: str | None = "(?P<group>donor[0-9]+)_"

    how_to_get = "run python -m cellbench fetch fluorescence_demo, which draws it"

    source = Drawn(licence="made here", draw=draw)
