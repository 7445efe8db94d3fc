"""Near copies: found where they are, not where images only look alike, and sought once."""

import cv2
import numpy as np
import pytest

from cellbench.data import result_cache
from cellbench.data.cache import CacheConfig
from cellbench.data.datasets.hpv import NEAR_COPIES, HPVDataModule
from cellbench.data.duplicates.copies import find_copies
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


CHANGES = {
    "turned": lambda image: warped(image, 25),
    "upside down": lambda image: image[::-1, ::-1].copy(),
    "shifted": lambda image: warped(image, shift=(40, -25)),
    "enlarged": lambda image: warped(image, scale=1.15),
    "mirrored and turned": lambda image: warped(image[:, ::-1].copy(), 15),
    "compressed": lambda image: cv2.imdecode(
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR
    ),
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
    monkeypatch.setattr(result_cache, "_TOGETHER", 4)
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
