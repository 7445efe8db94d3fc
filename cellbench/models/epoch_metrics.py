"""Losses and metrics that a model accumulates over an epoch."""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score


class WeightedMean(Metric):
    """Mean of values that each stand for several samples.

    torchmetrics' MeanMetric ignores NaN, which would hide a diverged training; with NaN handling
    switched off it ignores the weights (torchmetrics 1.9).
    """

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor) -> None:
        """Add a value with its weight."""
        self.total += value * weight
        self.weight += weight

    def compute(self) -> Tensor:
        """Return the weighted mean of the values so far."""
        return self.total / self.weight


def classification_metrics(classes: int, prefix: str) -> MetricCollection:
    """Return the metrics of an epoch.

    Args:
        classes: Number of classes.
        prefix: Start of their names, e.g. val/.
    """
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "balanced_accuracy": MulticlassAccuracy(classes, average="macro"),
            "f1_macro": MulticlassF1Score(classes, average="macro"),
        },
        prefix=prefix,
    )
