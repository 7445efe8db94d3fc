"""Four channels of 16 bits with instance masks, through every command."""

import csv
import json

import cv2
import numpy as np
import pytest

from cellbench.__main__ import main
from cellbench.artifacts.checkpoint import read_checkpoint
from cellbench.data.datasets import fluorescence_demo
from cellbench.data.datasets.fluorescence_demo import CHANNELS, FluorescenceDemoDataModule
from cellbench.data.image_format import Intensity
from tests.test_data_modules import MaskedContract


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo with fewer images of each donor, drawn once."""
    root = tmp_path_factory.mktemp("fluorescence") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fluorescence_demo, "IMAGES", 5)
        assert main(["fetch", "fluorescence_demo", f"--to={root}"]) == 0
    return root


OPTIONS = [
    "--data=FluorescenceDemoDataModule",
    f"--data.channels=[{', '.join(CHANNELS)}]",
    "--data.intensity={low: percentile 1, high: percentile 99, per: dataset}",
    "--data.mask_instance=centre",
    "--data.view=masked",
    "--data.augment=geometric",
]


@pytest.fixture(scope="session")
def run(demo, tmp_path_factory):
    """A run on all four channels, one epoch long."""
    runs = tmp_path_factory.mktemp("runs")
    tiny = ["--data.image_size=32", "--model.backbone=small_cnn", "--trainer.max_epochs=1"]
    quiet = ["--trainer.enable_progress_bar=false"]
    options = [*OPTIONS, f"--data.root={demo}", *tiny, *quiet, f"--runs={runs}", "--name=four"]
    assert main(["fit", *options]) == 0
    (folder,) = (runs / "four").iterdir()
    return folder


class TestFluorescenceDemo(MaskedContract):
    module = FluorescenceDemoDataModule

    @pytest.fixture(autouse=True)
    def _root(self, demo):
        self.root = demo

    def make(self, **arguments):
        own = {
            "channels": CHANNELS,
            "intensity": Intensity("percentile 1", "percentile 99"),
            "mask_instance": "centre",
        }
        if arguments.get("augment") == "strong":  # it has colours
            arguments["augment"] = "geometric"
        return super().make(**(own | arguments))

    def test_donors_are_groups_and_the_cell_in_the_centre_is_shown(self):
        data = self.build(view="masked")
        assert data.table.known_groups == "24 groups, known for all images"
        assert data.classes == ("interphase", "metaphase", "prophase")
        _, masks = data.images.pixels.images, data.images.pixels.masks
        assert masks[:, 16, 16].all()
        pieces = [cv2.connectedComponents(mask)[0] for mask in masks]
        assert max(pieces) == 2  # the background and one cell


def test_drawing_gives_the_same_files(demo, tmp_path):
    names = ["prophase", "metaphase", "interphase"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fluorescence_demo, "IMAGES", 5)
        fluorescence_demo.draw(tmp_path)
    drawn = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.tif"))
    assert len(drawn) == 2 * 24 * 5
    assert {path.parent.name for path in drawn} == set(names)
    assert all((tmp_path / path).read_bytes() == (demo / path).read_bytes() for path in drawn)


def test_limits_of_the_training_images_are_kept_for_prediction(run, demo, tmp_path):
    described, _ = read_checkpoint(run / "checkpoints" / "best.ckpt")
    assert described.model["channels"] == 4
    image_format = described.preprocessing.image_format
    assert image_format.channels == CHANNELS
    limits = np.array(image_format.limits).T
    assert limits.shape == (2, 4)
    assert (limits[0] < limits[1]).all()
    assert limits[0].min() > 50  # counts of a dark pixel
    output = tmp_path / "predictions.csv"
    images = f"--images={demo}"
    assert main(["predict", f"--run={run}", images, f"--output={output}"]) == 0
    with output.open() as file:
        predicted = {row["file"]: row for row in csv.DictReader(file)}
    assert len(predicted) == 24 * 5  # masks beside the images are none
    with (run / "predictions.csv").open() as file:
        for row in csv.DictReader(file):
            same = predicted[row["id"]]
            for name in ("interphase", "metaphase", "prophase"):
                assert float(same[f"p_{name}"]) == pytest.approx(float(row[f"p_{name}"]), abs=2e-2)


def test_four_channels_are_exported_explained_and_reported(run, demo, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    capsys.readouterr()
    file = tmp_path / "model.onnx"
    assert main(["export", f"--run={run}", f"--output={file}"]) == 0
    out = capsys.readouterr().out
    assert "(batch, 32, 32, 4)" in out
    assert "the channels 'DAPI', 'tubulin', 'actin', 'pH3'" in out  # in the steps before the graph
    assert main(["explain", str(run), "--n=4"]) == 0
    assert (run / "figures" / "attributions.png").is_file()
    assert main(["report", str(run.parent), f"--output={tmp_path / 'report'}"]) == 0
    assert json.loads((tmp_path / "report" / "report.json").read_text())


def test_a_sweep_compares_channels(demo, tmp_path, capsys):
    (tmp_path / "experiment.yaml").write_text(
        "data:\n  class_path: FluorescenceDemoDataModule\n  init_args:\n"
        f"    root: {demo}\n    image_size: 32\n"
        "    channels: [DAPI]\n    intensity: {low: 100, high: 1500}\n"
        "    split: {protocol: grouped, folds: 2, fold: 0}\n"
        "model: {backbone: small_cnn}\ntrainer: {max_epochs: 1, limit_train_batches: 2}\n"
    )
    (tmp_path / "sweep.yaml").write_text(
        "experiment: experiment.yaml\nsampler: grid\nrepeat: {data.split.fold: [0, 1]}\n"
        "space: {data.channels: [[DAPI], [DAPI, pH3]]}\n"
    )
    options = [f"--config={tmp_path / 'sweep.yaml'}", f"--runs={tmp_path / 'runs'}"]
    assert main(["sweep", *options]) == 0
    assert "channels DAPI+pH3" in capsys.readouterr().out
