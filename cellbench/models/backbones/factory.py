"""Backbones by name: cellbench's own networks, torchvision's and timm's, without classifier."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cellbench.models.backbones import own_networks, timm_networks, torchvision_networks
from cellbench.models.backbones.channels import RGB, set_channels
from cellbench.models.heads import OwnPooling, Pool, build_pool
from cellbench.models.norms import Norm, replace_batch_norms
from cellbench.models.weights import SkipInit, Weights, from_file, from_run, load
from cellbench.utils.errors import UserError, counted, suggest

STAGE_RATIO = 0.4
"""Share of a stage's map size below which the next stage begins. Halving both sides leaves 0.25;
an unpadded convolution only takes off a margin."""

Stages = tuple[tuple[nn.Module, ...], ...]
"""Layers of a backbone by stage, from input to output."""


@dataclass(frozen=True)
class Backbone:
    """Network without classifier."""

    trunk: nn.Module
    """Module from normalised images, (B, channels, H, W), to features, (B, C, h, w) or (B, C)."""
    shape: tuple[int, ...]
    """Shape of the features without the batch, (C, h, w) or (C,)."""
    mean: tuple[float, ...]
    """Mean that the network expects of each channel, 0 to 1."""
    std: tuple[float, ...]
    """Standard deviation that the network expects of each channel, 0 to 1."""
    pool: nn.Module
    """Module from the trunk's features to a vector, (B, width)."""
    width: int
    """Length of that vector."""
    stages: Stages
    """Layers of the trunk by stage, from input to output; each stage makes the maps smaller."""
    loaded: str | None
    """Line that says which weights were loaded; None without any."""


