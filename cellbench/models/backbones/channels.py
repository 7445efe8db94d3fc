"""First convolutions of a backbone, changed to take other than three channels."""

import math

import torch
from torch import Tensor, nn

RGB = 3
"""Number of channels that all backbones are made for."""


@torch.no_grad()
def set_channels(
    trunk: nn.Module, channels: int, image_size: tuple[int, int], *, keep_filters: bool
) -> int:
    """Change the convolutions that see the image so that they take so many channels.

    Args:
        trunk: A network for RGB images; changed in place.
        channels: The new number of channels.
        image_size: Height and width of the images in pixels.
        keep_filters: True to give every channel the mean of the RGB filters, times 3 / channels,
            so that the maps keep their scale; False for new random filters of the same scale.

    Returns:
        The number of convolutions that were changed.

    Raises:
        ValueError: No convolution sees the image, or one works on each channel for itself.
    """
    first = _first_convolutions(trunk, image_size)
    if not first:
        raise ValueError("it has no convolution that sees the image")
    for layer in first:
        if layer.groups != 1:
            raise ValueError("its first convolution works on each channel for itself")
        old = layer.weight
        if keep_filters:
            mean = old.mean(dim=1, keepdim=True) * (RGB / channels)
            new = mean.repeat(1, channels, 1, 1)
        else:
            new = torch.empty(old.shape[0], channels, *old.shape[2:], dtype=old.dtype)
            nn.init.normal_(new, std=float(old.std()) * math.sqrt(RGB / channels))
        layer.weight = nn.Parameter(new.contiguous(), requires_grad=old.requires_grad)
        layer.in_channels = channels
    return len(first)


def _first_convolutions(trunk: nn.Module, image_size: tuple[int, int]) -> list[nn.Conv2d]:
    """Return the convolutions that are given all three channels of the image."""
    found: list[nn.Conv2d] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Squeeze-and-excitation layers may have three channels too, but of a single pixel.
        of_image = inputs[0].shape[-1] > 1 and inputs[0].shape[1] == RGB
        if isinstance(layer, nn.Conv2d) and of_image and layer not in found:
            found.append(layer)

    layers = [layer for layer in trunk.modules() if isinstance(layer, nn.Conv2d)]
    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    training = trunk.training
    trunk.eval()
    try:
        trunk(torch.zeros(1, RGB, *image_size))
    finally:
        trunk.train(training)
        for handle in handles:
            handle.remove()
    return found
