"""Meaning of each configuration key, in one table.

Whatever compares, pairs, resumes, strips or trusts configurations asks this table.

A key is written as on the command line, flat and with dots: `data.root` is what YAML holds as
`data: {init_args: {root: ...}}`. An entry also holds for all keys below it that have none of their
own. A key without an entry is part of the condition, and nothing else.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any


class Role(Enum):
    """Role of a key when runs are compared."""

    CONDITION = auto()
    """Influence on the result: runs with different values belong to different conditions."""
    REPETITION = auto()
    """Fold or seed: runs of one condition may have different values."""
    ENVIRONMENT = auto()
    """Place and name of a run, on which the result does not depend."""
    COMMAND = auto()
    """Option of a single command, which config.yaml does not contain."""


@dataclass(frozen=True)
class Key:
    """Meaning of one configuration key."""

    name: str
    """The key, with dots."""
    role: Role = Role.CONDITION
    """Its role when runs are compared."""
    is_path: bool = False
    """True for a path, which is stored as an absolute one."""
    words: tuple[str, ...] = ()
    """Values of a path that are words and not paths."""
    code: bool = False
    """True where the value may name a class outside cellbench, whose code then runs."""
    written_to: bool = False
    """True for a place that files are written to: never taken from a stored configuration."""
    scores: bool = False
    """True where scoring a trained model needs it, and all keys below it."""
    of_run: bool = False
    """True where a sweep chooses the value for each of its runs."""
    changeable: bool = False
    """True where two commands of one sweep may differ in it."""
    removed: str = ""
    """Reason of the removal of an option, which stored configurations may still have."""


KEYS = (
    Key("config", Role.COMMAND),
    Key("ckpt_path", Role.COMMAND),
    Key("weights_only", Role.COMMAND),
    Key("resume", Role.COMMAND),
    Key("folder", Role.COMMAND),
    Key("run", Role.COMMAND),
    Key("name", Role.ENVIRONMENT, scores=True, of_run=True),
    Key("runs", Role.ENVIRONMENT, of_run=True),
    Key("test", Role.ENVIRONMENT, of_run=True),
    Key("figures", Role.ENVIRONMENT, of_run=True),
    Key("seed_everything", Role.REPETITION, scores=True),
    Key("data", scores=True),
    Key("data.root", Role.ENVIRONMENT, is_path=True),
    Key("data.train_labels", is_path=True),
    Key("data.split.fold", Role.REPETITION),
    Key("data.split.seed", Role.REPETITION),
    Key("data.cache", Role.ENVIRONMENT),
    Key("data.cache.folder", Role.ENVIRONMENT, written_to=True),
    Key("data.cellpose"),
    Key("data.cellpose.model", is_path=True, words=("cpsam", "cpsam_v2", "cpdino", "cpdino-vitb")),
    Key("data.num_workers", Role.ENVIRONMENT),
    Key("data.max_pixels", Role.ENVIRONMENT),
    Key(
        "data.augment_on",
        Role.ENVIRONMENT,
        removed="images are always augmented by albumentations, in the loader processes",
    ),
    Key("model", scores=True),
    Key("model.weights", is_path=True, words=("none", "imagenet")),
    Key("trainer"),
    Key("trainer.accelerator", Role.ENVIRONMENT),
    Key("trainer.devices", Role.ENVIRONMENT),
    Key("trainer.num_nodes", Role.ENVIRONMENT),
    Key("trainer.enable_progress_bar", Role.ENVIRONMENT),
    Key("trainer.precision", scores=True, changeable=True),
    Key("trainer.callbacks", code=True),
    Key("trainer.logger", code=True),
    Key("trainer.plugins", code=True),
    Key("trainer.profiler", code=True),
    Key("trainer.strategy", code=True),
    Key("checkpoint"),
    Key("checkpoint.every", Role.ENVIRONMENT),
    Key("wandb", Role.ENVIRONMENT),
    Key("tensorboard", Role.ENVIRONMENT),
    Key("label_history", Role.ENVIRONMENT),
)
"""All keys with a special meaning, and the groups of an experiment."""

_BY_NAME = {key.name: key for key in KEYS}

OF_EXPERIMENT = tuple(
    key.name
    for key in KEYS
    if "." not in key.name and key.role is not Role.COMMAND and not key.of_run
)
"""Groups and options that an experiment's file may have, and that hold for a whole sweep."""


def find(name: str) -> Key:
    """Return the entry that holds for a key: its own, or that of the nearest group above it."""
    return next(_with_groups(name), Key(name))


