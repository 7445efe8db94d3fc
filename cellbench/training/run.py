"""One run: a training and its scores, or the scores of a checkpoint."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer

import cellbench
from cellbench.artifacts.checkpoint import POOLING, CheckpointConfig, Description
from cellbench.artifacts.folder import RunFolder
from cellbench.artifacts.predictions import Predictions
from cellbench.data.module import CellDataModule
from cellbench.data.table import Part
from cellbench.data.views import needs_mask
from cellbench.models.classifier import CellClassifier
from cellbench.training import compatibility, features, unseen
from cellbench.training.callbacks.averaging import Averaging
from cellbench.training.callbacks.best_epoch import BestEpoch
from cellbench.training.callbacks.label_history import LabelHistory
from cellbench.training.callbacks.progress import Progress
from cellbench.training.callbacks.recorder import Collector, History
from cellbench.training.distributed import Ranks
from cellbench.training.record import RunRecord
from cellbench.training.result import summarise
from cellbench.utils.errors import UserError
from cellbench.utils.terminal import say

RESTORING = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors that Lightning and torch raise if a checkpoint lacks an entry."""


class RunCallbacks(NamedTuple):
    """Callbacks of every training."""

    history: History
    """Losses and metrics by epoch."""
    labels: list[LabelHistory]
    """Probability of each training label by epoch; empty unless it was asked for."""
    collector: Collector
    """Probabilities of the last evaluation."""
    averaging: list[Averaging]
    """Average of the weights; empty unless it was asked for."""
    best: list[BestEpoch]
    """Weights of the best epoch; empty if the last epoch counts as the best."""
    progress: Progress
    """Checkpoints of an unfinished training, and the handling of signals."""

    @classmethod
    def make(
        cls,
        folder: RunFolder,
        data: CellDataModule,
        config: CheckpointConfig,
        ranks: Ranks,
        hint: str,
        *,
        label_history: bool,
    ) -> "RunCallbacks":
        """Make the callbacks of a run.

        Args:
            folder: The run's folder.
            data: The data module.
            config: Choice of the best epoch.
            ranks: The processes of the run.
            hint: Advice that is shown after a signal.
            label_history: True to record the probability of each training label.
        """
        history = History(folder.history)
        averaged = config.average != "none"
        averaging = Averaging(config.average, config.ema_decay) if averaged else None
        best = [BestEpoch(folder.best, config, history, averaging, ranks)]
        return cls(
            history,
            [LabelHistory(folder.label_history, data, ranks)] if label_history else [],
            Collector(ranks),
            [averaging] if averaging else [],
            [] if config.monitor == "last" else best,
            Progress(folder, data, config.every, ranks, hint),
        )

    def in_order(self) -> list[Callback]:
        """Return the callbacks in the order in which Lightning has to call them."""
        watching = [self.history, *self.labels, self.collector, *self.averaging, *self.best]
        return [*watching, self.progress]


