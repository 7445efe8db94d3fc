"""Sweeps: what they train, what they choose by, and what they leave behind."""

import csv
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from cellbench.__main__ import main
from cellbench.config.yaml import read_mapping
from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.space import Space
from cellbench.utils.errors import UserError
from tests.conftest import TINY

LR = {"model.lr": {"low": 1e-4, "high": 1e-2, "log": True}}


@pytest.fixture
def sweep(sweep_file, tmp_path):
    """Runs a sweep; returns its folder and the rows of its trials.csv."""

    def run(*options, code=0, tiny=TINY, **changes):
        assert main([*sweep_file(**changes), *tiny, *options]) == code
        folder = tmp_path / "runs" / "sweep"
        with (folder / "trials.csv").open() as file:
            return folder, list(csv.DictReader(file))

    return run


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def test_a_comparison_tests_every_run_once(sweep, capsys):
    folder, rows = sweep("--workers=2", repeat={"seed_everything": [0, 1]})
    assert [row["data.view"] for row in rows] == ['"raw"', '"masked"']
    assert {row["state"] for row in rows} == {"done"}
    runs = sorted(path for path in (folder / "trials").iterdir() if path.is_dir())
    assert [run.name for run in runs] == [
        f"{trial:04d}-seed_everything{seed}" for trial in (0, 1) for seed in (0, 1)
    ]
    for row, pair in zip(rows, (runs[:2], runs[2:]), strict=True):
        scores = [metrics(run)["val"]["metrics"]["f1_macro"]["value"] for run in pair]
        assert float(row["val/f1_macro"]) == pytest.approx(fmean(scores))
        assert [float(row[f"val/f1_macro of run {i}"]) for i in (0, 1)] == pytest.approx(scores)
    assert len({metrics(run)["split"]["digest"] for run in runs}) == 1
    assert {metrics(run)["view"] for run in runs[2:]} == {"masked"}
    assert all("test" in metrics(run) for run in runs)
    said = capsys.readouterr().out
    assert re.search(r"masked .*2 seeds each\): .*accuracy", " ".join(said.split()))
    assert (folder / "report.html").is_file()


def test_a_comparison_chooses_no_trial(sweep, capsys):
    folder, _ = sweep(space={"data.view": ["raw", "background", "silhouette"]})
    said = capsys.readouterr().out
    assert "trial 2: val/f1_macro" in said
    assert "best" not in said
    assert not (folder / "best.yaml").exists()
    assert [path.name for path in (folder / "figures").iterdir()] == ["slice.png"]


def test_figures_leave_matplotlib_as_it_was(tmp_path):
    """Optuna's plots set their own style, and grey text would be drawn in a report after them."""
    from matplotlib import pyplot, rcParams
    from matplotlib.figure import Figure
    from optuna.trial import TrialState

    from cellbench.sweeps import results
    from cellbench.sweeps.folder import SweepFolder
    from cellbench.sweeps.study import Study
    from cellbench.utils.html_page import svg

    config = SweepConfig("x", LR, sampler="random", trials=3)
    study = Study("s", config, {}, tmp_path, "journal", 1)
    for value in (0.1, 0.3, 0.2):
        trial, _ = study.ask()
        study.tell(trial, TrialState.COMPLETE, [value])
    before = {key: rcParams[key] for key in rcParams if key != "backend"}
    assert results.draw(SweepFolder(tmp_path), config, study) == ["history", "slice"]
    assert {key: rcParams[key] for key in rcParams if key != "backend"} == before
    assert pyplot.get_fignums() == []
    figure = Figure()
    figure.subplots().set_xlabel("epoch")
    assert "#555555" not in svg(figure)


