"""Implementation of the command `sweep`, also imported by the process that workers fork from."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from jsonargparse import Namespace

from cellbench.artifacts.folder import RunFolder, as_yaml, write_text
from cellbench.cli import fit, test
from cellbench.cli.execution.exit_code import exit_code
from cellbench.cli.execution.running import set_up_data
from cellbench.cli.execution.sweep_results import run_sweep
from cellbench.cli.options.checks import check_folder_name
from cellbench.cli.options.lightning_cli import CellbenchCLI
from cellbench.cli.options.parser import Parser, take_option
from cellbench.config import keys, yaml
from cellbench.sweeps import workers
from cellbench.sweeps.config import SweepConfig
from cellbench.sweeps.folder import SweepFolder
from cellbench.sweeps.space import options
from cellbench.sweeps.storage import check_storage
from cellbench.sweeps.study import Study
from cellbench.sweeps.sweep import OTHER_RUN, UNWRITABLE, Sweep
from cellbench.training.distributed import Ranks
from cellbench.training.loggers import check_tensorboard
from cellbench.training.signals import EndAtSignal
from cellbench.training.trainer import count_devices
from cellbench.utils.errors import CannotWrite, OtherRun, UserError, find_user_error, one_line

SPECIAL = {CannotWrite: UNWRITABLE, OtherRun: OTHER_RUN}
"""Exit codes of mistakes that the trial has not caused."""

_COMMANDS = {"fit": fit.main, "test": test.main}
"""Commands that a sweep gives to its workers."""


class SweepParser(Parser):
    """Parser of the command `sweep`."""

    def check_file(self, path: str, config: Mapping[str, Any]) -> None:
        """Refuse an experiment's file, and classes as values of parameters."""
        for where in ("space", "repeat"):
            varied = config.get(where)
            for name, value in varied.items() if isinstance(varied, dict) else ():
                # But for data modules they would be imported here.
                if name != "data" and (name == "class_path" or keys.names_class(value)):
                    raise UserError(
                        f"{path}: {where}: {name}: a class cannot be varied; give class_path in "
                        "the experiment, or vary data"
                    )
        if "experiment" not in config and {"data", "model", "trainer"} & config.keys():
            raise UserError(
                f"--config: {path} is an experiment; a sweep's file names one as `experiment`, and "
                "what varies as `space`"
            )


def main(args: Sequence[str]) -> int:
    """Run a sweep, or resume it.

    Returns:
        The exit code: 1 if trials have failed, else 0.
    """
    own, given = _divide(args)
    if not {"-h", "--help"} & set(own) and take_option(own, "--config")[0] is None:
        raise UserError("sweep: which one? give its file as --config")
    asked = _parser().parse_args(own)
    if asked.config[-1] is None:
        raise UserError("--config: expected a sweep's file, and not its content")
    file = Path(str(asked.config[-1]))
    config = _config(asked, file)
    name = asked.name or file.stem
    check_folder_name(name)
    check_storage(asked.storage)
    gpus = _gpus(config, given)
    slots = workers.divide(asked.workers, gpus, asked.gpus)
    experiment = _options_of_runs(config, asked, name, given, on_gpus=bool(gpus))
    resolved = _check(config, experiment, given, file)
    steps = _steps(config, resolved)
    folder = SweepFolder(Path(asked.runs, name))
    hint = "nothing is lost: the same command goes on"
    with EndAtSignal(hint).watching(), _held(folder):
        stored = _stored(folder, asked.storage)
        study = Study(
            name,
            config,
            config.identity(keys.settings_of_sweep(resolved)),
            folder.path,
            asked.storage,
            steps,
            extend=asked.extend,
        )
        _write_file(folder, stored, asked.storage, study.identifier, resolved)
        return run_sweep(Sweep(config, name, study, folder, work, experiment, slots), given)


