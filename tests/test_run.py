"""A run from its command to its folder, and back."""

import copy
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cellbench.__main__ import main
from cellbench.artifacts.predictions import read_predictions
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.data.views import View
from cellbench.metrics.probabilities import score
from cellbench.models.classifier import CellClassifier
from cellbench.models.config import ModelConfig
from cellbench.training import precision
from tests.conftest import QUICK, TINY, draw_cell, draw_debris, write_image

FILES = {
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "config.yaml",
    "environment.json",
    "figures/confusion.png",
    "figures/learning_curves.png",
    "figures/samples.png",
    "history.csv",
    "metrics.json",
    "predictions.csv",
    "split.csv",
}


def written(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_writes_its_folder(fit):
    run = fit("--figures=true")
    assert written(run) == FILES
    found = metrics(run)
    assert found["stamps"] == []
    split = rows(run / "split.csv")
    for part in ("val", "test"):
        ids = [row["id"] for row in split if row["split"] == part]
        assert [r["id"] for r in rows(run / "predictions.csv") if r["split"] == part] == ids
        assert found[part]["n"] == found["split"]["n"][part] == len(ids)
    history = rows(run / "history.csv")
    assert [int(row["epoch"]) for row in history] == [0, 1]
    assert float(history[0]["lr"]) == pytest.approx(1e-3)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["class_path"] == "SyntheticDataModule"
    assert "precision" not in config["trainer"]  # it was not asked for
    environment = json.loads((run / "environment.json").read_text())
    assert environment["precision"] in ("bf16-mixed", "32-true")
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["peak_memory_mib"] > 100


def test_a_chosen_precision_is_kept_and_is_no_condition(fit, tmp_path, monkeypatch, capsys):
    """Two machines choose two precisions, and a third one scores both runs."""
    runs = []
    for seed, name in enumerate(("bf16-mixed", "32-true")):
        monkeypatch.setattr(precision, "choose", lambda *_, name=name, **__: (name, "fastest"))
        runs.append(fit(f"--seed_everything={seed}"))
    for run, name in zip(runs, ("bf16-mixed", "32-true"), strict=True):
        assert json.loads((run / "environment.json").read_text())["precision"] == name
        capsys.readouterr()
        assert main(["test", f"--run={run}"]) == 0
        assert f"precision {name} (as its training began)" in capsys.readouterr().out
        (again,) = (run / "test").iterdir()
        before, after = (rows(path / "predictions.csv") for path in (run, again))
        assert [row for row in before if row["split"] == "test"] == after
    assert main(["report", str(tmp_path / "runs")]) == 0
    plain = json.loads((tmp_path / "runs" / "report.json").read_text())
    (condition,) = plain["conditions"]
    assert len(condition["runs"]) == 2
    assert plain["notes"][-1] == (
        "the machines chose different precisions: 32-true (1 of the runs), bf16-mixed (1 of the "
        "runs); trainer.precision sets one"
    )


def test_a_precision_that_was_asked_for_is_a_condition(fit, tmp_path):
    for name in ("bf16-mixed", "32"):
        run = fit(f"--trainer.precision={name}")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["precision"] == "32-true"
    assert main(["report", str(tmp_path / "runs")]) == 0
    plain = json.loads((tmp_path / "runs" / "report.json").read_text())
    assert [each["name"] for each in plain["conditions"]] == ["bf16-mixed", "32-true"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_metrics_are_those_of_the_files(fit, monkeypatch, precision):
    """They are computed from the values in memory, and equal to those of the files read back."""

    def refuse(path):
        raise AssertionError(f"{path} was read back")

    with monkeypatch.context() as patched:
        patched.setattr("cellbench.artifacts.predictions.open_text", refuse)
        patched.setattr("cellbench.data.splits.open_text", refuse)
        run = fit(f"--trainer.precision={precision}")
    classes, parts = read_predictions(run / "predictions.csv")
    group = {row["id"]: row["group"] for row in rows(run / "split.csv")}
    train = [row["class"] for row in rows(run / "split.csv") if row["split"] == "train"]
    shares = np.array([train.count(name) for name in classes]) / len(train)
    for part, given in parts.items():
        assert np.allclose(given.probabilities.sum(axis=1), 1, atol=1e-5)
        groups = np.array([group[name] for name in given.ids])
        prior = np.tile(shares, (len(groups), 1))
        expected = score(given.labels, given.probabilities, groups, classes, prior)
        assert metrics(run)[part] == expected


def test_the_best_epoch_is_scored_and_kept(fit):
    run = fit("--trainer.max_epochs=5", "--checkpoint.monitor=val/f1_macro", "--model.lr=0.01")
    scores = [float(row["val/f1_macro"]) for row in rows(run / "history.csv")]
    assert metrics(run)["val"]["metrics"]["f1_macro"]["value"] == pytest.approx(max(scores))
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == scores.index(max(scores))
    assert "optimizer_states" not in best
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"]


def test_the_last_epoch_can_be_chosen(fit):
    run = fit("--checkpoint.monitor=last", "--trainer.max_epochs=3", "--figures=true")
    assert written(run) == FILES
    best, last = (weights(run / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    assert all(torch.equal(best[key], last[key]) for key in best)
    last_row = rows(run / "history.csv")[-1]
    for name in ("accuracy", "f1_macro"):
        value = metrics(run)["val"]["metrics"][name]["value"]
        assert value == pytest.approx(float(last_row[f"val/{name}"]))


def test_the_same_command_gives_the_same_bits(fit, tmp_path):
    """Two times, and with loader workers: weights and predictions."""
    options = ["--data.augment=strong", "--model.schedule=cosine", "--model.head.dropout=0.3"]
    options += ["--trainer.max_epochs=4", "--checkpoint.monitor=val/accuracy"]
    first = fit(*options, runs=tmp_path / "a")
    for i, extra in enumerate(([], ["--data.num_workers=2"])):
        again = fit(*options, *extra, runs=tmp_path / f"b{i}")
        assert (first / "predictions.csv").read_bytes() == (again / "predictions.csv").read_bytes()
        for name in ("best", "last"):
            a, b = (weights(run / "checkpoints" / f"{name}.ckpt") for run in (first, again))
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)
    other = fit(*options, "--seed_everything=1", runs=tmp_path / "c")
    assert (first / "predictions.csv").read_bytes() != (other / "predictions.csv").read_bytes()
    assert (first / "split.csv").read_bytes() == (other / "split.csv").read_bytes()


def test_the_loss_minimised_is_logged_with_its_penalty_apart(fit):
    options = ["--model.l2=0.01", "--model.l1=0.001", "--trainer.max_epochs=1"]
    run = fit(*options, "--data.batch_size=4")
    (row,) = rows(run / "history.csv")
    assert float(row["train/penalty"]) > 0.1
    assert float(row["train/loss"]) > float(row["train/penalty"])
    assert "val/penalty" not in row
    _, parts = read_predictions(run / "predictions.csv")
    val = parts["val"]
    bare = -np.log(val.probabilities[np.arange(len(val.labels)), val.labels]).mean()
    assert float(row["val/loss"]) == pytest.approx(bare, rel=1e-5)  # of unequal batches


def test_class_weights_come_from_the_training_split():
    data = SyntheticDataModule(samples=90, slides=45, image_size=32)
    data.setup("fit")
    model = CellClassifier(
        data.classes, (32, 32), ModelConfig("small_cnn", class_weights="balanced")
    )
    model.trainer = SimpleNamespace(datamodule=data, max_epochs=2)
    model.setup("fit")
    model.on_fit_start()
    labels = data.table.labels[data.partition.indices("train")]
    expected = [len(labels) / (4 * (labels == k).sum()) for k in range(4)]
    assert model._objective.class_weights.tolist() == pytest.approx(expected)


def test_gradients_can_be_clipped(fit):
    run = fit("--trainer.gradient_clip_val=0.5", "--trainer.max_epochs=1")
    assert (run / "metrics.json").is_file()


def test_a_runs_config_reproduces_it(fit):
    first = fit("--data.augment=flips")
    again = fit(f"--config={first}/config.yaml", name="again")
    assert (first / "predictions.csv").read_bytes() == (again / "predictions.csv").read_bytes()


@pytest.mark.slow
def test_the_demo_learns_and_is_no_walkover(tmp_path):
    demo = Path(__file__).parents[1] / "experiments" / "demo.yaml"
    assert main(["fit", f"--config={demo}", f"--runs={tmp_path}"]) == 0
    (run,) = (tmp_path / "demo").iterdir()
    accuracy = metrics(run)["test"]["metrics"]["accuracy"]
    assert accuracy["baseline"] + 0.2 < accuracy["value"] < 1


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_runs_folder_is_all_that_its_scoring_needs(fit, command, tmp_path, monkeypatch):
    run = fit("--data.view=masked", "--seed_everything=3")
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    monkeypatch.chdir(tmp_path)
    assert main([command, "--run", str(moved)]) == 0
    (scored,) = (moved / command).iterdir()
    part = {"validate": "val", "test": "test"}[command]
    assert metrics(scored)[part] == metrics(moved)[part]
    assert metrics(scored)["stamps"] == []
    own = {row["id"]: row for row in rows(moved / "predictions.csv")}
    for row in rows(scored / "predictions.csv"):
        assert row == own[row["id"]]


def test_another_view_at_test_is_stamped(fit, capsys):
    run = fit("--data.view=masked")
    assert main(["test", "--run", str(run), "--data.view=raw"]) == 0
    (scored,) = (run / "test").iterdir()
    assert metrics(scored)["stamps"] == ["view is raw here, and was masked in training"]
    assert "UNRELIABLE" in capsys.readouterr().out


@pytest.mark.parametrize("change", [[], ["--data.shortcut=1"]])
def test_a_split_that_trained_the_model_is_refused(run, fails, change):
    line = fails("test", f"--run={run}", "--data.split.seed=5", *change)
    assert "is in the test split, but the run" in line
    assert "selected on the same" in line
    assert not (run / "test").exists()


def test_new_images_of_the_patients_it_was_trained_on_are_refused(fit, fails, folder_root):
    """Other files, other contents, the same groups; new groups are taken, and stamped."""
    images = sorted(folder_root.glob("[bn]*/*.jpg"))
    for name, kept, patient in (("a", 0, "p"), ("b", 1, "p"), ("c", 1, "q")):
        lines = ["path,label,group"]
        for i, path in enumerate(images):
            if i % 2 == kept:
                group = f"{patient}{i // 2}"
                lines.append(f"{path.relative_to(folder_root)},{path.parent.name},{group}")
        (folder_root / f"{name}.csv").write_text("\n".join(lines))
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}", "--data.csv=a.csv")
    line = fails("test", f"--run={run}", "--data.csv=b.csv", "--data.split.seed=1")
    assert "selected on the same group" in line
    assert main(["test", "--run", str(run), "--data.csv=c.csv"]) == 0
    (scored,) = (run / "test").iterdir()
    (stamp,) = metrics(scored)["stamps"]
    assert "another split" in stamp


def test_a_leaky_split_is_stamped_everywhere(fit, capsys):
    run = fit("--data.split.protocol=image")
    (stamp,) = metrics(run)["stamps"]
    assert "ignoring groups" in stamp
    out = capsys.readouterr().out
    assert "\nUNRELIABLE split by image" in out
    assert f"UNRELIABLE: {stamp}" in " ".join(out.split())


@pytest.mark.parametrize("view", ["raw", "masked", "crop"])
def test_predict_prepares_images_as_the_training_did(fit, hpv_root, tmp_path, view):
    """On the test images it gives the very probabilities of the run's own predictions."""
    view_options = [f"--data.view={view}", "--data.fill=9"]
    run = fit("--data=HPVDataModule", f"--data.root={hpv_root}", *view_options)
    output = tmp_path / "out" / "new.csv"
    images = str(hpv_root / "Dataset 1")
    given = ["--images", images, "--masks", images, "--output", str(output), "--batch_size=7"]
    assert main(["predict", "--run", str(run), *given]) == 0
    predicted = {row["file"]: row for row in rows(output)}
    assert len(predicted) == 51  # the basophil too
    for row in rows(run / "predictions.csv"):
        new = predicted[row["id"].removeprefix("Dataset 1/")]
        assert new["predicted"] == row["predicted"]
        for key in row:
            if key.startswith("p_"):
                assert float(new[key]) == pytest.approx(float(row[key]), abs=2e-3)


def test_a_masked_model_needs_masks(fit, fails, hpv_root):
    run = fit("--data.view=masked")
    images = hpv_root / "Dataset 1"
    line = fails("predict", f"--run={run}", f"--images={images}")
    assert "trained on view masked and needs a mask" in line
    (images / "004.png").unlink()
    line = fails("predict", f"--run={run}", f"--images={images}", f"--masks={images}")
    assert "004.bmp has no mask" in line
    assert "(1 of 51 images have none)" in line


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "foreign", "code", "missing"])
def test_a_checkpoint_that_is_none_is_refused(run, fails, damage, capsys):
    best = run / "checkpoints" / "best.ckpt"
    whole = best.read_bytes()
    if damage == "foreign":
        torch.save({"state_dict": {}}, best)
    elif damage == "code":
        torch.save({"cellbench": _Rogue(), "state_dict": {}}, best)
    elif damage == "missing":
        best.unlink()
    else:
        best.write_bytes({"empty": b"", "cut": whole[:5000], "text": b"x" * 99}[damage])
    line = fails("test", f"--run={run}")
    expected = "there is no checkpoint" if damage == "missing" else "is not a whole checkpoint"
    assert expected in line
    assert fails("predict", f"--run={run}", f"--images={run}/checkpoints") == line
    assert "code has run" not in capsys.readouterr().out


