"""Recognition of the meaning of mask values, from all masks of a dataset together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellbench.data.mask_format import (
    MAX_STRAYS,
    NOISE,
    Instance,
    Labels,
    MaskFormat,
    Region,
    as_option,
    border,
    count_values,
    describe_shares,
)
from cellbench.utils.errors import UserError

MAX_VALUES = 1024
"""Greatest number of values of one mask that are counted, the most frequent ones."""

EXAMINED = 50
"""Greatest number of masks whose regions are examined, evenly spread over the dataset."""

MAX_REGIONS = 32
"""Greatest number of values of one mask whose regions are examined, the most frequent ones."""

SURROUNDED = 0.6
"""Share of a region's contacts that it has with the one that surrounds it. It is 0.98 to 1 for the
nuclei of WBC Dataset 1 (Zheng 2018); where a straight line cuts a disc, each part has less than
half of its contacts with the other."""

FEW_IDS = 8
"""Number of ids in a whole dataset up to which they may be kinds of regions instead of cells."""

PHOTOGRAPH = 256
"""Number of colours of one mask from which it is a photograph."""

WHOLE = 0.9
"""Share of the pixels of an instance that are in one piece."""

MOST, FEW = 0.8, 0.2
"""Shares of the masks above which a property is a rule, and below which it is an exception."""

_TWO = MaskFormat.of((0, "background"), (255, "cell"))
_THREE = MaskFormat.of((0, "background"), (128, "cytoplasm"), (255, "nucleus"))

_Integers = NDArray[np.int64]
_Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts of the k values of a mask file."""

    values: _Integers
    """The values, sorted, (k,)."""
    counts: _Integers
    """Number of pixels of each, (k,)."""
    edges: _Integers
    """Number of pixels of each on the image's border, (k,)."""
    colours: _Integers
    """Colour of each, 0xRRGGBB, (k,); -1 for numbers that are no grey levels."""
    coloured: bool
    """True if the values are colours."""

    @classmethod
    def of(cls, labels: Labels) -> "Tally":
        """Count the values of a mask file."""
        values, counts = count_values(labels.pixels)
        edge = border(labels.pixels)
        edge_values, edge_counts = count_values(edge)
        edges = np.zeros_like(counts)
        edges[np.searchsorted(values, edge_values)] = edge_counts
        if len(values) > MAX_VALUES:
            kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_VALUES])
            values, counts, edges = values[kept], counts[kept], edges[kept]
        if labels.coloured:
            colours = values
        elif labels.palette is not None:
            colours = labels.palette[values].astype(np.int64)
        else:
            grey = (values >= 0) & (values <= 255)
            colours = np.where(grey, values * 0x010101, -1)
        return cls(values, counts, edges, colours, labels.coloured)

    @property
    def in_colours(self) -> "Tally":
        """The same with colours for values."""
        values, position = np.unique(self.colours, return_inverse=True)
        counts = np.bincount(position, self.counts, len(values)).astype(np.int64)
        edges = np.bincount(position, self.edges, len(values)).astype(np.int64)
        return Tally(values, counts, edges, values, coloured=True)


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of the most frequent values but 0 of a mask, k of them."""

    values: _Integers
    """The values, (k,)."""
    areas: NDArray[np.float64]
    """Share of the pixels in each region, (k,), 0 to 1."""
    solid: _Flags
    """True where a square of 3x3 pixels fits in, (k,): strays and blurred edges have none."""
    whole: _Flags
    """True where the region is one piece, but for specks, (k,)."""
    cut: _Flags
    """True where the region reaches the image's border, (k,)."""
    inside: _Integers
    """The value that surrounds the region, (k,); 0 for the background or several."""
    hollow: _Flags
    """True where the holes in the region are larger than the region, (k,), as in an outline."""

    @classmethod
    def of(cls, pixels: NDArray[np.integer]) -> "Regions":
        """Examine the pixels of a mask, (H, W)."""
        found, counts = count_values(pixels)
        order = np.argsort(-counts, kind="stable")
        values = np.sort(found[order][found[order] != 0][:MAX_REGIONS])
        # One code for the background, one for each value, and a last one for all others.
        codes = np.full(pixels.shape, len(values) + 1, np.int64)
        codes[pixels == 0] = 0
        areas = counts[np.searchsorted(found, values)] / pixels.size
        solid, whole, hollow = np.zeros((3, len(values)), bool)
        for i, value in enumerate(values):
            region = pixels == value
            codes[region] = i + 1
            area = region.astype(np.uint8)
            solid[i] = cv2.erode(area, np.ones((3, 3), np.uint8)).any()
            _, _, stats, _ = cv2.connectedComponentsWithStats(area)
            whole[i] = stats[1:, cv2.CC_STAT_AREA].max() >= WHOLE * region.sum()
            hollow[i] = _hole_area(area) > region.sum()
        contacts = _count_contacts(codes, len(values) + 2)[1:-1]
        most = contacts[:, 1:-1].argmax(1) if len(values) else np.zeros(0, np.int64)
        touching = np.take_along_axis(contacts[:, 1:-1], most[:, None], 1)[:, 0]
        surrounded = touching >= SURROUNDED * np.maximum(contacts.sum(1), 1)
        cut = np.isin(values, border(pixels))
        inside = np.where(surrounded, values[most], 0)
        return cls(values, areas, solid, whole, cut, inside, hollow)


