"""torchvision's classifiers without their classifier."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from cellbench.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

# torchvision re-normalises inside the first two when they are pretrained; their trunk here does
# not. The third is the one network whose weights want it from outside.
_HALF_NORMALISED = ("googlenet", "inception_v3", "efficientnet_v2_l")

CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.", "aux1.", "aux2.", "AuxLogits.")
"""How the names of torchvision's classifiers begin in a state dict."""


def names() -> list[str]:
    """All its classifiers."""
    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def normalisation(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation that a network expects of its channels, RGB, 0 to 1."""
    return (HALF, HALF) if name in _HALF_NORMALISED else (IMAGENET_MEAN, IMAGENET_STD)


def make(name: str, image_size: tuple[int, int]) -> nn.Module:
    """The whole network, its classifier included.

    Raises:
        ValueError: The size is none that it takes.
    """
    builder: Callable[..., nn.Module] = torchvision.models.get_model_builder(name)
    arguments: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True
    if "vit" in name and "maxvit" not in name:
        if image_size[0] != image_size[1]:
            raise ValueError("a vision transformer needs square images")
        arguments["image_size"] = image_size[0]
    if "maxvit" in name:
        arguments["input_size"] = image_size
    return builder(weights=None, **arguments)


def cut(name: str, network: Any) -> nn.Module:
    """Cuts a network behind its last feature map, its state-dict names kept."""
    if name.startswith("vit"):
        network.heads = nn.Identity()  # gives the class token
        return nn.Sequential(network)
    if name.startswith("maxvit"):
        return nn.Sequential(OrderedDict(stem=network.stem, blocks=nn.Sequential(*network.blocks)))
    if name.startswith("densenet"):
        return nn.Sequential(OrderedDict(features=network.features, relu=nn.ReLU(inplace=True)))
    if name.startswith("swin"):
        kept = ("features", "norm", "permute")
        return nn.Sequential(OrderedDict((key, getattr(network, key)) for key in kept))
    for key in ("features", "layers"):  # layers: MNASNet
        if isinstance(getattr(network, key, None), nn.Module):
            return nn.Sequential(OrderedDict([(key, getattr(network, key))]))
    # The rest run their children in order up to the pooling.
    dropped = ("avgpool", "dropout", "fc", "aux1", "aux2", "AuxLogits")
    children = [(key, child) for key, child in network.named_children() if key not in dropped]
    return nn.Sequential(OrderedDict(children))


def imagenet(name: str) -> dict[str, Tensor]:
    """The state dict of torchvision's best weights, downloaded once to torch's hub folder.

    Raises:
        UserError: They cannot be had.
    """
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        raise UserError(
            f"model.weights: cannot download {name}'s ImageNet weights ({error}); where there is "
            f"no network, put {Path(weights.url).name} from another machine at {file}, or give "
            "model.weights a state-dict file, or none"
        ) from error
    return state
