"""Masks found in the pixels: on drawn cells, and against the experts' on real ones."""

import cv2
import numpy as np
import pytest

from cellbench.data.files import read_image
from cellbench.data.mask_files import read_mask
from cellbench.data.outlines import best_path
from cellbench.data.segmentation import DOUBTFUL, segment, segment_with_confidence
from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS
from cellbench.utils.errors import UserError
from tests.benchmarks import masks
from tests.conftest import SHARED, draw_cell, draw_debris

SLIDE, RED, PURPLE, PINK = (230, 228, 226), (190, 150, 142), (110, 70, 165), (205, 165, 195)


def draw_field(scale, cells=((100, 90),), height=240, width=320, corner=False):
    """A field with platelets and red cells, one under a white cell, and its mask."""
    image = np.full((height * scale, width * scale, 3), SLIDE, np.uint8)
    mask = np.zeros(image.shape[:2], np.uint8)

    def disc(x, y, radius, colour, value):
        cv2.circle(image, (scale * x, scale * y), scale * radius, colour, -1, cv2.LINE_AA)
        cv2.circle(mask, (scale * x, scale * y), scale * radius, value, -1)

    for x, y in [(126, 104), (175, 115), (225, 120), (60, 200), (105, 205), (290, 50)]:
        disc(x, y, 26, RED, BACKGROUND)
    for x, y in [(220, 50), (30, 140)]:
        disc(x, y, 5, PURPLE, BACKGROUND)
    for x, y in cells:
        disc(x, y, 33, PINK, CYTOPLASM)
        disc(x - 8, y - 10, 14, PURPLE, NUCLEUS)
        disc(x + 8, y + 10, 14, PURPLE, NUCLEUS)
    if corner:
        black = np.array([(0, 0), (0, 110), (250, 0)]) * scale
        cv2.fillPoly(image, [black], (0, 0, 0))
        cv2.fillPoly(mask, [black], BACKGROUND)
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    blurred = cv2.GaussianBlur(image, (0, 0), scale) + noise
    return np.clip(blurred, 0, 255).astype(np.uint8), mask


def overlaps(found, drawn):
    """Intersection over union of the cells and of the nuclei."""
    return [
        np.sum((found >= value) & (drawn >= value)) / np.sum((found >= value) | (drawn >= value))
        for value in (CYTOPLASM, NUCLEUS)
    ]


@pytest.mark.parametrize("label", [1, 2, 3])
@pytest.mark.parametrize("size", [88, 120])
def test_a_cut_out_of_one_cell(label, size):
    image, drawn = draw_cell(np.random.default_rng(label), label, size)
    found = segment(image)
    assert found.dtype == np.uint8
    assert found.shape == image.shape[:2]
    cell, nucleus = overlaps(found, drawn // 127)
    assert cell > 0.9
    assert nucleus > 0.85


@pytest.mark.parametrize("corner", [False, True])
@pytest.mark.parametrize("cells", [[(100, 90)], [(100, 90), (250, 195)], [(100, 90), (310, 195)]])
def test_a_field_without_its_red_cells_platelets_and_black_corner(cells, corner):
    image, drawn = draw_field(1, cells, corner=corner)
    cell, nucleus = overlaps(segment(image), drawn)
    assert cell > 0.9
    assert nucleus > 0.9


def test_a_cut_out_leaves_out_the_corner_of_the_next_cell():
    image, drawn = draw_field(1, [(60, 60), (124, 62)], 120, 120)
    drawn[:, 93:] = BACKGROUND
    cell, nucleus = overlaps(segment(image), drawn)
    assert cell > 0.9
    assert nucleus > 0.9


def test_the_scale_does_not_matter():
    masks = [segment(draw_field(scale)[0]) for scale in (1, 2, 3)]
    for scale, mask in enumerate(masks[1:], start=2):
        cell, nucleus = overlaps(mask[scale // 2 :: scale, scale // 2 :: scale], masks[0])
        assert cell > 0.93
        assert nucleus > 0.9


def test_the_same_image_gives_the_same_mask():
    image, _ = draw_field(1)
    before = image.copy()
    np.testing.assert_array_equal(segment(image), segment(image))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((60, 80, 3), np.uint8),
        np.full((60, 80, 3), 255, np.uint8),
        np.random.default_rng(0).integers(215, 235, (60, 80, 3), np.uint8),
        np.full((1, 1, 3), 200, np.uint8),
        draw_field(1, cells=())[0],
    ],
    ids=["black", "white", "noise", "one-pixel", "red-cells"],
)
def test_without_a_nucleus_there_is_no_mask(image):
    with pytest.raises(UserError, match="no white cell's nucleus") as error:
        segment(image)
    assert "\n" not in str(error.value)


def draw_pale_cell(slide, red, pink, purple, red_radius):
    """A cut-out of 300x300: a cell with pale cytoplasm, touched by red cells, and its mask."""
    image = np.full((300, 300, 3), slide, np.float32)
    mask = np.zeros((300, 300), np.uint8)
    around = [(60, 60), (150, 40), (245, 75), (262, 170), (215, 260), (100, 255), (45, 160)]
    for x, y in around:
        cv2.circle(image, (x, y), red_radius, red, -1, cv2.LINE_AA)
    cv2.circle(image, (150, 150), 75, pink, -1, cv2.LINE_AA)
    cv2.circle(mask, (150, 150), 75, CYTOPLASM, -1)
    for x, y in [(130, 128), (172, 140), (146, 182)]:
        cv2.circle(image, (x, y), 22, purple, -1, cv2.LINE_AA)
        cv2.circle(mask, (x, y), 22, NUCLEUS, -1)
    noise = np.random.default_rng(0).normal(0, 2, image.shape)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 1) + noise, 0, 255).astype(np.uint8), mask


