"""Configurations: read strictly, checked against types, and never a way to run code."""

import copy
import json
import os
import time
from pathlib import Path

import pytest
import yaml as pyyaml

from cellbench.__main__ import main
from cellbench.artifacts.folder import RunFolder
from cellbench.cli.options.lightning_cli import CellbenchCLI
from cellbench.cli.options.stored import read_config
from cellbench.cli.options.types import stored_types
from cellbench.config import option_types, strict_json, yaml
from cellbench.sweeps.folder import merged
from cellbench.utils.errors import MAX_MESSAGE, UserError, one_line
from tests.conftest import EXPERIMENT, TINY, few_cells

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
"""Nine to the tenth values in 600 bytes."""

CHAIN = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60))
"""A list in a list in a list, each by the name of the one before."""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1e-3", 0.001),
        ("[1.5, -2, 0x1F, 1_000]", [1.5, -2, 31, 1000]),
        ("[off, null, ~, 'off', ok]", [False, None, None, "off", "ok"]),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("[1:30, 010, 1:30.5, 0o17, -3]", ["1:30", "010", "1:30.5", 15, -3]),
        ("", None),
        ("{a: &x {k: 1}, b: *x, c: {<<: *x, k: 2}}", {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 2}}),
    ],
)
def test_yaml_gives_plain_values(text, found):
    assert yaml.load(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "the key 'c' is given twice, line 2"),
        ("a: 1\n'a': 2", "the key 'a' is given twice, line 2"),
        ("1: a\n0x1: b", "the key '0x1' is given twice, line 2"),
        ("a: &a {b: *a}", "'a' contains itself, line 1"),
        ("&a [[*a]]", "'a' contains itself, line 1"),
        (BOMB, "more than 50,000 values, line 5"),
        ("a: [" + "x," * 60_000 + "]", "more than 50,000 values"),
        ("[" * 60 + "]" * 60, "nested deeper than 50 levels"),
        (CHAIN, "nested deeper than 50 levels, line 50"),
        ("a: 1\n---\nb: 2", "a second document begins, line 2"),
        ("!!python/object/apply:os.system [true]", "the tag tag:yaml.org,2002:python/object/apply"),
        ("!!binary aGk=", "the tag tag:yaml.org,2002:binary is not allowed"),
        ("? [a]\n: 1", "a key must be a plain value"),
        ("a: " + "9" * 6_000, "a whole number of 6,000 digits"),
        ("k: x\n" * 300_000, "it has 1,500,000 bytes; at most 1,000,000 are read"),
    ],
)
def test_yaml_that_is_refused(text, said):
    began = time.perf_counter()
    with pytest.raises(yaml.NotAllowed) as refused:
        yaml.load(text)
    assert said in str(refused.value)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("text", ["[" * 20_000, "{" * 20_000, "a: 'b", "*x", "\udcff"])
def test_yaml_that_is_none(text):
    with pytest.raises(pyyaml.YAMLError):
        yaml.load(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"model: {lr: 0.1}\nmodel: {lr: 0.2}\n", "c.yaml: the key 'model' is given twice, line 2"),
        (b"model: {lr: &a [*a]}\n", "c.yaml: 'a' contains itself, line 1"),
        (BOMB.encode(), "c.yaml: more than 50,000 values"),
        (b"k: 1\n" * 2_000_000, "c.yaml is larger than 1,000,000 bytes"),
        (b"model: {backbone: \xe9}\n", "c.yaml is not valid YAML: invalid continuation byte"),
        (b"[" * 20_000, "c.yaml is not valid YAML"),
        (b"model: [\n", "c.yaml is not valid YAML: did not find expected node content, line 2"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "sweep", "audit"])
def test_every_commands_file_is_read_strictly(command, content, said, tmp_path, fails):
    config = tmp_path / "c.yaml"
    config.write_bytes(content)
    assert said in fails(command, f"--config={config}")


def test_a_pipe_and_a_device_are_no_configuration(tmp_path, fails):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is not a file" in fails("fit", f"--config={tmp_path / 'pipe'}")
    assert "/dev/zero is not a file" in fails("fit", "--config=/dev/zero")


