"""Masks among the files of a folder: beside their images, in folders of their own, by a pattern."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cellbench.data.mask_files import is_pickle
from cellbench.data.reading.listing import Listing, join, split_id, stem_of, suffix_of
from cellbench.data.reading.mask_names import (
    DERIVED_FOLDERS,
    DERIVED_NAME,
    bare_stems,
    canonical,
    named_as_masks,
    without_words,
)
from cellbench.data.reading.mask_patterns import check_pattern, expand, find_pattern
from cellbench.data.reading.peek import spread
from cellbench.data.reading.reading import Doubt
from cellbench.data.reading.suspected_masks import (
    TRIED,
    all_look_like_masks,
    refuse_mirrored,
    refuse_mixed,
    refuse_photographs,
    refuse_unknown_names,
    stems_below,
)
from cellbench.utils.errors import UserError, clip, counted, short_name

ORPHANS = "masks of no image here"
DERIVED = "pictures made of others (overlays, outlines, thumbnails)"


_HERLEV = "-d"
"""End of the names of masks in the Herlev set (Jantzen et al., 2005)."""

_ONE_FOLDER = "one folder: "
"""Mark of masks that lie in one folder, whatever the folder of their image."""
_Images = dict[tuple[tuple[str, ...], str], list[str]]
"""Ids of images by the parts of their folder, as `canonical` returns them, and their stem."""


@dataclass
class Masks:
    """Masks that were found, and where they were looked for."""

    of: dict[str, str] = field(default_factory=dict)
    """The mask of each image that has one, by the image's id: a path below the root."""
    found: Counter[str] = field(default_factory=Counter)
    """Number of masks by the way in which they are named."""
    named: dict[str, list[str]] = field(default_factory=dict)
    """Those masks by the way in which they are named, without numbers and case."""
    pickles: list[str] = field(default_factory=list)
    """Files of Cellpose that may hold masks, and are not read, as they could run code."""
    several: list[tuple[str, str, str]] = field(default_factory=list)
    """Images with two masks, and the two; such images get none."""
    _way: dict[str, str] = field(default_factory=dict)
    """The way in which each mask is named."""

    def add(self, image: str, mask: str, way: str) -> None:
        """Note an image's mask; of a picture and an array, as Cellpose writes both, the picture."""
        other = self.of.get(image)
        if other is not None and suffix_of(other) != suffix_of(mask) == ".npy":
            return
        if other is not None and suffix_of(mask) != suffix_of(other) == ".npy":
            self.found[self._way[other]] -= 1
            other = None
        if other is None:
            self.of[image] = mask
        elif other != mask:
            self.several.append((image, other, mask))
        self._way[mask] = way
        self.found[way] += 1
        self.named.setdefault(_general(way), []).append(mask)

    def settle(self) -> list[Doubt]:
        """Remove ambiguous masks, and return what is doubtful about them.

        Raises:
            UserError: All images with masks have two.
        """
        ambiguous = {image: (first, second) for image, first, second in self.several}
        if not ambiguous:
            return [] if self.of else self._doubt_pickles()
        (image, both), n = next(iter(ambiguous.items())), len(ambiguous)
        if n == len(self.of) and n > 1:
            pattern = find_pattern({each: pair[0] for each, pair in ambiguous.items()})
            raise UserError(
                f"all {n} images with masks have two, as '{short_name(both[0], 40)}' and "
                f"'{short_name(both[1], 40)}'; choose, for example with {pattern}"
            )
        for each in ambiguous:
            del self.of[each]
        return [
            Doubt(
                f"{counted(n, 'image')} with two masks each, of which none is used: "
                f"'{short_name(image)}' has '{short_name(both[0])}' and '{short_name(both[1])}'",
                "data.mask_pattern",
            )
        ]

    def _doubt_pickles(self) -> list[Doubt]:
        if not self.pickles:
            return []
        return [
            Doubt(
                f"{counted(len(self.pickles), 'file')} of Cellpose, as "
                f"'{short_name(self.pickles[0])}', could run code and are not read: save the masks "
                "in Cellpose as PNG (File menu: x_cp_masks.png)"
            )
        ]


