"""Meaning of the values in mask files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS, Mask
from cellbench.utils.errors import UserError

Region = Literal["background", "cell", "cytoplasm", "nucleus"]
"""Part of the image that a value of a mask stands for; cell is for masks without nuclei."""

Instance = Literal["all", "centre"]
"""Cells of an image that count: all of them, or only the one at its centre."""

Value = int | str | list[int] | list[str] | list[list[int]]
"""Values of one region: a number or several, a colour as '#rrggbb' or [r, g, b] or several."""

MAX_STRAYS = 0.01
"""Greatest share of a mask's pixels that may have another value than the known ones."""

NOISE, TOLERANCE = 8, 32
"""Distances from the nearest known value. JPEG leaves most wrong pixels within the first, and few
beyond the second: on drawn masks of 64x64 pixels, at quality 70, 0.6 % at most."""

ROUNDED = 2
"""Distance of a frequent value from a known one other than 0 that compression leaves, and no label:
254 beside 255."""

FEW_VALUES = 8
"""Number of values of one mask up to which they are labels: compression leaves dozens."""

CENTRE_REACH = 0.1
"""Greatest distance from the centre to the cell at the centre, as a share of the shorter side."""

_MASK_VALUE = {"background": BACKGROUND, "cell": CYTOPLASM, "cytoplasm": CYTOPLASM}
_MASK_VALUE["nucleus"] = NUCLEUS

_Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Labels:
    """Pixels of a mask file as they are stored, before they get a meaning."""

    pixels: _Integers
    """Whole numbers, (H, W): values, instances or colours (0xRRGGBB)."""
    coloured: bool = False
    """True if the numbers are colours."""
    palette: _Integers | None = None
    """Colour of each value, 0xRRGGBB, in a file with a palette of colours; else None."""

    @property
    def in_colours(self) -> "Labels":
        """The same with colours for values; unchanged if a value is not a grey level of 8 bits."""
        if self.coloured:
            return self
        if self.palette is not None:
            return Labels(self.palette[self.pixels], coloured=True)
        if self.pixels.min() < 0 or self.pixels.max() > 255:
            return self
        return Labels(self.pixels.astype(np.int64) * 0x010101, coloured=True)