@pytest.mark.parametrize("given", ["option", "file", "group"])
def test_a_pipe_is_no_options_value(given, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("c.yaml").write_text("data: {class_path: SyntheticDataModule, init_args: {smote: pipe}}\n")
    option = {"option": "--data.smote=pipe", "file": "--config=c.yaml", "group": "--model=pipe"}
    assert "'pipe' is a pipe; give a file" in fails("fit", option[given])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "x.json is nested deeper than 50 levels"),
        (b"[" * 51 + b"]" * 51, "x.json is nested deeper than 50 levels"),
        (b'{"a": 1, "a": 2}', "x.json is not valid JSON: the key 'a' is given twice"),
        (b"[" + b"9" * 6000 + b"]", "x.json is not valid JSON"),
        (b"[NaN]", "x.json is not valid JSON: NaN is not a number"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b"[1e400]", "1e400 is too large"),
        (rb'["\ud800"]', "x.json is not valid JSON"),
        (b"[1", "x.json is not valid JSON"),
        (b"\xff", "x.json is not valid JSON"),
        (b"", "x.json is not valid JSON"),
        (b"[" + b" " * 2000 + b"]", "x.json is larger than 1,000 bytes"),
    ],
)
def test_json_that_is_refused(content, said, tmp_path, monkeypatch):
    monkeypatch.setattr(strict_json, "MAX_BYTES", 1_000 if said.endswith("1,000 bytes") else 10**6)
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError) as refused:
        strict_json.read(tmp_path / "x.json")
    assert said in str(refused.value)


@pytest.mark.parametrize("kind", ["pipe", "device", "missing", "folder"])
def test_json_is_read_from_a_file_alone(kind, tmp_path):
    path = {"device": Path("/dev/zero"), "folder": tmp_path}.get(kind, tmp_path / "x.json")
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(
        UserError, match="cannot read .*x.json" if kind == "missing" else "not a file"
    ):
        strict_json.read(path)


def test_json_is_read_as_it_was_written(tmp_path):
    value = {"a": [1, -2.5, True, None, "\u00e4\u202e", {"b": {}}], "": 2**70}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert strict_json.read(tmp_path / "x.json") == value
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(UserError, match="not a JSON object"):
        strict_json.read_mapping(tmp_path / "x.json")