def take_masks(listing: Listing) -> Masks:
    """Find masks in the usual places, and remove them from the list of images.

    Args:
        listing: The files; changed in place.

    Raises:
        UserError: A folder is named as one of masks and holds masks, but of no image here; files
            are named as masks and are photographs; or files under other names look like masks.
    """
    masks = Masks(pickles=_find_pickles(listing))
    arrays = _add_arrays(listing, masks.pickles)
    _leave_out_derived(listing)
    _take_beside(listing, masks)
    _take_same_stem(listing, masks)
    _take_folders(listing, masks)
    refuse_photographs(listing, masks.named.values())
    refuse_mirrored(listing)
    refuse_unknown_names(listing)
    refuse_mixed(listing)
    _remove_arrays(listing, arrays)
    return masks


def take_masks_beside(listing: Listing) -> dict[str, str]:
    """Find masks that are named after an image beside them, and remove them from the images.

    Args:
        listing: The files; changed in place.

    Returns:
        The mask of each image that has one, both as ids.
    """
    masks = Masks()
    arrays = _add_arrays(listing, _find_pickles(listing))
    _take_beside(listing, masks)
    _remove_arrays(listing, arrays)
    masks.settle()
    return masks.of


def take_by_pattern(listing: Listing, pattern: str) -> Masks:
    """Find masks by `data.mask_pattern`, and remove those below the root from the list of images.

    Args:
        listing: The files; changed in place.
        pattern: The pattern.

    Raises:
        UserError: As `find_by_pattern`.
    """
    masks = find_by_pattern(listing.root, list(listing.ids()), pattern)
    used = set(masks.of.values())
    with_images = {split_id(image)[0] for image in masks.of}
    for folder in {split_id(mask)[0] for mask in used} & listing.images.keys():
        own = {name for name in listing.images[folder] if join(folder, name) in used}
        if folder not in with_images:
            for name in set(listing.images[folder]) - own:
                own.add(name)
                listing.leave_out(ORPHANS, name)
        listing.remove(folder, own)
    for mask in set(take_masks(listing).of.values()) - used:
        listing.leave_out(ORPHANS, mask)
    return masks


def find_by_pattern(root: Path, images: Sequence[str], pattern: str) -> Masks:
    """Find the masks of images by `data.mask_pattern`; each folder is listed once.

    Args:
        root: The folder that the images are in. A pattern may lead out of it, by `..` or as an
            absolute path, since the user has written it.
        images: Ids of the images; some may turn out to be masks of others.
        pattern: The pattern.

    Raises:
        UserError: The pattern is not valid, fits no file, or gives two images one mask.
    """
    key = "data.mask_pattern"
    check_pattern(pattern)
    masks = Masks()
    exists = _Existing(root)
    own = 0
    for image in images:
        path = os.path.normpath(expand(pattern, image))
        own += path == image
        if path != image and exists(path):
            masks.add(image, path, pattern)
    for image in set(masks.of.values()) & masks.of.keys():  # a mask has no mask of its own
        del masks.of[image]
        masks.found[pattern] -= 1
    if not masks.of and images and own == len(images):
        raise UserError(
            f"{key}: '{clip(pattern)}' gives each image's own path, such as '{clip(images[0])}'; "
            "write where the masks are, such as masks/{path}.png"
        )
    if not masks.of:
        first = f" (no {clip(root / expand(pattern, images[0]), 90)})" if images else ""
        raise UserError(f"{key}: '{clip(pattern)}' fits no file{first}; correct it")
    owner: dict[str, str] = {}
    for image, mask in masks.of.items():
        other = owner.setdefault(mask, image)
        if other != image:
            raise UserError(
                f"{key}: '{clip(pattern)}' gives '{clip(other)}' and '{clip(image)}' one mask, "
                f"'{clip(mask)}'; write {{path}} or {{parent}} in it to tell them apart"
            )
    return masks


