"""The README's comparisons: what each condition trains, and that it does."""

import json
from pathlib import Path

import pytest

from cellbench.__main__ import main
from tests.benchmarks.comparisons import COMPARISONS, fill, finished, table, waiting
from tests.lookalikes import ROOTS

CONDITIONS = [
    pytest.param(name, condition, id=f"{name}: {condition.name}")
    for name, comparison in COMPARISONS.items()
    for condition in comparison.conditions
    if name != "pretraining"  # whose runs need another's weights
]


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_condition_has_each_fold_and_seed_once(name, tmp_path):
    comparison = COMPARISONS[name]
    (tmp_path / "blood_cells" / "run").mkdir(parents=True)
    commands = list(waiting(comparison, "images", tmp_path))
    n = (comparison.folds or 1) * comparison.seeds * len(comparison.conditions)
    assert len(commands) == n
    assert len({str(command[-1]) for command in commands}) == n
    assert not any(
        "{" in part and "}" in part and ":" not in part for c in commands for part in c[-1]
    )


def test_conditions_of_the_hpv_cells_differ_in_what_they_name_alone():
    plain = set(COMPARISONS["imbalance"].conditions[0].options)
    for condition in COMPARISONS["imbalance"].conditions[1:]:
        assert len(set(condition.options) - plain) == 1
        assert plain <= set(condition.options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "condition"), CONDITIONS)
def test_a_condition_trains(name, condition, tmp_path, request):
    options = [o for o in fill(condition.options, "shared", tmp_path) if "train_labels" not in o]
    hpv = any("hpv" in option for option in options)
    module = "HPVDataModule" if hpv else "BloodCellsDataModule"
    steps = [f"--data.root={request.getfixturevalue(ROOTS[module])}", f"--runs={tmp_path}"]
    steps += [
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=1",
        f"--name={condition.name}",
    ]
    assert main(["fit", *options, *steps, "--trainer.enable_progress_bar=false"]) == 0
    assert finished(tmp_path / condition.name) == {(0, 0)}


def test_a_table_has_a_row_a_condition_with_all_its_seeds(fit, tmp_path):
    comparison = COMPARISONS["networks"]
    name = comparison.conditions[0].name
    for seed in range(2):
        for fold in range(2):
            split = f"--data.split={{folds: 2, fold: {fold}}}"
            fit(split, f"--seed_everything={seed}", name=name, runs=tmp_path)
    _, _, row = table(tmp_path, comparison)
    cells = [cell.strip() for cell in row.strip("| ").split("|")]
    assert cells[:4] == [name, "661,228", "80", "2"]
    scores = [
        json.loads(path.read_text())["test"]["metrics"]["accuracy"]["value"]
        for path in Path(tmp_path, name).glob("*/metrics.json")
    ]
    assert float(cells[4].split()[0]) == pytest.approx(sum(scores) / 4, abs=0.02)
