"""cellbench's own networks: each module of `cellbench.models.networks` is one, by its name."""

import pkgutil
from functools import cache
from importlib import import_module

from torch import Tensor, nn

from cellbench.models import networks
from cellbench.models.backbones.torchvision_networks import IMAGENET_MEAN, IMAGENET_STD
from cellbench.models.heads import OwnPooling
from cellbench.utils.errors import UserError

CLASSIFIERS: tuple[str, ...] = ()
"""Prefixes of a classifier's entries in a state dict; these networks have no classifier."""


@cache
def names() -> tuple[str, ...]:
    """Return the names of all own networks."""
    return tuple(module.name for module in pkgutil.iter_modules(networks.__path__))


def make(
    name: str, image_size: tuple[int, int], *, average: bool
) -> tuple[nn.Module, nn.Module, OwnPooling | None]:
    """Make a network; see `torchvision_networks.make`.

    Raises:
        UserError: Its module cannot be imported.
    """
    try:
        module = import_module(f"{networks.__name__}.{name}")
    except Exception as error:  # any mistake in this one file
        raise UserError(
            f"model.backbone: cellbench/models/networks/{name}.py cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    network = module.build()
    return network, network, None


def imagenet(name: str, image_size: tuple[int, int]) -> dict[str, Tensor]:
    """Refuse ImageNet weights.

    Raises:
        UserError: Always.
    """
    raise UserError(f"model.weights: there are no ImageNet weights of {name}; use none")


def normalisation(
    name: str, network: nn.Module
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of the channels, RGB, 0 to 1."""
    return IMAGENET_MEAN, IMAGENET_STD