@dataclass
class Run:
    """A run, assembled by the command line from its parts."""

    folder: RunFolder
    """Folder that everything is written to."""
    config: dict[str, Any]
    """The whole configuration, as YAML has it."""
    model: CellClassifier
    """The model."""
    data: CellDataModule
    """The data module, set up."""
    trainer: Trainer
    """The trainer, which also has the `callbacks`."""
    checkpoint: CheckpointConfig
    """Choice of the best epoch."""
    callbacks: RunCallbacks
    """Callbacks of the training."""
    ranks: Ranks
    """Processes that share the run; the first of them writes."""
    trains: bool
    """True if the model is trained, False if a checkpoint is scored."""
    draws: bool
    """True if figures are drawn."""

    def __post_init__(self) -> None:
        """Describe the run for its checkpoints, and collect the warning flags known so far."""
        flags = (self.data.partition.leaky, self.data.table.conflict())
        self.warning_flags = [flag for flag in flags if flag]
        self._record = RunRecord(self.folder, self.config, self.trainer.loggers, draws=self.draws)
        self.description = Description(
            cellbench=cellbench.__version__,
            model=self.model.arguments,
            preprocessing=self.data.preprocessing,
            precision=str(self.trainer.precision),
            data=type(self.data).__name__,
            split=self.data.partition.digest,
            # Only a training needs the table of its labels.
            labels=self.data.training.digest if self.trains else "",
            leaky=self.data.partition.leaky,
            masks=self.data.mask_set.digest,
            segmentation=self.data.preprocessing.segments if needs_mask(self.data.view) else "",
            pooling=POOLING,
        )
        self.model.description = self.description.as_plain()

    @cached_property
    def _split(self) -> list[dict[str, str]]:
        """Rows of split.csv."""
        return list(csv.DictReader(io.StringIO(self.data.partition.csv)))

    def fit(self, *, test: bool) -> dict[str, Any] | None:
        """Train, then score the best checkpoint on the validation split and the test split.

        A training that was interrupted in this folder is resumed from its last.ckpt.

        Args:
            test: False to leave the test split out.

        Returns:
            Content of metrics.json; None on all ranks but the first.
        """
        begun = self.ranks.agree(self.folder.last if self.folder.last.is_file() else None)
        if begun is None:
            with self._discarding():
                unseen.check_weights(self._split, self.config)
        with self.callbacks.progress.watching(), self._recorded(begun):
            self._train(begun)
            compatibility.load_weights(self.folder.best, self.model)
            result = self._score(("val", "test") if test else ("val",))
            if result is not None:
                self._record.draw_learning_curves(self.callbacks.history.rows, result)
        return result

    def score(self, part: Literal["val", "test"], ckpt_path: Path) -> dict[str, Any] | None:
        """Score a checkpoint on one part of the split.

        Returns:
            Content of metrics.json; None on all ranks but the first.

        Raises:
            UserError: The checkpoint holds another model, or was trained on images of that part.
        """
        with self._discarding():
            self._check_scored(part, ckpt_path)
        with self.callbacks.progress.watching(), self._recorded():
            return self._score((part,))

    def probabilities(self) -> np.ndarray:
        """Classify every image of the table with the model as it is now.

        Returns:
            Probabilities, (n, classes).
        """
        model, trainer = self.model.eval(), self.trainer
        model.to(trainer.strategy.root_device)
        found = []
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in self.data.every_image(None):
                moved = self.data.transfer_batch_to_device(batch, model.device, 0)
                found.append(model.predict_step(moved).cpu())
        return torch.cat(found).numpy()

    @contextmanager
    def _discarding(self) -> Iterator[None]:
        """Remove the run's folder if the block refuses to begin the run."""
        try:
            yield
        except UserError:
            if self.ranks.first:
                self._record.finish(failed=True)
                self.folder.discard()
            raise

    @contextmanager
    def _recorded(self, begun: Path | None = None) -> Iterator[None]:
        """Record what the block does, on the first rank.

        Args:
            begun: The checkpoint that an interrupted training is resumed from.
        """
        if not self.ranks.first:
            self._check_resumed(begun)
            yield
            return
        with self._record.open(self.trainer):
            self._check_resumed(begun)
            self._record.begin(self.data, resumed=begun is not None)
            yield

    def _check_resumed(self, begun: Path | None) -> None:
        """Make sure that the data of an interrupted training are still the same."""
        if begun is not None:
            trained = compatibility.load_weights(begun, self.model)
            compatibility.check_unchanged(trained, self.description)

    def _check_scored(self, part: Part, ckpt_path: Path) -> None:
        """Load a checkpoint, and refuse or flag what differs from its training."""
        trained = compatibility.load_weights(ckpt_path, self.model)
        if trained.split != self.description.split:
            for run in unseen.lineage(ckpt_path.parent.parent):
                unseen.check_unseen(part, self._split, self.config, run)
            self.warning_flags.append("another split than the run's, without its training's images")
        else:
            compatibility.check_masks(trained, self.description)
        self.warning_flags += compatibility.changed_preprocessing(trained, self.description)

    def _train(self, begun: Path | None) -> None:
        """Train, from a checkpoint if there is one, and write best.ckpt and last.ckpt."""
        kept = features.precompute(self.model, self.data, self.trainer)
        if kept and self.ranks.first:
            say(kept, flush=True)
        try:
            self.trainer.fit(self.model, datamodule=self.data, ckpt_path=begun, weights_only=True)
        except MisconfigurationException as error:
            raise UserError(f"trainer: {str(error).splitlines()[0]:.200}") from error
        except RESTORING as error:
            mistake = self._mistake_behind(error, begun)
            if mistake is None:
                raise
            raise mistake from error
        self.callbacks.progress.save_end(self.trainer)
        if self.checkpoint.monitor == "last":
            self.trainer.save_checkpoint(self.folder.best, weights_only=True)

    def _mistake_behind(self, error: Exception, begun: Path | None) -> UserError | None:
        """Return the user's mistake that caused an error of the training, if there is one."""
        if "more than 1 value per channel" in str(error):
            return UserError(
                f"data.batch_size: {self.data.batch_size} leaves batch norm a single value; give a "
                "larger batch, or larger images"
            )
        if begun is None or self.callbacks.progress.began:
            return None
        return UserError(
            f"--resume: {begun} does not hold the state of this training ({error!r:.80}); "
            "restore it from a copy, or delete it to begin the training afresh"
        )

    def _score(self, parts: Sequence[Literal["val", "test"]]) -> dict[str, Any] | None:
        """Score the model on parts of the split, and record the results."""
        self.trainer.loggers = []  # a second val/loss would add a jump at the end of their curves
        predictions: dict[Part, Predictions] = {part: self._predict(part) for part in parts}
        if not self.ranks.first:
            return None
        self._record.write_predictions(self.data.classes, predictions)
        result = summarise(
            predictions,
            self.data,
            self._split,
            experiment=self.config["name"],
            warning_flags=self.warning_flags,
            epoch=self._best_epoch() if self.callbacks.history.rows else None,
            parameters=sum(p.numel() for p in self.model.parameters()),
        )
        self._record.write_result(result)
        self._record.draw_confusion(result, parts[-1], self.data.classes)
        return result

    def _predict(self, part: Literal["val", "test"]) -> Predictions:
        """Classify the images of a part of the split, on all ranks together."""
        evaluate = self.trainer.validate if part == "val" else self.trainer.test
        evaluate(self.model, datamodule=self.data, verbose=False)
        positions, found = self.callbacks.collector.take()
        if not np.isfinite(found).all():
            raise UserError(
                "the training diverged: the network's output is not finite; lower model.lr"
            )
        if not np.array_equal(positions, self.data.partition.indices(part)):
            raise AssertionError(f"{part}: not every sample was counted once")
        ids = [self.data.table.samples[i].id for i in positions]
        return Predictions(ids, self.data.table.labels[positions], found.astype(np.float32))

    def _best_epoch(self) -> int:
        """Return the number of the epoch that is scored."""
        rows, monitor = self.callbacks.history.rows, self.checkpoint.monitor
        values = [float("nan") if monitor == "last" else row[monitor] for row in rows]
        return int(rows[self.checkpoint.best(values)]["epoch"])