WRONG = [
    ("wandb.mode", None, "wandb.mode: null is not allowed; expected online, offline, disabled"),
    ("wandb.tags", None, "wandb.tags: null is not allowed; expected a list"),
    ("test", None, "test: null is not allowed; expected true or false"),
    ("runs", None, "runs: null is not allowed; expected a path"),
    ("data.view", None, "data.view: null is not allowed; expected raw, masked"),
    ("data.split.seed", None, "data.split.seed: null is not allowed; expected int"),
    ("data.augment", None, "data.augment: null is not allowed; expected str or a list"),
    ("data.exclude", [None], "data.exclude[0]: null is not allowed; expected str"),
    ("model.lr", None, "model.lr: null is not allowed; expected float"),
    ("model.head.pool", None, "model.head.pool: null is not allowed; expected avg"),
    ("model.phases", [{"epochs": None}], "model.phases[0]: missing epochs"),
    ("checkpoint.monitor", None, "checkpoint.monitor: null is not allowed"),
    ("seed_everything", None, "seed_everything: null is not allowed; expected int"),
    ("seed_everything", True, "seed_everything: expected int; got 'true'"),
    ("trainer.max_epochs", True, "trainer.max_epochs: expected int"),
    ("trainer.sync_batchnorm", None, "trainer.sync_batchnorm: null is not allowed"),
    ("model.lr", float("inf"), "model.lr: inf is not a finite number"),
    ("model.l1", float("nan"), "model.l1: nan is not a finite number"),
    ("model.phases", [{"epochs": 2, "lr": float("inf")}], "model.phases[0].lr: inf is not"),
    ("model.head.dropout", [float("nan")], "model.head.dropout[0]: nan is not a finite number"),
    ("checkpoint.every", float("nan"), "checkpoint.every: nan is not a finite number"),
    ("checkpoint.every", -5, "checkpoint.every: -5.0 is less than 0"),
    ("trainer.gradient_clip_val", float("nan"), "trainer.gradient_clip_val: nan is not a finite"),
    ("data.fill", 10**30, "data.fill: a whole number beyond 64 bits"),
    ("data.image_size", 100_000, "data.image_size: 100000 is more than 4,096"),
    ("data.samples", 10**12, "data.samples: 1000000000000 is more than 1,000,000"),
    ("data.num_workers", 10**9, "data.num_workers: 1000000000 is more than 512"),
    ("model.head.hidden", [10**12], "model.head.hidden: 1000000000000 is more than 65,536"),
    ("data.split.seed", -1, "data.split.seed: -1 is less than 0"),
    ("trainer.num_nodes", -1, "trainer.num_nodes: -1 is not offered; give a number, at least 1"),
    ("model.head", 0, "model.head: expected options, as {pool: ...}; got '0'"),
    ("model.loss", 0.5, "model.loss: expected options, as {name: ...}; got '0.5'"),
    ("data.split", 0.5, "data.split: expected options, as {protocol: ...}; got '0.5'"),
    ("data.cache", True, "data.cache: expected options, as {memory: ...}; got 'true'"),
    ("data.smote", [1], "data.smote: expected options, as {count: ...} or null; got '[1]'"),
    ("model.co_teaching", 0, "model.co_teaching: expected options"),
    ("model.co_teaching", {}, "model.co_teaching: missing forget_rate"),
    ("model.phases", [1], "model.phases[0]: expected options, as {epochs: ...}; got '1'"),
    ("trainer", 3, "trainer"),
    ("wandb", "x", "wandb"),
    ("data.train_labels", "x" * 5_000, "data.train_labels: the path is too long: 'xxx"),
    ("model.weights", "x" * 5_000, "the file name is too long"),
    ("name", "x" * 5_000, "is not a folder name"),
    ("model.backbone", "y" * 500_000, "model.backbone: unknown network 'yyy"),
    ("trainer.callbacks", 3, "trainer.callbacks: expected a list or a class"),
    ("trainer.callbacks", [None], "trainer.callbacks: expected a list or a class"),
    ("trainer.model_registry", "a/b", "trainer.model_registry: a/b is not offered"),
    ("data.augment", [{"name": "flips", "p": float("nan")}], "data.augment"),
    ("model.lr", "1:30", "model.lr: expected float; got '1:30'"),
    ("seed_everything", "010", "seed_everything: expected int; got '010'"),
]


