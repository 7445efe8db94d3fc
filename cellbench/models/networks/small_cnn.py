"""Small convolutional network that trains from scratch on a few hundred images."""

from torch import nn

WIDTHS = (24, 48, 96, 192)


def build() -> nn.Module:
    """Return four stages of two 3x3 convolutions with batch norm and ReLU, and a max pooling.

    The VGG scheme (Simonyan and Zisserman 2015) with batch norm and few channels: 650,000
    parameters.

    Returns:
        A network from (B, 3, H, W) to feature maps (B, 192, H/16, W/16).
    """
    stages = []
    channels = 3
    for width in WIDTHS:
        stages.append(
            nn.Sequential(
                _convolution(channels, width), _convolution(width, width), nn.MaxPool2d(2)
            )
        )
        channels = width
    return nn.Sequential(*stages)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
