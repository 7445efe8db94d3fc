"""Runs whose files something has damaged, or somebody prepared: refused, or harmless."""

import os
import pickle
import random
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cellbench.__main__ import main
from cellbench.artifacts.attributions import read_attributions
from cellbench.artifacts.checkpoint import POOLING, WholeCheckpointIO, read_checkpoint
from cellbench.artifacts.folder import RunFolder
from cellbench.artifacts.predictions import read_predictions
from cellbench.data.labels import read_labels
from cellbench.data.reading.table_file import read_table
from cellbench.data.splits import read_split
from cellbench.models.weights import from_run
from cellbench.sweeps.folder import final_values
from cellbench.training.callbacks.label_history import read_label_history
from cellbench.utils import torch_files
from cellbench.utils.atomic import replacing
from cellbench.utils.errors import UserError
from tests.conftest import QUICK, TINY, draw_cell, write_image


@pytest.fixture
def run(run, tmp_path):
    """A finished run to damage, directly in the test's folder."""
    return run.rename(tmp_path / "run")


@pytest.fixture
def images(tmp_path):
    for number in range(3):
        image, _ = draw_cell(np.random.default_rng(number), number, 40)
        write_image(tmp_path / "images" / f"{number}.png", image)
    return tmp_path / "images"


def change(path, edit):
    """Saves a checkpoint anew with something changed, and no digest."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint.pop("digest")
    edit(checkpoint)
    torch.save(checkpoint, path)


def test_no_flipped_bit_is_taken(run):
    """Each of 200 is refused, or changes nothing that is read."""
    path = run / "checkpoints" / "best.ckpt"
    content, dice = path.read_bytes(), random.Random(0)
    described, expected = read_checkpoint(path)
    refused = 0
    for _ in range(200):
        bit = dice.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = read_checkpoint(path)
        except UserError as error:
            assert "is not a whole checkpoint" in str(error)  # noqa: PT017
            refused += 1
            continue
        assert found[0] == described
        assert found[1].keys() == expected.keys()
        assert all(torch.equal(found[1][key], expected[key]) for key in expected)
    assert refused > 150


def flat(tensor):
    """A tensor's values as they lie in memory, whatever the order of its axes."""
    return tensor.as_strided((tensor.numel(),), (1,))


def flip_weight(path):
    """Flips one bit of the largest part of a checkpoint's file, which is a weight's."""
    checkpoint = torch.load(path, weights_only=True)
    largest = max(checkpoint["state_dict"].values(), key=torch.numel)
    content = path.read_bytes()
    place = content.index(flat(largest).numpy().tobytes()) + 1001
    path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])


@pytest.mark.parametrize("command", ["predict", "test", "validate", "export", "explain", "weights"])
def test_every_reader_refuses_a_flipped_bit(run, images, fails, tmp_path, command):
    flip_weight(run / "checkpoints" / "best.ckpt")
    more = {"predict": [f"--images={images}"], "export": [f"--images={images}"]}.get(command, [])
    args = [command, f"--run={run}", *more]
    if command == "explain":
        args = ["explain", str(run)]
    if command == "weights":
        args = ["fit", *TINY, f"--model.weights={run}", f"--runs={tmp_path / 'new'}"]
    line = fails(*args)
    assert "best.ckpt is not a whole checkpoint of cellbench's: the checksum of its part" in line
    assert len(line) <= 300


def test_a_training_does_not_go_on_from_a_flipped_bit(run, fails):
    flip_weight(run / "checkpoints" / "last.ckpt")
    (run / "metrics.json").unlink()
    line = fails("fit", f"--resume={run}")
    assert "last.ckpt is not a whole checkpoint of cellbench's: the checksum of its part" in line


def test_the_digest_finds_what_the_files_checksums_do_not(run):
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    flat(next(iter(checkpoint["state_dict"].values())))[0] += 1e-3
    torch.save(checkpoint, path)  # whose checksums are right again
    with pytest.raises(UserError, match="its content does not match its digest"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="its content does not match its digest"):
        from_run(run, "small_cnn", partial=False)
    with pytest.raises(UserError, match="its content does not match its digest"):
        WholeCheckpointIO().load_checkpoint(path)


