"""Mask files as people have them: each is read right, or refused with one line on what to do.

Every dataset here is drawn again with masks of another kind; the truth is known for each pixel.
"""

import csv
import hashlib
import io
import json
import pickle
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
import yaml

from cellbench.__main__ import main
from cellbench.artifacts.checkpoint import Description, read_checkpoint
from cellbench.data import cellpose, mask_survey
from cellbench.data.cache import CacheConfig
from cellbench.data.cellpose import CellposeConfig
from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.datasets.hpv import HPVDataModule
from cellbench.data.files import read_image
from cellbench.data.mask_files import MASK_SUFFIXES, read_labels, read_mask
from cellbench.data.mask_format import MaskFormat, check_mask_values
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.unlabelled import UnlabelledImages
from cellbench.inference.onnx_metadata import preprocessing_steps
from cellbench.training.compatibility import changed_preprocessing, check_unchanged
from cellbench.utils.errors import UserError, one_line
from tests.conftest import QUICK, SHARED, write_image

SIDE = 64
N = 12
GREY = np.array([0, 128, 255], np.uint8)
CLASSES = ("mono", "neutro")


def disc(y, x, radius, side=SIDE):
    rows, columns = np.mgrid[:side, :side]
    return np.hypot(rows - y, columns - x) < radius


def draw_truth(rng, lobes):
    """Draws 0 background, 1 cytoplasm and 2 nucleus."""
    y, x = SIDE / 2 + rng.uniform(-3, 3, 2)
    radius = rng.uniform(18, 23)
    truth = disc(y, x, radius).astype(np.uint8)
    for k in range(lobes):
        angle = 2 * np.pi * k / lobes + rng.uniform(0, 1)
        off = 0.4 * radius if lobes > 1 else 0
        size = (0.3 if lobes > 1 else 0.55) * radius
        truth[disc(y + off * np.sin(angle), x + off * np.cos(angle), size)] = 2
    return truth


def truths():
    """Draws the truth of all masks, the same in each test."""
    rng = np.random.default_rng(3)
    return [draw_truth(rng, 1 + i % 3) for i in range(2 * N)]


def binary(truth):
    return (truth > 0).astype(np.uint8)


def stripes(truth, n=2):
    """Divides the cell into instances side by side."""
    return np.where(truth > 0, 1 + np.digitize(np.indices(truth.shape)[1], (30, 37)[: n - 1]), 0)


def sprinkle(pixels, n, values, seed=0):
    """Replaces n pixels by values in turn."""
    rng, pixels = np.random.default_rng(seed), pixels.copy()
    chosen = rng.choice(pixels.size, n, replace=False)
    pixels.ravel()[chosen] = np.resize(values, n)
    return pixels


def compressed(pixels, quality):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.array(PIL.Image.open(file))


def in_palette(indices, *colours):
    image = PIL.Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([c for colour in colours for c in colour] + [0] * (768 - 3 * len(colours)))
    return image


def save(pixels, path, suffix=".png"):
    path = path.with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".npy":
        np.save(path, pixels)
    else:
        image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
        image.save(path)
    return path


