"""The command inspect: what it prints, the experiment that it writes, and that it is quick."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from cellbench.__main__ import main
from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.image_format import Intensity
from cellbench.data.splits import SplitConfig
from cellbench.utils.errors import UserError
from tests.conftest import write_image
from tests.test_reading import classes, draw, draw_mask

OUTPUT_MARK = "# Written by cellbench inspect."


@pytest.fixture
def inspect(capsys):
    """Runs inspect; returns what it printed before the experiment, and the experiment."""

    def run(*args):
        capsys.readouterr()
        assert main(["inspect", *map(str, args)]) == 0, capsys.readouterr().err
        shown, _, text = capsys.readouterr().out.partition(f"{OUTPUT_MARK}\n")
        return shown, yaml.safe_load(text.partition("\n\n")[0])

    return run


def test_a_folder_is_shown(tmp_path, inspect):
    for part, n in (("train", 8), ("val", 3), ("test", 4)):
        classes(tmp_path / part, n=n)
    for path in list(tmp_path.rglob("*.png")):
        draw_mask(path.with_name(f"{path.stem}_cp_masks.png"))
    (tmp_path / "train" / "mono" / "notes.txt").touch()
    (tmp_path / "Thumbs.db").touch()
    shown, experiment = inspect(tmp_path)
    assert shown.splitlines() == [
        "images     30 of 2 classes",
        "classes    folders in test/, train/, val/",
        "                15  mono",
        "                15  neutro",
        "parts      train 16, val 6, test 8 images, from folders such as train/mono",
        "folds      none found",
        "groups     none known",
        "domains    none found",
        "masks      30 of 30 images: X_cp_masks",
        "sizes      24x24 (width x height)",
        "modes      30 RGB, 8 bit",
        "left out   1 .db file: hidden, or left by a system or a program",
        "left out   1 .txt file: in a format that is not read as an image",
        "values     of 30 of 30 masks: 0 background, 128 cytoplasm, 255 nucleus",
        "",
    ]
    assert experiment == {
        "seed_everything": 0,
        "data": {
            "class_path": "FolderDataModule",
            "init_args": {
                "root": str(tmp_path),
                "view": "raw",
                "augment": "flips",
                "image_size": 32,
                "split": {"protocol": "official", "seed": 0},
            },
        },
        "model": {"backbone": "resnet18", "lr": 0.001, "schedule": "cosine"},
        "trainer": {"max_epochs": 20},
    }


def test_neither_torch_nor_lightning_is_imported(tmp_path):
    classes(tmp_path)
    code = (
        "import sys\nfrom cellbench.__main__ import main\n"
        f"assert main(['inspect', {str(tmp_path)!r}]) == 0\n"
        "heavy = {'torch', 'lightning', 'torchvision', 'albumentations', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_written_experiment_is_run_as_it_is(tmp_path, inspect, capsys):
    root, output = tmp_path / "cells", tmp_path / "experiments" / "mine.yaml"
    for k, name in enumerate(("all", "hem")):
        for i in range(24):
            draw(root / name / f"UID_{i // 4 + 6 * k}_{i}_1_{name}.bmp")
    (root / "notes.txt").touch()
    shown, experiment = inspect(root, "--output", output)
    assert yaml.safe_load(output.read_text()) == experiment
    pattern = experiment["data"]["init_args"]["group_pattern"]
    assert f"12 groups of 48 images (data.group_pattern: '{pattern}')" in shown
    assert "# data.group_pattern is a guess from names and folders: check it." in output.read_text()
    command = ["fit", f"--config={output}", f"--runs={tmp_path / 'runs'}", "--name=x"]
    quick = ["--model.backbone=small_cnn", "--trainer.max_epochs=1"]
    assert main([*command, *quick, "--trainer.enable_progress_bar=false"]) == 0
    printed = capsys.readouterr().out
    assert "groups     12 groups, known for all images" in printed
    assert "NOTE       no samples: 1 .txt file: in a format" in printed


def test_what_is_doubtful_is_said_before_a_run_and_by_audit(tmp_path, capsys, fails):
    root = tmp_path / "cells"
    for k, name in enumerate(("all", "hem")):
        for i in range(12):
            draw(root / name / f"UID_{i // 4 + 3 * k}_{i}.png")
    draw(root / "hem" / "old.gif")
    draw(root / ".thumbs" / "a.png")
    data = ["--data=FolderDataModule", f"--data.root={root}", "--data.image_size=24"]
    quick = ["--model.backbone=small_cnn", "--trainer.max_epochs=1"]
    line = fails("fit", *data, *quick, f"--runs={tmp_path / 'runs'}")
    assert 'give "(?:^|/)UID_(?P<group>' in line  # no patient is divided in silence
    data.append("--data.split.protocol=image")
    assert main(["fit", *data, *quick, f"--runs={tmp_path / 'runs'}"]) == 0
    run = capsys.readouterr().out
    assert main(["audit", *data, f"--output={tmp_path / 'audit'}"]) in (0, 1)
    audit = capsys.readouterr().out.replace("\n", " ")
    for line in (
        "no samples: 1 .png file: hidden, or left by a system or a program; 1 .gif file: in a",
        "1 .gif file left out, of which 1 lie in 'hem' beside 12 images: convert them",
        "6 groups of 24 images (data.group_pattern: '(?:^|/)UID_(?P<group>",
    ):
        assert line in run
        assert line in audit


def test_a_split_that_cannot_be_drawn_is_doubtful(tmp_path, inspect):
    classes(tmp_path, n=2)
    shown, experiment = inspect(tmp_path)
    assert "DOUBT      the grouped split cannot be drawn: class 'mono' (2 images" in shown
    assert experiment["data"]["init_args"]["split"]["protocol"] == "grouped"


def test_folds_and_patterns_are_in_the_experiment(tmp_path, inspect):
    for fold in ("fold1", "fold2", "fold3"):
        classes(tmp_path / fold, n=5)
    options = {"group_pattern": r"(?P<group>fold\d/\w+/img_\d+)", "mask_pattern": "m/{path}.png"}
    draw_mask(tmp_path / "m" / "fold1" / "mono" / "img_000.png")
    shown, experiment = inspect(tmp_path, *(f"--{name}={each}" for name, each in options.items()))
    assert "folds      3, from the folders fold1, fold2, fold3" in shown
    assert "groups     30 by data.group_pattern" in shown
    assert "masks      1 of 30 images: m/{path}.png" in shown
    written = experiment["data"]["init_args"]
    assert written["split"] == {"protocol": "predefined", "fold": 0, "seed": 0}
    assert {name: written[name] for name in options} == options


def test_a_table_is_shown(tmp_path, inspect):
    classes(tmp_path)
    rows = [f"{name}/img_{i:03d}.png,{name[0]}" for name in ("mono", "neutro") for i in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    assert "1 table in data.root not used, such as 't.csv'" in inspect(tmp_path)[0]
    shown, experiment = inspect(tmp_path, "--csv=t.csv", r"--group_pattern=_00(?P<group>\d)")
    assert "groups     6 by data.group_pattern: 0, 1, 2, ..." in shown
    assert experiment["data"]["init_args"]["csv"] == "t.csv"
    assert "                 6  m" in shown


def test_patients_in_the_names_of_a_table_are_suggested(tmp_path, inspect):
    rows = []
    for i in range(48):
        draw(tmp_path / f"UID_{i // 4}_{i}.png")
        rows.append(f"UID_{i // 4}_{i}.png,{'ab'[i // 24]}")
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    shown, experiment = inspect(tmp_path, "--csv=t.csv")
    pattern = experiment["data"]["init_args"]["group_pattern"]
    assert f"12 groups of 48 images (data.group_pattern: '{pattern}')" in shown
    assert (
        "groups     12 by data" in inspect(tmp_path, "--csv=t.csv", "--group_pattern", pattern)[0]
    )


def test_medmnist_is_shown(tmp_path, inspect):
    images = np.zeros((40, 28, 28, 3), np.uint8)
    labels = np.arange(40)[:, None] % 2
    path = tmp_path / "x.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    shown, experiment = inspect(path)
    assert "parts      train 40, test 40 images, from x.npz" in shown
    assert "sizes      28x28" in shown
    assert experiment["data"]["init_args"]["split"]["protocol"] == "official"


def test_an_output_replaces_only_one_of_its_own(tmp_path, inspect, fails):
    root = classes(tmp_path / "cells")
    output = tmp_path / "mine.yaml"
    inspect(root, f"--output={output}")
    inspect(root, f"--output={output}")
    assert output.read_text().startswith(OUTPUT_MARK)
    output.write_text("seed_everything: 0\n")
    line = fails("inspect", str(root), f"--output={output}")
    assert "mine.yaml exists and would be overwritten" in line
    assert output.read_text() == "seed_everything: 0\n"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["{root}/none"], "data.root: there is no folder {root}/none; give a folder that holds"),
        (["{root}/a.txt"], "data.root: {root}/a.txt is a file and no folder; give a folder"),
        (["{root}", "--csv=no.csv"], "data.csv: there is no table {root}/no.csv"),
        (["{root}", "--columns={{label: x}}"], "data.columns: they are those of a table"),
        (["{root}", "--mask_pattern=m.png"], "data.mask_pattern: 'm.png' is one path for all"),
        (["{root}", "--group_pattern=("], "data.group_pattern: '(' is no regular expression"),
        (["{root}", "--pattern=("], "unknown option"),
        ([], "missing FOLDER"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, fails, args, line):
    root = classes(tmp_path)
    (root / "a.txt").touch()
    assert line.format(root=root) in fails("inspect", *(each.format(root=root) for each in args))


@pytest.mark.slow
def test_100_000_images_take_seconds(tmp_path):
    classes(tmp_path, n=1)
    for name in ("mono", "neutro"):
        content = next((tmp_path / name).iterdir()).read_bytes()
        for i in range(50_000):
            Path(tmp_path, name, f"{i:06d}.png").write_bytes(content)
    code = (
        "import resource, time\nfrom cellbench.__main__ import main\nstart = time.perf_counter()\n"
        f"assert main(['inspect', {str(tmp_path)!r}]) == 0\n"
        "assert time.perf_counter() - start < 30\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 500 * 1024"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_masks_whose_values_are_uncertain_are_a_doubt_with_the_option(tmp_path, inspect):
    classes(tmp_path, n=6)
    for path in list(tmp_path.rglob("*.png")):
        mask = np.full((24, 24), 255, np.uint8)
        mask[6:-6, 6:-6] = 0  # inverted
        cv2.imwrite(str(path.with_name(f"{path.stem}_mask.png")), mask)
    shown, _ = inspect(tmp_path)
    assert "values     of 12 of 12 masks: not certain" in shown
    assert "DOUBT      12 of 12 masks look inverted" in shown
    assert "data.mask_values: {background: 255, cell: 0}" in shown


def test_single_masks_that_cannot_be_used_are_a_doubt(tmp_path, inspect):
    classes(tmp_path, n=6)
    for path in list(tmp_path.rglob("*.png")):
        draw_mask(path.with_name(f"{path.stem}_mask.png"))
    draw_mask(tmp_path / "mono" / "img_000_mask.png", size=(20, 24))
    cv2.imwrite(str(tmp_path / "neutro" / "img_003_mask.png"), np.zeros((24, 24), np.uint8))
    shown, _ = inspect(tmp_path)
    assert "DOUBT      2 of 12 masks that were looked into cannot be used: mask" in shown
    assert "mono/img_000_mask.png is 24x20 but its image is 24x24" in shown


def test_masks_under_unknown_names_are_refused_with_their_pattern(tmp_path, fails):
    rng = np.random.default_rng(0)
    for name in ("blast", "mono"):
        for i in range(6):
            noise = rng.integers(0, 256, (24, 24, 3), np.uint8)
            write_image(tmp_path / "cells" / name / f"img_{i}.png", noise)
            mask = np.where(noise[..., :1] > 128, 255, 0).astype(np.uint8).repeat(3, axis=2)
            write_image(tmp_path / "cells" / name / f"img_{i}_Kontur.png", mask)
    line = fails("inspect", str(tmp_path / "cells"))
    assert "give data.mask_pattern: '{path}_Kontur.png'" in line
    data = FolderDataModule(
        root=tmp_path / "cells", mask_pattern="{path}_Kontur.png", group_pattern="none"
    )
    assert [sample.mask is not None for sample in data.table.samples] == [True] * 12


def test_official_parts_that_divide_a_likely_patient_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("blast", "mono"):
            for i in range(12):
                path = tmp_path / part / name / f"PAT{i // 4}_{part}{i}.png"
                write_image(path, rng.integers(0, 256, (24, 24, 3), np.uint8))
    official = SplitConfig("official")
    with pytest.raises(UserError, match=r"data\.group_pattern: names or folders look as if"):
        _ = FolderDataModule(root=tmp_path, split=official).partition
    own = FolderDataModule(root=tmp_path, split=official, group_pattern="none")
    assert len(own.partition.indices("test")) == 24


def test_images_of_several_depths_are_doubtful_and_share_no_scale(tmp_path, inspect):
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 200, (24, 24)).astype(np.uint8)
        deep = pixels.astype(np.uint16) * 20
        path = tmp_path / "cells" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), deep if i % 3 == 0 else pixels)
    shown, _ = inspect(tmp_path / "cells")
    assert "16 images of 8 bit and 8 images of 16 bit" in shown
    scale = Intensity("percentile 1", "percentile 99", per="dataset")
    data = FolderDataModule(root=tmp_path / "cells", intensity=scale, group_pattern="none")
    with pytest.raises(UserError, match=r"no scale of the dataset fits both"):
        _ = data.image_format
