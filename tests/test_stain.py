"""Stains: found, brought to one reference, and varied."""

import cv2
import numpy as np
import pytest
import torch

from cellbench.data import stain
from cellbench.data.augment import POLICIES, Augmentation
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.data.stain import STAINS, StainJitter, estimate, normalise


def slide(vectors, strengths, seed=0, side=64):
    """An image of two stains with known colours and concentrations."""
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.random((side, side, 2)).astype(np.float32), (0, 0), 2)
    low, high = blobs.min((0, 1)), blobs.max((0, 1))
    # Some of it is clear.
    blobs = ((blobs - low) / (high - low) - 0.3).clip(0) / 0.7
    concentrations = blobs.reshape(-1, 2) * strengths
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return stain._image(concentrations @ unit, (side, side, 3)), unit


@pytest.mark.parametrize("kind", list(STAINS))
def test_the_stains_of_an_image_are_found(kind):
    image, unit = slide(STAINS[kind].vectors, (1.5, 1.2))
    found, most = estimate(image)
    angles = np.degrees(np.arccos((found * unit).sum(axis=1).clip(-1, 1)))
    assert angles.max() < 15
    assert (most > 0.5).all()


def test_normalised_images_of_two_laboratories_look_alike():
    kind = "haematoxylin_eosin"
    first, _ = slide(STAINS[kind].vectors, (1.5, 1.2))
    second, _ = slide(np.array([[0.55, 0.75, 0.4], [0.15, 0.9, 0.3]]), (0.9, 0.7))
    before = np.abs(first.astype(float) - second).mean()
    a, b = (normalise(image, kind).astype(float) for image in (first, second))
    assert np.abs(a - b).mean() < before / 2
    found, _ = estimate(normalise(second, kind))
    colours = STAINS[kind].reference
    assert ((found * colours).sum(axis=1) > 0.95).all()


def test_an_image_without_stain_stays_as_it_is():
    blank = np.full((32, 32, 3), 240, np.uint8)
    assert estimate(blank) is None
    assert np.array_equal(normalise(blank, "giemsa"), blank)
    single = np.full((32, 32, 3), (150, 80, 180), np.uint8)  # of one colour, whatever it is
    assert np.array_equal(normalise(single, "giemsa"), single)
    image, _ = slide(STAINS["giemsa"].vectors, (1, 1))
    assert np.array_equal(normalise(image, "none"), image)


@pytest.mark.parametrize("kind", list(STAINS))
def test_jitter_scales_each_stain_alone(kind):
    image, unit = slide(STAINS[kind].vectors, (1.0, 1.0))
    jitter = StainJitter(kind)
    none = {"scales": np.ones(3), "shifts": np.zeros(3)}
    assert np.abs(jitter.apply(image, **none).astype(int) - image).max() <= 1
    stronger = jitter.apply(image, **(none | {"scales": np.array([1.5, 1.0, 1.0])}))
    inverse = np.linalg.pinv(unit)
    before, after = (
        (-np.log((i.reshape(-1, 3).astype(float) + 1) / 256) @ inverse) for i in (image, stronger)
    )
    clear = before[:, 0] > 0.3
    assert np.median(after[clear, 0] / before[clear, 0]) == pytest.approx(1.5, abs=0.03)
    assert np.median(after[:, 1] - before[:, 1]) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("policy", ["stain_he", "stain_giemsa"])
def test_a_policy_draws_from_the_seed_alone(policy):
    image, _ = slide(STAINS["giemsa"].vectors, (1, 1))
    augmentation = Augmentation(policy, (64, 64))
    found = [augmentation(image, None, (seed,))[0] for seed in range(20)]
    assert np.array_equal(augmentation(image, None, (3,))[0], found[3])
    assert len({each.tobytes() for each in found}) > 15
    assert all(np.abs(each.astype(int) - image).mean() < 40 for each in found)
    assert policy.removeprefix("stain_")[:2] in augmentation.identity


def test_policies_can_be_put_together():
    both = Augmentation(["flips", "stain_giemsa", {"GaussianBlur": {"p": 0.5}}], (64, 64))
    kinds = [type(transform).__name__ for transform in both.compose.transforms]
    assert kinds == [
        "HorizontalFlip",
        "VerticalFlip",
        "RandomRotate90",
        "StainJitter",
        "GaussianBlur",
    ]
    assert {"stain_he", "stain_giemsa"} <= POLICIES.keys()


def test_normalisation_is_in_every_split_and_in_the_cache_of_its_own():
    plain = SyntheticDataModule(samples=80, slides=40, image_size=32)
    brought = SyntheticDataModule(samples=80, slides=40, image_size=32, stain="giemsa")
    for part in ("train", "val", "test"):
        a, b = (data.examples(part).images.numpy() for data in (plain, brought))
        assert np.abs(a.astype(int) - b).mean() > 3
    assert set(plain.images.identity[-1]).isdisjoint(brought.images.identity[-1])


def test_a_checkpoint_says_how_images_are_normalised(fit):
    run = fit("--data.stain=giemsa")
    described = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["cellbench"]
    assert described["preprocessing"]["stain"] == "giemsa"
