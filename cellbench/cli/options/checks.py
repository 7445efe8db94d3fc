"""Checks of options that depend on each other or that a command does not offer."""

from pathlib import Path

from jsonargparse import Namespace

from cellbench.training.trainer import check_offered
from cellbench.utils.errors import UserError


def check_options(command: str, config: Namespace) -> None:
    """Check a command's options, each of which is valid by itself.

    Args:
        command: fit, validate or test.
        config: Its parsed options.

    Raises:
        UserError: Two options contradict each other, or one is not offered.
    """
    _check_place(config)
    _check_seed(config)
    check_offered(config.trainer)
    if command == "fit":
        _check_phases(config)
    _check_labels_of_images(config)
    _check_checkpoint(command, config)


def check_folder_name(name: str) -> None:
    """Check that a name can be used for a subfolder and as a title.

    Raises:
        UserError: It has a separator or a control character, begins with a dot, is too long or not
            UTF-8.
    """
    is_one = Path(name).name == name and not name.startswith(".") and name.isprintable()
    if not is_one or not 0 < len(name.encode(errors="replace")) <= 200:
        raise UserError(f"--name: '{name}' is not a folder name")


def _check_place(config: Namespace) -> None:
    """Refuse options of a file that decide where a command reads or writes."""
    for option in ("resume", "folder", "run"):
        if config.get(option) is not None:
            raise UserError(f"{option}: give it on the command line, as --{option}")


def _check_seed(config: Namespace) -> None:
    if not 0 <= int(config.seed_everything) < 2**32:
        raise UserError(f"seed_everything: {config.seed_everything} is not in 0 to 2**32 - 1")


def _check_phases(config: Namespace) -> None:
    """Check that the phases last as long as the training."""
    phases = config.model.phases
    epochs = sum(phase["epochs"] for phase in phases) if phases else None
    if epochs not in (None, config.trainer.max_epochs):
        raise UserError(
            f"model.phases: they last {epochs} epochs, and trainer.max_epochs is "
            f"{config.trainer.max_epochs}; make them equal"
        )


def _check_labels_of_images(config: Namespace) -> None:
    """Refuse methods that judge single labels together with those that blend images."""
    blending = [name for name in ("mixup", "cutmix") if config.model[name]]
    blending += ["smote"] if config.data.init_args.smote is not None else []
    judging = ["co_teaching"] if config.model.co_teaching is not None else []
    judging += ["label_history"] if config.label_history else []
    if blending and judging:
        raise UserError(
            f"{judging[0]}: with {blending[0]} an image has no single label to be judged; "
            "choose one of the two"
        )


def _check_checkpoint(command: str, config: Namespace) -> None:
    """Check that scoring has a checkpoint, and that a training has none."""
    if command == "fit" and config.ckpt_path is not None:
        raise UserError("--ckpt_path: fit starts afresh; to go on with a run use --resume RUN")
    if command != "fit" and config.ckpt_path is None:
        raise UserError(f"{command}: which run? give its folder as --run")
