"""Fine-tuning in phases: how many epochs, what stays frozen, how fast the rest learns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from cellbench.errors import UserError

ScheduleName = Literal["none", "cosine", "plateau", "linear"]


@dataclass(frozen=True)
class Phase:
    """A part of a training.

    Attributes:
        epochs: How long it lasts.
        freeze: As model.freeze.
        lr: Its learning rate; null for model.lr.
    """

    epochs: int
    freeze: str = "none"
    lr: float | None = None

    def __post_init__(self) -> None:
        """Raises UserError where a value is out of its range."""
        if self.epochs < 1:
            raise UserError(f"model.phases: a phase of {self.epochs} epochs trains nothing")
        if self.lr is not None and not self.lr > 0:
            raise UserError(f"model.phases: a phase with lr {self.lr} trains nothing")


@dataclass(frozen=True)
class Plan:
    """The phases of a training, with every value filled in.

    Attributes:
        frozen: For each phase how many of the backbone's stages it freezes, from the first.
        starts: For each phase its first epoch.
        rates: For each phase its learning rate.
        epochs: For each phase how long it lasts; the last goes on for ever.
        schedule: How the rate falls within a phase.
    """

    frozen: tuple[int, ...]
    starts: tuple[int, ...]
    rates: tuple[float, ...]
    epochs: tuple[int, ...]
    schedule: ScheduleName

    def phase(self, epoch: int) -> int:
        """The number of the phase that an epoch belongs to."""
        return max(i for i, start in enumerate(self.starts) if start <= epoch)

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch: cosine and linear fall to zero at the phase's end."""
        i = self.phase(epoch)
        done = min((epoch - self.starts[i]) / self.epochs[i], 1.0)
        shape = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done}
        return self.rates[i] * shape.get(self.schedule, 1.0)


def make_plan(
    phases: Sequence[Phase],
    freeze: str,
    lr: float,
    schedule: ScheduleName,
    epochs: int,
    stages: int,
    backbone: str,
) -> Plan:
    """Fills in what the phases leave open.

    Args:
        phases: The phases; none for a training of one.
        freeze: model.freeze, where there are none.
        lr: model.lr.
        schedule: model.schedule.
        epochs: The length of the training.
        stages: The number of the backbone's stages.
        backbone: Its name.

    Raises:
        UserError: There is no such stage, or the phases do not fill the training.
    """
    chosen = tuple(phases) or (Phase(epochs, freeze),)
    lengths = tuple(phase.epochs for phase in chosen)
    return Plan(
        tuple(
            _count_frozen(
                "model.phases" if phases else "model.freeze", each.freeze, stages, backbone
            )
            for each in chosen
        ),
        (0, *accumulate(lengths[:-1])),
        tuple(lr if phase.lr is None else phase.lr for phase in chosen),
        lengths,
        schedule,
    )


def _count_frozen(key: str, freeze: str, stages: int, backbone: str) -> int:
    names = {"none": 0, **{f"stage{i}": i for i in range(1, stages + 1)}, "backbone": stages}
    if freeze not in names:
        raise UserError(f"{key}: {backbone} has no stage '{freeze}'; allowed: {', '.join(names)}")
    return names[freeze]
