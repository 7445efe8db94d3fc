"""Attribution maps: the contribution of each pixel to the logit of the predicted class."""

from typing import NamedTuple, get_args

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
from torch import Tensor

from cellbench.artifacts.attributions import Method
from cellbench.models.classifier import CellClassifier
from cellbench.utils.errors import UserError

STEPS = (32, 64, 128, 256)
"""Steps of the integral: more for images whose attribution is not complete with fewer."""

TOLERANCE = 0.01
"""Greatest error of a complete attribution: the difference of its sum from f(image) - f(fill), as a
share of that, or of one logit if that is smaller."""

_PASS = 64
"""Images that go through the network at once; each step of the integral counts as one."""


class Maps(NamedTuple):
    """Attribution maps of a batch."""

    maps: np.ndarray
    """Float32, (B, H, W): not negative for Grad-CAM, of either sign for integrated gradients."""
    predicted: list[int]
    """Index of each image's predicted class, whose logit is explained."""
    incomplete: int
    """Number of images whose attribution is not complete, even with the most steps."""


def attribute(model: CellClassifier, images: Tensor, method: Method, fill: int = 0) -> Maps:
    """Attribute the logit of each image's predicted class to its pixels, in float32.

    Args:
        model: A model on any device. It is evaluated, and left in the mode that it was in.
        images: uint8 images as the network sees them, (B, C, H, W), as many as fit in a batch.
        method: Attribution method.
        fill: Pixel value of the image that integrated gradients start from: the view's fill.

    Raises:
        UserError: Grad-CAM is not defined: the backbone ends with a vector (vision transformers,
            and timm's networks without feature maps), or with maps of a single pixel.
    """
    training = model.training
    model.eval()
    try:
        # TF32 would be another precision, and the fastest algorithm not always the same one.
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            inputs = images.to(model.mean.device).float()
            with torch.no_grad():
                logits = model(inputs)
            if method == "grad_cam":
                maps, incomplete = _grad_cam(model, inputs, logits), 0
            else:
                maps, incomplete = _integrated_gradients(model, inputs, logits, float(fill))
    finally:
        model.train(training)
    return Maps(
        np.asarray(maps.cpu().numpy(), np.float32), logits.argmax(dim=1).tolist(), incomplete
    )


def attribute_by_all(
    model: CellClassifier, images: Tensor, fill: int
) -> tuple[dict[Method, Maps], list[str]]:
    """Attribute images by every method that is defined for the network, as `attribute` does.

    Args:
        model: A model on any device.
        images: uint8 images as the network sees them, (B, C, H, W), as many as fit in a batch.
        fill: Pixel value of the image that integrated gradients start from: the view's fill.

    Returns:
        The maps by method, and the reasons why the other methods are not defined.
    """
    maps: dict[Method, Maps] = {}
    reasons = []
    for method in get_args(Method):
        try:
            maps[method] = attribute(model, images, method, fill)
        except UserError as error:
            reasons.append(str(error))
    return maps, reasons


def _grad_cam(model: CellClassifier, inputs: Tensor, logits: Tensor) -> Tensor:
    """Return Grad-CAM's maps, (B, H, W)."""
    coarse = LayerGradCam(model, model.backbone).attribute(
        inputs.requires_grad_(), logits.argmax(dim=1), relu_attributions=True
    )
    if coarse.ndim < 4 or coarse[0].numel() == 1:
        raise UserError(
            f"Grad-CAM is not defined for {model.arguments['backbone']} at this size: it ends "
            f"with {'a vector' if coarse.ndim < 4 else 'maps of one pixel'}"
        )
    size = (inputs.shape[2], inputs.shape[3])
    enlarged: Tensor = LayerAttribution.interpolate(coarse.detach(), size, "bilinear")
    return enlarged[:, 0]


def _integrated_gradients(
    model: CellClassifier, inputs: Tensor, logits: Tensor, fill: float
) -> tuple[Tensor, int]:
    """Return integrated gradients, (B, H, W), and the number of images that are not complete."""
    target = logits.argmax(dim=1)
    with torch.no_grad():
        start = model(torch.full_like(inputs[:1], fill))
    difference = (logits - start).gather(1, target[:, None])[:, 0]
    maps = torch.zeros_like(inputs[:, 0])
    remaining = torch.arange(len(inputs), device=inputs.device)
    for steps in STEPS:
        by_channel = IntegratedGradients(model).attribute(
            inputs[remaining],
            fill,
            target[remaining],
            n_steps=steps,
            internal_batch_size=max(_PASS, len(remaining)),
        )
        maps[remaining] = by_channel.detach().sum(dim=1)
        error = (maps.sum(dim=(1, 2)) - difference).abs()
        remaining = (error > TOLERANCE * difference.abs().clamp(min=1)).nonzero()[:, 0]
        if not len(remaining):
            break
    return maps, len(remaining)
