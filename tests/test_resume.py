"""A run that is killed goes on, and ends with the same bits as one that never was."""

import functools
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from cellbench.__main__ import main
from cellbench.models.classifier import CellClassifier
from tests.conftest import QUICK, last_of_each, replace_masks
from tests.forked import FORK

pytestmark = pytest.mark.usefixtures("draw_once")

OPTIONS = [
    "--data.samples=80",
    "--data.slides=40",
    *QUICK,
    "--trainer.max_epochs=6",
    "--data.augment=strong",
    "--data.balance=balanced",
    "--data.batch_size=8",
    "--model.head.dropout=0.3",
    "--model.schedule=plateau",
    "--model.l2=0.001",
    "--name=run",
]
ALWAYS = "--checkpoint.every=0"


def command(runs, *args):
    options = last_of_each([*OPTIONS, f"--runs={runs}", *args])
    return [sys.executable, "-m", "cellbench", "fit", *options]


def start(arguments, **kwargs):
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


def only_run(runs):
    (run,) = (runs / "run").iterdir()
    return run


def results(run):
    """All that must not differ: the weights, the predictions, the history but for its clock."""
    states = [
        torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        for name in ("best", "last")
    ]
    history = [line.rsplit(",", 1)[0] for line in (run / "history.csv").read_text().splitlines()]
    return states, (run / "predictions.csv").read_bytes(), history


def terminate_at(patched, number):
    """Makes a training in this process be terminated in one of its steps."""
    step = CellClassifier.training_step

    @functools.wraps(step)
    def terminate(self, *args):
        if self.trainer.global_step == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    patched.setattr(CellClassifier, "training_step", terminate)


def assert_same(run, reference):
    states, predictions, history = results(run)
    expected_states, expected_predictions, expected_history = reference
    for state, expected in zip(states, expected_states, strict=True):
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)
    assert predictions == expected_predictions
    assert history == expected_history


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run that was never killed."""
    runs = tmp_path_factory.mktemp("reference")
    assert main(["fit", *OPTIONS, f"--runs={runs}"]) == 0
    return results(only_run(runs))


def wait_for(path, process, timeout=60):
    """Waits until a file is there, and was just changed if it was there before."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.stat().st_mtime_ns != before:
            return True
        time.sleep(0.005)
    return False


def kill_and_go_on(tmp_path, reference, seed, workers, kills=1):
    """Kills a run at random moments after its first checkpoint, then lets it end."""
    chance = random.Random(seed)
    arguments = command(tmp_path, ALWAYS, f"--data.num_workers={workers}", "--resume=auto")
    for _ in range(kills):
        process = start(arguments, start_new_session=True)
        while not list(tmp_path.glob("run/*/checkpoints")) and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            wait_for(only_run(tmp_path) / "checkpoints" / "last.ckpt", process)
            time.sleep(chance.uniform(0, 1.2))
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if (only_run(tmp_path) / "metrics.json").exists():  # it ended before the kill
            assert_same(only_run(tmp_path), reference)
            return
    assert main(arguments[arguments.index("fit") :]) == 0
    assert_same(only_run(tmp_path), reference)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, reference, workers):
    kill_and_go_on(tmp_path, reference, seed=workers, workers=workers)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(21))  # 42 kills
def test_a_run_killed_at_many_moments_ends_with_the_same_bits(tmp_path, reference, seed):
    kill_and_go_on(tmp_path, reference, seed, workers=2 * (seed % 2), kills=1 + seed % 3)


MOMENTS = {
    "in a validation": (CellClassifier, "validation_step", 6),
    "in a checkpoint's write": (torch, "save", 5),
    "before a checkpoint is moved": (os, "replace", 4),
    "in the last validation": (CellClassifier, "validation_step", 12),
    "in the test": (CellClassifier, "test_step", 1),
    "in the first checkpoint's write": (torch, "save", 1),
}


