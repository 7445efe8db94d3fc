"""Conversion of the channels in an image file to 8-bit images: choice, intensity, transparency."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from cellbench.data.views import Image
from cellbench.utils.errors import UserError

FORMAT = 1
"""Part of every name of cached images of chosen or scaled channels; raise it when the conversion
changes."""

MAX_CHANNELS = 512
"""Largest number of channels of an image: OpenCV takes no more."""

RGB = ("R", "G", "B")
"""Names of the channels of a colour image."""

_PERCENTILE = re.compile(r"percentile (\d+(?:\.\d+)?)")
_LISTED = 12  # names of channels in a message


class NeedsOption(UserError):
    """An image that needs an option of the data, as most of its dataset will."""


@dataclass(frozen=True, eq=False)
class Planes:
    """Channels of an image file, with the values that it stores."""

    path: Path
    """The file, for errors."""
    values: np.ndarray
    """Values of any type, (H, W, n)."""
    names: tuple[str, ...]
    """Name of each channel; its number where the file gives no name."""
    alpha: np.ndarray | None = None
    """Opacity, float32, (H, W), 0 to 1; None if the image is opaque."""

    @property
    def listing(self) -> str:
        """Numbers and names of the channels, for a message."""
        shown = [
            str(number) if name == str(number) else f"{number} {name}"
            for number, name in enumerate(self.names[:_LISTED])
        ]
        return ", ".join(shown) + (", ..." if len(self.names) > _LISTED else "")


@dataclass(frozen=True)
class Intensity:
    """Linear scaling of 16-bit or float values to 8 bits, each channel on its own."""

    low: float | str
    """Value that becomes 0, as lower ones do: a number, or a percentile of the channel's values,
    such as `percentile 1`."""
    high: float | str
    """Value that becomes 255, as higher ones do: a number, or a percentile."""
    per: Literal["image", "dataset"] = "image"
    """Values that a percentile is taken of: those of each image alone, or those of all training
    images together. Those differ between folds, each of which then decodes the images for
    itself."""

    def __post_init__(self) -> None:
        """Raise UserError if an end is neither a number nor a percentile, or they are swapped."""
        (low, low_is_number), (high, high_is_number) = map(self._parse, ("low", "high"))
        if low_is_number == high_is_number and not low < high:
            raise UserError(
                f"data.intensity: low ({self.low}) must be less than high ({self.high})"
            )

    @property
    def measured(self) -> bool:
        """True if an end is a percentile."""
        return not all(self._parse(end)[1] for end in ("low", "high"))

    def limits(self, values: np.ndarray) -> np.ndarray:
        """Return the low and the high end of each channel, float64, (2, C).

        Args:
            values: Values of the pixels that percentiles are taken of, (k, C).
        """
        ends = []
        for end in ("low", "high"):
            number, is_number = self._parse(end)
            same = np.full(values.shape[1], number)
            ends.append(same if is_number else np.percentile(values, number, axis=0))
        return np.stack(ends)

    def _parse(self, end: str) -> tuple[float, bool]:
        """Return an end's number, and True if it is a value, False if it is a percentile."""
        given = getattr(self, end)
        if not isinstance(given, str):
            return float(given), True
        found = _PERCENTILE.fullmatch(given)
        if found is None or float(found[1]) > 100:
            raise UserError(
                f"data.intensity.{end}: expected a number, or text such as 'percentile 1' (0 to "
                f"100); got '{given}'"
            )
        return float(found[1]), False


@dataclass(frozen=True)
class ImageFormat:
    """Steps from the channels in a file to an image of 8 bits; stored with every model."""

    channels: tuple[str | int, ...] | None = None
    """Channels to take, in this order, by name or by number from 0; None for grey or RGB."""
    intensity: Intensity | None = None
    """Scaling of the values to 8 bits; None for images that have 8 bits."""
    fill: int = 0
    """Value, 0 to 255, that shows through transparent pixels."""
    limits: tuple[tuple[float, float], ...] | None = None
    """Low and high end of each channel, where they were measured over a training part."""

    def __post_init__(self) -> None:
        """Raise UserError if the channels are not names and numbers."""
        if self.channels is None:
            return
        if not 0 < len(self.channels) <= MAX_CHANNELS:
            raise UserError(
                f"data.channels: {len(self.channels)} channels; expected 1 to {MAX_CHANNELS}"
            )
        for channel in self.channels:
            if isinstance(channel, int) and channel < 0:
                raise UserError(f"data.channels: {channel} is less than 0")

    @property
    def n_channels(self) -> int:
        """Number of channels of the images; a grey image is repeated to three."""
        return 3 if self.channels is None else len(self.channels)

    @property
    def is_rgb(self) -> bool:
        """True if the channels are red, green and blue, False if they were chosen otherwise."""
        return self.channels is None or self.channels == RGB

    @property
    def lacks_limits(self) -> bool:
        """True if the limits have to be measured over a training part, and have not been."""
        asked = self.intensity
        per_dataset = asked is not None and asked.per == "dataset" and asked.measured
        return per_dataset and self.limits is None

    @property
    def identity(self) -> str:
        """Text that differs if the images do; empty for the default."""
        return "" if self == ImageFormat() else f"{FORMAT} {self}"

    def choose(self, planes: Planes) -> np.ndarray:
        """Return the values of the chosen channels, (H, W, n_channels), as they are in the file.

        Raises:
            UserError: There is no such channel, the channels have to be chosen first, or the image
                is fully transparent.
        """
        if planes.alpha is not None and not planes.alpha.any():
            raise UserError(f"{planes.path} is fully transparent; save it without an alpha channel")
        n = len(planes.names)
        if self.channels is not None:
            return planes.values[..., [_find(channel, planes) for channel in self.channels]]
        if n not in (1, 3):
            raise NeedsOption(
                f"{planes.path} has {n} channels ({planes.listing}); choose among them by name or "
                "number with data.channels"
            )
        return planes.values if n == 3 else np.repeat(planes.values, 3, axis=2)

    def to_image(self, planes: Planes) -> Image:
        """Return the image that the channels of a file make.

        Raises:
            UserError: A channel is missing, the values need data.intensity or are not finite, or
                the image is fully transparent.
        """
        image = self._to_bytes(self.choose(planes), planes)
        if planes.alpha is None:
            return image
        share = planes.alpha[..., None]
        return np.asarray(np.rint(share * image + (1 - share) * self.fill), np.uint8)

    def _to_bytes(self, values: np.ndarray, planes: Planes) -> Image:
        """Scale values to 8 bits."""
        if self.intensity is None:
            if values.dtype != np.uint8:  # else 12 bits stored in 16 would silently turn black
                raise NeedsOption(
                    f"{planes.path} has {_describe(values.dtype)}; say how they become 8 bits with "
                    "data.intensity, such as {low: percentile 1, high: percentile 99}"
                )
            return values
        seen = visible(values, planes)
        limits = self.intensity.limits(seen) if self.limits is None else np.array(self.limits).T
        return scale(values, limits)