def test_a_checkpoint_of_an_older_version_has_no_digest(run):
    path = run / "checkpoints" / "best.ckpt"
    expected = read_checkpoint(path)[1]
    change(path, lambda checkpoint: None)
    found = read_checkpoint(path)[1]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("command", ["predict", "test", "export", "weights"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(run, images, fails, tmp_path, command, value):
    def edit(checkpoint):
        flat(next(iter(checkpoint["state_dict"].values())))[3] = value

    change(run / "checkpoints" / "best.ckpt", edit)
    more = [] if command == "test" else [f"--images={images}"]
    args = [command, f"--run={run}", *more]
    if command == "weights":
        args = ["fit", *TINY, f"--model.weights={run}", f"--runs={tmp_path / 'new'}"]
    line = fails(*args)
    assert "are not finite numbers ('" in line
    assert len(line) <= 300
    assert not (run / "predict").exists()


def test_weights_that_overflow_predict_nothing(run, images, fails):
    def edit(checkpoint):
        for value in checkpoint["state_dict"].values():
            if value.is_floating_point():
                value.fill_(3e38)

    change(run / "checkpoints" / "best.ckpt", edit)
    line = fails("predict", f"--run={run}", f"--images={images}")
    assert line.startswith("the probabilities of '0.png' are not finite numbers")
    assert not list((run / "predict").glob("*"))
    assert "not finite numbers" in fails("export", f"--run={run}", f"--images={images}")


def described(**changes):
    def edit(checkpoint):
        for key, value in changes.items():
            *parents, last = key.split("__")
            inner = checkpoint["cellbench"]
            for name in parents:
                inner = inner[name]
            inner[last] = value

    return edit


def both_sizes(size):
    return described(preprocessing__image_size=size, model__image_size=size)


def without(*keys):
    def edit(checkpoint):
        inner = checkpoint
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1] if keys[-1] in inner else next(iter(inner))]

    return edit


def of_another_shape(checkpoint):
    state = checkpoint["state_dict"]
    key = max(state, key=lambda name: state[name].numel())
    state[key] = state[key][..., :1]


DESCRIPTIONS = {
    "a negative size": both_sizes([-1, -1]),
    "an endless size": both_sizes([100_000, 100_000]),
    "a size of text": both_sizes(["32", "32"]),
    "a size of three": both_sizes([32, 32, 32]),
    "two sizes": described(model__image_size=[64, 64]),
    "two numbers of channels": described(model__channels=4),
    "one class": described(model__classes=["a"]),
    "classes that are numbers": described(model__classes=[1, 2, 3, 4]),
    "a fill that is no byte": described(preprocessing__fill=-3),
    "a precision that is none": described(precision=32),
    "no description": without("cellbench"),
    "no state": without("state_dict"),
    "no preprocessing": without("cellbench", "preprocessing"),
    "no backbone": without("cellbench", "model", "backbone"),
}


@pytest.mark.parametrize("what", DESCRIPTIONS)
def test_a_description_that_is_none_is_refused(run, images, fails, what):
    change(run / "checkpoints" / "best.ckpt", DESCRIPTIONS[what])
    expected = "is not a whole checkpoint of cellbench's: it does not describe its model"
    assert expected in fails("test", f"--run={run}")
    assert expected in fails("predict", f"--run={run}", f"--images={images}")


@pytest.mark.parametrize(
    "edit",
    [
        of_another_shape,
        without("state_dict", "a key"),
        described(model__head={"width": 3}),
        described(model__backbone="resnet1800"),
        described(model__norm="other"),
    ],
)
def test_weights_of_another_model_are_refused(run, images, fails, edit):
    change(run / "checkpoints" / "best.ckpt", edit)
    for args in (["test", f"--run={run}"], ["predict", f"--run={run}", f"--images={images}"]):
        line = fails(*args)
        assert "model" in line
        assert len(line) <= 300


@pytest.mark.parametrize(
    "keys",
    [
        ("progress",),
        ("progress", "epoch"),
        ("progress", "metrics"),
        ("optimizer_states",),
        ("loops",),
        ("loops", "fit_loop"),
        ("callbacks",),
        ("lr_schedulers",),
    ],
)
def test_a_training_goes_on_from_its_whole_state_alone(run, fails, keys):
    last = run / "checkpoints" / "last.ckpt"
    change(last, without(*keys))
    (run / "metrics.json").unlink()
    line = fails("fit", f"--resume={run}")
    assert "last.ckpt does not hold the state of this training" in line
    assert "or delete it to begin the training afresh" in line
    assert len(line) <= 300


def test_a_training_whose_state_was_deleted_begins_afresh(run):
    (run / "metrics.json").unlink()
    (run / "checkpoints" / "last.ckpt").unlink()
    assert main(["fit", f"--resume={run}"]) == 0
    assert (run / "metrics.json").is_file()


def test_probabilities_that_are_no_numbers_are_no_temperature(run, images, fails):
    path = run / "predictions.csv"
    first = path.read_text().splitlines()[1].split(",")
    path.write_text(path.read_text().replace(f",{first[-1]}\n", ",nan\n", 1))
    line = fails("predict", f"--run={run}", f"--images={images}")
    assert f"the probabilities of '{first[0]}' are not numbers" in line


# What lies in a run's folder may be anybody's.

