"""A frozen backbone's features: computed once, kept on disk, and trained on in place of images."""

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

from cellbench.atomic import shared_file, write_at
from cellbench.bar import bar
from cellbench.data.dataset import Features
from cellbench.data.module import CellDataModule
from cellbench.models import timm_networks
from cellbench.models.classifier import CellClassifier

FORMAT = 2
"""Part of every file's name: raise it when features are computed or stored otherwise."""


def keep(model: CellClassifier, data: CellDataModule, trainer: Trainer) -> str | None:
    """Gives the data module the features of its images, if they are the same in every epoch.

    They are those of all images of the table, whatever the split, so that folds share them.

    Args:
        model: The model, its weights loaded.
        data: The data module, set up.
        trainer: Whose device and precision the features are computed with.

    Returns:
        What was done, in a line; None where the backbone is trained.

    Raises:
        UserError: The features cannot be kept.
    """
    if not suffice(model, data):
        if model.sees_images or not data.cache.features:
            return None
        return (
            "features   not kept: data.augment (or data.smote) makes other images in every epoch; "
            "with a number of data.augment_variants each image has that many, seen once"
        )
    trainer.accelerator.setup_device(trainer.strategy.root_device)
    model.to(trainer.strategy.root_device)

    def compute(images: Tensor) -> Tensor:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            return model.features(images)

    probe = compute(torch.zeros(1, 3, *data.input_size).byte().to(model.device))
    width, dtype = probe.shape[1] * probe.element_size(), probe.dtype
    network = _identify(model, trainer)

    def of(variant: int | None) -> np.ndarray:
        return _features(compute, model.device, data, variant, network, width)

    plain, variants = of(None), [of(variant) for variant in range(data.variants or 0)]
    data.plan = replace(data.plan, features=Features(plain, variants, dtype))
    times = f", {len(variants)} variants each" if variants else ""
    return (
        f"features   {probe.shape[1]} of each of {len(plain)} images{times}, kept in "
        f"{data.cache.path}; only the head runs from here on"
    )


def suffice(model: CellClassifier, data: CellDataModule) -> bool:
    """Whether the training sees features in the place of images."""
    return not model.sees_images and data.cache.features and data.variants is not None


def _features(
    compute: Callable[[Tensor], Tensor],
    device: torch.device,
    data: CellDataModule,
    variant: int | None,
    network: list[Any],
    width: int,
) -> np.ndarray:
    """The features of all images, as bytes, (n, width): from the disk, or from the backbone."""
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
    """Plain values that differ where the features of equal images may do."""
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
