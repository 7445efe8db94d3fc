"""Checkpoints, written whole or not at all, and read without running any code in them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cellbench.artifacts.folder import whole_file
from cellbench.data.cellpose import CellposeConfig
from cellbench.data.image_format import MAX_CHANNELS, read_stored
from cellbench.data.mask_format import MaskFormat
from cellbench.data.preprocessing import (
    LARGEST_SIDE,
    SMALLEST_SIDE,
    Fit,
    Masks,
    Preprocessing,
)
from cellbench.data.stain import Normalisation
from cellbench.data.views import View, needs_mask
from cellbench.models.classifier import CellClassifier
from cellbench.models.heads import OwnPooling
from cellbench.models.norms import Norm
from cellbench.models.weights import DESCRIPTION
from cellbench.utils import torch_files
from cellbench.utils.errors import CannotWrite, UserError

_HISTORY = "History"
"""Key that Lightning gives to the state of the callback which records the epochs."""

Average = Literal["none", "ema", "swa"]
"""Kind of average of the weights."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Choice of the epoch whose weights are scored and kept as best.ckpt."""

    monitor: Literal[
        "val/loss", "val/accuracy", "val/balanced_accuracy", "val/f1_macro", "last"
    ] = "val/loss"
    """Metric that the epochs are compared by: the lowest loss, or the highest value of the others.
    last takes the last epoch, for schedules that end at zero and validation splits that are too
    small to choose by."""
    patience: int | None = None
    """Epochs without a better one after which a training ends early, counted in its last phase;
    null for never."""
    average: Average = "none"
    """Weights, with their batch norm statistics, that are validated, scored and kept: none for each
    epoch's own; ema for their exponential moving average over the steps; swa for the mean over the
    epochs of the last quarter, with statistics computed anew over the training images (Izmailov et
    al., UAI 2018)."""
    ema_decay: float = 0.99
    """Decay of the moving average, from 0 to 1; it is lower in the first steps."""
    every: float = 60.0
    """Seconds between two saves of last.ckpt, which an interrupted run is resumed from, and of
    best.ckpt if there is a better epoch."""

    def __post_init__(self) -> None:
        """Raise UserError if a value is out of its range."""
        if self.patience is not None and self.patience < 1:
            raise UserError(f"checkpoint.patience: {self.patience} is less than 1")
        if self.patience is not None and self.monitor == "last":
            raise UserError("checkpoint.patience: the last epoch is never better; choose a monitor")
        if self.every < 0:
            raise UserError(f"checkpoint.every: {self.every} is less than 0")
        if not 0 < self.ema_decay < 1:
            raise UserError(f"checkpoint.ema_decay: {self.ema_decay} is not between 0 and 1")

    def best(self, values: Sequence[float]) -> int:
        """Return the position of the best epoch.

        Of equal values the first is the best; NaN is the best only if there is nothing else.

        Args:
            values: Each epoch's value of `monitor`.
        """
        if self.monitor == "last":
            return len(values) - 1
        sign = -1 if self.monitor == "val/loss" else 1
        return int(np.nan_to_num(sign * np.array(values), nan=-np.inf, posinf=np.inf).argmax())


POOLING = 2
"""Version of `model.head.pool: avg`; raise it whenever a network's pooled features change.

Version 1 averaged the feature maps of every timm network, even of those with layers after their
pooling.
"""


@dataclass(frozen=True)
class Description:
    """Description of a checkpoint, which is stored in it."""

    cellbench: str
    """Version of cellbench that wrote the checkpoint."""
    model: dict[str, Any]
    """The model's arguments."""
    preprocessing: Preprocessing
    """Preparation of the pixels for the model."""
    precision: str
    """Lightning's name of the training's precision."""
    data: str
    """Class name of the data module."""
    split: str
    """Digest of the split."""
    labels: str
    """Digest of the training images with the labels that they were trained on."""
    leaky: str | None
    """Reason why scores on the split are unreliable; None if they are reliable."""
    masks: str = ""
    """Digest of the masks that the view uses; empty if it uses none, or if the checkpoint is older
    than this entry."""
    pooling: int = 1
    """Version of the pooling in the training, as in `POOLING`."""
    segmentation: str = ""
    """Segmentation that made the masks, as in `Preprocessing.segments`; empty if an expert did, or
    if the checkpoint is older than this entry."""

    def as_plain(self) -> dict[str, Any]:
        """Return it as dictionaries, lists, strings and numbers, which weights_only=True allows."""
        plain = asdict(self)
        plain["preprocessing"]["image_size"] = list(self.preprocessing.image_size)
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Description":
        """Return the description that `as_plain` gave.

        Raises:
            KeyError: An entry is missing.
            TypeError: There is an unknown one.
            ValueError: `as_plain` never gives such a value.
        """
        model = {"channels": 3} | plain["model"]  # earlier versions had RGB alone
        given = plain["preprocessing"]
        known = {"classes", "image_size", "channels", "backbone", "norm", "head"}
        if model.keys() != known:
            raise ValueError("not what CellClassifier.arguments gives")
        if not 1 <= model["channels"] <= MAX_CHANNELS:
            raise ValueError("an impossible number of channels")
        classes = model["classes"]
        if not all(isinstance(name, str) for name in [*classes, model["backbone"], model["norm"]]):
            raise ValueError("a name is not a text")
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise ValueError("fewer than two classes")
        if model["norm"] not in get_args(Norm):
            raise ValueError("unknown norm")
        if given["view"] not in get_args(View):
            raise ValueError("unknown view")
        if given.get("masks", "expert") not in get_args(Masks):
            raise ValueError("unknown masks")
        if given.get("stain", "none") not in get_args(Normalisation):
            raise ValueError("unknown stain")
        if given["fill"] not in range(256):
            raise ValueError("a fill outside 0 to 255")
        height, width = given["image_size"]
        for side in (height, width):
            if not isinstance(side, int) or not SMALLEST_SIDE <= side <= LARGEST_SIDE:
                raise ValueError(f"an image size of {side}")
        if list(model["image_size"]) != [height, width]:
            raise ValueError("two different image sizes")
        texts = [plain[key] for key in ("cellbench", "precision", "data", "split", "labels")]
        texts.append(plain.get("segmentation", ""))
        if not all(isinstance(text, str) for text in [*texts, plain["leaky"] or ""]):
            raise ValueError("a description is not a text")
        if not isinstance(plain.get("pooling", 1), int):
            raise ValueError("a version is not a number")
        if given.get("fit", "stretch") not in get_args(Fit):
            raise ValueError("unknown fit")
        changed = {
            "image_size": (height, width),
            "image_format": read_stored(given.get("image_format", {}), given["fill"]),
            "mask_format": MaskFormat.from_plain(given.get("mask_format", asdict(MaskFormat()))),
            "cellpose": CellposeConfig.from_plain(given.get("cellpose", {})),
        }
        prepared = Preprocessing(**(given | changed))
        if prepared.n_channels != model["channels"]:
            raise ValueError("two different numbers of channels")
        return cls(**(plain | {"model": model, "preprocessing": prepared}))