@pytest.fixture
def dataset(tmp_path):
    """Draws a dataset whose mask number i is `make(truth, i)`; returns its root."""

    def draw(make, suffix=".png"):
        root, rng = tmp_path / "cells", np.random.default_rng(4)
        for i, truth in enumerate(truths()):
            colours = np.array([(225, 220, 222), (200, 150, 190), (90, 40, 140)])
            image = colours[truth] + rng.normal(0, 6, (SIDE, SIDE, 3))
            name = Path(CLASSES[i // N], f"{i % N:02d}")
            path = root / name.with_suffix(".png")
            write_image(path, np.clip(image, 0, 255).astype(np.uint8))
            save(make(truth, i), root / "masks" / name, suffix)
        return root

    return draw


@pytest.fixture
def masks(tmp_path):
    """Writes masks, `make(truth, i)`, without images; returns a function that reads them all."""

    def write(make, suffix=".png"):
        return [save(make(t, i), tmp_path / f"{i:02d}", suffix) for i, t in enumerate(truths())]

    return write


def survey(paths, values=None, instance=None, cache=None):
    digests = [hashlib.blake2b(path.read_bytes()).hexdigest() for path in paths]
    cache = cache or CacheConfig()
    return mask_survey.survey_masks(paths, digests, values, instance, cache, 10**8)


def read_all(paths, mask_format):
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    return [read_mask(path, image, mask_format) for path in paths]


def assert_regions(paths, mask_format, *, nuclei):
    for mask, truth in zip(read_all(paths, mask_format), truths(), strict=True):
        expected = truth if nuclei else binary(truth)
        assert np.array_equal(mask, expected)


WITH_NUCLEI = {
    "0 128 255": (lambda t, i: GREY[t], "0 background, 128 cytoplasm, 255 nucleus"),
    "0 1 2 (M02)": (lambda t, i: t, "0 background, 1 cytoplasm, 2 nucleus"),
    "0 100 200": (lambda t, i: t * 100, "0 background, 100 cytoplasm, 200 nucleus"),
    "16 bits": (
        lambda t, i: np.array([0, 32768, 65535], np.uint16)[t],
        "0 background, 32768 cytoplasm, 65535 nucleus",
    ),
    "0 127 254": (lambda t, i: t * 127, "0 background, 128 cytoplasm, 255 nucleus; noise"),
    "JPEG saved as PNG (M05)": (lambda t, i: compressed(GREY[t], 70), "0 background, 128 cyto"),
    "grey as RGB": (lambda t, i: np.dstack([GREY[t]] * 3), "0 background, 128 cytoplasm, 255 nuc"),
    "palette of labels": (
        lambda t, i: in_palette(t, (0, 0, 0), (128, 0, 0), (0, 128, 0)),
        "0 background, 1 cytoplasm, 2 nucleus",
    ),
    "palette of greys in another order": (
        lambda t, i: in_palette(2 - t, (255,) * 3, (128,) * 3, (0,) * 3),
        "0 background, 128 cytoplasm, 255 nucleus",
    ),
    "few strays": (
        lambda t, i: sprinkle(GREY[t], 3 + i, [37, 64, 90, 192, 211], i),
        "0 background, 128 cytoplasm, 255 nucleus; 348 stray pixels in 24 of 24 masks, at most 26",
    ),
}


@pytest.mark.parametrize("kind", WITH_NUCLEI)
def test_masks_with_nuclei(masks, kind):
    make, words = WITH_NUCLEI[kind]
    paths = masks(make)
    found = survey(paths)
    assert found.text.startswith(words)
    if "strays" in kind:  # they take the nearest value
        read = read_all(paths, found.format)
        wrong = [np.sum(mask != truth) for mask, truth in zip(read, truths(), strict=True)]
        assert 0 < sum(wrong) <= 348
    else:
        assert_regions(paths, found.format, nuclei=True)


WITHOUT_NUCLEI = {
    "0 1 (M01)": (lambda t, i: binary(t), ".png", "0 background, 1 cell"),
    "0 255": (lambda t, i: 255 * binary(t), ".png", "0 background, 255 cell"),
    "1 bit (M03)": (lambda t, i: t > 0, ".png", "0 background, 255 cell"),
    "1 bit TIFF": (lambda t, i: t > 0, ".tif", "0 background, 255 cell"),
    "16 bits 0 1 (M15)": (lambda t, i: binary(t).astype(np.uint16), ".png", "0 background, 1 cell"),
    "16 bits 65535": (
        lambda t, i: binary(t).astype(np.uint16) * 65535,
        ".tif",
        "0 background, 65535 cell",
    ),
    "JPEG": (lambda t, i: 255 * binary(t), ".jpg", "0 background, 255 cell"),
    "array": (lambda t, i: t > 0, ".npy", "0 background, 1 cell"),
    "array of floats": (lambda t, i: binary(t)[None].astype(float), ".npy", "0 background, 1 cell"),
    "palette (M11)": (
        lambda t, i: in_palette(binary(t), (0, 0, 0), (128, 0, 0)),
        ".png",
        "0 background, 1 cell",
    ),
    "alpha (M14)": (
        lambda t, i: np.dstack([np.full((SIDE, SIDE, 3), 255, np.uint8), 255 * binary(t)]),
        ".png",
        "0 background, 255 cell",
    ),
    "grey and alpha": (
        lambda t, i: PIL.Image.fromarray(np.dstack([0 * t, 255 * binary(t)]), "LA"),
        ".png",
        "0 background, 255 cell",
    ),
    "colour on transparent white": (
        lambda t, i: np.where(
            t[..., None] > 0, np.uint8([9, 200, 30, 255]), np.uint8([255, 255, 255, 0])
        ),
        ".png",
        "#000000 background, #09c81e cell",
    ),
    "another value in each file": (
        lambda t, i: binary(t) * (1 + i % 5),
        ".png",
        "0 background, every other value a cell",
    ),
    "16-bit instances (M08)": (
        lambda t, i: stripes(t, 1 + i % 3).astype(np.uint16),
        ".png",
        "0 background, every other value a cell; several cells in 16 of 24 masks, all of which c",
    ),
    "8-bit instances (M09)": (
        lambda t, i: stripes(t, 1 + i % 3).astype(np.uint8),
        ".png",
        "0 background, every other value a cell; several cells in 16 of 24 masks",
    ),
    "32-bit instances": (
        lambda t, i: (stripes(t, 1 + i % 3) * 70_000).astype(np.int32),
        ".tif",
        "0 background, every other value a cell; several cells in 16 of 24 masks",
    ),
    "array of instances": (
        lambda t, i: stripes(t).astype(np.int64) * (i + 1),
        ".npy",
        "0 background, every other value a cell; several cells in 24 of 24 masks",
    ),
    "strays on 0 1": (lambda t, i: sprinkle(binary(t), 0, 9, i), ".png", "0 background, 1 cell"),
}


@pytest.mark.parametrize("kind", WITHOUT_NUCLEI)
def test_masks_without_nuclei(masks, kind):
    make, suffix, words = WITHOUT_NUCLEI[kind]
    paths = masks(make, suffix)
    found = survey(paths)
    assert found.text.startswith(words)
    assert_regions(paths, found.format, nuclei=False)


UNCERTAIN = {
    "background -1": (
        lambda t, i: np.where(t > 0, 1, -1).astype(np.int32),
        "the values of the masks may mean several things: -1 ",
        "data.mask_values: {background: -1, cell: [1]}",
    ),
    "outlines": (
        lambda t, i: 255 * (binary(t) - cv2.erode(binary(t), np.ones((3, 3)))),
        "the masks show outlines",
        "fill them",
    ),
    "0 1 in JPEG": (
        lambda t, i: binary(t),
        "the masks are JPEG files, whose compression",
        "save them as PNG",
    ),
    "a colour for each cell": (
        lambda t, i: np.uint8([(0, 0, 0), (250, 9 * i, 90)])[binary(t)],
        "the masks have 25 colours",
        "save them with one channel, 0 for background and a number for each cell",
    ),
    "photographs": (
        lambda t, i: np.random.default_rng(i).integers(0, 255, (*t.shape, 3)).astype(np.uint8),
        "24 of 24 masks look like photographs",
        "data.mask_pattern",
    ),
    "one photograph": (
        lambda t, i: (
            np.random.default_rng(i).integers(0, 255, (*t.shape, 3)).astype(np.uint8)
            if i == 9
            else 255 * binary(t)
        ),
        "1 of 24 masks look like photographs, as test_masks",
        "replace them",
    ),
    "inverted (M04)": (
        lambda t, i: 255 - 255 * binary(t),
        "24 of 24 masks look inverted",
        "{background: 255, cell: 0}",
    ),
    "inverted 0 1 2": (
        lambda t, i: 2 - t,
        "24 of 24 masks look inverted",
        "{background: 2, cytoplasm: 1, nucleus: 0}",
    ),
    "counted from 1": (
        lambda t, i: t + 1,
        "24 of 24 masks look inverted",
        "{background: 1, cytoplasm: 2, nucleus: 3}",
    ),
    "inverted JPEG": (
        lambda t, i: compressed(255 - 255 * binary(t), 70),
        "24 of 24 masks look inverted",
        "{background: 255, cell: 0}",
    ),
    "RGB labels (M10)": (
        lambda t, i: np.uint8([(255, 0, 0), (0, 0, 128), (0, 0, 255)])[t],
        "the masks have colours: #ff0000 ",
        "{background: '#ff0000', cytoplasm: '#000080', nucleus: '#0000ff'}",
    ),
    "RGB labels (M16)": (
        lambda t, i: np.uint8([(0, 0, 0), (255, 0, 0), (0, 255, 0)])[t],
        "the masks have colours: #000000 ",
        "{background: '#000000', cytoplasm: '#ff0000', nucleus: '#00ff00'}",
    ),
    "two colours, none black": (
        lambda t, i: np.uint8([(255, 255, 255), (0, 0, 255)])[binary(t)],
        "the masks have colours: #ffffff ",
        "{background: '#ffffff', cell: '#0000ff'}",
    ),
    "palettes in another order in each file": (
        lambda t, i: in_palette(t, (9, 9, 9), *([(90, 0, 0), (0, 0, 90)][:: 1 - 2 * (i % 2)])),
        "the masks have colours: #090909 ",
        "data.mask_values",
    ),
    "nucleus 1 in cytoplasm 2": (
        lambda t, i: np.uint8([0, 2, 1])[t],
        "in the masks 1 lies inside 2",
        "{background: 0, cytoplasm: 2, nucleus: 1}",
    ),
    "nucleus 128 in cytoplasm 255": (
        lambda t, i: np.uint8([0, 255, 128])[t],
        "in the masks 128 lies inside 255",
        "{background: 0, cytoplasm: 255, nucleus: 128}",
    ),
    "a third kind of cell": (
        lambda t, i: np.where(disc(5, 5, 5), 3, t).astype(np.uint8),
        "the values of the masks may mean several things: 0 ",
        "data.mask_instance: all",
    ),
    "red cells in two places": (
        lambda t, i: np.where(disc(3, 3, 6) | disc(60, 60, 6), 2, binary(t)).astype(np.uint8),
        "the values of the masks may mean several things: 0 ",
        "data.mask_values",
    ),
    "pictures": (
        lambda t, i: np.random.default_rng(i).integers(0, 255, t.shape).astype(np.uint8),
        "the values of the masks may mean several things: ",
        "data.mask_values",
    ),
}


SIDE_BY_SIDE = {
    "two kinds of cells": lambda t, i: np.where(disc(9, 9, 6), 2, binary(t)),
    "two cells (M08, M09)": lambda t, i: stripes(t),
    "three cells": lambda t, i: stripes(t, 3),
}


@pytest.mark.parametrize("bits", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", SIDE_BY_SIDE)
def test_regions_side_by_side_are_cells_and_the_option_for_kinds_is_named(masks, kind, bits):
    paths = masks(lambda t, i: SIDE_BY_SIDE[kind](t, i).astype(bits))
    found = survey(paths)
    assert found.format.kind == "ids"
    assert "all of which count; if the values are kinds of regions, name" in found.text
    for i, read in enumerate(read_all(paths, found.format)):
        assert np.array_equal(read > 0, SIDE_BY_SIDE[kind](truths()[i], i) > 0)


@pytest.mark.parametrize("kind", UNCERTAIN)
def test_masks_that_could_mean_several_things_are_refused_with_the_option(masks, kind):
    make, words, remedy = UNCERTAIN[kind]
    suffix = {"0 1 in JPEG": ".jpg", "background -1": ".tif"}.get(kind, ".png")
    with pytest.raises(UserError) as caught:
        survey(masks(make, suffix))
    line = one_line(caught.value)
    assert line.startswith(words)
    assert remedy in line
    assert len("cellbench: error: " + line) <= 300


BROKEN = {
    "empty": (lambda t: 0 * t, "shows no cell"),
    "all cell": (lambda t: 0 * t + 255, "is all cell, without background"),
    "2 % strays": (lambda t: sprinkle(GREY[t], 82, [37, 64, 90, 192, 211]), "82 of 4,096 pixels"),
    "inverted alone": (lambda t: 255 - 255 * binary(t), "looks inverted"),
    "labels 0 and 1": (lambda t: binary(t), "are none of 0, 128, 255, most of them 1;"),
    "colours": (lambda t: np.uint8([(0, 0, 0), (9, 0, 0), (0, 9, 0)])[t], "has colours and not n"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_one_mask_that_differs_is_refused_by_name(masks, kind):
    make, words = BROKEN[kind]
    paths = masks(lambda t, i: GREY[t])
    found = survey(paths)
    save(make(truths()[7]), paths[7])
    with pytest.raises(UserError, match=words) as caught:
        read_all(paths[7:8], found.format)
    assert "07.png" in str(caught.value)
    assert len(one_line(caught.value)) <= 280


def test_a_value_does_not_change_its_meaning_from_file_to_file(masks):
    """A mask of 0 and 1 alone shows cytoplasm, as in the others; before, it was read by itself."""
    paths = masks(lambda t, i: np.minimum(t, 1) if i % 3 == 0 else t)
    found = survey(paths)
    assert found.format.describe() == "0 background, 1 cytoplasm, 2 nucleus"
    nuclei_only = masks(
        lambda t, i: np.where(t == 2, 255, 0).astype(np.uint8) if i == 5 else GREY[t]
    )
    found = survey(nuclei_only)
    assert found.notes == (
        f"a nucleus without cytoplasm in 1 of 24 masks ({nuclei_only[5].parent.name}/05.png)",
    )
    assert np.array_equal(read_all(nuclei_only, found.format)[5] == 2, truths()[5] == 2)


def test_a_blurred_edge_does_not_make_a_nucleus_of_the_cell(masks):
    paths = masks(lambda t, i: sprinkle(255 * binary(t), 9, [127, 128], i))
    found = survey(paths)
    assert found.format.describe() == "0 background, 255 cell"
    assert found.notes[0].startswith("216 stray pixels in 24 of 24 masks, at most 9 in one")


@pytest.mark.parametrize("quality", [70, 80, 95])
def test_compression_changes_no_pixel(masks, quality):
    paths = masks(lambda t, i: compressed(GREY[t], quality))
    found = survey(paths)
    assert_regions(paths, found.format, nuclei=True)
    assert "noise of compression in 24 of 24 masks" in found.text


@pytest.mark.parametrize("quality", [60, 70, 80, 90])
def test_jpeg_masks_of_any_quality(masks, quality):
    """Some had more noise than strays allow, and were refused beside the others."""
    paths = masks(lambda t, i: compressed(255 * binary(t), quality))
    found = survey(paths)
    assert found.format.describe() == "0 background, 255 cell"
    assert_regions(paths, found.format, nuclei=False)


def test_the_announcement_of_strays_agrees_with_the_refusal(masks):
    """3 to 180 of 90,000 pixels, and up to 1 %, are taken; of the announced ones, all are."""
    numbers = [1, 8, 40, 41, 60, 400, *[0] * 18]  # of 4,096 pixels
    paths = masks(lambda t, i: sprinkle(GREY[t], numbers[i], [37, 64, 90, 192, 211], i))
    found = survey(paths)
    assert found.notes[0].startswith("3 of 24 masks refused, as more than 1% of their pixels")
    assert found.notes[1].startswith("49 stray pixels in 3 of 24 masks, at most 40 in one")
    for i, path in enumerate(paths):
        if numbers[i] <= 40:
            read_all([path], found.format)
            continue
        with pytest.raises(UserError, match=rf"{numbers[i]} of 4,096 pixels \(more than 1%\)"):
            read_all([path], found.format)
    table = {"background": [0, 37], "cytoplasm": [64, 90, 128, 192], "nucleus": [211, 255]}
    read_all(paths, survey(paths, table).format)  # the remedy that the line names


def test_lines_about_masks_keep_their_remedy_however_long_the_names(dataset, fails):
    """The way out stands at the end of each line, and none is cut."""
    root = dataset(lambda t, i: sprinkle(GREY[t], 90 * (i == 5), [64]))
    for path in [*root.rglob("*.png")]:
        path.rename(path.with_stem(f"{path.stem} {'a long name of a slide ' * 8}x"))
    command = ["fit", "--data=FolderDataModule", f"--data.root={root}", "--data.view=masked"]
    line = fails(*command, "--data.group_pattern=none")
    assert (
        "90 of 4,096 pixels (more than 1%) are none of 0, 128, 255, most of them 64; save" in line
    )
    assert "or name them in data.mask_values; audit lists all such files" in line
    values = "--data.mask_values={background: 0, cytoplasm: [64, 128], nucleus: 255}"
    assert main([*command, *QUICK, "--data.group_pattern=none", values, "--runs", str(root)]) == 0


def test_strays_beside_labels_are_no_cell(masks):
    paths = masks(lambda t, i: sprinkle(binary(t), 9, [200, 250, 255, 90, 30, 8, 60, 70, 240], i))
    found = survey(paths)
    assert found.format.describe() == "0 background, 1 cell"
    assert found.notes[0].startswith("216 stray pixels in 24 of 24 masks")


def test_crops_of_a_field_of_instances(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 400, (120, 2))
    rows, columns = np.mgrid[:400, :400]
    away = np.hypot(rows[..., None] - points[:, 0], columns[..., None] - points[:, 1])
    field = np.where(away.min(-1) < 20, away.argmin(-1) + 1, 0).astype(np.uint16)
    alone = np.sort(np.hypot(*(points[:, None] - points).T), axis=0)[1] > 6
    inner = (abs(points - 200) < 160).all(axis=1) & alone
    inside = [(i, *points[i].astype(int)) for i in np.flatnonzero(inner)]
    paths = [
        save(field[y - 32 : y + 32, x - 32 : x + 32], tmp_path / f"{i}.png") for i, y, x in inside
    ]
    found = survey(paths, instance="centre")
    assert found.format == MaskFormat("ids", instance="centre")
    for mask, (i, y, x) in zip(read_all(paths, found.format), inside, strict=True):
        expected = field[y - 32 : y + 32, x - 32 : x + 32] == i + 1
        assert np.array_equal(mask > 0, expected)


def test_the_instance_at_the_centre(tmp_path):
    two = np.where(disc(32, 34, 9), 5, np.where(disc(10, 10, 8), 7, 0)).astype(np.uint8)
    shown = np.zeros((SIDE, SIDE, 3), np.uint8)
    ids = MaskFormat("ids", instance="centre")
    table = replace(MaskFormat.of((0, "background"), (5, "cytoplasm"), (7, "nucleus")), given=True)
    for instance, mask_format in (("centre", ids), ("centre", table), ("all", ids)):
        path = save(two, tmp_path / "m.png")
        mask = read_mask(path, shown, replace(mask_format, instance=instance))
        expected = disc(32, 34, 9) | ((instance == "all") & disc(10, 10, 8))
        assert np.array_equal(mask > 0, expected)
    near = save(disc(32, 44, 9).astype(np.uint8), tmp_path / "near.png")  # 3.5 pixels away
    assert (read_mask(near, shown, ids) > 0).sum() == disc(32, 44, 9).sum()
    far = save(disc(10, 10, 8).astype(np.uint8), tmp_path / "far.png")
    with pytest.raises(
        UserError, match=r"far\.png has no cell within 7 pixels of the centre; .*all"
    ):
        read_mask(far, shown, ids)


def test_the_user_decides_what_is_uncertain(masks):
    inverted = masks(lambda t, i: 255 - 255 * binary(t))
    found = survey(inverted, {"background": 255, "cell": 0})
    assert_regions(inverted, found.format, nuclei=False)
    three = masks(lambda t, i: np.where(disc(5, 5, 5), 3, t).astype(np.uint8))
    table = {"background": [0, 3], "cytoplasm": 1, "nucleus": 2}
    assert_regions(three, survey(three, table).format, nuclei=True)
    found = survey(three, instance="centre")
    assert found.format == MaskFormat("ids", instance="centre")


@pytest.mark.parametrize(
    "values",
    [
        {"background": "#ff0000", "cytoplasm": "#000080", "nucleus": "#0000FF"},
        {"background": [255, 0, 0], "cytoplasm": [0, 0, 128], "nucleus": [0, 0, 255]},
        {"background": [[255, 0, 0]], "cytoplasm": "#000080", "nucleus": [0, 0, 255]},
    ],
)
@pytest.mark.parametrize("palette", [False, True])
def test_colours_are_named(masks, values, palette):
    colours = [(255, 0, 0), (0, 0, 128), (0, 0, 255)]
    paths = masks(lambda t, i: in_palette(t, *colours) if palette else np.uint8(colours)[t])
    check_mask_values(values)
    found = survey(paths, values)
    assert_regions(paths, found.format, nuclei=True)


def test_numbers_for_masks_of_colours_are_refused(masks):
    paths = masks(lambda t, i: np.uint8([(255, 0, 0), (0, 0, 128), (0, 0, 255)])[t])
    with pytest.raises(UserError, match=r"has numbers, but the masks have colours: #ff0000 .*name"):
        survey(paths, {"background": 0, "cell": 1})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{cell: 255}", "data.mask_values: name the background and at least one of cell"),
        ("{background: 0}", "data.mask_values: name the background and at least one of cell"),
        ("{background: 0, cell: 0}", "data.mask_values: 0 is both background and cell"),
        ("{background: 0, cell: '#ff0000'}", "data.mask_values: numbers beside colours"),
        ("{background: '#000000', cell: 'red'}", "data.mask_values.cell: 'red' is not a colour"),
        ("{background: '#000000', cell: [1, 2, 300]}", "data.mask_values: numbers beside colours"),
        (
            "{background: [0, 0, 0], cell: [[1, 2]]}",
            "data.mask_values.cell: [1, 2] is not a colour",
        ),
        ("{background: 0, cell: []}", "data.mask_values.cell: no value"),
        ("{background: 0, cel: 1}", "data.mask_values (a key): expected background, cell, cytopl"),
        ("{background: 0, cell: 0.5}", "data.mask_values.cell: expected int or str or a list"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_read(fails, tmp_path, value, words):
    line = fails(
        "fit", "--data=FolderDataModule", f"--data.root={tmp_path}", f"--data.mask_values={value}"
    )
    assert line.startswith(words)
    assert len(line) <= 280


def test_a_run_stores_the_format_and_prediction_uses_it(dataset, fit, capsys, tmp_path):
    root = dataset(lambda t, i: t)
    data = ["--data=FolderDataModule", f"--data.root={root}", "--data.view=masked"]
    run = fit(*data)
    assert "masks      0 background, 1 cytoplasm, 2 nucleus\n" in capsys.readouterr().out
    described, _ = read_checkpoint(run / "checkpoints" / "best.ckpt")
    stored = described.preprocessing.mask_format
    assert stored == MaskFormat.of((0, "background"), (1, "cytoplasm"), (2, "nucleus"))
    # A mask of 0 and 2 alone is a nucleus; by itself it would be a cell without one.
    images, own = tmp_path / "new", tmp_path / "own"
    write_image(images / "a.png", read_image(root / "mono" / "00.png"))
    save(np.where(truths()[0] == 2, 2, 0).astype(np.uint8), own / "a.png", ".tif")
    shown = UnlabelledImages([images], own, described.preprocessing)
    assert shown[[0]].images.any()
    assert not shown.unreadable
    save(np.where(truths()[0] > 0, 9, 0).astype(np.uint8), own / "a.png", ".tif")
    shown = UnlabelledImages([images], own, described.preprocessing)
    assert not shown[[0]].images.any()
    assert "are none of 0, 1, 2, most of them 9" in shown.unreadable[0]


def test_values_of_a_configuration_are_used_by_every_command(dataset, fit, fails, tmp_path):
    root = dataset(lambda t, i: np.uint8([(255, 0, 0), (0, 0, 128), (0, 0, 255)])[t])
    options = ["fit", "--data=FolderDataModule", f"--data.root={root}", "--data.view=nucleus"]
    line = fails(*options, f"--runs={tmp_path / 'r'}")
    assert line.startswith("the masks have colours: #ff0000 ")
    values = {"background": "#ff0000", "cytoplasm": "#000080", "nucleus": "#0000ff"}
    experiment = {
        "data": {
            "class_path": "FolderDataModule",
            "init_args": {"root": str(root), "view": "nucleus", "mask_values": values},
        }
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(experiment))
    run = fit(f"--config={tmp_path / 'e.yaml'}")
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["data"]["init_args"]["mask_values"] == values
    output = tmp_path / "p.csv"
    predict = ["predict", f"--run={run}", f"--images={root}", f"--masks={root / 'masks'}"]
    assert main([*predict, f"--output={output}"]) == 0
    predicted = {row["file"]: row["p_mono"] for row in csv.DictReader(output.open())}
    for row in csv.DictReader((run / "predictions.csv").open()):
        assert float(predicted[row["id"]]) == pytest.approx(float(row["p_mono"]), abs=1e-4)
    by_option = fit(
        "--data=FolderDataModule",
        f"--data.root={root}",
        "--data.view=nucleus",
        f"--data.mask_values={json.dumps(values)}",
    )
    same = [read_checkpoint(r / "checkpoints" / "best.ckpt")[0] for r in (run, by_option)]
    assert same[0].preprocessing == same[1].preprocessing


def test_strays_and_format_are_in_the_audit(dataset, tmp_path, fails):
    root = dataset(lambda t, i: sprinkle(GREY[t], 5 * (i == 3), [64], i))
    folder = tmp_path / "audit"
    command = ["audit", "--data=FolderDataModule", f"--data.root={root}", f"--output={folder}"]
    assert main(command) in (0, 1)  # cells drawn so alike are near copies
    found = json.loads((folder / "audit.json").read_text())["masks"]["format"]
    assert found.startswith("0 background, 128 cytoplasm, 255 nucleus; 5 stray pixels in 1 of 24")
    assert "128 cytoplasm, 255 nucleus; 5 stray pixels" in (folder / "audit.html").read_text()
    for path in (root / "masks").rglob("*.png"):
        save(255 - np.array(PIL.Image.open(path)), path)
    line = fails(*command)
    assert line.startswith("24 of 24 masks look inverted")


def test_what_was_trained_before_there_were_formats(dataset):
    """Checkpoints without the entries are read; the run can go on, and its masks are read alone."""
    data = FolderDataModule(root=dataset(lambda t, i: GREY[t]), view="masked")
    model = {"classes": ["a", "b"], "image_size": [128, 128], "backbone": "b", "norm": "batch"}
    now = Description(
        "1", model | {"channels": 3, "head": {}}, data.preprocessing, "32", "d", "s", "l", None
    )
    plain = now.as_plain()
    assert Description.from_plain(json.loads(json.dumps(plain))) == now
    for name in ("mask_format", "cellpose"):
        del plain["preprocessing"][name]
    before = Description.from_plain(plain)
    assert before.preprocessing.mask_format == MaskFormat()
    check_unchanged(before, now)
    other = replace(now.preprocessing, mask_format=MaskFormat("ids"))
    with pytest.raises(UserError, match="preprocessing is not the one"):
        check_unchanged(now, replace(now, preprocessing=other))
    path = next((data.root / "masks").rglob("*.png"))
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    assert np.array_equal(read_mask(path, image), read_mask(path, image, data.mask_format))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "values"},
        {"kind": "other"},
        {"values": [["0", "cell"]], "kind": "values"},
        {"values": [[0, "lump"]], "kind": "values"},
        {"instance": "none"},
        {"coloured": 1},
        {"more": 1},
    ],
)
def test_a_changed_format_in_a_checkpoint_is_refused(change):
    with pytest.raises((ValueError, TypeError)):
        MaskFormat.from_plain(asdict(MaskFormat()) | change)


def test_another_laboratory_may_have_other_values(dataset):
    """Scores on its masks are not flagged: the values are read right, whatever they are."""
    data = FolderDataModule(root=dataset(lambda t, i: GREY[t]), view="masked")
    model = {"classes": ["a", "b"], "image_size": [128, 128], "backbone": "b", "norm": "batch"}
    ours = Description("1", model, data.preprocessing, "32", "d", "s", "l", None)
    other = replace(data.preprocessing, mask_format=MaskFormat("ids"))
    assert changed_preprocessing(replace(ours, preprocessing=other), ours) == []
    centre = replace(data.preprocessing, mask_format=MaskFormat("ids", instance="centre"))
    assert changed_preprocessing(replace(ours, preprocessing=centre), ours) == [
        "mask_instance is all here, and was centre in training"
    ]


def test_the_meaning_of_values_is_part_of_the_cache(dataset):
    root = dataset(lambda t, i: t)
    found = []
    for values in (None, {"background": 0, "cytoplasm": 2, "nucleus": 1}):
        data = FolderDataModule(root=root, view="nucleus", mask_values=values, image_size=SIDE)
        data = replace(data, cache=CacheConfig(memory=0))
        found.append((data.images.identity, data.images.pixels.masks.copy()))
    assert found[0][0] != found[1][0]
    assert np.array_equal(found[0][1] == 2, found[1][1] == 1)


def test_large_sets_are_counted_once(masks, tmp_path, monkeypatch):
    monkeypatch.setattr(mask_survey, "QUICK", 0)
    paths, cache = masks(lambda t, i: t), CacheConfig(folder=tmp_path / "cache")
    first = survey(paths, cache=cache)
    monkeypatch.setattr(mask_survey, "read_labels", lambda *args: pytest.fail("read again"))
    assert survey(paths, cache=cache) == first
    monkeypatch.undo()
    assert survey(paths, cache=cache) == first  # the quick way finds the same


def test_a_mask_that_cannot_be_read_is_named_when_it_is_needed(dataset):
    root = dataset(lambda t, i: GREY[t])
    broken = root / "masks" / "mono" / "03.png"
    broken.write_bytes(broken.read_bytes()[:80])
    data = FolderDataModule(root=root, view="masked")
    assert data.mask_format.describe() == "0 background, 128 cytoplasm, 255 nucleus"
    with pytest.raises(UserError, match=r"03\.png: the file is cut short.*data\.exclude"):
        data.setup("fit")


def test_the_sizes_of_mask_and_image(tmp_path):
    path = save(np.zeros((20, 30), np.uint8), tmp_path / "m.png")
    with pytest.raises(UserError, match=r"m\.png is 30x20 but its image is 20x30; .* \(turn the m"):
        read_mask(path, np.zeros((30, 20, 3), np.uint8))
    with pytest.raises(UserError, match=r"30x20 but its image is 40x40; the two must match$"):
        read_mask(path, np.zeros((40, 40, 3), np.uint8))


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was loaded",)


def test_arrays_cannot_run_code(tmp_path):
    path = tmp_path / "x_seg.npy"
    np.save(path, {"masks": np.zeros((4, 4)), "more": Bomb()}, allow_pickle=True)
    with pytest.raises(UserError, match=r"x_seg\.npy is a pickle, as Cellpose's _seg\.npy"):
        read_labels(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=r"x_seg\.npy: it is not a file of numpy\.save"):
        read_labels(path)


def test_arrays_that_are_no_masks(tmp_path):
    def refused(array, words, **limits):
        np.save(tmp_path / "m.npy", array)
        with pytest.raises(UserError, match=words) as caught:
            read_labels(tmp_path / "m.npy", **limits)
        assert "m.npy" in str(caught.value)

    refused(np.zeros((3, 20, 20), np.uint8), r"has the shape \(3, 20, 20\); give one plane")
    refused(np.zeros(20, np.uint8), r"has the shape \(20,\)")
    refused(np.full((20, 20), 0.5), "has fractions; save whole numbers")
    refused(np.full((20, 20), np.nan), "has fractions")
    refused(np.zeros((20, 20), complex), "has fractions")
    refused(np.zeros((20, 20), np.uint8), "more than max_pixels = 399 pixels", max_pixels=399)
    np.save(tmp_path / "m.npy", np.zeros((20, 20), np.uint8))
    data = (tmp_path / "m.npy").read_bytes()
    (tmp_path / "m.npy").write_bytes(data[:-50])
    with pytest.raises(UserError, match="cut short"):
        read_labels(tmp_path / "m.npy")
    (tmp_path / "m.npy").write_bytes(data.replace(b"(20, 20)", b"(9**99,)"))
    with pytest.raises(UserError):
        read_labels(tmp_path / "m.npy")


def test_masks_to_predict_may_have_any_suffix(tmp_path):
    truth, prepared = truths()[0], Preprocessing((32, 32), "masked", 0)
    images, own = tmp_path / "images", tmp_path / "own"
    for name, suffix in (("a", ".png"), ("b", ".tif"), ("c", ".npy"), ("d", ".bmp")):
        write_image(images / f"{name}.png", np.full((SIDE, SIDE, 3), 200, np.uint8))
        save(GREY[truth], own / name, suffix)
    shown = UnlabelledImages([images], own, prepared)
    batch = shown[[0, 1, 2, 3]].images
    assert not shown.unreadable
    assert batch.any()
    assert all(torch.equal(batch[0], each) for each in batch)
    assert {".png", ".tif", ".npy", ".bmp"} <= MASK_SUFFIXES
    save(GREY[truth], own / "d", ".png")
    with pytest.raises(
        UserError, match=r"d\.bmp and d\.png could both be the mask of .*d\.png; ke"
    ):
        UnlabelledImages([images], own, prepared)
    (own / "d.png").unlink()
    (own / "d.bmp").unlink()
    with pytest.raises(UserError, match=r"has no mask .*own/d\.png \(1 of 4 images have none\)"):
        UnlabelledImages([images], own, prepared)


class FakeModel:
    """Stand-in for cellpose.models.CellposeModel: dark pixels (bright of one channel) are cells."""

    made: ClassVar[list[dict]] = []

    def __init__(self, gpu=False, pretrained_model="cpsam_v2", model_type=None):
        self.made.append({"gpu": gpu, "pretrained_model": pretrained_model})

    def eval(self, x, diameter=None, channel_axis=None, max_size_fraction=0.4, min_size=15):
        assert x.dtype == np.uint8
        assert (x.shape[2], channel_axis, diameter) == (3, 2, None)
        cell = x[..., 0] > 0 if not x[..., 1].any() else x.min(2) < 180
        _, ids = cv2.connectedComponents(cell.astype(np.uint8))
        large = [
            k for k, n in enumerate(np.bincount(ids.ravel())) if n > max_size_fraction * ids.size
        ]
        ids[np.isin(ids, [k for k in large if k])] = 0
        return ids.astype(np.uint16), [None, None, None], np.zeros(256)


@pytest.fixture
def fake_cellpose(monkeypatch):
    package, models = types.ModuleType("cellpose"), types.ModuleType("cellpose.models")
    models.CellposeModel, models.MODEL_NAMES = FakeModel, ["cpsam_v2", "cpsam"]
    package.models = models
    monkeypatch.setitem(sys.modules, "cellpose", package)
    monkeypatch.setitem(sys.modules, "cellpose.models", models)
    monkeypatch.setattr(cellpose, "version", lambda name: "4.2.1.1")
    FakeModel.made = []
    cellpose._load.cache_clear()
    yield FakeModel
    cellpose._load.cache_clear()


def two_cells():
    image = np.full((SIDE, SIDE, 3), 230, np.uint8)
    image[disc(32, 32, 26)] = (120, 90, 130)  # half of the image, which Cellpose drops by default
    image[disc(3, 3, 3)] = (120, 90, 130)
    return image


def test_cellpose_finds_the_cell_at_the_centre(fake_cellpose):
    options = {"image_size": SIDE, "view": "masked", "masks": "cellpose", "root": Path("nowhere")}
    prepared = FolderDataModule(**options).preprocessing
    _, mask = prepared.prepare(two_cells(), None, "x.png")
    assert np.array_equal(mask > 0, disc(32, 32, 26))
    assert set(np.unique(mask)) == {0, 1}
    every = FolderDataModule(**options, mask_instance="all").preprocessing
    _, mask = every.prepare(two_cells(), None, "x.png")
    assert np.array_equal(mask > 0, disc(32, 32, 26) | disc(3, 3, 3))
    assert fake_cellpose.made == [{"gpu": True, "pretrained_model": "cpsam"}]  # loaded once
    blank = np.full((SIDE, SIDE, 3), 230, np.uint8)
    with pytest.raises(UserError, match=r"'x\.png': mask by data.masks: cellpose shows no cell"):
        prepared.prepare(blank, None, "x.png")
    one = np.where(two_cells()[..., :1] < 200, np.uint8(250), np.uint8(0))
    assert np.array_equal(prepared.segment(one, "x") > 0, disc(32, 32, 26))
    with pytest.raises(
        UserError, match=r"cellpose, which takes 3 channels at most, and .* gives 4"
    ):
        FolderDataModule(**options, channels=[0, 1, 2, 3])
    assert FolderDataModule(**options, channels=[2]).preprocessing.masks == "cellpose"
    with pytest.raises(UserError, match=r"nucleus, but Cellpose outlines whole cells; use data\.m"):
        FolderDataModule(**options | {"view": "nucleus"})


def test_the_automatic_mask_at_the_centre():
    image, mask = np.full((120, 200, 3), (225, 220, 222), np.uint8), np.zeros((120, 200), np.uint8)
    for x, value in ((100, 1), (25, 2)):  # a second white cell at the edge
        cv2.circle(image, (x, 60), 24, (190, 160, 200), -1)
        cv2.circle(image, (x, 60), 14, (90, 40, 140), -1)
        cv2.circle(mask, (x, 60), 24, value, -1)
    options = {"view": "masked", "masks": "auto", "root": Path("nowhere")}
    every, centre = (
        FolderDataModule(**options, mask_instance=instance).preprocessing
        for instance in (None, "centre")
    )
    found = [each.segment(image, "x") > 0 for each in (every, centre)]
    assert found[0][mask == 2].mean() > 0.9
    assert found[1][mask == 1].mean() > 0.9
    assert not found[1][mask == 2].any()
    assert every.segments != centre.segments
    assert "only the cell at the centre counts" in "\n".join(preprocessing_steps(centre))


def test_masks_of_cellpose_serve_training_and_prediction(dataset, fit, fake_cellpose, tmp_path):
    root = dataset(lambda t, i: GREY[t])
    for mask in (root / "masks").rglob("*.png"):
        mask.write_bytes(b"never read")
    cache = f"--data.cache.folder={tmp_path / 'cache'}"
    run = fit(
        "--data=FolderDataModule",
        f"--data.root={root}",
        "--data.view=masked",
        "--data.masks=cellpose",
        cache,
    )
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1  # kept, however small
    described, _ = read_checkpoint(run / "checkpoints" / "best.ckpt")
    assert described.preprocessing.masks == "cellpose"
    assert described.preprocessing.mask_format.instance == "centre"
    output = tmp_path / "p.csv"
    command = ["predict", f"--run={run}", f"--images={root}", f"--output={output}"]
    assert main(command) == 0
    predicted = {row["file"]: row["p_mono"] for row in csv.DictReader(output.open())}
    for row in csv.DictReader((run / "predictions.csv").open()):
        assert float(predicted[row["id"]]) == pytest.approx(float(row["p_mono"]), abs=1e-4)


def test_what_changes_cellposes_masks_changes_their_identity(fake_cellpose, tmp_path, monkeypatch):
    weights = tmp_path / "mine"
    weights.write_bytes(b"a")
    texts = [
        cellpose.identify(CellposeConfig()),
        cellpose.identify(CellposeConfig(diameter=30)),
        cellpose.identify(CellposeConfig("cpsam_v2")),
        cellpose.identify(CellposeConfig(str(weights))),
    ]
    weights.write_bytes(b"bc")
    texts.append(cellpose.identify(CellposeConfig(str(weights))))
    monkeypatch.setattr(cellpose, "version", lambda name: "4.3")
    texts.append(cellpose.identify(CellposeConfig()))
    prepared = Preprocessing((8, 8), "masked", 0, "cellpose", mask_format=MaskFormat("ids"))
    centre = replace(prepared, mask_format=MaskFormat("ids", instance="centre"))
    texts += [prepared.segments, centre.segments]
    assert len(set(texts)) == len(texts)


def test_cellpose_that_cannot_be_used_is_one_line(
    dataset, fails, monkeypatch, fake_cellpose, tmp_path
):
    options = [
        "fit",
        "--data=FolderDataModule",
        f"--data.root={dataset(lambda t, i: t)}",
        "--data.view=masked",
        "--data.masks=cellpose",
        f"--runs={tmp_path / 'r'}",
    ]
    line = fails(*options, "--data.cellpose.model=cyto3")
    assert "data.cellpose.model: there is no file" in line
    assert "known are cpsam, cpsam_v2, cpdino" in line
    line = fails(*options, "--data.cellpose.model=cpdino")
    assert "this version of Cellpose has no 'cpdino'; it has cpsam_v2, cpsam" in line
    line = fails(*options, "--data.cellpose.diameter=0")
    assert line.startswith("data.cellpose.diameter: ")

    def offline(*args, **kwargs):
        raise OSError("no network\nmore")

    monkeypatch.setattr(sys.modules["cellpose.models"], "CellposeModel", offline)
    line = fails(*options)
    assert "data.cellpose.model: Cellpose cannot load 'cpsam': no network; give" in line
    monkeypatch.setattr(cellpose, "version", lambda name: "3.1.1.2")
    assert "needs Cellpose 4, but 3.1.1.2 is installed" in fails(*options)
    monkeypatch.undo()
    cellpose._load.cache_clear()
    line = fails(*options)
    assert line.startswith("data.masks: cellpose needs Cellpose: pip install 'cellbench[cellpose]'")


@pytest.mark.shared
def test_the_real_masks_are_read_as_before():
    """The digest is that of the masks as they were read before there were formats."""
    data = HPVDataModule(root=SHARED / "hpv", view="masked")
    assert data.mask_set.survey.text == "0 background, 128 cytoplasm, 255 nucleus"
    digest = hashlib.blake2b(digest_size=16)
    for sample in data.listed:
        image = data.read_image(sample)
        digest.update(data.read_mask(sample, image).tobytes())
        assert np.array_equal(data.read_mask(sample, image), read_mask(sample.mask, image))
    assert digest.hexdigest() == "f31c988c3271929d41a0fdd5936113a5"
