"""What validate and test share: a run's folder is all they need."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cellbench.cli.engine import CellbenchCLI
from cellbench.cli.parsing import check_yaml, take_option
from cellbench.cli.stored import read_config
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
        return CellbenchCLI(command, rest, args).exit_code
    run = Path(given_run)
    folder = RunFolder.open(run)
    if folder.unfinished and command == "test":
        raise UserError(
            "--run: the run is unfinished, and its test set is for the best of all its epochs; go "
            f"on with: python -m cellbench fit --resume {run}"
        )
    config = read_config(folder, whole=False)
    config["model"] |= {"weights": "none"}
    given = [f"--config={json.dumps(config)}", f"--ckpt_path={folder.best}", *rest]
    return CellbenchCLI(command, given, args, parent=folder.below(command)).exit_code
