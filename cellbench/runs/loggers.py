"""Weights & Biases and TensorBoard beside the run's own history.csv."""

import hashlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.image
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from cellbench.errors import Interrupted, UserError
from cellbench.runs.folder import RunFolder
from cellbench.terminal import say

if TYPE_CHECKING:  # importing it takes a second
    from wandb import Run

FINISH_TIMEOUT = 120.0
"""Seconds that a run waits at its end for W&B to take what is left; the folder keeps all."""


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases.

    Attributes:
        mode: online, offline (send it later with `wandb sync`), or disabled.
        project: The project's name.
        entity: The user or team; null for the account's default.
        group: The group that the run belongs to.
        tags: The run's tags.
    """

    mode: Literal["online", "offline", "disabled"] = "disabled"
    project: str = "cellbench"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


def build(
    folder: RunFolder, name: str, wandb_config: WandbConfig, tensorboard: bool
) -> list[Logger]:
    """Makes the loggers that were asked for; all write into the run's folder.

    Raises:
        UserError: W&B has no key or no network, or TensorBoard is not installed.
    """
    made: list[Logger] = []
    if tensorboard:
        check_tensorboard()
        made.append(
            TensorBoardLogger(folder.path, name="tensorboard", version="", default_hp_metric=False)
        )
    if wandb_config.mode != "disabled":
        made.append(_wandb(folder, name, wandb_config))
    return made


def check_tensorboard() -> None:
    """Makes sure that TensorBoard is there.

    Raises:
        UserError: It is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: TensorBoard is not installed; pip install tensorboard")


def _wandb(folder: RunFolder, name: str, config: WandbConfig) -> WandbLogger:
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    goes_on = config.mode == "online" or any(folder.path.glob("wandb/offline-run-*"))
    logger = WandbLogger(
        name=f"{name}/{folder.path.name}",
        id=run_id(folder.path),
        # A run that goes on is the same run; one that begins offline can be synced twice.
        resume="allow" if goes_on else None,
        save_dir=str(folder.path),
        mode=config.mode,  # Lightning's own way would keep every later run offline too
        project=config.project,
        entity=config.entity,
        group=config.group,
        tags=list(config.tags),
        settings=wandb.Settings(finish_timeout=FINISH_TIMEOUT, finish_timeout_raises=True),
    )
    with refusals("--wandb.mode"):
        _ = logger.experiment
    return logger


def run_id(folder: Path) -> str:
    """W&B's id of what lies in a folder: given again, it is the same run."""
    return hashlib.blake2b(str(folder.resolve()).encode(), digest_size=6).hexdigest()


@contextmanager
def refusals(option: str) -> Iterator[None]:
    """Says in one line that W&B has no key, refuses it, or does not answer.

    Args:
        option: What has asked for W&B.

    Raises:
        UserError: In the place of wandb's own errors.
    """
    import wandb

    try:
        yield
    except (wandb.errors.CommError, wandb.errors.UsageError, TimeoutError) as error:
        server = wandb.setup().settings.base_url
        wandb.teardown()
        reason = " ".join(str(error).split()).rstrip(".")
        if isinstance(error, wandb.errors.UsageError):  # the server was not asked
            said = f"{reason.partition('. ')[0]}; set WANDB_API_KEY, or use offline"
        else:
            said = f"no run at {server} ({reason}); see to key and network, or use offline"
        raise UserError(f"{option}: {said}") from error


def log_config(loggers: list[Logger], config: dict[str, Any]) -> None:
    """Gives every logger the whole configuration."""
    for logger in loggers:
        logger.log_hyperparams(config)


def log_result(loggers: list[Logger], config: dict[str, Any], result: dict[str, Any]) -> None:
    """Gives every logger the final metrics with their intervals, as `best/<part>/<metric>`.

    TensorBoard's view of hyperparameters needs them beside the configuration.
    """
    flat = {
        f"best/{part}/{name}{end}": value[key]
        for part in ("val", "test")
        for name, value in result.get(part, {}).get("metrics", {}).items()
        for end, key in (("", "value"), ("_low", "low"), ("_high", "high"), ("_base", "baseline"))
    }
    marks = {"split_digest": result["split"]["digest"], "stamps": result["stamps"]}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(flat | marks)
        elif isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(config, flat)
        else:
            logger.log_metrics(flat)


def log_figure(loggers: list[Logger], path: Path) -> None:
    """Shows a PNG file in every logger that shows images."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(path.stem, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            image = matplotlib.image.imread(path)
            logger.experiment.add_image(path.stem, image, dataformats="HWC")


def finish(loggers: list[Logger], *, failed: bool) -> None:
    """Ends every logger's run, whatever happened.

    To W&B a run has failed, or, where an Interrupted is on its way, was killed (Ctrl-C) or
    preempted (a scheduler's signal, or a sweep's): it may go on later.
    """
    error = sys.exception()
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbLogger):
            _finish_wandb(logger.experiment, int(failed), error)


def _finish_wandb(run: "Run", exit_code: int, error: BaseException | None) -> None:
    if isinstance(error, Interrupted):
        exit_code = 128 + error.signum
        if error.signum == signal.SIGINT:
            exit_code = 255  # what wandb itself ends with on Ctrl-C
        else:
            run.mark_preempting()
    folder = run.settings.sync_dir
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        say(f"NOTE       W&B does not answer; what it lacks: wandb sync {folder}", flush=True)
