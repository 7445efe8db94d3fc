"""The classifier behind a backbone."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor, nn

from cellbench.errors import UserError

Pool = Literal["avg", "max", "flatten"]

MAX_WIDTH = 65_536
"""Outputs of a dense layer, at most."""


@dataclass(frozen=True)
class HeadConfig:
    """The layers between the features and the classes.

    Attributes:
        pool: How feature maps become a vector: average, maximum, or all their values. avg is a
            network's own pooling, with the layers that some networks of torchvision and timm have
            between it and their classifier.
        hidden: Widths of the dense layers before the last, each with a ReLU.
        dropout: Probability of dropping a value before every dense layer, the last one included;
            or one for each of them.
        batch_norm: Whether a hidden layer has batch norm before its ReLU.
    """

    pool: Pool = "avg"
    hidden: tuple[int, ...] = ()
    dropout: float | tuple[float, ...] = 0.0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        """Raises UserError where a value is out of its range."""
        if any(width < 1 for width in self.hidden):
            raise UserError(f"model.head.hidden: {list(self.hidden)} has a width below 1")
        if any(width > MAX_WIDTH for width in self.hidden):
            raise UserError(f"model.head.hidden: {list(self.hidden)} has one above {MAX_WIDTH:,}")
        if len(self.dropouts) != len(self.hidden) + 1:
            raise UserError(
                f"model.head.dropout: {len(self.dropouts)} values for {len(self.hidden) + 1} dense "
                "layers (the hidden ones, and the last); give one for all, or one for each"
            )
        if not all(0 <= share < 1 for share in self.dropouts):
            raise UserError(f"model.head.dropout: {self.dropout} is not between 0 and 1")

    @property
    def dropouts(self) -> tuple[float, ...]:
        """The probability before each dense layer."""
        if isinstance(self.dropout, int | float):
            return (self.dropout,) * (len(self.hidden) + 1)
        return tuple(self.dropout)


class OwnPooling(nn.Module):
    """A backbone's own way from its feature maps to what its classifier would see.

    Some networks have a normalisation, a convolution or a dense layer behind the pooling (convnext,
    maxvit, mobilenetv3, davit), so that the mean of their maps is not their pooled features.

    Args:
        pool: The function that pools, a method of the backbone. The backbone keeps the layers that
            it uses: this module has no parameters.
        width: The number of pooled features.
    """

    def __init__(self, pool: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self._pool = pool
        self.width = width

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps, (B, C, h, w), to features, (B, width)."""
        return self._pool(maps).flatten(1)

    def only_averages(self, maps: Tensor) -> bool:
        """Return whether the features of these maps are nothing but their average."""
        features, average = self(maps), maps.mean((2, 3))
        if features.shape != average.shape:
            return False
        return bool((features - average).norm() <= 1e-5 * average.norm())


def build_pool(pool: Pool, shape: tuple[int, ...]) -> tuple[nn.Sequential, int]:
    """Make the layers from feature maps to a vector, which have nothing to learn.

    Args:
        pool: How the maps become a vector.
        shape: The maps' shape without the batch, (C, h, w) or (C,).

    Returns:
        A network from the maps to features, (B, D), and D.

    Raises:
        UserError: There are no maps to take the maximum of.
    """
    if len(shape) == 1 and pool == "max":
        raise UserError(
            "model.head.pool: max, but this backbone gives a single vector and no maps; use avg"
        )
    if len(shape) == 1 or pool == "flatten":
        return nn.Sequential(nn.Flatten()), prod(shape)
    layer = nn.AdaptiveAvgPool2d(1) if pool == "avg" else nn.AdaptiveMaxPool2d(1)
    return nn.Sequential(layer, nn.Flatten()), shape[0]


def build_head(config: HeadConfig, width: int, classes: int) -> nn.Sequential:
    """Makes a head.

    Args:
        config: Its layers.
        width: The number of features.
        classes: The number of classes.

    Returns:
        A network from the features, (B, width), to logits, (B, classes).
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
