"""L1 and L2 penalties, and the weights that they act on."""

import torch
from torch import Tensor, nn

NEAR_ZERO = 1e-3
"""Absolute value below which a weight counts as zero; gradient steps rarely reach 0 exactly."""

_MATRIX_NORMS = (nn.LayerNorm, nn.RMSNorm)
"""Norms whose scale may have several dimensions; the others have vectors."""


def weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of a module by name, without biases and normalisation layers.

    A bias or scale close to zero does not make a model simpler, so these are never penalised
    (Goodfellow et al. 2016, section 7.1).
    """
    chosen = {}
    for prefix, layer in module.named_modules():
        if isinstance(layer, _MATRIX_NORMS):
            continue
        for name, parameter in layer.named_parameters(recurse=False):
            # Vectors are biases or scales. Parameters that are not called weight are the tokens,
            # positions and scales of transformers.
            if parameter.ndim > 1 and name.endswith("weight"):
                chosen[f"{prefix}.{name}" if prefix else name] = parameter
    return chosen


def penalised_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of a module that are trained, by name; see `weights_of`."""
    return {name: p for name, p in weights_of(module).items() if p.requires_grad}


def penalty(parameters: list[nn.Parameter], l1: float, l2: float) -> Tensor:
    """Return l1 · Σ|w| + l2 · Σw², a scalar with a gradient.

    As in Keras' regularisers, the gradient of the second term is 2 · l2 · w.
    """
    total = torch.zeros((), device=parameters[0].device)
    for parameter in parameters:
        if l1:
            total = total + l1 * parameter.abs().sum()
        if l2:
            total = total + l2 * parameter.square().sum()
    return total


def sparsity(parameters: list[nn.Parameter]) -> Tensor:
    """Return the share of weights, 0 to 1, with an absolute value below `NEAR_ZERO`."""
    small = torch.stack([(p.detach().abs() < NEAR_ZERO).sum() for p in parameters]).sum()
    return small / sum(p.numel() for p in parameters)