STATE = ("callbacks", "loops", "lr_schedulers", "optimizer_states", "progress", "state_dict")
"""Entries of a last.ckpt that a training needs to go on."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Checkpoint reader and writer: files are complete or absent, and changed ones are refused."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save a checkpoint with its digest to a temporary file, then rename it.

        Raises:
            CannotWrite: It cannot be written.
        """
        with whole_file(Path(path)) as beside:
            try:
                torch.save(torch_files.seal(checkpoint), beside)
            except RuntimeError as error:  # torch's writer raises it if the disk is full
                raise CannotWrite(f"cannot write {path}: {str(error).splitlines()[0]}") from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint that a training is to go on from.

        Raises:
            UserError: It is damaged, or lacks a part of the training's state.
        """
        checkpoint = _read(Path(path))
        lacking = [key for key in STATE if key not in checkpoint]
        # Lightning ignores missing entries silently.
        if not lacking and _HISTORY not in checkpoint["callbacks"]:
            lacking = ["callbacks"]
        if not lacking and "fit_loop" not in checkpoint["loops"]:
            lacking = ["loops"]
        if lacking:
            raise UserError(
                f"--resume: {path} does not hold the state of this training ('{lacking[0]}' is "
                "missing); restore it from a copy, or delete it to begin the training afresh"
            )
        return checkpoint


def read_checkpoint(path: Path) -> tuple[Description, dict[str, torch.Tensor]]:
    """Read a checkpoint without running any code in it.

    Returns:
        Its description of itself, and the model's state dict.

    Raises:
        UserError: It is missing, damaged, not a checkpoint of cellbench, or has weights that are
            not finite.
    """
    checkpoint = _read(path)
    try:
        state: dict[str, torch.Tensor] = dict(checkpoint["state_dict"])
        description = Description.from_plain(checkpoint[DESCRIPTION])
    except Exception as error:  # a file of another kind may hold anything
        raise _not_whole(path, "it does not describe its model") from error
    torch_files.check_finite(state, str(path))
    return description, state


def check_segmentation(described: Description) -> None:
    """Refuse a checkpoint whose masks this version of cellbench would make differently.

    Args:
        described: The checkpoint's description of itself.

    Raises:
        UserError: The segmentation is another one.
    """
    prepared = described.preprocessing
    if prepared.masks == "expert" or not needs_mask(prepared.view):
        return
    # Automatic masks were of the first version before checkpoints said so.
    trained = described.segmentation or ("auto 1" if prepared.masks == "auto" else "")
    if trained not in ("", prepared.segments):
        raise UserError(
            f"the run was trained on masks by another segmentation ({trained}; here "
            f"{prepared.segments}); train again"
        )


def check_pooling(described: Description, model: CellClassifier) -> None:
    """Refuse a checkpoint whose features this version of cellbench would pool differently.

    Args:
        described: The checkpoint's description of itself.
        model: Its model, with its weights.

    Raises:
        UserError: The model may predict differently than in its training.
    """
    if described.pooling >= POOLING or not isinstance(model.pool, OwnPooling):
        return
    shape = (2, model.channels, *described.preprocessing.image_size)
    noise = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    training = model.training
    model.eval()
    with torch.no_grad():
        same = model.pool.only_averages(model.backbone(model.normalise(noise)))
    model.train(training)
    if not same:
        raise UserError(
            "the checkpoint is of an earlier cellbench, which may have pooled the features of "
            f"{described.model['backbone']} in another way; train again"
        )


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint.

    Raises:
        UserError: It is missing, or damaged.
    """
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}; has the run finished an epoch?")
    try:
        checkpoint = torch_files.read(path)
    except torch_files.Damaged as error:
        raise _not_whole(path, str(error)) from error
    if not isinstance(checkpoint, dict):
        raise _not_whole(path, "it holds no names")
    return checkpoint


def _not_whole(path: Path, why: str) -> UserError:
    """Return the error for a damaged checkpoint."""
    return UserError(
        f"{path} is not a whole checkpoint of cellbench's: {why}; restore it from a copy, or train "
        "again"
    )
