"""The first VGG-style network of the leukemia notebooks: 306,352 parameters with its own head."""

from torch import nn

from cellbench.models.keras import keras_norm, vgg_style


def build() -> nn.Module:
    """Batch norm of the input, then three blocks of two 3x3 convolutions, each halved.

    Its head is `hidden: [128]` with `batch_norm: true`. Published is the number of parameters (for
    4 classes, batch norm's statistics counted), not the layout: this one has that number.

    Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition,
    ICLR 2015.

    Returns:
        A network from (B, 3, H, W) to feature maps (B, 128, H/8, W/8).
    """
    return nn.Sequential(keras_norm(3), *vgg_style(3, (32, 64, 128)))
