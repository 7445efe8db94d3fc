"""The command line: what it imports, and one clear line for each mistake."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from lightning.pytorch import Trainer

from cellbench.__main__ import main
from cellbench.artifacts.folder import whole_file
from cellbench.cli import COMMANDS
from cellbench.cli.options.repeated import refuse_repeated
from cellbench.config import yaml
from cellbench.config.option_types import parameters
from cellbench.utils.errors import UserError, short_path
from tests.conftest import TINY, few_cells


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from cellbench.__main__ import main; main(['--help']); main(['--version']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'lightning', 'cv2')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "fit" in done.stdout
    assert "cellbench 0." in done.stdout


def test_every_command_has_its_module_and_help(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert "usage:" in capsys.readouterr().out


def test_print_config_gives_a_config_that_runs(tmp_path, capsys, fit):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *few_cells([]), *TINY, "--print_config"])
    assert stopped.value.code == 0
    config = tmp_path / "printed.yaml"
    config.write_text(capsys.readouterr().out)
    assert "small_cnn" in config.read_text()
    assert list(yaml.read(config)["trainer"]) == list(parameters(Trainer))
    run = fit(f"--config={config}")
    assert (run / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.lrr=3"], "unknown option 'model.lrr'"),
        (["--model.learning_rate=3"], "'model.learning_rate'; closest: model.lr"),
        (["--learning_rate=3"], "'learning_rate'; closest: model.lr, model.phases.lr"),
        (["--trainer.max_epoch=3"], "unknown option 'trainer.max_epoch'"),
        (["--data.viw=masked"], "unknown option 'data.viw' of SyntheticDataModule; closest: data"),
        (["--data.split.fols=3"], "unknown option 'data.split.fols'"),
        (["--model.lr=nan"], "model.lr: nan is not a finite number"),
        (["--model.lr=.nan"], "model.lr: nan is not a finite number"),
        (["--model.lr=-Infinity"], "model.lr: -inf is not a finite number"),
        (["--trainer.gradient_clip_val=nan"], "gradient_clip_val: nan is not a finite number"),
        (["--model.lr=abc"], "model.lr: expected float; got 'abc'"),
        (["--data.batch_size=2.5"], "data.batch_size: expected int; got '2.5'"),
        (["--data.view=maskd"], "data.view: expected raw, masked"),
        (["--data.augment=flip"], "data.augment: expected none, flips"),
        (["--data=HPVDataModul"], "unknown data module 'HPVDataModul'; closest: HPVDataModule"),
        (
            ["--model.co_teaching=true"],
            "model.co_teaching: expected options, as {forget_rate: ...}",
        ),
        (["--data.smote=100"], "data.smote: expected options, as {count: ...} or null; got '100'"),
        (
            ["--data.smote={cuont: 5}"],
            "unknown option 'data.smote.cuont'; closest: data.smote.count",
        ),
        (
            ["--model.phases=[{epoch: 2}]"],
            "unknown option 'model.phases[0].epoch'; closest: model.phases[0].epochs",
        ),
        (["--model.loss=focal"], "model.loss: expected options, as {name: ...}"),
        (["--model.freeze=layer4"], "small_cnn has no stage 'layer4'; allowed: none, stage1"),
        (["--data.label=votes"], "unknown option 'data.label' of SyntheticDataModule"),
        (["--model.backbone=resnet19"], "unknown network 'resnet19'; closest: resnet1"),
        (["--model.classes=[a,b]"], "model.classes: it is taken from data.classes; remove it"),
        (["--data=HPVDataModule", "--data.root=nowhere"], "run python -m cellbench fetch hpv"),
        (["--trainer.precision=16-true"], "16-true gives NaN"),
        (["--trainer.precision=bf16-true"], "bf16-true' is not offered; allowed: 32-true"),
        (["--seed_everything=-1"], "seed_everything: -1 is not in 0 to"),
        (["--data.draw_seed=-1"], "data.draw_seed: -1 is less than 0"),
        (["--trainer.devices=[5]"], "trainer: "),
        (["--data.cache.memory=-1"], "data.cache.memory: -1 is less than 0"),
        (["--trainer.max_steps=2"], "trainer.max_steps: 2 is not offered"),
        (["--trainer.check_val_every_n_epoch=2"], "every epoch is validated"),
        (["--trainer.overfit_batches=1"], "overfit_batches: 1"),
        (["--trainer.fast_dev_run=true"], "for a short run use"),
        (["--trainer.default_root_dir=x"], "use --runs and --name"),
        (["--trainer.accelerator=gpu"], "trainer: "),
        (["--trainer.devices=0"], "trainer: "),
        (["--trainer.limit_test_batches=2"], "a part of the set"),
        (["--trainer.max_epochs=0"], "trainer.max_epochs: 0 "),
        (["--data.samples=24", "--data.split.folds=9"], "folds need at least 9 groups per class"),
        (["--data.split.fold=7", "--data.split.folds=5"], "fold: 7 is not one of 0 to 4"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--name=../x"], "is not a folder name"),
        (["--wandb.mode=online"], "wandb.mode: No API key configured"),
        (["--ckpt_path=nowhere.ckpt"], "fit starts afresh"),
        (
            ["--trainer.callbacks=LearningRateMonitor"],
            "trainer.callbacks: LearningRateMonitor writes to a logger, and there is none; give ",
        ),
        (["--trainer.callbacks=DeviceStatsMonitor"], "DeviceStatsMonitor writes to a logger"),
        (["--trainer.callbacks=BaseFinetuning"], "BaseFinetuning is incomplete"),
        (["--trainer.callbacks=LearningRateFinder"], "LearningRateFinder changes model.lr"),
        (["--trainer.callbacks=BatchSizeFinder"], "BatchSizeFinder changes data.batch_size"),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_loss"],
            "trainer.callbacks: EarlyStopping watches 'val_loss', which no training logs; allowed: "
            "train/loss, val/loss, train/accuracy, train/balanced_accuracy, train/f1_macro, val/",
        ),
        (
            ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.monitor=acc"],
            "ModelCheckpoint watches 'acc', which no training logs",
        ),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(args, message, tmp_path, fails):
    runs = tmp_path / "runs"
    line = fails("fit", f"--runs={runs}", *few_cells(args), *TINY[:3], *args)
    assert message in line
    assert not runs.exists() or not any(runs.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  lrr: 1\n", "wrong.yaml: unknown option 'model.lrr'"),
        ("modl:\n  lr: 1\n", "unknown option 'modl'; closest: model, model.l"),
        (
            "data:\n  class_path: HPVDataModule\n  init_args: {rot: x}\n",
            "unknown option 'data.rot'",
        ),
        ("data: {class_path: os.system, init_args: {}}\n", "data"),
        ("model: {lr: yes}\n", "wrong.yaml: model.lr: expected float"),
        ("model: {lr: nan}\n", "wrong.yaml: model.lr: nan is not a finite number"),
        ("model: {lr: .inf}\n", "wrong.yaml: model.lr: inf is not a finite number"),
        ("model: 3\n", "model: expected options, as {backbone: ...}; got '3'"),
        ("", "holds no keys"),
        ("model: {classes: [a, b]}\n", "model.classes: it is taken from data.classes; remove it"),
        ("model: [\n", "wrong.yaml is not valid YAML: "),
        ("\x00", "wrong.yaml is not valid YAML: "),
    ],
)
def test_a_mistake_in_a_file_names_the_file_or_the_key(text, message, tmp_path, fails):
    config = tmp_path / "wrong.yaml"
    config.write_text(text)
    assert message in fails("fit", f"--config={config}", f"--runs={tmp_path / 'runs'}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fitt"], "unknown command 'fitt'; closest: fit"),
        (["test"], "which run? give its folder as --run"),
        (["test", "--run"], "--run: expected a value"),
        (["test", "--run=nowhere"], "nowhere is not a run's folder: it does not exist"),
        (["predict", "--run=nowhere", "--images=x"], "nowhere is not a run's folder"),
        (["predict", "--images=x"], "missing --run"),
        (["predict", "--run=x", "--imags=x"], "imags"),
        (["report"], "missing RUNS"),
    ],
)
def test_other_commands_tell_mistakes_too(args, message, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(*args)


def test_bad_files_are_named(hpv_root, fails, tmp_path):
    """Each damage to a dataset, one after the other, on the same command."""
    command = ["fit", "--data=HPVDataModule", f"--data.root={hpv_root}", "--data.view=masked"]
    command += [f"--runs={tmp_path / 'runs'}", *TINY]
    images, csv = hpv_root / "Dataset 1", hpv_root / "Class Labels of Dataset 1.csv"

    def damaged(path, content, message):
        whole = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        assert message in fails(*command)
        path.write_bytes(whole)

    small = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    damaged(csv, None, f"the label file {csv} is missing; run python -m cellbench fetch hpv")
    damaged(csv, csv.read_bytes().replace(b"\n7,1", b"\n7,9"), "image 7 has the label '9'")
    damaged(csv, csv.read_bytes().replace(b"7,1\r\n", b""), "007.bmp has no label in")
    damaged(images / "007.bmp", None, "labels image 007, but")
    damaged(images / "007.bmp", b"", "007.bmp: the file is empty")
    damaged(images / "007.bmp", b"BMnothing", "007.bmp: the file is not an image")
    damaged(images / "007.png", None, "the mask of 007.bmp, ")
    damaged(images / "007.png", small, "007.png is 8x8 but its image is 120x120")
    assert not (tmp_path / "runs").exists()


def test_a_class_of_one_image_is_named(folder_root, fails, tmp_path):
    single = folder_root / "rare"
    single.mkdir()
    (folder_root / "blast" / "0 (0).jpg").rename(single / "0.jpg")
    line = fails("fit", "--data=FolderDataModule", f"--data.root={folder_root}", *TINY)
    assert "class 'rare' (1 image in 1 group) has none in" in line


def test_without_a_home_the_cache_asks_for_a_folder(tmp_path, fails, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", no_home)
    line = fails("fit", f"--runs={tmp_path / 'runs'}", *TINY, "--data.cache.memory=0")
    assert line == (
        "data.cache.folder: ~/.cache/cellbench is in a home folder, and there is none; set HOME, "
        "or give another folder"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EMFILE, "Too many open files", "x.png"), "x.png: no more files can be open"),
        (ImportError("libx.so: cannot open: Too many open files"), "no more files can be opened"),
        (BlockingIOError(errno.EAGAIN, "fork"), "no more threads or processes can be started"),
        (RuntimeError("can't start new thread"), "no more threads or processes can be started"),
        (MemoryError(), "there is not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "there is not enough memory",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; make room"),
    ],
)
def test_a_system_that_has_no_more_is_told_in_a_line(error, said, fails, monkeypatch):
    def exhausted(args):
        try:
            raise error
        except type(error) as cause:
            raise ValueError("in a library") from cause

    monkeypatch.setattr("cellbench.cli.report.main", exhausted)
    assert fails("report").startswith(said)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path, fails):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert "cannot make a folder in" in fails("fit", f"--runs={closed}/runs", *TINY)


def test_runs_below_a_file_are_refused(tmp_path, fails):
    (tmp_path / "file").write_text("x")
    assert "cannot make a folder in" in fails(
        "fit", f"--runs={tmp_path}/file/runs", *few_cells([]), *TINY
    )


def test_a_full_disk_is_said_and_what_was_there_is_kept(tmp_path):
    """The kernel's own answer: /dev/full takes no byte."""
    kept = tmp_path / "metrics.json"
    kept.write_text("before")

    def write():
        with whole_file(kept) as beside:
            beside.symlink_to("/dev/full")
            beside.write_text("x" * 10_000)

    with pytest.raises(UserError, match=r"cannot write .*metrics\.json: No space left"):
        write()
    assert kept.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_each_file_is_checked_before_it_is_parsed_and_read_once(tmp_path, fails, monkeypatch):
    config = tmp_path / "c.yaml"
    config.write_text("seed_everything: null\n")
    read = []
    monkeypatch.setattr(
        "cellbench.config.yaml.read_bytes", lambda path, most: read.append(path) or b"test: null"
    )
    line = fails("fit", f"--config={config}", "--print_config")
    assert line == f"{config}: test: null is not allowed; expected true or false"
    assert read == [config]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--max_epochs=3"], "unknown option 'max_epochs'; closest: trainer.max_epochs"),
        (["--trainer.max_epochs", "--test=false"], "--trainer.max_epochs: expected a value"),
        (["--data.viw"], "unknown option 'data.viw' of SyntheticDataModule; closest: data.view"),
        (["--data=FolderDataModule", "--data.samples=9"], "'data.samples' of FolderDataModule"),
        (["--data=os.system"], "data: unknown data module 'os.system'; allowed: "),
        (["--model.lr.x=1"], "unknown option 'model.lr.x'"),
        (["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitro=x"], "'monitro'"),
        (["--trainer.callbacks=EarlyStopping"], "the following arguments are required: monitor"),
        (["surplus"], "unrecognized arguments: surplus"),
        (
            ["--data.exclude+=a"],
            "--data.exclude+: nothing can be appended to this option; give all its values as --dat",
        ),
        (["--wandb.tags+=a"], "--wandb.tags+: nothing can be appended to this option; give all"),
        (
            ["--trainer.logger.save_dir=x"],
            "--trainer.logger.save_dir: no class was chosen for trainer.logger; give --trainer.log",
        ),
        (
            ["--trainer.callbacks.patience=3", "--trainer.callbacks=EarlyStopping"],
            "no class was chosen for trainer.callbacks; give --trainer.callbacks=CLASS before it",
        ),
        (["--model.help"], "--model.help: model has no help of its own; --help shows all options"),
        (["--data.split.help"], "data.split has no help of its own; --data.help=CLASS shows all"),
        (["--modl.help"], "unknown option 'modl'; closest: model"),
    ],
)
def test_names_are_checked_before_anything_is_parsed(args, message, fails):
    assert message in fails("fit", *args)


