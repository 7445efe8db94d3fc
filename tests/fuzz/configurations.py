"""Experiments, command lines, sweeps' files and Lightning's own parts."""

import copy
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz import damage, odd_values
from tests.fuzz.box import Box, Input
from tests.fuzz.template import EXPERIMENT, PREDICT, SWEEPS, TINY, Template

_HERE = "VALUE-STANDS-HERE"

_SIZES = frozenset(
    {"samples", "slides", "image_size", "max_epochs", "batch_size", "augment_variants", "hidden"}
    | {"trials", "time", "n", "epochs", "accumulate_grad_batches", "limit_train_batches"}
)
"""Options by which a command may rightly have much to do."""

_GROUPS = frozenset({"data", "data.init_args", "model", "trainer"})
"""Groups that make the experiment a small one: without their values it takes minutes."""


def _lasts(path: str, value: str) -> bool:
    if path in _GROUPS and value in ("{}", "null", "~"):
        return True
    digits = value.replace("_", "").removeprefix("0x")
    large = digits.isdigit() and 3 < len(digits) < 25
    return path.rpartition(".")[2] in _SIZES and (large or value in ("1.0e+308", ".inf"))


def _asks_network(path: str, value: str) -> bool:
    return path.startswith(("wandb", "model.weights"))


def flat(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted paths of all keys, those of groups as well."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Puts a value at a dotted path."""
    *parents, last = path.split(".")
    for parent in parents:
        if not isinstance(config.get(parent), dict):
            config[parent] = {}
        config = config[parent]
    config[last] = value


def with_value(config: dict[str, Any], path: str, value: str) -> str:
    """A configuration's text, with a YAML text at a dotted path."""
    changed = copy.deepcopy(config)
    put(changed, path, _HERE)
    return yaml.safe_dump(changed, sort_keys=False).replace(_HERE, value)


def experiments(rng: Random, box: Box, template: Template) -> Input:
    """An experiment's file that is wrong in one place, for each command that takes one."""
    path = box.work / "experiment.yaml"
    given = Input("experiments", "", _taking_experiments(rng, box), own_code=True)
    if rng.random() < 0.7:
        key = rng.choice(list(flat(template.experiment)))
        value = odd_values.draw(rng)
        path.write_text(with_value(EXPERIMENT, key, value), errors="surrogateescape")
        given.what = f"{key}: {odd_values.shown(value)}"
        given.own_code = "!!python" not in value
        given.may_last = _lasts(key, value)
        given.network = _asks_network(key, value)
    else:
        given.what = _other_yaml(rng, path, list(flat(template.experiment)))
        given.may_last = "a dropped key" in given.what
    return given


def _taking_experiments(rng: Random, box: Box) -> list[str]:
    command = rng.choices(("fit", "audit", "sweep", "relabel"), (90, 2, 7, 1))[0]
    if command == "sweep":
        keys = {"experiment": "experiment.yaml"} | SWEEPS["tpe"]
        (box.work / "sweep.yaml").write_text(yaml.safe_dump(keys))
        return ["sweep", "--config=sweep.yaml"]
    if command == "audit":
        return ["audit", "--config=experiment.yaml"]
    if command == "relabel":
        return ["relabel", *TINY, "--noise_rate=0.2"]
    return ["fit", *TINY]


def _other_yaml(rng: Random, path: Path, keys: list[str]) -> str:
    """Changes the structure of a YAML file, its encoding or its bytes; says what it has done."""
    config = yaml.safe_load(path.read_text())
    top = rng.choice(list(config))
    text = path.read_text()
    ways = {
        "a key twice": lambda: text + f"{top}: 3\n",
        "a key twice inside": lambda: text.replace("  ", "  x: 1\n  x: 2\n  ", 1),
        "no such key": lambda: text + "smapler: 3\n",
        "a key in a wrong group": lambda: with_value(config, f"{top}.{rng.choice(keys)}", "1"),
        "a renamed key": lambda: text.replace(top, f"{top}s"),
        "a dropped key": lambda: yaml.safe_dump({k: v for k, v in config.items() if k != top}),
        "a group that is a list": lambda: yaml.safe_dump(config | {top: [config[top]]}),
        "a list at the top": lambda: yaml.safe_dump([config]),
        "a scalar at the top": lambda: odd_values.draw(rng),
        "two documents": lambda: text + "---\n" + text,
        "a directive": lambda: "%YAML 9.9\n---\n" + text,
        "comments alone": lambda: "# nothing\n",
        "an unclosed quote": lambda: text + "x: 'abc\n",
        "an unclosed list": lambda: text + "x: [1, 2\n",
        "an awkward key": lambda: text + f"? {odd_values.draw(rng)}\n: 1\n",
        "a long key": lambda: text + "k" * 5000 + ": 1\n",
        "an ESC key": lambda: text + '"\\e[31mkey": 1\n',
        "many keys": lambda: text + "".join(f"key{i}: {i}\n" for i in range(200_000)),
        "many keys inside": lambda: (
            text + "x:\n" + "".join(f"  k{i}: {i}\n" for i in range(99_999))
        ),
        "many list items": lambda: text + "x:\n" + "- 1\n" * 500_000,
        "itself": lambda: "&a\nmodel: *a\n",
        "itself below": lambda: "data: &a {init_args: *a}\n",
        "a merge of itself": lambda: "model: &a\n  <<: *a\n",
        "a bomb": lambda: f"x: {odd_values.bomb()}\n",
        "a bomb of merges": lambda: _merges(),
        "deep blocks": lambda: "".join(" " * i + f"k{i}:\n" for i in range(2000)),
        "deep lists": lambda: "x: " + "- " * 10_000 + "1\n",
        "config in it": lambda: text + "config: lure.yaml\n",
    }
    way = rng.choice([*ways, "encoding", "encoding", "bytes", "bytes", "no file"])
    if way == "encoding":
        return damage.encode(rng, path)
    if way == "bytes":
        return damage.corrupt(rng, path)
    if way == "no file":
        return damage.replace(rng, path)
    path.write_text(ways[way](), errors="surrogateescape")
    return f"{path.name}: {way} ({top})"


def _merges() -> str:
    lines = ["a0: &a0 {k0: 1, l0: 2}"]
    lines += [
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}], k{i}: 1}}" for i in range(1, 26)
    ]
    return "\n".join(lines) + "\n"


