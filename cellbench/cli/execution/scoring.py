"""Implementation of the commands `validate` and `test`, which need only a run's folder."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cellbench.artifacts.folder import RunFolder
from cellbench.cli.execution.running import run_command
from cellbench.cli.options.lightning_cli import CellbenchCLI
from cellbench.cli.options.parser import take_option
from cellbench.cli.options.stored import read_config
from cellbench.training.claim import Destination
from cellbench.utils.errors import UserError

_PARTS: dict[str, Literal["val", "test"]] = {"validate": "val", "test": "test"}


def score(command: Literal["validate", "test"], args: Sequence[str]) -> int:
    """Score a run's best checkpoint, with the run's own configuration.

    Args:
        command: The command, which decides the split.
        args: `--run FOLDER` and options that replace those of the run; without --run, a whole
            configuration and --ckpt_path, as in Lightning.
    """
    given_run, rest = take_option(args, "--run")
    to = Destination()
    if given_run is not None:
        folder = RunFolder.open(Path(given_run))
        if folder.unfinished and command == "test":
            raise UserError(
                "--run: the run is unfinished, and its test set is for the best of all its epochs; "
                f"go on with: python -m cellbench fit --resume {shlex.quote(str(folder.path))}"
            )
        config = read_config(folder, whole=False)
        config["model"] |= {"weights": "none"}
        rest = [f"--config={json.dumps(config)}", f"--ckpt_path={folder.best}", *rest]
        to = Destination(parent=folder.below(command))
    options = CellbenchCLI(command, rest)
    part, checkpoint = _PARTS[command], Path(options.config.ckpt_path)
    return run_command(options, args, to, lambda run: run.score(part, checkpoint))
