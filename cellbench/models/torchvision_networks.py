"""torchvision's classifiers without their classifier."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from cellbench.errors import UserError
from cellbench.models.heads import OwnPooling

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

# torchvision re-normalises inside the first two when they are pretrained; their trunk here does
# not. The third is the one network whose weights want it from outside.
_HALF_NORMALISED = ("googlenet", "inception_v3", "efficientnet_v2_l")

CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.", "aux1.", "aux2.", "AuxLogits.")
"""How the names of torchvision's classifiers begin in a state dict."""

_LAYERS_BEHIND_POOLING = ("convnext", "maxvit", "mobilenet_v3")
"""How the networks are named whose classifier has a norm or a dense layer between the pooling and
its last layer. They are part of the features. The dense layers of AlexNet and VGG are not: they see
whole maps, which VGG's published recipes pool instead."""


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


def cut(name: str, network: Any, *, average: bool) -> tuple[nn.Module, OwnPooling | None]:
    """Cut a network behind its last feature maps, and take its classifier off; names stay.

    Args:
        name: The network's name.
        network: The network. It keeps the names of its state dict, and loses the classifier's.
        average: Whether the network's own pooling is wanted, with the layers behind it.

    Returns:
        The trunk, which shares the network's layers, and the network's own pooling of its maps, if
        it is wanted and more than their average.
    """
    behind, width = None, 0
    if average and name.startswith(_LAYERS_BEHIND_POOLING):
        behind, width = _behind_pooling(network.classifier), network.classifier[-1].in_features
    for key, _ in list(network.named_children()):
        if f"{key}." in CLASSIFIERS:
            setattr(network, key, nn.Identity())
    layers = _up_to_the_maps(name, network)
    if behind is None:
        return nn.Sequential(layers), None
    network.classifier = behind
    trunk = _PooledTrunk(OrderedDict([*layers.items(), ("classifier", behind)]))
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
    # The rest run their children in order up to the pooling.
    dropped = ("avgpool", "dropout", "fc", "aux1", "aux2", "AuxLogits")
    return OrderedDict((k, child) for k, child in network.named_children() if k not in dropped)


def _behind_pooling(classifier: nn.Sequential) -> nn.Sequential:
    """Return the layers before a classifier's last one, their names kept."""
    kept = [(k, m) for k, m in list(classifier.named_children())[:-1] if type(m) is not nn.Dropout]
    if isinstance(kept[0][1], nn.Linear):  # which takes vectors
        kept.insert(0, ("flatten", nn.Flatten()))
    return nn.Sequential(OrderedDict(kept))


class _PooledTrunk(nn.Sequential):
    """A trunk whose last child comes behind the pooling.

    It is part of the trunk to be loaded, frozen and saved with it.
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
