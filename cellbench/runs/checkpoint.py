"""Checkpoints: written whole, and read without running what is in them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from cellbench import torch_files
from cellbench.data.preprocessing import LARGEST_SIDE, SMALLEST_SIDE, Masks, Preprocessing
from cellbench.data.stain import Normalisation
from cellbench.data.views import View
from cellbench.errors import CannotWrite, UserError
from cellbench.models.classifier import CellClassifier
from cellbench.models.heads import OwnPooling
from cellbench.models.norms import Norm
from cellbench.models.weights import DESCRIPTION
from cellbench.runs.averaging import Average, Averaging
from cellbench.runs.folder import whole_file
from cellbench.runs.ranks import Ranks
from cellbench.runs.recorder import History
from cellbench.terminal import say


@dataclass(frozen=True)
class CheckpointConfig:
    """Which epoch's weights are scored and kept as best.ckpt.

    Attributes:
        monitor: What is compared after every epoch: the lowest loss, or the highest of the others.
            last takes the last epoch: right where a schedule ends at zero and the validation
            split is too small to choose by.
        patience: Epochs without a better one after which a training ends early, counted in its last
            phase; null for never.
        average: Which weights, and batch norm's statistics, are validated, scored and kept: none
            for each epoch's own; ema for their exponential moving average over the steps; swa for
            the mean of the last quarter's epochs, with statistics computed anew over the training
            images (Izmailov et al., UAI 2018).
        ema_decay: How slowly the moving average follows; it begins faster.
        every: Seconds between two saves of last.ckpt, from which an interrupted run goes on, and
            of best.ckpt, where there is a better epoch.
    """

    monitor: Literal[
        "val/loss", "val/accuracy", "val/balanced_accuracy", "val/f1_macro", "last"
    ] = "val/loss"
    patience: int | None = None
    average: Average = "none"
    ema_decay: float = 0.99
    every: float = 60.0

    def __post_init__(self) -> None:
        """Raises UserError where a value is out of its range."""
        if self.patience is not None and self.patience < 1:
            raise UserError(f"checkpoint.patience: {self.patience} is less than 1")
        if self.patience is not None and self.monitor == "last":
            raise UserError("checkpoint.patience: the last epoch is never better; choose a monitor")
        if self.every < 0:
            raise UserError(f"checkpoint.every: {self.every} is less than 0")
        if not 0 < self.ema_decay < 1:
            raise UserError(f"checkpoint.ema_decay: {self.ema_decay} is not between 0 and 1")

    def best(self, values: Sequence[float]) -> int:
        """The epoch that is scored, of those with the given values of `monitor`.

        The first of equals; one whose value is no number only where there is no other.
        """
        if self.monitor == "last":
            return len(values) - 1
        sign = -1 if self.monitor == "val/loss" else 1
        return int(np.nan_to_num(sign * np.array(values), nan=-np.inf, posinf=np.inf).argmax())


POOLING = 2
"""The version of `model.head.pool: avg`: raise it when some network's pooled features change.

Version 1 averaged the maps of every network of timm, whatever the network has behind its pooling.
"""


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
        labels: A digest of the training images and their labels, as they were trained on.
        leaky: Why the split's numbers are not to be believed; None where they are.
        masks: A digest of the masks that the view uses; empty if it uses none, or if the
            checkpoint is older than this entry.
        pooling: The version of the pooling that it was trained with, as `POOLING`.
    """

    cellbench: str
    model: dict[str, Any]
    preprocessing: Preprocessing
    precision: str
    data: str
    split: str
    labels: str
    leaky: str | None
    masks: str = ""
    pooling: int = 1

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
        model, given = plain["model"], plain["preprocessing"]
        if model.keys() != {"classes", "image_size", "backbone", "norm", "head"}:
            raise ValueError("not what CellClassifier.arguments gives")
        classes = model["classes"]
        if not all(isinstance(name, str) for name in [*classes, model["backbone"], model["norm"]]):
            raise ValueError("a name that is no text")
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise ValueError("not two classes or more")
        if model["norm"] not in get_args(Norm):
            raise ValueError("unknown norm")
        if given["view"] not in get_args(View):
            raise ValueError("unknown view")
        if given.get("masks", "expert") not in get_args(Masks):
            raise ValueError("unknown masks")
        if given.get("stain", "none") not in get_args(Normalisation):
            raise ValueError("unknown stain")
        if given["fill"] not in range(256):
            raise ValueError("a fill that is no byte")
        height, width = given["image_size"]
        for side in (height, width):
            if not isinstance(side, int) or not SMALLEST_SIDE <= side <= LARGEST_SIDE:
                raise ValueError(f"an image size of {side}")
        if list(model["image_size"]) != [height, width]:
            raise ValueError("two image sizes")
        texts = [plain[key] for key in ("cellbench", "precision", "data", "split", "labels")]
        if not all(isinstance(text, str) for text in [*texts, plain["leaky"] or ""]):
            raise ValueError("a description that is no text")
        if not isinstance(plain.get("pooling", 1), int):
            raise ValueError("a version that is no number")
        prepared = Preprocessing(**(given | {"image_size": (height, width)}))
        return cls(**(plain | {"preprocessing": prepared}))