SECRET = "a secret of the user's"


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "outside" / "secret.png"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def link(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "metrics.json",
        "predictions.csv",
        "split.csv",
        "history.csv",
        "environment.json",
        "label_history.csv",
        "attributions.csv",
        "checkpoints/best.ckpt",
        "figures/attributions.png",
    ],
)
@pytest.mark.parametrize("kind", ["link", "pipe", "circle", "far"])
def test_a_report_reads_no_link_and_no_pipe(run, secret, fails, monkeypatch, name, kind):
    monkeypatch.chdir(run.parent)  # so that no path is so long that it would be cut
    path = Path(run.name, name)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "far":  # which would say that there is no such file
        path.symlink_to("/proc/self/root/../etc/hostname")
    else:
        path.symlink_to(secret if kind == "link" else path.name)
    line = fails("report", run.name)
    expected = "is neither a file nor a folder" if kind == "pipe" else "a link that leaves the"
    assert f"{path} {expected}" in line or f"{path} is, or lies behind, {expected}" in line
    assert len(line) <= 300


@pytest.mark.parametrize("command", ["test", "validate", "predict", "export", "fit"])
def test_no_command_follows_a_link_out_of_a_run(run, images, secret, fails, command):
    """Neither to read nor to write."""
    if command == "fit":
        (run / "metrics.json").unlink()
    args = [command, f"--run={run}", f"--images={images}"][: 2 + (command in ("predict", "export"))]
    args = ["fit", f"--resume={run}"] if command == "fit" else args
    folder = run / ("figures" if command == "fit" else command)
    shutil.rmtree(folder, ignore_errors=True)
    folder.symlink_to(secret.parent)
    assert f"{folder} is, or lies behind, a link that leaves" in fails(*args)
    folder.unlink()
    link(run / ".lock", secret)
    assert f"{run / '.lock'} is, or lies behind, a link that leaves" in fails(*args)
    assert [path.name for path in secret.parent.iterdir()] == ["secret.png"]
    assert secret.read_text() == SECRET


TABLES = {
    "labels": lambda path: read_labels(path, None, []),
    "table": lambda path: read_table(path, {"id"}),
    "split": read_split,
    "predictions": read_predictions,
    "label history": read_label_history,
    "attributions": read_attributions,
}


@pytest.mark.parametrize("reader", TABLES)
def test_a_table_is_read_from_a_file_alone(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match="is not a file"):
            TABLES[reader](path)


DAMAGED_TABLES = [b"\xff", b"", b"id,label\nx\n", b"epoch,val/loss\nx,y\n", b'a\n"b', b"e\n1,2\n\0"]


@pytest.mark.parametrize("content", DAMAGED_TABLES)
def test_a_damaged_table_names_its_run(run, content):
    run.joinpath("label_history.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*label_history.csv"):
        read_label_history(run / "label_history.csv")
    run.joinpath("history.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the run .*; delete it, and go on"):
        final_values(RunFolder(run), ["val/accuracy", "val/loss"])


def test_a_run_goes_on_with_its_own_configuration_alone(run):
    folder = RunFolder(run)
    config = yaml.safe_load(folder.config.read_text())
    assert folder.has_config(config)
    assert not folder.has_config(config | {"seed_everything": 7})
    for content in (b"", b"\xff", folder.config.read_bytes() * 2):
        folder.config.write_bytes(content)
        assert not folder.has_config(config)
    folder.config.unlink()
    folder.config.symlink_to("/dev/zero")
    assert not folder.has_config(config)


def test_a_link_within_a_run_is_followed(run):
    os.rename(run / "predictions.csv", run / "kept.csv")
    link(run / "predictions.csv", "kept.csv")
    assert main(["report", str(run)]) == 0
    outer = run.with_name("a link to the run")
    outer.symlink_to(run)
    assert main(["report", str(outer)]) == 0


def test_a_figure_of_a_sweep_is_no_link(run, tmp_path, secret, fails):
    sweep = tmp_path / "sweep"
    (sweep / "figures").mkdir(parents=True)
    (sweep / "sweep.yaml").write_text("command: sweep\n")
    shutil.copytree(run, sweep / "trials" / "0000")
    link(sweep / "figures" / "history.png", secret)
    assert "figures/history.png is, or lies behind, a link" in fails("report", str(sweep))
    shutil.rmtree(sweep / "figures")
    link(sweep / "figures", secret.parent)
    assert "figures is, or lies behind, a link" in fails("report", str(sweep))


