"""Near copies: found where they are, not where images only look alike, and sought once."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from cellbench.data import result_cache
from cellbench.data.cache import CacheConfig
from cellbench.data.datasets.hpv import NEAR_COPIES, HPVDataModule
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.data.duplicates import texture
from cellbench.data.duplicates.copies import MIN_EVIDENCE, find_copies, is_plain
from cellbench.data.duplicates.registration import to_compare
from cellbench.data.duplicates.sources import find_sources
from tests.conftest import SHARED
from tests.lookalikes import draw_field


@pytest.fixture
def cache(tmp_path):
    return CacheConfig(folder=tmp_path / "cache")


def search(images, cache):
    contents = [image.tobytes().hex()[:2000] + str(image.sum()) for image in images]
    return find_copies(contents, lambda i: images[i], cache)


def pairs(found):
    return {tuple(sorted((copy.first, copy.second))) for copy in found}


def warped(image, degrees=0.0, shift=(0, 0), scale=1.0):
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, scale)
    turn[:, 2] += shift
    return cv2.warpAffine(image, turn, (width, height))


def compressed(image, quality):
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(content, cv2.IMREAD_COLOR)


CHANGES = {
    "turned": lambda image: warped(image, 25),
    "upside down": lambda image: image[::-1, ::-1].copy(),
    "shifted": lambda image: warped(image, shift=(40, -25)),
    "enlarged": lambda image: warped(image, scale=1.15),
    "mirrored and turned": lambda image: warped(image[:, ::-1].copy(), 15),
    "compressed": lambda image: compressed(image, 60),
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5),
    "darker": lambda image: (image * 0.8).astype(np.uint8),
    "cut out": lambda image: image[30:200, 60:280].copy(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_among_fields_that_look_alike(change, cache):
    rng = np.random.default_rng(1)
    images = [draw_field(rng, 0) for _ in range(8)]
    images.append(CHANGES[change](images[5]))
    found = search(images, cache)
    assert pairs(found) == {(5, 8)}
    assert found[0].agreement > 0.5


def draw_smooth_cell(rng, size, lobes, noise, hard):
    """A cell of plain colours: a disc, and a nucleus of overlapping discs."""
    y, x = np.mgrid[:size, :size]
    centre = size / 2 + rng.uniform(-0.06, 0.06, 2) * size
    radius = size * rng.uniform(0.3, 0.38)
    image = np.full((size, size, 3), (225.0, 215, 222))
    discs = [(*centre, radius, (200, 160, 190))]
    for lobe in range(lobes):
        angle = 2 * np.pi * lobe / lobes + rng.uniform(0, 1)
        off = radius * (0.4 if lobes > 1 else 0)
        place = centre + off * np.array([np.sin(angle), np.cos(angle)])
        discs.append((*place, radius * (0.3 if lobes > 1 else 0.55), (90, 40, 140)))
    for down, across, r, colour in discs:
        distance = np.hypot(y - down, x - across) - r
        inside = distance < 0 if hard else 1 / (1 + np.exp(np.clip(distance, -30, 30)))
        image += (np.array(colour) - image) * np.asarray(inside, float)[..., None]
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("quality", [None, 80])
@pytest.mark.parametrize(
    ("size", "noise", "hard"),
    [(48, 8, True), (64, 8, True), (80, 6, True), (128, 8, True), (128, 1, False), (128, 0, True)],
)
def test_cells_drawn_without_texture_are_no_near_copies(size, noise, hard, quality, cache):
    """Their outlines agree after an affine fit, but nothing between the outlines does."""
    rng = np.random.default_rng(size)
    images = [draw_smooth_cell(rng, size, 1 + i % 4, noise, hard) for i in range(72)]
    if quality is not None:
        images = [compressed(image, quality) for image in images]
    assert search(images, cache) == []


@pytest.mark.parametrize("size", [64, 96])
def test_a_shifted_and_brighter_copy_of_a_textured_cell_is_found(size, cache):
    data = SyntheticDataModule(samples=24, slides=6)
    images = [cv2.resize(data.read_image(s), (size, size)) for s in data.list_samples()]
    copies = [np.clip(warped(images[i], shift=(4, 3)) * 1.1, 0, 255) for i in range(6)]
    found = search([*images, *(copy.astype(np.uint8) for copy in copies)], cache)
    assert pairs(found) == {(i, 24 + i) for i in range(6)}


def test_evidence_of_independent_noise_is_standard_normal():
    rng = np.random.default_rng(0)
    noise = rng.normal(128, 12, (40, 128, 128)).clip(0, 255).astype(np.uint8)
    unmoved = np.eye(2, 3)
    values = [texture.evidence(a, b, unmoved) for a, b in pairwise(noise)]
    assert abs(np.mean(values)) < 0.5
    assert 0.6 < np.std(values) < 1.4
    assert texture.evidence(noise[0], noise[0], unmoved) > 25


def test_an_image_without_texture_is_called_plain():
    rng = np.random.default_rng(0)
    assert is_plain(np.full((64, 64, 3), 200, np.uint8))
    assert is_plain(draw_smooth_cell(rng, 96, 3, 0, hard=False))
    field = draw_field(rng, 0)
    assert not is_plain(field)
    assert texture.count_details(to_compare(field)) > 500


def test_equal_images_are_looked_at_once(cache):
    image = draw_field(np.random.default_rng(0), 0)
    read = []

    def get(i):
        read.append(i)
        return image

    assert find_copies(["a"] * 50, get, cache) == []
    assert set(read) == {0}


def test_images_without_any_corner_are_no_copies(cache):
    flat = [np.full((64, 64, 3), grey, np.uint8) for grey in (100, 110, 120)]
    assert search(flat, cache) == []


def test_an_interrupted_search_goes_on_where_it_was(cache, monkeypatch):
    monkeypatch.setattr(result_cache, "_BATCH_IMAGES", 4)
    rng = np.random.default_rng(1)
    images = [draw_field(rng, 0) for _ in range(12)]
    read = []

    def interrupted(i):
        if i == 9:
            raise KeyboardInterrupt
        return images[i]

    def counted(i):
        read.append(i)
        return images[i]

    contents = [str(i) for i in range(12)]
    with pytest.raises(KeyboardInterrupt):
        find_sources(contents, interrupted, ["x"], lambda _: images[0], cache)
    found = find_sources(contents, counted, ["x"], lambda _: images[0], cache)
    assert [match.original for match in found] == [0] + [-1] * 11
    assert sorted(set(read)) == [8, 9, 10, 11]


def test_a_file_cut_short_is_made_anew(cache):
    rng = np.random.default_rng(1)
    images = [draw_field(rng, 0) for _ in range(5)]
    images.append(CHANGES["turned"](images[2]))
    first = search(images, cache)
    for path in cache.path.glob("*.npz"):
        path.write_bytes(path.read_bytes()[:-100])
    assert search(images, cache) == first
    assert pairs(first) == {(2, 5)}


@pytest.mark.shared
def test_the_real_near_copies_are_those_that_are_grouped(cache):
    data = HPVDataModule(root=SHARED / "hpv", cache=cache)
    samples = data.list_samples()
    found = data.find_copies(samples)
    assert {
        tuple(sorted((samples[copy.first].id[-7:-4], samples[copy.second].id[-7:-4])))
        for copy in found
    } == set(NEAR_COPIES)
    assert min(copy.agreement for copy in found) > 0.85
    assert min(copy.evidence for copy in found) > MIN_EVIDENCE + 0.5
