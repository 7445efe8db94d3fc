"""Augmentation: the traps of albumentations, and the free list in YAML."""

from collections import Counter

import albumentations as A
import numpy as np
import pytest
import yaml

from cellbench.data.augment import POLICIES, Augmentation
from cellbench.utils.errors import UserError

IMAGE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


def test_gates_of_equal_probability_fire_independently():
    # Compose(seed=...) never flips one way only
    augment = Augmentation(["HorizontalFlip", "VerticalFlip"], (16, 16))
    cases = {
        IMAGE.tobytes(): "none",
        IMAGE[:, ::-1].tobytes(): "horizontal",
        IMAGE[::-1].tobytes(): "vertical",
        IMAGE[::-1, ::-1].tobytes(): "both",
    }
    counts = Counter(
        cases[np.ascontiguousarray(augment(IMAGE, None, (0, epoch, 5))[0]).tobytes()]
        for epoch in range(2000)
    )
    assert set(counts) == set(cases.values())
    assert all(430 < count < 570 for count in counts.values())  # 500, deviation 19


@pytest.mark.parametrize("policy", ["flips", "geometric", "colour", "strong"])
def test_the_seed_decides_all(policy):
    first, second = (Augmentation(policy, (16, 16)) for _ in range(2))
    second(IMAGE, None, (9, 9, 9))  # what was drawn before must not matter
    for seed in ((0, 0, 1), (0, 1, 1), (1, 0, 1), (0, 0, 2)):
        assert np.array_equal(first(IMAGE, None, seed)[0], second(IMAGE, None, seed)[0])
    distinct = {first(IMAGE, None, (0, 0, sample))[0].tobytes() for sample in range(30)}
    assert len(distinct) >= (8 if policy == "flips" else 15)


def test_a_free_list_takes_names_and_arguments():
    augment = Augmentation([{"Rotate": {"limit": [90, 90], "p": 1.0}}, "Transpose"], (16, 16))
    seen = {augment(IMAGE, None, (seed,))[0].tobytes() for seed in range(20)}
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (["HorizontalFlop"], "unknown transform 'HorizontalFlop'; closest: HorizontalFlip"),
        ([{"CoarseDropout": {"max_holes": 3}}], "CoarseDropout: .*max_holes"),
        ([{"GaussNoise": {"var_limit": [1, 2]}}], "GaussNoise: .*var_limit"),
        ([{"Rotate": {"limit": "x"}}], "Rotate: "),
        ([{"RandomCrop": {"height": 8, "width": 8}}], r"must return .*they gave uint8 \(8, 8, 3\)"),
        ([{"Normalize": {}}], "must return uint8"),
        ([{"Rotate": {}, "Transpose": {}}], "one transform an entry"),
        (["system"], "unknown transform 'system'"),
    ],
)
def test_a_wrong_list_is_refused(transforms, message):
    with pytest.raises(UserError, match=message):
        Augmentation(transforms, (16, 16))


@pytest.mark.parametrize("given", ["elastic", "[elastic]", "[flips, elastic]"])
def test_a_policy_is_one_entry(fit, monkeypatch, given):
    seen = []

    def elastic(square):
        seen.append(square)
        return [A.ElasticTransform(p=1.0)]

    monkeypatch.setitem(POLICIES, "elastic", elastic)
    run = fit(f"--data.augment={given}")
    assert seen == [True] * len(seen)
    assert seen
    stored = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["augment"]
    assert stored == yaml.safe_load(given)


def test_an_unknown_policy_is_named_with_all_that_there_are(fails):
    line = fails("fit", "--data.augment=flip")
    assert line.startswith("data.augment: expected none, flips, geometric, ")
    assert line.endswith(" or a list; got 'flip'; closest: flips")
