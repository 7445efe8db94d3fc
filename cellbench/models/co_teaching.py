"""Training on labels that may be wrong: a momentum teacher says which samples to leave out.

The second stage of Zhu et al., Hard sample aware noise robust learning for histopathology image
classification, IEEE Trans Med Imaging 41 (2022); co-teaching: Han et al., NeurIPS 2018.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cellbench.errors import UserError


@dataclass(frozen=True)
class CoTeachingConfig:
    """A network learns without the samples whose labels its moving average, the teacher, doubts.

    Attributes:
        forget_rate: Share of the training samples that are left out in every epoch but the first:
            those whose label the teacher found least probable in the epoch before. The rate of
            wrong labels, as far as it is known.
        momentum: How slowly the teacher follows: its weights are this share of its own, and the
            rest of the network's, after every step.
        warm_up: Epochs after which samples that are hard but not left out weigh more, by the
            square of the probability that their label lacks; null for never.
    """

    forget_rate: float
    momentum: float = 0.999
    warm_up: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError where a value is out of its range."""
        if not 0 < self.forget_rate < 1:
            raise UserError(
                f"model.co_teaching.forget_rate: {self.forget_rate} is not between 0 and 1"
            )
        if not 0 <= self.momentum < 1:
            raise UserError(
                f"model.co_teaching.momentum: {self.momentum} is not in 0 to 1, without 1"
            )
        if self.warm_up is not None and self.warm_up < 1:
            raise UserError(f"model.co_teaching.warm_up: {self.warm_up} is less than 1")


class CoTeacher:
    """The teacher, and what it and the network thought of each sample's label.

    No module of the network, so that a checkpoint's weights are the network's alone.

    Args:
        network: The network that learns; copied.
        logits: From a network and a batch to logits, (B, classes).
        config: How it teaches.
        samples: The number of samples in the table.
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
        # The label's probability by the network and by its teacher, NaN where it is not known, and
        # whether this device has seen the sample in this epoch.
        self._probability = torch.full((2, samples), torch.nan, device=device)
        self._seen = torch.zeros(samples, dtype=torch.bool, device=device)
        self._left_out = torch.zeros(samples, dtype=torch.bool, device=device)
        self._epoch = 0

    def weigh(self, batch: Any, logits: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Notes what both think of a batch.

        Args:
            batch: The batch, with the samples' positions.
            logits: What the network made of it, (B, classes).
            shares: Each class' share of the target, (B, classes).

        Returns:
            Whether each sample counts, 0 or 1, and how much its loss weighs, both (B,).
        """
        self._match_modes()
        with torch.no_grad():
            both = torch.stack([logits.float(), self._logits(self._teacher, batch).float()])
            own = self._probability[0, batch.positions].nan_to_num(0.0)  # of the epoch before
            self._probability[:, batch.positions] = (both.softmax(dim=2) * shares).sum(dim=2)
            self._seen[batch.positions] = True
        counted = (~self._left_out[batch.positions]).float()
        warm_up = self._config.warm_up
        hard = warm_up is not None and self._epoch >= warm_up
        return counted, (1 - own) ** 2 if hard else torch.ones_like(counted)

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
        """Chooses what is left out of an epoch.

        Args:
            epoch: Its number.
            reduce: Sums a tensor over all devices.
        """
        self._epoch = epoch
        if epoch == 0:
            return
        self._share(reduce)
        self._seen.zero_()
        teacher = self._probability[1].nan_to_num(torch.inf)  # what was never seen stays
        n = round(self._config.forget_rate * int(teacher.isfinite().sum()))
        self._left_out = torch.zeros_like(self._left_out)
        self._left_out[teacher.argsort(stable=True)[:n]] = True

    def _share(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Tells every device what the others have seen."""
        times = reduce(self._seen.float())
        total = reduce(self._probability.nan_to_num(0.0) * self._seen)
        self._seen = times > 0
        self._probability = torch.where(self._seen, total / times, self._probability)

    def state(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What a checkpoint needs to go on, the same on all devices.

        Args:
            reduce: Sums a tensor over all devices.
        """
        self._share(reduce)
        return {
            "teacher": self._teacher.state_dict(),
            "probability": self._probability,
            "seen": self._seen,
            "left_out": self._left_out,
            "epoch": self._epoch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        self._teacher.load_state_dict(state["teacher"])
        device = self._left_out.device
        self._probability = state["probability"].to(device)
        self._seen = state["seen"].to(device)
        self._left_out = state["left_out"].to(device)
        self._epoch = state["epoch"]