STATE = ("callbacks", "loops", "lr_schedulers", "optimizer_states", "progress", "state_dict")
"""The parts of a last.ckpt that a training goes on from."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads none that has changed since."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save it with its digest beside, then move it there.

        Raises:
            CannotWrite: It cannot be written.
        """
        with whole_file(Path(path)) as beside:
            try:
                torch.save(torch_files.seal(checkpoint), beside)
            except RuntimeError as error:  # what torch's writer makes of a full disk
                raise CannotWrite(f"cannot write {path}: {str(error).splitlines()[0]}") from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read one to go on from.

        Raises:
            UserError: It is damaged, or not the whole state of a training.
        """
        checkpoint = _read(Path(path))
        lacking = [key for key in STATE if key not in checkpoint]
        # Lightning leaves out in silence what is not there.
        if not lacking and History.__qualname__ not in checkpoint["callbacks"]:
            lacking = ["callbacks"]
        if not lacking and "fit_loop" not in checkpoint["loops"]:
            lacking = ["loops"]
        if lacking:
            raise UserError(
                f"--resume: {path} does not hold the state of this training ('{lacking[0]}' is "
                "missing); restore it from a copy, or delete it to begin the training afresh"
            )
        return checkpoint


class BestEpoch(Callback):
    """Keeps the weights of the best epoch, and writes best.ckpt before every last.ckpt.

    A write for every better epoch would cost more than many an epoch, and a run that is killed goes
    on from last.ckpt anyway.

    Args:
        path: The file.
        config: Which epoch is the best.
        history: The epochs before.
        averaging: What the weights are averaged by, if they are.
        ranks: The first of them writes.
    """

    def __init__(
        self,
        path: Path,
        config: CheckpointConfig,
        history: History,
        averaging: Averaging | None,
        ranks: Ranks,
    ) -> None:
        self._path = path
        self._config = config
        self._history = history
        self._averaging = averaging
        self._ranks = ranks
        self._unwritten: dict[str, Any] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the weights, where they are the best so far."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        monitor = self._config.monitor
        values = [row[monitor] for row in self._history.rows]
        values.append(float(trainer.callback_metrics[monitor]))
        if self._ranks.first and self._config.best(values) == len(values) - 1:
            # What no phase trains need not be copied.
            groups = [group for each in trainer.optimizers for group in each.param_groups]
            learns = {id(p) for group in groups for p in group["params"]}
            frozen = {name for name, p in pl_module.named_parameters() if id(p) not in learns}
            weights = pl_module.state_dict()
            if self._averaging is not None:
                weights = self._averaging.validated_weights(trainer, pl_module)
            kept = {k: v if k in frozen else v.to("cpu", copy=True) for k, v in weights.items()}
            self._unwritten = {"state_dict": kept, "epoch": trainer.current_epoch}
            pl_module.on_save_checkpoint(self._unwritten)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a training that has not got better for too long."""
        values = [row[self._config.monitor] for row in self._history.rows]
        assert isinstance(pl_module, CellClassifier)
        patience = self._config.patience
        waited = len(values) - max(self._config.best(values) + 1, pl_module.last_phase)
        if patience is not None and waited >= patience:
            trainer.should_stop = True
            if trainer.is_global_zero and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
                say(f"stops after epoch {trainer.current_epoch}: {patience} without a better one")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes them."""
        self._write()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Writes them: what the training has found is not lost."""
        self._write()

    def _write(self) -> None:
        if self._unwritten is not None:
            WholeCheckpointIO().save_checkpoint(self._unwritten, self._path)
            self._unwritten = None


def read_checkpoint(path: Path) -> tuple[Description, dict[str, torch.Tensor]]:
    """Read a checkpoint of cellbench's; no code in it is run.

    Returns:
        What it says of itself, and the model's state dict.

    Raises:
        UserError: It is missing, damaged, not a checkpoint of cellbench's, or has weights that are
            not finite.
    """
    checkpoint = _read(path)
    try:
        state: dict[str, torch.Tensor] = dict(checkpoint["state_dict"])
        description = Description.from_plain(checkpoint[DESCRIPTION])
    except Exception as error:  # whatever a file of another kind holds
        raise _not_whole(path, "it does not describe its model") from error
    torch_files.check_finite(state, str(path))
    return description, state


def check_pooling(described: Description, model: CellClassifier) -> None:
    """Refuse a checkpoint whose features this version of cellbench would pool differently.

    Args:
        described: What the checkpoint says of itself.
        model: Its model, with its weights.

    Raises:
        UserError: The model may predict something else than it did when it was trained.
    """
    if described.pooling >= POOLING or not isinstance(model.pool, OwnPooling):
        return
    shape = (2, 3, *described.preprocessing.image_size)
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
    return UserError(
        f"{path} is not a whole checkpoint of cellbench's: {why}; restore it from a copy, or train "
        "again"
    )
