"""Views on a drawn pattern: what each hides, and that image and mask stay aligned."""

import inspect

import albumentations as A
import cv2
import numpy as np
import pytest

from cellbench.data.augment import POLICIES, Augmentation
from cellbench.data.files import read_image
from cellbench.data.mask_files import read_mask
from cellbench.data.preprocessing import Preprocessing, resize, resize_mask
from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS, apply_view, crop_box
from cellbench.utils.errors import UserError
from tests.conftest import SHARED

SIZE = 64
COLOURS = {BACKGROUND: 200, CYTOPLASM: 120, NUCLEUS: 40}


def pattern():
    """A lopsided cell whose grey value alone says which part of the mask a pixel is in."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[14:40, 10:30] = CYTOPLASM
    mask[30:50, 24:36] = CYTOPLASM
    mask[18:28, 12:22] = NUCLEUS
    grey = np.vectorize(COLOURS.get)(mask).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2), mask


@pytest.mark.parametrize("policy", ["flips", "geometric"])
def test_image_and_mask_stay_aligned(policy):
    image, mask = pattern()
    augment = Augmentation(policy, (SIZE, SIZE))
    turned = 0
    for seed in range(40):
        moved, moved_mask = augment(image, mask, (seed,))
        expected = np.vectorize(COLOURS.get)(moved_mask)
        # interpolation blurs the image's edges by a pixel; the mask takes the nearest
        assert (np.abs(moved[..., 0].astype(int) - expected) < 45).mean() > 0.93
        assert set(np.unique(moved_mask)) <= {BACKGROUND, CYTOPLASM, NUCLEUS}
        turned += not np.array_equal(moved_mask, mask)
    assert turned > 30


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("fill", [0, 255])
def test_what_a_view_hides_is_filled_after_any_augmentation(policy, fill):
    image, mask = pattern()
    augment = Augmentation(policy, (SIZE, SIZE))
    for seed in range(10):
        moved, moved_mask = augment(image, mask, (seed,))
        masked = apply_view(moved, moved_mask, "masked", fill)
        assert (masked[moved_mask == BACKGROUND] == fill).all()
        assert np.array_equal(masked[moved_mask > 0], moved[moved_mask > 0])
        nucleus = apply_view(moved, moved_mask, "nucleus", fill)
        assert (nucleus[moved_mask != NUCLEUS] == fill).all()
        assert np.array_equal(nucleus[moved_mask == NUCLEUS], moved[moved_mask == NUCLEUS])
        background = apply_view(moved, moved_mask, "background", fill)
        assert (background[moved_mask > 0] == fill).all()
        silhouette = apply_view(moved, moved_mask, "silhouette", fill)
        assert set(np.unique(silhouette)) <= {fill, 255 - fill}
        assert np.array_equal(silhouette[..., 0] != fill, moved_mask > 0)


@pytest.mark.parametrize("fill", [0, 60, 120, 127, 128, 200, 255])
def test_a_silhouette_stands_out_from_every_fill(fill):
    image, mask = pattern()
    shown = apply_view(image, mask, "silhouette", fill).astype(int)
    assert set(np.unique(shown[mask == BACKGROUND])) == {fill}
    assert (np.abs(shown[mask > 0] - fill) >= 127).all()


def test_background_hides_the_dilated_box_and_not_the_outline():
    image, mask = pattern()
    shown = apply_view(image, mask, "background", 0)
    hidden = (shown == 0).all(axis=2)
    rows, columns = np.where(mask > 0)
    margin = round(0.06 * SIZE)
    box = np.zeros_like(hidden)
    box[
        rows.min() - margin : rows.max() + margin + 1,
        columns.min() - margin : columns.max() + margin + 1,
    ] = True
    assert np.array_equal(hidden, box)


def test_crop_shows_the_cell_in_a_square_inside_the_image():
    _, mask = pattern()
    rows, columns = crop_box(mask)
    assert rows.stop - rows.start == columns.stop - columns.start
    assert (mask[rows, columns] > 0).sum() == (mask > 0).sum()
    corner = np.zeros((40, 90), np.uint8)
    corner[0:10, 70:90] = CYTOPLASM
    rows, columns = crop_box(corner)
    assert (rows.start, columns.stop) == (0, 90)
    assert (corner[rows, columns] > 0).sum() == 200


def test_crop_fills_the_frame_and_removes_the_size():
    image, mask = pattern()
    _, raw = Preprocessing((64, 64), "raw", 0).prepare(image, mask, "x")
    shown, cropped = Preprocessing((64, 64), "crop", 0).prepare(image, mask, "x")
    assert raw is None
    assert shown.shape == (64, 64, 3)
    assert (cropped > 0).mean() > 1.8 * (mask > 0).mean()
    agree = shown[..., 0].astype(int) - np.vectorize(COLOURS.get)(cropped)
    assert (np.abs(agree) < 45).mean() > 0.9


def test_a_view_that_lacks_its_mask_or_nucleus_is_an_error():
    image, mask = pattern()
    with pytest.raises(UserError, match=r"masked needs a mask, and 'x' has none"):
        Preprocessing((32, 32), "masked", 0).prepare(image, None, "x")
    mask[mask == NUCLEUS] = CYTOPLASM
    with pytest.raises(UserError, match="nucleus, but the mask of 'x' marks none"):
        Preprocessing((32, 32), "nucleus", 0).prepare(image, mask, "x")


def drawn_disc(height, width):
    """A mask of concentric discs off the centre, and an image that is brighter by region."""
    mask = np.zeros((height, width), np.uint8)
    axes = np.array([width, height])
    for value, radius in ((CYTOPLASM, 0.3), (NUCLEUS, 0.15)):
        centre, extent = (0.55 * axes).round().astype(int), (radius * axes).round().astype(int)
        cv2.ellipse(mask, centre.tolist(), extent.tolist(), 0, 0, 360, value, -1)
    return np.repeat((100 * mask)[..., None], 3, axis=2), mask


def centre_of(weights):
    """The centre of mass, as shares of height and width."""
    rows, columns = np.indices(weights.shape) + 0.5
    total = weights.sum()
    height, width = weights.shape
    return np.array(
        [(rows * weights).sum() / total / height, (columns * weights).sum() / total / width]
    )


@pytest.mark.parametrize(
    ("size", "image_size"),
    [
        *(((120, 120), (96, 96)), ((120, 120), (32, 32)), ((90, 90), (128, 128))),
        *(((40, 400), (100, 100)), ((400, 40), (100, 100)), ((60, 200), (96, 80))),
    ],
)
def test_a_resized_mask_lies_on_its_image(size, image_size):
    image, mask = drawn_disc(*size)
    shown, small = Preprocessing(image_size, "masked", 0).prepare(image, mask, "x")
    pixel = 1 / np.array(image_size)
    for resized in (shown[..., 0].astype(float), (100.0 * small)):
        assert (abs(centre_of(resized) - centre_of(100.0 * mask)) < 0.1 * pixel).all()
    for region in (1, 2):
        covered = resize((mask >= region).astype(np.float32), image_size)
        assert np.array_equal(small >= region, covered > 0.5)
        assert (small >= region).mean() == pytest.approx((mask >= region).mean(), rel=0.05)


def overlaps(before, after):
    """Each new pixel's overlap with each old one, in new pixels, (after, before)."""
    low = np.maximum(np.arange(after)[:, None] / after, np.arange(before) / before)
    high = np.minimum(np.arange(1, after + 1)[:, None] / after, np.arange(1, before + 1) / before)
    return np.maximum(high - low, 0) * after


