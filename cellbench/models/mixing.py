"""MixUp and CutMix: images blended with others of their batch, and their targets with them."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp


class Mixing:
    """Blending of a batch's images, and of their targets, by one of the methods at random.

    Args:
        mixup: Parameter of MixUp's Beta distribution; 0 leaves it out.
        cutmix: Parameter of CutMix's Beta distribution; 0 leaves it out.
    """

    def __init__(self, mixup: float, cutmix: float) -> None:
        methods = ((MixUp, mixup), (CutMix, cutmix))
        self._methods = [method(alpha=alpha) for method, alpha in methods if alpha]

    def __bool__(self) -> bool:
        """Return True if there is a method to blend by."""
        return bool(self._methods)

    def __call__(self, images: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Blend a batch.

        Args:
            images: Normalised images, (B, 3, H, W).
            shares: Share of each class in the targets, (B, classes).

        Returns:
            The blended images and targets, of the same shapes.
        """
        method = self._methods[int(torch.randint(len(self._methods), ()))]
        blended: tuple[Tensor, Tensor] = method(images, shares)
        return blended
