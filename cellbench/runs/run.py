"""One run: what is trained, what is scored, and all that is written of it."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer

import cellbench
from cellbench.config import yaml
from cellbench.data.module import CellDataModule
from cellbench.data.splits import first_seen, read_split
from cellbench.data.table import Part
from cellbench.data.views import needs_mask
from cellbench.errors import UserError
from cellbench.models.classifier import CellClassifier
from cellbench.runs import environment, features, figures, loggers, probabilities
from cellbench.runs.averaging import Averaging
from cellbench.runs.checkpoint import (
    POOLING,
    BestEpoch,
    CheckpointConfig,
    Description,
    check_pooling,
    read_checkpoint,
)
from cellbench.runs.folder import RunFolder, as_yaml, write_text
from cellbench.runs.label_history import LabelHistory
from cellbench.runs.predictions import Predictions, read_predictions, write_predictions
from cellbench.runs.progress import Progress
from cellbench.runs.ranks import Ranks
from cellbench.runs.recorder import Collector, History
from cellbench.terminal import say

RESTORING = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors of Lightning's and torch's where a checkpoint lacks what they look for."""


class RunCallbacks(NamedTuple):
    """What every training is watched by.

    Attributes:
        history: The losses and metrics by epoch.
        labels: The labels' probabilities by epoch, where that is asked for.
        collector: The probabilities of the last evaluation.
        averaging: Averages the weights, where that is asked for.
        best: Keeps the best epoch's weights; none where that is the last.
        progress: Saves the training's state, and handles signals.
    """

    history: History
    labels: list[LabelHistory]
    collector: Collector
    averaging: list[Averaging]
    best: list[BestEpoch]
    progress: Progress

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
        """Makes them for a run; the hint says what to do after a signal."""
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
        """As Lightning is to call them."""
        watching = [self.history, *self.labels, self.collector, *self.averaging, *self.best]
        return [*watching, self.progress]


