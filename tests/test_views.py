"""Views on a drawn pattern: what each hides, and that image and mask stay aligned."""

import numpy as np
import pytest

from cellbench.data.augment import POLICIES, Augmentation
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS, apply_view, crop_box
from cellbench.errors import UserError

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