@pytest.mark.parametrize(("path", "value", "said"), WRONG)
def test_a_wrong_value_in_a_file(path, value, said, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "c.yaml"
    config.write_text(pyyaml.safe_dump(merged(EXPERIMENT, {path: value})))
    line = fails("fit", f"--config={config}")
    assert said in line
    assert len(line) <= MAX_MESSAGE
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--test=null", "test: null is not allowed; expected true or false"),
        ("--seed_everything=null", "seed_everything: null is not allowed; expected int"),
        ("--data.image_size=24.5", "data.image_size: expected int or a list of 2 values; got"),
        ("--trainer.callbacks=[null]", "trainer.callbacks: expected a list or a class, as {cla"),
        ("--data=null", "data: expected {class_path: ..., init_args: ...}; got 'null'"),
        ("--model.lr=1:30", "model.lr: expected float; got '1:30'"),
        ("--data.batch_size=010", "data.batch_size: expected int; got '010'"),
        ("--wandb.mode=null", "wandb.mode: null is not allowed; expected online"),
        ("--data.view=null", "data.view: "),
        ("--model.lr=.nan", "model.lr: nan is not a finite number"),
        ("--model.lr=1e999", "model.lr: inf is not a finite number"),
        (f"--model.lr={'9' * 400}", "--model.lr: a whole number of 400 digits"),
        (f"--model.lr={'9' * 6000}", "--model.lr: a whole number of 6,000 digits"),
        ("--data.split={val: 0.1, val: 0.2}", "--data.split: the key 'val' is given twice"),
        ("--data.exclude=&a [*a]", "--data.exclude: 'a' contains itself"),
        (f"--model.head={'[' * 20_000}", "model.head: "),
        ("--model." + "a." * 3_000 + "b=1", "unknown option 'model.a.a"),
        ("--trainer.callbacks=[{class_path: nope.X}]", "trainer.callbacks: cannot use nope.X: No"),
        ("--data=nope.X", "data: "),
        ("--config", "--config: expected a value"),
        ("--name=\x1b[31m", r"'\x1b[31m' is not a folder name"),
        ("--name=\udcff", r"'\udcff' is not a folder name"),
        ("--name=\x1b[31m\udcff/x", r"'\x1b[31m\udcff/x' is not a folder name"),
    ],
)
def test_a_wrong_value_on_the_command_line(option, said, tmp_path, fails):
    line = fails("fit", f"--runs={tmp_path / 'runs'}", *few_cells([option]), *TINY[:3], option)
    assert said in line
    assert line.isprintable()
    assert len(line) <= MAX_MESSAGE


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["report", "{tmp}", "--rope=.nan"], "rope: nan is not a finite number"),
        (["explain", "{tmp}", f"--n={'9' * 30}"], "n: a whole number beyond 64 bits"),
        (["predict", f"--run={'x' * 5_000}", "--images=x"], "run: the path is too long"),
        (["predict", "--run=x", "--images", "y" * 5_000], "images: the path is too long"),
        (["test", f"--run={'x' * 5_000}"], "the file name is too long"),
        (["fit", f"--resume={'x' * 5_000}"], "the file name is too long"),
    ],
)
def test_other_commands_check_their_values(args, said, tmp_path, fails):
    assert said in fails(*(each.format(tmp=tmp_path) for each in args))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": [None]}, "metric[0]: null is not allowed; expected str"),
        ({"trials": float("nan"), "sampler": "random"}, "trials: expected int"),
        ({"time": float("inf"), "sampler": "random"}, "time: inf is not a finite number"),
        ({"space": 3}, "space: expected"),
        ({"space": {"data.view": [{"class_path": "nope.X"}]}}, "space: data.view: "),
        ({"space": {"class_path": "nope.X"}}, "space: class_path: a class cannot be varied"),
        ({"space": {"model.lr": [None]}}, "space: model.lr: "),
        ({"space": {"wandb.mode": [None, "disabled"]}}, "space: wandb.mode: "),
        (
            {"space": {"model.lr": {"low": 0, "high": float("inf")}}},
            "space.model.lr.high: inf is not a finite number",
        ),
        ({"space": {"data.smote": [{"class_path": "os.system"}]}}, "space: "),
        ({"repeat": {"data.split.seed": [None]}}, "repeat: data.split.seed: "),
        ({"repeat": 3}, "repeat: expected"),
        ({"experiment": "x" * 5_000}, "experiment: the path is too long"),
    ],
)
def test_a_sweeps_file_is_checked(sweep_file, fails, tmp_path, changes, said):
    line = fails(*sweep_file(**changes))
    assert said in line
    assert len(line) <= MAX_MESSAGE
    assert not (tmp_path / "runs").exists()


def test_a_null_metric(sweep_file, fails, tmp_path):
    command = sweep_file()
    file = tmp_path / "sweep.yaml"
    file.write_text(file.read_text() + "metric: null\n")
    assert "metric: null is not allowed; expected str or a list" in fails(*command)


def test_null_where_it_means_something_is_taken(fit):
    run = fit("--checkpoint.patience=null", "--data.smote=null", "--wandb.group=null")
    assert yaml.read(run / "config.yaml")["checkpoint"]["patience"] is None


def test_null_on_the_command_line_for_an_option_of_an_option():
    options = ["--data.split.folds=null", "--data.split.test=null", "--data.smote.count=null"]
    data = CellbenchCLI("fit", options).config.data.init_args
    assert (data.split.folds, data.split.test, data.smote.count) == (None, None, None)


# A configuration that was downloaded.

