"""Folders that somebody else has made: runs, checkpoints and sweeps."""

import json
import os
import pickle
import sqlite3
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

from cellbench.utils import torch_files
from tests.fuzz import damage, odd_values
from tests.fuzz.box import Box, Input, Outcome
from tests.fuzz.configurations import flat, with_value
from tests.fuzz.template import PREDICT, Template

_READERS = {
    "test": ["test", "--run=run"],
    "validate": ["validate", "--run=run"],
    "predict": [*PREDICT],
    "explain": ["explain", "run", "--n=4"],
    "report": ["report", "run"],
    "export": ["export", "--run=run"],
    "resume": ["fit", "--resume=run"],
}


def run_folders(rng: Random, box: Box, template: Template) -> Input:
    """A run's folder with one file that is damaged, hostile or missing."""
    command = rng.choices(tuple(_READERS), (20, 10, 15, 15, 21, 1, 18))[0]
    template.copy("begun" if command == "resume" else "run", box)
    if command == "predict":
        template.copy("cells", box)
    given = Input("run folders", "", list(_READERS[command]))
    run = box.work / "run"
    chance = rng.random()
    if chance < 0.5:
        config = yaml.safe_load((run / "config.yaml").read_text())
        # Every option, and places where no option is.
        key = rng.choice((*flat(config), *flat(template.experiment), "config", "data.config"))
        key = rng.choice((key, key, key, f"{key}.config", f"{key}.class_path"))
        value = odd_values.draw(rng, hostile=0.6)
        text = with_value(config, key, value)
        (run / "config.yaml").write_text(text, errors="surrogateescape")
        given.what = f"config.yaml: {key}: {odd_values.shown(value)}"
        return given
    if chance < 0.55:
        link = run / "figures"
        target = rng.choice(("../../outside", "/etc", "figures", "/dev"))
        if rng.random() < 0.7:
            link.mkdir(exist_ok=True)
            link = link / rng.choice(
                ("history.png", "confusion.png", "roc.png", "attributions.png")
            )
            target = rng.choice(("../../../outside/secret.txt", "/etc/passwd", "/dev/zero", "x"))
        link.symlink_to(target)
        given.what = f"{link.name} is a link to {target}"
        given.args = rng.choice((given.args, _READERS["report"]))
        return given
    names = [p for p in sorted(run.iterdir()) if p.is_file() and not p.name.startswith(".")]
    path = rng.choice(names)
    ways: list[Callable[[Random, Path], str]] = [damage.replace, damage.corrupt, damage.encode]
    if path.suffix == ".json":
        ways += [damage.change_json] * 5
    if path.suffix == ".csv":
        ways += [damage.change_csv] * 5
    given.what = rng.choice(ways)(rng, path)
    return given


class _Evil:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ../canary",)


def _evil_import() -> bytes:
    return b"chpv_model.helper\nmake\n(tR."


def _set_nan(checkpoint: dict[str, Any], rng: Random) -> str:
    weights = [w for w in checkpoint["state_dict"].values() if w.is_floating_point()]
    value = rng.choice((float("nan"), float("inf")))
    for weight in rng.sample(weights, rng.choice((1, len(weights)))):
        weight.fill_(value)
    return f"weights of {value}"


def _reshape(checkpoint: dict[str, Any], rng: Random) -> str:
    state = checkpoint["state_dict"]
    name = rng.choice(list(state))
    value = rng.choice(
        (
            torch.zeros(1),
            torch.zeros(0),
            torch.zeros(2, 3, 4),
            torch.zeros(3, dtype=torch.int64),
            torch.zeros(3, dtype=torch.complex64),
            None,
            "x",
            [1],
            state[name].double(),
            torch.zeros(5).to_sparse(),
            torch.zeros(1).expand(10**12),
            state[name].t,
        )
        if state[name].dim() < 3
        else (torch.zeros(1), state[name].half(), state[name][:1], state[name].transpose(0, 1))
    )
    state[name] = None if callable(value) else value
    return f"another {name}"


def _drop(checkpoint: dict[str, Any], rng: Random) -> str:
    holder, key = _place(checkpoint, rng)
    del holder[key]
    return f"no {key}"


def _rename(checkpoint: dict[str, Any], rng: Random) -> str:
    holder, key = _place(checkpoint, rng)
    holder[rng.choice((f"{key}x", 3, None, ("a",)))] = holder.pop(key)
    return f"another name for {key}"


def _set(checkpoint: dict[str, Any], rng: Random) -> str:
    holder, key = _place(checkpoint, rng)
    value = rng.choice(
        (
            None,
            True,
            0,
            -1,
            1,
            100000,
            10**30,
            1.5,
            float("nan"),
            "",
            "x",
            "x" * 5000,
            "\x1b[31m",
            [],
            {},
            [1],
            [None],
            {"a": 1},
            (-1, -1),
            (0, 0),
            (100000, 100000),
            ("x", "y"),
            (32,),
            torch.zeros(3),
            "hpv_model.helper.X",
            "timm/x",
            "vit_b_16",
            "../x",
            [[]],
            2**63,
            b"x",
        )
    )
    holder[key] = value
    return f"{key} is {str(value)[:30]!r}"