def run_killed(owner, name, n, arguments):
    """Run a command that kills its process at the n-th call of a function.

    Of a function that writes, only the calls for last.ckpt count, and torch.save has written half.
    """
    original, calls = getattr(owner, name), 0

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += owner is CellClassifier or "last.ckpt" in str(args[1])
        if calls < n:
            return original(*args, **kwargs)
        if owner is torch:
            original(*args, **kwargs)
            os.truncate(args[1], os.path.getsize(args[1]) // 2)
        return os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, wrapped)
    main(arguments)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(moment, marks=[] if number < 1 else pytest.mark.slow)
        for number, moment in enumerate(MOMENTS)
    ],
)
def test_a_run_killed_at_a_bad_moment_ends_with_the_same_bits(tmp_path, reference, moment):
    arguments = ["fit", *OPTIONS, f"--runs={tmp_path}", ALWAYS]
    process = FORK.Process(target=run_killed, args=(*MOMENTS[moment], arguments))
    process.start()  # a fork, which has nothing to import
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run = only_run(tmp_path)
    last = run / "checkpoints" / "last.ckpt"
    if "first" not in moment:
        assert torch.load(last, weights_only=True)["state_dict"]
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same(run, reference)
    assert not list(run.rglob("*.part"))


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, reference, number):
    process = start(command(tmp_path))
    while not list(tmp_path.glob("run/*/history.csv")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    run = only_run(tmp_path)
    assert f"{number.name}; go on with: python -m cellbench fit --resume {run}" in error
    assert not (run / "metrics.json").exists()
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same(run, reference)


@pytest.mark.parametrize("lost", [[], ["predictions.csv", "checkpoints/best.ckpt"]])
def test_a_run_killed_between_training_and_its_score_goes_on(tmp_path, reference, lost):
    options = ["--checkpoint.monitor=last"] if lost else []
    assert main(["fit", *OPTIONS, *options, f"--runs={tmp_path}"]) == 0
    run = only_run(tmp_path)
    expected = results(run)
    for name in ("metrics.json", *lost):
        (run / name).unlink()
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same(run, expected)


def test_auto_takes_only_an_unfinished_run_of_the_same_configuration(fit, tmp_path):
    first = fit("--resume=auto")
    assert fit("--resume=auto") != first
    (first / "metrics.json").unlink()
    assert fit("--resume=auto", "--model.lr=0.5") != first
    assert not (first / "metrics.json").exists()
    fit("--resume=auto")
    assert (first / "metrics.json").exists()


def test_resume_is_refused_where_it_would_not_be_exact(run, fails):
    assert "is finished" in fails("fit", "--resume", str(run))
    assert "is not a run's folder" in fails("fit", "--resume", str(run / "checkpoints"))
    (run / "metrics.json").unlink()
    line = fails("fit", "--resume", str(run), "--model.lr=1")
    assert "a run goes on as it began; remove --model.lr=1" in line
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:3000])
    assert "is not a whole checkpoint" in fails("fit", "--resume", str(run))
    assert Path(run / "config.yaml").is_file()


@pytest.fixture
def terminated(tmp_path, monkeypatch):
    """Runs a fit that gets SIGTERM at a step; returns the run's folder."""

    def run(*args, step, hook="on_train_batch_end"):
        original, calls = getattr(CellClassifier, hook), []

        def wrapped(self, *hook_args):
            calls.append(1)
            if len(calls) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *hook_args)

        with monkeypatch.context() as patched:
            patched.setattr(CellClassifier, hook, functools.wraps(original)(wrapped))
            assert main(["fit", *OPTIONS, f"--runs={tmp_path}", *args]) == 128 + signal.SIGTERM
        run = only_run(tmp_path)
        assert not (run / "metrics.json").exists()
        assert not (run / ".lock").exists()
        return run

    return run


def go_on(run):
    assert main(["fit", "--resume", str(run)]) == 0
    return run


def test_the_hint_after_a_signal_goes_on_in_a_folder_too(tmp_path, terminated, capsys):
    run = terminated(f"--folder={tmp_path / 'run' / 'of mine'}", step=2)
    error = capsys.readouterr().err
    assert error == f"cellbench: SIGTERM; go on with: python -m cellbench fit --resume '{run}'\n"
    hint = shlex.split(error)
    assert main(hint[hint.index("fit") :]) == 0
    assert (run / "metrics.json").is_file()


def test_accumulated_gradients_are_not_lost(tmp_path, terminated):
    options = ["--trainer.accumulate_grad_batches=3", "--trainer.max_epochs=2"]
    assert main(["fit", *OPTIONS, *options, f"--runs={tmp_path / 'whole'}"]) == 0
    run = go_on(terminated(*options, step=9))
    assert_same(run, results(only_run(tmp_path / "whole")))


@pytest.mark.parametrize(
    ("hook", "step"),
    [("on_train_batch_end", 6 * 7), ("validation_step", 6 * 2), ("test_step", 1)],
)
def test_a_signal_at_the_end_is_not_forgotten(reference, terminated, hook, step):
    """In the last training step, in the last validation, and in the test."""
    assert_same(go_on(terminated(step=step, hook=hook)), reference)


PLATEAU = [
    "--trainer.max_epochs=8",
    "--model.head.dropout=0.4",
    "--data.augment=none",
    "--data.balance=none",
    "--model.l2=0",
]


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """Return the results of an uninterrupted run whose plateau schedule lowers its rate."""
    runs = tmp_path_factory.mktemp("plateau")
    assert main(["fit", *OPTIONS, *PLATEAU, f"--runs={runs}"]) == 0
    expected = results(only_run(runs))
    rates = [float(line.split(",")[1]) for line in expected[2][1:]]
    assert rates == pytest.approx([1e-3] * 4 + [3e-4] * 4)
    return expected


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_end", 7 * 1 + 4),  # inside an epoch
        ("on_train_batch_end", 7 * 3),  # in an epoch's last step
        ("validation_step", 2 * 2),  # in a validation
        *(
            pytest.param(*moment, marks=pytest.mark.slow)
            for moment in (
                ("on_train_batch_end", 7 * 2 + 4),
                ("on_train_batch_end", 7 * 3 + 4),
                ("on_train_batch_end", 7 * 4 + 4),
                ("on_train_epoch_start", 4),
            )
        ),
    ],
)
def test_a_resumed_run_lowers_its_rate_when_an_uninterrupted_one_does(
    reduced, terminated, hook, step
):
    assert_same(go_on(terminated(*PLATEAU, step=step, hook=hook)), reduced)