def test_a_search_touches_the_test_set_once_at_its_end(sweep, capsys):
    search = {"sampler": "random", "trials": 4, "space": LR, "metric": "val/loss"}
    folder, rows = sweep("--workers=2", direction="minimize", **search)
    runs = sorted(path for path in (folder / "trials").iterdir() if path.is_dir())
    assert len(rows) == len(runs) == 4
    for run in runs:
        assert "test" not in metrics(run)
        with (run / "predictions.csv").open() as file:
            assert {row["split"] for row in csv.DictReader(file)} == {"val"}
    best = min(rows, key=lambda row: float(row["val/loss"]))["trial"]
    (tested,) = (folder / "trials").glob("*/test/*/metrics.json")
    assert tested.parents[2].name == f"{int(best):04d}"
    last = max((run / "metrics.json").stat().st_mtime for run in runs)
    assert tested.stat().st_mtime > last
    assert len(list((folder / "trials").glob("*/checkpoints/best.ckpt"))) == 1
    out = capsys.readouterr().out
    assert f"best       trial {best}, validation val/loss" in out
    assert "test       n = " in out
    sweep("--workers=2", direction="minimize", **search)
    assert len(list((folder / "trials").glob("*/test/*/metrics.json"))) == 1
    config = folder / "best.yaml"
    assert main(["fit", f"--config={config}", *TINY, f"--runs={folder.parent}"]) == 0
    (again,) = (folder.parent / "best").iterdir()
    known = metrics(folder / "trials" / f"{int(best):04d}")["val"]["metrics"]
    assert metrics(again)["val"]["metrics"] == known
    logs = [path.read_text() for path in (folder / "trials").glob("*.log")]
    assert all("NOTE       an epoch ends after 1 batch: " in log for log in logs)


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "qmc"])
def test_a_sampler_draws_the_same_trials_again(sampler, tmp_path):
    """From nothing but the seed and the trials before, as after a kill."""
    from optuna.trial import TrialState

    from cellbench.sweeps.study import Study

    space = {"model.lr": LR["model.lr"], "model.l2": {"low": 0.0, "high": 1.0}}
    config = SweepConfig("x", space, sampler=sampler, trials=6)
    points = []
    for attempt in ("one", "two"):
        (tmp_path / attempt).mkdir()
        drawn = []
        for number in range(6):
            again = Study("s", config, {}, tmp_path / attempt, "journal", 1)
            trial, point = again.ask()
            drawn.append(point)
            again.tell(trial, TrialState.COMPLETE, [point["model.l2"] + number / 10])
        assert len({str(point) for point in drawn}) == 6
        points.append(drawn)
    assert points[0] == points[1]


def test_a_condition_leaves_a_parameter_out(sweep):
    space = {
        "model.optimizer": ["adam", "adamw"],
        "model.weight_decay": {"choices": [0.1, 0.2], "when": {"model.optimizer": "adamw"}},
    }
    _, rows = sweep(space=space)
    found = [(row["model.optimizer"], row["model.weight_decay"]) for row in rows]
    assert found == [('"adam"', ""), ('"adamw"', "0.1"), ('"adamw"', "0.2")]


def test_several_metrics_give_a_front(sweep, capsys):
    folder, rows = sweep(
        metric=["val/accuracy", "parameters"],
        direction=["maximize", "minimize"],
        space={"model.backbone": ["small_cnn", "se_resnet8", "bottleneck_resnet"]},
        tiny=[option for option in TINY if "backbone" not in option],
    )
    points = [(-float(row["val/accuracy"]), float(row["parameters"])) for row in rows]
    front = [
        number
        for number, (a, b) in enumerate(points)
        if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in points)
    ]
    assert {float(row["parameters"]) for row in rows} == {661228, 142999, 163562}
    said = capsys.readouterr().out
    assert not (folder / "best.yaml").exists()
    assert (folder / "figures" / "pareto_front.png").stat().st_size > 5000
    shown = said.partition("no trial is better in every metric than these:")[2]
    assert [int(number) for number in re.findall(r"trial (\d+):", shown)] == front
    assert "a grid chooses none of them" in shown
    assert "choose one" not in said


