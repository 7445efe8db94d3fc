"""A sweep's mistakes: one line each, before the first trial."""

import os

import optuna
import pytest

from cellbench.__main__ import main
from tests.conftest import TINY

RANGE = {"low": 1e-4, "high": 1e-2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"model.lrr": [0.1]}}, "space: unknown option 'model.lrr'; closest: model.lr"),
        ({"space": {"data.vieww": ["raw"]}}, "space: unknown option 'data.vieww' of Synthetic"),
        ({"space": {"data.view": ["raw", "maked"]}}, "space: data.view: expected raw, masked"),
        ({"space": {"model.optimizer": ["adam", "sdg"]}}, "model.optimizer: expected adam, adamw"),
        ({"space": {"model.lr": [0.1, "high"]}}, "space: model.lr: expected float; got 'high'"),
        ({"space": {"model.lr": [0.1, -0.1]}}, "model.lr: -0.1 is not greater than 0"),
        ({"space": {"model.backbone": ["small_cnn", "resnt18"]}}, "resnt18"),
        ({"space": {}}, "space: it is empty"),
        ({"space": {"model.lr": RANGE}}, "space: model.lr: a grid has no end over a range"),
        ({"space": {"model.lr": 0.1}}, "space: model.lr: expected a list of values"),
        ({"space": {"model.lr": []}}, "space: model.lr: expected a list of values"),
        ({"space": {"model.l1": [0.1, 0.1]}}, "space: model.l1: 0.1 is listed twice"),
        ({"space": {"model.lr": {"lo": 1}}}, "space: model.lr: unknown key 'lo'; closest: low"),
        (
            {"space": {"model.lr": {1: 2}}},
            "space: model.lr: unknown key '1'; allowed: choices, low",
        ),
        (
            {"space": {"model.lr": {"low": 2.0, "high": 1.0}}},
            "space: model.lr: low must be less than high; got 2.0 and 1.0",
        ),
        (
            {"space": {"model.lr": {"low": 0.0, "high": 1.0, "log": True}}},
            "with log: true low is above 0",
        ),
        (
            {"space": {"model.lr": {"choices": [0.1], "when": {"model.optimizer": "sgd"}}}},
            "space: model.lr: when: model.optimizer is not in the space",
        ),
        (
            {
                "space": {
                    "model.optimizer": ["sgd", "adam"],
                    "model.lr": {"choices": [0.1], "when": {"model.optimizer": []}},
                }
            },
            "space: model.lr: when: model.optimizer has no value; give those for which",
        ),
        (
            {"space": {"model.lr": {"choices": [0.1], "when": {"model.optimizr": "sgd"}}}},
            "when: model.optimizr is not in the space; add it, or remove the condition",
        ),
        (
            {
                "space": {
                    "model.optimizer": ["adam", "sgd"],
                    "model.lr": {"choices": [0.1], "when": {"model.optimizer": "sdg"}},
                }
            },
            "space: model.lr: when: model.optimizer is never sdg",
        ),
        ({"repeat": {"data.split.fold": 3}}, "repeat: data.split.fold: expected a list"),
        (
            {"repeat": {"data.split.fold": [0, 5]}, "space": {"data.split.folds": [5]}},
            "data.split.fold",
        ),
        ({"repeat": {"data.view": ["raw"]}}, "repeat: data.view is in the space as well"),
        ({"metric": "val/f1"}, "metric: unknown metric 'val/f1'; closest: val/f1_macro"),
        ({"metric": "test/accuracy"}, "metric: unknown metric 'test/accuracy'"),
        ({"metric": ["seconds", "val/loss"], "direction": ["minimize"]}, "direction: 1 for 2"),
        ({"trials": 3}, "trials: a grid has as many as it has combinations"),
        ({"sampler": "random"}, "trials: the sampler random has no end; give trials or time"),
        ({"sampler": "random", "trials": 0}, "trials: 0 is not greater than 0"),
        (
            {"sampler": "rnd", "trials": 3},
            "sweep.yaml: sampler: expected grid, random, tpe, gp, cmaes, qmc",
        ),
        ({"sampler": "cmaes", "trials": 3}, "sampler: cmaes needs at least two parameters"),
        ({"pruner": "median"}, "pruner: median judges by steps, and a trial has one epoch"),
        ({"pruner": "wilcoxon"}, "pruner: wilcoxon compares run by run; give folds or seeds"),
        ({"smapler": "grid"}, "sweep.yaml: unknown option 'smapler'; closest: sampler"),
        ({"experiment": "nowhere.yaml"}, "experiment: there is no file"),
    ],
)
def test_a_mistake_in_the_file(sweep_file, fails, tmp_path, changes, said):
    assert said in fails(*sweep_file(**changes))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers=0"], "--workers: 0 is less than 1"),
        (["--name=a/b"], "--name: 'a/b' is not a folder name"),
        (["--storage=mysql"], "--storage: expected journal, sqlite or postgresql"),
        (["--storage=postgresql://me:secret@host/db"], "set PGPASSWORD, or use ~/.pgpass"),
        (["--storage=postgresql://me@host:port/db"], "--storage: it is not an address like"),
        (["--data.view=raw"], "--data.view: it is in the sweep's space; choose one"),
        (["--model.lrr=1"], "unknown option 'model.lrr'; closest: model.lr"),
        (["--data=HPVDataModule", "--data.root=nowhere"], "there is no folder nowhere"),
    ],
)
def test_a_mistake_on_the_command_line(sweep_file, fails, options, said):
    assert said in fails(*sweep_file(), *options)


