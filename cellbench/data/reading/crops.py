"""Whole fields among the images that were cut out of them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cellbench.data.reading.layout import Layout
from cellbench.data.reading.listing import Listing, join, split_id, stem_of
from cellbench.data.reading.peek import area, spread
from cellbench.data.reading.reading import Doubt
from cellbench.utils.errors import UserError, clip, counted

FIELDS = "whole fields, whose crops are the samples"
ENLARGED = 1.5
"""Ratio of pixels from which an image is a field, and another its crop."""
_MIXED = 4.0
"""Ratio of pixels from which images of two levels cannot be of one kind."""
_TRIED = 5
_LAST = re.compile(r"(?:\d+|[^\W\d_]+|[\W_]+)$")
"""The last number, word or separator of a name."""
_NUMBERED = re.compile(r"(.+?)[-_. ()]+[a-z]{0,5}\d+\)?", re.IGNORECASE)


@dataclass
class Crops:
    """Crops that were found beside the fields that they come from."""

    field_of: dict[str, str] = field(default_factory=dict)
    """The field of each crop: the id of the crop, and the path of the field without suffix."""
    fields: int = 0
    """Number of fields, which are left out."""
    doubts: list[Doubt] = field(default_factory=list)
    """Observations that the user should settle."""


def leave_fields_out(listing: Listing, layout: Layout) -> Crops:
    """Remove the fields whose crops are there too from the list of images.

    A field and its crops show the same cells: as samples, they would be in two parts of a split.

    Args:
        listing: The images of the class folders; changed in place.
        layout: The class folders.

    Raises:
        UserError: Images lie above others, and are much larger or named as they are, and it cannot
            be told which are the cells.
    """
    crops = Crops()
    for top in layout.label:
        for folder in list(listing.below(top)):
            if folder in listing.images:
                _same_folder(listing, folder, crops)
            if folder in listing.images:
                _folders_below(listing, folder, crops)
    if crops.fields:
        example = next(iter(crops.field_of.items()))
        crops.doubts.append(
            Doubt(
                f"{counted(crops.fields, 'whole field')} left out, as "
                f"{counted(len(crops.field_of), 'crop')} of them are there: '{example[0]}' comes "
                f"from '{example[1]}', which is its group",
                "data.group_pattern for another group, data.csv for other images",
            )
        )
    return crops


def _folders_below(listing: Listing, folder: str, crops: Crops) -> None:
    """Tell fields in a folder from crops in the folders below it."""
    inside = [i for below in listing.holders(folder) for i in listing.ids(below)]
    if not inside:
        return
    own = {stem_of(name): join(folder, name) for name in listing.images[folder]}
    pairs = _pairs(inside, own)
    if 2 * len(pairs) >= len(inside):
        if not _are_larger(listing, [(own[stem], crop) for crop, stem in pairs.items()]):
            _refuse(listing, folder, inside, "named alike")
        _note(listing, folder, inside, pairs, crops)
        return
    ratio = _median(listing, own.values()) / max(_median(listing, inside), 1)
    if ratio >= _MIXED:
        _refuse(listing, folder, inside, f"{ratio:.0f} times as large")
    crops.doubts.append(
        Doubt(
            f"images lie at two levels: {len(own)} in '{folder}', {len(inside)} in folders below it"
        )
    )


def _same_folder(listing: Listing, folder: str, crops: Crops) -> None:
    """Tell fields from crops that lie in one folder: `001` and `001_01`, if the first is larger."""
    names = listing.images[folder]
    own = {stem_of(name): join(folder, name) for name in names}
    numbered = {stem: match[1] for stem in own if (match := _NUMBERED.fullmatch(stem))}
    pairs = {own[stem]: bare for stem, bare in numbered.items() if bare in own}
    if 2 * len(pairs) < len(own) or len(pairs) < 2:
        return
    if _are_larger(listing, [(own[bare], crop) for crop, bare in pairs.items()]):
        bare = set(pairs.values())
        crop_ids = [path for stem, path in own.items() if stem not in bare]
        _note(listing, folder, crop_ids, pairs, crops, bare)


def _pairs(crops: Iterable[str], own: dict[str, str]) -> dict[str, str]:
    """Return the stem of the field that each crop is named after."""
    found = {}
    for crop in crops:
        stem = stem_of(split_id(crop)[1])
        stems = (each for each in (stem, *shorter_stems(stem)) if each in own)
        if field_stem := next(stems, None):
            found[crop] = field_stem
    return found


def shorter_stems(stem: str) -> Iterator[str]:
    """Yield what is left of a name when one word, number or separator after another is cut off."""
    while match := _LAST.search(stem):
        stem = stem[: match.start()]
        if stem:
            yield stem


def _note(
    listing: Listing,
    folder: str,
    crop_ids: Sequence[str],
    pairs: dict[str, str],
    crops: Crops,
    fields: set[str] | None = None,
) -> None:
    """Note crops with their fields, and remove the fields from the list."""
    for crop in crop_ids:
        stem = stem_of(split_id(crop)[1])
        match = _NUMBERED.fullmatch(stem)
        crops.field_of[crop] = join(folder, pairs.get(crop) or (match[1] if match else stem))
    out = {n for n in listing.images[folder] if fields is None or stem_of(n) in fields}
    for name in out:
        listing.leave_out(FIELDS, name)
    crops.fields += len(out)
    listing.remove(folder, out)


def _are_larger(listing: Listing, pairs: Sequence[tuple[str, str]]) -> bool:
    """Return True if fields have more pixels than their crops, in a few pairs."""
    for large, small in spread(pairs, _TRIED):
        a, b = area(listing.root / large), area(listing.root / small)
        if a is not None and b is not None and a < ENLARGED * b:
            return False
    return True


def _median(listing: Listing, ids: Iterable[str]) -> float:
    areas = [area(listing.root / each) for each in spread(list(ids), _TRIED)]
    known = sorted(each for each in areas if each is not None)
    return known[len(known) // 2] if known else 1.0


def _refuse(listing: Listing, folder: str, inside: Sequence[str], why: str) -> None:
    below = split_id(inside[0])[0]
    raise UserError(
        f"data.root: '{clip(folder)}' has {counted(len(listing.images[folder]), 'image')}, and "
        f"'{clip(below)}' in it has others, {why}: which of them are the cells? Move the others "
        "out of data.root, or list the images in a table (data.csv)"
    )
