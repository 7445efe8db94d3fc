"""Attributions of networks whose evidence is known, and explain."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from cellbench.__main__ import main
from cellbench.artifacts.attributions import (
    HEADER,
    Attribution,
    read_attributions,
    summarise,
)
from cellbench.artifacts.predictions import read_predictions
from cellbench.data.files import read_image
from cellbench.inference.attributions import TOLERANCE, attribute
from cellbench.inference.explain import choose
from cellbench.models.classifier import CellClassifier
from cellbench.models.config import ModelConfig
from cellbench.utils.errors import UserError
from tests.conftest import replace_masks, write_image

METHODS = ("grad_cam", "integrated_gradients")
SIZE = 32


def images(n=3, size=SIZE):
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def gain(model, given, fill):
    """The gain of the predicted class's logit over an image of the fill."""
    model.eval()
    with torch.no_grad():
        logits, start = model(given), model(torch.full_like(given[:1], fill))
    return (logits - start).gather(1, logits.argmax(dim=1)[:, None])[:, 0].numpy()


@pytest.fixture
def sees_red():
    """A network whose weights are set by hand: how red the image is, and nothing else."""
    model = CellClassifier(("other", "red"), (SIZE, SIZE), ModelConfig("small_cnn"))
    convolution, dense = nn.Conv2d(3, 1, 1), nn.Linear(1, 2)
    with torch.no_grad():
        model.mean.zero_(), model.std.fill_(1)
        convolution.weight.copy_(torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1))
        convolution.bias.zero_()
        dense.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        dense.bias.zero_()
    model.backbone = nn.Sequential(convolution, nn.ReLU(), nn.AvgPool2d(2))
    model.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.head = nn.Sequential(dense)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_sees_red_alone_looks_where_it_is_red(sees_red, method):
    given = torch.full((4, 3, SIZE, SIZE), 120, dtype=torch.uint8)
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for image, (down, across) in zip(given, corners, strict=True):
        y, x = 16 * down + 4, 16 * across + 4
        image[:, y : y + 8, x : x + 8] = torch.tensor([250, 20, 10]).view(3, 1, 1)
    heat = attribute(sees_red, given, method).maps
    assert heat.shape == (4, SIZE, SIZE)
    assert heat.dtype == np.float32
    for found, (down, across) in zip(heat, corners, strict=True):
        y, x = 16 * down + 4, 16 * across + 4
        near = 1 if method == "grad_cam" else 0  # its maps have half the size
        inside = found[y - near : y + 8 + near, x - near : x + 8 + near]
        assert inside.sum() == pytest.approx(found.sum())
        assert np.abs(found).sum() == pytest.approx(inside.sum())
        assert inside.sum() > 0
        if method == "integrated_gradients":
            assert inside.min() == pytest.approx(inside.max())


def test_the_map_of_an_image_without_evidence_is_empty(sees_red):
    grey = torch.full((1, 3, SIZE, SIZE), 120, dtype=torch.uint8)
    for method in METHODS:
        assert not attribute(sees_red, grey, method).maps.any()


@pytest.fixture
def model():
    """Make a network with random weights, whose batch norms have seen images."""

    def make(backbone, size):
        torch.manual_seed(0)
        made = CellClassifier(("a", "b", "c"), (size, size), ModelConfig(backbone))
        made.train()
        with torch.no_grad():
            for _ in range(20):
                made(images(8, size))
        return made

    return make


def check(model, size, fill, *, complete=True):
    heat, _, incomplete = attribute(model, images(2, size), "integrated_gradients", fill)
    assert heat.any(axis=(1, 2)).all()
    expected = gain(model, images(2, size), fill)
    error = np.abs(heat.sum(axis=(1, 2)) - expected)
    assert incomplete == (error > TOLERANCE * np.maximum(np.abs(expected), 1) + 1e-4).sum()
    assert not (complete and incomplete)
    maps = attribute(model, images(2, size), "grad_cam", fill).maps
    assert maps.shape == (2, size, size)
    assert (maps >= 0).all()
    again = attribute(model, images(2, size), "integrated_gradients", fill).maps
    assert np.array_equal(again, heat)


OWN = ("small_cnn", "se_resnet8", "bottleneck_resnet")
LARGE = {
    "separable_cnn": 96,
    "vgg_style_v1": 64,
    "vgg_style_v3": 64,
    "resnet18": 64,
    "vgg11": 64,
    "densenet121": 64,
    "mobilenet_v2": 64,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
    "inception_v3": 128,
    "swin_t": 64,
    "timm/resnet10t": 64,
}


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("backbone", OWN)
def test_integrated_gradients_are_complete(model, backbone, fill):
    made = model(backbone, 48)
    check(made, 48, fill)
    made.train()
    attribute(made, images(1, 48), "grad_cam")
    assert made.training  # left as it was


