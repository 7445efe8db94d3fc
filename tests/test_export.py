"""export: an ONNX file that says what the run's checkpoint says, on its own."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cellbench.__main__ import main
from cellbench.artifacts.checkpoint import read_checkpoint
from cellbench.data.preprocessing import Preprocessing
from cellbench.inference import onnx as exporter
from cellbench.inference.onnx import compare, random_images
from cellbench.inference.onnx_metadata import preprocessing_steps
from cellbench.inference.rebuild import build_model
from tests.conftest import write_image
from tests.test_predict import rows

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def session_of(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["cellbench"])


def test_the_file_alone_gives_what_predict_gives(fit, folder_root, tmp_path, capsys):
    """With OpenCV, numpy and onnxruntime, by what the metadata say; batches of any size."""
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}", "--data.image_size=[24,32]")
    images, file = folder_root / "blast", tmp_path / "new" / "cells.onnx"
    capsys.readouterr()
    assert main(["export", f"--run={run}", f"--output={file}", f"--images={images}"]) == 0
    out = capsys.readouterr().out
    assert f"on 20 images of {images}: 20 of the same class" in out
    assert "resize to 24 x 32 (height x width)" in out
    check = json.loads((tmp_path / "new" / "cells.check.json").read_text())
    assert (check["n"], check["same_class"]) == (20, 20)
    assert 0 <= check["largest_difference"] < 1e-5
    onnx.checker.check_model(str(file))
    content = file.read_bytes()
    for private in (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "File "):
        assert private.encode() not in content  # the file is given to others
    predicted = tmp_path / "p.csv"
    assert main(["predict", f"--run={run}", f"--images={images}", f"--output={predicted}"]) == 0
    session, metadata = session_of(file)
    assert metadata["classes"] == ["blast", "normal cell"]
    height, width = metadata["image_size"]
    pixels = []
    for row in rows(predicted):
        image = cv2.cvtColor(cv2.imread(str(images / row["file"])), cv2.COLOR_BGR2RGB)
        pixels.append(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    (whole,) = session.run(None, {"images": np.stack(pixels)})
    (first,) = session.run(None, {"images": np.stack(pixels[:1])})
    np.testing.assert_allclose(first[0], whole[0], atol=1e-5)
    for row, probabilities in zip(rows(predicted), whole, strict=True):
        expected = [float(row[f"p_{name}"]) for name in metadata["classes"]]
        np.testing.assert_allclose(probabilities, expected, atol=2e-3)  # predict may be in bfloat16
        assert row["predicted"] == metadata["classes"][probabilities.argmax()]


def test_the_runs_own_validation_images_are_compared_on(fit, folder_root, capsys):
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}", "--data.view=masked")
    n = sum(row["split"] == "val" for row in rows(run / "split.csv"))
    capsys.readouterr()
    assert main(["export", f"--run={run}"]) == 0
    out = capsys.readouterr().out
    assert f"on {n} of the run's validation images: {n} of the same class" in out
    _, metadata = session_of(run / "export" / "model.onnx")
    assert (metadata["view"], metadata["masks"], metadata["stain"]) == ("masked", "expert", "none")
    assert metadata["before"][-1] == "set all that is not cell to 0"


def test_a_file_that_says_another_class_ends_with_1(fit, folder_root, capsys, monkeypatch):
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}")
    shutil.rmtree(folder_root)
    capsys.readouterr()
    assert main(["export", f"--run={run}"]) == 0
    out = capsys.readouterr().out
    assert "NOTE the run's validation images cannot be read (data.root: there is no" in out
    assert "on 64 images of noise: 64 of the same class" in out
    best, file = run / "checkpoints" / "best.ckpt", run / "export" / "model.onnx"
    model = build_model(*read_checkpoint(best))
    with torch.no_grad():
        model.head[-1].bias += torch.tensor([99.0, -99.0])
        other = compare(model, file, random_images(model))
        model.head[-1].bias *= -1
        again = compare(model, file, random_images(model))
    assert other.same_class + again.same_class == 64
    assert max(other.largest_difference, again.largest_difference) > 0.4
    written = exporter.export

    def wrong(model, metadata, path):  # as an exporter's mistake would
        with torch.no_grad():
            model.head[-1].weight *= -1
            model.head[-1].bias *= -1
            written(model, metadata, path)
            model.head[-1].weight *= -1
            model.head[-1].bias *= -1

    monkeypatch.setattr(exporter, "export", wrong)
    assert main(["export", f"--run={run}"]) == 1
    assert "UNRELIABLE: another class by the ONNX file: 64 images" in capsys.readouterr().out
    check = json.loads((run / "export" / "model.check.json").read_text())
    assert check["same_class"] == 0


@pytest.mark.parametrize(
    ("view", "masks", "stain", "words"),
    [
        ("crop", "expert", "none", ["0 background, 128 cytoplasm", "square about the cell's"]),
        ("nucleus", "auto", "giemsa", ["segment", "Macenko", "all that is not nucleus to 9"]),
        ("background", "expert", "none", ["bounding box of the cell's pieces"]),
        ("silhouette", "expert", "none", ["set the cell to 255 and all else to 9"]),
    ],
)
def test_what_no_graph_can_hold_is_said(view, masks, stain, words):
    steps = "\n".join(preprocessing_steps(Preprocessing((24, 32), view, 9, masks, stain)))
    for each in words:
        assert each in steps


def test_images_that_cannot_be_read_are_not_compared(run, fails, tmp_path, capsys):
    images = tmp_path / "images"
    for number in range(3):
        write_image(images / f"{number}.png", np.full((40, 40, 3), 60 * number, np.uint8))
    (images / "1.png").write_bytes(b"")
    capsys.readouterr()
    assert main(["export", f"--run={run}", f"--images={images}"]) == 0
    out = capsys.readouterr().out
    assert "on 2 images of" in out
    assert "NOTE 1 image could not be read" in out
    for number in (0, 2):
        (images / f"{number}.png").unlink()
    line = fails("export", f"--run={run}", f"--images={images}")
    assert line == f"--images: none of the images in {images} can be read"


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line(run, fails, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    line = fails("export", f"--run={run}")
    assert line == f"export needs the package {missing}: pip install 'cellbench[onnx]'"


def test_a_checkpoint_that_is_none_is_refused(run, fails, tmp_path):
    (run / "checkpoints" / "best.ckpt").write_bytes(b"x" * 99)
    assert "is not a whole checkpoint" in fails("export", f"--run={run}")
    assert not (run / "export").exists()
    assert "is not a run's folder" in fails("export", f"--run={tmp_path}")
    line = fails("export", f"--run={run}", f"--masks={tmp_path}")
    assert line == "--masks: they are of --images, which is not given"


def test_only_an_earlier_export_is_overwritten(run, fails, tmp_path):
    file = tmp_path / "model.onnx"
    for output in (run / "metrics.json", run / "checkpoints" / "best.ckpt"):
        before = output.read_bytes()
        line = fails("export", f"--run={run}", f"--output={output}")
        assert line.startswith(f"--output: {output} exists and would be overwritten")
        assert output.read_bytes() == before
    args = ["export", f"--run={run}", f"--output={file}"]
    assert main(args) == main(args) == 0
    file.with_suffix(".check.json").write_text("{}")
    assert ".check.json exists and would be overwritten" in fails(*args)