def _hole_area(region: NDArray[np.uint8]) -> int:
    """Return the number of pixels in the holes of a region, which do not reach the border."""
    outside = np.pad(1 - region, 1, constant_values=1)
    numbers = cv2.connectedComponents(outside, connectivity=4)[1]
    return int(((numbers > 0) & (numbers != numbers[0, 0])).sum())


def _count_contacts(codes: _Integers, n: int) -> _Integers:
    """Return the number of neighbouring pixels of each two of n codes, (n, n); none of a code."""
    contacts = np.zeros(n * n, np.int64)
    for a, b in ((codes[:, 1:], codes[:, :-1]), (codes[1:], codes[:-1])):
        contacts += np.bincount((a * n + b).ravel(), minlength=n * n)
    square = contacts.reshape(n, n)
    square = square + square.T
    np.fill_diagonal(square, 0)
    return square


@dataclass(frozen=True, eq=False)
class MaskSet:
    """Masks of a dataset, by their counts."""

    names: Sequence[str]
    """Name of each, for messages."""
    tallies: Sequence[Tally]
    """Counts of each."""
    examine: Callable[[Sequence[int], MaskFormat | None], list[Regions]]
    """Function that examines the regions of the masks at some positions, after each pixel has taken
    the nearest value of the format if there is one."""

    @classmethod
    def of_one(cls, name: str, labels: Labels) -> "MaskSet":
        """Return the set of one mask."""
        return cls(
            [name],
            [Tally.of(labels)],
            lambda _, known: [Regions.of(quantise(labels.pixels, known))],
        )

    def value_counts(self) -> tuple[_Integers, _Integers, _Integers]:
        """Return the mask, the value and the count of each value of each mask, (n,) each."""
        sizes = [len(tally.values) for tally in self.tallies]
        return (
            np.repeat(np.arange(len(sizes)), sizes),
            np.concatenate([tally.values for tally in self.tallies]),
            np.concatenate([tally.counts for tally in self.tallies]),
        )

    def regions(self, chosen: Sequence[int], known: MaskFormat | None = None) -> list[Regions]:
        """Examine some of the chosen masks, evenly spread."""
        step = -(-len(chosen) // EXAMINED)
        return self.examine(list(chosen)[::step], known)

    def shares(self, most: int = 4) -> str:
        """Describe the most frequent values and their shares of all pixels."""
        _, values, counts = self.value_counts()
        found, position = np.unique(values, return_inverse=True)
        total = np.bincount(position, counts).astype(np.int64)
        return describe_shares(found, total, self.tallies[0].coloured, most)


def quantise(pixels: NDArray[np.integer], known: MaskFormat | None) -> NDArray[np.integer]:
    """Replace each pixel by the nearest known value, if any are known."""
    if known is None:
        return pixels
    values, _ = count_values(pixels)
    nearest, _ = known.find_nearest(values)
    return known.known[nearest][np.searchsorted(values, pixels)]


def recognise(masks: MaskSet, instance: Instance | None = None) -> MaskFormat:
    """Recognise the format of masks.

    In this order: 0, 128 and 255, or 0 and one other value in each mask; the same with noise or a
    few strays; a nucleus that lies inside its cytoplasm; and cells side by side, a value for each.

    Args:
        masks: The masks.
        instance: Cells that count, if the user has said so. Then the values are those of cells
            where it is not certain that they are not.

    Raises:
        UserError: The meaning of the values is not certain. The line names the option for it.
    """
    useful = [k for k, tally in enumerate(masks.tallies) if len(tally.values) > 1]
    if not useful:
        value = masks.shares()
        raise UserError(
            f"mask {masks.names[0]} shows no outline, only {value}; draw it, or leave its image out"
        )
    masks = MaskSet(
        [masks.names[k] for k in useful],
        [masks.tallies[k] for k in useful],
        lambda chosen, known, examine=masks.examine: examine([useful[k] for k in chosen], known),  # type: ignore[misc]
    )
    if _have_colours(masks):
        found = _recognise_colours(masks)
    else:
        _refuse_inverted(masks)
        found = (
            _recognise_values(masks)
            or _recognise_noise(masks)
            or _recognise_regions(masks, instance)
        )
        _refuse_outlines(masks, found)
    return replace(found, instance=instance or "all")


def _refuse_outlines(masks: MaskSet, found: MaskFormat) -> None:
    """Refuse masks of one value whose cells are drawn as outlines.

    Raises:
        UserError: They are.
    """
    if found.kind != "values" or len(found.values) > 2:
        return
    regions = masks.regions(range(len(masks.tallies)), found)
    if _share([each.hollow.any() for each in regions]) >= MOST:
        raise UserError(
            f"the masks show outlines, as {masks.names[0]}: the holes in them are larger than what "
            "is marked; fill them (in ImageJ: Process > Binary > Fill Holes)"
        )


def _have_colours(masks: MaskSet) -> bool:
    """Return True if masks have colours, or palettes in which one index has several colours."""
    if any(tally.coloured for tally in masks.tallies):
        return True
    values = np.concatenate([tally.values for tally in masks.tallies])
    colours = np.concatenate([tally.colours for tally in masks.tallies])
    by_palette = (colours >= 0) & (colours != values * 0x010101)
    pairs = np.unique(np.stack([values, colours])[:, by_palette], axis=1)
    return bool(len(np.unique(pairs[0])) < pairs.shape[1])


def _recognise_colours(masks: MaskSet) -> MaskFormat:
    """Recognise black and one colour; all other colours have to be named."""
    _refuse_photographs(masks)
    masks = replace(masks, tallies=[tally.in_colours for tally in masks.tallies])
    found = np.unique(np.concatenate([tally.values for tally in masks.tallies]))
    if len(found) == 2 and found[0] == 0:
        _refuse_inverted(masks)
        return MaskFormat.of((0, "background"), (int(found[1]), "cell"), coloured=True)
    if len(found) > FEW_IDS:
        raise UserError(
            f"the masks have {len(found)} colours: {masks.shares(3)} ({masks.names[0]}); save them "
            "with one channel, 0 for background and a number for each cell, or name all colours in "
            "data.mask_values"
        )
    example = "{background: '#000000', cytoplasm: '#ff0000', nucleus: '#0000ff'}"
    if len(found) <= 3:
        example = _guess_option(masks)
    raise UserError(
        f"the masks have colours: {masks.shares(3)} ({masks.names[0]}); name what they stand for, "
        f"for example data.mask_values: {example}"
    )


def _refuse_photographs(masks: MaskSet) -> None:
    """Refuse masks with as many colours as photographs.

    Raises:
        UserError: There are some.
    """
    found = [
        k for k, each in enumerate(masks.tallies) if each.coloured and len(each.values) > PHOTOGRAPH
    ]
    if found:
        raise UserError(
            f"{len(found)} of {len(masks.tallies)} masks look like photographs, as "
            f"{masks.names[found[0]]} with {len(masks.tallies[found[0]].values)} or more colours; "
            "replace them by masks, or name others in data.mask_pattern"
        )


def _guess_option(masks: MaskSet) -> str:
    """Return an example of data.mask_values for masks of two or three colours."""
    first = max(masks.tallies, key=lambda tally: len(tally.values))
    outside = first.edges.argmax()
    order = [i for i in np.argsort(-first.counts, kind="stable") if i != outside]
    names: tuple[Region, ...] = ("cell",) if len(order) == 1 else ("cytoplasm", "nucleus")
    inner = zip(names, (int(first.values[i]) for i in order), strict=True)
    return as_option([("background", int(first.values[outside])), *inner], coloured=True)


def _refuse_inverted(masks: MaskSet) -> None:
    """Refuse masks if most have their cell at the border and their background inside.

    Raises:
        UserError: They do.
    """
    inverted = [k for k, tally in enumerate(masks.tallies) if _is_inverted(tally)]
    if 2 * len(inverted) <= len(masks.tallies):
        return
    first = masks.tallies[inverted[0]]
    outside = int(first.values[first.edges.argmax()])
    values, counts = first.values, first.counts
    if _noise(first):
        values = _THREE.known[_THREE.find_nearest(values)[0]]
        outside = int(values[first.edges.argmax()])
    others = np.unique(values[values != outside])
    if first.coloured or _noise(first) or len(others) > 2:
        others = values[[np.where(values == outside, 0, counts).argmax()]]
    order = others[np.argsort(np.abs(others - outside), kind="stable")].tolist()
    names: tuple[Region, ...] = ("cell",) if len(order) == 1 else ("cytoplasm", "nucleus")
    option = as_option([("background", outside), *zip(names, order, strict=True)], first.coloured)
    raise UserError(
        f"{len(inverted)} of {len(masks.tallies)} masks look inverted, as "
        f"{masks.names[inverted[0]]}: their border is cell. If it is background, give "
        f"data.mask_values: {option}; else name the values as they are"
    )


def _noise(tally: Tally) -> int:
    """Return the greatest distance of a value from another that may be noise."""
    noisy = not tally.coloured and len(tally.values) > 3 and tally.values[-1] - tally.values[0] > 64
    return NOISE if noisy else 0


def _is_inverted(tally: Tally) -> bool:
    """Return True if the border of a mask is rather cell than its inside is."""
    cell = tally.values > _noise(tally)
    edge = tally.edges[cell].sum() / tally.edges.sum()
    overall = tally.counts[cell].sum() / tally.counts.sum()
    if overall == 1:  # no background: the value of the border may be that
        outside = tally.edges.argmax()
        edge = tally.edges[outside] / tally.edges.sum()
        overall = tally.counts[outside] / tally.counts.sum()
        return bool(edge > 0.9 and overall < edge)
    return bool(edge > 0.5 and (edge > overall + 0.1 or edge > 0.99))


def _recognise_values(masks: MaskSet) -> MaskFormat | None:
    """Recognise 0, 128 and 255, or one value beside 0 in each mask."""
    mask, values, _ = masks.value_counts()
    mask, values = mask[values != 0], values[values != 0]
    several = np.flatnonzero(np.bincount(mask, minlength=len(masks.names)) > 1)
    known = np.unique(values)
    if not len(several):
        if len(known) == 1:
            return MaskFormat.of((0, "background"), (int(known[0]), "cell"))
        return MaskFormat("ids")
    if np.isin(known, (128, 255)).all():
        return _confirm_three(masks, several) or _TWO
    return None


def _confirm_three(masks: MaskSet, chosen: NDArray[np.integer]) -> MaskFormat | None:
    """Confirm that 128 is a region of its own and not a blurred edge.

    Args:
        masks: The masks.
        chosen: Positions of masks that have both 128 and 255.

    Raises:
        UserError: It is one, but lies inside 255, as a nucleus does.
    """
    regions = masks.regions(chosen.tolist(), _THREE)
    solid = [each.solid[each.values == 128].any() for each in regions]
    if _share(solid) < 0.5:
        return None
    reversed_ = [(each.inside[each.values == 128] == 255).any() for each in regions]
    if _share(reversed_) >= MOST:
        _refuse_order(masks, 255, 128)
    return _THREE


def _refuse_order(masks: MaskSet, outer: int, inner: int) -> None:
    option = as_option([("background", 0), ("cytoplasm", outer), ("nucleus", inner)], False)
    raise UserError(
        f"in the masks {inner} lies inside {outer} ({masks.names[0]}): if it is the nucleus, give "
        f"data.mask_values: {option}; if it is not, name the values as they are"
    )


def _recognise_noise(masks: MaskSet) -> MaskFormat | None:
    """Recognise 0 and 255, or 0, 128 and 255, with the noise of JPEG or a few strays."""
    two, three = (_fitting(masks, known) for known in (_TWO, _THREE))
    if three.sum() > two.sum():
        found = _confirm_three(masks, np.flatnonzero(three & ~two))
        if found is not None and three.mean() > 0.5:
            return found
    return _TWO if two.mean() > 0.5 else None


def _fitting(masks: MaskSet, known: MaskFormat) -> _Flags:
    """Return which masks have more cell than strays could make up, and few strays, in a format."""
    fitting = np.zeros(len(masks.tallies), bool)
    for k, tally in enumerate(masks.tallies):
        nearest, _ = known.find_nearest(tally.values)
        strays = known.find_strays(tally.values, tally.counts)
        few = tally.counts[strays].sum() <= MAX_STRAYS * tally.counts.sum()
        cell = tally.counts[~strays & (nearest > 0)].sum()
        fitting[k] = few and cell > MAX_STRAYS * tally.counts.sum()
    return fitting


def _recognise_regions(masks: MaskSet, instance: Instance | None) -> MaskFormat:
    """Recognise a nucleus inside its cytoplasm, or cells side by side, by their regions."""
    mask, values, _ = masks.value_counts()
    several = np.flatnonzero(np.bincount(mask[values != 0], minlength=len(masks.names)) > 1)
    examined = masks.regions(several.tolist())
    regions = [_without_strays(each) for each in examined]
    found = np.unique(np.concatenate([each.values for each in regions]))
    if len(found) == 1:
        return MaskFormat.of((0, "background"), (int(found[0]), "cell"))
    compressed = masks.names[0].lower().endswith((".jpg", ".jpeg", ".jpe", ".jfif"))
    if compressed and np.diff(np.append(0, found)).min() <= NOISE:
        _refuse_compressed(masks)
    compared = [each for each in regions if len(each.values) > 1]
    nested = [each.inside.any() for each in compared]
    if len(found) == 2 and _share(nested) >= MOST:
        outer, inner = (int(value) for value in found)
        inwards = [(each.inside[each.values == inner] == outer).any() for each in compared]
        outwards = [(each.inside[each.values == outer] == inner).any() for each in compared]
        if _share(inwards) >= MOST and _share(outwards) <= FEW:
            return MaskFormat.of((0, "background"), (outer, "cytoplasm"), (inner, "nucleus"))
        if _share(outwards) >= MOST and _share(inwards) <= FEW and instance is None:
            _refuse_order(masks, inner, outer)
    strays = [each.areas[~each.solid].sum() for each in examined]
    if instance is not None and not compressed:
        return MaskFormat("ids")
    if _lie_side_by_side(regions) and np.mean(strays) <= MAX_STRAYS:
        return MaskFormat("ids")
    if compressed:
        _refuse_compressed(masks)
    example = "background: 0, cytoplasm: 1, nucleus: 2"
    if 0 < len(found) <= 3:
        outside = _outside(masks)
        cells = found[found != outside].tolist()
        example = f"background: {outside}, cell: {cells}"
    raise UserError(
        f"the values of the masks may mean several things: {masks.shares(3)} ({masks.names[0]}); "
        f"if each is a cell of its own, give data.mask_instance: all; else name them, as "
        f"data.mask_values: {{{example}}}"
    )


def _outside(masks: MaskSet) -> int:
    """Return the most frequent value at the border of the first mask."""
    first = masks.tallies[0]
    return int(first.values[first.edges.argmax()])


def _refuse_compressed(masks: MaskSet) -> None:
    raise UserError(
        f"the masks are JPEG files, whose compression has changed their values too much to tell "
        f"them: {masks.shares(3)} ({masks.names[0]}); draw them anew, and save them as PNG"
    )


def _lie_side_by_side(regions: Sequence[Regions]) -> bool:
    """Return True if nearly each region is in one piece, and none but a few lie inside another.

    Those at the border are left out where there are others: they may be cut in two. But a value
    that is in pieces in most masks stands for a kind of cells.
    """
    values = np.concatenate([each.values for each in regions])
    pieces = np.concatenate([~each.whole for each in regions])
    for value in np.unique(values[pieces]):
        if 2 * pieces[values == value].sum() > max(len(regions), 1):
            return False
    cut = np.concatenate([each.cut for each in regions])
    judged = ~cut if not cut.all() else cut
    whole = np.concatenate([each.whole for each in regions])[judged]
    inside = np.concatenate([each.inside for each in regions])[judged]
    return _share(whole) >= WHOLE and _share(inside != 0) <= FEW


def _share(flags: Sequence[Any]) -> float:
    """Return the share of true values; 0 if there are none."""
    return float(np.mean(flags)) if len(flags) else 0.0


def _without_strays(regions: Regions) -> Regions:
    kept = [getattr(regions, field.name)[regions.solid] for field in fields(regions)]
    return Regions(*kept)
