"""predict: what it takes, what it writes, and what it does with what it cannot read."""

import csv
import os
import resource
import shutil

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from cellbench.__main__ import main
from cellbench.artifacts import figures
from cellbench.artifacts.predictions import read_predictions
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.unlabelled import UnlabelledImages
from cellbench.inference.contact_sheet import ContactSheet
from cellbench.metrics.probabilities import fit_temperature, temper
from tests.conftest import draw_cell, write_image


def rows(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def draw(folder, n, seed=0):
    rng = np.random.default_rng(seed)
    for number in range(n):
        write_image(folder / f"{number:03d}.png", draw_cell(rng, number % 3, 40)[0])


@pytest.fixture
def predict(run, tmp_path):
    """Runs predict with a run of drawn cells; returns the rows and the run."""

    def run_predict(*args):
        output = tmp_path / "out" / "p.csv"
        assert main(["predict", f"--run={run}", f"--output={output}", *args]) == 0
        return rows(output)

    run_predict.run, run_predict.output = run, tmp_path / "out" / "p.csv"
    return run_predict


def validate_again(run, *, wrong):
    """Writes validation predictions of which so many are wrong, none of them certain."""
    classes, _ = read_predictions(run / "predictions.csv")
    lines = [",".join(["id", "split", "label", "predicted", *(f"p_{name}" for name in classes)])]
    rest = 0.4 / (len(classes) - 1)
    for i in range(20):
        label, predicted = classes[i % 2], classes[(i + 1) % 2 if i < wrong else i % 2]
        values = [str(0.6 if name == predicted else rest) for name in classes]
        lines.append(",".join([f"cell{i}", "val", label, predicted, *values]))
    (run / "predictions.csv").write_text("\n".join(lines) + "\n")


def test_forced_colours_do_not_move_the_cursor_in_a_file(predict, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    draw(tmp_path / "b", 3)
    predict(f"--images={tmp_path / 'b'}")
    shown = capsys.readouterr().out
    assert "Predicting" in shown
    assert "\x1b" not in shown
    assert os.environ["FORCE_COLOR"] == "1"  # for the processes that this one starts


def test_a_damaged_configuration_is_named_where_it_is_read(predict, fails, tmp_path, capsys):
    draw(tmp_path / "b", 2)
    whole = predict(f"--images={tmp_path / 'b'}")
    config = predict.run / "config.yaml"
    config.write_bytes(b"model: \xff")
    assert predict(f"--images={tmp_path / 'b'}") == whole
    for command in (["test", "--run"], ["validate", "--run"], ["explain"], ["report"]):
        assert "config.yaml is not valid YAML: " in fails(*command, str(predict.run))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "config.yaml is not" in " ".join(capsys.readouterr().out.split())


def test_folders_and_files_are_taken_in_the_order_given_each_once(predict, tmp_path):
    draw(tmp_path / "b", 3)
    draw(tmp_path / "a" / "deeper", 2)
    shutil.copy(tmp_path / "b" / "000.png", tmp_path / "single.anything")
    given = [tmp_path / "b", tmp_path / "single.anything", tmp_path / "a", tmp_path / "b/001.png"]
    found = predict("--images", *map(str, given), "--batch_size=4")
    names = ["b/000.png", "b/001.png", "b/002.png", "single.anything"]
    names += ["a/deeper/000.png", "a/deeper/001.png"]
    assert [row["file"] for row in found] == [str(tmp_path / name) for name in names]
    assert found[0] | {"file": ""} == found[3] | {"file": ""}
    alone = predict("--images", str(tmp_path / "a"))
    assert [row["file"] for row in alone] == ["deeper/000.png", "deeper/001.png"]


def test_the_default_output_is_in_the_run(predict, tmp_path):
    draw(tmp_path / "cells", 1)
    one, run = str(tmp_path / "cells"), f"--run={predict.run}"
    assert main(["predict", run, "--images", one]) == 0
    assert main(["predict", run, "--images", one, f"{one}/000.png"]) == 0
    written = {path.name for path in (predict.run / "predict").iterdir()}
    assert written == {"cells.csv", "images.csv"}


def test_the_confidence_is_tempered_by_the_runs_own_validation(predict, tmp_path, capsys):
    draw(tmp_path / "cells", 5)
    validate_again(predict.run, wrong=6)
    val = read_predictions(predict.run / "predictions.csv")[1]["val"]
    temperature = fit_temperature(val.labels, val.probabilities)
    found = predict("--images", str(tmp_path / "cells"))
    assert list(found[0])[:3] == ["file", "predicted", "confidence"]
    classes = [key for key in found[0] if key.startswith("p_")]
    values = np.array([[float(row[key]) for key in classes] for row in found])
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)
    expected = temper(values, temperature).max(axis=1)
    assert abs(expected - values.max(axis=1)).max() > 0.01
    np.testing.assert_allclose([float(r["confidence"]) for r in found], expected, atol=1e-5)
    assert [r["predicted"] for r in found] == [classes[i][2:] for i in values.argmax(axis=1)]
    assert f"temperature {temperature:.3g}: fitted on 20 images (val)" in capsys.readouterr().out


def test_without_validation_predictions_the_temperature_is_1(predict, tmp_path, capsys):
    draw(tmp_path / "cells", 3)
    (predict.run / "predictions.csv").unlink()
    for row in predict("--images", str(tmp_path / "cells")):
        most = max(float(value) for key, value in row.items() if key.startswith("p_"))
        assert float(row["confidence"]) == pytest.approx(most, abs=1e-6)
    assert "temperature 1: the run has no validation predictions" in capsys.readouterr().out


def test_a_validation_split_without_a_mistake_makes_nothing_certain(predict, tmp_path):
    draw(tmp_path / "cells", 3)
    validate_again(predict.run, wrong=0)
    for row in predict("--images", str(tmp_path / "cells")):
        most = max(float(value) for key, value in row.items() if key.startswith("p_"))
        assert most < float(row["confidence"]) < 0.999


def test_unreadable_images_are_listed_and_the_rest_predicted(predict, fails, tmp_path, capsys):
    images = tmp_path / "cells"
    draw(images, 8)
    expected = predict("--images", str(images), "--batch_size=4")
    (images / "001.png").write_bytes(b"")
    (images / "002.png").write_bytes((images / "002.png").read_bytes()[:99])
    for number in range(4, 8):  # a whole batch
        (images / f"{number:03d}.png").write_text("no image")
    capsys.readouterr()
    found = predict("--images", str(images), "--batch_size=4")
    assert found == [expected[0], expected[3]]
    out = capsys.readouterr().out
    assert "2 images, view raw" in out
    assert "NOTE 6 of 8 images could not be read and have NO PREDICTION" in out
    listed = predict.output.with_name("p.unreadable.csv")
    assert [row["file"] for row in rows(listed)] == [f"{n:03d}.png" for n in (1, 2, 4, 5, 6, 7)]
    assert "the file is empty" in rows(listed)[0]["reason"]
    assert "cut short" in rows(listed)[1]["reason"]
    before = predict.output.read_bytes()
    for number in (0, 3):
        (images / f"{number:03d}.png").unlink()
    args = [f"--run={predict.run}", f"--images={images}", f"--output={predict.output}"]
    assert "none of the 6 images can be read; the first: " in fails("predict", *args)
    assert predict.output.read_bytes() == before
    shutil.rmtree(images)
    draw(images, 2)
    predict("--images", str(images))
    assert os.listdir(predict.output.parent) == ["p.csv"]  # the old list would mislead


def test_a_full_disk_leaves_no_file(predict, fails, tmp_path):
    draw(tmp_path / "cells", 1)
    for number in range(1, 600):
        os.link(tmp_path / "cells" / "000.png", tmp_path / "cells" / f"{number:03d}.png")
    output = tmp_path / "new" / "p.csv"
    args = [f"--run={predict.run}", f"--images={tmp_path / 'cells'}", f"--output={output}"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        line = fails("predict", *args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert line == f"cannot write {output}: File too large"
    assert list(output.parent.iterdir()) == []


def test_a_name_that_is_no_utf8_is_written_as_it_is(predict, tmp_path):
    draw(tmp_path / "cells", 1)
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "cells" / "000.png").rename(tmp_path / "cells" / name)
    assert [row["file"] for row in predict("--images", str(tmp_path / "cells"))] == [name]
    assert b"caf\xe9.png," in predict.output.read_bytes()


def test_what_is_not_there_is_named(predict, fails, tmp_path):
    run = f"--run={predict.run}"
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "cells", 1)
    line = fails("predict", run, "--images", str(tmp_path / "cells"), str(tmp_path / "gone"))
    assert line == f"--images: there is no file or folder {tmp_path / 'gone'}"
    line = fails("predict", run, "--images", str(tmp_path / "empty"))
    assert line == f"--images: there is no image file below {tmp_path / 'empty'}"


def test_masks_are_found_for_folders_and_files_and_never_shared(tmp_path):
    rng, masks = np.random.default_rng(0), tmp_path / "masks"
    for name in ("a/1", "a/deep/2", "b/3", "b/1"):
        image, mask = draw_cell(rng, 1, 40)
        write_image(tmp_path / f"{name}.jpg", image)
        write_image(masks / f"{name[2:]}.png", mask)
    prepared = Preprocessing((32, 32), "masked", 7)
    given = [tmp_path / "a", tmp_path / "b" / "3.jpg"]
    shown = UnlabelledImages(given, masks, prepared)
    batch = shown[[0, 1, 2]]
    assert not shown.unreadable
    assert (batch.images[:, :, 0, 0] == 7).all()
    assert len(batch.images.unique()) > 50
    with pytest.raises(Exception, match=r"masks/1\.png would be the mask of .*a/1\.jpg and of"):
        UnlabelledImages([tmp_path / "a", tmp_path / "b"], masks, prepared)


def test_a_mask_of_another_size_costs_its_image_alone(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "cells"
    for number in range(3):
        image, mask = draw_cell(rng, 1, 40)
        write_image(folder / f"{number}.jpg", image)
        write_image(folder / f"{number}.png", mask[: 40 - number % 2])
    shown = UnlabelledImages([folder], folder, Preprocessing((32, 32), "masked", 0))
    assert shown.names == ["0.jpg", "1.jpg", "2.jpg"]
    _ = shown[[0, 1, 2]]
    assert list(shown.unreadable) == [1]
    assert "is 40x39 but its image is 40x40" in shown.unreadable[1]


def test_the_contact_sheet_shows_the_least_and_the_most_certain(tmp_path):
    sheet = ContactSheet(("one", "two"))
    order = np.random.default_rng(0).permutation(200)
    for position, value in enumerate(order.tolist()):
        image = torch.full((3, 8, 8), value, dtype=torch.uint8)
        sheet.add(value / 200, position, value % 2, f"{position}.png", image)
    drawn = sheet.draw().axes[0]
    shown = [int(image.get_array()[0, 0, 0]) for image in drawn.images]
    assert shown == [*range(32), *range(168, 200)]
    texts = [text.get_text() for text in drawn.texts]
    assert texts[0] == "the 32 least and the 32 most certain of 200 images"
    names = [f"{order.tolist().index(value)}.png" for value in (0, 1)]
    assert texts[1:3] == [f"{names[0]}\none 0.000", f"{names[1]}\ntwo 0.005"]


def test_the_contact_sheet_is_a_png_of_every_image_where_they_are_few(predict, tmp_path):
    draw(tmp_path / "cells", 10)
    path = tmp_path / "sheets" / "s.png"
    predict("--images", str(tmp_path / "cells"), f"--contact_sheet={path}", "--batch_size=3")
    assert min(cv2.imread(str(path)).shape[:2]) > 200


def test_heat_maps_are_drawn_of_every_image_that_can_be_read(predict, tmp_path):
    draw(tmp_path / "cells", 3)
    (tmp_path / "cells" / "broken.png").write_bytes(b"no image")
    plain = predict("--images", str(tmp_path / "cells"))
    out = tmp_path / "heat"
    explained = predict("--images", str(tmp_path / "cells"), f"--explain={out}")
    assert explained == plain  # and nothing else changes
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.png")} == {
        f"{row['file']}.png" for row in plain
    }
    for path in out.rglob("*.png"):
        shown = cv2.imread(str(path)).astype(int)
        size = shown.shape[0]
        assert shown.shape == (size, 3 * size, 3)
        seen, cam, gradients = (shown[:, k * size : (k + 1) * size] for k in range(3))
        for heat in (cam, gradients):
            assert abs(heat - seen).mean() > 1
        assert abs(cam - gradients).mean() > 1


def test_no_file_of_another_kind_is_overwritten(predict, fails, tmp_path):
    draw(tmp_path / "cells", 2)
    heat = tmp_path / "heat" / "000.png.png"
    draw(heat.parent, 1)
    (heat.parent / "000.png").rename(heat)
    figure = predict.run / "figures" / "confusion.png"
    figure.parent.mkdir()
    figures.save(Figure(), figure)
    listed = tmp_path / "own.unreadable.csv"
    listed.write_text("mine")
    args = [f"--run={predict.run}", f"--images={tmp_path / 'cells'}"]
    for option, path in (
        ("--output", predict.run / "metrics.json"),
        ("--output", predict.run / "predictions.csv"),
        ("--output", listed),
        ("--contact_sheet", tmp_path / "cells" / "000.png"),
        ("--contact_sheet", figure),
        ("--explain", heat),
    ):
        before = path.read_bytes()
        given = {"--explain": heat.parent, "--output": path}.get(option, path)
        given = tmp_path / "own.csv" if path == listed else given
        line = fails("predict", *args, f"{option}={given}")
        assert line.startswith(f"{option}: {path} exists and would be overwritten, and it is not")
        assert path.read_bytes() == before
    assert "is a folder; give a file" in fails("predict", *args, f"--output={tmp_path}")
    assert "is a file; give a folder" in fails("predict", *args, f"--explain={listed}")
    assert not (predict.run / "predict").exists()


def test_an_earlier_output_is_replaced(predict, tmp_path):
    draw(tmp_path / "cells", 2)
    (tmp_path / "cells" / "broken.png").write_bytes(b"no image")
    sheet, heat = tmp_path / "s.png", tmp_path / "heat"
    predict.output.parent.mkdir()
    predict.output.touch()  # as mktemp does
    for _ in range(2):
        predict(f"--images={tmp_path / 'cells'}", f"--contact_sheet={sheet}", f"--explain={heat}")
    assert sheet.stat().st_size > 1000
    assert sorted(path.name for path in heat.iterdir()) == ["000.png.png", "001.png.png"]


def test_masks_that_would_change_nothing_are_refused(predict, fails, tmp_path):
    draw(tmp_path / "cells", 2)
    draw(tmp_path / "masks", 2)
    args = [f"--run={predict.run}", f"--images={tmp_path / 'cells'}"]
    line = fails("predict", *args, f"--masks={tmp_path / 'masks'}")
    assert line == (
        "--masks: the model was trained on view raw, which uses no masks; leave --masks out"
    )
    (tmp_path / "cells" / "000.jpg").write_bytes((tmp_path / "cells" / "000.png").read_bytes())
    found = predict(*args[1:], f"--masks={tmp_path / 'cells'}")  # it tells which files are masks
    assert [row["file"] for row in found] == ["000.jpg", "001.png"]


def test_a_folder_of_masks_that_is_left_out_is_told(predict, tmp_path, capsys):
    cells = tmp_path / "cells"
    draw(cells, 2)
    draw(cells / "masks" / "deeper", 3)
    assert len(predict(f"--images={cells}")) == 2
    assert (
        f"NOTE left out as masks: 3 image files in {cells / 'masks'}; to classify them give that "
        "folder as --images\n"
    ) in capsys.readouterr().out
    assert len(predict("--images", str(cells), str(cells / "masks"))) == 5
    masked = UnlabelledImages([cells / "masks"], None, Preprocessing((32, 32), "raw", 0))
    assert masked.note is None