class Library(Protocol):
    """Module that makes the networks of one library."""

    CLASSIFIERS: tuple[str, ...]
    """Prefixes of a classifier's entries in a state dict."""

    def make(
        self, name: str, image_size: tuple[int, int], *, average: bool
    ) -> tuple[nn.Module, nn.Module, OwnPooling | None]:
        """Make a network without classifier.

        Args:
            name: Its name.
            image_size: Height and width of the images in pixels.
            average: True for the network's own pooling, nearly always the average.

        Returns:
            The network, with the entries of its published weights; its trunk, which shares its
            layers; and its own pooling, if that is wanted and is more than an average.

        Raises:
            UserError: There is no such network, or it cannot be pooled in another way.
            ValueError: The network does not take images of this size.
        """

    def imagenet(self, name: str, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the published ImageNet weights of a network, downloaded once.

        Raises:
            UserError: There are none, or they cannot be downloaded.
        """

    def normalisation(
        self, name: str, network: nn.Module
    ) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return mean and standard deviation of the channels that a network expects."""


@cache
def names() -> tuple[str, ...]:
    """Return the names of all backbones but timm's, sorted."""
    return tuple(sorted([*torchvision_networks.names(), *own_networks.names()]))


def _library(name: str) -> Library:
    if name.startswith(timm_networks.PREFIX):
        return timm_networks
    if name in own_networks.names():
        return own_networks
    if name in torchvision_networks.names():
        return torchvision_networks
    raise UserError(
        f"model.backbone: unknown network '{name}'{suggest(name, names())}; a name of timm's "
        "begins with timm/"
    )


def build(
    name: str,
    weights: str,
    image_size: tuple[int, int],
    norm: Norm = "batch",
    pool: Pool = "avg",
    *,
    partial: bool = False,
    channels: int = RGB,
) -> Backbone:
    """Make a backbone.

    Args:
        name: One of `names()`, or timm/ and the name of a timm model.
        weights: none for random weights, imagenet for the published ones, downloaded once, the
            path of a state-dict file, or the folder of a run, whose best checkpoint is taken.
        image_size: Height and width of the images in pixels.
        norm: group replaces each batch norm by a group norm, with the scales of the weights.
        pool: Reduction of feature maps to a vector.
        partial: Accept weights that fit only in part.
        channels: Number of the images' channels. For other than 3, the network's first convolution
            is changed (`set_channels`), and each channel is normalised by the mean of the RGB ones.

    Raises:
        UserError: The name is unknown, the weights cannot be read or do not fit, or the images are
            too small for the network.
    """
    library = _library(name)
    initial = _read_weights(library, name, weights, image_size, norm, partial=partial)
    of_rgb = initial is not None and not initial.of_run
    if initial is not None and initial.of_run and initial.channels != channels and not partial:
        raise UserError(
            f"model.weights: {initial.source} is for {initial.channels} channels, and the images "
            f"have {channels}; choose as many with data.channels"
        )
    try:
        with nullcontext() if initial is None or partial else SkipInit():
            network, trunk, own_pool = library.make(name, image_size, average=pool == "avg")
            if channels != RGB and not of_rgb:
                set_channels(trunk, channels, image_size, keep_filters=False)
    except ValueError as error:  # networks of a fixed input size say what they can take
        raise UserError(f"model.backbone: {name} at {image_size}: {error}") from error
    loaded = None
    if initial is not None:
        replace_batch_norms(trunk, initial.norm)
        # The entries of a run are those of the trunk.
        target, skip = (trunk, ()) if initial.of_run else (network, library.CLASSIFIERS)
        loaded = load(target, initial, skip, partial=partial)
        if channels != RGB and of_rgb:
            loaded += _spread_filters(name, trunk, channels, image_size)
    if norm not in ("batch", initial.norm if initial else "batch"):
        replaced = replace_batch_norms(trunk, norm)
        if not replaced:
            raise UserError(f"model.norm: {norm}, but {name} has no batch norm to replace")
        if loaded:
            loaded += f"; the {norm} norms keep only the scales of its {replaced} batch norms"
    shape, stages = _inspect(name, trunk, image_size, channels)
    layers, width = build_pool(pool, shape) if own_pool is None else (own_pool, own_pool.width)
    mean, std = _normalisation(library, name, network, channels)
    return Backbone(trunk, shape, mean, std, layers, width, stages, loaded)


def _spread_filters(name: str, trunk: nn.Module, channels: int, image_size: tuple[int, int]) -> str:
    """Give each channel the mean of the RGB filters; return words for the user.

    Raises:
        UserError: The network cannot take so many channels.
    """
    try:
        set_channels(trunk, channels, image_size, keep_filters=True)
    except ValueError as error:
        raise UserError(f"model.backbone: {name} with {channels} channels: {error}") from error
    return f"; each of the {counted(channels, 'channel')} has the mean of its RGB filters"


def _normalisation(
    library: Library, name: str, network: nn.Module, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel; of other than RGB, the mean of theirs."""
    mean, std = library.normalisation(name, network)
    if channels == RGB:
        return mean, std
    return (sum(mean) / RGB,) * channels, (sum(std) / RGB,) * channels


def _read_weights(
    library: Library,
    name: str,
    weights: str,
    image_size: tuple[int, int],
    norm: Norm,
    *,
    partial: bool,
) -> Weights | None:
    """Read the initial weights that `build` is asked for; None for random ones."""
    if weights == "none":
        return None
    if weights == "imagenet":
        return Weights(library.imagenet(name, image_size), f"{name}'s ImageNet weights")
    path = Path(weights)
    if not path.is_dir():
        return from_file(path)
    of_run = from_run(path, name, partial=partial)
    if of_run.norm not in ("batch", norm):
        raise UserError(
            f"model.norm: the run {path} trained with {of_run.norm}; give norm: {of_run.norm}"
        )
    return of_run


def _inspect(
    name: str, trunk: nn.Module, image_size: tuple[int, int], channels: int
) -> tuple[tuple[int, ...], Stages]:
    """Return the shape of a trunk's features, and its stages, from a pass of a blank image."""
    sizes: dict[nn.Module, int] = {}  # height times width of each layer's maps
    channels_last = "swin" in name

    def record(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            one = output[0, ..., 0] if channels_last else output[0, 0]
            sizes[layer] = one.numel()

    layers = list(_layers(trunk))
    handles = [layer.register_forward_hook(record) for layer in layers]
    training = trunk.training
    trunk.eval()
    try:
        with torch.no_grad():
            features: Tensor = trunk(torch.zeros(1, channels, *image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"data.image_size: {image_size} does not suit {name}: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    trunk.train(training)
    stages = _divide(layers, sizes, image_size[0] * image_size[1])
    return tuple(features.shape[1:]), stages


def _divide(layers: list[nn.Module], sizes: dict[nn.Module, int], size: int) -> Stages:
    """Divide layers into stages; each has parameters.

    Args:
        layers: The layers, from input to output.
        sizes: Height times width of a layer's maps, of those that have maps.
        size: Height times width of the images.
    """
    stages: list[list[nn.Module]] = [[]]
    for layer in layers:
        if sizes.get(layer, size) < STAGE_RATIO * size:
            size = sizes[layer]
            if _has_parameters(stages[-1]):
                stages.append([])
        stages[-1].append(layer)
    if len(stages) > 1 and not _has_parameters(stages[-1]):
        last = stages.pop()
        stages[-1] += last
    return tuple(map(tuple, stages))


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers and blocks of a network in order: the items of its nested sequences."""
    for child in module.children():
        if isinstance(child, nn.Sequential) and len(child):
            yield from _layers(child)
        else:
            yield child


def _has_parameters(layers: list[nn.Module]) -> bool:
    return any(True for layer in layers for _ in layer.parameters())
