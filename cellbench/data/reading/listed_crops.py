"""Crops among the images that a table lists, where it lists the whole fields as well."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cellbench.data.reading.crops import ENLARGED, shorter_stems
from cellbench.data.reading.listing import join, split_id, stem_of
from cellbench.data.reading.peek import area, spread

_TRIED = 5
"""Number of pairs of a field and a crop whose sizes are compared, for each pair of folders."""
_CROP_FOLDER = re.compile(r"(?:^|[-_ ])(?:crop(?:s|ped)?|patch(?:es)?|tiles?|cells?|cutouts?)\b")

_Stems = Mapping[str, Sequence[str]]
"""Ids of images by their names without suffix."""


def find_fields(root: Path, ids: Sequence[str], others: Iterable[str]) -> dict[str, str]:
    """Return the field of each listed image that is a crop of another image.

    A crop is named after its field (`A_1` of `A`, or `A/1` of `A`) and has fewer pixels. Sizes are
    read from a few headers, and only where names hint at crops.

    Args:
        root: The folder of the images.
        ids: Ids of all listed images.
        others: Ids of the images that are not listed. One that merely has the name of a folder
            or of a listed image is no field.

    Returns:
        The field's path without suffix, by the crop's id.
    """
    listed, beside = _by_stem(ids), _by_stem(others)
    hinted: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for path in ids:
        for stem, by_stem in _stems_of_fields(path, listed, beside):
            owner = _nearest(path, by_stem[stem])
            if owner is not None:
                hinted[split_id(owner)[0], path.partition("/")[0]][path] = owner
                break
    field_of: dict[str, str] = {}
    for pairs in hinted.values():
        if _are_larger(root, list(pairs.items())):
            field_of |= pairs
    return {crop: _without_suffix(_outermost(crop, field_of)) for crop in field_of}


def fields_among(ids: Sequence[str], field_of: Mapping[str, str]) -> dict[str, str]:
    """Return the group of each crop and of each field: the field's path without suffix.

    Args:
        ids: Ids of all listed images.
        field_of: The field of each crop, as `find_fields` returns it.
    """
    fields = set(field_of.values())
    own = {path: stem for path in ids if (stem := _without_suffix(path)) in fields}
    return {**own, **field_of}


def _by_stem(ids: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in ids:
        found.setdefault(stem_of(split_id(path)[1]), []).append(path)
    return found


def _stems_of_fields(path: str, listed: _Stems, beside: _Stems) -> Iterator[tuple[str, _Stems]]:
    """Yield the stems of the fields that an image may be cut from, and the images to look among."""
    folder, name = split_id(path)
    stem = stem_of(name)
    for shorter in shorter_stems(stem):
        for images in (listed, beside):
            if shorter in images:
                yield shorter, images
    inner = split_id(folder)[1]
    if inner in listed:
        yield inner, listed
    if len(listed[stem]) > 1 and _CROP_FOLDER.search(folder.lower()):
        yield stem, listed


def _nearest(path: str, candidates: Sequence[str]) -> str | None:
    """Return the other image that shares most folders with an image; None if there are several."""
    folders = set(path.split("/")[:-1])
    shared = Counter({each: len(folders & set(each.split("/")[:-1])) for each in candidates})
    del shared[path]
    ranked = shared.most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _are_larger(root: Path, pairs: Sequence[tuple[str, str]]) -> bool:
    """Return True if the fields have more pixels than their crops, in a few pairs."""
    known = []
    for crop, whole in spread(pairs, _TRIED):
        small, large = area(root / crop), area(root / whole)
        if small is not None and large is not None:
            known.append(large >= ENLARGED * small)
    return bool(known) and all(known)


def _outermost(crop: str, field_of: Mapping[str, str]) -> str:
    """Return the field of a crop that is no crop itself."""
    seen = {crop}
    while (crop := field_of[crop]) in field_of and crop not in seen:
        seen.add(crop)
    return crop


def _without_suffix(path: str) -> str:
    folder, name = split_id(path)
    return join(folder, stem_of(name))
