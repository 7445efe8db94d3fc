"""Features of a frozen backbone: computed once, kept on disk, and trained on instead of images."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torchvision
from lightning.pytorch import Trainer
from torch import Tensor

from cellbench.data.dataset import Features
from cellbench.data.module import CellDataModule
from cellbench.models.backbones import timm_networks
from cellbench.models.classifier import CellClassifier
from cellbench.utils.atomic import shared_file, write_at
from cellbench.utils.progress_bar import bar

FORMAT = 2
"""Part of every file's name; raise it when features are computed or stored differently."""


def precompute(model: CellClassifier, data: CellDataModule, trainer: Trainer) -> str | None:
    """Give the data module the features of its images, if they are the same in every epoch.

    All images of the table have features, whatever their part of the split, so that folds share
    the file.

    Args:
        model: The model, with its weights.
        data: The data module, set up.
        trainer: Trainer with the device and the precision to compute with.

    Returns:
        A line that describes the result; None if the backbone is trained.

    Raises:
        UserError: The features cannot be written.
    """
    if not can_replace_images(model, data):
        if model.needs_images or not data.cache.features:
            return None
        return (
            "features   not kept: data.augment (or data.smote) makes other images in every epoch; "
            "with data.augment_variants each image has that many variants, computed once"
        )
    trainer.accelerator.setup_device(trainer.strategy.root_device)
    model.to(trainer.strategy.root_device)

    def compute(images: Tensor) -> Tensor:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            return model.features(images)

    probe = compute(torch.zeros(1, model.channels, *data.input_size).byte().to(model.device))
    width, dtype = probe.shape[1] * probe.element_size(), probe.dtype
    network = _identify(model, trainer)

    def features_of(variant: int | None) -> np.ndarray:
        return _features(compute, model.device, data, variant, network, width)

    plain = features_of(None)
    variants = [features_of(variant) for variant in range(data.variants or 0)]
    data.plan = replace(data.plan, features=Features(plain, variants, dtype))
    times = f", {len(variants)} variants each" if variants else ""
    return (
        f"features   {probe.shape[1]} of each of {len(plain)} images{times}, kept in "
        f"{data.cache.path}; only the head runs from here on"
    )


def can_replace_images(model: CellClassifier, data: CellDataModule) -> bool:
    """Return True if the training can use features instead of images."""
    return not model.needs_images and data.cache.features and data.variants is not None


def _features(
    compute: Callable[[Tensor], Tensor],
    device: torch.device,
    data: CellDataModule,
    variant: int | None,
    network: list[Any],
    width: int,
) -> np.ndarray:
    """Return the features of all images, from the disk or else from the backbone.

    Args:
        compute: Function from images, uint8, (B, 3, H, W), to features, (B, D).
        device: Device to compute on.
        data: The data module.
        variant: Index of the augmented variant; None for the images as they are.
        network: Result of `_identify`.
        width: Bytes of an image's features.

    Returns:
        The features as bytes, uint8, (n, width).
    """
    identity = json.dumps([FORMAT, network, data.identify(variant)])
    name = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    path, n = data.cache.path / f"{name}.features", len(data.table)

    def fill(file: int) -> None:
        loader = data.every_image(variant)
        offset = 0
        for batch in bar(loader, "features"):
            moved = data.transfer_batch_to_device(batch, device, 0)
            rows = compute(moved.images).cpu().contiguous().view(torch.uint8).numpy()
            write_at(file, rows, offset)
            offset += rows.nbytes

    with data.cache.writing(n * width, "data.cache.features: false"):
        return shared_file(path, n * width, fill).reshape(n, width)


def _identify(model: CellClassifier, trainer: Trainer) -> list[Any]:
    """Return plain values that differ if the features of equal images may differ."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.backbone.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    device = trainer.strategy.root_device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        chip = str(torch.cpu.get_capabilities())
    of_timm = model.arguments["backbone"].startswith(timm_networks.PREFIX)
    return [
        model.arguments["backbone"],
        model.arguments["norm"],
        model.arguments["head"]["pool"],
        digest.hexdigest(),
        model.mean.flatten().tolist(),
        model.std.flatten().tolist(),
        str(trainer.precision),
        chip,
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.__version__,
        torchvision.__version__,
        timm_networks.version() if of_timm else None,
    ]
