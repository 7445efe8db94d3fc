"""Command `fit`: train, then test the best checkpoint once."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellbench.artifacts.folder import RunFolder
from cellbench.cli.execution.running import run_command
from cellbench.cli.options.lightning_cli import CellbenchCLI
from cellbench.cli.options.parser import take_option
from cellbench.cli.options.stored import read_config
from cellbench.training.claim import Destination
from cellbench.training.loggers import WandbConfig
from cellbench.utils.errors import UserError


def main(args: Sequence[str]) -> int:
    """Run the command.

    `--resume RUN` resumes an interrupted run, with `--wandb.mode online` if the run is online.
    `--resume auto`, with the options of a fit, resumes the newest unfinished run of the same
    configuration, or starts a new one. `--folder RUN` resumes the run in that folder, or starts one
    there.
    """
    resume, rest = take_option(args, "--resume")
    if resume is not None and resume != "auto":
        return _resume(Path(resume), rest, args)
    to = Destination(resume="auto" if resume else None)
    if resume is None:
        folder, rest = take_option(rest, "--folder")
        to = Destination(folder=None if folder is None else RunFolder(Path(folder)))
    return _fit(rest, args, to)


def _resume(run: Path, rest: Sequence[str], typed: Sequence[str]) -> int:
    """Resume an interrupted run with its stored options.

    Args:
        run: The run's folder.
        rest: The other options that were given.
        typed: The whole command line.
    """
    folder = RunFolder.open(run, "--resume")
    mode, rest = take_option(rest, "--wandb.mode")
    if rest:
        raise UserError(f"--resume {run}: a run goes on as it began; remove {rest[0]}")
    if not folder.unfinished:
        raise UserError(f"--resume: the run {run} is finished; its metrics.json is there")
    config = read_config(folder, whole=True)
    _check_online(folder, config.get("wandb", {}), mode)
    return _fit([f"--config={json.dumps(config)}"], typed, Destination(resume=folder))


def _fit(args: Sequence[str], typed: Sequence[str], to: Destination) -> int:
    options = CellbenchCLI("fit", args)
    return run_command(options, typed, to, lambda run: run.fit(test=options.config.test))


def _check_online(folder: RunFolder, wandb: Mapping[str, Any], mode: str | None) -> None:
    """Make sure that the user wants to send a run to W&B, as its folder says.

    Args:
        folder: The run. It may have been downloaded, and name somebody else's project.
        wandb: The stored options.
        mode: Value of --wandb.mode, given together with --resume.

    Raises:
        UserError: The run is online and the mode is not, or the other way round.
    """
    online = wandb.get("mode") == "online"
    if online and mode != "online":
        project = "/".join(
            filter(None, (wandb.get("entity"), wandb.get("project", WandbConfig.project)))
        )
        raise UserError(
            f"--resume: the run sends its data to the W&B project '{project}'; add --wandb.mode="
            f"online to go on so, or set wandb.mode to disabled in {folder.config}"
        )
    if not online and mode is not None:
        raise UserError(
            f"--resume {folder.path}: a run goes on as it began; remove --wandb.mode={mode}"
        )
