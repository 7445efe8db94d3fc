"""The separable network of the blood-cell notebooks: 2,314,532 parameters with its own head."""

from torch import nn

WIDTHS = (32, 64, 128, 256)


def build() -> nn.Module:
    """Two plain convolutions of 16 channels, then four blocks of two separable ones, each halved.

    As in the notebooks' Keras: convolutions with bias and ReLU, batch norm once a block with
    Keras' momentum and epsilon, dropout 0.2 in the last two blocks. Its head is `pool: flatten`,
    `hidden: [512, 128, 64]`, `dropout: [0, 0.7, 0.5, 0.3]`, and its images are 150 px.

    Separable convolutions: Chollet, Xception, CVPR 2017.

    Returns:
        A network from (B, 3, H, W) to feature maps (B, 256, H/32, W/32).
    """
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    ]
    channels = 16
    for block, width in enumerate(WIDTHS):
        layers += [*_separable(channels, width), *_separable(width, width)]
        layers += [nn.BatchNorm2d(width, eps=1e-3, momentum=0.01), nn.MaxPool2d(2)]
        if block >= 2:
            layers.append(nn.Dropout(0.2))
        channels = width
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # as Keras begins
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _separable(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution of each channel, then one of 1x1 over all, with ReLU."""
    return (
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1),
        nn.ReLU(inplace=True),
    )
