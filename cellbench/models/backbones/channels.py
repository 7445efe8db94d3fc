"""First layers of a backbone, changed to take other than three channels."""

import math

import torch
from torch import Tensor, nn

RGB = 3
"""Number of channels that all backbones are made for."""


@torch.no_grad()
def set_channels(
    trunk: nn.Module, channels: int, image_size: tuple[int, int], *, keep_filters: bool
) -> int:
    """Change the layers that see the image so that they take so many channels.

    A batch norm of the image gets the mean of its three channels for each.

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
    norms, first = _first_layers(trunk, image_size)
    if not first:
        raise ValueError("it has no convolution that sees the image")
    for norm in norms:
        norm.num_features = channels
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            if tensor is not None:
                tensor.data = tensor.data.mean().repeat(channels)
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


def _first_layers(
    trunk: nn.Module, image_size: tuple[int, int]
) -> tuple[list[nn.BatchNorm2d], list[nn.Conv2d]]:
    """Return the batch norms and the convolutions that are given the image's three channels."""
    norms: list[nn.BatchNorm2d] = []
    convolutions: list[nn.Conv2d] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Squeeze-and-excitation layers may have three channels too, but of a single pixel.
        if inputs[0].shape[-1] == 1 or inputs[0].shape[1] != RGB:
            return
        if isinstance(layer, nn.BatchNorm2d) and layer not in norms:
            norms.append(layer)
        if isinstance(layer, nn.Conv2d) and layer not in convolutions:
            convolutions.append(layer)

    layers = [m for m in trunk.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    training = trunk.training
    trunk.eval()
    try:
        trunk(torch.zeros(1, RGB, *image_size))
    finally:
        trunk.train(training)
        for handle in handles:
            handle.remove()
    return norms, convolutions
