"""torchvision's image classifiers, without their classification layers."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from cellbench.models.heads import OwnPooling
from cellbench.utils.errors import UserError, short_path

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

# Pretrained, the first two are re-normalised inside torchvision's forward, which the trunk does
# not run. The weights of the third expect it from outside.
_HALF_NORMALISED = ("googlenet", "inception_v3", "efficientnet_v2_l")

CLASSIFIERS: tuple[str, ...] = (
    *("fc.", "classifier.", "head.", "heads."),
    *("aux1.", "aux2.", "AuxLogits."),
)
"""Prefixes of a classifier's entries in a state dict."""

_LAYERS_AFTER_POOLING = ("convnext", "maxvit", "mobilenet_v3")
"""Prefixes of the networks with a norm or dense layer between the pooling and the last layer of
their classifier, which is part of the features here. The dense layers of AlexNet and VGG are not:
they take whole maps, which VGG's published recipes pool instead."""


def names() -> list[str]:
    """Return the names of all classifiers in torchvision."""
    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def normalisation(
    name: str, network: nn.Module
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of the channels that a network expects, RGB, 0 to 1."""
    return (HALF, HALF) if name in _HALF_NORMALISED else (IMAGENET_MEAN, IMAGENET_STD)


def make(
    name: str, image_size: tuple[int, int], *, average: bool
) -> tuple[nn.Module, nn.Module, OwnPooling | None]:
    """Make a network without its classifier.

    Args:
        name: Its name.
        image_size: Height and width of the images in pixels.
        average: True for the network's own pooling, with the layers after it.

    Returns:
        The network, with the entries of its published weights; its trunk, which ends with the last
        feature maps and shares the network's layers; and its own pooling, if that is wanted and is
        more than an average.

    Raises:
        ValueError: The network does not take images of this size.
    """
    network = _whole(name, image_size)
    trunk, pooling = _cut(name, network, average=average)
    return network, trunk, pooling


def _whole(name: str, image_size: tuple[int, int]) -> nn.Module:
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


def _cut(name: str, network: Any, *, average: bool) -> tuple[nn.Module, OwnPooling | None]:
    """Return a network's trunk and own pooling, and remove its classifier; other names stay."""
    after, width = None, 0
    if average and name.startswith(_LAYERS_AFTER_POOLING):
        after, width = _after_pooling(network.classifier), network.classifier[-1].in_features
    for key, _ in list(network.named_children()):
        if f"{key}." in CLASSIFIERS:
            setattr(network, key, nn.Identity())
    layers = _up_to_the_maps(name, network)
    if after is None:
        return nn.Sequential(layers), None
    network.classifier = after
    trunk = _PooledTrunk(OrderedDict([*layers.items(), ("classifier", after)]))
    return trunk, OwnPooling(trunk.pool, width)


def _up_to_the_maps(name: str, network: Any) -> OrderedDict[str, nn.Module]:
    if name.startswith("vit"):
        return OrderedDict([("0", network)])  # gives the class token
    if name.startswith("maxvit"):
        return OrderedDict(stem=network.stem, blocks=nn.Sequential(*network.blocks))
    if name.startswith("densenet"):
        return OrderedDict(features=network.features, relu=nn.ReLU(inplace=True))
    if name.startswith("swin"):
        return OrderedDict((key, getattr(network, key)) for key in ("features", "norm", "permute"))
    for key in ("features", "layers"):  # layers: MNASNet
        if isinstance(getattr(network, key, None), nn.Module):
            return OrderedDict([(key, getattr(network, key))])
    # The others run their children in order, up to the pooling.
    dropped = ("avgpool", "dropout", "fc", "aux1", "aux2", "AuxLogits")
    return OrderedDict((k, child) for k, child in network.named_children() if k not in dropped)


def _after_pooling(classifier: nn.Sequential) -> nn.Sequential:
    """Return the layers of a classifier before its last one, with their names."""
    kept = [(k, m) for k, m in list(classifier.named_children())[:-1] if type(m) is not nn.Dropout]
    if isinstance(kept[0][1], nn.Linear):  # it takes vectors
        kept.insert(0, ("flatten", nn.Flatten()))
    return nn.Sequential(OrderedDict(kept))


class _PooledTrunk(nn.Sequential):
    """Trunk whose last child is applied after the pooling.

    As part of the trunk it is loaded, frozen and saved with it.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the last maps, (B, C, h, w), of normalised images, (B, 3, H, W)."""
        for layer in list(self)[:-1]:
            images = layer(images)
        return images

    def pool(self, maps: Tensor) -> Tensor:
        """Return features, (B, width), of maps, (B, C, h, w)."""
        features: Tensor = self[-1](adaptive_avg_pool2d(maps, 1))
        return features


def imagenet(name: str, image_size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the state dict of torchvision's best weights, downloaded once to torch's hub folder.

    Raises:
        UserError: They cannot be downloaded.
    """
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.weights: cannot download {name}'s ImageNet weights; copy {short_path(file)} "
            f"from another machine, or use none ({reason:.48})"
        ) from error
    return state
