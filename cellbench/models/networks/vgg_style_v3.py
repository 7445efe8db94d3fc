"""Third VGG-style network of the leukemia notebooks: 1,260,976 parameters with its own head."""

from torch import nn

from cellbench.models.backbones.keras import keras_norm, vgg_style


def build() -> nn.Module:
    """Return batch norm of the input, and three blocks of two 3x3 convolutions and a max pooling.

    The published head is a narrower one of VGG's: `hidden: [1024, 1024]`. The number of parameters
    is published (for 4 classes, with batch norm's statistics), the layout is not; this one has
    that number.

    Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition,
    ICLR 2015.

    Returns:
        A network from (B, 3, H, W) to feature maps (B, 64, H/8, W/8).
    """
    return nn.Sequential(keras_norm(3), *vgg_style(3, (32, 64, 64)))
