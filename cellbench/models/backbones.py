"""Backbones by name: our own networks, torchvision's classifiers without theirs, and timm's."""

import math
import pkgutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cellbench.errors import UserError, suggest
from cellbench.models import networks, timm_networks, torchvision_networks
from cellbench.models.heads import OwnPooling, Pool, build_pool
from cellbench.models.weights import Undrawn, from_file, from_run, load

Norm = Literal["batch", "group"]

GROUPS = 32
"""The groups of a group norm (Wu and He, ECCV 2018), or the greatest power of two below that
divides the channels."""


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier.

    Attributes:
        trunk: From normalised images (B, 3, H, W) to features, (B, C, h, w) or (B, C).
        shape: The features' shape without the batch, (C, h, w) or (C,).
        mean: Mean of each channel that the network expects, in RGB and 0 to 1.
        std: Standard deviation of each channel that the network expects, likewise.
        pool: From the trunk's features to a vector, (B, width).
        width: The length of that vector.
        stages: The trunk's layers, first to last, parted where the maps get smaller.
        loaded: What was loaded, skipped and begun anew, in a line; None where nothing was loaded.
    """

    trunk: nn.Module
    shape: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pool: nn.Module
    width: int
    stages: tuple[tuple[nn.Module, ...], ...]
    loaded: str | None


@cache
def names() -> tuple[str, ...]:
    """All backbones but timm's, sorted."""
    return tuple(sorted([*torchvision_networks.names(), *_own_names()]))


@cache
def _own_names() -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules(networks.__path__))


def build(
    name: str,
    weights: str,
    image_size: tuple[int, int],
    norm: Norm = "batch",
    pool: Pool = "avg",
    *,
    partial: bool = False,
) -> Backbone:
    """Make a backbone.

    Args:
        name: One of `names()`, or timm/ and a name of timm's.
        weights: "none" for random ones, "imagenet" for the published ones, downloaded once, the
            path of a state-dict file, or the folder of a run of ours, whose best checkpoint is
            taken.
        image_size: Height and width of the images it will see, in pixels.
        norm: group puts a group norm, with the scales it finds, in the place of each batch norm.
        pool: How feature maps become a vector.
        partial: Whether weights that fit in part are taken.

    Raises:
        UserError: The name is not known, the weights cannot be had or do not fit, or the images
            are too small for the network.
    """
    of_timm = name.startswith(timm_networks.PREFIX)
    if not of_timm and name not in names():
        raise UserError(
            f"model.backbone: unknown network '{name}'{suggest(name, names())}; a name of timm's "
            "begins with timm/"
        )
    own = name in _own_names()
    run = Path(weights)
    is_run = weights not in ("none", "imagenet") and run.is_dir()
    state, source, trained = None, weights, "batch"
    if weights == "imagenet" and own:
        raise UserError(f"model.weights: there are no ImageNet weights of {name}; use none")
    if is_run:
        (state, trained), source = from_run(run, name, partial=partial), f"the run {weights}"
        if trained == "group" != norm:
            raise UserError(f"model.norm: the run {run} trained with group; give norm: group")
    elif weights == "imagenet":
        source = f"{name}'s ImageNet weights"
        if of_timm:
            state = timm_networks.imagenet(name, image_size)
        else:
            state = torchvision_networks.imagenet(name)
    elif weights != "none":
        state = from_file(Path(weights))
    try:
        with nullcontext() if state is None or partial else Undrawn():
            network, trunk, own_pool = _make(name, image_size, pool)
    except ValueError as error:  # networks of a fixed input size say what they can take
        raise UserError(f"model.backbone: {name} at {image_size}: {error}") from error
    if trained == "group":
        use_group_norm(trunk)
    loaded = None
    if state is not None:
        classifiers: tuple[str, ...] = ()
        if not is_run and not own:
            known = timm_networks if of_timm else torchvision_networks
            classifiers = known.CLASSIFIERS
        target = trunk if is_run else network  # a run's names are those of the trunk
        loaded = load(target, state, source, classifiers, partial=partial)
    if norm == "group" and trained != "group":
        replaced = use_group_norm(trunk)
        if not replaced:
            raise UserError(f"model.norm: group, but {name} has no batch norm to replace")
        if loaded:
            loaded += f"; of its {replaced} batch norms the group norms keep the scales alone"
    shape, stages = _look(name, trunk, image_size)
    layers, width = build_pool(pool, shape) if own_pool is None else (own_pool, own_pool.width)
    if of_timm:
        mean, std = timm_networks.normalisation(network)
    else:
        mean, std = torchvision_networks.normalisation(name)
    return Backbone(trunk, shape, mean, std, layers, width, stages, loaded)