_ARGUMENTS = (
    *("", " ", "-", "--", "---", "=", "--=", "--=x", "x", "--config", "--config=", "--x" * 2000),
    *(
        "--config=nowhere",
        "--config=/dev/zero",
        "--config=fifo",
        "--config=.",
        "--config=/dev/full",
    ),
    *("--config=experiment.yaml", "--run", "--run=", "--run=.", "--run=/", "--resume", "--resume="),
    *("--resume=auto", "--resume=run", "--folder=run", "--folder=", "--data.help", "--data.help=x"),
    *("--data.help=OsModule", "--print_config", "--print_config=x", "--model.help=x", "-h=3", "-c"),
    *("--trainer.callbacks=x", "--trainer.callbacks+=x", "--trainer.logger+=hpv_model.helper.X"),
    *("--data=hpv_model.helper.X", "--data", "--data=", "--data={}", "--model=3", "--trainer=[]"),
    *("--\x1b[31m", "--name=\x1b[31m", "--name=\udcff", "\udcff", "--\udcff=1", "--name=a\nb"),
    *(
        "--config=\x1b[31m\nx",
        "--config=\udcff.yaml",
        "--x=" + "y" * 100_000,
        "--config=" + "z" * 5000,
    ),
    *("--name=..", "--name=.", "--name=", "--name=/", "--name=a/b", "--name=CON", "--name= "),
    *("--name=" + "n" * 300, "--ckpt_path=fifo", "--ckpt_path=/dev/zero", "--runs=experiment.yaml"),
    *("--output=", "--output=.", "--output=/", "--output=fifo", "--to=", "--n=0", "--help=1"),
)


