"""Co-teaching on noisy labels: a momentum teacher decides which samples to leave out.

Second stage of Zhu et al., Hard sample aware noise robust learning for histopathology image
classification, IEEE Trans Med Imaging 41 (2022); co-teaching: Han et al., NeurIPS 2018.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cellbench.config.bounds import bounds, check_bounds


@dataclass(frozen=True)
class CoTeachingConfig:
    """Co-teaching: samples whose label the teacher finds improbable are left out.

    The teacher is the moving average of the network that learns.
    """

    forget_rate: float = field(metadata=bounds(above=0, below=1))
    """Share of the training samples that every epoch but the first leaves out: those whose label
    the teacher found least probable in the epoch before. Set it to the rate of wrong labels, as far
    as it is known."""
    momentum: float = field(default=0.999, metadata=bounds(0, below=1))
    """Share of the teacher's own weights that it keeps in every step; the rest comes from the
    network."""
    warm_up: int | None = field(default=None, metadata=bounds(1))
    """Epochs after which hard samples weigh more among those not left out, by (1 - p)² for a label
    of probability p; null for never."""

    def __post_init__(self) -> None:
        """Raise UserError if a value is out of its bounds."""
        check_bounds(self, "model.co_teaching")


class CoTeacher:
    """Momentum teacher of a network, with the probability that both give each sample's label.

    It is not a submodule of the network, so that checkpoints hold the network's weights only.

    Args:
        network: The network that learns; the teacher starts as its copy.
        logits: Function from a network and a batch to logits, (B, classes).
        config: The options.
        samples: Number of samples in the table.
    """

    def __init__(
        self,
        network: nn.ModuleDict,
        logits: Callable[[nn.ModuleDict, Any], Tensor],
        config: CoTeachingConfig,
        samples: int,
    ) -> None:
        self._network = network
        self._teacher = deepcopy(network).requires_grad_(False)
        self._logits = logits
        self._config = config
        device = next(network.parameters()).device
        # Probability of the label by the network and by the teacher; NaN if not known yet.
        self._probability = torch.full((2, samples), torch.nan, device=device)
        # Samples that this device has seen in this epoch.
        self._seen = torch.zeros(samples, dtype=torch.bool, device=device)
        self._left_out = torch.zeros(samples, dtype=torch.bool, device=device)
        self._epoch = 0

    def weigh(self, batch: Any, logits: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Record the label probabilities of a batch, and weigh its samples.

        Args:
            batch: The batch, with the samples' positions.
            logits: The network's logits, (B, classes).
            shares: Share of each class in the targets, (B, classes).

        Returns:
            1 for samples that count and 0 for those left out, and the factor of each sample's
            loss, both (B,).
        """
        self._match_modes()
        with torch.no_grad():
            both = torch.stack([logits.float(), self._logits(self._teacher, batch).float()])
            before = self._probability[0, batch.positions].nan_to_num(0.0)  # of the last epoch
            self._probability[:, batch.positions] = (both.softmax(dim=2) * shares).sum(dim=2)
            self._seen[batch.positions] = True
        counted = (~self._left_out[batch.positions]).float()
        warm_up = self._config.warm_up
        hard = warm_up is not None and self._epoch >= warm_up
        return counted, (1 - before) ** 2 if hard else torch.ones_like(counted)

    def follow(self) -> None:
        """Move the teacher's weights and batch norm statistics towards the network's."""
        share = 1 - self._config.momentum
        with torch.no_grad():
            for mean, new in zip(
                self._teacher.parameters(), self._network.parameters(), strict=True
            ):
                mean.lerp_(new, share)
            for own, followed in zip(self._teacher.buffers(), self._network.buffers(), strict=True):
                # Constants stay as they are: between two infinities lerp gives NaN.
                moved = own.lerp(followed, share) if own.is_floating_point() else followed
                own.copy_(torch.where(own == followed, own, moved))

    def _match_modes(self) -> None:
        """Put each layer of the teacher into the network's mode, which changes with the phase."""
        for own, followed in zip(self._teacher.modules(), self._network.modules(), strict=True):
            own.training = followed.training

    def begin_epoch(self, epoch: int, reduce: Callable[[Tensor], Tensor]) -> None:
        """Choose the samples that an epoch leaves out.

        Args:
            epoch: Index of the epoch.
            reduce: Function that sums a tensor over all devices.
        """
        self._epoch = epoch
        if epoch == 0:
            return
        self._synchronise(reduce)
        self._seen.zero_()
        teacher = self._probability[1].nan_to_num(torch.inf)  # samples never seen stay in
        n = round(self._config.forget_rate * int(teacher.isfinite().sum()))
        self._left_out = torch.zeros_like(self._left_out)
        self._left_out[teacher.argsort(stable=True)[:n]] = True

    def _synchronise(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Average the probabilities over the devices that have seen a sample."""
        times = reduce(self._seen.float())
        total = reduce(self._probability.nan_to_num(0.0) * self._seen)
        self._seen = times > 0
        self._probability = torch.where(self._seen, total / times, self._probability)

    def state(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return the state for a checkpoint, the same on all devices.

        Args:
            reduce: Function that sums a tensor over all devices.
        """
        self._synchronise(reduce)
        return {
            "teacher": self._teacher.state_dict(),
            "probability": self._probability,
            "seen": self._seen,
            "left_out": self._left_out,
            "epoch": self._epoch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        self._teacher.load_state_dict(state["teacher"])
        device = self._left_out.device
        self._probability = state["probability"].to(device)
        self._seen = state["seen"].to(device)
        self._left_out = state["left_out"].to(device)
        self._epoch = state["epoch"]