def _place(checkpoint: dict[str, Any], rng: Random) -> tuple[dict[Any, Any], Any]:
    """A key at any depth, the weights' among the others."""
    holder: dict[Any, Any] = checkpoint
    while True:
        key = rng.choice(list(holder))
        inner = holder[key]
        if not isinstance(inner, dict) or not inner or rng.random() < 0.3:
            return holder, key
        holder = inner


def checkpoints(rng: Random, box: Box, template: Template) -> Input:
    """A run whose checkpoint is damaged or made by somebody else."""
    command = rng.choices(tuple(_READERS), (20, 8, 35, 10, 2, 1, 24))[0]
    template.copy("begun" if command == "resume" else "run", box)
    given = Input("checkpoints", "", list(_READERS[command]))
    if command == "predict":
        template.copy("cells", box)
        good = template.predicted

        def same(work: Path, outcome: Outcome) -> str | None:
            out = work / "out.csv"
            if outcome.code == 0 and out.read_text() != good:
                return "nan" if "nan" in out.read_text() else "other probabilities"
            return None

    name = "last" if command == "resume" else "best"
    path = box.work / "run" / "checkpoints" / f"{name}.ckpt"
    way = rng.choices(("bytes", "no file", "value", "foreign", "nan"), (25, 8, 45, 15, 7))[0]
    if way == "bytes":
        given.what = damage.corrupt(rng, path)
        if command == "predict":
            given.check = same
    elif way == "no file":
        given.what = damage.replace(rng, path)
        given.refused = name == "best" and command != "report"
    elif way == "foreign":
        given.what = _foreign(rng, path)
        given.refused = command != "report"
    else:
        checkpoint = torch.load(path, weights_only=True)
        change = _set_nan if way == "nan" else rng.choice((_drop, _set, _set, _reshape, _rename))
        given.what = f"{name}.ckpt: {change(checkpoint, rng)}"
        if rng.random() < 0.75:  # else the digest alone would find most of them
            checkpoint = _sealed(checkpoint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(checkpoint, path)
        if way == "nan" and command in ("predict", "test", "validate", "explain"):
            given.refused = True
    return given


def _sealed(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with the digest of what it holds now, as whoever changes it can write one."""
    try:
        return torch_files.seal(checkpoint)
    except Exception:  # tensors that have no bytes
        return checkpoint


def _foreign(rng: Random, path: Path) -> str:
    """Writes something that is no checkpoint of cellbench's."""
    ways: dict[str, Callable[[], Any]] = {
        "a pickle that runs code": lambda: path.write_bytes(pickle.dumps(_Evil())),
        "a pickle that imports": lambda: path.write_bytes(_evil_import()),
        "a pickle of plain values": lambda: path.write_bytes(pickle.dumps({"state_dict": {}})),
        "a zip with code": lambda: _repack(path, pickle.dumps(_Evil(), protocol=2)),
        "a zip that imports": lambda: _repack(path, _evil_import()),
        "a zip with a deep pickle": lambda: _repack(path, b"\x80\x02" + b"]" * 100_000 + b"."),
        "a zip of no pickle": lambda: _repack(path, b"hello"),
        "a foreign zip": lambda: _zip(path, {"a.txt": b"hello"}),
        "an empty zip": lambda: _zip(path, {}),
        "a zip bomb": lambda: _zip(
            path, {"best/data.pkl": bytes(60 << 20), "best/version": b"3\n", "best/data/0": b""}
        ),
        "an empty dictionary": lambda: torch.save({}, path),
        "a tensor": lambda: torch.save(torch.zeros(3), path),
        "a list": lambda: torch.save([1, 2], path),
        "weights alone": lambda: torch.save(
            torch.load(path, weights_only=True)["state_dict"], path
        ),
        "a network": lambda: torch.save(torch.nn.Linear(2, 2), path),
        "the old format": lambda: torch.save(
            {"state_dict": {"a": torch.zeros(2)}}, path, _use_new_zipfile_serialization=False
        ),
        "twice the same member": lambda: _duplicate(path),
    }
    way = rng.choice(list(ways))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ways[way]()
    return f"{path.name} is {way}"


def _repack(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    _zip(path, members | {name: pickled}, zipfile.ZIP_STORED)


def _zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)


def _duplicate(path: Path) -> None:
    with zipfile.ZipFile(path) as old:
        name = next(name for name in old.namelist() if name.endswith("data.pkl"))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, pickle.dumps(_Evil(), protocol=2))


def sweep_folders(rng: Random, box: Box, template: Template) -> Input:
    """A sweep's folder that is damaged or made by somebody else, on which the sweep goes on."""
    name = rng.choices(("grid", "cmaes", "tpe"), (2, 4, 2))[0]
    template.copy(name, box)
    folder = box.work / "runs" / "sweep"
    keys = yaml.safe_load((box.work / "sweep.yaml").read_text())
    if "trials" in keys:
        keys["trials"] += 1
        (box.work / "sweep.yaml").write_text(yaml.safe_dump(keys, sort_keys=False))
    args = ["sweep", "--config=sweep.yaml", *(["--storage=sqlite"] if name == "tpe" else [])]
    given = Input("sweep folders", "", args, may_last=True, limit=30)
    if rng.random() < 0.15:
        given.args = ["report", "runs/sweep"]
    storage = folder / "study.db" if name == "tpe" else folder / "study.journal"
    chance = rng.random()
    if chance < 0.25 and name != "tpe":
        given.what = _evil_journal(rng, storage)
    elif chance < 0.25:
        given.what = _evil_database(rng, storage)
    elif chance < 0.4:
        given.what = damage.corrupt(rng, storage)
    elif chance < 0.6 and name != "tpe":
        given.what = _change_journal(rng, storage)
    else:
        path = rng.choice([p for p in sorted(folder.rglob("*")) if p.is_file() and p != storage])
        ways: list[Callable[[Random, Path], str]] = [damage.replace, damage.corrupt]
        ways += [damage.change_json] if path.suffix == ".json" else []
        ways += [damage.change_csv] if path.suffix == ".csv" else []
        ways += [_change_yaml] * 3 if path.suffix == ".yaml" else []
        given.what = rng.choice(ways)(rng, path)
    return given


def _change_yaml(rng: Random, path: Path) -> str:
    config = yaml.safe_load(path.read_text())
    key, value = rng.choice(list(flat(config))), odd_values.draw(rng)
    path.write_text(with_value(config, key, value), errors="surrogateescape")
    return f"{path.name}: {key}: {odd_values.shown(value)}"


# Optuna's numbers of a journal's operations.
_CREATE_TRIAL, _SET_ATTRIBUTE = 4, 9


def _evil_journal(rng: Random, path: Path) -> str:
    """Puts a pickle into a journal where a sampler keeps its state; all trials get it."""
    evil = rng.choice((pickle.dumps(_Evil()), _evil_import())).hex()
    lines, trial = [], 0
    for line in map(json.loads, path.read_text().splitlines()):
        lines.append(line)
        if line["op_code"] == _CREATE_TRIAL:  # once it is finished, nothing can be added
            state = {"cma:optimizer:0": evil, "cma:generation": 0}
            for key, value in state.items():
                own = {"op_code": _SET_ATTRIBUTE, "worker_id": "x", "trial_id": trial}
                lines.append(own | {"system_attr": {key: value}})
            trial += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"{path.name}: a pickle as the sampler's state"


def _evil_database(rng: Random, path: Path) -> str:
    """Puts a pickle into a database where a sampler would keep its state, or spoils its tables."""
    evil = rng.choice((pickle.dumps(_Evil()), _evil_import())).hex()
    changes = (
        f"INSERT INTO trial_system_attributes (trial_id, key, value_json) "
        f"VALUES (1, 'cma:optimizer:0', '\"{evil}\"')",
        "UPDATE trial_values SET value = NULL",
        "UPDATE trial_params SET param_value = 1e300",
        "UPDATE trial_params SET distribution_json = '{}'",
        "UPDATE trials SET state = 'WAITING'",
        "UPDATE trials SET state = 'x'",
        "UPDATE trials SET number = -1",
        "UPDATE study_user_attributes SET value_json = 'null'",
        "UPDATE study_user_attributes SET value_json = 'x'",
        "DELETE FROM study_user_attributes",
        "DELETE FROM trial_params",
        "DROP TABLE trials",
        "DROP TABLE alembic_version",
        "UPDATE version_info SET schema_version = 99",
        "UPDATE studies SET study_name = 'other'",
        "UPDATE study_directions SET direction = 'MINIMIZE'",
    )
    change = rng.choice(changes)
    connection = sqlite3.connect(path)
    connection.execute(change)
    connection.commit()
    connection.close()
    return f"{path.name}: {odd_values.shown(change)}"


def _change_journal(rng: Random, path: Path) -> str:
    """Changes a record of a journal."""
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    record = json.loads(lines[number])
    way = rng.choice(("value", "value", "value", "drop", "twice", "swap", "scalar", "half"))
    key = rng.choice(list(record))
    if way == "value":
        record[key] = rng.choice(damage.JSON_VALUES)
        lines[number] = json.dumps(record)
    elif way == "drop":
        del lines[number]
    elif way == "twice":
        lines.insert(number, lines[number])
    elif way == "swap":
        lines.reverse()
    elif way == "scalar":
        lines[number] = json.dumps(rng.choice(damage.JSON_VALUES))
    else:
        lines[number] = lines[number][: len(lines[number]) // 2]
    path.write_text("\n".join(lines) + "\n")
    return f"{path.name}: {way} of {key} in line {number}"
