"""The separable network of the blood-cell notebooks: 2,314,532 parameters with its own head."""

from torch import nn

from cellbench.models.keras import convolution, keras_norm

WIDTHS = (32, 64, 128, 256)


def build() -> nn.Module:
    """Two plain convolutions of 16 channels, then four blocks of two separable ones, each halved.

    Convolutions with bias and ReLU, batch norm once a block, dropout 0.2 in the last two blocks.
    Its head is `pool: flatten`, `hidden: [512, 128, 64]`, `dropout: [0, 0.7, 0.5, 0.3]`, and its
    images are 150 px.

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
    """A 3x3 convolution of each channel, then one of 1x1 over all, with ReLU."""
    return (
        convolution(inputs, inputs, 3, groups=inputs, bias=False),
        convolution(inputs, outputs, 1),
        nn.ReLU(inplace=True),
    )