def weights_name(run, weights):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["weights"] = str(weights)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_runs_that_were_trained_from_each_other_have_no_beginning(run, fails, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    command = ["fit", "--data.samples=80", "--data.slides=40", *QUICK, f"--model.weights={run}"]
    command.append(f"--runs={tmp_path / 'runs'}")
    for names in ({run: run}, {run: other, other: run}, {run: run / ".." / "run"}):
        for one, weights in names.items():
            weights_name(one, weights)
        line = fails(*command)
        assert line.startswith(f"model.weights: the run {run}")
        assert "was trained from itself" in line
    (run / "config.yaml").write_text("model: 3")
    assert "cannot read" in fails(*command)


def test_a_report_names_the_run_without_its_configuration(run, fails, capsys, tmp_path):
    other = tmp_path / "both" / "other"
    shutil.copytree(run, tmp_path / "both" / "run")
    shutil.copytree(run, other)
    (other / "config.yaml").unlink()
    assert main(["report", str(tmp_path / "both")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"LEFT OUT {other}: it has no config.yaml" in said
    assert "it has no config.yaml" in fails("report", str(other))


def test_what_a_killed_process_left_is_removed_and_nothing_else(run, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = next(iter(_parts(tmp_path)))
    left = [f".report.html.{host}.{ended.pid}.part", f".x.csv.{host}.{ended.pid}.part"]
    kept = [
        f".x.csv.{host}.{os.getpid()}.part",  # which is being written
        f".x.csv.{'0' * 8}.{ended.pid}.part",  # by another machine, perhaps
        "report.html.123.part",
        ".mine.part",
        f".mine.{ended.pid}",
    ]
    for name in left + kept:
        (run / name).write_text("x")
    assert main(["report", str(run)]) == 0
    there = {path.name for path in run.iterdir()}
    assert there.isdisjoint(left)
    assert there.issuperset(kept)


def _parts(folder):
    """How a file is called while it is written."""
    with replacing(folder / "x") as beside:
        beside.write_text("")
        yield beside.name.split(".")[2]


def test_a_resumed_run_has_no_file_half_written(run):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = [f"checkpoints/.last.ckpt.{ended.pid}.part", f".history.csv.00000000.{ended.pid}.part"]
    for name in left:
        (run / name).write_text("x")
    (run / ".mine.part").write_text("x")
    (run / "metrics.json").unlink()
    assert main(["fit", f"--resume={run}"]) == 0
    assert [path.name for path in run.rglob("*.part")] == [".mine.part"]


def test_a_sheet_shows_a_name_that_is_no_utf8(run, images, tmp_path, fails):
    (images / "0.png").rename(images / os.fsdecode(b"caf\xe9.png"))
    output = tmp_path / "out.csv"
    args = [f"--run={run}", f"--images={images}", f"--output={output}"]
    more = [f"--contact_sheet={tmp_path / 's.png'}", f"--explain={tmp_path / 'h'}"]
    assert main(["predict", *args, *more]) == 0
    assert b"\ncaf\xe9.png," in output.read_bytes()
    assert (tmp_path / "s.png").stat().st_size > 1000
    for path in images.iterdir():
        path.write_text("no image")
    (images / "1.png").unlink()
    (images / "2.png").unlink()
    assert r"caf\udce9.png: the file is not an image" in fails("predict", *args)


def forget_pooling(checkpoint):
    """Make a checkpoint look as if it were from before there were versions of the pooling."""
    assert checkpoint["cellbench"].pop("pooling") == POOLING


def test_features_that_were_pooled_otherwise_are_refused(fit, fails, images, tmp_path):
    pytest.importorskip("timm")
    run = fit("--model.backbone=timm/test_convnext")
    predict = ["predict", f"--run={run}", f"--images={images}", f"--output={tmp_path / 'p.csv'}"]
    assert main(predict) == 0
    for name in ("best", "last"):
        change(run / "checkpoints" / f"{name}.ckpt", forget_pooling)
    for command in (predict, ["test", f"--run={run}"]):
        check_pooling_is_refused(fails(*command))
    (run / "metrics.json").unlink()
    check_pooling_is_refused(fails("fit", f"--resume={run}"))


def check_pooling_is_refused(line):
    told = "the checkpoint is of an earlier cellbench, which may have pooled the features of"
    assert line.endswith(f"{told} timm/test_convnext in another way; train again")
    assert len(line) <= 300


def test_features_that_were_pooled_likewise_are_taken(fit, images, tmp_path):
    pytest.importorskip("timm")
    run = fit("--model.backbone=timm/test_resnet")
    output = tmp_path / "p.csv"
    predict = ["predict", f"--run={run}", f"--images={images}", f"--output={output}"]
    assert main(predict) == 0
    expected = output.read_bytes()
    change(run / "checkpoints" / "best.ckpt", forget_pooling)
    assert main(predict) == 0
    assert output.read_bytes() == expected


def test_a_pickle_of_another_program_is_refused_without_a_warning(tmp_path):
    path = tmp_path / "best.ckpt"
    path.write_bytes(pickle.dumps({"path": path}, protocol=4))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(torch_files.Damaged, match="torch cannot read it"):
            torch_files.read(path)
    assert not told