class _Rogue:
    def __reduce__(self):
        return (print, ("code has run",))


def test_a_downloaded_run_names_no_code(run, fails, tmp_path, monkeypatch):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["callbacks"] = [{"class_path": "exploding_module.X"}]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["test", "--run", str(run)]) == 0
    module = tmp_path / "exploding_module.py"
    module.write_text("raise SystemExit('code has run')")
    monkeypatch.syspath_prepend(tmp_path)
    rogue = {"class_path": "exploding_module.X", "init_args": {}}
    for place in ("model.head", "data.init_args.split", "data.init_args.augment", "data"):
        changed = copy.deepcopy(config)
        *parents, last = place.split(".")
        inner = changed
        for key in parents:
            inner = inner[key]
        inner[last] = [rogue] if last == "augment" else rogue
        (run / "config.yaml").write_text(yaml.safe_dump(changed))
        line = fails("test", f"--run={run}")
        assert "class" in line, place
    trainer = config["trainer"] | {"callbacks": None}
    (run / "metrics.json").unlink()
    for key, value in [
        ("callbacks", [rogue]),
        ("logger", "exploding_module.X"),
        ("profiler", "p.X"),
    ]:
        changed = config | {"trainer": trainer | {key: value}}
        (run / "config.yaml").write_text(yaml.safe_dump(changed))
        assert f"trainer.{key} names a class" in fails("fit", f"--resume={run}"), key
    assert "exploding_module" not in sys.modules