@dataclass(frozen=True)
class MaskFormat:
    """Meaning of the values in mask files; stored with every model that uses expert masks."""

    kind: Literal["unknown", "values", "ids"] = "unknown"
    """unknown: each file is recognised by itself; values: the table below; ids: every value but 0
    is a cell of its own."""
    values: tuple[tuple[int, Region], ...] = ()
    """Known values, or colours as 0xRRGGBB, and their regions."""
    coloured: bool = False
    """True if the values are colours."""
    given: bool = False
    """True if the user has named the values; then no mask is suspected of being inverted."""
    instance: Instance = "all"
    """Cells that count."""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "MaskFormat":
        """Return the format from the dictionary that `dataclasses.asdict` makes of it.

        Raises:
            TypeError: There is an unknown entry.
            ValueError: A value is not one that `asdict` gives.
        """
        values = tuple((value, region) for value, region in plain["values"])
        found = cls(**(dict(plain) | {"values": values}))
        if found.kind not in ("unknown", "values", "ids") or found.instance not in get_args(
            Instance
        ):
            raise ValueError("unknown kind of masks")
        if not isinstance(found.coloured, bool) or not isinstance(found.given, bool):
            raise ValueError("a property of the masks is neither true nor false")
        for value, region in values:
            if type(value) is not int or region not in _MASK_VALUE:
                raise ValueError("unknown value of a mask")
        if (found.kind == "values") != bool(values):
            raise ValueError("a table of values that does not fit the kind of masks")
        return found

    @classmethod
    def of(cls, *values: tuple[int, Region], coloured: bool = False) -> "MaskFormat":
        """Return the format of a table of values."""
        return cls("values", values, coloured)

    @property
    def known(self) -> NDArray[np.int64]:
        """The known values, (k,)."""
        return np.array([value for value, _ in self.values], np.int64)

    @property
    def regions(self) -> Mask:
        """BACKGROUND, CYTOPLASM or NUCLEUS for each known value, (k,)."""
        return np.array([_MASK_VALUE[region] for _, region in self.values], np.uint8)

    def describe(self) -> str:
        """Describe the format in words."""
        if self.kind == "unknown":
            words = "0 background, 128 cytoplasm, 255 nucleus, or 0 and one other value cell"
        elif self.kind == "ids":
            words = "0 background, every other value a cell"
        else:
            words = ", ".join(
                f"{_name(value, self.coloured)} {region}" for value, region in self.values
            )
        return words if self.instance == "all" else f"{words}; only the cell at the centre counts"

    def find_nearest(self, values: _Integers) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find the nearest known value of each value.

        Args:
            values: Values as they occur in masks, (n,).

        Returns:
            Index into `values` of the nearest, (n,), and the distance from it, (n,), between
            colours the Euclidean one.
        """
        known, found = _coordinates(self.known, self.coloured), _coordinates(values, self.coloured)
        distances = np.sqrt(((found[:, None] - known[None]) ** 2).sum(-1))
        return distances.argmin(1), distances.min(1)

    def find_strays(self, values: _Integers, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which values of one mask are strays: neither known nor the noise of compression.

        The other values are noise if most of them are near known ones; else each is a stray. Where
        few values make up the mask, two frequent ones near one known value are not noise, but
        labels.

        Args:
            values: The values, (n,).
            counts: Number of pixels of each, (n,).
        """
        nearest, distance = self.find_nearest(values)
        unknown = distance > 0
        if not unknown.any():
            return unknown
        frequent = counts > MAX_STRAYS * counts.sum()
        few = len(values) <= FEW_VALUES or (
            frequent.sum() <= 3 and counts[frequent].sum() >= (1 - MAX_STRAYS) * counts.sum()
        )
        rounded = unknown & (distance <= ROUNDED) & (self.known[nearest] != 0)
        labels = (
            few
            and not (rounded & frequent).any()
            and len(np.unique(nearest[frequent])) < frequent.sum()
        )
        near = counts[unknown & (distance <= 2 * NOISE)].sum()
        if labels or 2 * near < counts[unknown].sum():
            return unknown
        known = _coordinates(self.known, self.coloured)
        between = np.sqrt(((known[:, None] - known[None]) ** 2).sum(-1))
        np.fill_diagonal(between, np.inf)
        return np.asarray(distance > min(TOLERANCE, between.min() / 4))

    def read(self, labels: Labels, name: str) -> Mask:
        """Translate the pixels of a mask file.

        Args:
            labels: The pixels.
            name: The file's name, for errors.

        Returns:
            BACKGROUND, CYTOPLASM and NUCLEUS, uint8, (H, W).

        Raises:
            UserError: The pixels do not have this format, or there is no cell, or no background,
                or none at the centre if only that one counts.
        """
        if self.coloured:
            labels = labels.in_colours
        if labels.coloured != self.coloured:
            kinds = ("numbers", "colours") if labels.coloured else ("colours", "numbers")
            raise UserError(
                f"mask {name} has {kinds[1]} and not {kinds[0]} as the others: "
                f"{describe_shares(*count_values(labels.pixels), labels.coloured, 2)}; save all "
                "masks in one way"
            )
        if self.kind == "ids":
            mask = np.where(labels.pixels != 0, np.uint8(CYTOPLASM), np.uint8(BACKGROUND))
        else:
            mask = self._look_up(labels.pixels, name)
        cell = mask > BACKGROUND
        if not cell.any():
            raise UserError(f"mask {name} shows no cell; draw it, or leave its image out")
        if self.kind == "values" and not self.given:
            self._check_upright(cell, name)
        if self.instance == "centre":
            mask = keep_centre(mask, name, labels.pixels if self.kind == "ids" else None)
        if not self.given and mask.min() == mask.max():  # two regions show an outline at least
            raise UserError(
                f"mask {name} is all cell, without background; draw it, or leave its image out"
            )
        return mask

    def _look_up(self, pixels: _Integers, name: str) -> Mask:
        values, counts = count_values(pixels)
        strays = self.find_strays(values, counts)
        n = int(counts[strays].sum())
        if n > MAX_STRAYS * pixels.size:
            worst = values[strays][counts[strays].argmax()]
            known = ", ".join(_name(int(value), self.coloured) for value in self.known)
            name_them = ", or name them in data.mask_values" if strays.sum() <= FEW_VALUES else ""
            raise UserError(
                f"mask {name}: {n:,} of {pixels.size:,} pixels (more than {MAX_STRAYS:.0%}) are "
                f"none of {known}, most of them {_name(int(worst), self.coloured)}; save it as PNG "
                f"with these values alone{name_them}"
            )
        regions = self.regions[self.find_nearest(values)[0]]
        if values[0] >= 0 and values[-1] <= 0xFFFF:
            table = np.zeros(int(values[-1]) + 1, np.uint8)
            table[values] = regions
            return table[pixels]
        return regions[np.searchsorted(values, pixels)]

    def _check_upright(self, cell: NDArray[np.bool_], name: str) -> None:
        """Refuse a mask whose border is cell and whose centre is not."""
        y, x = (side // 2 for side in cell.shape)
        corners = cell[[0, 0, -1, -1], [0, -1, 0, -1]]
        if (
            corners.all()
            and border(cell).mean() >= 0.95
            and not cell[y - 1 : y + 2, x - 1 : x + 2].any()
        ):
            raise UserError(
                f"mask {name} looks inverted: its border is cell and its centre is not; invert it, "
                f"or if it is right, give data.mask_values: {self.as_option()}"
            )

    def as_option(self) -> str:
        """Return the format as a value of data.mask_values."""
        return as_option([(region, value) for value, region in self.values], self.coloured)


UNKNOWN = MaskFormat()
"""Format of masks that are recognised one by one, as before there were formats."""


def keep_centre(mask: Mask, name: str, ids: _Integers | None = None) -> Mask:
    """Keep the cell that covers the image's centre, or else the one nearest to it.

    Args:
        mask: BACKGROUND, CYTOPLASM and NUCLEUS, (H, W).
        name: The mask's name, for errors.
        ids: Number of the cell that each pixel belongs to, (H, W), 0 for the background; None if
            each piece of the mask is a cell.

    Raises:
        UserError: There is no cell near the centre.
    """
    if ids is None:
        ids = _number_pieces(mask)
    height, width = mask.shape
    y, x = np.nonzero(ids)
    distance = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
    reach = CENTRE_REACH * min(height, width) + 1
    if not len(distance) or distance.min() > reach:
        raise UserError(
            f"mask {name} has no cell within {reach:.0f} pixels of the centre; leave its image "
            "out, or take all cells with data.mask_instance: all"
        )
    nearest = distance.argmin()
    return np.where(ids == ids[y[nearest], x[nearest]], mask, np.uint8(BACKGROUND))


def _number_pieces(mask: Mask) -> _Integers:
    """Return the number of the piece that each pixel belongs to, 0 for the background."""
    cell = (mask > BACKGROUND).astype(np.uint8)
    return np.asarray(cv2.connectedComponents(cell)[1], np.int64)


def border(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost pixels of a mask, each once unless the mask is one pixel wide."""
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def count_values(pixels: _Integers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the values of pixels, sorted, and the number of pixels of each."""
    if pixels.dtype in (np.uint8, np.uint16):
        numbers = np.bincount(pixels.ravel())
        values = np.flatnonzero(numbers)
        return values, numbers[values]
    values, counts = np.unique(pixels, return_counts=True)
    return values.astype(np.int64), counts


def _coordinates(values: _Integers, coloured: bool) -> NDArray[np.float64]:
    """Return values as points, (n, 1), or colours as points of red, green and blue, (n, 3)."""
    if not coloured:
        return values.astype(np.float64)[:, None]
    return np.stack([values >> 16 & 255, values >> 8 & 255, values & 255], -1).astype(np.float64)


def describe_shares(
    values: _Integers, counts: NDArray[np.int64], coloured: bool, most: int = 4
) -> str:
    """Describe the most frequent values with their shares of the pixels."""
    order = np.argsort(-counts, kind="stable")[:most]
    words = [
        f"{_name(int(values[i]), coloured)} {100 * counts[i] / counts.sum():.2g} %" for i in order
    ]
    return ", ".join(words) + (", ..." if len(values) > most else "")


def as_option(regions: Sequence[tuple[Region, int]], coloured: bool) -> str:
    """Return the values of regions as a value of data.mask_values, in one line of YAML."""
    quote = "'" if coloured else ""
    words = [f"{region}: {quote}{_name(value, coloured)}{quote}" for region, value in regions]
    return f"{{{', '.join(words)}}}"


def _name(value: int, coloured: bool) -> str:
    return f"#{value:06x}" if coloured else str(value)


def check_mask_values(option: Mapping[Region, Value]) -> None:
    """Check data.mask_values as far as this is possible without the masks.

    Raises:
        UserError: A region is missing or has no value, a value has two regions, a colour is not
            one, or there are both numbers and colours.
    """
    if "background" not in option or len(option) < 2:
        raise UserError(
            "data.mask_values: name the background and at least one of cell, cytoplasm and "
            f"nucleus, as {as_option([('background', 0), ('cell', 1)], False)}"
        )
    if len({form for value in option.values() if (form := _form(value)) is not None}) > 1:
        raise UserError(
            "data.mask_values: numbers beside colours; give all values in one way, colours as "
            "'#rrggbb' or [r, g, b]"
        )
    coloured, seen = are_colours(option), dict[int, str]()
    for value, region in table_of(option):
        if seen.setdefault(value, region) != region:
            raise UserError(
                f"data.mask_values: {_name(value, coloured)} is both {seen[value]} and {region}; "
                "give each value one region"
            )


def are_colours(option: Mapping[Region, Value]) -> bool:
    """Return True if the values of data.mask_values are colours.

    Three numbers are a colour unless there are single numbers beside them.
    """
    forms = [form for value in option.values() if (form := _form(value)) is not None]
    return forms[0] if forms else True


def table_of(option: Mapping[Region, Value]) -> tuple[tuple[int, Region], ...]:
    """Return the values of data.mask_values with their regions.

    Raises:
        UserError: A region has no value, or a colour is not one.
    """
    coloured = are_colours(option)
    table = tuple(
        (key, region)
        for region in get_args(Region)
        if region in option
        for key in _keys(option[region], region, coloured)
    )
    named = {region for _, region in table}
    empty = [region for region in option if region not in named]
    if empty:
        raise UserError(f"data.mask_values.{empty[0]}: no value; give one, or leave the region out")
    return table


def _form(value: Value) -> bool | None:
    """Return True for colours, False for numbers, and None for what could be either."""
    if isinstance(value, int):
        return False
    if isinstance(value, str):
        return True
    if any(isinstance(each, str | list | tuple) for each in value):
        return True
    return None if _is_colour(value) else False


def _is_colour(value: Sequence[Any]) -> bool:
    return len(value) == 3 and all(type(each) is int and 0 <= each <= 255 for each in value)


def _keys(value: Value, region: str, coloured: bool) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, str):
        if not re.fullmatch("#[0-9a-fA-F]{6}", value):
            raise UserError(
                f"data.mask_values.{region}: '{value}' is not a colour; give a number, '#rrggbb' "
                "or [r, g, b]"
            )
        yield int(value[1:], 16)
    elif coloured and not any(isinstance(each, str | list | tuple) for each in value):
        if not _is_colour(value):
            raise UserError(
                f"data.mask_values.{region}: {value} is not a colour; give three numbers from 0 to "
                "255"
            )
        red, green, blue = value
        yield int(red) << 16 | int(green) << 8 | int(blue)  # type: ignore[arg-type]
    else:
        for each in value:
            yield from _keys(each, region, coloured)


def from_option(option: Mapping[Region, Value], instance: Instance) -> MaskFormat:
    """Return the format that data.mask_values describes.

    Args:
        option: The option.
        instance: Cells that count.
    """
    table, coloured = table_of(option), are_colours(option)
    return replace(MaskFormat.of(*table, coloured=coloured), given=True, instance=instance)
