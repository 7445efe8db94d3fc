"""Training losses, by name. A new one is one entry in `LOSSES`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cellbench.config.bounds import bounds, check_bounds

SYMMETRIC_FORWARD, SYMMETRIC_REVERSE = 0.1, 1.0
"""Weights of the cross-entropy and of the reverse cross-entropy in the symmetric loss."""

SYMMETRIC_LOG_ZERO = -4.0
"""Stand-in for log 0 in the reverse cross-entropy."""


def _focal(log_p: Tensor, config: "LossConfig") -> Tensor:
    # At p = 1 and gamma < 1 the factor has an infinite slope, and its product with log 1 = 0 would
    # be NaN. clamp has a zero gradient outside its limits; e^-100 is negligible beside 1.
    limited = log_p.clamp(-100.0, -torch.finfo(log_p.dtype).tiny)
    return -((-torch.expm1(limited)) ** config.gamma) * log_p


def _symmetric(log_p: Tensor, config: "LossConfig") -> Tensor:
    reverse = SYMMETRIC_LOG_ZERO * torch.expm1(log_p)
    return -SYMMETRIC_FORWARD * log_p + SYMMETRIC_REVERSE * reverse


def _generalised(log_p: Tensor, config: "LossConfig") -> Tensor:
    return -torch.expm1(config.q * log_p) / config.q


LOSSES: dict[str, Callable[[Tensor, "LossConfig"], Tensor]] = {
    "cross_entropy": lambda log_p, config: -log_p,
    "focal": _focal,
    "symmetric": _symmetric,
    "generalised": _generalised,
}
"""Functions from log-probabilities, (B, classes), to the loss if that class is the right one."""

if TYPE_CHECKING:
    LossName = str
else:
    LossName = Literal[tuple(LOSSES)]


@dataclass(frozen=True)
class LossConfig:
    """Training loss, without the penalties. Validation and test report plain cross-entropy."""

    name: LossName = "cross_entropy"
    """cross_entropy; focal, which puts more weight on hard samples (Lin et al., ICCV 2017); or,
    for noisy labels, symmetric, which adds the reverse cross-entropy (Wang et al., ICCV 2019), and
    generalised, between cross-entropy and mean absolute error (Zhang and Sabuncu, NeurIPS 2018)."""
    label_smoothing: float = field(default=0.0, metadata=bounds(0, below=1))
    """Share of each target that is spread evenly over all classes (Szegedy et al., CVPR 2016)."""
    gamma: float = field(default=2.0, metadata=bounds(0))
    """Exponent of focal; the larger, the less easy samples count."""
    q: float = field(default=0.7, metadata=bounds(at_most=1, above=0))
    """Exponent of generalised: near 0 it is cross-entropy, at 1 mean absolute error."""

    def __post_init__(self) -> None:
        """Raise UserError if a value is out of its bounds."""
        check_bounds(self, "model.loss")


def as_shares(targets: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return smoothed targets, (B, classes), float32.

    Args:
        targets: Class indices, (B,), or the share of each class, (B, classes).
        classes: Number of classes.
        smoothing: Share that is spread evenly over all classes.
    """
    shares = targets if targets.is_floating_point() else one_hot(targets, classes)
    return shares.float() * (1 - smoothing) + smoothing / classes


def losses(logits: Tensor, weights: Tensor, config: LossConfig) -> Tensor:
    """Return the loss of each sample, (B,).

    Args:
        logits: (B, classes), float32.
        weights: Weight of each class in a sample's loss, (B, classes): its share of the target,
            times the class weight if there are any.
        config: Choice of the loss.
    """
    if_right = LOSSES[config.name](torch.log_softmax(logits, dim=1), config)
    return (weights * if_right).sum(dim=1)
