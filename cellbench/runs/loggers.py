"""Weights & Biases and TensorBoard beside the run's own history.csv."""

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.image
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from cellbench.errors import UserError
from cellbench.runs.folder import RunFolder


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
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError("--tensorboard: TensorBoard is not installed; pip install tensorboard")
        made.append(
            TensorBoardLogger(folder.path, name="tensorboard", version="", default_hp_metric=False)
        )
    if wandb_config.mode != "disabled":
        made.append(_wandb(folder, name, wandb_config))
    return made


def _wandb(folder: RunFolder, name: str, config: WandbConfig) -> WandbLogger:
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(
        name=f"{name}/{folder.path.name}",
        id=hashlib.blake2b(str(folder.path.resolve()).encode(), digest_size=6).hexdigest(),
        resume="allow",  # a run that goes on is the same run
        save_dir=str(folder.path),
        mode=config.mode,  # Lightning's own way would keep every later run offline too
        project=config.project,
        entity=config.entity,
        group=config.group,
        tags=list(config.tags),
    )
    try:
        _ = logger.experiment
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        wandb.teardown()
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--wandb.mode: {reason.rstrip('.')}; set WANDB_API_KEY, or use --wandb.mode=offline"
        ) from error
    return logger


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
    """Ends every logger's run, whatever happened."""
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(failed))
