"""Small residual network with squeeze-and-excitation, for a few hundred cells."""

from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

WIDTHS = (24, 48, 80)
SQUEEZE = 8
"""Factor by which squeeze-and-excitation reduces the channels."""


def build() -> nn.Module:
    """Return a strided stem and three residual blocks: 143,000 parameters for four classes.

    Residual blocks: He et al., CVPR 2016; average pooling in the shortcuts of strided blocks: He
    et al., Bag of tricks, CVPR 2019; squeeze-and-excitation: Hu et al., CVPR 2018. The widths are
    those, of four candidates, with the best validation accuracy on the hpv cells.

    Returns:
        A network from (B, 3, H, W) to feature maps (B, 80, H/8, W/8).
    """
    layers = [*_convolution(3, WIDTHS[0], stride=2), nn.SiLU(inplace=True)]
    channels = WIDTHS[0]
    for i, width in enumerate(WIDTHS):
        layers.append(Block(channels, width, stride=2 if i else 1))
        channels = width
    return nn.Sequential(*layers)


class Block(nn.Module):
    """Two 3x3 convolutions with squeeze-and-excitation, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(inputs, width, stride=stride),
            nn.SiLU(inplace=True),
            *_convolution(width, width),
            SqueezeExcitation(width, width // SQUEEZE, activation=nn.SiLU),
        )
        shortcut: list[nn.Module] = []
        if stride > 1:
            shortcut.append(nn.AvgPool2d(stride, ceil_mode=True))
        if inputs != width:
            shortcut += [nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)]
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = nn.SiLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, width, h / stride, w / stride)."""
        activated: Tensor = self.activation(self.residual(maps) + self.shortcut(maps))
        return activated


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    ]
