"""Training loss of a batch: smoothed targets, class weights, co-teaching."""

import numpy as np
import torch
from torch import Tensor

from cellbench.data.dataset import Batch, FeatureBatch
from cellbench.models.co_teaching import CoTeacher
from cellbench.models.losses import LossConfig, as_shares, losses


class Objective:
    """Training loss of a batch, without the penalties.

    Args:
        config: Choice of the loss.
        classes: Number of classes.
    """

    def __init__(self, config: LossConfig, classes: int) -> None:
        self.class_weights: Tensor | None = None
        """Weight of each class, (classes,); None for equal weights."""
        self.teacher: CoTeacher | None = None
        """Teacher that decides which samples are left out; None to keep them all."""
        self._config = config
        self._classes = classes

    def targets(self, batch: Batch | FeatureBatch) -> Tensor:
        """Return the share of each class in the targets of a batch, smoothed, (B, classes)."""
        given = batch.labels if batch.targets is None else batch.targets
        return as_shares(given, self._classes, self._config.label_smoothing)

    def __call__(
        self, batch: Batch | FeatureBatch, logits: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of a batch, and the weights to divide their sum by.

        Args:
            batch: The batch, with the samples' positions.
            logits: (B, classes), float32.
            shares: Share of each class in the targets, (B, classes).

        Returns:
            The weighted loss of each sample, and its weight, both (B,).
        """
        weighted = shares if self.class_weights is None else shares * self.class_weights
        sample_losses, weights = losses(logits, weighted, self._config), weighted.sum(dim=1)
        if self.teacher is not None:
            kept, factor = self.teacher.weigh(batch, logits, shares)
            sample_losses, weights = sample_losses * kept * factor, weights * kept
        return sample_losses, weights


def balanced_weights(counts: np.ndarray) -> Tensor:
    """Return class weights n / (classes · n of the class), float32, (classes,).

    Args:
        counts: Number of training samples of each class, (classes,).
    """
    n = torch.as_tensor(counts)
    return (n.sum() / (len(n) * n)).float()