MODULE = "exploding_module"
NAMES = (
    f"{MODULE}.X",
    {"class_path": f"{MODULE}.X"},
    {"class_path": f"{MODULE}.X", "init_args": {}},
    f"{{class_path: {MODULE}.X}}",
    [f"{MODULE}.X"],
    [{"class_path": f"{MODULE}.X", "init_args": {}}],
    {"name": f"{MODULE}.X"},
    [{"name": {"inner": {"class_path": f"{MODULE}.X"}}}],
)
"""Ways to name a class, of which jsonargparse takes each in some place."""


@pytest.fixture
def exploding(tmp_path, monkeypatch):
    """A module whose import ends the test, and a file of configuration that names it."""
    (tmp_path / f"{MODULE}.py").write_text("raise SystemExit('code has run')")
    monkeypatch.syspath_prepend(tmp_path)
    extra = tmp_path / "extra.yaml"
    extra.write_text(json.dumps({"trainer": {"callbacks": [{"class_path": f"{MODULE}.X"}]}}))
    return extra


def places(config, prefix=()):
    """Every place in a configuration."""
    for key, value in config.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from places(value, (*prefix, key))


def with_value(config, place, value):
    changed = copy.deepcopy(config)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def every_option(config):
    """A run's configuration with every option that it may have; those not given are null."""
    whole = copy.deepcopy(config)
    whole["trainer"] |= dict.fromkeys(stored_types()["trainer"].keys() - whole["trainer"].keys())
    return whole


@pytest.mark.slow
def test_no_option_of_a_stored_configuration_names_code(run, exploding):
    """Each of some 130 places gets each way to name a class; what is accepted is parsed."""
    folder = RunFolder(run)
    config = every_option(yaml.read(folder.config))
    checked = list(places(config))
    assert len(checked) > 110
    accepted = set()
    for place in checked:
        for name in (*NAMES, str(exploding), {"__path__": str(exploding)}):
            folder.config.write_text(pyyaml.safe_dump(with_value(config, place, name)))
            try:
                read = read_config(folder, whole=True)
            except UserError:
                continue
            assert isinstance(name, str | list)
            accepted.add(".".join(place))
            if len(accepted) > 1 and name != NAMES[0]:
                continue  # one way for each place is enough to parse
            read |= {"runs": "runs"}
            try:
                CellbenchCLI("fit", [f"--config={json.dumps(read)}"]).instantiate()
            except UserError:
                continue
    assert accepted <= {
        *("name", "runs", "model.backbone", "model.weights", "model.freeze", "wandb.project"),
        *("wandb.entity", "wandb.group", "wandb.tags", "data.init_args.exclude"),
        *("data.init_args.train_labels", "data.init_args.cache.folder", "trainer.devices"),
        *("trainer.default_root_dir", "trainer.gradient_clip_algorithm", "trainer.model_registry"),
        "data.init_args.augment",  # a list of words, which are looked up among the transforms
    }


def test_a_stored_configuration_neither_writes_elsewhere_nor_sends_data(run, fails, tmp_path):
    config = yaml.read(run / "config.yaml")
    config["data"]["init_args"]["cache"] = {"memory": 0, "folder": str(tmp_path / "other")}
    config["wandb"] |= {"mode": "online", "entity": "stranger", "project": "theirs"}
    (run / "config.yaml").write_text(pyyaml.safe_dump(config))
    assert "folder" not in read_config(RunFolder(run), whole=True)["data"]["init_args"]["cache"]
    assert main(["test", "--run", str(run)]) == 0
    assert not (tmp_path / "other").exists()
    (run / "metrics.json").unlink()
    line = fails("fit", "--resume", str(run))
    assert "W&B project 'stranger/theirs'; add --wandb.mode=online" in line
    config["wandb"]["mode"] = "disabled"
    (run / "config.yaml").write_text(pyyaml.safe_dump(config))
    line = fails("fit", "--resume", str(run), "--wandb.mode=online")
    assert "a run goes on as it began; remove --wandb.mode=online" in line


def test_no_further_configuration_is_followed(run, exploding, fails):
    config = yaml.read(run / "config.yaml")
    for key in ("config", "ckpt_path", "resume", "folder", "run", "$schema", "subcommand"):
        (run / "config.yaml").write_text(pyyaml.safe_dump(config | {key: str(exploding)}))
        (run / "metrics.json").rename(run / "metrics.off")
        assert f"unknown option '{key}'" in fails("fit", "--resume", str(run))
        (run / "metrics.off").rename(run / "metrics.json")


