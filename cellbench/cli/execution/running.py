"""Assembly of a run from a command's options: data, model, folder, trainer."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger

from cellbench.artifacts.checkpoint import read_checkpoint
from cellbench.artifacts.folder import RunFolder
from cellbench.cli.execution.console import show
from cellbench.cli.execution.launch import launch
from cellbench.cli.options.checks import check_folder_name
from cellbench.cli.options.lightning_cli import CellbenchCLI, Command
from cellbench.config import keys
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.data.loading import LoadingPlan
from cellbench.data.module import CellDataModule
from cellbench.training import features, loggers, precision
from cellbench.training.announcement import announcement
from cellbench.training.callbacks.checks import check_callbacks
from cellbench.training.claim import Claim, Destination
from cellbench.training.distributed import Ranks, environment
from cellbench.training.run import Run, RunCallbacks
from cellbench.training.trainer import (
    as_list,
    choose_precision,
    count_devices,
    device_kind,
    make_trainer,
)
from cellbench.utils.errors import UserError
from cellbench.utils.terminal import say

Work = Callable[[Run], dict[str, Any] | None]
"""Trains or scores a run; returns the content of metrics.json, None on all ranks but the first."""


def run_command(options: CellbenchCLI, typed: Sequence[str], to: Destination, work: Work) -> int:
    """Run a command here, or in a process for each device.

    Args:
        options: The command's options.
        typed: The command line as the user gave it, for the processes of several devices.
        to: Folder that the command asks for.
        work: Trains or scores the run.

    Returns:
        The exit code.
    """
    here, everywhere = count_devices(options.config.trainer)
    if everywhere > 1 and environment() is None:
        return launch([options.command, *typed], everywhere)
    with prepared(options, to, here) as run:
        result = work(run)
    if result is not None:
        show(run.folder, result)
    return 0


@contextmanager
def prepared(options: CellbenchCLI, to: Destination, here: int) -> Iterator[Run]:
    """Make a run, lock its folder during the block, and describe the run on the screen.

    Args:
        options: The command's options.
        to: Folder that the command asks for.
        here: Number of devices on this machine.

    Raises:
        UserError: The machine or the data cannot do what was asked for, or the folder is in use.
    """
    config = options.config
    device = device_kind(config.trainer.accelerator)
    ranks = Ranks.join(device)
    made = options.instantiate()
    loading = _load(options, made, device, here, ranks)
    if options.command == "fit":
        check_callbacks(as_list(made.trainer.callbacks), made.model.logged, logged=_logs(made))
    name = _experiment_name(options, made)
    stored = _stored_config(options, made, name)
    claim = Claim.acquire(to, config.runs / name, stored) if ranks.first else None
    folder = RunFolder(ranks.agree(Path() if claim is None else claim.folder.path))
    hint = "nothing is lost: give the command again"
    if options.command == "fit":
        hint = _how_to_resume(folder, stored, to)
    try:
        run, chosen = _make_run(options, made, stored, folder, device, ranks, hint)
    except UserError:
        if claim is not None:
            claim.abandon()
        raise
    try:
        if ranks.first:
            note = _note_on_data(options, made)
            say(announcement(run, chosen, loading) + note, flush=True)
        yield run
    finally:
        if claim is not None:
            claim.release()
    ranks.leave()  # not after a failure: the ranks might wait for one another


def set_up_data(data: CellDataModule, command: Command, seed: int, ranks: Ranks) -> None:
    """Read a data module's samples, draw its split, and decode images into the cache.

    Args:
        data: The data module.
        command: The command, which decides the images that are needed.
        seed: The run's seed.
        ranks: The processes that share the samples.
    """
    data.plan = LoadingPlan(seed, ranks.rank, ranks.size)
    data.setup(command)


def _load(options: CellbenchCLI, made: Namespace, device: str, here: int, ranks: Ranks) -> str:
    """Set up the data module, and choose how it loads images.

    Returns:
        A description of the loading, with the reason.
    """
    data = made.data
    if options.command != "fit" and data.asked_format.lacks_limits:
        trained, _ = read_checkpoint(Path(options.config.ckpt_path))
        data.trained_format = trained.preprocessing.image_format
    set_up_data(data, options.command, options.config.seed_everything, ranks)
    precomputed = features.can_replace_images(made.model, data)
    epochs = 1 + (data.variants or 0) if precomputed else made.trainer.max_epochs
    data.plan = data.plan_loading(device, epochs, here)
    return str(data.plan)


def _logs(made: Namespace) -> bool:
    """Return True if a logger was asked for."""
    asked = as_list(made.trainer.logger) or made.tensorboard or made.wandb.mode != "disabled"
    return bool(asked)


def _experiment_name(options: CellbenchCLI, made: Namespace) -> str:
    """Return the experiment's name: the given one, or that of its file, or of its data module."""
    name = options.config.name
    if name is None:
        files = [file for file in options.config.config or [] if file is not None]
        name = Path(str(files[-1])).stem if files else type(made.data).__name__
    check_folder_name(str(name))
    return str(name)


