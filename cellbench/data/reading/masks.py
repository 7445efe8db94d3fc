"""Masks among the files of a folder: beside their images, in folders of their own, by a pattern."""

import os
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cellbench.data.reading.listing import Listing, join, split_id, stem_of, suffix_of
from cellbench.data.reading.names import clip
from cellbench.data.reading.peek import looks_like_mask
from cellbench.data.reading.reading import Doubt
from cellbench.utils.errors import UserError, counted

ORPHANS = "masks of no image here"
DERIVED = "pictures made of others (overlays, outlines, thumbnails)"

_MASK_WORDS = frozenset(
    {
        *("mask", "masks", "seg", "segs", "segmentation", "segmentations", "label", "labels"),
        *("annotation", "annotations", "gt", "groundtruth", "ground", "truth", "instances"),
    }
)
"""Words in the name of a folder of masks."""
_IMAGE_WORDS = frozenset(
    {"image", "images", "img", "imgs", "raw", "original", "originals", "picture", "pictures"}
)
"""Words in the name of a folder of the images that such masks belong to."""

_WORD = r"(?:masks?|seg(?:mentation)?|labels?|gt|ground[-_ ]?truth|annotations?)"
_AFTER = re.compile(rf"(.+?)[-_. ]?(?<![a-z])({_WORD})(?:[-_. ]?\d+)?", re.IGNORECASE)
_BEFORE = re.compile(rf"({_WORD})[-_. ](.+)", re.IGNORECASE)
_DERIVED = re.compile(
    r"(.+?)[-_. ](?:(?:cp[-_. ])?outlines?|overlay|contours?|flows?|thumb(?:nail)?s?)",
    re.IGNORECASE,
)
_QUALIFIER = re.compile(
    r"(.+)[-_. ](?:cp|cells?|nucle(?:us|i)|cyto(?:plasm)?|bin(?:ary)?|instances?)", re.IGNORECASE
)
_ENDING = re.compile(r"(.+?)[-_. ]?[^\W\d_]+")
"""Name of a file that may be named after another one: that name, and a word."""
_HERLEV = "-d"
"""End of the names of masks in the Herlev set (Jantzen et al., 2005)."""

_FIELDS = ("path", "parent", "name", "stem")
_ONE_FOLDER = "one folder: "
"""Mark of masks that lie in one folder, whatever the folder of their image."""
_Images = dict[tuple[tuple[str, ...], str], list[str]]
"""Ids of images by the parts of their folder, as `_canonical` returns them, and their stem."""
_TRIED = 6
"""Number of files that are looked into to tell masks from images."""


@dataclass
class Masks:
    """Masks that were found, and where they were looked for."""

    of: dict[str, str] = field(default_factory=dict)
    """The mask of each image that has one, by the image's id: a path below the root."""
    found: Counter[str] = field(default_factory=Counter)
    """Number of masks by the way in which they are named."""
    several: list[tuple[str, str, str]] = field(default_factory=list)
    """Images with two masks, and the two; such images get none."""

    def add(self, image: str, mask: str, way: str) -> None:
        """Note an image's mask."""
        other = self.of.setdefault(image, mask)
        if other != mask:
            self.several.append((image, other, mask))
        self.found[way] += 1

    def settle(self) -> list[Doubt]:
        """Remove ambiguous masks, and return what is doubtful about them."""
        for image, _, _ in self.several:
            self.of.pop(image, None)
        if not self.several:
            return []
        image, first, second = self.several[0]
        n = len({image for image, _, _ in self.several})
        return [
            Doubt(
                f"{counted(n, 'image')} with two masks each, of which none is used: '{image}' has "
                f"'{first}' and '{second}'",
                "data.mask_pattern",
            )
        ]


def take_masks(listing: Listing) -> Masks:
    """Find masks in the usual places, and remove them from the list of images.

    Args:
        listing: The files; changed in place.

    Raises:
        UserError: A folder is named as one of masks and holds masks, but of no image here.
    """
    masks = Masks()
    _take_beside(listing, masks)
    _take_same_stem(listing, masks)
    _take_folders(listing, masks)
    _refuse_unknown_names(listing)
    return masks


def take_masks_beside(listing: Listing) -> dict[str, str]:
    """Find masks that are named after an image beside them, and remove them from the images.

    Args:
        listing: The files; changed in place.

    Returns:
        The mask of each image that has one, both as ids.
    """
    masks = Masks()
    _take_beside(listing, masks)
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
    for mask in take_masks(listing).of.values():
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


def check_pattern(pattern: str) -> None:
    """Check the fields of a pattern for masks.

    Raises:
        UserError: A field is not known, or there is none.
    """
    key = "data.mask_pattern"
    try:
        fields = list(string.Formatter().parse(pattern))
        if any(form or conversion for _, _, form, conversion in fields):
            raise ValueError("only names may stand between the braces")
        names = [name for _, name, _, _ in fields if name is not None]
    except ValueError as error:
        raise UserError(f"{key}: '{pattern}': {error}") from error
    allowed = ", ".join(f"{{{name}}}" for name in _FIELDS)
    for name in names:
        if name not in _FIELDS:
            raise UserError(f"{key}: '{pattern}' has {{{name}}}; allowed: {allowed}")
    if not {"path", "name", "stem"} & set(names):
        raise UserError(f"{key}: '{pattern}' is one path for all images; use {allowed}")


def expand(pattern: str, image: str) -> str:
    """Return the path of an image's mask by a pattern, below the root.

    Args:
        pattern: The path with the fields {path} (the image's path without suffix), {parent} (its
            folder), {name} (its name) and {stem} (its name without suffix).
        image: The image's id.
    """
    folder, name = split_id(image)
    stem = os.path.splitext(name)[0]
    return pattern.format(path=join(folder, stem), parent=folder or ".", name=name, stem=stem)