def command_lines(rng: Random, box: Box, template: Template) -> Input:
    """A command line of any command that is wrong in one place."""
    command = rng.choices(
        (
            "fit",
            "test",
            "validate",
            "predict",
            "report",
            "audit",
            "sweep",
            "fetch",
            "explain",
            "export",
            "relabel",
            "none",
        ),
        (48, 6, 4, 10, 10, 2, 7, 6, 5, 0.5, 1, 2),
    )[0]
    base = _command(command, rng, box, template)
    what = rng.choices(("option", "argument", "drop", "twice", "split"), (70, 20, 4, 3, 3))[0]
    if what == "option":
        options = template.options.get(command) or list(flat(template.experiment))
        option = rng.choice([each for each in options if each not in ("help", "debug")])
        option = option.replace("data.init_args", "data")
        value = odd_values.draw(rng, hostile=0.1)
        if option in ("to", "runs") and value in (".", "..", "/"):
            value = "data"  # the user would ask for files there, or for a lock beside it
        given = Input("command lines", f"--{option}={odd_values.shown(value)}", base)
        given.args.append(f"--{option}={value}")
        given.own_code = "!!python" not in value
        given.may_last = _lasts(option, value) or command == "sweep"
        given.network = _asks_network(option, value)
        return given
    position = rng.randint(0, len(base))
    if what == "argument" or len(base) < 2:
        argument = rng.choice(_ARGUMENTS)
        return Input(
            "command lines",
            f"{odd_values.shown(repr(argument))} at {position}",
            [*base[:position], argument, *base[position:]],
            own_code=True,
        )
    position = rng.randrange(1, len(base))
    given = Input("command lines", f"{what} at {position}", base)
    if what == "drop":
        given.may_last = command == "fit"  # the epochs of the default, on the default data
        base.pop(position)
    elif what == "twice":
        base.insert(position, base[position])
    else:
        base[position : position + 1] = base[position].split("=", 1)
    return given


def _command(command: str, rng: Random, box: Box, template: Template) -> list[str]:
    """A good command line, and what it needs in the working folder."""
    if command in ("test", "validate", "predict", "report", "explain", "export"):
        template.copy("run", box)
    if command == "predict":
        template.copy("cells", box)
    if command == "sweep":
        keys = {"experiment": "experiment.yaml"} | SWEEPS["tpe"]
        (box.work / "sweep.yaml").write_text(yaml.safe_dump(keys))
    if command == "fetch":
        template.archive(box, "archive.zip")
    return {
        "fit": ["fit", *TINY],
        "test": ["test", "--run=run"],
        "validate": ["validate", "--run=run"],
        "predict": [*PREDICT],
        "report": ["report", "run"],
        "explain": ["explain", "run", "--n=4"],
        "export": ["export", "--run=run"],
        "audit": ["audit", "--config=experiment.yaml"],
        "sweep": ["sweep", "--config=sweep.yaml"],
        "fetch": ["fetch", "wbc9", "--archive=archive.zip", "--to=data"],
        "relabel": ["relabel", *TINY, "--noise_rate=0.2"],
        "none": [rng.choice(("", "fitt", "-x", "\x1b[31m", "\udcff", "x" * 5000, "../fit"))],
    }[command]


_PATHS = (
    "model.lr",
    "data.view",
    "model.l2",
    "model.backbone",
    "data.split.folds",
    "model.optimizer",
)


def sweep_files(rng: Random, box: Box, template: Template) -> Input:
    """A sweep's file that is wrong in one place."""
    name = rng.choice(list(SWEEPS))
    keys = copy.deepcopy({"experiment": "experiment.yaml"} | SWEEPS[name])
    path = box.work / "sweep.yaml"
    given = Input("sweep files", "", ["sweep", "--config=sweep.yaml"], may_last=True, limit=20)
    chance = rng.random()
    given.own_code = True
    if chance < 0.25:
        path.write_text(yaml.safe_dump(keys))
        given.what = _other_yaml(rng, path, list(keys))
        return given
    value = odd_values.draw(rng)
    given.own_code = "!!python" not in value
    if chance < 0.55:
        known = ("experiment", "space", "metric", "direction", "sampler", "seed", "pruner")
        key = rng.choice((*known, "trials", "time", "timeout", "repeat"))
        text = with_value({k: v for k, v in keys.items() if k != key}, _HERE + "K", value)
        path.write_text(text.replace(_HERE + "K", key), errors="surrogateescape")
        given.what = f"{key}: {odd_values.shown(value)}"
        return given
    group = rng.choice(("space", "space", "space", "repeat"))
    option = rng.choice(
        (*_PATHS, *(p.replace("data.init_args", "data") for p in flat(template.experiment)))
    )
    inner = rng.choice(
        (
            "VALUE",
            "[VALUE]",
            "[VALUE, VALUE]",
            "[raw, VALUE]",
            "{low: VALUE, high: 1.0}",
            "{low: 0.1, high: VALUE}",
            "{low: 0.1, high: 0.2, log: VALUE}",
            "{choices: VALUE}",
            "{low: 1, high: 3, step: VALUE}",
            "{choices: [1], when: VALUE}",
            "{VALUE: 1}",
            "{choices: [1], when: {model.lr: VALUE}}",
        )
    )
    text = inner.replace("VALUE", value)
    keys.setdefault(group, {})[_HERE + "K"] = _HERE
    body = yaml.safe_dump(keys, sort_keys=False).replace(f"{_HERE}K", option)
    path.write_text(body.replace(_HERE, text), errors="surrogateescape")
    given.what = f"{group}: {option}: {odd_values.shown(text)}"
    given.network = _asks_network(option, value)
    return given


