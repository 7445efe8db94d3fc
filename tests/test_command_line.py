"""The commands, called in-process as a user would."""

import json
import subprocess
import sys

import pytest

from cellbench.__main__ import main

TINY = [
    "--data.samples=80",
    "--data.slides=40",
    "--data.image_size=32",
    "--model.backbone=small_cnn",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
]


def fit(tmp_path, *args):
    """Runs fit on a few drawn cells; returns the run's folder."""
    assert main(["fit", f"--runs={tmp_path}", "--name=tiny", *TINY, *args]) == 0
    return max((tmp_path / "tiny").iterdir())


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from cellbench.__main__ import main; main(['--help']); main(['--version']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'lightning', 'cv2')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "fit" in done.stdout
    assert "cellbench 0." in done.stdout


def test_a_run_writes_its_folder(tmp_path):
    run = fit(tmp_path)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["stamps"] == []
    assert metrics["test"]["n"] == metrics["split"]["n"]["test"]
    for value in metrics["test"]["metrics"].values():
        assert value["low"] <= value["value"] <= value["high"]
    written = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert written == {
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


def test_the_same_command_twice_gives_the_same_predictions(tmp_path):
    first = fit(tmp_path / "a", "--data.augment=strong")
    second = fit(tmp_path / "b", "--data.augment=strong", "--data.num_workers=2")
    assert (first / "predictions.csv").read_bytes() == (second / "predictions.csv").read_bytes()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.lrr=3"], "unknown option 'model.lrr'"),
        (["--trainer.max_epoch=3"], "unknown option 'trainer.max_epoch'"),
        (["--data.viw=masked"], "unknown option 'data.viw'"),
        (["--model.lr=abc"], "model.lr: expected float; got 'abc'"),
        (["--data.view=maskd"], "data.view: expected raw, masked"),
        (["--data=HPVDataModul"], "unknown data module 'HPVDataModul'; closest: HPVDataModule"),
        (["--model.backbone=resnet19"], "unknown network 'resnet19'; closest: resnet1"),
        (["--data=HPVDataModule", "--data.root=nowhere"], "zxaoyou/segmentation_WBC"),
        (["--trainer.precision=16-true"], "16-true gives NaN"),
        (["--trainer.limit_test_batches=2"], "a part of the set"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(args, message, tmp_path, capsys):
    assert main(["fit", f"--runs={tmp_path}", *args]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("cellbench: error: ")
    assert message in error
    assert not any(tmp_path.iterdir())
