"""L1 and L2 penalties, and which parameters they act on."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

SMALL = 1e-3
"""What counts as zero: a gradient's steps go around it, and never stay there."""

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


def penalised_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable weights of a module, by name, without biases and normalisation layers.

    A bias or a norm's scale close to zero is no simpler model, so that they are never penalised
    (Goodfellow et al. 2016, section 7.1).
    """
    chosen = {}
    for prefix, layer in module.named_modules():
        if isinstance(layer, _NORMS):
            continue
        for name, parameter in layer.named_parameters(recurse=False):
            # Vectors are biases, or scales of layers that torch does not ship; what is no weight
            # by its name is a transformer's token, position or scale.
            if parameter.requires_grad and parameter.ndim > 1 and name.endswith("weight"):
                chosen[f"{prefix}.{name}" if prefix else name] = parameter
    return chosen


def penalty(parameters: list[nn.Parameter], l1: float, l2: float) -> Tensor:
    """l1 · Σ|w| + l2 · Σw², as Keras' regularisers have it: the gradient of l2's part is 2·l2·w.

    Returns:
        A scalar that gradients flow through.
    """
    total = torch.zeros((), device=parameters[0].device)
    for parameter in parameters:
        if l1:
            total = total + l1 * parameter.abs().sum()
        if l2:
            total = total + l2 * parameter.square().sum()
    return total


def sparsity(parameters: list[nn.Parameter]) -> Tensor:
    """The share of the weights, 0 to 1, whose absolute value is below SMALL."""
    small = torch.stack([(p.detach().abs() < SMALL).sum() for p in parameters]).sum()
    return small / sum(p.numel() for p in parameters)