class _Existing:
    """Test whether files exist, that lists each folder once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, set[str]] = {}

    def __call__(self, path: str) -> bool:
        folder, name = split_id(path)
        if folder not in self._names:
            try:
                names = {entry.name for entry in os.scandir(self._root / folder)}
            except OSError:
                names = set()
            self._names[folder] = names
        return name in self._names[folder]


def _find_pickles(listing: Listing) -> list[str]:
    """Return the ids of the files `x_seg.npy` if they are pickles, as Cellpose writes them."""
    found = sorted(
        join(folder, name)
        for folder, names in listing.others.items()
        for name in names
        if name.lower().endswith("_seg.npy")
    )
    return found if any(is_pickle(listing.root / each) for each in spread(found, TRIED)) else []


def _add_arrays(listing: Listing, pickles: Sequence[str]) -> dict[str, set[str]]:
    """Add the arrays of numpy.save, which may be masks, to the images.

    Args:
        listing: The files; changed in place.
        pickles: Ids of those that are none.

    Returns:
        The names of the arrays in each folder.
    """
    left = set(pickles)
    arrays = {
        folder: {n for n in names if suffix_of(n) == ".npy" and join(folder, n) not in left}
        for folder, names in listing.others.items()
    }
    arrays = {folder: names for folder, names in arrays.items() if names}
    for folder, names in arrays.items():
        listing.others[folder] = [n for n in listing.others[folder] if n not in names]
        listing.images[folder] = sorted([*listing.images.get(folder, ()), *names])
    return arrays


def _remove_arrays(listing: Listing, arrays: Mapping[str, set[str]]) -> None:
    """Remove the arrays that are no masks from the images."""
    for folder, names in arrays.items():
        left = names & set(listing.images.get(folder, ()))
        listing.others[folder] = sorted([*listing.others.get(folder, ()), *left])
        if left:
            listing.remove(folder, left)
        if not listing.others[folder]:
            del listing.others[folder]


def _leave_out_derived(listing: Listing) -> None:
    """Leave out folders such as `overlay` whose pictures are made of images beside them."""
    for parent, inside in list(listing.folders.items()):
        for name in [each for each in inside if each.lower() in DERIVED_FOLDERS]:
            own = stems_below(listing, join(parent, name))
            others = (stems_below(listing, join(parent, n)) for n in inside if n != name)
            beside = {stem_of(each) for each in listing.images.get(parent, ())}
            if own and any(2 * len(own.keys() & each) >= len(own) for each in (beside, *others)):
                for path in own.values():
                    folder, picture = split_id(path)
                    listing.leave_out(DERIVED, picture)
                    listing.remove(folder, {picture})
                listing.folders[parent].remove(name)


def _take_beside(listing: Listing, masks: Masks) -> None:
    """Take masks that lie beside their images under the image's name and a word such as _mask."""
    ways: set[str] = set()
    orphans: list[tuple[str, str, set[str]]] = []
    for folder, names in list(listing.images.items()):
        own = {stem_of(name): name for name in names}
        taken: set[str] = set()
        for name in names:
            stem = stem_of(name)
            derived = DERIVED_NAME.fullmatch(stem)
            if derived and derived[1] in own:
                taken.add(name)
                listing.leave_out(DERIVED, name)
                continue
            candidates = list(bare_stems(stem))
            for bare, way in candidates:
                if bare in own:
                    masks.add(join(folder, own[bare]), join(folder, name), way)
                    ways.add(_general(way))
                    taken.add(name)
                    break
            else:
                if candidates:
                    orphans.append((folder, name, {_general(way) for _, way in candidates}))
        bare_of = {s: s.removesuffix(_HERLEV) for s in own if s.endswith(_HERLEV)}
        pairs = {s: bare for s, bare in bare_of.items() if bare in own}
        if pairs and 2 * len(pairs) >= len(own) - len(bare_of):
            for stem, bare in pairs.items():
                masks.add(join(folder, own[bare]), join(folder, own[stem]), f"X{_HERLEV}")
                taken.add(own[stem])
        listing.remove(folder, taken)
    for folder, name, kinds in orphans:
        if kinds & ways:  # others of this kind do have an image
            listing.remove(folder, {name})
            listing.leave_out(ORPHANS, name)


def _general(way: str) -> str:
    """Return a way of naming without numbers and case."""
    return re.sub(r"\d+", "#", way.lower())


def _take_same_stem(listing: Listing, masks: Masks) -> None:
    """Take masks that differ from their images only in the suffix, if their pixels say so."""
    pairs: dict[tuple[str, str], list[tuple[str, str, str]]] = defaultdict(list)
    for folder, names in listing.images.items():
        by_stem: dict[str, list[str]] = defaultdict(list)
        for name in names:
            by_stem[stem_of(name)].append(name)
        for both in by_stem.values():
            if len(both) == 2 and suffix_of(both[0]) != suffix_of(both[1]):
                first, second = sorted(both, key=suffix_of)
                pairs[suffix_of(first), suffix_of(second)].append((folder, first, second))
    for suffixes, found in pairs.items():
        flat = [
            all_look_like_masks(listing, [join(each[0], each[side]) for each in found])
            for side in (1, 2)
        ]
        if flat[0] == flat[1]:
            continue
        side = 1 if flat[0] else 2
        for each in found:
            folder, image, mask = each[0], each[3 - side], each[side]
            masks.add(join(folder, image), join(folder, mask), f"X{suffixes[side - 1]}")
            listing.remove(folder, {mask})


