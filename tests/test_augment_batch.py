"""Batched augmentation: that it does what albumentations does to each image."""

import pickle

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from cellbench.data.augment import POLICIES, Augmentation
from cellbench.data.augment_batch import BatchAugmentation, unsupported
from cellbench.errors import UserError

SAMPLES = 64
SEEDS = [(3, 1, sample) for sample in range(SAMPLES)]
REFLECT = {"border_mode": cv2.BORDER_REFLECT_101}


@pytest.fixture(autouse=True)
def _one_thread():
    """On shared cores, threads that wait for one another make small operations ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw_smooth_cells(height, width):
    """Images and masks of soft, lopsided cells that touch the border, on a mottled ground."""
    rng, images, masks = np.random.default_rng(0), [], []
    for _ in range(SAMPLES):
        ground = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), height / 16)
        image = 170 + 40 * ground / np.abs(ground).max()
        mask = np.zeros((height, width), np.uint8)
        x, y = (int(rng.integers(extent // 4, extent // 2)) for extent in (width, height))
        cv2.ellipse(mask, (x, y), (height // 2, height // 3), 30, 0, 360, 1, -1)
        cv2.circle(mask, (x + height // 8, y), height // 7, 2, -1)
        for value, colour in ((1, (190, 130, 170)), (2, (90, 60, 140))):
            soft = cv2.GaussianBlur((mask >= value).astype(float), (0, 0), height / 24)[..., None]
            image = image * (1 - soft) + np.array(colour) * soft
        images.append(image.round().astype(np.uint8))
        masks.append(mask)
    return np.stack(images), np.stack(masks)


def as_batch(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)  # channels_last, as the data module's


def draw_all(batched):
    return torch.from_numpy(np.stack([batched.draw(seed) for seed in SEEDS]))


def compare(policy, size):
    """Differences in grey levels, (B, H, W, 3), and agreement of the masks, (B,), and the draws."""
    augmentation, (images, masks) = Augmentation(policy, size), draw_smooth_cells(*size)
    one_by_one = [
        augmentation(image, mask, seed)
        for image, mask, seed in zip(images, masks, SEEDS, strict=True)
    ]
    batched = BatchAugmentation(augmentation, size)
    drawn = draw_all(batched)
    assert drawn.shape == (SAMPLES, batched.size)
    out, out_masks = batched.apply(as_batch(images), torch.from_numpy(masks), drawn)
    assert out.dtype == out_masks.dtype == torch.uint8
    difference = out.permute(0, 2, 3, 1).numpy().astype(int) - [pair[0] for pair in one_by_one]
    agreement = (out_masks.numpy() == [pair[1] for pair in one_by_one]).mean((1, 2))
    return np.abs(difference), agreement, drawn


def assert_close(difference, agreement, mean):
    """No image's mean beyond the given one, few pixels apart by more than rounding, same masks."""
    assert difference.mean((1, 2, 3)).max() <= mean
    assert (difference > 1).mean() <= 0.02
    assert agreement.min() >= 0.998


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("policy", ["none", "flips", "geometric", "colour"])
def test_a_policy_does_what_it_does_to_single_images(policy, size):
    difference, agreement, _ = compare(policy, size)
    if policy in ("none", "flips"):
        assert difference.max() == 0
        assert agreement.min() == 1
    else:  # OpenCV turns hues by rounding down, but up too where a row's end fills no register
        assert_close(difference, agreement, 0.4 if policy == "colour" else 0.1)


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_strong_differs_by_its_noise_alone(size):
    difference, agreement, drawn = compare("strong", size)
    noisy = drawn[:, -4] == 1  # the last stage: whether it acts, deviation, mean, seed
    assert 4 <= noisy.sum() <= 16  # 0.15 of 64
    assert difference[noisy].mean((1, 2, 3)).min() > 3
    assert_close(difference[~noisy], agreement, 0.4)


@pytest.mark.parametrize(
    ("transforms", "mean"),
    [
        (["HorizontalFlip", "RandomRotate90", "VerticalFlip", "HorizontalFlip"], 0),
        ([{"GaussianBlur": {"p": 0.7}}], 0.01),  # widths to 21, by the deviation
        ([{"GaussianBlur": {"blur_limit": [3, 8]}}, "VerticalFlip"], 0.01),
        (
            [
                {"ColorJitter": {"p": 0.7}},
                {"Affine": {"rotate": [-90, 90], "p": 0.7, **REFLECT}},
                "VerticalFlip",
                {"Affine": {"translate_percent": [-0.6, 0.6], "scale": [0.4, 1.5], **REFLECT}},
                {"GaussianBlur": {"p": 0.3}},
                "RandomRotate90",
            ],
            0.4,
        ),
        # noise of no deviation: what comes after it must find the streams where they would be
        ([{"GaussNoise": {"std_range": [0, 0]}}, {"ColorJitter": {"p": 0.8}}, "VerticalFlip"], 0.4),
    ],
)
def test_a_free_list_is_applied_in_its_order(transforms, mean):
    difference, agreement, _ = compare(transforms, (64, 64))
    assert_close(difference, agreement, mean)


def test_nested_compositions(monkeypatch):
    nested = [
        A.OneOf([A.Sequential([A.HorizontalFlip(), A.ColorJitter()]), A.Affine(**REFLECT)], p=0.8),
        A.Compose([A.OneOf([A.VerticalFlip(p=0.2), A.OneOf([A.RandomRotate90()])])], p=0.7),
    ]
    monkeypatch.setitem(POLICIES, "flips", lambda square: nested)
    difference, agreement, _ = compare("flips", (64, 64))
    assert_close(difference, agreement, 0.4)
    nested.append(A.Compose([A.OneOf([A.HorizontalFlip(), A.SomeOf([A.VerticalFlip()])])]))
    assert unsupported(Augmentation("flips", (64, 64))) == "SomeOf"


