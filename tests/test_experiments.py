"""Every shipped experiment is parsed, runs for a step, and is short."""

import json
from pathlib import Path

import pytest
import yaml

from tests.lookalikes import ROOTS

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))


def test_they_are_there():
    names = {path.stem for path in EXPERIMENTS}
    assert {"demo", "hpv_raw", "hpv_masked", "hpv_background"} <= names
    used = {yaml.safe_load(path.read_text())["data"]["class_path"] for path in EXPERIMENTS}
    assert used == {"SyntheticDataModule", *ROOTS}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_runs_for_a_step(path, fit, request):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) <= 18
    config = yaml.safe_load(path.read_text())
    module = config["data"]["class_path"]
    data = ["--data.samples=80", "--data.slides=40"]
    if module in ROOTS:
        data = [f"--data.root={request.getfixturevalue(ROOTS[module])}"]
    steps = ["--trainer.limit_train_batches=1", "--trainer.max_epochs=1", "--data.batch_size=4"]
    phases = config["model"].get("phases")
    if phases:  # all of them
        shown = ", ".join(f"{{epochs: 1, freeze: {phase['freeze']}}}" for phase in phases)
        steps += [f"--trainer.max_epochs={len(phases)}", f"--model.phases=[{shown}]"]
    run = fit(f"--config={path}", *data, *steps, "--model.weights=none", name=path.stem)
    result = json.loads((run / "metrics.json").read_text())
    assert bool(result["stamps"]) == path.stem.endswith("_as_published")


def test_every_published_project_has_its_honest_counterpart():
    published = [path for path in EXPERIMENTS if path.stem.endswith("_as_published")]
    assert len(published) >= 5
    for path in published:
        module = yaml.safe_load(path.read_text())["data"]["class_path"]
        honest = [
            config
            for config in (yaml.safe_load(p.read_text()) for p in EXPERIMENTS)
            if config["data"]["class_path"] == module
            and config["data"]["init_args"]["split"]["protocol"] != "image"
        ]
        assert honest
        assert any(config["model"].get("weights", "none") == "none" for config in honest)


def test_the_three_views_differ_in_the_view_alone():
    configs = {}
    for view in ("raw", "masked", "background"):
        path = next(path for path in EXPERIMENTS if path.stem == f"hpv_{view}")
        config = yaml.safe_load(path.read_text())
        assert config["data"]["init_args"].pop("view") == view
        configs[view] = config
    assert configs["raw"] == configs["masked"] == configs["background"]