@dataclass
class Run:
    """A run's parts, made by the command line.

    Attributes:
        folder: Where everything is written.
        config: The whole configuration.
        model: The model.
        data: The data module, set up.
        trainer: The trainer, with `callbacks` among its own.
        checkpoint: Which epoch is the best.
        callbacks: What the training is watched by.
        ranks: The processes that share the run; the first of them writes.
        trains: Whether it is to be trained, or scored only.
        draws: Whether figures are drawn.
    """

    folder: RunFolder
    config: dict[str, Any]
    model: CellClassifier
    data: CellDataModule
    trainer: Trainer
    checkpoint: CheckpointConfig
    callbacks: RunCallbacks
    ranks: Ranks
    trains: bool
    draws: bool

    def __post_init__(self) -> None:
        """Tells the model what its checkpoints say of it."""
        marks = (self.data.drawn.leaky, self.data.table.conflict())
        self.stamps = [mark for mark in marks if mark]
        self.loggers = self.trainer.loggers
        # Only a training needs the table of its labels.
        self._labels = self.data.training.digest if self.trains else ""
        self.description = Description(
            cellbench=cellbench.__version__,
            model=self.model.arguments,
            preprocessing=self.data.preprocessing,
            precision=str(self.trainer.precision),
            data=type(self.data).__name__,
            split=self.data.drawn.digest,
            labels=self._labels,
            leaky=self.data.drawn.leaky,
            masks=self.data.masks_digest,
            pooling=POOLING,
        )
        self.model.description = self.description.as_plain()

    def fit(self, *, test: bool) -> dict[str, Any] | None:
        """Trains, then scores the best checkpoint on the validation and the test split.

        A training that was interrupted in this folder goes on from its last.ckpt.

        Args:
            test: Whether the test split is scored.

        Returns:
            What metrics.json holds; None on any rank but the first.
        """
        begun = self.ranks.agree(self.folder.last if self.folder.last.is_file() else None)
        if begun is None:
            try:
                self._check_weights()
            except UserError:
                self._discard()
                raise
        with self.callbacks.progress.watching(), self._written(begun):
            kept = features.keep(self.model, self.data, self.trainer)
            if kept and self.ranks.first:
                say(kept, flush=True)
            try:
                self.trainer.fit(
                    self.model, datamodule=self.data, ckpt_path=begun, weights_only=True
                )
            except MisconfigurationException as error:
                raise UserError(f"trainer: {str(error).splitlines()[0]:.200}") from error
            except RESTORING as error:
                if "more than 1 value per channel" in str(error):
                    raise UserError(
                        f"data.batch_size: {self.data.batch_size} leaves batch norm a single "
                        "value; give a larger batch, or larger images"
                    ) from error
                if begun is None or self.callbacks.progress.began:
                    raise
                raise UserError(
                    f"--resume: {begun} does not hold the state of this training ({error!r:.80}); "
                    "restore it from a copy, or delete it to begin the training afresh"
                ) from error
            self.callbacks.progress.save_end(self.trainer)
            if self.checkpoint.monitor == "last":
                self.trainer.save_checkpoint(self.folder.best, weights_only=True)
            self._load(self.folder.best)
            result = self._score(("val", "test") if test else ("val",))
            if result is None:
                return None
            if self.draws:
                curves = figures.learning_curves(
                    self.callbacks.history.rows,
                    self._best_epoch(),
                    result["val"]["metrics"]["accuracy"]["baseline"],
                    result["val"]["n"],
                )
                self._save_figure(curves, "learning_curves")
        return result

    def score(self, part: Literal["val", "test"], ckpt_path: Path) -> dict[str, Any] | None:
        """Scores a checkpoint on one split.

        Returns:
            What metrics.json holds; None on any rank but the first.

        Raises:
            UserError: The checkpoint holds another model, or images of the split have trained it.
        """
        try:
            self._check(part, ckpt_path)
        except UserError:
            self._discard()
            raise
        with self.callbacks.progress.watching(), self._written():
            return self._score((part,))

    def probabilities(self) -> np.ndarray:
        """What the model makes of every image of the table, as it is: (n, classes)."""
        model, trainer = self.model.eval(), self.trainer
        model.to(trainer.strategy.root_device)
        found = []
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in self.data.every_image(None):
                moved = self.data.transfer_batch_to_device(batch, model.device, 0)
                found.append(model.predict_step(moved).cpu())
        return torch.cat(found).numpy()

    def _discard(self) -> None:
        """Ends a run that must not begin."""
        if self.ranks.first:
            loggers.finish(self.loggers, failed=True)
            self.folder.discard()

    def _check_begun(self, begun: Path) -> None:
        """Loads what a training goes on from, and makes sure that its data are still the same.

        Raises:
            UserError: They are not, or the checkpoint is not whole.
        """
        trained = self._load(begun)
        for what, changed, ours, theirs in (
            ("split", "images or labels", self.data.drawn.digest, trained.split),
            ("table of training labels", "labels", self._labels, trained.labels),
            ("set of masks", "masks", self.data.masks_digest, trained.masks),
            (
                "preprocessing",
                "settings",
                self.description.preprocessing,
                trained.preprocessing,
            ),
        ):
            if ours != theirs:
                raise UserError(
                    f"--resume: the {what} is not the one that the run began with: {changed} have "
                    "changed since; put them back, or begin afresh"
                )

    def _check(self, part: Part, ckpt_path: Path) -> None:
        """Loads a checkpoint, and notes how what it will be scored on differs from its training."""
        trained = self._load(ckpt_path)
        if trained.split != self.data.drawn.digest:
            for run in _lineage(ckpt_path.parent.parent):
                self._refuse_trained(part, run)
            self.stamps.append("another split than the run's, without its training's images")
        elif self._uses_masks_like(trained) and trained.masks != self.data.masks_digest:
            raise UserError(
                f"the masks of {type(self.data).__name__} have changed since the run was trained; "
                "put them back, or train again"
            )
        for name, ours in asdict(self.description.preprocessing).items():
            theirs = getattr(trained.preprocessing, name)
            if ours != theirs:
                self.stamps.append(f"{name} is {ours} here, and was {theirs} in training")

    def _uses_masks_like(self, trained: Description) -> bool:
        """Return whether a checkpoint knows its masks, and the view takes the same kind."""
        ours, theirs = self.description.preprocessing, trained.preprocessing
        return bool(trained.masks) and needs_mask(ours.view) and ours.masks == theirs.masks

    def _check_weights(self) -> None:
        """Refuse weights of a run that has seen what is to be scored."""
        for run in _lineage(Path(self.config["model"]["weights"])):
            self._refuse_trained("val", run, seen=("train",))
            self._refuse_trained("test", run)

    def _refuse_trained(
        self, part: Part, run: Path, seen: Sequence[str] = ("train", "val")
    ) -> None:
        """Refuse a part of the split with samples that a run has seen.

        Raises:
            UserError: Its first such sample.
        """
        rows = list(csv.DictReader(io.StringIO(self.data.drawn.csv)))
        others = read_split(RunFolder(run).split)
        # A split by images divides groups itself, and is stamped for it.
        found = None
        if rows != others:
            one_dataset = _source(self.config) == _source(yaml.read_mapping(RunFolder(run).config))
            found = first_seen(part, rows, others, seen, one_dataset=one_dataset)
        if found is not None:
            name, what = found
            raise UserError(
                f"'{name}' is in the {part} split, but the run {run} was trained or selected on "
                f"the same {what}; use the run's own split, or other images"
            )

    @contextmanager
    def _written(self, begun: Path | None = None) -> Iterator[None]:
        """Writes what is known before a run, and ends what it began, whatever happens.

        Args:
            begun: The checkpoint that a training goes on from.
        """
        if not self.ranks.first:
            if begun is not None:
                self._check_begun(begun)
            yield
            return
        described = environment.describe(
            self.trainer.strategy.root_device, self.trainer.world_size, str(self.trainer.precision)
        )
        failed = True
        try:
            if begun is not None:
                self._check_begun(begun)
            self.folder.tidy()
            if begun is None:  # else it stays as it was, with what is not taken from it
                write_text(self.folder.config, as_yaml(self.config))
            write_text(self.folder.split, self.data.drawn.csv)
            loggers.log_config(self.loggers, self.config)
            if self.draws:
                shown: tuple[Part, Part] = ("train", "test")
                batches = [(part, self.data.examples(part)) for part in shown]
                self._save_figure(figures.sample_sheet(batches, self.data.classes), "samples")
            yield
            failed = False
        finally:
            loggers.finish(self.loggers, failed=failed)
            self.loggers = []
            environment.write_environment(self.folder.environment, described)

    def _load(self, path: Path) -> Description:
        description, state = read_checkpoint(path)
        own = self.model.description["model"]
        if description.model != own:
            differs = [key for key in own if description.model.get(key) != own[key]]
            raise UserError(
                f"{path} holds another model: {', '.join(differs)} differ from the configuration's"
            )
        try:
            self.model.load_state_dict(state)
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(
                f"{path}: its weights do not fit its own model: {reason:.120}; restore it from a "
                "copy, or train again"
            ) from error
        check_pooling(description, self.model)
        return description

    def _score(self, parts: Sequence[Literal["val", "test"]]) -> dict[str, Any] | None:
        self.trainer.loggers = []  # a second val/loss would end their curves with a jump
        predictions: dict[Part, Predictions] = {}
        for part in parts:
            evaluate = self.trainer.validate if part == "val" else self.trainer.test
            evaluate(self.model, datamodule=self.data, verbose=False)
            positions, found = self.callbacks.collector.take()
            if not np.isfinite(found).all():
                raise UserError(
                    "the training diverged: what the network says is no number; lower model.lr"
                )
            ids = [self.data.table.samples[i].id for i in positions]
            labels = self.data.table.labels[positions]
            predictions[part] = Predictions(ids, labels, found)
        if not self.ranks.first:
            return None
        write_predictions(self.folder.predictions, self.data.classes, predictions)
        result = self._evaluate()
        write_text(self.folder.metrics, json.dumps(result, indent=2) + "\n")
        loggers.log_result(self.loggers, self.config, result)
        if not self.draws:
            return result
        shown = parts[-1]
        title = f"{shown} split, {self.config['name']}, view {self.data.view}"
        title += "".join(f"\nNOT TO BE BELIEVED: {stamp}" for stamp in self.stamps)
        drawn = figures.confusion(result[shown], self.data.classes, title)
        self._save_figure(drawn, "confusion")
        return result

    def _evaluate(self) -> dict[str, Any]:
        """metrics.json, computed from predictions.csv."""
        classes, parts = read_predictions(self.folder.predictions)
        drawn, table = self.data.drawn, self.data.table
        counts = np.bincount(table.labels[drawn.indices("train")], minlength=len(classes))
        prior = counts / counts.sum()
        result: dict[str, Any] = {
            "experiment": self.config["name"],
            "stamps": self.stamps,
            "split": {
                "digest": drawn.digest,
                "masks": self.data.masks_digest,
                "protocol": self.data.split.protocol,
                "folds": self.data.split.folds,
                "fold": None if self.data.split.folds is None else self.data.split.fold or 0,
                "n": {p: len(drawn.indices(p)) for p in ("train", "val", "test")},
            },
            "epoch": self._best_epoch() if self.callbacks.history.rows else None,
            "view": self.data.view,
            "seed": self.data.plan.seed,
            "majority_class": classes[prior.argmax()],
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }
        group = {row["id"]: row["group"] for row in read_split(self.folder.split)}
        for part, given in parts.items():
            if [table.samples[i].id for i in drawn.indices(part)] != given.ids:
                raise AssertionError(f"{part}: not every sample was counted once")
            groups = np.array([group[name] for name in given.ids])
            baseline = np.tile(prior, (len(groups), 1))
            result[part] = probabilities.score(
                given.labels, given.probabilities, groups, classes, baseline
            )
        return result

    def _best_epoch(self) -> int:
        rows, monitor = self.callbacks.history.rows, self.checkpoint.monitor
        values = [float("nan") if monitor == "last" else row[monitor] for row in rows]
        return int(rows[self.checkpoint.best(values)]["epoch"])

    def _save_figure(self, figure: Any, name: str) -> None:
        path = self.folder.figure(name)
        figures.save(figure, path)
        loggers.log_figure(self.loggers, path)


def _source(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the name of a configuration's data module and the folder of its files."""
    data = config.get("data")
    if not isinstance(data, Mapping):
        return None, None
    options = data.get("init_args")
    return data.get("class_path"), options.get("root") if isinstance(options, Mapping) else None


def _lineage(run: Path) -> Iterator[Path]:
    """Yield a run's folder, then that of the run whose weights it began with, and so on.

    Raises:
        UserError: A run does not say what it began with, or began with its own weights.
    """
    known: set[Path] = set()
    while run.is_dir():
        if run.resolve() in known:
            raise UserError(
                f"model.weights: the run {run} was trained from itself, as its config.yaml and "
                "those of the runs before tell; take a run whose weights have a beginning"
            )
        yield run
        known.add(run.resolve())
        config = RunFolder(run).config
        try:
            run = Path(yaml.read_mapping(config)["model"]["weights"])
        except (UserError, KeyError, TypeError) as error:
            raise UserError(
                f"model.weights: cannot read {config}, which tells what that run was trained from "
                f"({error!r:.80}); restore it"
            ) from error
