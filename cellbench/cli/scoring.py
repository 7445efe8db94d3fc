"""What validate and test share: a run's folder is all they need."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from cellbench.cli.engine import CellbenchCLI
from cellbench.cli.parsing import check_yaml, data_modules, take_option
from cellbench.errors import UserError
from cellbench.runs.folder import RunFolder


def score(command: Literal["validate", "test"], args: Sequence[str]) -> int:
    """Scores a run's best checkpoint, with the run's own configuration.

    Args:
        command: Which split.
        args: `--run FOLDER` and options that replace the run's; without --run a whole
            configuration and --ckpt_path, as in Lightning.
    """
    given_run, rest = take_option(args, "--run")
    if given_run is None:
        check_yaml(rest)
        CellbenchCLI(command, rest)
        return 0
    run = Path(given_run)
    folder = RunFolder.open(run)
    text = yaml.safe_dump(_plain_config(folder))
    given = [f"--config={text}", f"--ckpt_path={folder.best}", *rest]
    CellbenchCLI(command, given, parent=run / command)
    return 0


def _plain_config(folder: RunFolder) -> dict[str, Any]:
    """What of a run's configuration its scoring needs.

    A run's folder may have been downloaded: nothing of it may name code to import, as callbacks
    and loggers do, and the only classes are cellbench's own data modules. jsonargparse imports
    what any class_path names before it refuses it.

    Raises:
        UserError: It is not a run's configuration.
    """
    try:
        whole = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        config: dict[str, Any] = {key: whole[key] for key in ("seed_everything", "data", "name")}
        config["model"] = whole["model"] | {"weights": "none"}
        config["trainer"] = {"precision": whole["trainer"]["precision"]}
        module = config["data"]["class_path"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{folder.config} is not a run's configuration: {error}") from error
    if _names_code(config["model"]) or _names_code(config["data"].get("init_args")):
        raise UserError(f"{folder.config}: only data.class_path may name a class in a run's folder")
    if module not in data_modules() or config["data"].keys() - {"class_path", "init_args"}:
        raise UserError(f"{folder.config}: data.class_path: '{module}' is not a data module here")
    return config


def _names_code(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_names_code, value))
    if not isinstance(value, dict):
        return False
    named = value.keys() & {"class_path", "init_args", "dict_kwargs"}
    return bool(named) or any(map(_names_code, value.values()))
