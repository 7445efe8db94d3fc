"""A run's stored configuration, which may have been downloaded: nothing in it may name code."""

from collections.abc import Mapping
from typing import Any

import yaml

from cellbench.cli.experiment import ExperimentParser
from cellbench.cli.parsing import data_modules
from cellbench.data.base import CellDataModule
from cellbench.errors import UserError
from cellbench.runs.folder import RunFolder

# What the trainer would import whatever is named for.
_CODE = ("callbacks", "logger", "plugins", "profiler")


def read_config(folder: RunFolder, *, whole: bool) -> dict[str, Any]:
    """Reads a run's configuration, as fit has written it.

    jsonargparse imports what a class_path names before it refuses it, and takes a dotted name for
    a class in many places. So the only class here may be one of cellbench's own data modules.

    Args:
        folder: The run.
        whole: True for all that a training needs; False for what scoring does: of the trainer
            nothing but the precision, if one was asked for.

    Raises:
        UserError: It is not a run's configuration, or what is given would name code.
    """
    try:
        config: dict[str, Any] = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        if not whole:
            config = {key: config[key] for key in ("seed_everything", "name", "data", "model")} | {
                "trainer": {k: v for k, v in config["trainer"].items() if k == "precision"}
            }
        data, trainer = dict(config["data"]), dict(config["trainer"])
        module, given = data.pop("class_path"), data.pop("init_args", {})
        rest = {key: value for key, value in config.items() if key not in ("data", "trainer")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{folder.config} is not a run's configuration: {error}") from error
    if module not in data_modules() or data:
        raise UserError(f"{folder.config}: data.class_path: '{module}' is not a data module here")
    named = [f"trainer.{key}" for key, value in trainer.items() if _is_code(key, value)]
    named += [key for key, value in (rest | {"data": given}).items() if _names_code(value)]
    if named:
        raise UserError(
            f"{folder.config}: {named[0]} names a class, and only data.class_path may in a run's "
            "folder; to go on with a run of your own that has callbacks, give the command that "
            "began it with --resume auto"
        )
    return config


def read_data(folder: RunFolder) -> CellDataModule:
    """A run's data module, with no image read yet.

    Raises:
        UserError: The configuration is none, or names code.
    """
    parser = ExperimentParser()
    parser.add_lightning_class_args(CellDataModule, "data", subclass_mode=True, required=True)
    given = parser.parse_object({"data": read_config(folder, whole=False)["data"]})
    data: CellDataModule = parser.instantiate(given).data
    return data


def _is_code(key: str, value: Any) -> bool:
    dotted = isinstance(value, str) and "." in value
    return dotted or _names_code(value) or (key in _CODE and value not in (None, False, True, []))


def _names_code(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_names_code, value))
    if not isinstance(value, Mapping):
        return False
    named = value.keys() & {"class_path", "init_args", "dict_kwargs"}
    return bool(named) or any(map(_names_code, value.values()))