def test_a_diverged_training_is_said_and_its_history_kept(fails, tmp_path):
    line = fails(
        "fit",
        f"--runs={tmp_path}",
        "--name=x",
        "--data.samples=80",
        "--data.slides=40",
        "--data.image_size=32",
        "--model.backbone=small_cnn",
        "--model.optimizer=sgd",
        "--model.lr=1e30",
        "--trainer.enable_progress_bar=false",
    )
    assert "the training diverged: train/loss is nan in epoch 0; lower model.lr" in line
    (run,) = (tmp_path / "x").iterdir()
    assert (run / "history.csv").is_file()
    assert not (run / "metrics.json").exists()


@pytest.mark.parametrize("view", View.__args__)
def test_every_view_trains(fit, view):
    run = fit(f"--data.view={view}", "--trainer.max_epochs=1", "--figures=true")
    assert metrics(run)["view"] == view


def test_tensorboard_has_curves_and_pictures(fit):
    run = fit("--tensorboard=true", "--figures=true")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("val/loss")]
    assert losses == pytest.approx([float(r["val/loss"]) for r in rows(run / "history.csv")])
    assert {"samples", "confusion", "learning_curves"} <= set(events.Tags()["images"])
    assert written(run) - FILES == {
        str(path.relative_to(run)) for path in (run / "tensorboard").iterdir()
    }


