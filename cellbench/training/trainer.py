"""Lightning's Trainer for a run: what it offers here, its device and precision, and its parts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from cellbench.artifacts.checkpoint import WholeCheckpointIO, read_checkpoint
from cellbench.artifacts.folder import RunFolder
from cellbench.config.values import shown
from cellbench.training import precision
from cellbench.training.distributed import environment
from cellbench.utils.errors import UserError

# Deterministic algorithms need no memory filled before it is written; it costs a few per cent.
torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 20,  # Lightning's own is 1,000
    "devices": 1,
    "deterministic": "warn",
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "sync_batchnorm": True,  # else the statistics are those of each device's share
    "use_distributed_sampler": False,
    "logger": False,
}
"""Options of the Trainer that have another default here."""

NOT_OFFERED: dict[str, tuple[Sequence[Any], str]] = {
    "limit_val_batches": ((None,), "metrics over a part of the set are not to be believed"),
    "limit_test_batches": ((None,), "metrics over a part of the set are not to be believed"),
    "limit_train_batches": ((None, *range(1, 10_000)), "give a whole number, at least 1"),
    "overfit_batches": ((None, 0, 0.0), "for a short run use limit_train_batches and max_epochs"),
    "fast_dev_run": ((None, False), "for a short run use limit_train_batches and max_epochs"),
    "check_val_every_n_epoch": ((None, 1), "every epoch is validated, once, at its end"),
    "val_check_interval": ((None,), "every epoch is validated, once, at its end"),
    "max_epochs": (range(1, 1_000_000), "give a number, at least 1"),
    "reload_dataloaders_every_n_epochs": ((0,), "every epoch's order is drawn anew anyway"),
    "max_steps": ((None, -1), "the schedules need whole epochs: use max_epochs"),
    "model_registry": ((None,), "a run writes to its folder; send its checkpoints yourself"),
    "max_time": ((None,), "how far a run gets must not depend on the machine: use max_epochs"),
    "num_nodes": (range(1, 10_000), "give a number, at least 1"),
    "accumulate_grad_batches": (range(1, 10_000), "give a number, at least 1"),
    "default_root_dir": ((None,), "use --runs and --name"),
    "enable_checkpointing": ((None, True), "use checkpoint.monitor"),
    "strategy": (("auto", "ddp"), "runs on several devices are made for ddp"),
    "use_distributed_sampler": ((False,), "cellbench divides the samples among the devices"),
    "barebones": ((False,), "a run without logging has no history.csv"),
}
"""Options of the Trainer that would mislead here: the values allowed, and what to do instead."""


def check_offered(options: Mapping[str, Any]) -> None:
    """Check that the Trainer's options are offered here.

    Args:
        options: The parsed options, by name.

    Raises:
        UserError: One is not.
    """
    for name, (allowed, reason) in NOT_OFFERED.items():
        if options[name] not in allowed:
            raise UserError(f"trainer.{name}: {shown(options[name])} is not offered; {reason}")
    if "xla" in str(options["profiler"]).lower():
        raise UserError("trainer.profiler: XLA's is for TPUs, which are not offered; use simple")


def device_kind(accelerator: str) -> str:
    """Return the kind of device that Lightning takes for trainer.accelerator: cpu, cuda or mps."""
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu" if accelerator == "auto" else str(accelerator)


def count_devices(options: Mapping[str, Any]) -> tuple[int, int]:
    """Count the devices of a run.

    Args:
        options: The Trainer's parsed options.

    Returns:
        Those on this machine, and those on all nodes.

    Raises:
        UserError: They are not there, or another number of processes was started.
    """
    with _told_in_a_line(options):
        here = Trainer(
            accelerator=options["accelerator"],
            devices=options["devices"],
            num_nodes=options["num_nodes"],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).num_devices
    nodes = int(options["num_nodes"])
    launched = environment()
    if launched is None and nodes > 1:
        raise UserError(
            f"trainer.num_nodes: {nodes}, but one process was started; start the command on every "
            "node, by torchrun or srun"
        )
    if launched is not None and launched.world_size() != here * nodes:
        raise UserError(
            f"{launched.world_size()} processes were started, but trainer.devices x "
            f"trainer.num_nodes is {here * nodes}; make them equal"
        )
    return here, here * nodes


def choose_precision(
    asked: str | None, begun: Path, device: str, *, grouped: bool
) -> tuple[str, str]:
    """Choose a run's precision.

    The configuration has what was asked for. A choice is the machine's: it is in the checkpoint
    that a run goes on from, or is scored with, so that it stays the same.

    Args:
        asked: trainer.precision.
        begun: The checkpoint, if there is one.
        device: cpu, cuda or mps.
        grouped: True if the network has grouped convolutions.

    Returns:
        The precision, and why it was chosen.
    """
    if asked is not None:
        return asked, "as configured"
    if begun.is_file():
        trained = read_checkpoint(begun)[0].precision
        return precision.normalise(trained), "as its training began"
    return precision.choose(device, grouped=grouped)


def make_trainer(
    options: Mapping[str, Any],
    folder: RunFolder,
    device: str,
    chosen_precision: str,
    own_callbacks: Sequence[Callback],
    own_loggers: Sequence[Logger],
) -> Trainer:
    """Make the Trainer that writes to a run's folder.

    Args:
        options: The Trainer's options, with the callbacks, loggers and plugins that the user asks
            for.
        folder: The run's folder.
        device: cpu, cuda or mps.
        chosen_precision: The precision.
        own_callbacks: cellbench's callbacks, which come after the user's.
        own_loggers: cellbench's loggers, which come before the user's.

    Raises:
        UserError: The machine lacks what was asked for, or Lightning refuses the options.
    """
    callbacks = as_list(options["callbacks"])
    plugins = as_list(options["plugins"])
    if (launched := environment()) is not None:
        plugins.append(launched)
    given: dict[str, Any] = {
        **options,
        "precision": chosen_precision,
        "default_root_dir": str(folder.path),
        "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
        "sync_batchnorm": options["sync_batchnorm"] and device == "cuda",
        "logger": [*own_loggers, *as_list(options["logger"])] or False,
        "callbacks": [*callbacks, *own_callbacks],
        "plugins": [*plugins, WholeCheckpointIO()],
    }
    with _told_in_a_line(options):
        return Trainer(**given)


def as_list(value: Any) -> list[Any]:
    """Return an option of the Trainer that may have one object or several as a list of them."""
    if value in (None, False, True):
        return []
    return list(value) if isinstance(value, list) else [value]


@contextmanager
def _told_in_a_line(options: Mapping[str, Any]) -> Iterator[None]:
    """Raise a UserError in place of what Lightning's Trainer does not like."""
    try:
        yield
    except (
        MisconfigurationException,
        ValueError,
        TypeError,
        RuntimeError,
        ImportError,  # of what a profiler or a plugin needs
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"trainer: {reason} (accelerator {options['accelerator']}, devices "
            f"{options['devices']}; leave both out to take what is there)"
        ) from error