def _stored_config(options: CellbenchCLI, made: Namespace, name: str) -> dict[str, Any]:
    """Return the run's configuration as config.yaml holds it."""
    config = options.plain()
    config["name"] = name
    if made.trainer.precision is not None:
        config["trainer"]["precision"] = precision.normalise(made.trainer.precision)
    return config


def _how_to_resume(folder: RunFolder, stored: Mapping[str, Any], to: Destination) -> str:
    """Return advice on how to resume the training after an interruption."""
    if keys.named_code(stored):  # --resume RUN refuses it
        again = "" if to.folder is not None else " and --resume auto"
        return f"go on with the same command{again}"
    online = " --wandb.mode=online" if stored["wandb"]["mode"] == "online" else ""
    return f"go on with: python -m cellbench fit --resume {shlex.quote(str(folder.path))}{online}"


def _note_on_data(options: CellbenchCLI, made: Namespace) -> str:
    """Return a line that says that nobody has chosen the data; empty if somebody has."""
    drawn = isinstance(made.data, SyntheticDataModule)
    if drawn and options.command == "fit" and not options.config.config:
        return "\nNOTE       no --config: drawn cells (SyntheticDataModule)"
    return ""


def _make_run(
    options: CellbenchCLI,
    made: Namespace,
    stored: dict[str, Any],
    folder: RunFolder,
    device: str,
    ranks: Ranks,
    hint: str,
) -> tuple[Run, str]:
    """Make a run in its folder: callbacks, loggers, precision, trainer.

    Args:
        options: The command's options.
        made: The options, with the objects that they name.
        stored: The configuration, as config.yaml will have it.
        folder: The run's folder.
        device: cpu, cuda or mps.
        ranks: The processes that share the run.
        hint: Advice that is shown after a signal.

    Returns:
        The run, and its precision with the reason for it.
    """
    trains = options.command == "fit"
    callbacks = RunCallbacks.make(
        folder, made.data, made.checkpoint, ranks, hint, label_history=made.label_history
    )
    own: list[Logger] = []
    try:
        if ranks.first:
            own += loggers.build(folder, stored["name"], made.wandb, made.tensorboard)
        begun = folder.last if trains else Path(options.config.ckpt_path)
        chosen, reason = choose_precision(
            stored["trainer"].get("precision"), begun, device, grouped=made.model.grouped
        )
        trainer = make_trainer(made.trainer, folder, device, chosen, callbacks.in_order(), own)
        parts = (made.model, made.data, trainer, made.checkpoint, callbacks, ranks)
        draws = stored.get("figures", True)
        run = Run(folder, stored, *parts, trains=trains, draws=draws)
    except UserError:
        loggers.finish(own, failed=True)
        raise
    return run, f"{chosen} ({reason})"
