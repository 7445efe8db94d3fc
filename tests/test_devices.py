"""A run on two devices (CPU processes, gloo) gives what it gives on one."""

import csv
import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cellbench.__main__ import main
from cellbench.artifacts.checkpoint import read_checkpoint
from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.loading import LoadingPlan
from cellbench.data.sampling import BatchSampler, quotas
from cellbench.data.splits import SplitConfig
from cellbench.inference.rebuild import build_model
from tests.conftest import draw_cell, write_image
from tests.forked import fork_ranks, start
from tests.test_resume import assert_same, results

N = 41  # divides by nothing

# A network without batch norm, whose statistics would be those of each device's share.
OPTIONS = [
    "--data=FolderDataModule",
    "--data.csv=table.csv",
    "--data.split.protocol=official",
    "--data.image_size=64",
    "--data.augment=strong",
    "--data.balance=balanced",
    "--data.batch_size=12",
    "--model.backbone=alexnet",
    "--model.class_weights=balanced",
    "--model.l2=0.0001",
    "--model.optimizer=sgd",  # Adam makes a step of the rounding error of a gradient near zero
    "--model.lr=0.01",
    "--trainer.precision=32-true",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=3",
    "--trainer.enable_progress_bar=false",
    "--name=run",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """41 images each to train, validate and test; the classes are of very different size."""
    root, rng = tmp_path_factory.mktemp("cells"), np.random.default_rng(0)
    rows = ["path,label,split"]
    for part in ("train", "val", "test"):
        for number in range(N):
            label = 0 if number < 27 else 1 if number < 36 else 2
            write_image(root / part / f"{number}.png", draw_cell(rng, 2 * label, 40)[0])
            rows.append(f"{part}/{number}.png,{label},{part}")
    (root / "table.csv").write_text("\n".join(rows))
    return root


def run_of(runs):
    (run,) = (runs / "run").iterdir()
    return run


def fit(root, runs, *args):
    assert main(["fit", *OPTIONS, f"--data.root={root}", f"--runs={runs}", *args]) == 0
    return run_of(runs)


@pytest.fixture(scope="module")
def one(root, tmp_path_factory):
    return fit(root, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(root, tmp_path_factory):
    """Its W&B run is written offline; the fixtures that keep tests offline are not yet there."""
    return fit(root, tmp_path_factory.mktemp("two"), "--trainer.devices=2", "--wandb.mode=offline")


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_losses_and_metrics_of_every_epoch_are_those_of_one_device(one, two):
    for ours, theirs in zip(
        rows_of(one / "history.csv"), rows_of(two / "history.csv"), strict=True
    ):
        for name in set(ours) - {"seconds"}:
            assert float(theirs[name]) == pytest.approx(float(ours[name]), rel=2e-4), name


def test_every_sample_is_predicted_once_and_as_on_one_device(one, two):
    ours, theirs = (rows_of(run / "predictions.csv") for run in (one, two))
    assert [row["id"] for row in theirs] == [row["id"] for row in ours]
    assert set(Counter(row["id"] for row in theirs).values()) == {1}
    assert len(theirs) == 2 * N
    for a, b in zip(ours, theirs, strict=True):
        assert [float(b[f"p_{k}"]) for k in range(3)] == pytest.approx(
            [float(a[f"p_{k}"]) for k in range(3)], abs=1e-4
        )


def assert_alike(theirs, ours):
    """What counts predictions is equal; what has to do with probabilities, up to rounding."""
    assert theirs.keys() == ours.keys()
    for name, entry in ours.items():
        rounded = name in ("auroc", "log_loss", "brier", "ece")
        assert theirs[name] == (pytest.approx(entry, abs=1e-5) if rounded else entry), name


def test_metrics_and_confusion_count_every_sample_once(one, two):
    ours, theirs = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
    assert theirs["test"]["n"] == theirs["val"]["n"] == N
    assert np.sum(theirs["test"]["confusion"]) == N
    assert theirs["test"]["confusion"] == ours["test"]["confusion"]
    assert_alike(theirs["test"]["metrics"], ours["test"]["metrics"])


@pytest.mark.slow
def test_phases_and_co_teaching_are_those_of_one_device(root, tmp_path):
    """DDP has to learn of parameters that a phase frees, and devices of what others have seen."""
    options = ["--model.phases=[{epochs: 1, freeze: backbone}, {epochs: 1, freeze: stage2}, "]
    options[0] += "{epochs: 1, lr: 0.002}]"
    options += ["--model.co_teaching={forget_rate: 0.3, momentum: 0.5, warm_up: 1}"]
    options += ["--data.balance=none", "--model.layer_decay=0.5"]
    ours, theirs = (
        fit(root, tmp_path / f"{devices}", *options, f"--trainer.devices={devices}")
        for devices in (1, 2)
    )
    trained = [float(row["train/parameters"]) for row in rows_of(ours / "history.csv")]
    assert trained[0] < trained[1] < trained[2]
    for a, b in zip(rows_of(ours / "history.csv"), rows_of(theirs / "history.csv"), strict=True):
        for name in set(a) - {"seconds"}:
            assert float(b[name]) == pytest.approx(float(a[name]), rel=2e-4), name


@pytest.mark.slow
def test_a_frozen_backbone_is_asked_once_for_all_devices(root, tmp_path):
    runs = []
    for devices in (1, 2):
        cache = tmp_path / f"cache of {devices}"
        frozen = ["--model.freeze=backbone", "--data.augment=none", f"--data.cache.folder={cache}"]
        runs.append(fit(root, tmp_path / f"{devices}", *frozen, f"--trainer.devices={devices}"))
        assert len(list(cache.glob("*.features"))) == 1
    ours, theirs = runs
    for a, b in zip(
        rows_of(ours / "predictions.csv"), rows_of(theirs / "predictions.csv"), strict=True
    ):
        assert a["id"] == b["id"]
        assert [float(b[f"p_{k}"]) for k in range(3)] == pytest.approx(
            [float(a[f"p_{k}"]) for k in range(3)], abs=1e-4
        )


def test_two_processes_make_one_run_folder_and_one_wandb_run(two):
    assert len(list(two.parent.iterdir())) == 1
    assert len(list((two / "wandb").glob("offline-run-*"))) == 1
    assert json.loads((two / "environment.json").read_text())["devices"] == 2


def test_a_checkpoint_is_scored_alike_on_one_device_and_on_two(one, monkeypatch):
    fork_ranks(monkeypatch)
    assert (
        main(["test", "--run", str(one), "--trainer.devices=2", "--trainer.accelerator=cpu"]) == 0
    )
    (scored,) = (one / "test").iterdir()
    whole = [row for row in rows_of(one / "predictions.csv") if row["split"] == "test"]
    halves = rows_of(scored / "predictions.csv")
    assert [row["id"] for row in halves] == [row["id"] for row in whole]
    result = json.loads((scored / "metrics.json").read_text())["test"]
    known = json.loads((one / "metrics.json").read_text())["test"]
    assert result["confusion"] == known["confusion"]
    assert_alike(result["metrics"], known["metrics"])


def begun(root, runs):
    """A run on two devices that has made its first checkpoint; `log` gets its output."""
    places = [f"--data.root={root}", f"--runs={runs}"]
    options = [*OPTIONS, *places, "--trainer.devices=2", "--checkpoint.every=0"]
    process = start(["fit", *options], runs / "log")
    while not list(runs.glob("run/*/checkpoints/last.ckpt")) and process.is_alive():
        time.sleep(0.01)
    return process


def ended(process, runs):
    """Wait for a run; return its exit code and its output."""
    process.join(timeout=90)
    return process.exitcode, (runs / "log").read_text()


def ranks_of(process):
    """The process ids of the two ranks."""
    listed = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    return [int(line) for line in listed.stdout.split()]


def test_a_terminated_run_on_two_devices_goes_on_to_the_same_bits(root, two, tmp_path, monkeypatch):
    process = begun(root, tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    code, said = ended(process, tmp_path)
    assert code == 143
    run = run_of(tmp_path)
    assert said.count(f"SIGTERM; go on with: python -m cellbench fit --resume {run}") == 1
    assert not (run / "metrics.json").exists()
    fork_ranks(monkeypatch)
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same(run, results(two))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_killed_ends_the_run_which_goes_on(root, two, tmp_path, victim):
    process = begun(root, tmp_path)
    os.kill(ranks_of(process)[victim], signal.SIGKILL)
    code, said = ended(process, tmp_path)
    assert code == 137
    assert f"the process of device {victim} was killed by SIGKILL" in said
    run = run_of(tmp_path)
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same(run, results(two))


@pytest.mark.slow
def test_no_process_outlives_a_killed_launcher(root, tmp_path):
    process = begun(root, tmp_path)
    ranks = ranks_of(process)
    process.kill()
    process.join()
    end = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{rank}") for rank in ranks):
        assert time.monotonic() < end
        time.sleep(0.1)
    state = torch.load(run_of(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] > 0


@pytest.mark.parametrize("balance", ["none", "sqrt", "balanced"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_classes_are_drawn_at_the_same_rates_on_any_number_of_devices(balance, ranks):
    labels = np.repeat([0, 1, 2], [64, 16, 4])
    rates = {"none": [64, 16, 4], "sqrt": [48, 24, 12], "balanced": [28, 28, 28]}[balance]
    drawn = quotas([64, 16, 4], balance)
    shares = [
        BatchSampler(np.arange(84), 10, (rank, ranks), 0, labels, drawn) for rank in range(ranks)
    ]
    whole = BatchSampler(np.arange(84), 10, (0, 1), 0, labels, drawn)
    for epoch in range(4):
        for sampler in (whole, *shares):
            sampler.set_epoch(epoch)
        batches = list(zip(*shares, strict=True))
        for batch, expected in zip(batches, whole, strict=True):
            assert sorted(key for share in batch for key in share) == sorted(expected)
            assert max(map(len, batch)) - min(map(len, batch)) <= 1
        seen = [labels[key.position] for batch in batches for share in batch for key in share]
        assert [seen.count(label) for label in range(3)] == rates


def test_balancing_shows_every_sample_of_a_class_before_any_again():
    labels = np.repeat([0, 1], [90, 10])
    sampler = BatchSampler(np.arange(100), 10, (0, 1), 0, labels, quotas([90, 10], "balanced"))
    keys = []
    for epoch in range(9):
        sampler.set_epoch(epoch)
        keys += [key for batch in sampler for key in batch]
    assert len(set(keys)) == len(keys) == 900
    turns = Counter(key.position for key in keys)
    assert {turns[p] for p in range(90)} == {5}
    assert {turns[p] for p in range(90, 100)} == {45}


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--data.batch_size=3", "data.batch_size: 3 for 2 devices; it counts the images"),
        ("--trainer.num_nodes=2", "trainer.num_nodes: 2, but one process was started"),
        ("--trainer.strategy=fsdp", "trainer.strategy: fsdp is not offered"),
        ("--trainer.use_distributed_sampler=true", "trainer.use_distributed_sampler: true is not"),
    ],
)
def test_misuse_gets_one_line(root, tmp_path, capfd, monkeypatch, option, says):
    fork_ranks(monkeypatch)
    args = ["fit", *OPTIONS, f"--data.root={root}", f"--runs={tmp_path}", "--trainer.devices=2"]
    assert main([*args, option]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "cellbench: error" in line]
    assert len(errors) == 1
    assert says in errors[0]
    assert not list(tmp_path.rglob("config.yaml"))


def test_as_many_processes_as_devices(root, tmp_path, fails, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    line = fails("fit", *OPTIONS, f"--data.root={root}", f"--runs={tmp_path}")
    assert "4 processes were started, but trainer.devices x trainer.num_nodes is 1" in line


@pytest.mark.slow
def test_the_statistics_of_swa_are_the_mean_over_the_devices(root, tmp_path):
    """Each device computes them over its share of the batches, as it does in training."""
    swa = ["--checkpoint.average=swa", "--checkpoint.monitor=last", "--trainer.devices=2"]
    swa += ["--model.backbone=small_cnn", "--data.augment=none", "--data.balance=none"]
    run = fit(root, tmp_path, *swa)
    description, saved = read_checkpoint(run / "checkpoints" / "best.ckpt")
    shares = []
    for rank in range(2):
        data = FolderDataModule(
            root=root,
            csv=Path("table.csv"),
            image_size=64,
            batch_size=12,
            split=SplitConfig(protocol="official"),
        )
        data.plan = LoadingPlan(rank=rank, world_size=2)
        data.setup("fit")
        network = build_model(description, saved)
        batches = [batch.images for batch in data.training_batches(2)]
        torch.optim.swa_utils.update_bn(batches, network)
        shares.append({k: v.clone() for k, v in network.state_dict().items() if "running" in k})
    for key, value in shares[0].items():
        expected = (value + shares[1][key]) / 2
        assert torch.allclose(saved[key], expected, rtol=1e-3, atol=1e-5), key
