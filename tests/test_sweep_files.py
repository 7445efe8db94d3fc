"""Every shipped sweep is parsed and run for a step."""

import csv
from pathlib import Path

import pytest
import yaml

from cellbench.__main__ import main
from cellbench.sweeps.config import SweepConfig
from tests.lookalikes import ROOTS

SWEEPS = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))


def test_they_are_there():
    assert {path.stem for path in SWEEPS} >= {
        "blood_cells_backbones",
        "demo",
        "hpv_augmentation",
        "hpv_raw_vs_masked",
        "hpv_regularisation",
        "leukemia_hyperband",
        "leukemia_random",
    }


def test_raw_against_masked_has_all_views_folds_and_seeds():
    (path,) = (path for path in SWEEPS if path.stem == "hpv_raw_vs_masked")
    config = SweepConfig(**yaml.safe_load(path.read_text()))
    assert (len(config.grid), len(config.runs), config.compares) == (5, 15, True)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_runs_for_a_step(path, tmp_path, request):
    """One trial of one run: of a list its last value, of a range any."""
    given = yaml.safe_load(path.read_text())
    experiment = path.parent / given["experiment"]
    given["experiment"] = str(experiment)
    given["repeat"] = {key: values[:1] for key, values in given.get("repeat", {}).items()}
    given["space"] = {
        key: value[-1:] if isinstance(value, list) else value
        for key, value in given["space"].items()
    }
    if "trials" in given:
        given["trials"] = 1
    file = tmp_path / path.name
    file.write_text(yaml.safe_dump(given))
    module = yaml.safe_load(experiment.read_text())["data"]["class_path"]
    options = ["--data.samples=80", "--data.slides=40"]
    if module in ROOTS:
        options = [f"--data.root={request.getfixturevalue(ROOTS[module])}"]
    options += ["--data.image_size=32", "--trainer.limit_train_batches=1"]
    options += [f"--trainer.max_epochs={2 if given.get('pruner') else 1}"]
    assert main(["sweep", f"--config={file}", f"--runs={tmp_path}", *options]) == 0
    with (tmp_path / path.stem / "trials.csv").open() as table:
        (row,) = csv.DictReader(table)
    assert row["state"] == "done"
    assert set(given["space"]) <= set(row)