def test_an_offline_wandb_run_is_whole(fit):
    run = fit("--wandb.mode=offline", "--wandb.group=g", "--data.view=masked", "--figures=true")
    (log,) = run.glob("wandb/offline-run-*/run-*.wandb")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(log)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in ("train/loss", "val/f1_macro", "best/test/accuracy", "split_digest"):
        assert part in text
    for image in ("samples", "confusion", "learning_curves"):
        assert f"media/images/{image}" in text
    assert '"view"' in text
    assert "exit" in text.lower()


def test_folds_are_pooled_by_report(fit, capsys, tmp_path):
    for fold in ([], ["--data.split.fold=1"], ["--data.split.fold=2"]):  # 0 is the default
        fit("--data.split.folds=3", *fold, name="cv")
    capsys.readouterr()
    assert main(["report", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert " 80 " in out
    found = [metrics(run) for run in (tmp_path / "runs" / "cv").iterdir()]
    right = sum(m["test"]["metrics"]["accuracy"]["value"] * m["test"]["n"] for m in found)
    assert re.search(rf"{right / 80:.3f} \[0\.\d{{3}}, 0\.\d{{3}}\] ", out)
    assert "There is one condition alone, cv, and nothing to compare it with" in out
    assert "UNRELIABLE" not in out


def test_report_tells_apart_what_is_configured_differently(fit, fails, tmp_path, capsys):
    def shown(*folders):
        capsys.readouterr()
        assert main(["report", *map(str, folders)]) == 0
        return capsys.readouterr().out

    fit("--data.split.folds=3", "--data.split.fold=0", name="cv")
    assert "NOTE folds 1, 2 are missing" in shown(tmp_path / "runs")
    fit("--data.split.folds=3", "--data.split.fold=1", "--model.lr=0.1", name="cv")
    fit("--data.split.folds=3", "--data.split.fold=0", name="cv")
    out = shown(tmp_path / "runs")
    assert "lr 0.001: folds 1, 2 are missing" in out
    assert "lr 0.1: folds 0, 2 are missing" in out
    assert "lr 0.1 cannot be compared with lr 0.001: no two runs are a pair" in out
    assert "NOTE lr 0.001: 1 older run of the same folds and seeds left out" in out
    fit("--data.split.folds=3", "--data.split.protocol=image", name="leaky")
    assert "UNRELIABLE: split by image" in shown(tmp_path / "runs" / "leaky")
    assert "there is no folder" in fails("report", str(tmp_path / "nothing"))


def test_one_image_under_two_labels_is_stamped(fit, folder_root):
    shutil.copy(folder_root / "blast" / "3 (0).jpg", folder_root / "normal cell" / "x.jpg")
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}", "--trainer.max_epochs=1")
    (stamp,) = metrics(run)["stamps"]
    assert "'blast/3 (0).jpg' (blast) and 'normal cell/x.jpg' (normal cell) have the same" in stamp


def test_an_unfinished_run_is_not_tested(run, fails, tmp_path, capsys):
    (run / "metrics.json").unlink()
    line = fails("test", f"--run={run}")
    assert line.startswith("--run: the run is unfinished")
    assert line.endswith(f"python -m cellbench fit --resume {run}")
    images = tmp_path / "images"
    write_image(images / "a.png", draw_cell(np.random.default_rng(0), 0, 48)[0])
    capsys.readouterr()
    assert main(["predict", f"--run={run}", f"--images={images}"]) == 0
    assert "NOTE the run is unfinished" in capsys.readouterr().out


def test_predict_takes_no_mask_for_an_image(fit, folder_root, tmp_path):
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}")
    output = tmp_path / "p.csv"
    assert main(["predict", f"--run={run}", f"--images={folder_root}", f"--output={output}"]) == 0
    files = [line.split(",")[0] for line in output.read_text().splitlines()[1:]]
    assert len(files) == 40
    assert not any(name.startswith("masks/") for name in files)