def test_a_failed_trial_is_told_and_the_others_go_on(sweep, capsys):
    space = {"model.lr": [1e-3, 1e30, 1e-2]}
    folder, rows = sweep("--trainer.precision=32-true", code=1, space=space)
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert rows[1]["reason"].startswith("0001: the training diverged: train/loss is")
    assert "train/loss" in (folder / "trials" / "0001.log").read_text()
    assert "3 trials: 2 done, 1 failed" in capsys.readouterr().out


def test_too_many_failures_in_a_row_stop_a_sweep_and_are_run_again(sweep_file, fails, tmp_path):
    space = {"model.lr": [k * 1e30 for k in range(1, 8)]}
    command = [*sweep_file(space=space), *TINY, "--trainer.precision=32-true"]
    for times in (1, 2):
        said = fails(*command)
        assert "5 trials in a row have failed, the last for: 0004: the training diverged" in said
        with (tmp_path / "runs/sweep/trials.csv").open() as file:
            assert [row["state"] for row in csv.DictReader(file)] == ["not done"] * 5
        log = (tmp_path / "runs/sweep/trials/0000.log").read_text()
        assert log.count("$ python -m cellbench fit") == times


def test_a_run_that_takes_too_long_is_ended(sweep):
    folder, rows = sweep(
        "--trainer.max_epochs=500",
        code=1,
        timeout=4,
        space={"data.view": ["raw"]},
    )
    assert rows[0]["state"] == "failed"
    assert rows[0]["reason"] == "0000: timed out after 4 s"
    assert (folder / "trials/0000/checkpoints/last.ckpt").is_file()


def test_a_full_disk_stops_a_sweep_at_once(sweep_file, fails, tmp_path, monkeypatch):
    command = sweep_file(space={"model.l2": [0.0, 0.1, 0.2]})
    (tmp_path / "runs" / "sweep" / "trials").mkdir(parents=True)
    (tmp_path / "runs/sweep/trials/0000").write_text("a file in the way, as good as a full disk")
    said = fails(*command, *TINY)
    assert "cannot make the folder" in said
    assert "nothing is lost: make room, and give the same command again" in said
    (tmp_path / "runs/sweep/trials/0000").unlink()
    assert main([*command, *TINY]) == 0
    with (tmp_path / "runs/sweep/trials.csv").open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done"] * 3


PRUNED = {
    "pruner": "median",
    "metric": "val/loss",
    "direction": "minimize",
    "space": {"model.lr": [0.001, 0.0011, 0.0012, 0.0013, 0.0014, 1.0, 3.0]},
}
"""Of seven learning rates the last two are hopeless."""


def test_a_trial_is_pruned_by_its_epochs(sweep, monkeypatch):
    """Each epoch is judged, and yet a run's config.yaml is parsed but once for it."""
    read, parsed = read_mapping, Counter()

    def counted(path, *args):
        parsed[path.parent.name] += path.name == "config.yaml"
        return read(path, *args)

    monkeypatch.setattr("cellbench.config.yaml.read_mapping", counted)
    long = [option for option in TINY if "max_epochs" not in option]
    options = ["--trainer.max_epochs=15", "--trainer.precision=32-true"]
    folder, rows = sweep(*options, tiny=long, **PRUNED)
    assert [row["state"] for row in rows] == ["done"] * 5 + ["pruned"] * 2
    for trial in ("0005", "0006"):
        assert not (folder / "trials" / trial / "metrics.json").exists()
        epochs = (folder / "trials" / trial / "history.csv").read_text().count("\n") - 1
        assert 1 <= epochs < 15
        assert parsed[trial] == 1
    assert parsed["0000"] == 2  # the report at the end is the second


def test_a_trial_is_pruned_by_its_folds(sweep):
    """By the running mean: the runs of a pruned trial that had not begun never do."""
    options = ["--trainer.precision=32-true", "--trainer.max_epochs=1"]
    folder, rows = sweep(*options, repeat={"seed_everything": [0, 1]}, **PRUNED)
    assert [row["state"] for row in rows] == ["done"] * 5 + ["pruned"] * 2
    assert [run.name for run in sorted((folder / "trials").glob("0005*/"))] == [
        "0005-seed_everything0"
    ]


