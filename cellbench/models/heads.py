"""Pooling and classification head after a backbone. A new pooling is one entry in `POOLS`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from cellbench.config.bounds import bounds, check_bounds
from cellbench.utils.errors import UserError

POOLS: dict[str, Callable[[], list[nn.Module]]] = {
    "avg": lambda: [nn.AdaptiveAvgPool2d(1)],
    "max": lambda: [nn.AdaptiveMaxPool2d(1)],
    "flatten": list,
}
"""Functions that make the layers applied to feature maps, (B, C, h, w), before flattening."""

if TYPE_CHECKING:
    Pool = str
else:
    Pool = Literal[tuple(POOLS)]

VECTOR_POOLS = ("avg", "flatten")
"""Poolings of a backbone that gives a vector instead of maps: both leave the vector as it is."""

MAX_WIDTH = 65_536
"""Largest number of outputs of a hidden layer."""


@dataclass(frozen=True)
class HeadConfig:
    """Layers between the backbone's features and the logits."""

    pool: Pool = "avg"
    """Reduction of feature maps to a vector: average, maximum, or all their values. avg is the
    network's own pooling, with the layers that some networks of torchvision and timm have between
    pooling and classifier."""
    hidden: tuple[int, ...] = field(default=(), metadata=bounds(1, MAX_WIDTH))
    """Widths of the hidden layers, each followed by a ReLU."""
    dropout: float | tuple[float, ...] = field(default=0.0, metadata=bounds(0, below=1))
    """Dropout probability before every dense layer, the last one included; or one for each."""
    batch_norm: bool = False
    """Apply batch norm in every hidden layer, before its ReLU."""

    def __post_init__(self) -> None:
        """Raise UserError if a value is out of its bounds, or the number of dropouts is wrong."""
        check_bounds(self, "model.head")
        if len(self.dropouts) != len(self.hidden) + 1:
            raise UserError(
                f"model.head.dropout: {len(self.dropouts)} values for {len(self.hidden) + 1} dense "
                "layers (the hidden ones, and the last); give one for all, or one for each"
            )

    @property
    def dropouts(self) -> tuple[float, ...]:
        """Dropout probability before each dense layer."""
        if isinstance(self.dropout, int | float):
            return (self.dropout,) * (len(self.hidden) + 1)
        return tuple(self.dropout)


class OwnPooling(nn.Module):
    """Pooling of a backbone's own, from its feature maps to the input of its classifier.

    Some networks have a normalisation, a convolution or a dense layer after the pooling (convnext,
    maxvit, mobilenetv3, davit), so that the mean of their maps is not their pooled features.

    Args:
        pool: Method of the backbone that pools. The layers that it uses belong to the backbone:
            this module has no parameters.
        width: Number of pooled features.
    """

    def __init__(self, pool: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self._pool = pool
        self.width = width

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps, (B, C, h, w), to features, (B, width)."""
        return self._pool(maps).flatten(1)

    def only_averages(self, maps: Tensor) -> bool:
        """Return True if the features of maps, (B, C, h, w), are just their average."""
        features, average = self(maps), maps.mean((2, 3))
        if features.shape != average.shape:
            return False
        return bool((features - average).norm() <= 1e-5 * average.norm())


def build_pool(pool: Pool, shape: tuple[int, ...]) -> tuple[nn.Sequential, int]:
    """Make the layers from a backbone's output to a vector; they have no parameters.

    Args:
        pool: Name in `POOLS`.
        shape: Shape of the output without the batch, (C, h, w) or (C,).

    Returns:
        A module from the output to features, (B, D), and D.

    Raises:
        UserError: The backbone gives a vector, which cannot be pooled in this way.
    """
    if len(shape) == 1:
        if pool not in VECTOR_POOLS:
            raise UserError(
                f"model.head.pool: {pool}, but this backbone gives a single vector and no maps; "
                "use avg"
            )
        return nn.Sequential(nn.Flatten()), shape[0]
    layers = nn.Sequential(*POOLS[pool](), nn.Flatten())
    return layers, layers(torch.zeros(1, *shape)).shape[1]


def build_head(config: HeadConfig, width: int, classes: int) -> nn.Sequential:
    """Make a head.

    Args:
        config: Its layers.
        width: Number of features.
        classes: Number of classes.

    Returns:
        A module from features, (B, width), to logits, (B, classes).
    """
    layers: list[nn.Module] = []
    *before, last = config.dropouts
    for outputs, dropout in zip(config.hidden, before, strict=True):
        layers += [nn.Dropout(dropout)] if dropout else []
        layers.append(nn.Linear(width, outputs))
        layers += [nn.BatchNorm1d(outputs)] if config.batch_norm else []
        layers.append(nn.ReLU())
        width = outputs
    layers += [nn.Dropout(last)] if last else []
    return nn.Sequential(*layers, nn.Linear(width, classes))
