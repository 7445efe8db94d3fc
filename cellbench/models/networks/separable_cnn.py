"""Separable network of the blood-cell notebooks: 2,314,532 parameters with its own head."""

from torch import nn

from cellbench.models.backbones.keras import convolution, keras_norm

WIDTHS = (32, 64, 128, 256)


def build() -> nn.Module:
    """Return two plain convolutions of 16 channels, and four blocks of two separable ones.

    Convolutions have bias and ReLU, each block has one batch norm and ends with a max pooling, and
    the last two have dropout 0.2. The published head is `pool: flatten`, `hidden: [512, 128, 64]`,
    `dropout: [0, 0.7, 0.5, 0.3]`, for images of 150 px.

    Separable convolutions: Chollet, Xception, CVPR 2017.

    Returns:
        A network from (B, 3, H, W) to feature maps (B, 256, H/32, W/32).
    """
    layers: list[nn.Module] = [
        convolution(3, 16, 3),
        nn.ReLU(inplace=True),
        convolution(16, 16, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    ]
    channels = 16
    for block, width in enumerate(WIDTHS):
        layers += [*_separable(channels, width), *_separable(width, width)]
        layers += [keras_norm(width), nn.MaxPool2d(2)]
        if block >= 2:
            layers.append(nn.Dropout(0.2))
        channels = width
    return nn.Sequential(*layers)


def _separable(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Return a 3x3 convolution of each channel, a 1x1 convolution over all, and a ReLU."""
    return (
        convolution(inputs, inputs, 3, groups=inputs, bias=False),
        convolution(inputs, outputs, 1),
        nn.ReLU(inplace=True),
    )