@pytest.mark.slow
def test_wilcoxon_prunes_run_by_run(sweep):
    space = {"model.lr": [0.001, 1.0]}
    options = ["--trainer.precision=32-true", "--trainer.max_epochs=1"]
    repeat = {"seed_everything": list(range(10))}
    pruned = PRUNED | {"pruner": "wilcoxon", "space": space}
    folder, rows = sweep(*options, repeat=repeat, **pruned)
    assert [row["state"] for row in rows] == ["done", "pruned"]
    assert 5 <= len(list((folder / "trials").glob("0001-*/metrics.json"))) < 10


def test_a_trial_on_two_devices_leaves_the_study_to_the_parent(sweep):
    folder, rows = sweep(
        "--trainer.devices=2", "--trainer.accelerator=cpu", space=LR, sampler="random", trials=1
    )
    environment = json.loads((folder / "trials/0000/environment.json").read_text())
    assert environment["devices"] == 2
    assert rows[0]["state"] == "done"
    assert "x 2" in (folder / "trials/0000.log").read_text()


def test_more_trials_are_added_and_a_range_is_extended(sweep, sweep_file, fails):
    search = {"sampler": "random", "metric": "val/loss", "direction": "minimize"}
    _, first = sweep(trials=2, space=LR, **search)
    _, more = sweep(trials=3, space=LR, **search)
    assert [row["model.lr"] for row in more[:2]] == [row["model.lr"] for row in first]
    assert len(more) == 3
    wider = {"model.lr": LR["model.lr"] | {"high": 0.5}}
    said = fails(*sweep_file(trials=4, space=wider, **search), *TINY)
    assert "space: model.lr; --extend true goes on with the new range" in said
    _, extended = sweep("--extend=true", trials=4, space=wider, **search)
    assert len(extended) == 4


def test_a_space_is_read(tmp_path):
    space = Space.read(
        {
            "b": {"choices": [1, 2], "when": {"a": [True]}},
            "a": [True, False],
            "c": {"low": 0.1, "high": 0.3, "step": 0.1},
        }
    )
    assert list(space.parameters) == ["a", "c", "b"]
    assert space.parameters["c"].values == (0.1, 0.2, 0.3)
    grid = space.grid()
    assert len(grid) == 2 * 3 + 3
    assert all(("b" in point) == point["a"] for point in grid)
    covered = space.covering()
    assert {point.get("b") for point in covered} == {1, 2, None}
    with pytest.raises(UserError, match="in a circle"):
        Space.read(
            {"a": {"choices": [1], "when": {"b": 1}}, "b": {"choices": [1], "when": {"a": 1}}}
        )


def test_numbers_of_a_sweep_are_numbers(sweep_file, tmp_path, fails):
    """PyYAML alone reads 1e-3 as a text, and off as false."""
    command = sweep_file()
    text = (tmp_path / "sweep.yaml").read_text()
    (tmp_path / "sweep.yaml").write_text(
        text.split("space")[0] + "space: {model.lr: [1e-3, 1e-2]}\n"
    )
    assert main([*command, *TINY]) == 0
    with (tmp_path / "runs/sweep/trials.csv").open() as file:
        assert [row["model.lr"] for row in csv.DictReader(file)] == ["0.001", "0.01"]


@pytest.mark.slow
def test_weights_and_biases_has_a_group_and_a_run_for_each(sweep):
    folder, rows = sweep("--wandb.mode=offline", repeat={"seed_everything": [0, 1]})
    found = sorted((folder / "trials").glob("*/wandb/offline-run-*/run-*.wandb"))
    assert len(found) == len({path.name for path in found}) == 4
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", found[2]]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert '"run_group":"sweep"' in text
    assert '"view":"masked"' in text
    assert "best/val/f1_macro" in text
    assert rows[1]["val/f1_macro of run 0"][:8] in text
    assert '"exit' in text.lower()


