"""The bottleneck ResNet of the leukemia notebooks: 165,904 parameters with a plain head."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from cellbench.models.keras import convolution, keras_norm


def build() -> nn.Module:
    """Batch norm of the input, a 7x7 stem, and two stages of two bottleneck blocks.

    Published is the number of parameters (for 4 classes, batch norm's statistics counted), not the
    layout: this one has that number, with 1x1, 3x3 and 1x1 convolutions of 32 (64), 32 (64) and 64
    (128) channels in a block and a projection beside each.

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
    """Three convolutions that widen two times, and a projection beside them."""

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
        """From (B, inputs, h, w) to (B, 2 width, h / stride, w / stride)."""
        summed: Tensor = torch.add(self.residual(maps), self.shortcut(maps))
        return relu(summed)
