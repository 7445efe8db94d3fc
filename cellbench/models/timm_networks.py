"""timm's networks, by their names there behind `timm/`: an extra, `pip install timm`."""

from typing import Any

import torch
from torch import Tensor, nn

from cellbench.errors import UserError, suggest

PREFIX = "timm/"

CLASSIFIERS = ("fc.", "classifier.", "head.", "head_dist.", "last_linear.", "classif.")
"""How the names of its classifiers begin in a state dict."""


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError("model.backbone: timm/ needs its package: pip install timm") from error
    return timm


def make(name: str, image_size: tuple[int, int]) -> nn.Module:
    """A network without its classifier, which gives feature maps, or a vector where it has none.

    Raises:
        UserError: timm is not installed, or has no such network.
        ValueError: The size is none that it takes.
    """
    timm, bare = _timm(), name.removeprefix(PREFIX)
    known = timm.list_models() + timm.list_pretrained()
    if bare not in known:
        raise UserError(f"model.backbone: timm has no network '{bare}'{suggest(bare, known)}")
    sized: dict[str, Any] = {"img_size": image_size}
    try:  # transformers are made for one size, the rest do not know the argument
        network: nn.Module = timm.create_model(bare, num_classes=0, global_pool="", **sized)
    except TypeError:
        sized = {}
        network = timm.create_model(bare, num_classes=0, global_pool="")
    except AssertionError as error:
        raise ValueError(str(error)) from error
    try:
        if getattr(network, "output_fmt", "NCHW") == "NCHW" and _gives_maps(network, image_size):
            return network
    except (RuntimeError, AssertionError) as error:
        raise ValueError(str(error).splitlines()[0]) from error
    pooled: nn.Module = timm.create_model(bare, num_classes=0, **sized)
    return pooled


def _gives_maps(network: nn.Module, image_size: tuple[int, int]) -> bool:
    network.eval()
    with torch.no_grad():
        maps: Tensor = network(torch.zeros(1, 3, *image_size))
    network.train()
    return maps.ndim == 4


def normalisation(network: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation that a network expects of its channels, RGB, 0 to 1."""
    config = network.pretrained_cfg
    return tuple(config["mean"]), tuple(config["std"])


def imagenet(name: str, image_size: tuple[int, int]) -> dict[str, Tensor]:
    """The state dict of a network's published weights, downloaded once by timm.

    Positions that a transformer has learnt are resampled to the images' size.

    Raises:
        UserError: There are none, or they cannot be had.
    """
    bare = name.removeprefix(PREFIX)
    try:
        try:
            network = _timm().create_model(bare, pretrained=True, img_size=image_size)
        except TypeError:
            network = _timm().create_model(bare, pretrained=True)
        return dict(network.state_dict())
    except Exception as error:  # huggingface_hub and requests raise a dozen kinds
        raise UserError(
            f"model.weights: timm cannot load the published weights of {bare} "
            f"({' '.join(str(error).split())[:200]}); give model.weights a state-dict file, or none"
        ) from error