def test_a_sweep_without_a_file(fails):
    assert "give its file as --config" in fails("sweep", "--workers=2")


@pytest.mark.parametrize(
    ("workers", "per_run", "found"),
    [
        (2, 1.0, [("0",), ("1",)]),
        (1, 2.0, [("0", "1")]),
        (4, 0.5, [("0",), ("1",), ("0",), ("1",)]),
        (3, 0.5, [("0",), ("1",), ("0",)]),
    ],
)
def test_gpus_are_divided(workers, per_run, found):
    from cellbench.sweeps.workers import divide

    assert [slot.gpus for slot in divide(workers, ["0", "1"], per_run)] == found


@pytest.mark.parametrize(
    ("workers", "per_run", "said"),
    [
        (3, 1.0, "3, each with --gpus 1, and the machine has 2 GPUs; at most 2 workers"),
        (2, 2.0, "2, each with --gpus 2, and the machine has 2 GPUs; at most 1 worker,"),
        (1, 1.5, "--gpus: 1.5 is neither a share of one nor a whole number"),
    ],
)
def test_more_workers_than_gpus(workers, per_run, said):
    from cellbench.sweeps.workers import divide
    from cellbench.utils.errors import UserError

    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        divide(workers, ["0", "1"], per_run)


def test_cores_are_those_that_a_scheduler_leaves(monkeypatch):
    """Of four cores, the three that are allowed, divided among the workers."""
    from cellbench.sweeps.workers import divide

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [slot.threads for slot in divide(1, [], 1.0)] == [3]
    assert [slot.threads for slot in divide(2, [], 1.0)] == [1, 1]


def test_two_sweeps_in_one_folder(sweep_file, fails, tmp_path):
    command = sweep_file(space={"data.view": ["raw"]})
    assert main([*command, *TINY]) == 0
    other = sweep_file(space={"data.view": ["raw", "masked"]})
    assert "was begun with another space: data.view" in fails(*other, *TINY)
    swapped = {"model.l2": [0.1], "data.view": ["raw", "masked"]}
    first = sweep_file("swapped", space=dict(reversed(swapped.items())))
    assert main([*first, *TINY]) == 0
    again = sweep_file("swapped", space=swapped)
    assert "was begun with another order" in fails(*again, *TINY)
    sweep_file(space={"data.view": ["raw"]})
    said = fails(*command, *TINY, "--model.lr=0.5")
    assert "was begun with another experiment: model.lr" in said
    assert "was begun with journal, and here is sqlite" in fails(
        *command, *TINY, "--storage=sqlite"
    )


def test_a_storage_of_another_study(sweep_file, fails, tmp_path):
    folder = tmp_path / "runs" / "sweep"
    folder.mkdir(parents=True)
    optuna.create_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}").ask()
    said = fails(*sweep_file(), "--storage=sqlite")
    assert "has a study sweep that is not a sweep of cellbench" in said


def test_no_permission(sweep_file, fails, tmp_path):
    (tmp_path / "runs").write_text("a file in the way")
    assert "cannot make the folder" in fails(*sweep_file())


def test_a_sweeps_file_and_an_experiments_are_told_apart(fails, sweep_file, tmp_path):
    sweep_file()
    sweep, experiment = tmp_path / "sweep.yaml", tmp_path / "tiny.yaml"
    assert "is a sweep's file: python -m cellbench sweep" in fails("fit", f"--config={sweep}")
    assert "is an experiment; a sweep's file names one" in fails("sweep", f"--config={experiment}")


def test_a_mistake_in_the_experiment_names_its_file_once(fails, sweep_file, tmp_path):
    command = sweep_file()
    (tmp_path / "tiny.yaml").write_text("model: {lrr: 1}\n")
    line = fails(*command)
    assert line.startswith(f"{tmp_path / 'tiny.yaml'}: unknown option 'model.lrr'")


@pytest.mark.parametrize("name", ["data", "model", "trainer", "checkpoint", "wandb"])
def test_names_of_an_experiments_options_are_values_as_any(fails, tmp_path, name):
    file = tmp_path / f"{name}.yaml"
    line = fails("sweep", "--config", str(file), "--name", name, "--runs", name)
    assert f"cannot read {file}" in line


def test_the_content_of_a_sweeps_file_is_no_file(fails):
    line = fails("sweep", '--config={"experiment": "demo.yaml", "space": {"model.lr": [0.1]}}')
    assert "expected a sweep's file" in line