@pytest.mark.shared
@pytest.mark.parametrize("side", [96, 32])
def test_resized_masks_of_real_cells_are_the_area_average(side):
    wrong = cell = 0
    for path in sorted((SHARED / "hpv" / "Dataset 1").glob("*.bmp"))[::5]:
        mask = read_mask(path.with_suffix(".png"), read_image(path))
        down, across = (overlaps(extent, side) for extent in mask.shape)
        shares = [down @ (mask == k) @ across.T for k in (BACKGROUND, CYTOPLASM, NUCLEUS)]
        ideal = np.argmax(shares, axis=0)
        wrong += (resize_mask(mask, (side, side)) != ideal).sum()
        cell += (ideal > 0).sum()
    assert wrong / cell < 0.001  # 0.05 and 0.16 with INTER_NEAREST


@pytest.mark.parametrize("view", ["masked", "background", "silhouette", "nucleus"])
def test_a_region_that_vanishes_in_the_resize_is_an_error(view):
    image = np.full((200, 200, 3), 200, np.uint8)
    mask = np.zeros((200, 200), np.uint8)
    mask[101:104, 101:104] = NUCLEUS
    if view == "nucleus":
        mask[50:150, 50:150] = np.maximum(mask[50:150, 50:150], CYTOPLASM)
    region = "nucleus" if view == "nucleus" else "cell"
    with pytest.raises(UserError, match=rf"at 16x16 pixels nothing is left of the {region} in 'x'"):
        Preprocessing((16, 16), view, 0).prepare(image, mask, "x")


ARGUMENTS = {
    "CropAndPad": {"percent": (-0.2, -0.1)},
    "GridElasticDeform": {"num_grid_xy": (4, 4), "magnitude": 3},
    "LongestMaxSize": {"max_size": 27},
    "RandomResizedCrop": {"size": (45, 45), "scale": (0.6, 0.9)},
    "RandomScale": {"scale_limit": (-0.6, -0.3)},
    "RandomSizedCrop": {"min_max_height": (45, 60), "size": (25, 25)},
    "Resize": {"height": 27, "width": 39},
    "SmallestMaxSize": {"max_size": 27},
}
"""What some transforms need beside p. The sizes are no simple parts of the image's: where a new
pixel's centre lies on an edge, INTER_NEAREST_EXACT has to round as well."""

UNUSABLE = ("Mosaic", "PiecewiseAffine", "RandomSizedBBoxSafeCrop", "ShiftScaleRotate")
"""Need boxes, further images or another package, or are deprecated, which is refused."""


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, kind in vars(A).items()
        if isinstance(kind, type)
        and issubclass(kind, A.BasicTransform)
        and "mask_interpolation" in inspect.signature(kind).parameters
        and name not in UNUSABLE
    ],
)
def test_every_transform_keeps_a_mask_on_its_image(name, monkeypatch):
    image, mask = drawn_disc(SIZE, SIZE)
    arguments = {"p": 1.0, **ARGUMENTS.get(name, {})}
    monkeypatch.setattr(Augmentation, "_check", lambda self, size: None)  # some change the shape
    transform = Augmentation([{name: arguments}], (SIZE, SIZE))
    off = []
    for seed in range(20):
        moved, moved_mask = transform(image, mask, (seed,))
        rows, columns = (
            centre_of(moved[..., 0].astype(float)) - centre_of(100.0 * moved_mask)
        ) * moved_mask.shape
        off.append((rows, columns))
    assert np.abs(np.mean(off, axis=0)).max() < 0.15  # pixels; half a pixel without


def test_a_mask_interpolation_that_blends_regions_is_refused():
    with pytest.raises(UserError, match="Affine: mask_interpolation 1 would blend the values"):
        Augmentation([{"Affine": {"mask_interpolation": 1}}], (SIZE, SIZE))