@pytest.mark.parametrize("red_radius", [42, 60])
@pytest.mark.parametrize(
    "colours",
    [
        ((230, 225, 235), (195, 150, 165), (219, 213, 230), (100, 60, 150)),
        ((240, 235, 215), (200, 160, 140), (233, 221, 209), (120, 50, 120)),
        ((205, 215, 225), (170, 150, 165), (193, 205, 221), (70, 60, 140)),
    ],
    ids=["purple", "yellow", "blue"],
)
def test_pale_cytoplasm_among_red_cells_on_slides_of_any_tint(colours, red_radius):
    image, drawn = draw_pale_cell(*colours, red_radius)
    cell, nucleus = overlaps(segment(image), drawn)
    assert cell > 0.93
    assert nucleus > 0.9


def test_the_confidence_tells_cells_from_debris():
    cells = [draw_cell(np.random.default_rng(k), k, 120)[0] for k in (1, 2, 3)]
    fields = [draw_field(1, cells)[0] for cells in ([(100, 90)], [(100, 90), (250, 195)])]
    assert min(segment_with_confidence(image).confidence for image in cells + fields) > 0.9
    assert all(segment_with_confidence(draw_debris(k)).confidence < DOUBTFUL for k in range(4))


def test_a_mask_is_the_same_with_its_confidence():
    image, _ = draw_field(1)
    np.testing.assert_array_equal(segment_with_confidence(image).mask, segment(image))


def test_the_best_path_is_the_best_of_all_closed_ones():
    gain = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)

    def value(path):
        change = path - np.roll(path, 1)
        return -np.inf if abs(change).max() > 1 else sum(gain[range(5), path]) - sum(change**2) / 2

    best = max(value(np.array(path)) for path in np.ndindex(4, 4, 4, 4, 4))
    assert value(best_path(gain, 0.5, 1)) == pytest.approx(best)


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (7, 9), (40, 2), (13, 13)])
def test_a_purple_image_of_any_size_has_a_mask_or_no_cell(size):
    image = np.full((*size, 3), SLIDE, np.uint8)
    image[: size[0] // 2 + 1, : size[1] // 2 + 1] = PURPLE
    try:
        found = segment_with_confidence(image)
    except UserError:
        return
    assert found.mask.shape == size
    assert 0 <= found.confidence <= 1


@pytest.mark.shared
def test_the_experts_outlines():
    folder, found = SHARED / "hpv" / "Dataset 1", []
    for path in sorted(folder.glob("*.bmp")):
        image = read_image(path)
        found.append(overlaps(segment(image), read_mask(path.with_suffix(".png"), image)))
    assert len(found) == 300
    cell, nucleus = np.mean(found, axis=0)
    worst_cells, worst_nuclei = np.percentile(found, 5, axis=0)
    assert cell > 0.96
    assert worst_cells > 0.925
    assert nucleus > 0.935
    assert worst_nuclei > 0.83


@pytest.mark.shared
@pytest.mark.parametrize(
    ("variant", "least"),
    [
        ("redder stain", (0.95, 0.91)),
        ("dark gamma", (0.94, 0.88)),
        ("palest cytoplasm", (0.93, 0.94)),
        ("laboratory", (0.91, 0.91)),
        ("pale laboratory", (0.91, 0.91)),
    ],
)
def test_the_experts_outlines_under_other_stains(variant, least):
    rows, _ = masks.compare(variant, range(2, 301, 10))
    cell, nucleus, confidence = rows.mean(axis=0)
    assert cell > least[0]
    assert nucleus > least[1]
    doubted = rows[:, 2] < DOUBTFUL
    assert confidence > 0.9
    assert not doubted.any() or rows[doubted, 0].mean() < rows[~doubted, 0].mean()


@pytest.mark.shared
def test_real_fields_with_black_corners():
    paths = sorted((SHARED / "blood_cells" / "images" / "TRAIN").glob("*/*.jpeg"))[::60]
    for path in paths:
        image = read_image(path)
        mask = segment(image)
        assert 0.005 < np.mean(mask > BACKGROUND) < 0.2, path
        assert np.mean(image[mask > BACKGROUND].max(axis=1) < 20) < 0.005, path