# With random weights their outputs are too rugged for 256 steps, which explain notes.
RUGGED = ("resnet18", "inception_v3")


@pytest.mark.slow
@pytest.mark.parametrize("backbone", LARGE)
def test_every_family_has_both_maps(model, backbone):
    made = model(backbone, LARGE[backbone])
    check(made, LARGE[backbone], 0, complete=backbone not in RUGGED)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit_b_16", "timm/vit_tiny_patch16_224"])
def test_a_vision_transformer_has_no_grad_cam(model, backbone):
    made = model(backbone, SIZE)
    with pytest.raises(UserError, match=r"not defined for .*vit.* ends with a vector"):
        attribute(made, images(), "grad_cam")
    heat = attribute(made, images(), "integrated_gradients").maps
    expected = gain(made, images(), 0)
    error = np.abs(heat.sum(axis=(1, 2)) - expected)
    assert (error <= TOLERANCE * np.maximum(np.abs(expected), 1)).all()


def explained(run):
    return read_attributions(run / "attributions.csv")


@pytest.mark.slow
def test_explain_compares_views_on_the_same_masks(fit, capsys, tmp_path):
    split = "--data.split={folds: 4}"
    runs = {v: fit(split, f"--data.view={v}", name=v) for v in ("raw", "masked")}
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    for view in runs:
        assert view in shown
    areas = {}
    for view, run in runs.items():
        assert (run / "figures" / "attributions.png").stat().st_size > 10_000
        found = explained(run)
        classes, parts = read_predictions(run / "predictions.csv")
        assert {a.id for a in found} == set(parts["test"].ids)
        labels = dict(zip(parts["test"].ids, parts["test"].labels, strict=True))
        predicted = dict(zip(parts["test"].ids, parts["test"].predicted, strict=True))
        assert all(a.label == classes[labels[a.id]] for a in found)
        # The run itself may predict in bfloat16.
        assert np.mean([a.predicted == classes[predicted[a.id]] for a in found]) > 0.9
        assert [a.method for a in found] == list(METHODS) * len(labels)
        for a in found:
            if a.background is not None:  # Grad-CAM may find nothing positive
                assert a.nucleus + a.cytoplasm + a.background == pytest.approx(1, abs=3e-6)
            assert a.area_nucleus + a.area_cytoplasm + a.area_background == pytest.approx(1, 1e-5)
        areas[view] = {a.id: a.area_nucleus for a in found}
        outside = [a.background for a in found if a.method == METHODS[1]]
        assert (max(outside) == 0) if view == "masked" else (min(outside) > 0)
    assert areas["raw"] == areas["masked"]


def test_explain_is_done_once(run, tmp_path, capsys):
    assert main(["explain", str(run), "--n=5"]) == 0
    first = (run / "attributions.csv").read_bytes()
    ids = {a.id for a in explained(run)}
    _, parts = read_predictions(run / "predictions.csv")
    assert ids == set(choose(parts["test"].ids, 5)) == set(choose(parts["test"].ids[::-1], 5))
    written = (run / "attributions.csv").stat().st_mtime_ns
    for n in (3, 5):
        assert main(["explain", str(run), f"--n={n}"]) == 0
        assert (run / "attributions.csv").stat().st_mtime_ns == written
    checkpoint = run / "checkpoints" / "best.ckpt"
    os.utime(checkpoint, ns=(written + 10**9, written + 10**9))
    assert main(["explain", str(run), "--n=5"]) == 0
    assert (run / "attributions.csv").stat().st_mtime_ns > written
    assert (run / "attributions.csv").read_bytes() == first  # deterministic
    os.utime(checkpoint, ns=(0, 0))
    assert main(["explain", str(run)]) == 0
    assert {a.id for a in explained(run)} == set(parts["test"].ids)
    checkpoint.unlink()
    capsys.readouterr()
    assert "no finished run with a best.ckpt" in _error(["explain", str(run)], capsys)


def _error(args, capsys):
    assert main(args) == 2
    return capsys.readouterr().err


def test_masks_of_one_class_have_cell_and_background(fit, folder_root, capsys):
    for path in (folder_root / "masks").rglob("*.png"):
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        write_image(path, np.where(mask > 0, 255, 0).astype(np.uint8))
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}")
    assert main(["explain", str(run)]) == 0
    for a in explained(run):
        assert a.nucleus is a.cytoplasm is a.area_nucleus is a.area_cytoplasm is None
        assert 0 <= a.background <= 1
        assert a.area_background == pytest.approx(1 - np.pi / 16, abs=0.03)  # draw_cell's disc
    for summary in summarise(explained(run), {a.id: a.id for a in explained(run)}):
        assert set(summary.regions) == {"cell", "background"}


