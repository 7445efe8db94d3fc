"""The table of configuration keys, and what it decides."""

import copy
from contextlib import nullcontext

import pytest

from cellbench.cli.options.types import stored_types
from cellbench.config import keys, option_types
from cellbench.config.keys import Role
from cellbench.data.file_module import FileDataModule
from cellbench.utils.errors import UserError

CONFIG = {
    "seed_everything": 3,
    "name": "mine",
    "wandb": {"mode": "online", "tags": ["a"]},
    "checkpoint": {"monitor": "last", "every": 60.0},
    "data": {
        "class_path": "FolderDataModule",
        "init_args": {
            "root": "cells",
            "view": "masked",
            "cache": {"memory": 1, "folder": "/somewhere"},
            "split": {"folds": 5, "fold": 2, "seed": 1},
        },
    },
    "model": {"weights": "imagenet", "head": {"hidden": []}},
    "trainer": {"max_epochs": 2, "devices": 2, "precision": "32-true"},
}


@pytest.fixture
def config():
    return copy.deepcopy(CONFIG)


@pytest.mark.parametrize("key", keys.KEYS, ids=lambda key: key.name)
def test_each_key_is_an_option(key):
    unknown = key.role is Role.COMMAND or key.removed
    types = stored_types()
    if key.name.startswith("data."):
        types = {"data": option_types.parameters(FileDataModule)}
    with pytest.raises(UserError) if unknown else nullcontext():
        option_types.find_type(types, key.name)


def test_the_nearest_group_says_what_a_key_means():
    assert keys.find("wandb.tags").role is Role.ENVIRONMENT
    assert keys.find("checkpoint.every").role is Role.ENVIRONMENT
    assert keys.find("checkpoint.monitor").role is Role.CONDITION
    assert keys.find("data.split.fold").role is Role.REPETITION
    assert keys.find("data.split.folds").role is Role.CONDITION
    assert keys.find("data.rooted").role is Role.CONDITION


def test_a_condition_has_neither_environment_nor_repetition(config):
    found = keys.settings_of_condition(dict(keys.flatten(config)))
    assert found == {
        "checkpoint.monitor": "last",
        "data.class_path": "FolderDataModule",
        "data.view": "masked",
        "data.split.folds": 5,
        "model.weights": "imagenet",
        "model.head.hidden": [],
        "trainer.max_epochs": 2,
        "trainer.precision": "32-true",
    }


def test_commands_of_one_sweep_may_differ_in_the_machine(config):
    found = keys.settings_of_sweep(config)
    assert found["trainer"] == {"max_epochs": 2}
    assert found["data"]["init_args"] == {
        "view": "masked",
        "split": CONFIG["data"]["init_args"]["split"],
    }
    assert found["checkpoint"] == {"monitor": "last"}
    assert "wandb" not in found
    assert "name" not in found
    assert found["seed_everything"] == 3


def test_a_run_stores_absolute_paths_and_no_option_of_a_command(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = keys.settings_of_run(config | {"resume": None, "config": ["a.yaml"], "run": None})
    assert found.keys() == CONFIG.keys()
    assert found["data"]["init_args"]["root"] == str(tmp_path / "cells")
    assert found["model"]["weights"] == "imagenet"
    config["model"]["weights"] = "best.pth"
    assert keys.settings_of_run(config)["model"]["weights"] == str(tmp_path / "best.pth")


def test_scoring_needs_data_model_and_precision(config):
    found = keys.settings_for_scoring(config)
    assert found.keys() == {"seed_everything", "name", "data", "model", "trainer"}
    assert found["data"] == config["data"]  # with its root, fold and seed
    assert found["trainer"] == {"precision": "32-true"}
    assert keys.settings_for_scoring({"trainer": 0}) == {"trainer": 0}  # to be refused


def test_a_stored_configuration_names_no_place_to_write_to(config):
    keys.drop_places(config)
    assert config["data"]["init_args"]["cache"] == {"memory": 1}
    keys.drop_places({"data": 1})


def test_code_is_found_at_any_depth(config):
    assert keys.named_code(config) == []
    config["trainer"] |= {"callbacks": [{"class_path": "os.system"}], "profiler": "simple"}
    assert keys.named_code(config) == ["trainer.callbacks"]
    assert keys.names_class([{"a": [{"class_path": "b"}]}])
    assert not keys.names_class({"a": "b"})


def test_a_removed_option_is_named_and_dropped_from_what_is_stored():
    config = {"data": {"class_path": "FolderDataModule", "init_args": {"augment_on": "auto"}}}
    found = keys.find_removed(config)
    assert found is not None
    assert found.name == "data.augment_on"
    keys.drop_removed(config)
    assert config["data"]["init_args"] == {}
    assert keys.find_removed(config) is None