def describe_places(image: str) -> str:
    """Return the usual places of masks, for an image that has none."""
    path, folder = os.path.splitext(image)[0], split_id(image)[0]
    stem = split_id(path)[1]
    return f"looked for {join(folder, stem)}_mask.*, masks/{path}.* and the like"


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


def _bare_stems(stem: str) -> Iterator[tuple[str, str]]:
    """Yield the stems of images whose mask a file may be by its name, with the way of naming."""
    if match := _AFTER.fullmatch(stem):
        bare = match[1].rstrip("-_. ")
        yield bare, f"X{stem[len(bare) :]}"
        if inner := _QUALIFIER.fullmatch(bare):
            yield inner[1], f"X{stem[len(inner[1]) :]}"
    if match := _BEFORE.fullmatch(stem):
        yield match[2], f"{stem[: -len(match[2])]}X"


def _refuse_unknown_names(listing: Listing) -> None:
    """Refuse images that are named after others and look like their masks.

    Raises:
        UserError: There are some; the line gives the pattern that takes them as masks.
    """
    for folder, names in listing.images.items():
        own = {stem_of(name) for name in names}
        ends: dict[str, list[str]] = defaultdict(list)
        for name in names:
            stem = stem_of(name)
            match = _ENDING.fullmatch(stem)
            if match and match[1] in own:
                ends[stem[len(match[1]) :] + suffix_of(name)].append(name)
        for end, found in ends.items():
            if len(found) < min(_TRIED, len(names) / 3):
                continue
            if all(looks_like_mask(listing.root / folder / name) for name in found[:_TRIED]):
                raise UserError(
                    f"data.root: '{join(folder, found[0])}' and {len(found) - 1} more in its "
                    "folder are named after other images and have as few colours as masks; give "
                    f"data.mask_pattern: '{{path}}{end}', or move them out"
                )


def _take_beside(listing: Listing, masks: Masks) -> None:
    """Take masks that lie beside their images under the image's name and a word such as _mask."""
    ways: set[str] = set()
    orphans: list[tuple[str, str, set[str]]] = []
    for folder, names in list(listing.images.items()):
        own = {stem_of(name): name for name in names}
        taken: set[str] = set()
        for name in names:
            stem = stem_of(name)
            derived = _DERIVED.fullmatch(stem)
            if derived and derived[1] in own:
                taken.add(name)
                listing.leave_out(DERIVED, name)
                continue
            candidates = list(_bare_stems(stem))
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
            _mostly_masks(listing, [join(each[0], each[side]) for each in found]) for side in (1, 2)
        ]
        if flat[0] == flat[1]:
            continue
        side = 1 if flat[0] else 2
        for each in found:
            folder, image, mask = each[0], each[3 - side], each[side]
            masks.add(join(folder, image), join(folder, mask), f"X{suffixes[side - 1]}")
            listing.remove(folder, {mask})


def _mostly_masks(listing: Listing, ids: Sequence[str]) -> bool:
    step = -(-len(ids) // _TRIED)
    looked = [looks_like_mask(listing.root / each) for each in ids[::step]]
    known = [each for each in looked if each is not None]
    return bool(known) and all(known)


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
        key = _canonical(folder)
        for name in names:
            for stem in {stem_of(name), os.path.splitext(name)[0], name}:
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
        flat = _mostly_masks(listing, ids) if by_name or 2 * fitting < len(ids) else None
        if 2 * fitting < len(ids):
            if flat:
                raise UserError(
                    f"the folder '{folder}' holds masks by its name and its pixels, but "
                    f"{len(ids) - fitting} of {len(ids)} are of no single image, such as "
                    f"'{ids[0]}'; say whose they are with data.mask_pattern, or move them out"
                )
            return
        if by_name and not flat:
            if _without_words(name):  # a class such as 'ground glass'
                return
            raise UserError(
                f"the folder '{folder}' holds files named as images elsewhere, with many colours: "
                f"masks, or a class? As masks: data.mask_pattern '{folder}/{{stem}}"
                f"{suffix_of(ids[0])}'; as a class: give the folder another name"
            )
    for mask, owners, way in pairs:
        for image in owners:
            masks.add(image, mask, way.removeprefix(_ONE_FOLDER))
        if not owners:
            listing.leave_out(ORPHANS, mask)
    for each in listing.below(folder):
        listing.images.pop(each, None)
    listing.folders[parent].remove(name)


def named_as_masks(name: str) -> bool:
    """Return True for the name of a folder that may hold masks."""
    return not _MASK_WORDS.isdisjoint(_words(name))


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
    key, top = _canonical(folder), folder.partition("/")[0]
    stem, bare = stem_of(name), os.path.splitext(name)[0]
    ways = [(stem, "X"), (bare, "X"), *_bare_stems(stem)]
    for each, way in ways:
        if owners := images.get((key, each)):
            return owners, f"{top}/.../{way}"
    for each, way in ways:  # all masks in one folder, whatever the class
        owners = by_stem.get(each, [])
        if len(owners) == 1:
            return owners, f"{_ONE_FOLDER}{folder}/{way}"
    return [], ""


def _canonical(folder: str) -> tuple[str, ...]:
    """Return the parts of a path without the words that tell masks from images."""
    return tuple(kept for part in folder.split("/") if (kept := _without_words(part)))


def _without_words(name: str) -> str:
    words = _words(name)
    kept = [word for word in words if word not in _MASK_WORDS | _IMAGE_WORDS]
    return name if len(kept) == len(words) else "_".join(kept)


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())