def test_what_is_seldom_meant_is_noted(fit, capsys):
    fit("--model.freeze=backbone", "--data.slides=9")
    out = capsys.readouterr().out
    assert "NOTE       the frozen backbone has random weights; give model.weights" in out
    assert re.search(r"NOTE       the test images are of \d groups: too few", out)


def test_an_interrupt_before_a_command_begins_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("cellbench.__main__.import_module", interrupted)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "cellbench: SIGINT\n"


def test_automatic_masks_serve_training_and_prediction(fit, fails, hpv_root, tmp_path):
    for mask in (hpv_root / "Dataset 1").glob("*.png"):
        mask.write_bytes(b"never read")
    options = ["--data=HPVDataModule", f"--data.root={hpv_root}", "--data.view=masked"]
    cache = f"--data.cache.folder={tmp_path / 'cache'}"
    run = fit(*options, cache, "--data.masks=auto")
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1  # kept, however small
    images = tmp_path / "images"
    shutil.copytree(hpv_root / "Dataset 1", images, ignore=shutil.ignore_patterns("*.png"))
    output = tmp_path / "p.csv"
    assert main(["predict", f"--run={run}", f"--images={images}", f"--output={output}"]) == 0
    predicted = {row["file"]: row for row in csv.DictReader(output.open())}
    for row in csv.DictReader((run / "predictions.csv").open()):
        own = predicted[Path(row["id"]).name]
        assert float(own["p_neutrophil"]) == pytest.approx(float(row["p_neutrophil"]), abs=1e-3)
    write_image(hpv_root / "Dataset 1" / "001.bmp", np.full((100, 100, 3), 230, np.uint8))
    line = fails("fit", *options, cache, "--data.masks=auto", f"--runs={tmp_path / 'r'}")
    assert line.startswith("'Dataset 1/001.bmp': no white cell's nucleus is in the image")
    assert "data.exclude" in line