@pytest.mark.parametrize(
    ("transforms", "name"),
    [
        (["HorizontalFlip", "ElasticTransform", "GridDistortion"], "ElasticTransform"),
        (["SafeRotate"], "SafeRotate"),  # a subclass of Affine
        (["Affine"], "Affine with border_mode=0"),
        ([{"Affine": {"interpolation": 2, **REFLECT}}], "Affine with interpolation=2"),
        ([{"GaussNoise": {"per_channel": False}}], "GaussNoise with per_channel=False"),
    ],
)
def test_a_transform_without_a_batched_form_is_refused(transforms, name):
    augmentation = Augmentation(transforms, (64, 64))
    assert unsupported(augmentation) == name
    with pytest.raises(UserError, match=f"data.augment: no batched form of {name}; there is one"):
        BatchAugmentation(augmentation, (64, 64))


@pytest.mark.parametrize("policy", ["none", "flips", "geometric", "colour", "strong"])
def test_a_policy_has_a_batched_form(policy):
    assert unsupported(Augmentation(policy, (64, 64))) is None


NOISY = [*("HorizontalFlip", "ColorJitter"), {"GaussNoise": {"p": 0.8}}, {"GaussianBlur": {}}]


@pytest.mark.parametrize("policy", ["strong", NOISY])
def test_a_sample_depends_on_its_seed_alone(policy):
    images, masks = draw_smooth_cells(48, 48)
    batched = BatchAugmentation(Augmentation(policy, (48, 48)), (48, 48))
    images, masks, drawn = as_batch(images), torch.from_numpy(masks), draw_all(batched)
    whole = batched.apply(images, masks, drawn)

    torch.manual_seed(1)
    order = torch.randperm(SAMPLES)
    shuffled = batched.apply(images[order], masks[order], drawn[order])
    assert all(torch.equal(a[order], b) for a, b in zip(whole, shuffled, strict=True))
    state = torch.get_rng_state()
    for rows in (slice(0, 1), slice(7, 8), slice(20, 43)):
        part = batched.apply(images[rows], masks[rows], drawn[rows])
        assert all(torch.equal(a[rows], b) for a, b in zip(whole, part, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(batched.apply(images, None, drawn)[0], whole[0])


def test_the_draws_depend_on_the_seed_alone_also_in_a_copy():
    batched = BatchAugmentation(Augmentation("strong", (32, 32)), (32, 32))
    copied = pickle.loads(pickle.dumps(batched))  # as a worker process gets it
    copied.draw((9, 9, 9))
    for seed in SEEDS:
        assert np.array_equal(batched.draw(seed), copied.draw(seed))
    assert len({batched.draw(seed).tobytes() for seed in SEEDS}) == SAMPLES


def test_the_arguments_stay_as_they_are():
    images, masks = draw_smooth_cells(32, 32)
    augmentation = Augmentation("strong", (32, 32))
    before = [augmentation(images[0], masks[0], seed)[0] for seed in SEEDS]
    batched = BatchAugmentation(augmentation, (32, 32))
    batch, cells = as_batch(images.copy()), torch.from_numpy(masks.copy())
    out, none = batched.apply(batch, None, draw_all(batched))
    assert none is None
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batched.apply(batch.contiguous(), cells, draw_all(batched))[0], out)
    assert np.array_equal(batch.permute(0, 2, 3, 1), images)
    assert np.array_equal(cells, masks)
    after = [augmentation(images[0], masks[0], seed)[0] for seed in SEEDS]
    assert np.array_equal(before, after)


def test_noise_is_normal_with_the_drawn_deviation():
    arguments = {"std_range": [0.02, 0.06], "mean_range": [-0.1, 0.1], "p": 1.0}
    augmentation = Augmentation([{"GaussNoise": arguments}], (64, 64))
    batched = BatchAugmentation(augmentation, (64, 64))
    grey = np.full((SAMPLES, 64, 64, 3), 128, np.uint8)
    out = batched.apply(as_batch(grey), None, draw_all(batched))[0].numpy().astype(float)
    expected = np.stack([augmentation(grey[0], None, seed)[0] for seed in SEEDS]).astype(float)
    # 12,288 numbers each: their deviation is known to 0.6 %, their mean to 0.9 % of it
    deviation, expected_deviation = out.std((1, 2, 3)), expected.std((1, 2, 3))
    assert deviation.max() > 2 * deviation.min()
    assert np.abs(deviation / expected_deviation - 1).max() < 0.04
    shift = np.abs(out.mean((1, 2, 3)) - expected.mean((1, 2, 3)))
    assert (shift / deviation).max() < 0.06
    normal, expected_normal = (
        (images - images.mean((1, 2, 3), keepdims=True)) / images.std((1, 2, 3), keepdims=True)
        for images in (out, expected)
    )
    assert abs((normal**4).mean() - (expected_normal**4).mean()) < 0.05
    samples = np.corrcoef(normal.reshape(SAMPLES, -1)) - np.eye(SAMPLES)
    assert np.abs(samples).max() < 0.05
    channels = np.corrcoef(normal.transpose(1, 0, 2, 3).reshape(3, -1)) - np.eye(3)
    assert np.abs(channels).max() < 0.01
    for axis in (2, 3):
        assert abs((normal * np.roll(normal, 1, axis)).mean()) < 0.01
