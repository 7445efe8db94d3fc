"""Augmentation policies, on albumentations."""

import random
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import albumentations as A
import cv2
import numpy as np

from cellbench.data.stain import StainJitter
from cellbench.data.views import Image, Mask
from cellbench.utils.errors import UserError, counted, suggest

Transforms = list[str | dict[str, dict[str, Any]]]
"""Names of policies or albumentations transforms, or mappings of one name to its arguments."""


def _flips(square: bool) -> list[A.BasicTransform]:
    turns: list[A.BasicTransform] = [A.RandomRotate90(p=0.75)] if square else []
    return [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), *turns]


def _geometric(square: bool) -> list[A.BasicTransform]:
    # Reflected borders, for the image and its mask alike: black corners would be a cue.
    affine = A.Affine(
        rotate=(-45, 45),
        translate_percent=(-0.05, 0.05),
        scale=(0.9, 1.1),
        shear=(-6, 6),
        border_mode=cv2.BORDER_REFLECT_101,
        p=0.9,
    )
    return [*_flips(square), affine]


def _colour(square: bool) -> list[A.BasicTransform]:
    jitter = A.ColorJitter(
        brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.04, 0.04), p=0.9
    )
    return [jitter]


def _strong(square: bool) -> list[A.BasicTransform]:
    soften = A.OneOf(
        [A.GaussianBlur(blur_limit=(3, 5)), A.GaussNoise(std_range=(0.02, 0.06))], p=0.3
    )
    return [*_geometric(square), *_colour(square), soften]


POLICIES: dict[str, Callable[[bool], list[A.BasicTransform]]] = {
    "none": lambda square: [],
    "flips": _flips,
    "geometric": _geometric,
    "colour": _colour,
    "strong": _strong,
    "stain_he": lambda square: [StainJitter("haematoxylin_eosin")],
    "stain_giemsa": lambda square: [StainJitter("giemsa")],
}
"""Transforms of each policy; the argument is True for square images. An entry is all that a new
policy needs.

none: no transform.
flips: both flips, and quarter turns of square images.
geometric: flips, then rotation to 45 degrees, shift to 5 %, zoom to 10 %, shear to 6 degrees.
colour: brightness, contrast and saturation to 20 %, hue to 4 %.
strong: geometric, colour, and occasional blur or noise.
stain_he, stain_giemsa: the strength of each of two stains, to 20 %, and 0.05 of optical density.
"""


RESIZING = (
    A.CropAndPad,
    A.LongestMaxSize,
    A.RandomResizedCrop,
    A.RandomScale,
    A.RandomSizedBBoxSafeCrop,
    A.RandomSizedCrop,
    A.Resize,
    A.SmallestMaxSize,
)
"""Transforms that call cv2.resize, whose INTER_NEAREST moves a mask by half a pixel against
its image. The other geometric transforms warp, where INTER_NEAREST rounds to the nearest pixel and
INTER_NEAREST_EXACT is an error."""


COLOURING = (
    A.CLAHE,
    A.ChromaticAberration,
    A.ColorJitter,
    A.Equalize,
    A.FancyPCA,
    A.HEStain,
    A.HueSaturationValue,
    A.ISONoise,
    A.PlanckianJitter,
    A.RGBShift,
    A.RandomFog,
    A.RandomGravel,
    A.RandomRain,
    A.RandomSnow,
    A.RandomSunFlare,
    A.Spatter,
    A.ToGray,
    A.ToRGB,
    A.ToSepia,
    StainJitter,
)
"""Transforms that take an image's channels for red, green and blue."""