def test_tensorboard_has_hyperparameters_with_the_metrics(sweep):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = sweep("--tensorboard=true", space={"data.view": ["raw"]})
    events = EventAccumulator(str(folder / "trials/0000/tensorboard"))
    events.Reload()
    assert "best/val/f1_macro" in events.Tags()["scalars"]
    assert "_hparams_/experiment" in events.summary_metadata


def test_an_unfinished_run_of_another_configuration_is_begun_afresh(sweep, tmp_path):
    """As where it was begun on a machine that trains with another precision."""
    run = tmp_path / "runs/sweep/trials/0000"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed_everything: 7\n")
    _, rows = sweep(space={"data.view": ["raw"]})
    assert rows[0]["state"] == "done"
    assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == 0
    assert not (run / "checkpoints" / "last.ckpt").exists()
    assert (run / "checkpoints" / "best.ckpt").exists()


def test_a_folder_of_fit_holds_one_run(tmp_path, fails):
    folder, other = tmp_path / "mine", tmp_path / "photographs"
    command = ["fit", "--data.samples=80", "--data.slides=40", *TINY, f"--folder={folder}"]
    assert main([*command, "--test=false", "--figures=false"]) == 0
    assert "test" not in metrics(folder)
    assert not (folder / "figures").exists()
    assert "is finished; give another folder" in fails(*command)
    other.mkdir()
    (other / "cell.png").write_text("dear to somebody")
    said = fails(*command[:-1], f"--folder={other}", "--trainer.gradient_clip_algorithm=nonsense")
    assert "holds no run, but cell.png" in said or "gradient_clip" in said
    assert (other / "cell.png").read_text() == "dear to somebody"
    assert main(["test", f"--run={folder}", "--trainer.enable_progress_bar=false"]) == 0
    (scored,) = (folder / "test").glob("*/metrics.json")
    assert "test" in json.loads(scored.read_text())


def test_signals_have_the_handlers_they_had(sweep):
    before = signal.getsignal(signal.SIGTERM)
    sweep(space={"data.view": ["raw"]})
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_search_over_folds_is_stamped_wherever_it_goes(sweep, capsys, tmp_path):
    search = {"sampler": "random", "space": LR, "metric": "val/loss", "direction": "minimize"}
    folds = {"data.split.fold": [0, 1]}
    folder, _ = sweep("--data.split.folds=2", trials=2, repeat=folds, **search)
    assert "UNRELIABLE: the configuration was chosen by" in capsys.readouterr().out
    tests = list((folder / "trials").glob("*/test/*/metrics.json"))
    assert len(tests) == 2
    for path in tests:
        (stamp,) = metrics(path.parent)["stamps"]
        assert stamp.startswith("the configuration was chosen by the validation images")
    assert "# UNRELIABLE: the configuration was" in (folder / "best.yaml").read_text()
    assert main(["report", str(folder), f"--output={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    assert "UNRELIABLE: the configuration was chosen by" in out
    assert "NOTE 2 runs left out: its test split has not been scored" in out
    plain = json.loads((tmp_path / "out" / "report.json").read_text())
    (condition,) = plain["conditions"]
    assert len(condition["runs"]) == 2


def test_a_search_that_chooses_again_after_its_test_is_stamped(sweep, capsys):
    search = {"sampler": "random", "metric": "val/loss", "direction": "minimize"}
    search["space"] = {"model.lr": {"low": 1e-7, "high": 1.0, "log": True}}
    folder, _ = sweep(trials=1, **search)
    (first,) = (folder / "trials").glob("*/test/*/metrics.json")
    assert metrics(first.parent)["stamps"] == []
    _, rows = sweep("--workers=2", trials=8, **search)
    assert min(rows, key=lambda row: float(row["val/loss"]))["trial"] != "0"
    (new,) = set((folder / "trials").glob("*/test/*/metrics.json")) - {first}
    (stamp,) = metrics(new.parent)["stamps"]
    assert "this search's test split was scored for its choices 0000, 00" in stamp
    assert "UNRELIABLE: this search's test split" in capsys.readouterr().out
