"""What training minimises, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cellbench.errors import UserError

LossName = Literal["cross_entropy", "focal", "symmetric", "generalised"]

SYMMETRIC = 0.1, 1.0, 4.0
"""Factors of the cross-entropy and of its reverse, and what stands for -log 0 in that."""


@dataclass(frozen=True)
class LossConfig:
    """What training minimises; validation and test show the bare cross-entropy.

    Attributes:
        name: cross_entropy; focal weighs what is hard (Lin et al., ICCV 2017); symmetric adds the
            reverse cross-entropy (Wang et al., ICCV 2019) and generalised lies between
            cross-entropy and the mean absolute error (Zhang and Sabuncu, NeurIPS 2018), both for
            labels that may be wrong.
        label_smoothing: Share of each target that is spread over all classes (Szegedy et al.,
            CVPR 2016).
        gamma: How much focal leaves out what is easy.
        q: Where generalised lies: near 0 at cross-entropy, 1 at the mean absolute error.
    """

    name: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    gamma: float = 2.0
    q: float = 0.7

    def __post_init__(self) -> None:
        """Raises UserError where a value is out of its range."""
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"model.loss.label_smoothing: {self.label_smoothing} is not in 0 to 1, without 1"
            )
        if not self.gamma >= 0:
            raise UserError(f"model.loss.gamma: {self.gamma} is less than 0")
        if not 0 < self.q <= 1:
            raise UserError(f"model.loss.q: {self.q} is not above 0 and at most 1")


def _focal(log_p: Tensor, config: LossConfig) -> Tensor:
    # Below gamma 1 the slope of the factor is infinite where p is 1, and the derivative would be
    # infinity times log 1: NaN. clamp's derivative is 0 beyond its limits. e^-100 is 0 beside 1.
    limited = log_p.clamp(-100.0, -torch.finfo(log_p.dtype).tiny)
    return -((-torch.expm1(limited)) ** config.gamma) * log_p


def _symmetric(log_p: Tensor, config: LossConfig) -> Tensor:
    forward, reverse, log_zero = SYMMETRIC
    return -forward * log_p - reverse * log_zero * torch.expm1(log_p)


def _generalised(log_p: Tensor, config: LossConfig) -> Tensor:
    return -torch.expm1(config.q * log_p) / config.q


LOSSES: dict[LossName, Callable[[Tensor, LossConfig], Tensor]] = {
    "cross_entropy": lambda log_p, config: -log_p,
    "focal": _focal,
    "symmetric": _symmetric,
    "generalised": _generalised,
}
"""Each takes log probabilities, (B, classes), and gives what the loss is if that class is right."""


def as_shares(targets: Tensor, classes: int, smoothing: float) -> Tensor:
    """Class indices, (B,), or each class' share, (B, classes), as smoothed shares, float32."""
    shares = targets if targets.is_floating_point() else one_hot(targets, classes)
    return shares.float() * (1 - smoothing) + smoothing / classes


def losses(logits: Tensor, shares: Tensor, config: LossConfig) -> Tensor:
    """The loss of each sample.

    Args:
        logits: (B, classes), float32.
        shares: How much each class counts, (B, classes): its share of the target, times the
            class' weight where there are any.
        config: Which loss.

    Returns:
        (B,).
    """
    of_class = LOSSES[config.name](torch.log_softmax(logits, dim=1), config)
    return (shares * of_class).sum(dim=1)