_CALLBACKS = (
    *("LearningRateMonitor", "EarlyStopping", "ModelCheckpoint", "Timer", "RichProgressBar"),
    *(
        "TQDMProgressBar",
        "RichModelSummary",
        "ModelSummary",
        "DeviceStatsMonitor",
        "LambdaCallback",
    ),
    *("StochasticWeightAveraging", "GradientAccumulationScheduler", "BackboneFinetuning"),
    *("BatchSizeFinder", "LearningRateFinder", "OnExceptionCheckpoint", "ModelPruning", "Callback"),
    *("ThroughputMonitor", "WeightAveraging", "EMAWeightAveraging", "BasePredictionWriter"),
    *("PredictionWriter", "ProgressBar", "SpikeDetection", "Checkpoint", "BaseFinetuning"),
)
_CALLBACK_OPTIONS = (
    *("monitor=val/nothing", "monitor=val/loss", "monitor=null", "monitor=train/loss", "mode=up"),
    *("patience=-1", "save_top_k=-2", "save_top_k=3", "every_n_epochs=0", "dirpath=/dev/full"),
    *("swa_lrs=-1", "swa_lrs=0.1", "scheduling={0: 2}", "scheduling={}", "duration=x"),
    *("duration=00:00:00:01", "logging_interval=minute", "unfreeze_backbone_at_epoch=1"),
    *("pruning_fn=l1_unstructured", "filename='{epoch}/{nothing}'", "stopping_threshold=.nan"),
    *("check_finite=true", "strict=false", "log_rank_zero_only=true", "verbose=true", "leave=x"),
)
_TRAINER = (
    *("logger=true", "logger=CSVLogger", "logger=TensorBoardLogger", "logger=WandbLogger"),
    *("logger=MLFlowLogger", "logger=CometLogger", "logger=NeptuneLogger", "logger=[true]"),
    *(
        "logger={class_path: CSVLogger, init_args: {save_dir: logs}}",
        "logger=[CSVLogger, CSVLogger]",
    ),
    *("profiler=simple", "profiler=advanced", "profiler=pytorch", "profiler=xla", "profiler=x"),
    *("plugins=[x]", "plugins=ddp", "plugins=16-mixed", "plugins=SLURMEnvironment", "plugins=3"),
    *("strategy=fsdp", "strategy=deepspeed", "strategy=ddp", "strategy=x", "accelerator=tpu"),
    *("accelerator=mps", "accelerator=x", "accelerator=cuda", "precision=64-true", "precision=x"),
    *(
        "precision=transformer-engine",
        "precision=16-mixed",
        "devices=auto",
        "devices=-1",
        "devices=2",
    ),
    *("devices=1000000", "devices=[0, 0]", "devices='0,1'", "num_nodes=2", "num_nodes=0"),
    *("min_epochs=5", "min_steps=5", "gradient_clip_val=-1", "gradient_clip_algorithm=x"),
    *("gradient_clip_val=.nan", "detect_anomaly=true", "benchmark=x", "deterministic=true"),
    *("inference_mode=false", "log_every_n_steps=0", "log_every_n_steps=-1", "model_registry=x"),
    *("num_sanity_val_steps=2", "num_sanity_val_steps=-1", "enable_model_summary=true"),
    *("limit_predict_batches=1", "enable_progress_bar=true", "callbacks=3", "callbacks=[3]"),
)


def lightning_parts(rng: Random, box: Box, template: Template) -> Input:
    """Lightning's own callbacks, loggers, profilers and options, most of which cannot work here."""
    args = ["fit", *TINY]
    if rng.random() < 0.5:
        args.append(f"--trainer.{rng.choice(_TRAINER)}")
    else:
        callback = rng.choice(_CALLBACKS)
        args.append(f"--trainer.callbacks+={callback}")
        args += [
            f"--trainer.callbacks.{option}"
            for option in rng.sample(_CALLBACK_OPTIONS, rng.choice((0, 1, 1, 2)))
        ]
    if rng.random() < 0.2:
        args.append(
            rng.choice(("--tensorboard=true", "--label_history=true", "--model.schedule=plateau"))
        )
    what = " ".join(args[len(TINY) + 1 :])
    return Input("Lightning parts", what, args, network="Wandb" in what or "Comet" in what)