def work(args: list[str]) -> workers.Ending:
    """Run a command in a worker's process, as a user would.

    Returns:
        Its exit code, or one of SPECIAL, and the reason for a failure.
    """
    try:
        command, *rest = args
        return workers.Ending(_COMMANDS[command](rest))
    except BaseException as error:
        code = exit_code(error, debug=False)
        mistake = find_user_error(error)
        code = next((own for kind, own in SPECIAL.items() if isinstance(mistake, kind)), code)
        return workers.Ending(code, one_line(mistake) if mistake else "")


def _divide(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide a command line into the sweep's own options, and the experiment's as --key=value."""
    own: list[str] = []
    given: list[str] = []
    rest = list(args)
    while rest:
        option = rest.pop(0)
        key = option.partition("=")[0]
        named = key.removeprefix("--").split(".")[0]
        if not option.startswith("--") or named not in keys.OF_EXPERIMENT:
            own.append(option)
        elif "=" in option:
            given.append(option)
        elif rest:
            given.append(f"{option}={rest.pop(0)}")
        else:
            raise UserError(f"{option}: expected a value")
    return own, given


def _parser() -> SweepParser:
    parser = SweepParser(
        prog="python -m cellbench sweep",
        description="Varies an experiment, as a sweep's file says. Given again, the command goes "
        "on with what is not done; options of fit (--data.root ...) change the experiment for all "
        "trials. Ends with 1 where trials have failed.",
    )
    parser.add_argument("--config", action="config", help="the sweep's file")
    parser.add_class_arguments(SweepConfig, as_group=False)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time on this machine")
    parser.add_argument(
        "--gpus",
        type=float,
        default=1.0,
        help="GPUs of each run, where there are any; below 1 several runs share one",
    )
    parser.add_argument(
        "--storage",
        type=str,
        default="journal",
        help="journal or sqlite, for a file in the sweep's folder; postgresql://HOST/DATABASE, "
        "where several machines give the same command (the password is PGPASSWORD's, or .pgpass')",
    )
    parser.add_argument("--extend", type=bool, default=False, help="the ranges may have changed")
    parser.add_argument("--name", type=str | None, help="the sweep's name (its file's name)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    return parser


def _config(asked: Namespace, file: Path) -> SweepConfig:
    """Return the content of the sweep's file, updated by the command line."""
    parsed = asked.as_dict()
    try:
        config = SweepConfig(**{key: parsed[key] for key in SweepConfig.__dataclass_fields__})
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    path = config.experiment if config.experiment.is_file() else file.parent / config.experiment
    if not path.is_file():
        raise UserError(f"{file}: experiment: there is no file {path}")
    return replace(config, experiment=path)


def _gpus(config: SweepConfig, given: Sequence[str]) -> list[str]:
    """Return the GPUs that runs are divided among, as CUDA_VISIBLE_DEVICES names them."""
    own = yaml.read_mapping(config.experiment).get("trainer")
    configured = own.get("accelerator", "auto") if isinstance(own, dict) else "auto"
    asked = [option.partition("=")[2] for option in given if "trainer.accelerator=" in option]
    if (asked or [configured])[-1] not in ("auto", "gpu", "cuda"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _options_of_runs(
    config: SweepConfig, asked: Namespace, name: str, given: Sequence[str], *, on_gpus: bool
) -> list[str]:
    """Return the options of fit that all runs have in common.

    Args:
        config: The sweep's file.
        asked: The sweep's options.
        name: Its name.
        given: The options of fit that were given on the sweep's command line.
        on_gpus: True if the runs have GPUs.
    """
    found = [f"--config={config.experiment}", *given]
    if on_gpus and asked.gpus > 1:
        found.append(f"--trainer.devices={int(asked.gpus)}")
    found += [
        f"--name={name}",
        f"--runs={asked.runs}",
        f"--wandb.group={name}",
        "--figures=false",
        "--trainer.enable_progress_bar=false",
    ]
    if not any(option.startswith("--data.cache") for option in given):
        found.append("--data.cache.memory=0")  # decoded once, and mapped by all
    return found


def _check(
    config: SweepConfig, experiment: Sequence[str], given: Sequence[str], file: Path
) -> dict[str, Any]:
    """Check, before the first trial, that all parameters and their values are valid.

    Returns:
        The experiment's whole configuration.

    Raises:
        UserError: A parameter or a value is not valid.
    """
    for option in given:
        path = option.removeprefix("--").partition("=")[0]
        for where in ("space", "repeat"):
            if path in getattr(config, where):
                raise UserError(f"--{path}: it is in the sweep's {where}; choose one")
    try:
        checked, made = _check_experiment(experiment)
    except UserError as error:
        named = str(error).startswith(f"{config.experiment}: ")
        raise UserError(str(error) if named else f"{config.experiment}: {error}") from error
    if checked.config.tensorboard:
        check_tensorboard()
    set_up_data(made.data, "fit", checked.config.seed_everything, Ranks())  # for all workers
    resolved = checked.plain()
    repeated = [{path: value} for path, values in config.repeat.items() for value in values]
    for where, points in (("repeat", repeated), ("space", config.parameters.covering())):
        for point in points:
            try:
                _check_experiment([*experiment, *options(point)])
            except UserError as error:
                raise UserError(f"{file}: {where}: {error}") from error
    return resolved


def _check_experiment(args: Sequence[str]) -> tuple[CellbenchCLI, Namespace]:
    """Check the options of a fit, and make its data module and model.

    Returns:
        The options, and the result of `CellbenchCLI.instantiate`.
    """
    checked = CellbenchCLI("fit", args)
    count_devices(checked.config.trainer)
    return checked, checked.instantiate()


def _steps(config: SweepConfig, resolved: Mapping[str, Any]) -> int:
    """Return the number of steps of a trial: its runs, or the epochs of its only run.

    Raises:
        UserError: There is a pruner, but only a single step.
    """
    steps = len(config.runs)
    if steps == 1:
        steps = resolved["trainer"]["max_epochs"]
    if config.pruner != "none" and steps < 2:
        raise UserError(
            f"pruner: {config.pruner} judges by steps, and a trial has one epoch of one run; raise "
            "trainer.max_epochs, repeat folds or seeds, or remove pruner"
        )
    return steps


@contextmanager
def _held(folder: SweepFolder) -> Iterator[None]:
    """Lock a folder against other sweeps."""
    RunFolder(folder.path).make()
    lock = FileLock(folder.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"--name: another sweep is running in {folder.path}; use its --workers, or give "
            "another --name"
        ) from error
    except OSError as error:
        raise CannotWrite(f"cannot write {folder.lock}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _stored(folder: SweepFolder, storage: str) -> dict[str, Any] | None:
    """Return the content of sweep.yaml; None if there is none.

    Raises:
        UserError: It does not belong to a sweep, or its study is in another storage.
    """
    if not folder.file.is_file():
        return None
    stored = yaml.read_mapping(folder.file)
    for key in ("storage", "study"):
        if not isinstance(stored.get(key), str):
            raise UserError(f"{folder.file} is not a sweep's: it has no {key}")
    if stored["storage"] != storage:
        raise UserError(
            f"--storage: the sweep in {folder.path} was begun with {stored['storage']}, and here "
            f"is {storage}; give that one, or another --name"
        )
    return stored


def _write_file(
    folder: SweepFolder,
    stored: Mapping[str, Any] | None,
    storage: str,
    identifier: str,
    resolved: Mapping[str, Any],
) -> None:
    """Write sweep.yaml; an existing one must belong to the same study."""
    if stored is None:
        text = {"command": " ".join(sys.argv[1:]), "storage": storage, "study": identifier}
        write_text(folder.file, as_yaml(text | {"experiment": dict(resolved)}))
    elif stored["study"] != identifier:
        raise UserError(
            f"--storage: it has another study than the one that {folder.path} was begun with; "
            "give another --name, or delete the folder"
        )
