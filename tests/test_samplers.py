"""The samplers of sweeps: what they draw, and what of a storage they believe."""

import json
import pickle

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.samplers import _from_unit, _to_unit, build_sampler
from cellbench.sweeps.study import Study

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
    study = optuna.create_study(sampler=build_sampler(config))
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