def test_without_masks_there_are_maps_and_no_shares(fit, folder_root, capsys):
    for path in (folder_root / "masks").rglob("*.png"):
        path.unlink()
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}")
    assert main(["explain", str(run)]) == 0
    assert "NOTE no image has a mask" in capsys.readouterr().out
    found = explained(run)
    assert all(a.background is None and a.area_background is None for a in found)
    assert summarise(found, {}) == []
    assert (run / "figures" / "attributions.png").is_file()


def test_maps_of_one_pixel_have_no_grad_cam(fit, capsys):
    run = fit("--data.image_size=8", "--model.backbone=se_resnet8")
    assert main(["explain", str(run), "--n=6"]) == 0
    assert "NOTE Grad-CAM is not defined for se_resnet8" in capsys.readouterr().out
    assert [a.method for a in explained(run)] == ["integrated_gradients"] * 6


def test_an_image_that_has_changed_is_refused(fit, folder_root, fails):
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}")
    _, parts = read_predictions(run / "predictions.csv")
    path = folder_root / parts["test"].ids[0]
    write_image(path, 255 - read_image(path))
    line = fails("explain", str(run))
    assert str(run) in line
    assert "has changed since the training" in line
    assert not (run / "attributions.csv").exists()


def test_masks_that_have_changed_are_refused(fit, folder_root, fails):
    data = ["--data=FolderDataModule", f"--data.root={folder_root}", "--data.view=masked"]
    run = fit(*data)
    replace_masks(folder_root)
    line = fails("explain", str(run))
    assert "the masks have changed since the training" in line
    assert not (run / "attributions.csv").exists()


def test_nothing_is_half_written(fit, fails):
    run = fit()
    (run / "figures").write_text("in the way")
    assert "cannot write" in fails("explain", str(run), "--n=4")
    assert not (run / "attributions.csv").exists()


@pytest.mark.parametrize(
    ("args", "told"),
    [(["nowhere"], "no finished run with a best.ckpt below nowhere"), (["x", "--n=0"], "--n: 0")],
)
def test_mistakes_are_told(args, told, fails):
    assert told in fails("explain", *args)


def made(name, label, nucleus, method="grad_cam"):
    return Attribution(name, label, label, method, nucleus, 0.2, 0.8 - nucleus, 0.1, 0.2, 0.7)


def test_a_summary_has_means_by_class_and_intervals_by_group():
    rng = np.random.default_rng(0)
    values = rng.uniform(0.2, 0.6, 60)
    some = [made(f"i{i}", "ab"[i % 2], v) for i, v in enumerate(values)]
    alone = summarise(some, {a.id: a.id for a in some})
    assert [(s.method, s.label, s.n, s.groups) for s in alone] == [
        ("grad_cam", None, 60, 60),
        ("grad_cam", "a", 30, 30),
        ("grad_cam", "b", 30, 30),
    ]
    nucleus, cell = alone[0].regions["nucleus"], alone[0].regions["cell"]
    assert nucleus.value == pytest.approx(values.mean())
    assert cell.value == pytest.approx(values.mean() + 0.2)
    assert (nucleus.area, cell.area) == pytest.approx((0.1, 0.3))
    half = 1.96 * values.std() / np.sqrt(60)
    assert (nucleus.low, nucleus.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.15 * half
    )
    assert alone[1].regions["nucleus"].value == pytest.approx(values[::2].mean())
    # Every image three times, as three seeds test it, says no more than once.
    thrice = summarise(some * 3, {a.id: a.id for a in some})[0]
    assert (thrice.n, thrice.groups) == (60, 60)
    assert thrice.regions["nucleus"].low == pytest.approx(nucleus.low)
    together = summarise(some, {a.id: f"g{int(a.id[1:]) // 20}" for a in some})
    assert together[0].groups == 3
    one = summarise(some, dict.fromkeys((a.id for a in some), "g"))[0].regions["nucleus"]
    assert (one.low, one.high) == (0, 1)


def test_a_table_that_is_none_is_told(tmp_path):
    path = tmp_path / "attributions.csv"
    for text in ("", "id,label\n", ",".join(HEADER) + "\na,b,c,lime,,,,,,\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="cannot read the attributions"):
            read_attributions(path)


def test_reading_needs_neither_torch_nor_captum():
    code = "import sys, cellbench.artifacts.attributions\n"
    code += "print({'torch', 'captum'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
