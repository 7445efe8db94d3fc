"""Layers with Keras' defaults, for networks that were published as Keras notebooks."""

from collections.abc import Iterator, Sequence

from torch import nn


def convolution(
    inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1, bias: bool = True
) -> nn.Conv2d:
    """Return a padded convolution with Glorot-uniform weights (Glorot and Bengio 2010)."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def keras_norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch norm with Keras' epsilon and momentum."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def vgg_style(inputs: int, widths: Sequence[int]) -> Iterator[nn.Module]:
    """Yield, for each width, two 3x3 convolutions with batch norm and ReLU, and a max pooling."""
    for width in widths:
        for channels in (inputs, width):
            yield convolution(channels, width, 3)
            yield keras_norm(width)
            yield nn.ReLU(inplace=True)
        yield nn.MaxPool2d(2)
        inputs = width