def visible(values: np.ndarray, planes: Planes) -> np.ndarray:
    """Return the chosen values of the pixels that are not transparent, (k, C).

    Args:
        values: Result of `ImageFormat.choose`, (H, W, C).
        planes: The channels of the file.

    Raises:
        UserError: A value is not a finite number.
    """
    if values.dtype.kind not in "uif":
        raise UserError(f"{planes.path} has {values.dtype} values; only real numbers can be shown")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        n = int((~np.isfinite(values).all(axis=2)).sum())
        raise UserError(
            f"{planes.path} has {n:,} pixels that are no finite number (NaN or infinity); replace "
            "them in the file, or exclude the image"
        )
    if planes.alpha is None:
        return values.reshape(-1, values.shape[2])
    return values[planes.alpha > 0]


def scale(values: np.ndarray, limits: np.ndarray) -> Image:
    """Scale each channel linearly to 0 to 255, and clip what lies beyond.

    Args:
        values: Finite numbers, (H, W, C).
        limits: Low and high end of each channel, (2, C). Where they are equal, what is higher
            becomes 255.
    """
    kind = np.result_type(values.dtype, np.float32)
    low, high = limits.astype(kind)
    span = np.maximum(high - low, np.finfo(kind).tiny)
    with np.errstate(over="ignore"):  # infinity is clipped
        share = (values - low) / span
    return np.asarray(np.rint(255 * share.clip(0, 1)), np.uint8)


def to_grey(image: Image) -> Image:
    """Return an image in grey, (H, W): the luminance of RGB, the mean of other channels."""
    if image.shape[2] == 3:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    return np.asarray(np.rint(image.mean(axis=2)), np.uint8)


def read_stored(plain: dict[str, Any], fill: int) -> ImageFormat:
    """Return the format that a checkpoint describes.

    Args:
        plain: Its fields as plain values; empty if the checkpoint is older than they are.
        fill: Value of hidden pixels in the checkpoint.

    Raises:
        Exception: It is not what `asdict` gives of an ImageFormat.
    """
    given = {"fill": fill} | plain
    if given["fill"] != fill:
        raise ValueError("two different fills")
    channels, intensity, limits = (given.get(key) for key in ("channels", "intensity", "limits"))
    if channels is not None and not all(type(each) in (str, int) for each in channels):
        raise ValueError("a channel is neither a name nor a number")
    given["channels"] = None if channels is None else tuple(channels)
    if intensity is not None:
        if intensity["per"] not in ("image", "dataset"):
            raise ValueError("unknown intensity")
        given["intensity"] = Intensity(**intensity)
    if limits is not None:
        given["limits"] = tuple((float(low), float(high)) for low, high in limits)
    found = ImageFormat(**given)
    if found.lacks_limits:
        raise ValueError("the limits of the intensity are missing")
    if limits is not None and (
        len(limits) != found.n_channels or not np.isfinite(found.limits).all()  # type: ignore[arg-type]
    ):
        raise ValueError("the limits are not those of the channels")
    return found


def _find(channel: str | int, planes: Planes) -> int:
    """Return the number of a channel.

    Raises:
        UserError: There is none, or more than one.
    """
    if isinstance(channel, int):
        if channel < len(planes.names):
            return channel
        raise NeedsOption(
            f"data.channels: {planes.path} has no channel {channel}; it has {planes.listing}"
        )
    times = Counter(planes.names)[channel]
    if times == 1:
        return planes.names.index(channel)
    why = f"has no channel '{channel}'" if not times else f"has {times} channels '{channel}'"
    raise NeedsOption(f"data.channels: {planes.path} {why}; it has {planes.listing}")


def _describe(kind: np.dtype[Any]) -> str:
    """Describe a type of values."""
    return f"{8 * kind.itemsize} bits per channel" if kind.kind == "u" else f"{kind} values"
