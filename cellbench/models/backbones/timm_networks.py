"""timm's networks, named timm/ and timm's own name. timm is an extra: `pip install timm`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cellbench.models.heads import OwnPooling
from cellbench.utils.errors import UserError, suggest

PREFIX = "timm/"

CLASSIFIERS: tuple[str, ...] = (
    *("fc.", "classifier.", "head.", "heads.", "head_dist.", "aux_head."),
    *("last_linear.", "classif."),
)
"""Prefixes of a classifier's entries in a state dict."""


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError("model.backbone: timm/ needs its package: pip install timm") from error
    return timm


def make(
    name: str, image_size: tuple[int, int], *, average: bool
) -> tuple[nn.Module, nn.Module, OwnPooling | None]:
    """Make a network without its classifier.

    Args:
        name: timm/ and timm's name.
        image_size: Height and width of the images in pixels.
        average: True for the network's own pooling, nearly always the average; False for its last
            maps, to be pooled in another way.

    Returns:
        The network twice, as its trunk is the same: it gives feature maps, or a pooled vector if
        it has no maps. And its own pooling of the maps, if that is wanted.

    Raises:
        UserError: timm is not installed, has no such network, or the network has no maps that
            another pooling could take.
        ValueError: The network does not take images of this size, or does not classify images.
    """
    network, pooling = _make(name, image_size, average)
    return network, network, pooling


def _make(
    name: str, image_size: tuple[int, int], average: bool
) -> tuple[nn.Module, OwnPooling | None]:
    timm, bare = _timm(), name.removeprefix(PREFIX)
    known = timm.list_models() + timm.list_pretrained()
    if bare not in known:
        raise UserError(f"model.backbone: timm has no network '{bare}'{suggest(bare, known)}")
    try:
        if average:
            return _with_own_pooling(_create(bare, image_size), image_size)
        try:
            network = _create(bare, image_size, global_pool="")
        except AssertionError as error:
            raise UserError(
                f"model.head.pool: {name} cannot be used without its own pooling; use avg"
            ) from error
        if _are_maps(network, _run_blank(network, network, image_size)):
            return network, None
        return _as_vectors(_create(bare, image_size)), None
    except UserError:
        raise
    except Exception as error:  # each of a thousand networks may fail in its own way
        reason = str(error) or "it does not take images of this size"
        raise ValueError(reason.splitlines()[0]) from error


def _create(bare: str, image_size: tuple[int, int], **options: Any) -> Any:
    create = _timm().create_model
    try:  # transformers are made for one size; other networks do not have the argument
        return create(bare, num_classes=0, img_size=image_size, **options)
    except TypeError:
        return create(bare, num_classes=0, **options)


@torch.no_grad()
def _run_blank(network: Any, part: Callable[[Tensor], Any], image_size: tuple[int, int]) -> Any:
    """Return the output of a part of a network for a blank image."""
    network.eval()
    output = part(torch.zeros(1, 3, *image_size))
    network.train()
    return output


def _are_maps(network: Any, features: Any) -> bool:
    """Return True if features are maps with their channels first."""
    if not isinstance(features, Tensor) or features.ndim != 4:
        return False
    return getattr(network, "output_fmt", "NCHW") == "NCHW"


def _with_own_pooling(
    network: Any, image_size: tuple[int, int]
) -> tuple[nn.Module, OwnPooling | None]:
    maps = _run_blank(network, network.forward_features, image_size)
    width = _run_blank(network, partial(_pooled, network), image_size).shape[1]
    if not _are_maps(network, maps):
        return _as_vectors(network), None
    network.forward = network.forward_features
    return network, OwnPooling(partial(network.forward_head, pre_logits=True), width)


def _as_vectors(network: Any) -> nn.Module:
    """Make a network give its pooled features."""
    # The forward of distilled networks gives two outputs in training.
    network.forward = partial(_pooled, network)
    whole: nn.Module = network
    return whole


def _pooled(network: Any, images: Tensor) -> Tensor:
    pooled: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
    return pooled.flatten(1)


def version() -> str:
    """Return timm's version."""
    found: str = _timm().__version__
    return found


def normalisation(
    name: str, network: Any
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of the channels that a network expects, RGB, 0 to 1."""
    config = network.pretrained_cfg
    return tuple(config["mean"]), tuple(config["std"])


def imagenet(name: str, image_size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the state dict of a network's published weights, downloaded once by timm.

    The learnt positions of a transformer are resampled to the size of the images.

    Raises:
        UserError: There are none, or they cannot be downloaded.
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
            f"({' '.join(str(error).split())[:120]}); give model.weights a state-dict file, or none"
        ) from error
