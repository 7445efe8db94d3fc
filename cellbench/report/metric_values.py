"""Values of one metric over the test predictions of runs, and bootstrap replicates of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cellbench.artifacts.finished import Finished
from cellbench.metrics.classification import confusion_by_group, confusion_matrix, values
from cellbench.metrics.tests import resample


class MetricValues:
    """Values of a metric; what several comparisons need is computed once.

    Args:
        metric: Name of the metric.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._by_group: dict[Path, np.ndarray] = {}
        self._resampled: dict[tuple[Path, ...], np.ndarray] = {}

    def pooled(self, runs: Sequence[Finished]) -> float:
        """Return the metric over the pooled predictions of runs."""
        matrices = [
            confusion_matrix(run.test.labels, run.test.predicted, len(run.classes)) for run in runs
        ]
        return float(values(np.sum(matrices, axis=0))[self._metric])

    def replicates(
        self, of_condition: Sequence[Sequence[Finished]], weights: np.ndarray
    ) -> np.ndarray:
        """Resample the groups of one test set, the same ones for every run.

        Args:
            of_condition: Runs of each condition, all on that test set.
            weights: Weight of each condition, (conditions,).

        Returns:
            Replicates of the weighted sum of the conditions' values, (replicates,).
        """
        found = np.zeros(1)
        for weight, own in zip(weights, of_condition, strict=True):
            key = tuple(run.folder.path for run in own)
            if key not in self._resampled:
                counts = np.sum([self._counts(run) for run in own], axis=0)
                self._resampled[key] = values(resample(counts))[self._metric]
            found = found + weight * self._resampled[key]
        return found

    def sampling_variance(
        self, of_condition: Sequence[Sequence[Finished]], weights: np.ndarray
    ) -> float:
        """Estimate the variance of the weighted sum from the groups of one test set.

        Args:
            of_condition: Runs of each condition, all on that test set.
            weights: Weight of each condition, (conditions,).
        """
        groups = len(groups_of(of_condition[0][0]))
        return float(self.replicates(of_condition, weights).var()) * groups / max(groups - 1, 1)

    def _counts(self, run: Finished) -> np.ndarray:
        """Count a run's test predictions by group, (groups, classes, classes)."""
        path = run.folder.path
        if path not in self._by_group:
            test = run.test
            names = np.array([run.split.group[name] for name in test.ids])
            self._by_group[path] = confusion_by_group(
                test.labels, test.predicted, names, len(run.classes)
            )
        return self._by_group[path]


def groups_of(run: Finished) -> set[str]:
    """Return the groups of a run's test set."""
    return {run.split.group[name] for name in run.test.ids}