def test_an_early_stopped_run_trains_no_further(tmp_path):
    stopping = [
        "--trainer.callbacks=EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks.patience=1",
        "--model.lr=0.1",
        "--trainer.max_epochs=30",
    ]
    command = ["fit", *OPTIONS, *stopping, f"--runs={tmp_path}", "--resume=auto"]
    assert main(command) == 0
    run = only_run(tmp_path)
    expected = results(run)
    assert len(expected[2]) < 31
    (run / "metrics.json").unlink()
    assert main(command) == 0
    assert_same(only_run(tmp_path), expected)


def test_changed_data_are_not_gone_on_with(tmp_path, folder_root, terminated, fails):
    images = ["--data=FolderDataModule", f"--data.root={folder_root}", "--data.image_size=32"]
    options = [option for option in OPTIONS if "slides" not in option and "samples" not in option]
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tests.test_resume.OPTIONS", [*images, *options])
        run = terminated(step=3)
    split = (run / "split.csv").read_text()
    (folder_root / "blast" / "0 (0).jpg").unlink()
    line = fails("fit", "--resume", str(run))
    assert line.startswith("--resume: the split is not the one that the run began with")
    assert (run / "split.csv").read_text() == split


def test_a_run_is_not_gone_on_with_or_tested_with_other_masks(
    tmp_path, folder_root, terminated, fails
):
    images = ["--data=FolderDataModule", f"--data.root={folder_root}", "--data.view=masked"]
    options = [option for option in OPTIONS if "slides" not in option and "samples" not in option]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tests.test_resume.OPTIONS", [*images, *options])
        run = terminated("--trainer.max_epochs=2", step=3)
    saved = {path: path.read_bytes() for path in (folder_root / "masks").rglob("*.png")}
    replace_masks(folder_root)
    line = fails("fit", "--resume", str(run))
    assert line.startswith("--resume: the set of masks is not the one that the run began with")
    assert not (run / "metrics.json").exists()
    for path, content in saved.items():
        path.write_bytes(content)
    go_on(run)
    next(iter(saved)).write_bytes(saved[list(saved)[1]])  # one mask, and the other command
    line = fails("test", "--run", str(run))
    assert "the masks of FolderDataModule have changed since the run was trained" in line
    assert not list((run / "test").glob("*"))
    assert main(["test", "--run", str(run), "--data.view=raw"]) == 0  # which uses none


def test_two_processes_do_not_share_a_run(tmp_path, terminated, fails):
    short = "--trainer.max_epochs=2"
    run = terminated(short, step=3)
    with FileLock(run / ".lock"):
        line = fails("fit", "--resume", str(run))
        assert line == f"--resume: another process has the run {run} open"
        assert main(["fit", *OPTIONS, short, f"--runs={tmp_path}", "--resume=auto"]) == 0
    assert len(list((tmp_path / "run").iterdir())) == 2
    assert not (run / "metrics.json").exists()


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_a_terminated_evaluation_does_not_exit_0(run, folder_root, monkeypatch, command, capfd):
    step = {"validate": "validation_step"}.get(command, f"{command}_step")
    monkeypatch.setattr(
        CellClassifier, step, lambda self, batch: os.kill(os.getpid(), signal.SIGTERM)
    )
    more = ["--images", str(folder_root / "blast")] if command == "predict" else []
    assert main([command, "--run", str(run), *more]) == 128 + signal.SIGTERM
    assert "SIGTERM; nothing is" in capfd.readouterr().err


def test_a_resumed_run_keeps_the_precision_that_was_chosen(tmp_path, monkeypatch, capsys):
    """It goes on where another one would be chosen."""
    from cellbench.training import precision

    options = ["fit", *OPTIONS, ALWAYS, "--trainer.max_epochs=2", f"--runs={tmp_path}"]
    monkeypatch.setattr(precision, "choose", lambda *_, **__: ("bf16-mixed", "fastest"))
    with monkeypatch.context() as patched:
        terminate_at(patched, 7)
        assert main(options) == 128 + signal.SIGTERM
    monkeypatch.setattr(precision, "choose", lambda *_, **__: ("32-true", "fastest"))
    capsys.readouterr()
    assert main([*options, "--resume=auto"]) == 0
    assert "precision bf16-mixed (as its training began)" in capsys.readouterr().out
    environment = json.loads((only_run(tmp_path) / "environment.json").read_text())
    assert environment["precision"] == "bf16-mixed"
