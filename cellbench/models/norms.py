"""Replacements for the batch norms of a backbone. A new one is one entry in `NORMS`."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import nn

GROUPS = 32
"""Groups of a group norm (Wu and He, ECCV 2018); fewer if the channels are not a multiple."""


def _group_norm(layer: nn.BatchNorm2d) -> nn.Module:
    channels = layer.num_features
    norm = nn.GroupNorm(math.gcd(GROUPS, channels), channels, eps=layer.eps)
    if layer.affine:
        norm.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    # The batch norms of timm contain their dropout and activation.
    inner = (getattr(layer, name, None) for name in ("drop", "act"))
    modules = [each for each in inner if isinstance(each, nn.Module)]
    return nn.Sequential(norm, *modules) if modules else norm


NORMS: dict[str, Callable[[nn.BatchNorm2d], nn.Module] | None] = {
    "batch": None,
    "group": _group_norm,  # keeps no statistics of the training images
}
"""Functions that make the replacement of a batch norm, with its scales; None to keep batch norm."""

if TYPE_CHECKING:
    Norm = str
else:
    Norm = Literal[tuple(NORMS)]


def replace_batch_norms(network: nn.Module, norm: Norm) -> int:
    """Replace each batch norm of a network.

    Returns:
        The number of layers that were replaced.
    """
    make = NORMS[norm]
    if make is None:
        return 0
    replaced = 0
    for parent in list(network.modules()):
        for key, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                setattr(parent, key, make(layer))
                replaced += 1
    return replaced
