"""The samplers of sweeps: what they draw, and what of a storage they believe."""

import json
import pickle
import random
import sqlite3
import time
from contextlib import closing

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.folder import SweepFolder
from cellbench.sweeps.results import write_best, write_trials
from cellbench.sweeps.samplers import _from_unit, _to_unit, build_sampler
from cellbench.sweeps.study import Study
from cellbench.utils.errors import UserError

SPACE = {
    "model.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "model.l2": {"low": 0.0, "high": 1.0},
    "data.batch_size": {"low": 4, "high": 64},
}


CREATE_TRIAL = 4
"""The journal's number for the beginning of a trial."""


def sweep(sampler="cmaes", space=SPACE):
    return SweepConfig("x.yaml", space, sampler=sampler, trials=60, direction="minimize")


def value_of(point):
    return (point["model.l2"] - 0.8) ** 2 + (point["data.batch_size"] - 50) ** 2 / 3600


def run(folder, trials, sampler="cmaes"):
    """Runs so many trials of a sweep in a folder, as a command would; returns all points."""
    config = sweep(sampler)
    study = Study("s", config, {"space": SPACE}, folder, "journal", 1)
    for _ in range(trials):
        trial, point = study.ask()
        study.tell(trial, TrialState.COMPLETE, [value_of(point)])
    return [(trial.params, trial.values) for trial in study.trials()]


class _Rogue:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def poison(folder, proof):
    """Puts a pickle into every trial of a journal, where Optuna's own sampler looks for one."""
    text = pickle.dumps(_Rogue(proof)).hex()
    journal = folder / "study.journal"
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    for entry in entries:
        if entry["op_code"] == CREATE_TRIAL:
            entry.setdefault("system_attrs", {})["cma:optimizer:0"] = text
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    storage = JournalStorage(JournalFileBackend(str(journal)))
    trials = optuna.load_study(study_name="s", storage=storage).trials
    assert all(trial.system_attrs["cma:optimizer:0"] == text for trial in trials)


@pytest.mark.parametrize("sampler", ["cmaes", "tpe", "random", "qmc"])
def test_a_journals_pickle_is_not_read(tmp_path, sampler):
    for name in ("whole", "poisoned"):
        (tmp_path / name).mkdir()
    expected = run(tmp_path / "whole", 14, sampler)
    run(tmp_path / "poisoned", 10, sampler)
    proof = tmp_path / "code has run"
    poison(tmp_path / "poisoned", proof)
    found = run(tmp_path / "poisoned", 4, sampler)
    assert not proof.exists()
    assert found == expected


def test_cmaes_finds_what_random_does_not(tmp_path):
    """Its last dozen of 60 trials is close to the optimum, and began far from it."""
    values = {}
    for sampler in ("cmaes", "random"):
        (tmp_path / sampler).mkdir()
        values[sampler] = [value[0] for _, value in run(tmp_path / sampler, 60, sampler)]
    assert sum(values["cmaes"][-12:]) / 12 < 0.04 < sum(values["random"][-12:]) / 12


def test_a_garbled_generation_is_no_generation(tmp_path):
    config = sweep()
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, sampler=build_sampler(config, storage))
    kinds = {"a": FloatDistribution(0, 1), "b": FloatDistribution(1e-3, 1, log=True)}
    for generation in ("0", None, [], 10**400, -1, 0.0, True):
        attributes = {"cellbench:generation": generation}
        study.add_trial(
            optuna.trial.create_trial(
                params={"a": 0.5, "b": 0.1},
                distributions=kinds,
                value=1.0,
                system_attrs=attributes,
            )
        )
    trial = study.ask(kinds)
    assert 0 <= trial.params["a"] <= 1
    assert 1e-3 <= trial.params["b"] <= 1


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (FloatDistribution(-2.0, 3.0), [-2.0, 0.1, 3.0]),
        (FloatDistribution(1e-5, 1e-1, log=True), [1e-5, 3e-4, 1e-1]),
        (FloatDistribution(0.0, 1.0, step=0.25), [0.0, 0.25, 1.0]),
        (IntDistribution(1, 9), [1, 2, 9]),
        (IntDistribution(1, 1000, log=True), [1, 30, 1000]),
        (IntDistribution(0, 12, step=4), [0, 4, 12]),
    ],
)
def test_a_value_comes_back_from_its_place(kind, values):
    for value in values:
        assert _from_unit(_to_unit(value, kind), kind) == pytest.approx(value)
    for share in (0.0, 0.2, 0.5, 1.0):
        value = _from_unit(share, kind)
        assert kind._contains(value)


def go_on(folder, storage="journal"):
    """Does with a sweep's storage what the command does."""
    config = sweep("tpe")
    study = Study("s", config, {"space": SPACE}, folder, storage, 5)
    trial, point = study.ask()
    study.report(trial, 0, 0.1)
    study.note(trial, "values", [[value_of(point)]])
    study.tell(trial, TrialState.COMPLETE, [value_of(point)])
    write_trials(SweepFolder(folder), config, study)
    write_best(SweepFolder(folder), "s", config, study, {})


def damaged_lines(lines):
    """Yields what each record of a journal may have become."""
    for line in lines:
        record = json.loads(line)
        for key in record:
            yield line, json.dumps({k: v for k, v in record.items() if k != key})
            for value in (None, -1, 10**30, "x", [], {}, [None], {"a": {"b": 1}}):
                yield line, json.dumps(record | {key: value})
        yield line, "[" * 100_000
        yield line, "[]"
        yield line, line[: len(line) // 2]
        yield line, "\x00"
        yield line, "\udc9f" + line  # a byte that is no UTF-8
        yield line, line + "\n" + line
        yield line, ""


def test_a_damaged_journal_is_named(tmp_path):
    for _ in range(2):
        go_on(tmp_path)
    journal = tmp_path / "study.journal"
    text = journal.read_text()
    cases = list(damaged_lines(text.splitlines()))
    told = []
    for line, other in random.Random(0).sample(cases, 120):
        journal.write_text(text.replace(line, other, 1), errors="surrogateescape")
        try:
            go_on(tmp_path)
        except UserError as error:
            told.append(str(error))
    assert all("--name" in each for each in told)
    assert sum("study.journal is damaged" in each for each in told) > 40


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE trial_values SET value = NULL",
        "UPDATE trial_params SET distribution_json = '{}'",
        "UPDATE trials SET state = 'x'",
        "UPDATE trials SET number = -1",
        "UPDATE study_user_attributes SET value_json = 'x'",
        None,
    ],
)
def test_a_damaged_database_is_named_at_once(tmp_path, change):
    go_on(tmp_path, "sqlite")
    if change is None:
        (tmp_path / "study.db").write_bytes(b"no database" * 1000)
    else:
        with closing(sqlite3.connect(tmp_path / "study.db")) as connection, connection:
            connection.execute(change)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"study\.db is damaged .* --name"):
        go_on(tmp_path, "sqlite")
    assert time.monotonic() - begun < 10