def _with_groups(name: str) -> Iterator[Key]:
    """Yield the entries of a key and of the groups above it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        entry = _BY_NAME.get(".".join(parts[:length]))
        if entry is not None:
            yield entry


def path_in_yaml(name: str) -> list[str]:
    """Return the YAML keys, outermost first, of a dotted key's value."""
    parts = name.split(".")
    if parts[0] == "data" and parts[1:] and parts[1] not in ("class_path", "init_args"):
        parts.insert(1, "init_args")
    return parts


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a configuration, as on the command line, with their values."""
    for key, value in config.items():
        name = _flat_name(f"{prefix}{key}")
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def settings_of_condition(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that define the condition of a flat configuration.

    Args:
        flat: Result of `flatten`.
    """
    return {name: value for name, value in flat.items() if find(name).role is Role.CONDITION}


def settings_of_sweep(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that all commands of one sweep have in common.

    Args:
        config: A configuration as YAML has it.
    """
    return _select(config, lambda key: key.role is not Role.ENVIRONMENT and not key.changeable)


def settings_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in the form of config.yaml: no command's options, absolute paths.

    A run's folder must not depend on the working directory of its command.

    Args:
        config: A configuration as YAML has it; its groups are changed in place.
    """
    kept = {k: value for k, value in config.items() if find(k).role is not Role.COMMAND}
    for entry in KEYS:
        if entry.is_path:
            group, name = _group_of(kept, entry.name)
            if group.get(name) not in (None, *entry.words):
                group[name] = os.path.abspath(group[name])
    return kept


def settings_for_scoring(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a stored configuration that scoring its model needs.

    Args:
        config: A configuration as YAML has it, not yet checked.
    """
    return _select(config, lambda key: any(entry.scores for entry in _with_groups(key.name)))


def drop_places(config: Mapping[str, Any]) -> None:
    """Remove the places to write to from a stored configuration, as YAML has it."""
    _drop(config, lambda key: key.written_to)


def find_removed(config: Mapping[str, Any]) -> Key | None:
    """Return the entry of the first removed option that a configuration gives; None for none.

    Args:
        config: A configuration as YAML has it.
    """
    return next((find(name) for name, _ in flatten(config) if find(name).removed), None)


def drop_removed(config: Mapping[str, Any]) -> None:
    """Remove the options that no longer exist from a stored configuration, as YAML has it."""
    _drop(config, lambda key: bool(key.removed))


def depends_on_removed(config: Mapping[str, Any]) -> bool:
    """Return True if an option that no longer exists decides the result of a run.

    Args:
        config: A stored configuration as YAML has it.
    """
    flat = dict(flatten(config))
    augmented = flat.get("data.augment", "none") != "none"
    return augmented and flat.get("data.augment_on") == "device"  # with random numbers of its own


def named_code(config: Mapping[str, Any]) -> list[str]:
    """Return the keys of a configuration that name a class outside cellbench.

    Args:
        config: A configuration as YAML has it.
    """
    found = []
    for entry in KEYS:
        group, name = _group_of(config, entry.name)
        if entry.code and names_class(group.get(name)):
            found.append(entry.name)
    return found


def names_class(value: Any) -> bool:
    """Return True if a value contains a `class_path`, at any depth."""
    if isinstance(value, dict):
        return "class_path" in value or any(map(names_class, value.values()))
    return isinstance(value, list) and any(map(names_class, value))


def _drop(config: Mapping[str, Any], unwanted: Callable[[Key], bool]) -> None:
    """Remove the unwanted keys that the table names from a configuration, in place."""
    for entry in KEYS:
        if unwanted(entry):
            group, name = _group_of(config, entry.name)
            group.pop(name, None)


def _select(
    config: Mapping[str, Any], wanted: Callable[[Key], bool], prefix: str = ""
) -> dict[str, Any]:
    """Return the wanted keys of a configuration.

    A value in the place of a group with wanted keys is kept, so that it can be refused.
    """
    kept: dict[str, Any] = {}
    for key, value in config.items():
        name = _flat_name(f"{prefix}{key}")
        if isinstance(value, dict) and value:
            if inner := _select(value, wanted, f"{name}."):
                kept[key] = inner
        elif wanted(find(name)) or any(wanted(k) for k in KEYS if k.name.startswith(f"{name}.")):
            kept[key] = value
    return kept


def _flat_name(name: str) -> str:
    """Convert a dotted key of YAML to its form on the command line."""
    return "data" if name == "data.init_args" else name.replace("data.init_args.", "data.")


def _group_of(config: Mapping[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Return the group of a dotted key, empty if there is none, and the key's name in it."""
    *above, last = path_in_yaml(name)
    group: Any = config
    for key in above:
        group = group.get(key) if isinstance(group, dict) else None
    return (group if isinstance(group, dict) else {}), last