def test_a_file_may_have_names_with_dots_and_what_is_for_an_editor(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("$schema: x.json\nmodel.lr: 0.5\ntrainer: {callbacks+: []}\n")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--config={config}", "--print_config"])
    assert stopped.value.code == 0
    assert "lr: 0.5" in capsys.readouterr().out
    config.write_text("data: {init_args: {exclude+: [a]}}\n")
    assert main(["fit", f"--config={config}"]) == 2
    assert "data.exclude+: nothing can be appended" in capsys.readouterr().err
    config.write_text("model.lrr: 0.5\n")
    assert main(["fit", f"--config={config}"]) == 2
    assert "unknown option 'model.lrr'; closest: model.lr" in capsys.readouterr().err


def test_a_groups_options_may_be_in_a_file(tmp_path, capsys, fails):
    options = tmp_path / "model.yaml"
    options.write_text("lr: 0.5\n")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--model={options}", "--print_config"])
    assert stopped.value.code == 0
    assert "lr: 0.5" in capsys.readouterr().out
    options.write_text("lrr: 0.5\n")
    assert "unknown option 'model.lrr'" in fails("fit", f"--model={options}")


@pytest.mark.parametrize(
    "args",
    [
        ["fit", "--model.lr", "0.1", "--name=x", "--model.lr", "0.2"],
        ["fit", "--data.init_args.root=x", "--data.root=y"],
        ["predict", "--images=a", "--run=b", "--images=c"],
    ],
)
def test_an_option_given_twice_is_refused(args, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cellbench", *args])
    assert main() == 2
    assert "it is given twice; give it once" in capsys.readouterr().err


def test_options_of_several_values_may_be_repeated():
    appended = ["--trainer.callbacks+=A", "--trainer.callbacks.monitor=x"]
    refuse_repeated(["fit", "--config=a", "--config=b", "-c", "c", *appended, *appended])


def test_an_option_follows_the_class_that_a_file_names(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    stopping = "{class_path: EarlyStopping, init_args: {monitor: a}}"
    config.write_text(f"trainer: {{callbacks: [{stopping}]}}")
    chosen = ["--trainer.logger.class_path=CSVLogger", "--trainer.logger.save_dir=x"]
    for args in ([f"--config={config}", "--trainer.callbacks.monitor=b"], chosen):
        with pytest.raises(SystemExit) as stopped:
            main(["fit", *args, "--print_config"])
        assert stopped.value.code == 0
    assert "save_dir: x" in capsys.readouterr().out


def test_drawn_cells_are_announced_where_nobody_chose_data(fit, tmp_path, capsys):
    note = "NOTE       no --config: drawn cells (SyntheticDataModule)\n"
    fit()
    assert note in capsys.readouterr().out
    config = tmp_path / "c.yaml"
    config.write_text("data.samples: 80\ndata.slides: 40\n")
    fit(f"--config={config}")
    assert note not in capsys.readouterr().out


def test_only_what_was_written_is_named_at_the_end(fit, capsys):
    run = fit()
    assert capsys.readouterr().out.endswith(f"\nmetrics.json and predictions.csv are in {run}\n")
    run = fit("--figures=true")
    assert f"\nmetrics.json, predictions.csv and figures are in {run}\n" in capsys.readouterr().out


def test_a_path_below_home_is_short(monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: Path("/home/me"))
    assert short_path(Path("/home/me/.cache/x.pth")) == "~/.cache/x.pth"
    assert short_path(Path("/scratch/x.pth")) == "/scratch/x.pth"
