"""Options that no longer exist: named when given, ignored in runs that were stored with them."""

import json

import pytest
import yaml

from cellbench.__main__ import main
from cellbench.artifacts.conditions import conditions
from cellbench.artifacts.finished import read_finished
from cellbench.artifacts.folder import RunFolder
from tests.conftest import QUICK, TINY

LINE = "data.augment_on was removed: images are always augmented by albumentations"


@pytest.mark.parametrize(
    "option",
    [
        "--data.augment_on=cpu",
        "--data.init_args.augment_on=auto",
        '--data={"class_path": "SyntheticDataModule", "init_args": {"augment_on": "auto"}}',
    ],
)
def test_a_removed_option_on_the_command_line_is_named(fails, option):
    assert fails("fit", *TINY, option).startswith(LINE)


def test_a_removed_option_in_a_file_is_named(fails, tmp_path):
    path = tmp_path / "old.yaml"
    arguments = {"samples": 80, "augment_on": "auto"}
    data = {"class_path": "SyntheticDataModule", "init_args": arguments}
    path.write_text(yaml.safe_dump({"data": data}))
    for command in ("fit", "audit"):
        assert LINE in fails(command, f"--config={path}")


def test_a_run_that_holds_a_removed_option_is_read_resumed_and_tested(fit, tmp_path, capsys):
    run = fit("--data.augment=flips")
    new = (run / "predictions.csv").read_bytes()
    config = yaml.safe_load((run / "config.yaml").read_text())
    stored = config["data"]["init_args"]
    assert "augment_on" not in stored
    names = list(stored)
    after = names.index("augment_variants")
    stored = {name: stored[name] for name in names[: after + 1]}
    stored |= {"augment_on": "cpu"} | config["data"]["init_args"]
    config["data"]["init_args"] = stored
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (run / "config.yaml").write_text(text)

    runs, left = read_finished([run])
    assert not left
    assert [each.runs[0].seed for each in conditions(runs)] == [0]

    assert main(["test", f"--run={run}"]) == 0
    tested = next((run / "test").iterdir())
    again = json.loads((tested / "metrics.json").read_text())["test"]["metrics"]
    assert again == json.loads((run / "metrics.json").read_text())["test"]["metrics"]

    same = ["--data.samples=80", "--data.slides=40", "--data.augment=flips", *QUICK]
    same += [f"--runs={tmp_path / 'runs'}", "--name=tiny"]
    for given in ([f"--resume={run}"], [*same, "--resume=auto"]):
        (run / "config.yaml").write_text(text)
        (run / "metrics.json").unlink()
        (run / "predictions.csv").unlink()
        assert main(["fit", *given]) == 0
        assert (run / "predictions.csv").read_bytes() == new
    assert "no unfinished run" not in capsys.readouterr().out


def test_a_training_that_a_removed_option_decides_is_not_resumed(fit, fails, monkeypatch):
    run = fit("--data.augment=flips")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"]["augment_on"] = "device"
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["test", f"--run={run}"]) == 0
    (run / "metrics.json").unlink()
    line = fails("fit", f"--resume={run}")
    assert "its training began with data.augment_on device, which was removed" in line
    del config["data"]["init_args"]["augment_on"]
    monkeypatch.setattr("cellbench.config.yaml.read_bytes", None)  # the file is read once
    assert not RunFolder(run).has_config(config)
