"""Checkpoints: written whole, and read without running what is in them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cellbench.data.preprocessing import Preprocessing
from cellbench.data.views import View
from cellbench.errors import UserError
from cellbench.models.classifier import DESCRIPTION
from cellbench.runs.folder import RunFolder, whole_file


@dataclass(frozen=True)
class CheckpointConfig:
    """Which epoch's weights are scored and kept as best.ckpt.

    Attributes:
        monitor: What is compared after every epoch: the lowest loss, or the highest of the others.
            last takes the last epoch: right where a schedule ends at zero and the validation
            split is too small to choose by.
        every: Seconds between two saves of last.ckpt, from which an interrupted run goes on.
    """

    monitor: Literal[
        "val/loss", "val/accuracy", "val/balanced_accuracy", "val/f1_macro", "last"
    ] = "val/loss"
    every: float = 60.0

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether lower or higher is better."""
        return "min" if self.monitor == "val/loss" else "max"


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself, in plain values.

    Attributes:
        cellbench: The version that wrote it.
        model: The model's arguments.
        preprocessing: What is done to the pixels before the model.
        precision: Lightning's name of the training's precision.
        data: The data module's class name.
        split: The split's digest.
        leaky: Why the split's numbers are not to be believed; None where they are.
    """

    cellbench: str
    model: dict[str, Any]
    preprocessing: Preprocessing
    precision: str
    data: str
    split: str
    leaky: str | None

    def as_plain(self) -> dict[str, Any]:
        """Dictionaries, lists, strings and numbers alone: what weights_only=True lets through."""
        plain = asdict(self)
        plain["preprocessing"]["image_size"] = list(self.preprocessing.image_size)
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Description":
        """Reads `as_plain` back.

        Raises:
            KeyError: An entry is missing.
            TypeError: There is an unknown one.
            ValueError: A value is not one that `as_plain` gives.
        """
        if plain["model"].keys() != {"classes", "image_size", "backbone", "head"}:
            raise ValueError("not what CellClassifier.arguments gives")
        if plain["preprocessing"]["view"] not in get_args(View):
            raise ValueError("unknown view")
        given = plain["preprocessing"]
        size = (int(given["image_size"][0]), int(given["image_size"][1]))
        return cls(**(plain | {"preprocessing": Preprocessing(**(given | {"image_size": size}))}))


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Saves it beside, then moves it there.

        Raises:
            UserError: It cannot be written.
        """
        with whole_file(Path(path)) as beside:
            try:
                torch.save(checkpoint, beside)
            except RuntimeError as error:  # what torch's writer makes of a full disk
                raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def best_epoch(folder: RunFolder, config: CheckpointConfig) -> list[ModelCheckpoint]:
    """The callback that keeps the weights of the best epoch; none where that is the last."""
    if config.monitor == "last":
        return []
    return [
        ModelCheckpoint(
            dirpath=folder.best.parent,
            filename=folder.best.stem,
            monitor=config.monitor,
            mode=config.mode,
            save_weights_only=True,
            enable_version_counter=False,
        )
    ]


def read_checkpoint(path: Path) -> tuple[Description, dict[str, torch.Tensor]]:
    """Reads a checkpoint of cellbench's; no code in it is run.

    Returns:
        What it says of itself, and the model's state dict.

    Raises:
        UserError: It is missing, or not a checkpoint of cellbench's.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; has the run finished an epoch?")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, torch.Tensor] = dict(checkpoint["state_dict"])
        return Description.from_plain(checkpoint[DESCRIPTION]), state
    except Exception as error:  # whatever a file of another kind provokes in torch's reader
        raise UserError(f"{path} is not a whole checkpoint of cellbench's") from error
