"""Augmentation of whole batches on their device, with the policies of `cellbench.data.augment`."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial, reduce
from math import pi
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cellbench.data.augment import Augmentation
from cellbench.errors import UserError

Call = tuple[type[A.BasicTransform], dict[str, Any]]
"""A transform that a sample's random numbers let act, and the parameters that they gave it."""

FLIPS_AND_TURNS = (A.HorizontalFlip, A.VerticalFlip, A.RandomRotate90)
SUPPORTED: dict[type[A.BasicTransform], dict[str, Any]] = {
    A.HorizontalFlip: {},
    A.VerticalFlip: {},
    A.RandomRotate90: {},
    A.Affine: {
        "interpolation": cv2.INTER_LINEAR,
        "mask_interpolation": cv2.INTER_NEAREST,
        "border_mode": cv2.BORDER_REFLECT_101,
        "fit_output": False,
    },
    A.ColorJitter: {},
    A.GaussianBlur: {},
    A.GaussNoise: {"per_channel": True, "noise_scale_factor": 1},
}
"""The transforms that have a batched form, and the arguments that it asks for."""


def unsupported(augmentation: Augmentation) -> str | None:
    """Names the first transform that has no batched form, and the argument that is the reason.

    Returns:
        "ElasticTransform" or "Affine with border_mode=0", for example; None if all have one.
    """
    for transform in _leaves(augmentation.compose):
        name = type(transform).__name__
        if type(transform) not in SUPPORTED:
            return name
        for argument, value in SUPPORTED[type(transform)].items():
            if getattr(transform, argument) != value:
                return f"{name} with {argument}={getattr(transform, argument)}"
    return None