def test_doubtful_masks_are_named_before_the_first_epoch(fit, hpv_root, tmp_path, capsys):
    options = ["--data=HPVDataModule", f"--data.root={hpv_root}", "--data.view=masked"]
    options += [f"--data.cache.folder={tmp_path / 'cache'}", "--data.masks=auto"]
    fit(*options)
    assert "automatic masks:" not in capsys.readouterr().out
    write_image(hpv_root / "Dataset 1" / "001.bmp", draw_debris(0))
    fit(*options)
    out = capsys.readouterr().out.splitlines()
    note = next(line for line in out if "automatic masks:" in line)
    assert note.startswith("NOTE       automatic masks: 1 of ")
    assert note.endswith("to exclude them: --data.exclude \"['Dataset 1/001.bmp']\"")


def test_tissue_has_no_automatic_masks(fails, chaoyang_root):
    line = fails(
        "fit", "--data=ChaoyangDataModule", f"--data.root={chaoyang_root}", "--data.masks=auto"
    )
    assert "data.masks: auto, but ChaoyangDataModule shows tissue" in line


def test_a_run_begins_with_another_runs_backbone(fit, fails, folder_root, tmp_path):
    first = fit("--data.samples=100", name="first")
    trained = torch.load(first / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    other = ("--data=FolderDataModule", f"--data.root={folder_root}", f"--model.weights={first}")
    run = fit(*other, "--model.freeze=backbone", name="second")
    tuned = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    own = [key for key in trained if key.startswith("backbone.")]
    assert len(own) > 20
    assert all(torch.equal(trained[key], tuned[key]) for key in own)
    assert tuned["head.0.weight"].shape == (2, 192)
    assert main(["test", f"--run={run}"]) == 0  # the weights are its own checkpoint's
    options = ["fit", *TINY, f"--runs={tmp_path / 'r'}"]
    line = fails(*options, *other, "--model.backbone=squeezenet1_1")
    assert "trained small_cnn; give model.backbone: small_cnn" in line
    line = fails(*options, f"--model.weights={tmp_path}")
    assert "is not a run's folder: it has no checkpoints/best.ckpt" in line


def test_weights_that_have_seen_the_test_images_are_refused(fit, fails, tmp_path):
    first = fit("--data.split.seed=0", name="first")
    again = [
        "fit",
        *QUICK,
        "--name=again",
        "--data.samples=80",
        "--data.slides=40",
        f"--model.weights={first}",
    ]
    line = fails(*again, "--data.split.seed=1", f"--runs={tmp_path / 'r'}")
    assert re.match(r"'cell\d+' is in the \w+ split, but the run .* was trained or selected", line)
    assert not list((tmp_path / "r").glob("*/*"))
    assert main([*again, "--data.split.seed=0", f"--runs={tmp_path / 'r'}"]) == 0


def test_weights_of_another_folder_with_the_same_names_are_taken(fit, fails, tmp_path):
    rng = np.random.default_rng(5)
    for folder in ("first", "second", "third"):
        for label, name in enumerate("ab"):
            for number in range(20):
                image, _ = draw_cell(rng, 2 * label, 48)
                write_image(tmp_path / folder / name / f"{number}.png", image)
    own = ["--data=FolderDataModule", "--trainer.max_epochs=1"]
    first = fit(*own, f"--data.root={tmp_path / 'first'}", "--data.split.seed=1", name="first")
    other = [*own, f"--model.weights={first}", f"--data.root={tmp_path / 'second'}"]
    run = fit(*other, "--data.split.seed=2", name="second")
    scored = ["test", f"--run={run}", "--data.split.seed=3"]
    assert main([*scored, f"--data.root={tmp_path / 'third'}"]) == 0
    line = fails(*scored, f"--data.root={tmp_path / 'first'}")  # which its weights have seen
    assert f"the run {first} was trained or selected on the same content" in line
    for name in "ab":
        (tmp_path / "renamed").mkdir(exist_ok=True)
        (tmp_path / "second" / name).rename(tmp_path / "renamed" / f"{name}{name}")
    for name in "ab":
        for path in list((tmp_path / "renamed" / f"{name}{name}").iterdir()):
            path.rename(path.with_name(f"new {path.name}"))
    line = fails(
        *["fit", *TINY, *own, f"--data.root={tmp_path / 'renamed'}", f"--runs={tmp_path / 'r'}"],
        *[f"--model.weights={run}", "--data.split.seed=3"],
    )
    assert "was trained or selected on the same content" in line