class Augmentation:
    """A policy or a list of transforms; each call gets the seed of its random numbers.

    Args:
        policy: A policy's name, or a list of albumentations transforms.
        image_size: Height and width of the images; transforms must return the same.
        n_channels: Number of their channels.
        rgb: True if the channels are red, green and blue.

    Raises:
        UserError: An unknown policy, transform or argument, a transform that needs RGB where there
            are other channels, or one that does not return uint8 of the same shape.
    """

    def __init__(
        self,
        policy: str | Transforms,
        image_size: tuple[int, int],
        n_channels: int = 3,
        *,
        rgb: bool = True,
    ) -> None:
        square = image_size[0] == image_size[1]
        if isinstance(policy, list):
            transforms = [each for entry in policy for each in _from_entry(entry, square)]
        else:
            transforms = _from_policy(policy, square)
        if not rgb:
            where = f"{policy}: " if isinstance(policy, str) else ""
            _refuse_colouring(where, transforms, n_channels, image_size)
        self.compose = A.Compose(transforms) if transforms else None
        """The transforms; None if there are none."""
        self._check((*image_size, n_channels))

    @property
    def identity(self) -> str:
        """Text that differs if equal random numbers give another image."""
        return f"albumentations {A.__version__}: {self.compose!r}"

    def __bool__(self) -> bool:
        return self.compose is not None

    def __call__(
        self, image: Image, mask: Mask | None, seed: tuple[int, ...]
    ) -> tuple[Image, Mask | None]:
        """Transform an image and its mask alike.

        Args:
            image: uint8, (H, W, channels).
            mask: Its mask, (H, W), or None.
            seed: Non-negative integers that alone decide the random numbers.
        """
        if self.compose is None:
            return image, mask
        # Compose(seed=...) gives every transform the same stream, so that gates of equal p fire
        # together; one generator shared by all of them does not.
        generator = np.random.default_rng(seed)
        self.compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        if mask is None:
            return self.compose(image=image)["image"], None
        out = self.compose(image=image, mask=mask)
        return out["image"], out["mask"]

    def _check(self, shape: tuple[int, int, int]) -> None:
        blank = np.zeros(shape, np.uint8)
        for attempt in range(8 if self else 0):  # a transform acts only with its probability
            try:
                image, mask = self(blank, blank[..., 0], (attempt,))
            except Exception as error:
                raise UserError(f"data.augment: {error}") from error
            if image.shape != blank.shape or image.dtype != np.uint8 or mask is None:
                raise UserError(
                    "data.augment: the transforms must return uint8 images of data.image_size "
                    f"{shape[:2]} and {shape[2]} channels; they gave {image.dtype} {image.shape}. "
                    "Normalisation is done by the model"
                )


def _refuse_colouring(
    where: str,
    transforms: Sequence[A.BasicTransform],
    n_channels: int,
    image_size: tuple[int, int],
) -> None:
    """Refuse transforms of colours, and those that do not take so many channels.

    Raises:
        UserError: There is one.
    """
    blank = np.zeros((*image_size, n_channels), np.uint8)
    for transform in transforms:
        name, reason = type(transform).__name__, "it changes colours"
        if not isinstance(transform, COLOURING):
            always = deepcopy(transform)
            always.p = 1.0
            try:
                A.Compose([always])(image=blank, mask=blank[..., 0])
                continue
            except Exception as error:  # albumentations raises many kinds
                reason = " ".join(str(error).split())
        raise UserError(
            f"data.augment: {where}{name} needs RGB images, and data.channels gives "
            f"{counted(n_channels, 'other channel')} ({reason:.80}); list others"
        )


def _from_policy(name: str, square: bool) -> list[A.BasicTransform]:
    if name not in POLICIES:
        close = suggest(name, POLICIES)
        close = close if close.startswith("; closest") else ""  # the others are named anyway
        raise UserError(
            f"data.augment: expected {', '.join(POLICIES)} or a list; got '{name}'{close}"
        )
    return POLICIES[name](square)


def _from_entry(entry: str | dict[str, dict[str, Any]], square: bool) -> list[A.BasicTransform]:
    """Return the transforms of a list's entry: a policy, a name, or a name with arguments."""
    if isinstance(entry, str) and entry in POLICIES:
        return POLICIES[entry](square)
    if isinstance(entry, dict) and len(entry) != 1:
        raise UserError(f"data.augment: one transform per entry; got {', '.join(entry) or 'none'}")
    name, arguments = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
    # Names are looked up among albumentations' own classes: a YAML file must not import code.
    known = {
        key: value
        for key, value in vars(A).items()
        if isinstance(value, type) and issubclass(value, A.BasicTransform)
    }
    if name not in known:
        allowed = [*POLICIES, *known]
        raise UserError(f"data.augment: unknown transform '{name}'{suggest(name, allowed)}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it only warns of an argument that it does not know
        try:
            transform = known[name](**(arguments or {}))
        except (UserWarning, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"data.augment: {name}: {reason}") from error
    _keep_masks_aligned(transform, name)
    return [transform]


def _keep_masks_aligned(transform: Any, name: str) -> None:
    """Make a transform's mask interpolation one that neither moves nor blends regions.

    Raises:
        UserError: The configuration asks for one that blends them.
    """
    asked = getattr(transform, "mask_interpolation", cv2.INTER_NEAREST)
    if asked not in (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT):
        raise UserError(
            f"data.augment: {name}: mask_interpolation {asked} would blend the values of a mask "
            "(background, cytoplasm, nucleus); leave it out"
        )
    if isinstance(transform, RESIZING):
        transform.mask_interpolation = cv2.INTER_NEAREST_EXACT