@pytest.mark.parametrize("place", ["data.init_args.smote", "model.phases"])
def test_no_command_runs_what_a_stored_configuration_names(
    place, run, exploding, fails, tmp_path, capsys
):
    config = yaml.read(run / "config.yaml")
    bad = with_value(config, place.split("."), f"{MODULE}.X")
    (run / "config.yaml").write_text(pyyaml.safe_dump(bad))
    for command in ("test", "validate"):
        assert f"{run / 'config.yaml'}: " in fails(command, "--run", str(run))
    if place.startswith("data"):
        assert "config.yaml: data" in fails("explain", str(run))
    (run / "metrics.json").rename(tmp_path / "metrics.json")
    assert f"{run / 'config.yaml'}: " in fails("fit", "--resume", str(run))
    (tmp_path / "metrics.json").rename(run / "metrics.json")
    images = tmp_path / "images"
    images.mkdir()
    assert main(["report", str(run)]) in (0, 2)
    assert "code has run" not in capsys.readouterr().out


def test_the_types_of_a_stored_configuration_are_those_of_the_command_line():
    """One place for a fact: what fit takes is what a run's folder may hold, but its own flags."""
    own = CellbenchCLI("fit", []).parser.known.types
    of_command = {"resume", "folder", "ckpt_path", "weights_only"}
    assert own.keys() - stored_types().keys() == of_command
    for name, kind in stored_types().items():
        if not isinstance(kind, option_types.OneOf):
            expected = (
                option_types.parameters(kind) if hasattr(kind, "__dataclass_fields__") else kind
            )
            assert own[name] in (expected, kind), name


# Messages.


def test_a_message_is_one_short_line():
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line("\x1b[31m\x07\u202e\udcff") == r"\x1b[31m\x07\u202e\udcff"
    long = one_line("data.root: there is no folder " + "/x" * 5_000_000 + "; give another")
    assert long.startswith("data.root: there is no folder /x/x")
    assert long.endswith("; give another")
    assert len(long) <= MAX_MESSAGE
    assert len(one_line("a " * 5_000_000)) <= MAX_MESSAGE
    assert len(one_line("\x1b" * 1_000)) <= MAX_MESSAGE
    short = "xy " * (MAX_MESSAGE // 3) + "z"
    assert one_line(short) == short


def test_a_dataset_that_cannot_be_imported_stops_no_other(tmp_path, monkeypatch, fails, capsys):
    from cellbench.cli.options import data_modules as names
    from cellbench.data import datasets

    source = "import no_such_package\n\nclass BrokenDataModule:\n    ...\n"
    (tmp_path / "broken.py").write_text(source)
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path)])
    names.unusable_modules.cache_clear()
    try:
        assert "SyntheticDataModule" in names.data_modules()
        assert "SyntheticDataModule" in names.data_modules()
        warned = capsys.readouterr().err
        assert warned.count("broken.py cannot be imported") == 1
        assert "No module named 'no_such_package'" in warned
        reason = "broken.py cannot be imported: ModuleNotFoundError: No module named"
        assert reason in fails("fit", "--data=BrokenDataModule", *TINY[1:])
        assert reason in fails("fetch", "broken")
    finally:
        names.unusable_modules.cache_clear()


@pytest.mark.parametrize(
    "text", ["1e3", "0o17", "010", "1:30", "2026-11-25", "=", "on", "null", "~"]
)
def test_text_that_looks_like_a_number_is_written_and_read_as_text(text):
    assert yaml.load(yaml.dump({"name": text, text: [text, 1e-7, 3, None]})) == {
        "name": text,
        text: [text, 1e-7, 3, None],
    }


def test_the_place_of_a_dataset_in_an_earlier_version_is_still_read(tmp_path):
    file = tmp_path / "printed.yaml"
    file.write_text("data: {class_path: cellbench.data.synthetic.SyntheticDataModule}\n")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--config={file}", "--print_config"])
    assert stopped.value.code == 0
