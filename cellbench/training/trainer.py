"""Lightning's Trainer for a run: its supported options, device and precision, and its setup."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger

from cellbench.artifacts.checkpoint import WholeCheckpointIO, read_checkpoint
from cellbench.artifacts.folder import RunFolder
from cellbench.config.values import shown
from cellbench.training import precision
from cellbench.training.distributed import environment
from cellbench.training.lightning_output import progress_bar
from cellbench.utils.errors import UserError

# torch fills new memory if algorithms must be deterministic; that is not needed, and costs a few
# per cent of the time.
torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 20,  # Lightning's own is 1,000
    "devices": 1,
    "deterministic": "warn",
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "sync_batchnorm": True,  # else each device has statistics of its own share
    "use_distributed_sampler": False,
    "logger": False,
}
"""Options of the Trainer with another default than Lightning's."""

NOT_OFFERED: dict[str, tuple[Sequence[Any], str]] = {
    "limit_val_batches": ((None,), "metrics of a part of the set are unreliable"),
    "limit_test_batches": ((None,), "metrics of a part of the set are unreliable"),
    "limit_train_batches": ((None, *range(1, 10_000)), "give a whole number, at least 1"),
    "overfit_batches": ((None, 0, 0.0), "for a short run use limit_train_batches and max_epochs"),
    "fast_dev_run": ((None, False), "for a short run use limit_train_batches and max_epochs"),
    "check_val_every_n_epoch": ((None, 1), "every epoch is validated, once, at its end"),
    "val_check_interval": ((None,), "every epoch is validated, once, at its end"),
    "max_epochs": (range(1, 1_000_000), "give a number, at least 1"),
    "reload_dataloaders_every_n_epochs": ((0,), "every epoch has a new random order anyway"),
    "max_steps": ((None, -1), "the schedules need whole epochs: use max_epochs"),
    "model_registry": ((None,), "a run writes to its folder only; upload its checkpoints yourself"),
    "max_time": ((None,), "the length of a run must not depend on the machine: use max_epochs"),
    "num_nodes": (range(1, 10_000), "give a number, at least 1"),
    "accumulate_grad_batches": (range(1, 10_000), "give a number, at least 1"),
    "default_root_dir": ((None,), "use --runs and --name"),
    "enable_checkpointing": ((None, True), "use checkpoint.monitor"),
    "strategy": (("auto", "ddp"), "runs on several devices support only ddp"),
    "use_distributed_sampler": ((False,), "cellbench divides the samples among the devices"),
    "barebones": ((False,), "a run without logging has no history.csv"),
}
"""Options of the Trainer that would mislead: the allowed values, and the alternative."""


def check_offered(options: Mapping[str, Any]) -> None:
    """Check that cellbench supports the Trainer's options.

    Args:
        options: The parsed options, by name.

    Raises:
        UserError: An option has an unsupported value.
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
        The number on this machine, and the number on all nodes.

    Raises:
        UserError: The devices do not exist, or another number of processes was started.
    """
    with _user_errors(options):
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

    The configuration holds the requested precision. A chosen one depends on the machine; the
    checkpoint stores it, so that a resumed or scored run keeps it.

    Args:
        asked: trainer.precision.
        begun: Checkpoint that the run resumes from or scores, if there is one.
        device: cpu, cuda or mps.
        grouped: True if the network has grouped convolutions.

    Returns:
        The precision, and the reason for it.
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
        options: The Trainer's options, with the user's callbacks, loggers and plugins.
        folder: The run's folder.
        device: cpu, cuda or mps.
        chosen_precision: The precision.
        own_callbacks: cellbench's callbacks, which come after the user's.
        own_loggers: cellbench's loggers, which come before the user's.

    Raises:
        UserError: The machine lacks a requested device, or Lightning refuses the options.
    """
    callbacks = as_list(options["callbacks"])
    shows_progress = options["enable_progress_bar"] is not False  # null means true
    bars = []
    if shows_progress and not any(isinstance(each, ProgressBar) for each in callbacks):
        bars.append(progress_bar())
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
        "callbacks": [*callbacks, *own_callbacks, *bars],
        "plugins": [*plugins, WholeCheckpointIO()],
    }
    with _user_errors(options):
        return Trainer(**given)


def as_list(value: Any) -> list[Any]:
    """Return an option that may hold one object, or a list of them, as a list."""
    if value in (None, False, True):
        return []
    return list(value) if isinstance(value, list) else [value]


@contextmanager
def _user_errors(options: Mapping[str, Any]) -> Iterator[None]:
    """Convert the errors of Lightning's Trainer to a UserError."""
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
