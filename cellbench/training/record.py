"""Files and loggers of a run: what is known before it, its results, and its end."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure

from cellbench.artifacts import environment, figures
from cellbench.artifacts.folder import RunFolder, as_yaml, write_text
from cellbench.artifacts.predictions import Predictions, write_predictions
from cellbench.data.module import CellDataModule
from cellbench.data.table import Part
from cellbench.training import loggers


class RunRecord:
    """Record of one run in its folder and its loggers; only the first process keeps one.

    Args:
        folder: The run's folder.
        config: The run's configuration, as YAML has it.
        own_loggers: The trainer's loggers.
        draws: True if figures are drawn.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Mapping[str, Any],
        own_loggers: Sequence[Logger],
        *,
        draws: bool,
    ) -> None:
        self._folder = folder
        self._config = dict(config)
        self._loggers = list(own_loggers)
        self._draws = draws

    @contextmanager
    def open(self, trainer: Trainer) -> Iterator[None]:
        """Close the loggers and write environment.json when the block ends, whatever happens."""
        described = environment.describe(
            trainer.strategy.root_device, trainer.world_size, str(trainer.precision)
        )
        failed = True
        try:
            yield
            failed = False
        finally:
            self.finish(failed=failed)
            environment.write_environment(self._folder.environment, described)

    def begin(self, data: CellDataModule, *, resumed: bool) -> None:
        """Write config.yaml, split.csv and the sample images.

        Args:
            data: The data module, set up.
            resumed: True if the run goes on. Its config.yaml stays as it was, since the command
                that goes on may leave parts of it out.
        """
        self._folder.tidy()
        if not resumed:
            write_text(self._folder.config, as_yaml(self._config))
        write_text(self._folder.split, data.drawn.csv)
        loggers.log_config(self._loggers, self._config)
        if self._draws:
            shown: tuple[Part, Part] = ("train", "test")
            batches = [(part, data.examples(part)) for part in shown]
            self._save(figures.sample_sheet(batches, data.classes), "samples")

    def write_predictions(
        self, classes: Sequence[str], predictions: Mapping[Part, Predictions]
    ) -> None:
        """Write predictions.csv."""
        write_predictions(self._folder.predictions, classes, predictions)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write metrics.json, whose presence means that the run is finished."""
        write_text(self._folder.metrics, json.dumps(result, indent=2) + "\n")
        loggers.log_result(self._loggers, self._config, result)

    def draw_confusion(
        self, result: Mapping[str, Any], part: Literal["val", "test"], classes: Sequence[str]
    ) -> None:
        """Draw the confusion matrix of a part of the split."""
        if not self._draws:
            return
        title = f"{part} split, {self._config['name']}, view {result['view']}"
        title += "".join(f"\nUNRELIABLE: {flag}" for flag in result["stamps"])
        self._save(figures.confusion(result[part], classes, title), "confusion")

    def draw_learning_curves(
        self, history: Sequence[dict[str, float]], result: Mapping[str, Any]
    ) -> None:
        """Draw the losses and accuracies of a training.

        Args:
            history: Rows of history.csv.
            result: Content of metrics.json, with the validation split.
        """
        if self._draws:
            baseline = result["val"]["metrics"]["accuracy"]["baseline"]
            curves = figures.learning_curves(history, result["epoch"], baseline, result["val"]["n"])
            self._save(curves, "learning_curves")

    def finish(self, *, failed: bool) -> None:
        """Close the loggers, once."""
        loggers.finish(self._loggers, failed=failed)
        self._loggers = []

    def _save(self, figure: Figure, name: str) -> None:
        """Write a figure as a PNG, and show it in the loggers."""
        path = self._folder.figure(name)
        figures.save(figure, path)
        loggers.log_figure(self._loggers, path)
