"""Bottleneck ResNet of the leukemia notebooks: 165,904 parameters with a plain head."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from cellbench.models.backbones.keras import convolution, keras_norm


def build() -> nn.Module:
    """Return batch norm of the input, a 7x7 stem, and two stages of two bottleneck blocks.

    The number of parameters is published (for 4 classes, with batch norm's statistics), the layout
    is not. This one has that number: a block has 1x1, 3x3 and 1x1 convolutions of 32 (64), 32 (64)
    and 64 (128) channels, and a projection as its shortcut.

    Bottleneck blocks: He et al., Deep residual learning for image recognition, CVPR 2016.

    Returns:
        A network from (B, 3, H, W) to feature maps (B, 128, H/8, W/8).
    """
    return nn.Sequential(
        keras_norm(3),
        convolution(3, 16, 7, stride=2),
        keras_norm(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Sequential(Bottleneck(16, 32), Bottleneck(64, 32)),
        nn.Sequential(Bottleneck(64, 64, stride=2), Bottleneck(128, 64)),
    )


class Bottleneck(nn.Module):
    """Three convolutions, with twice as many channels at the end, and a projecting shortcut."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            convolution(inputs, width, 1, stride=stride),
            keras_norm(width),
            nn.ReLU(inplace=True),
            convolution(width, width, 3),
            keras_norm(width),
            nn.ReLU(inplace=True),
            convolution(width, 2 * width, 1),
            keras_norm(2 * width),
        )
        self.shortcut = nn.Sequential(
            convolution(inputs, 2 * width, 1, stride=stride), keras_norm(2 * width)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, 2 width, h / stride, w / stride)."""
        summed: Tensor = torch.add(self.residual(maps), self.shortcut(maps))
        return relu(summed)
