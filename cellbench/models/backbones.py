"""Backbones by name: torchvision's classifiers without their classifier, and our own networks."""

import pkgutil
import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError
from zipfile import is_zipfile

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cellbench.errors import UserError, suggest
from cellbench.models import networks

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

# torchvision re-normalises inside the first two when they are pretrained; their trunk here does
# not. The third is the one network whose weights want it from outside.
_HALF_NORMALISED = ("googlenet", "inception_v3", "efficientnet_v2_l")

CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.", "aux1.", "aux2.", "AuxLogits.")
"""How the names of torchvision's classifiers begin in a state dict."""

DESCRIPTION = "cellbench"
"""Where a checkpoint of ours says what it is of."""
_OWN = "backbone."  # how the backbone's names begin in it

# Published DenseNets have "norm.1" where torchvision's own has "norm1".
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier.

    Attributes:
        trunk: From normalised images (B, 3, H, W) to features, (B, C, h, w) or (B, C).
        shape: The features' shape without the batch, (C, h, w) or (C,).
        mean: Mean of each channel that the network expects, in RGB and 0 to 1.
        std: Standard deviation of each channel that the network expects, likewise.
    """

    trunk: nn.Module
    shape: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@cache
def names() -> tuple[str, ...]:
    """All backbones, sorted."""
    shipped = torchvision.models.list_models(module=torchvision.models)
    return tuple(sorted([*shipped, *_own_names()]))


@cache
def _own_names() -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules(networks.__path__))


def build(name: str, weights: str, image_size: tuple[int, int]) -> Backbone:
    """Makes a backbone.

    Args:
        name: One of `names()`.
        weights: "none" for random ones, "imagenet" for torchvision's best, downloaded once to
            torch's hub folder, the path of a state-dict file, or the folder of a run of ours, whose
            best checkpoint is taken.
        image_size: Height and width of the images it will see, in pixels.

    Raises:
        UserError: The name is not known, the weights cannot be had or do not fit, or the images
            are too small for the network.
    """
    if name not in names():
        raise UserError(f"model.backbone: unknown network '{name}'{suggest(name, names())}")
    state, source = None, weights
    own = name in _own_names()
    if weights == "imagenet":
        if own:
            raise UserError(f"model.weights: there are no ImageNet weights of {name}; use none")
        state, source = _imagenet(name), f"{name}'s ImageNet weights"
    elif Path(weights).is_dir():
        state, source = _from_run(Path(weights), name), f"the run {weights}"
    elif weights != "none":
        state = _from_file(Path(weights))
    try:
        with nullcontext() if state is None else Undrawn():
            network = _own(name) if own else _torchvision(name, image_size)
    except ValueError as error:  # networks of a fixed input size say what they can take
        raise UserError(f"model.backbone: {name} at {image_size}: {error}") from error
    trunk = network if own else _trunk(name, network)
    if state is not None and Path(weights).is_dir():  # its names are those of the trunk
        _load(trunk, state, source, unused=())
    elif state is not None:
        _load(network, state, source, unused=() if own else CLASSIFIERS)
    return Backbone(trunk, _feature_shape(name, trunk, image_size), *normalisation(name))


class Undrawn(TorchFunctionMode):
    """Leaves the drawing of initial weights out where others are loaded; VGG16's take two seconds.

    As a context, for what is made in it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # Not Tensor.normal_ itself: torch's truncated normal calls it until it likes the values.
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def normalisation(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation that a network expects of its channels, RGB, 0 to 1."""
    return (HALF, HALF) if name in _HALF_NORMALISED else (IMAGENET_MEAN, IMAGENET_STD)


def _own(name: str) -> nn.Module:
    network: nn.Module = import_module(f"{networks.__name__}.{name}").build()
    return network


def _torchvision(name: str, image_size: tuple[int, int]) -> nn.Module:
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


def _trunk(name: str, network: Any) -> nn.Module:
    """Cuts a torchvision classifier behind its last feature map, its state-dict names kept."""
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


def _feature_shape(name: str, trunk: nn.Module, image_size: tuple[int, int]) -> tuple[int, ...]:
    training = trunk.training
    trunk.eval()
    try:
        with torch.no_grad():
            features: Tensor = trunk(torch.zeros(1, 3, *image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"data.image_size: {image_size} does not suit {name}: {reason}") from error
    trunk.train(training)
    return tuple(features.shape[1:])


def _imagenet(name: str) -> dict[str, Tensor]:
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


def _from_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"model.weights: there is no file {path}; allowed: none, imagenet, or a state-dict file"
        )
    try:
        # Mapped: the classifier, most of some networks' file, is not even read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # whatever a file of another kind provokes in torch's reader
        raise UserError(f"model.weights: {path} is not a state-dict file") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"model.weights: {path} is not a state dict (names and tensors)")
    return state


def _from_run(run: Path, name: str) -> dict[str, Tensor]:
    """The backbone's weights of a run's best checkpoint."""
    path = run / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise UserError(f"model.weights: {run} is no run's folder: it has no checkpoints/best.ckpt")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        trained = checkpoint[DESCRIPTION]["model"]["backbone"]
        state = checkpoint["state_dict"].items()
        own = {key.removeprefix(_OWN): value for key, value in state if key.startswith(_OWN)}
    except Exception as error:  # whatever a file of another kind provokes in torch's reader
        raise UserError(f"model.weights: {path} is not a checkpoint of cellbench's") from error
    if trained != name:
        raise UserError(
            f"model.weights: the run {run} trained {trained}; give model.backbone: {trained}"
        )
    return own


def _load(
    network: nn.Module, state: dict[str, Tensor], source: str, unused: tuple[str, ...]
) -> None:
    """Loads all but the classifier, which the head replaces; anything else must fit."""
    kept = OrderedDict(
        (_OLD_DENSENET.sub(r"\1\2", key), value)
        for key, value in state.items()
        if not key.startswith(unused)
    )
    # The modules' versions, which MNASNet asks for.
    kept._metadata = getattr(state, "_metadata", {})  # type: ignore[attr-defined]
    try:  # a module renames old keys of its own (ViT) as it loads
        missing, unknown = network.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"model.weights: {source} does not fit the network: {reason}") from error
    wrong = [*(key for key in missing if not key.startswith(unused)), *unknown]
    if wrong:
        raise UserError(
            f"model.weights: {source} does not fit the network: {len(wrong)} of {len(kept)} "
            f"entries are missing or unknown, the first '{wrong[0]}'"
        )
