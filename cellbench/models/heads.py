"""The classifier behind a backbone."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from cellbench.errors import UserError


@dataclass(frozen=True)
class HeadConfig:
    """The layers between the features and the classes.

    Attributes:
        pool: How feature maps become a vector: average, maximum, or all their values.
        hidden: Widths of the dense layers before the last, each with a ReLU.
        dropout: Probability of dropping a value, before every dense layer.
    """

    pool: Literal["avg", "max", "flatten"] = "avg"
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Raises UserError where a value is out of its range."""
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.head.dropout: {self.dropout} is not between 0 and 1")
        if any(width < 1 for width in self.hidden):
            raise UserError(f"model.head.hidden: {list(self.hidden)} has a width below 1")


def build_head(config: HeadConfig, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Makes a head.

    Args:
        config: Its layers.
        shape: The features' shape without the batch, (C, h, w) or (C,).
        classes: The number of classes.

    Returns:
        A network from the features to logits, (B, classes).
    """
    layers: list[nn.Module] = []
    width = shape[0]
    if len(shape) == 3 and config.pool != "flatten":
        layers.append(nn.AdaptiveAvgPool2d(1) if config.pool == "avg" else nn.AdaptiveMaxPool2d(1))
    elif len(shape) == 3:
        width = shape[0] * shape[1] * shape[2]
    layers.append(nn.Flatten())
    for outputs in (*config.hidden, classes):
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
        layers += [nn.Linear(width, outputs), nn.ReLU()]
        width = outputs
    return nn.Sequential(*layers[:-1])
