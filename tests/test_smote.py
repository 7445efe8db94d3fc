"""SMOTE and oversampling: inside the training split, in constant memory, a function of the seed."""

import csv
import tracemalloc

import numpy as np
import pytest
import torch

from cellbench.data.cache import Pixels
from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.data.sampling import BatchSampler, SampleRequest, quotas
from cellbench.data.smote import Smote, SmoteConfig
from tests.conftest import QUICK, TINY, draw_cell, few_cells, write_image


def drawn(data):
    """The training loader's batches of an epoch."""
    data.setup("fit")
    return list(data.train_dataloader())


def counts(batches, classes=4):
    return np.bincount(torch.cat([b.labels for b in batches]).numpy(), minlength=classes)


def make(**options):
    return SyntheticDataModule(samples=120, slides=40, image_size=32, **options)


@pytest.mark.parametrize("options", [{"balance": 40}, {"smote": SmoteConfig(count=40)}])
def test_every_class_has_at_least_the_count(options):
    plain = make()
    plain.setup("fit")
    sizes = plain.class_counts("train")
    assert sizes.min() < 40
    assert counts(drawn(make(**options))).tolist() == np.maximum(sizes, 40).tolist()


def test_without_a_count_all_classes_become_as_large_as_the_largest():
    found = counts(drawn(make(smote=SmoteConfig())))
    assert len(set(found.tolist())) == 1


def test_each_real_image_is_shown_once_and_the_rest_is_blended():
    sampler = BatchSampler(
        np.arange(30), 8, (0, 1), 0, np.repeat([0, 1], [24, 6]), quotas([24, 6], 20), synthetic=True
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = [key for batch in sampler for key in batch]
        real = [key.position for key in keys if not key.synthetic]
        assert sorted(real) == list(range(30))
        blended = [key for key in keys if key.synthetic]
        assert len(blended) == 14
        assert {key.position for key in blended} <= set(range(24, 30))


def pixels(n, size=16, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return Pixels(images, None, "here")


def smote(kept, labels, quotas, **options):
    config, classes = SmoteConfig(**options), ("a", "b")
    positions = np.arange(len(labels))
    return Smote(kept, positions, np.array(labels), quotas, config, classes, "raw", 0)


def test_a_blend_lies_between_an_image_and_a_neighbour_of_its_class():
    kept = pixels(8)
    kept.images[5] = kept.images[4] // 2  # its nearest neighbour by far
    made = smote(kept, [0] * 4 + [1] * 4, [4, 10], neighbours=1)
    blended, mask = made.blend(4, (0, 0, 7))
    assert mask is None
    low, high = kept.images[5].astype(int), kept.images[4].astype(int)
    share = (high - blended).sum() / (high - low).sum()
    assert 0 < share < 1
    assert np.abs(high + share * (low - high) - blended).max() <= 1.5
    assert np.array_equal(made.blend(4, (0, 0, 7))[0], blended)
    assert not np.array_equal(made.blend(4, (0, 1, 7))[0], blended)


def test_a_class_of_three_has_two_neighbours():
    kept = pixels(7)
    made = smote(kept, [0] * 4 + [1] * 3, [4, 9], neighbours=5)
    assert {position: len(found) for position, found in made._neighbours.items()} == dict.fromkeys(
        (4, 5, 6), 2
    )
    assert all(position not in found for position, found in made._neighbours.items())


def test_hidden_pixels_stay_hidden():
    """What either mask shows may be seen, and nothing else."""
    data = make(view="masked", smote=SmoteConfig(count=60))
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    position = int(data.training.positions[data.training.labels == 3][0])
    batch = dataset[[SampleRequest(turn, position, True) for turn in range(8)]]
    plain = dataset[[SampleRequest(0, position)]].images[0]
    masks = data.images.pixels.masks
    shown = np.maximum.reduce([masks[i] for i in data._smote._neighbours[position]])
    outside = (np.maximum(shown, masks[position]) == 0)[None]
    for image in batch.images.numpy():
        assert not (image * outside).any()
        assert not np.array_equal(image, plain.numpy())


def test_validation_and_test_are_untouched():
    plain, filled = make(), make(smote=SmoteConfig(count=60), augment="flips")
    for data in (plain, filled):
        data.setup("fit")
    for loader in ("val_dataloader", "test_dataloader"):
        ours, theirs = (list(getattr(data, loader)()) for data in (plain, filled))
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.positions, b.positions)


def test_neighbours_are_of_the_training_split():
    data = make(smote=SmoteConfig(count=60))
    data.setup("fit")
    train = set(data.partition.indices("train").tolist())
    assert data._smote._neighbours.keys() <= train
    assert {i for found in data._smote._neighbours.values() for i in found.tolist()} <= train


def test_synthetic_images_take_no_memory_of_their_own():
    """2,000 images of 256 px are filled up to three times as many; the pixels alone are 375 MiB."""
    n, labels = 2000, np.repeat([0, 1], [1500, 500])
    kept = Pixels(np.zeros((n, 64, 64, 3), np.uint8), None, "here")
    tracemalloc.start()
    made = smote(kept, labels, [1500, 4500])
    for turn in range(200):
        made.blend(1500 + turn, (0, turn, 3))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20


@pytest.fixture
def lonely(tmp_path):
    """A class with a single training image."""
    rng, rows = np.random.default_rng(0), ["path,label,split"]
    for part, sizes in (("train", (9, 1)), ("val", (3, 3)), ("test", (3, 3))):
        for label, size in enumerate(sizes):
            for number in range(size):
                name = f"{part}-{label}-{number}.png"
                write_image(tmp_path / "cells" / name, draw_cell(rng, label, 40)[0])
                rows.append(f"{name},{'ab'[label]},{part}")
    (tmp_path / "cells" / "table.csv").write_text("\n".join(rows))
    return tmp_path / "cells"


def test_a_class_of_one_image_is_named(lonely, fails):
    options = ["--data=FolderDataModule", f"--data.root={lonely}", "--data.csv=table.csv"]
    options += ["--data.split.protocol=official", *QUICK]
    line = fails("fit", *options, "--data.smote={}")
    assert line.startswith("data.smote: class 'b' has a single image in the training split")
    assert FolderDataModule.__name__ in options[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.smote.count=1"], "data.smote.count: 1 is less than 2"),
        (["--data.smote={neighbours: 0}"], "data.smote.neighbours: 0 is less than 1"),
        (["--data.smote={}", "--data.balance=sqrt"], "data.smote: beside data.balance sqrt"),
        (["--data.balance=0"], "data.balance: 0 is less than 1"),
        (["--data.label_noise=1.5"], "data.label_noise: 1.5 is not less than 1"),
    ],
)
def test_wrong_values_are_refused(fails, options, message):
    assert message in fails("fit", *few_cells(options), *TINY, *options)


def test_a_run_with_synthetic_images_scores_real_ones(fit):
    run = fit("--data.smote={count: 30}", "--data.augment=strong")
    with (run / "split.csv").open() as file:
        test = {row["id"] for row in csv.DictReader(file) if row["split"] == "test"}
    with (run / "predictions.csv").open() as file:
        scored = [row["id"] for row in csv.DictReader(file) if row["split"] == "test"]
    assert sorted(scored) == sorted(test)
