"""fit: trains, then tests the best checkpoint once."""

import json
from collections.abc import Sequence
from pathlib import Path

from cellbench.cli.engine import CellbenchCLI
from cellbench.cli.parsing import check_yaml, take_option
from cellbench.cli.stored import read_config
from cellbench.errors import UserError
from cellbench.runs.folder import RunFolder


def main(args: Sequence[str]) -> int:
    """Runs the command.

    `--resume RUN` goes on with an interrupted run; `--resume auto`, beside the options of a fit,
    with the newest unfinished run of the same configuration, or begins one; `--folder RUN` with
    that in this folder, or begins it there.
    """
    resume, rest = take_option(args, "--resume")
    check_yaml(rest)
    if resume is None:
        given, rest = take_option(rest, "--folder")
        own = None if given is None else RunFolder(Path(given))
        return CellbenchCLI("fit", rest, args, folder=own).exit_code
    if resume == "auto":
        return CellbenchCLI("fit", rest, args, resume="auto").exit_code
    folder = RunFolder.open(Path(resume), "--resume")
    if rest:
        raise UserError(f"--resume {resume}: a run goes on as it began; remove {rest[0]}")
    if not folder.unfinished:
        raise UserError(f"--resume: the run {resume} is finished; its metrics.json is there")
    config = json.dumps(read_config(folder, whole=True))
    return CellbenchCLI("fit", [f"--config={config}"], args, resume=folder).exit_code
