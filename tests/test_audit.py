"""The audit: it finds what was planted, and exits with 1 where the chosen split leaks."""

import csv
import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cellbench.__main__ import main
from cellbench.artifacts.conditions import Condition
from cellbench.artifacts.finished import Finished, StoredSplit
from cellbench.artifacts.folder import RunFolder
from cellbench.artifacts.predictions import Predictions
from cellbench.audit import shortcuts
from cellbench.audit.labels import find_doubtful
from cellbench.data import result_cache
from cellbench.data.cache import CacheConfig
from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.metrics.intervals import wilson
from cellbench.utils.errors import UserError
from tests.conftest import SHARED, draw_debris, write_image
from tests.lookalikes import draw_field


@pytest.fixture
def audit(tmp_path, capsys, draw_once):
    """Runs the command; gives the exit code and what audit.json holds."""

    def run(*args):
        output = tmp_path / "audit"
        cache = f"--data.cache.folder={tmp_path / 'cache'}"
        code = main(["audit", *map(str, args), cache, f"--output={output}"])
        assert code in (0, 1), capsys.readouterr().err
        page = (output / "audit.html").read_text(encoding="utf-8")
        assert "<script" not in page
        assert "http://" not in page.replace("http://www.w3.org", "").replace(
            "http://purl.org", ""
        ).replace("http://creativecommons.org", "")  # an SVG's namespaces, which nobody fetches
        return code, json.loads((output / "audit.json").read_text(encoding="utf-8"))

    return run


@pytest.fixture
def few_trees(monkeypatch):
    """Make the search for shortcuts fast, for tests of what else an audit finds."""
    monkeypatch.setattr(shortcuts, "TREES", 5)


