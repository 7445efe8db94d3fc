"""A frozen backbone sees each image once, and nothing else changes."""

import os
from collections import namedtuple

import numpy as np
import pytest
import torch

from cellbench.__main__ import main
from cellbench.models.classifier import CellClassifier
from cellbench.models.networks import small_cnn
from cellbench.utils import atomic
from tests.conftest import draw_cell, write_image
from tests.test_resume import terminate_at

N = 40  # images of folder_root
FROZEN = ["--model.freeze=backbone", "--model.head.hidden=[16]", "--model.head.dropout=0.3"]


@pytest.fixture
def seen(monkeypatch):
    """The number of images that each pass through the backbone had."""
    counts, features = [], CellClassifier.features

    def counted(self, images):
        counts.append(len(images))
        return features(self, images)

    monkeypatch.setattr(CellClassifier, "features", counted)
    return counts


@pytest.fixture
def frozen(fit, folder_root, tmp_path):
    """Fits a frozen backbone on folder_root."""

    def run(*args, name="frozen"):
        options = ["--data=FolderDataModule", f"--data.root={folder_root}", *FROZEN]
        options.append("--trainer.precision=32-true")
        return fit(*options, f"--data.cache.folder={tmp_path / 'cache'}", *args, name=name)

    return run


def results(run):
    """Predictions, history without its clock, and the head's weights."""
    history = [line.rsplit(",", 1)[0] for line in (run / "history.csv").read_text().splitlines()]
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return (run / "predictions.csv").read_text(), history, state


def assert_same(one, other):
    (predictions, history, state), (expected, expected_history, expected_state) = one, other
    assert predictions == expected
    assert history == expected_history
    assert all(torch.equal(state[key], expected_state[key]) for key in expected_state)


def files(tmp_path):
    return sorted((tmp_path / "cache").glob("*.features"))


VARIANTS = ["--data.augment=strong", "--data.augment_variants=2", "--data.balance=balanced"]


@pytest.mark.parametrize(
    "options",
    [
        ["--model.backbone=resnet18", "--model.class_weights=balanced"],
        ["--data.view=masked", "--model.head.pool=flatten", "--trainer.precision=bf16-mixed"],
        ["--data.view=masked", *VARIANTS],
    ],
)
def test_the_result_is_that_of_the_long_way(frozen, seen, options):
    options = [*options, "--trainer.max_epochs=4", "--model.l2=0.01"]
    kept = results(frozen(*options))
    times = 3 if VARIANTS[0] in options else 1
    assert sum(seen) == 1 + times * N  # the first is a probe
    seen.clear()
    again = results(frozen(*options))
    assert seen == [1]
    seen.clear()
    long_way = results(frozen(*options, "--data.cache.features=false", name="long"))
    assert sum(seen) > 4 * 0.7 * N
    assert_same(kept, long_way)
    assert_same(again, long_way)


def test_variants_are_those_of_the_first_epochs(fit, monkeypatch):
    """Without features as well, an image's augmentation comes back after so many epochs."""
    shown = {}

    def noted(self, batch):
        for position, image in zip(batch.positions.tolist(), batch.images, strict=True):
            shown.setdefault(position, []).append(image.clone())
        return step(self, batch)

    step = CellClassifier.training_step
    monkeypatch.setattr(CellClassifier, "training_step", noted)
    fit("--data.augment=geometric", "--data.augment_variants=2", "--trainer.max_epochs=4")
    assert len(shown) > 40
    for first, second, third, fourth in shown.values():
        assert torch.equal(first, third)
        assert torch.equal(second, fourth)
    assert any(not torch.equal(images[0], images[1]) for images in shown.values())


def test_augmentation_that_is_drawn_anew_is_not_kept(frozen, seen, tmp_path, capsys):
    frozen("--data.augment=flips")
    assert sum(seen) > 2 * 0.7 * N
    assert (
        "features   not kept: data.augment (or data.smote) makes other images"
        in capsys.readouterr().out
    )
    assert not files(tmp_path)


def test_folds_share_the_features_and_other_inputs_do_not(frozen, folder_root, tmp_path):
    for fold in (0, 1):
        size = f"--data.batch_size={8 + fold}"
        frozen("--data.split.folds=2", f"--data.split.fold={fold}", "--model.lr=0.1", size)
    assert len(files(tmp_path)) == 1
    others = [
        ["--seed_everything=1"],  # other random weights
        ["--data.image_size=48"],
        ["--data.view=masked"],
        ["--data.view=masked", "--data.fill=9"],
        ["--model.head.pool=max"],
        ["--trainer.precision=bf16-mixed"],
        ["--data.augment=flips", "--data.augment_variants=1"],
        ["--data.augment=colour", "--data.augment_variants=1"],
    ]
    for number, options in enumerate(others, start=2):
        frozen(*options)
        assert len(files(tmp_path)) == number, options
    image, _ = draw_cell(np.random.default_rng(9), 3, 48)
    write_image(folder_root / "blast" / "0 (0).jpg", image)
    frozen()
    assert len(files(tmp_path)) == number + 1


def test_a_file_cut_short_is_computed_anew(frozen, tmp_path):
    expected = results(frozen())
    (path,) = files(tmp_path)
    os.truncate(path, 100)
    assert_same(results(frozen()), expected)


def test_a_full_disk_says_what_to_do(folder_root, tmp_path, fails, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: usage(1, 1, 0))
    line = fails(
        *["fit", "--data=FolderDataModule", f"--data.root={folder_root}", *FROZEN],
        *["--model.backbone=small_cnn", "--data.image_size=32", f"--runs={tmp_path}"],
        f"--data.cache.folder={tmp_path / 'cache'}",
    )
    assert line.startswith("data.cache.folder: cannot keep 0 MiB in")
    assert line.endswith("give another folder, or data.cache.features: false")
    assert not files(tmp_path)


def test_a_terminated_run_goes_on_to_the_same_bits(frozen, tmp_path, monkeypatch):
    weights = tmp_path / "weights.pt"
    torch.save(small_cnn.build().state_dict(), weights)
    options = ["--trainer.max_epochs=4", "--data.batch_size=8", *VARIANTS]
    options.append(f"--model.weights={weights}")
    expected = results(frozen(*options))

    with monkeypatch.context() as patched:
        terminate_at(patched, 7)
        with pytest.raises(AssertionError):  # the fixture wants an exit code of 0
            frozen(*options, name="terminated")
    (run,) = (tmp_path / "runs" / "terminated").iterdir()
    assert not (run / "metrics.json").exists()
    torch.save(small_cnn.build().state_dict(), weights)  # others: the run has its own by now
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same(results(run), expected)
