"""Training in phases, and schedules of the learning rate. A new schedule is one entry."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cellbench.config.bounds import bounds, check_bounds

SCHEDULES: dict[str, Callable[[float], float]] = {
    "none": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "plateau": lambda done: 1.0,  # lowered by ReduceLROnPlateau, when the loss stops falling
    "linear": lambda done: 1 - done,
}
"""Factor of the learning rate after a share of a phase, 0 to 1, by name."""

if TYPE_CHECKING:
    ScheduleName = str
else:
    ScheduleName = Literal[tuple(SCHEDULES)]


@dataclass(frozen=True)
class Phase:
    """Part of a training."""

    epochs: int = field(metadata=bounds(1))
    """Length in epochs."""
    freeze: str = "none"
    """Frozen part of the backbone, as in model.freeze."""
    lr: float | None = field(default=None, metadata=bounds(above=0))
    """Learning rate; null for model.lr."""

    def __post_init__(self) -> None:
        """Raise UserError if a value is out of its bounds."""
        check_bounds(self, "model.phases")


@dataclass(frozen=True)
class Plan:
    """Phases of a training, with every value filled in."""

    frozen: tuple[int, ...]
    """Number of the backbone's stages that each phase freezes, counted from the input."""
    starts: tuple[int, ...]
    """First epoch of each phase."""
    rates: tuple[float, ...]
    """Learning rate at the start of each phase."""
    epochs: tuple[int, ...]
    """Length of each phase; epochs after the last one belong to the last phase."""
    schedule: ScheduleName
    """Schedule of the learning rate within each phase."""

    def phase(self, epoch: int) -> int:
        """Return the index of the phase that an epoch belongs to."""
        return max(i for i, start in enumerate(self.starts) if start <= epoch)

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        i = self.phase(epoch)
        done = min((epoch - self.starts[i]) / self.epochs[i], 1.0)
        return self.rates[i] * SCHEDULES[self.schedule](done)