@pytest.fixture
def planted(tmp_path):
    """Two classes of 30 fields, with all that an audit must find."""
    root, rng = tmp_path / "cells", np.random.default_rng(3)
    for label, name in enumerate(("a", "b")):
        for i in range(30):
            field = draw_field(rng, label)
            if i == 7:  # all of it out of focus
                field = cv2.GaussianBlur(field, (0, 0), 12)
            if i == 8:
                field = (field // 6).astype(np.uint8)
            write_image(root / name / f"{i:02d}.png", field)
    first = cv2.imread(str(root / "a" / "00.png"))
    cv2.imwrite(str(root / "b" / "30.png"), first)  # the same under another label
    turn = cv2.getRotationMatrix2D((160, 120), 12, 1)
    second = cv2.warpAffine(cv2.imread(str(root / "a" / "01.png")), turn, (320, 240))
    cv2.imwrite(str(root / "a" / "31.jpg"), second)
    grey = cv2.cvtColor(cv2.imread(str(root / "b" / "02.png")), cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(root / "b" / "02.png"), grey)
    (root / "b" / "03.png").write_bytes(b"\x89PNG and no more")
    return root


@pytest.mark.usefixtures("few_trees")
def test_what_is_planted_is_found(audit, planted):
    code, found = audit("--data=FolderDataModule", f"--data.root={planted}")
    assert found["n"] == 61
    assert list(found["unreadable"]) == ["b/03.png"]
    assert "cut short" in found["unreadable"]["b/03.png"]
    assert found["identical"] == [["a/00.png", "b/30.png"]]
    assert [{c["first"], c["second"]} for c in found["near_copies"]] == [{"a/01.png", "a/31.jpg"}]
    assert found["too_plain_for_near_copies"] == ["a/07.png", "b/07.png"]  # out of focus
    assert found["conflicts"] == [["a/00.png", "b/30.png"]]
    assert found["formats"] == {"PNG": 60, "JPEG": 1}
    assert found["modes"] == {"colour": 60, "grey": 1}
    assert {"a/07.png", "b/07.png"} <= {each["id"] for each in found["outliers"]["blur"]}
    assert {"a/08.png", "b/08.png"} <= {each["id"] for each in found["outliers"]["brightness"]}
    assert found["classes"]["a"] == {"images": 31, "groups": 30}
    chosen, by_image = found["splits"]
    assert chosen["protocol"] == "grouped"
    assert chosen["identical"] == by_image["identical"] == 0  # kept together under any protocol
    assert code == (1 if chosen["near"] else 0)


def test_images_too_plain_for_near_copies_are_counted(audit, tmp_path, capsys):
    for i, grey in enumerate(range(100, 220, 10)):
        write_image(tmp_path / "c" / "ab"[i % 2] / f"{i}.png", np.full((64, 64, 3), grey, np.uint8))
    found = audit("--data=FolderDataModule", f"--data.root={tmp_path / 'c'}")[1]
    sentence = "12 images have too little texture to be told from a near copy; only exact copies"
    assert len(found["too_plain_for_near_copies"]) == 12
    assert sentence in (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert found["near_copies"] == []


@pytest.mark.usefixtures("few_trees")
def test_near_copies_that_cross_the_split_give_exit_code_1(audit, planted):
    (planted / "b" / "03.png").unlink()
    rows = [["path", "label", "split"]]
    for image in sorted(planted.rglob("*.*g")):
        name = image.relative_to(planted).as_posix()
        part = "test" if name in ("a/31.jpg", "b/30.png", "a/00.png", "b/10.png") else "train"
        rows.append([name, image.parent.name, part])
    with (planted / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    options = ("--data=FolderDataModule", f"--data.root={planted}", "--data.csv=t.csv")
    official = ("--data.split.protocol=official", "--data.split.val=0.2")
    code, found = audit(*options, *official)
    assert code == 1
    assert found["leaks"]
    assert found["splits"][0]["near"] == 1
    assert found["verdict"].startswith(
        "The official split leaks: it divides sets of copies (1, of which 0 are identical) and "
        "groups (0) between its parts. data.copies: near"
    )
    code, found = audit(*options, *official, "--data.copies=near", "--data.split.purge=true")
    assert code == 0
    assert not found["leaks"]
    assert found["verdict"].startswith("The official split does not leak")


@pytest.mark.slow
def test_a_split_by_image_of_slides_leaks(audit):
    options = ("--data=SyntheticDataModule", "--data.samples=90", "--data.slides=15")
    assert audit(*options)[0] == 0
    code, found = audit(*options, "--data.split.protocol=image")
    assert code == 1
    assert found["splits"][0]["groups"] > 5
    grouped = next(each for each in found["splits"] if each["protocol"] == "grouped")
    assert grouped["groups"] == 0


@pytest.mark.usefixtures("few_trees")
def test_every_fold_is_looked_at(audit):
    _, found = audit(
        "--data=SyntheticDataModule",
        "--data.samples=120",
        "--data.slides=60",
        "--data.split={folds: 3, fold: 1}",
    )
    folds = [each["fold"] for each in found["splits"] if each["protocol"] == "grouped"]
    assert folds == [0, 1, 2]
    assert len({each["digest"] for each in found["splits"]}) == 4


@pytest.mark.slow
def test_copies_grouped_by_the_number_in_their_name_leak(audit, drawn_blood_cells, tmp_path):
    root, true = drawn_blood_cells
    rows = [["path", "label", "group"]]
    for name in true:
        path = root / name
        rows.append([name, path.parent.name, f"{path.parent.name}{path.name.split('_')[1]}"])
    table = root / "by_number.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    try:
        code, found = audit(
            "--data=FolderDataModule",
            f"--data.root={root}",
            "--data.csv=by_number.csv",
            "--data.split={test: 0.25, val: 0.3}",
        )
    finally:
        table.unlink()  # the other tests' layout
    assert code == 1
    assert found["splits"][0]["groups"] == 0
    assert found["splits"][0]["near"] > 10


def write_shortcut(root, colour_of):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("a", "b")):
        for i in range(40):
            image = np.full((96, 96, 3), 200.0)
            image[..., 2] = colour_of(rng, label)
            image += rng.normal(0, 6, image.shape)
            cv2.circle(image, (48, 48), 20, (150, 60, 120), -1)
            mask = np.zeros((96, 96), np.uint8)
            cv2.circle(mask, (48, 48), 20, 255, -1)
            write_image(root / name / f"{i}.png", image.clip(0, 255).astype(np.uint8))
            write_image(root / "masks" / name / f"{i}.png", mask)


@pytest.mark.parametrize("tells", [True, False])
def test_a_background_that_tells_the_class_is_told(audit, tmp_path, tells):
    write_shortcut(
        tmp_path / "cells",
        lambda rng, label: 190 + 30 * label if tells else rng.uniform(190, 220),
    )
    _, found = audit("--data=FolderDataModule", f"--data.root={tmp_path / 'cells'}")
    shortcuts = {each["name"]: each for each in found["shortcuts"]}
    for name in ("background alone", "mean colour"):
        assert shortcuts[name]["tells"] == tells, name
        accuracy = shortcuts[name]["scores"]["metrics"]["accuracy"]
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        assert (accuracy["value"] > 0.95) == tells
    assert shortcuts["image size"]["note"] == "it is the same for all images"
    assert not shortcuts["silhouette alone"]["tells"]
    assert found["masks"]["n"] == 80


def test_tissue_has_no_cells_to_cut_out(audit, chaoyang_root):
    _, found = audit("--data=ChaoyangDataModule", f"--data.root={chaoyang_root}")
    background = next(e for e in found["shortcuts"] if e["name"] == "background alone")
    assert background["scores"] is None
    assert "tissue, in which no single cell can be cut out" in background["note"]
    assert found["masks"] is None


@pytest.mark.usefixtures("few_trees")
def test_an_interrupted_audit_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(result_cache, "_BATCH_IMAGES", 8)
    read, whole = [], SyntheticDataModule.read_image

    def interrupted(self, sample):
        read.append(sample.id)
        if len(read) == 40:
            raise KeyboardInterrupt
        return whole(self, sample)

    args = ["audit", "--data=SyntheticDataModule", "--data.samples=60"]
    args += [f"--data.cache.folder={tmp_path / 'cache'}", f"--output={tmp_path / 'audit'}"]
    monkeypatch.setattr(SyntheticDataModule, "read_image", interrupted)
    assert main(args) == 130
    assert "give the same command to go on" in capsys.readouterr().err
    first = set(read[:32])  # four batches of eight are kept
    read.clear()
    monkeypatch.setattr(
        SyntheticDataModule, "read_image", lambda s, x: (read.append(x.id), whole(s, x))[1]
    )
    assert main(args) == 0
    again = Counter(read)
    kept_ones, others = {again[name] for name in first}, {again[n] for n in again if n not in first}
    assert min(others) > min(kept_ones)  # those are not read for their facts once more


def cross_validation(data, labels, probabilities):
    """A run that has tested every image of a dataset."""
    ids = [sample.id for sample in data.table.samples]
    parts = {"train": ids[:1], "val": [], "test": ids}
    names = [data.classes[label] for label in labels]
    own = dict(zip(ids, ids, strict=True))
    split = StoredSplit("", parts, dict(zip(ids, names, strict=True)), own, own, "", frozenset())
    metrics = {"experiment": "runs", "seed": 0, "stamps": [], "split": {"fold": 0, "folds": None}}
    test = Predictions(ids, labels, probabilities.astype(np.float32))
    run = Finished(RunFolder(Path()), {}, metrics, split, data.classes, {"test": test}, {})
    return Condition("runs", {}, (run,), 0)


def test_flipped_labels_are_doubted():
    data = SyntheticDataModule(samples=200, slides=100)
    rng = np.random.default_rng(0)
    true = data.table.labels.copy()
    given = true.copy()
    flipped = rng.choice(200, 12, replace=False)
    given[flipped] = (true[flipped] + 1) % len(data.classes)
    probabilities = 0.9 * np.eye(len(data.classes))[true] + 0.1 * rng.dirichlet(
        np.ones(len(data.classes)), 200
    )
    folds = cross_validation(data, given, probabilities)
    with pytest.raises(UserError, match=r"--runs: runs was trained on another label of 'cell"):
        find_doubtful(data, folds)
    data.table.labels[:] = given
    found = find_doubtful(data, folds)
    assert found.n == 200
    assert set(found.positions) == set(flipped)
    assert (found.predicted == true[found.positions]).all()
    assert found.quality.max() < 0.2
    assert found.doubted is None


def test_annotators_disagree_more_on_doubtful_labels():
    data = SyntheticDataModule(samples=200, slides=100)
    true = data.table.labels.copy()
    given = true.copy()
    given[:20] = (true[:20] + 1) % len(data.classes)
    data.table.samples[:] = [
        replace(sample, votes=(int(true[i]), int(true[i]), int(given[i])))
        for i, sample in enumerate(data.table.samples)
    ]
    probabilities = np.eye(len(data.classes), dtype=np.float32)[true] * 0.8 + 0.05
    folds = cross_validation(data, given, probabilities)
    data.table.labels[:] = given
    found = find_doubtful(data, folds)
    slides = {data.table.samples[i].group for i in range(20, 200)}
    assert found.doubted.share == 1
    assert found.doubted.n == 20
    assert found.others.share == 0
    assert found.others.high == pytest.approx(wilson(0, len(slides))[1])


@pytest.mark.usefixtures("few_trees")
def test_labels_are_doubted_by_the_runs_of_a_cross_validation(fit, audit, tmp_path):
    options = ["--data=SyntheticDataModule", "--data.samples=80", "--data.slides=40"]
    for fold in (0, 1):
        fit(*options, f"--data.split={{folds: 2, fold: {fold}}}", name="folds")
    _, found = audit(*options, "--runs", str(tmp_path / "runs"))
    (doubtful,) = found["doubtful"]
    assert doubtful["experiment"] == "folds"
    assert doubtful["n"] == 80
    assert all(each["label"] != each["predicted"] for each in doubtful["images"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config=no.yaml"], r"cannot read no\.yaml"),
        (["--data=HPVDataModul"], r"unknown data module 'HPVDataModul'; closest: HPVDataModule"),
        (["--data=HPVDataModule", "--data.root=no"], r"there is no folder no; run python -m"),
        (["--data=HPVDataModule", "--data.vew=raw"], r"unknown option 'data\.vew'"),
        ([], r"missing --data"),
        (["--data=SyntheticDataModule", "--runs", "no"], r"there is no finished run below no"),
    ],
)
def test_a_mistake_is_told_in_a_line(args, message, fails):
    assert re.search(message, fails("audit", *args))


@pytest.mark.usefixtures("few_trees")
def test_runs_of_other_images_are_refused(tmp_path, fit, fails):
    fit("--data=SyntheticDataModule", "--data.samples=60")
    line = fails(
        *("audit", "--data=SyntheticDataModule", "--data.samples=40"),
        *("--runs", str(tmp_path / "runs"), f"--data.cache.folder={tmp_path / 'cache'}"),
    )
    assert re.search(r"--runs: tiny tested 'cell\d+', which this dataset does not have", line)


@pytest.mark.shared
@pytest.mark.slow
def test_the_real_cells(audit):
    code, found = audit("--data=HPVDataModule", f"--data.root={SHARED / 'hpv'}")
    assert code == 0
    assert [name[0][-7:] for name in found["identical"]] == ["112.bmp"]
    assert len(found["near_copies"]) == 13
    assert len(found["conflicts"]) == 1
    masks = found["masks"]
    assert masks["cell"]["mean"] > 0.955
    assert masks["cell"]["fifth_percentile"] > 0.9
    assert masks["nucleus"]["mean"] > 0.92
    assert masks["nucleus"]["fifth_percentile"] > 0.8


def test_a_folder_data_module_groups_near_copies_if_asked(planted, tmp_path):
    (planted / "b" / "03.png").unlink()
    cache = CacheConfig(folder=tmp_path / "cache")
    exact = FolderDataModule(root=planted, cache=cache).table
    near = FolderDataModule(root=planted, cache=cache, copies="near").table
    names = [sample.id for sample in near.samples]
    a, b = names.index("a/01.png"), names.index("a/31.jpg")
    assert exact.groups()[a] != exact.groups()[b]
    assert near.groups()[a] == near.groups()[b]
    assert near.groups(known=False)[a] != near.groups(known=False)[b]


def test_where_no_cell_is_found_nothing_is_hidden(audit, tmp_path):
    """Without a mask the whole image is background; else its absence would tell the class."""
    write_shortcut(tmp_path / "cells", lambda rng, label: rng.uniform(190, 220))
    shutil.rmtree(tmp_path / "cells" / "masks")
    for i in range(40):  # cells so pale that no nucleus is found
        path = tmp_path / "cells" / "b" / f"{i}.png"
        image = cv2.imread(str(path))
        cv2.circle(image, (48, 48), 22, image[:20].mean((0, 1)).tolist(), -1)
        cv2.imwrite(str(path), image)
    _, found = audit("--data=FolderDataModule", f"--data.root={tmp_path / 'cells'}")
    background = next(e for e in found["shortcuts"] if e["name"] == "background alone")
    assert background["note"] == "automatic masks; no cell in 40 of 80 images"
    assert found["masks"] is None
    assert found["automatic_masks"]["no_cell"] == sorted(f"b/{i}.png" for i in range(40))


def test_doubtful_automatic_masks_are_named(audit, tmp_path):
    write_shortcut(tmp_path / "cells", lambda rng, label: rng.uniform(190, 220))
    write_image(tmp_path / "cells" / "a" / "7.png", draw_debris(0))
    (tmp_path / "cells" / "masks" / "a" / "7.png").unlink()
    _, found = audit("--data=FolderDataModule", f"--data.root={tmp_path / 'cells'}")
    masks = found["automatic_masks"]
    assert masks["n"] == 80
    assert [each["id"] for each in masks["doubtful"]] == ["a/7.png"]
    assert masks["doubtful"][0]["confidence"] < masks["threshold"]
    assert masks["no_cell"] == []
    page = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert "1 of 80 masks are doubtful (confidence below 0.8): a/7.png (" in page


@pytest.mark.usefixtures("few_trees")
def test_a_split_that_cannot_be_drawn_does_not_hold(audit, tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("a", 30), ("b", 3)):
        for i in range(n):
            write_image(tmp_path / "cells" / name / f"{i}.png", draw_field(rng, 0))
    code, found = audit(
        "--data=FolderDataModule", f"--data.root={tmp_path / 'cells'}", "--data.split.folds=5"
    )
    assert code == 1
    assert not found["holds"]
    assert not found["leaks"]
    assert re.search(r"The grouped split, fold \d, cannot be drawn: class 'b'", found["verdict"])


@pytest.mark.slow
def test_odd_shapes_and_broken_masks_do_not_end_an_audit(audit, tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / "cells"
    write_shortcut(root, lambda rng, label: 200)
    for name, shape in (
        ("tiny", (4, 4)),
        ("wide", (1, 2000)),
        ("tall", (3000, 4)),
        ("g", (50, 50)),
    ):
        image = rng.integers(0, 255, shape if name == "g" else (*shape, 3)).astype(np.uint8)
        write_image(root / "a" / f"{name}.png", image)
    cv2.imwrite(str(root / "masks" / "b" / "0.png"), np.zeros((7, 7), np.uint8))
    _, found = audit("--data=FolderDataModule", f"--data.root={root}")
    assert found["n"] == 84
    assert found["masks"]["n"] == 79
    assert "7x7 but its image is 96x96" in found["masks"]["unreadable"]["b/0.png"]
    assert audit("--data=FolderDataModule", f"--data.root={root}")[1] == found  # what was kept
    assert found["modes"]["grey"] == 1


@pytest.mark.slow
def test_an_unreadable_image_of_a_set_whose_groups_are_in_the_pixels(
    audit, fails, drawn_blood_cells, tmp_path
):
    root = tmp_path / "set"
    shutil.copytree(drawn_blood_cells[0], root)
    broken = next((root / "images" / "TRAIN" / "MONOCYTE").iterdir())
    broken.write_bytes(broken.read_bytes()[:200])
    name = broken.relative_to(root).as_posix()
    options = ("--data=BloodCellsDataModule", f"--data.root={root}")
    _, found = audit(*options)
    assert list(found["unreadable"]) == [name]
    assert found["n"] == len(drawn_blood_cells[1]) - 1
    assert all(check["holds"] for check in found["checks"][1:])
    cache = f"--data.cache.folder={tmp_path / 'c'}"
    assert name in fails("fit", *options, cache, f"--runs={tmp_path / 'r'}")


def test_no_readable_image_is_one_line(fails, tmp_path):
    for name in "ab":
        write_image(tmp_path / "cells" / name / "1.png", np.zeros((9, 9, 3), np.uint8))
        (tmp_path / "cells" / name / "1.png").write_bytes(b"no image")
    cache = f"--data.cache.folder={tmp_path / 'c'}"
    line = fails("audit", "--data=FolderDataModule", f"--data.root={tmp_path / 'cells'}", cache)
    assert line.startswith(
        "none of the 2 images can be read; 'a/1.png': cannot read it: the file is"
    )


@pytest.mark.usefixtures("few_trees")
def test_the_stamps_of_runs_are_handed_on(fit, audit, tmp_path):
    options = ["--data=SyntheticDataModule", "--data.samples=80", "--data.slides=40"]
    fit(*options, "--data.split.protocol=image")
    _, found = audit(*options, "--runs", str(tmp_path / "runs"))
    assert found["doubtful"][0]["stamps"][0].startswith("split by image, ignoring groups")


def test_a_name_that_is_no_utf8_is_one_line(folder_root, fails):
    source = os.fsencode(folder_root / "blast" / "0 (0).jpg")
    os.rename(source, os.fsencode(folder_root / "blast") + b"/\xe9.jpg")
    line = fails("fit", "--data=FolderDataModule", f"--data.root={folder_root}")
    assert "is not a UTF-8 name" in line


def test_an_output_that_cannot_be_made_is_told_before_the_work(tmp_path, fails):
    (tmp_path / "file").write_text("")
    line = fails("audit", "--data=SyntheticDataModule", f"--output={tmp_path / 'file' / 'x'}")
    assert line == f"--output: cannot make {tmp_path / 'file' / 'x'}: Not a directory"


@pytest.mark.parametrize("name", ["audit.json", "audit.html"])
def test_only_an_earlier_audit_is_overwritten(tmp_path, fails, name):
    (tmp_path / name).write_text("mine")
    line = fails("audit", "--data=SyntheticDataModule", f"--output={tmp_path}")
    assert line.startswith(f"--output: {tmp_path / name} exists and would be overwritten, and it")
    assert (tmp_path / name).read_text() == "mine"
