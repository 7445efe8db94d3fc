"""Loggers of a run besides its own history.csv: Weights & Biases and TensorBoard."""

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

from cellbench.artifacts.folder import RunFolder
from cellbench.utils.errors import Interrupted, UserError
from cellbench.utils.terminal import say

if TYPE_CHECKING:  # importing it takes a second
    from wandb import Run

FINISH_TIMEOUT = 120.0
"""Seconds that a run waits at its end for W&B to receive the rest; the folder has everything."""


@dataclass(frozen=True)
class WandbConfig:
    """Options of Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = "disabled"
    """online, offline (send it later with `wandb sync`), or disabled."""
    project: str = "cellbench"
    """Name of the project."""
    entity: str | None = None
    """User or team; null for the account's default."""
    group: str | None = None
    """Group that the run belongs to."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""


def build(
    folder: RunFolder, name: str, wandb_config: WandbConfig, tensorboard: bool
) -> list[Logger]:
    """Make the loggers that were asked for, all of which write into the run's folder.

    Args:
        folder: The run's folder.
        name: Name of the experiment.
        wandb_config: Options of Weights & Biases.
        tensorboard: True for a TensorBoard logger.

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
    """Make sure that TensorBoard is installed.

    Raises:
        UserError: It is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: TensorBoard is not installed; pip install tensorboard")


def _wandb(folder: RunFolder, name: str, config: WandbConfig) -> WandbLogger:
    """Make the logger of Weights & Biases, and begin its run."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    goes_on = config.mode == "online" or any(folder.path.glob("wandb/offline-run-*"))
    logger = WandbLogger(
        name=f"{name}/{folder.path.name}",
        id=run_id(folder.path),
        # A resumed run continues the same W&B run; one that begins offline can be synced twice.
        resume="allow" if goes_on else None,
        save_dir=str(folder.path),
        mode=config.mode,  # with Lightning's own option every later run would be offline too
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
    """Return the W&B id of a folder, the same each time, so that W&B continues the same run."""
    return hashlib.blake2b(str(folder.resolve()).encode(), digest_size=6).hexdigest()


@contextmanager
def refusals(option: str) -> Iterator[None]:
    """Turn wandb's errors about a missing key, a refused key or a silent server into a UserError.

    Args:
        option: Option that has asked for W&B.

    Raises:
        UserError: W&B cannot be used.
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
            said = f"no run at {server} ({reason}); check key and network, or use offline"
        raise UserError(f"{option}: {said}") from error


def log_config(loggers: list[Logger], config: dict[str, Any]) -> None:
    """Log the whole configuration."""
    for logger in loggers:
        logger.log_hyperparams(config)


def log_result(loggers: list[Logger], config: dict[str, Any], result: dict[str, Any]) -> None:
    """Log the final metrics with their intervals, as `best/<part>/<metric>`.

    Args:
        loggers: The loggers.
        config: The configuration, which TensorBoard's view of hyperparameters needs as well.
        result: Content of metrics.json.
    """
    flat = {
        f"best/{part}/{name}{end}": value[key]
        for part in ("val", "test")
        for name, value in result.get(part, {}).get("metrics", {}).items()
        for end, key in (("", "value"), ("_low", "low"), ("_high", "high"), ("_base", "baseline"))
    }
    facts = {"split_digest": result["split"]["digest"], "stamps": result["stamps"]}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(flat | facts)
        elif isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(config, flat)
        else:
            logger.log_metrics(flat)


def log_figure(loggers: list[Logger], path: Path) -> None:
    """Log a PNG file to each logger that can show images."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(path.stem, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            image = matplotlib.image.imread(path)
            logger.experiment.add_image(path.stem, image, dataformats="HWC")


def finish(loggers: list[Logger], *, failed: bool) -> None:
    """Finish the run of each logger.

    W&B shows it as finished or failed. If an Interrupted is being handled, W&B shows it as killed
    (Ctrl-C) or preempted (any other signal), since it may go on later.

    Args:
        loggers: The loggers.
        failed: True if the run has failed.
    """
    error = sys.exception()
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbLogger):
            _finish_wandb(logger.experiment, int(failed), error)


def _finish_wandb(run: "Run", exit_code: int, error: BaseException | None) -> None:
    """Finish a W&B run, without waiting for ever for a server that does not answer."""
    if isinstance(error, Interrupted):
        exit_code = 128 + error.signum
        if error.signum == signal.SIGINT:
            exit_code = 255  # wandb's own exit code on Ctrl-C
        else:
            run.mark_preempting()
    folder = run.settings.sync_dir
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        say(f"NOTE       W&B does not answer; what it lacks: wandb sync {folder}", flush=True)