class BatchAugmentation:
    """The transforms of an `Augmentation`, drawn for each sample and applied to whole batches.

    Albumentations draws the parameters, from the streams that it has in `Augmentation`. The result
    differs from that of `Augmentation` by rounding alone, but for the noise: this has the same
    distribution, and depends on nothing but the sample's seed.

    Attributes:
        size: The length of what `draw` returns; 0 if there are no transforms.

    Args:
        augmentation: What to apply; not changed.
        image_size: Height and width of the images, at least 2 each.

    Raises:
        UserError: A transform has no batched form.
    """

    def __init__(self, augmentation: Augmentation, image_size: tuple[int, int]) -> None:
        if name := unsupported(augmentation):
            known = ", ".join(kind.__name__ for kind in SUPPORTED)
            raise UserError(f"data.augment: no batched form of {name}; there is one of {known}")
        self._recorder = deepcopy(augmentation)
        self._blank = np.zeros((*image_size, 3), np.uint8)
        self._stages: list[tuple[_Stage, list[Call]]] = []
        last = None
        for transform in _leaves(self._recorder.compose):
            kind = type(transform)
            # Flips and turns share one resampling, and the Affine after them has part in it.
            if last not in FLIPS_AND_TURNS or kind not in (*FLIPS_AND_TURNS, A.Affine):
                self._stages.append((_stage(transform, image_size), []))
            transform.apply_with_params = partial(_note, self._stages[-1][1], kind)
            if kind is A.GaussNoise:
                transform.get_params_dependent_on_data = partial(_draw_noise, transform)
            last = kind
        self.size = sum(1 + stage.size for stage, _ in self._stages)

    def draw(self, seed: tuple[int, ...]) -> NDArray[np.float32]:
        """Draws the parameters for one sample.

        Args:
            seed: As for `Augmentation.__call__`, which draws the same from it.

        Returns:
            For each stage whether it acts, 0 or 1, and then its parameters, (size,).
        """
        for _, calls in self._stages:
            calls.clear()
        self._recorder(self._blank, None, seed)
        drawn: list[float] = []
        for stage, calls in self._stages:
            drawn += [1, *stage.encode(calls)] if calls else [0] * (1 + stage.size)
        return np.array(drawn, np.float32)

    def apply(
        self, images: Tensor, masks: Tensor | None, drawn: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Transforms images and their masks alike, each as it was drawn.

        Args:
            images: RGB, uint8, (B, 3, H, W), in any memory format. Not changed.
            masks: Their masks, uint8, (B, H, W), on the same device, or None. Not changed.
            drawn: What `draw` returned for each, float32, (B, size), on the device of the images
                or on the CPU; if it is on the CPU, no step waits for the device.

        Returns:
            New images and masks of the same shapes and memory formats.
        """
        images = images.clone()
        masks = None if masks is None else masks.clone()
        start = 0
        for stage, _ in self._stages:
            acts, values = drawn[:, start] > 0, drawn[:, start + 1 : start + 1 + stage.size]
            _replace(images, acts, stage.apply, values)
            if masks is not None and isinstance(stage, _Geometry):
                _replace(masks[:, None], acts, partial(stage.apply, mode="nearest"), values)
            start += 1 + stage.size
        return images, masks


# A stage is one pass over the pixels. It has `size` parameters for each sample: `encode` makes them
# of the sample's calls, and `apply` takes uint8 images, (N, 3, H, W), with theirs, (N, size).


class _Geometry:
    """Flips and quarter turns with at most one Affine, the last of them, as one resampling.

    The parameters are the 2 x 3 matrix, by rows, that leads from a pixel (x, y, 1) of the result
    to its place in the image, of which the centres of the outer pixels are at -1 and 1.
    """

    size = 6

    def __init__(self, height: int, width: int) -> None:
        right, bottom = width - 1, height - 1
        self._pixels = np.array([[right, 0, right], [0, bottom, bottom], [0, 0, 2]]) / 2
        turn = np.array([[0, 1, 0], [-1, 0, right], [0, 0, 1]], np.float64)
        self._steps = {
            A.HorizontalFlip: [np.array([[-1, 0, right], [0, 1, 0], [0, 0, 1]], np.float64)],
            A.VerticalFlip: [np.array([[1, 0, 0], [0, -1, bottom], [0, 0, 1]], np.float64)],
            A.RandomRotate90: [np.linalg.matrix_power(turn, factor) for factor in range(4)],
        }

    def encode(self, calls: list[Call]) -> list[float]:
        matrix = self._pixels
        for kind, drawn in calls:
            fixed = kind is not A.Affine
            step = self._steps[kind][drawn.get("factor", 0)] if fixed else drawn["matrix"]
            matrix = step @ matrix
        inverse: list[float] = cv2.invertAffineTransform(matrix[:2]).ravel().tolist()
        return inverse

    def apply(self, images: Tensor, values: Tensor, mode: str = "bilinear") -> Tensor:
        height, width = images.shape[2:]
        x = torch.arange(width, device=images.device)
        y = torch.arange(height, device=images.device)[:, None]
        # No matrix product: it may run in TensorFloat-32 or, under autocast, in 16 bits.
        matrix = _upload(values, images)
        source_x = matrix[:, 0] * x + matrix[:, 1] * y + matrix[:, 2]
        source_y = matrix[:, 3] * x + matrix[:, 4] * y + matrix[:, 5]
        grid = torch.stack((source_x, source_y), -1)
        # With align_corners it reflects about the centres of the outer pixels, as REFLECT_101 does.
        out = F.grid_sample(images.float(), grid, mode, "reflection", align_corners=True)
        return out.round().to(torch.uint8)


class _ColorJitter:
    """Brightness, contrast, saturation and hue: first their order, then the four factors."""

    size = 8

    def encode(self, calls: list[Call]) -> list[float]:
        ((_, drawn),) = calls
        factors = [drawn[name] for name in ("brightness", "contrast", "saturation", "hue")]
        return [*drawn["order"], *factors]

    def apply(self, images: Tensor, values: Tensor) -> Tensor:
        out = images.float()
        orders, factors = values[:, :4], values[:, 4:]
        for place in range(4):
            for which, adjust in enumerate((_brightness, _contrast, _saturation, _hue)):
                _replace(out, orders[:, place] == which, adjust, factors[:, which, None])
        return out.to(torch.uint8)


class _GaussianBlur:
    """A separable filter: the parameters are its kernel, padded with zeros to the widest."""

    def __init__(self, widest: int) -> None:
        self.size = widest

    def encode(self, calls: list[Call]) -> list[float]:
        ((_, drawn),) = calls
        padding = [0.0] * ((self.size - len(drawn["kernel"])) // 2)
        return [*padding, *drawn["kernel"], *padding]

    def apply(self, images: Tensor, values: Tensor) -> Tensor:
        kernels = _upload(values, images)
        out = F.pad(images.float(), [self.size // 2] * 4, "reflect")
        for axis in (2, 3):  # sums, for a convolution may run in TensorFloat-32
            extent = images.shape[axis]
            taps = (kernels[:, k, None] * out.narrow(axis, k, extent) for k in range(self.size))
            out = reduce(torch.add, taps)
        return out.round().to(torch.uint8)


class _GaussNoise:
    """Normal noise, a hash of seed and pixel: the parameters are deviation, mean and seed."""

    size = 3

    def encode(self, calls: list[Call]) -> list[float]:
        ((_, drawn),) = calls
        return [drawn["deviation"], drawn["mean"], drawn["seed"]]

    def apply(self, images: Tensor, values: Tensor) -> Tensor:
        deviation, mean, seed = _upload(values, images)[..., None].unbind(1)
        pixels = torch.arange(images[0].numel(), device=images.device).view(images.shape[1:])
        bits = _hash(_hash(pixels) + seed.long())
        # Box-Muller, of 16 bits for the radius and 16 for the angle.
        radius = (-2 * (((bits >> 16) + 0.5) / 2**16).log()).sqrt()
        normal = radius * ((bits & 0xFFFF) * (2 * pi / 2**16)).cos()
        noise = (255 * (mean + deviation * normal)).trunc()
        return (images + noise).clamp(0, 255).to(torch.uint8)


_Stage = _Geometry | _ColorJitter | _GaussianBlur | _GaussNoise


def _stage(transform: Any, image_size: tuple[int, int]) -> _Stage:
    if isinstance(transform, A.ColorJitter):
        return _ColorJitter()
    if isinstance(transform, A.GaussNoise):
        return _GaussNoise()
    if isinstance(transform, A.GaussianBlur):
        # An even width is raised to the next odd one; a width of 0 is chosen by the deviation.
        low, high = transform.blur_limit
        chosen = 2 * int(3.5 * transform.sigma_limit[1]) + 1 if low == 0 else 1
        return _GaussianBlur(max(high | 1, chosen))
    return _Geometry(*image_size)


def _leaves(compose: A.BaseCompose | None) -> Iterator[Any]:
    """The transforms in their order; a composition of an unknown kind counts as one of them."""
    for transform in compose or ():
        if type(transform) in (A.Compose, A.Sequential, A.OneOf):
            yield from _leaves(transform)
        else:
            yield transform


def _note(calls: list[Call], kind: Any, params: dict[str, Any], **data: Any) -> dict[str, Any]:
    """Stands in for a transform's `apply_with_params`; leaves the data as they are."""
    calls.append((kind, params))
    return data


def _draw_noise(noise: Any, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Draws from the streams what GaussNoise does, but makes no map of the noise."""
    return {
        "deviation": noise.py_random.uniform(*noise.std_range),
        "mean": noise.py_random.uniform(*noise.mean_range),
        "seed": noise.random_generator.integers(2**16),
    }


def _replace(
    images: Tensor, chosen: Tensor, function: Callable[[Tensor, Tensor], Tensor], values: Tensor
) -> None:
    """Replaces the chosen images, (B,), by the function of them and of their values, (B, n)."""
    rows = chosen.nonzero().squeeze(1)
    if len(rows):
        places = rows.to(images.device, non_blocking=True)
        images[places] = function(images[places], values[rows])


def _upload(values: Tensor, images: Tensor) -> Tensor:
    """Brings values, (N, n), to the device of the images, as (N, n, 1, 1)."""
    return values.to(images.device, non_blocking=True)[..., None, None]


# The four adjustments take images of whole numbers as floats, (N, 3, H, W), and a factor for each,
# (N, 1). They round as albumentations and OpenCV do.


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * _upload(factor, images)).clamp(0, 255).floor()


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    # Integers: their sum does not depend on the order in which a device adds them.
    total = _grey(images).int().sum((1, 2, 3), keepdim=True)
    weight, mean = _upload(factor, images), total / images[0, 0].numel()
    return (images * weight + mean * (1 - weight)).clamp(0, 255).floor()


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    weight = _upload(factor, images)
    return (images * weight + _grey(images) * (1 - weight)).clamp(0, 255).round()


def _hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turns the hue by a share of the circle, by way of 8-bit HSV with hues of 2 degrees."""
    turn = _upload(factor, images)
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    spread = value - images.amin(1)
    sector = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    sector = torch.where(value == red, green - blue, sector)
    hue = (_ratio(30, sector, spread) + 180 * turn[:, 0]).remainder(180).floor()
    saturation = _ratio(255, spread, value) / 255
    # The share of the saturation that each channel loses, by its distance on the circle.
    places = [(offset + hue / 30) % 6 for offset in (5, 3, 1)]
    shares = [torch.minimum(place, 4 - place).clamp(0, 1) for place in places]
    turned = torch.stack([value * (1 - saturation * share) for share in shares], 1).floor()
    return torch.where(turn == 0, images, turned)


def _ratio(scale: int, numerator: Tensor, denominator: Tensor) -> Tensor:
    """Rounds scale * numerator / denominator as OpenCV does, whose quotients have 12 bits."""
    quotient = (4096 * scale / denominator.clamp(min=1)).round()
    return (numerator * quotient / 4096 + 0.5).floor()


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    weighted = 9798 * red + 19235 * green + 3735 * blue  # OpenCV's weights, of 15 bits
    return (weighted / 2**15 + 0.5).floor()[:, None]


def _hash(numbers: Tensor) -> Tensor:
    """Mixes integers below 2**33 into 32 bits; no product overflows the 64 bits."""
    for _ in range(2):
        numbers = ((numbers >> 16) ^ numbers) * 0x45D9F3B & 0xFFFFFFFF
    return (numbers >> 16) ^ numbers