def _make(
    name: str, image_size: tuple[int, int], pool: Pool
) -> tuple[nn.Module, nn.Module, OwnPooling | None]:
    """Make a network by its name.

    Returns:
        The network with the names of its published weights, its trunk, which shares its layers,
        and its own pooling where that is to be used.
    """
    average = pool == "avg"
    if name.startswith(timm_networks.PREFIX):
        network, pooling = timm_networks.make(name, image_size, average=average)
        return network, network, pooling
    if name in _own_names():
        try:
            module = import_module(f"{networks.__name__}.{name}")
        except Exception as error:  # a mistake in this one file
            raise UserError(
                f"model.backbone: cellbench/models/networks/{name}.py cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        network = module.build()
        return network, network, None
    network = torchvision_networks.make(name, image_size)
    return network, *torchvision_networks.cut(name, network, average=average)


def use_group_norm(network: nn.Module) -> int:
    """Puts a group norm in the place of each batch norm; it needs no statistics of a laboratory.

    Returns:
        How many there were.
    """
    replaced = 0
    for parent in list(network.modules()):
        for key, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                channels = layer.num_features
                new: nn.Module = nn.GroupNorm(math.gcd(GROUPS, channels), channels, eps=layer.eps)
                if layer.affine:
                    new.load_state_dict({"weight": layer.weight, "bias": layer.bias})
                # timm's have their activation inside.
                found = (getattr(layer, name, None) for name in ("drop", "act"))
                inside = [each for each in found if isinstance(each, nn.Module)]
                setattr(parent, key, nn.Sequential(new, *inside) if inside else new)
                replaced += 1
    return replaced


def _look(
    name: str, trunk: nn.Module, image_size: tuple[int, int]
) -> tuple[tuple[int, ...], tuple[tuple[nn.Module, ...], ...]]:
    """The shape of the features, and the stages, seen as a blank image passes through."""
    sizes: dict[nn.Module, int] = {}
    last = "swin" in name  # whose maps have their channels last

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            sizes[layer] = output.shape[1] * output.shape[2] if last else output[0, 0].numel()

    layers = list(_layers(trunk))
    handles = [layer.register_forward_hook(note) for layer in layers]
    training = trunk.training
    trunk.eval()
    try:
        with torch.no_grad():
            features: Tensor = trunk(torch.zeros(1, 3, *image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"data.image_size: {image_size} does not suit {name}: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    trunk.train(training)
    stages: list[list[nn.Module]] = [[]]
    size = image_size[0] * image_size[1]
    for layer in layers:
        # A valid convolution takes off a margin; only what halves a side begins a stage.
        if sizes.get(layer, size) < 0.4 * size:
            size = sizes[layer]
            if _learns(stages[-1]):
                stages.append([])
        stages[-1].append(layer)
    if len(stages) > 1 and not _learns(stages[-1]):
        last_layers = stages.pop()
        stages[-1] += last_layers
    return tuple(features.shape[1:]), tuple(map(tuple, stages))


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """A network's layers and blocks in order: what its sequences, whole or inside, are made of."""
    for child in module.children():
        if isinstance(child, nn.Sequential) and len(child):
            yield from _layers(child)
        else:
            yield child


def _learns(layers: list[nn.Module]) -> bool:
    return any(True for layer in layers for _ in layer.parameters())