def _take_folders(listing: Listing, masks: Masks) -> None:
    """Take folders of masks, whose files mirror the images."""
    candidates = [folder for folder in _folders_of_masks(listing, "") if listing.has_images(folder)]
    if not candidates:
        return
    inside = {each for folder in candidates for each in listing.below(folder)}
    images: _Images = defaultdict(list)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for folder, names in listing.images.items():
        if folder in inside:
            continue
        keys = {canonical(folder), canonical(folder, loosely=True)}
        for name in names:
            if suffix_of(name) == ".npy":
                continue
            for stem in {stem_of(name), os.path.splitext(name)[0], name}:
                for key in keys:
                    images[key, stem].append(join(folder, name))
                by_stem[stem].append(join(folder, name))
    for folder in candidates:
        _take_folder(listing, masks, folder, images, by_stem)


def _take_folder(
    listing: Listing, masks: Masks, folder: str, images: _Images, by_stem: dict[str, list[str]]
) -> None:
    """Take a folder that is named as one of masks, unless it is none."""
    ids = list(listing.ids(folder))
    pairs = [(mask, *_owner(mask, images, by_stem)) for mask in ids]
    fitting = sum(bool(owners) for _, owners, _ in pairs)
    parent, name = split_id(folder)
    beside = set(listing.folders[parent]) - {name}
    mirrored = name.lower() == "masks" and not beside.isdisjoint(listing.folders[folder])
    if not mirrored:
        by_name = any(way.startswith(_ONE_FOLDER) for _, _, way in pairs)
        flat = all_look_like_masks(listing, ids) if by_name or 2 * fitting < len(ids) else None
        if 2 * fitting < len(ids):
            if flat:
                if _belong_to_one(listing, folder):
                    raise UserError(
                        f"the folder '{short_name(folder)}' holds {len(ids)} masks and the one "
                        "beside it one image, as in the Data Science Bowl of 2018; join the masks "
                        "of an image in one file, a number for each cell, under the image's name"
                    )
                raise UserError(
                    f"the folder '{short_name(folder)}' holds masks by its name and its pixels, "
                    f"but {len(ids) - fitting} of {len(ids)} are of no single image, such as "
                    f"'{short_name(ids[0])}'; say whose they are with data.mask_pattern, or move "
                    "them out"
                )
            return
        if by_name and not flat:
            if without_words(name):  # a class such as 'ground glass'
                return
            raise UserError(
                f"the folder '{short_name(folder, 40)}' holds files named as images elsewhere, "
                "with many colours: masks, or a class? As masks: data.mask_pattern "
                f"'{folder}/{{stem}}{suffix_of(ids[0])}'; as a class: give the folder another name"
            )
    for mask, owners, way in pairs:
        for image in owners:
            masks.add(image, mask, way.removeprefix(_ONE_FOLDER))
        if not owners:
            listing.leave_out(ORPHANS, mask)
    for each in listing.below(folder):
        listing.images.pop(each, None)
    listing.folders[parent].remove(name)


def _belong_to_one(listing: Listing, folder: str) -> bool:
    """Return True if a folder of masks lies beside a folder with one image, and no others."""
    parent = split_id(folder)[0]
    beside = [path for path in listing.holders(parent) if path != folder]
    return len(beside) == 1 and listing.count(beside[0]) == 1 and parent not in listing.images


def _folders_of_masks(listing: Listing, folder: str) -> Iterator[str]:
    """Yield the topmost folders that are named as folders of masks are."""
    for name in listing.folders[folder]:
        path = join(folder, name)
        if named_as_masks(name):
            yield path
        else:
            yield from _folders_of_masks(listing, path)


def _owner(
    mask: str,
    images: _Images,
    by_stem: dict[str, list[str]],
) -> tuple[list[str], str]:
    """Return the images that a file in a folder of masks belongs to, and how it is named."""
    folder, name = split_id(mask)
    top = folder.partition("/")[0]
    stem, bare = stem_of(name), os.path.splitext(name)[0]
    ways = [(stem, "X"), (bare, "X"), *bare_stems(stem)]
    for key in (canonical(folder), canonical(folder, loosely=True)):
        for each, way in ways:
            if owners := images.get((key, each)):
                return owners, f"{top}/.../{way}"
    for each, way in ways:  # all masks in one folder, whatever the class
        owners = by_stem.get(each, [])
        if len(owners) == 1:
            return owners, f"{_ONE_FOLDER}{folder}/{way}"
    return [], ""
