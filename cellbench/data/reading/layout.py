"""Meaning of the levels of folders: classes, and parts or folds above or below them."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from cellbench.data.reading.listing import Listing, join, same_name, split_id
from cellbench.data.reading.mask_names import named_as_images, named_as_masks
from cellbench.data.reading.parts import PART_WORDS, part_word, parts_of
from cellbench.data.reading.peek import area
from cellbench.data.reading.reading import Doubt
from cellbench.data.table import Part
from cellbench.utils.errors import UserError, clip, clip_path, counted, enumerate_some

OUTSIDE = "images outside the class folders"

_CONTAINERS = frozenset(
    {
        *("images", "image", "imgs", "img", "data", "dataset", "datasets", "raw", "original"),
        *("originals", "pictures", "jpg", "png", "tif", "tiff", "bmp", "train", "all"),
    }
)
"""Names of folders that hold the folders of the classes, and are no class themselves."""
_FOLD = re.compile(r"(?:k|cv)?[-_ ]*folds?[-_ ]*([a-z]|\d+)", re.IGNORECASE)
_FOLD_LIKE = re.compile(
    r"(?:k|cv|xval|folds?|splits?|partitions?|parts?|subsets?|sets?|runs?|rounds?|iter(?:ation)?"
    r"|rep(?:eat|etition)?|teil)[-_ .]*(?:\d+|[a-e])|\d+",
    re.IGNORECASE,
)
"""Name of a folder that may be a fold, but may be a patient as well."""
_ODD = frozenset(
    {
        *("unlabelled", "unlabeled", "unknown", "unsorted", "predict", "prediction", "new"),
        *("augmented", "aug", "augmentation", "images", "original", "originals", "raw", "crops"),
        *("cropped", "patches", "tiles", "fields", "masks", "mask", "labels", "annotations"),
    }
)
"""Names of folders that are rarely a class."""


@dataclass
class Layout:
    """Meaning of each folder of images."""

    label: dict[str, str] = field(default_factory=dict)
    """Class of each class folder: the path of the folder, and the name of the class."""
    part: dict[str, Part] = field(default_factory=dict)
    """Part of each class folder, if there are parts."""
    fold: dict[str, str] = field(default_factory=dict)
    """Fold of each class folder, if there are folds."""
    found: dict[str, str] = field(default_factory=dict)
    """Where classes, parts and folds were found."""
    doubts: list[Doubt] = field(default_factory=list)
    """Observations that the user should settle."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, sorted."""
        return tuple(sorted(set(self.label.values())))


def understand(listing: Listing, claimed: Callable[[int], bool]) -> Layout:
    """Find out which folders are classes, parts and folds.

    Args:
        listing: The images, without masks.
        claimed: Function that returns True if data.group_pattern names the folder at a level,
            counted from 0 below the root, so that it cannot be the class.

    Raises:
        UserError: There is no class folder, or it cannot be told which folders are the classes.
    """
    base = _descend(listing, "")
    tops = listing.holders(base)
    _refuse_flat(listing, base, tops)
    names = {top: split_id(top)[1] for top in tops}
    parts, folds = parts_of(names), folds_of(names)
    inner = {top: listing.holders(_descend(listing, top)) for top in tops}
    subs = {top: [split_id(path)[1] for path in inner[top]] for top in tops}
    level = base.count("/") + 1 if base else 0
    if len(folds) == len(tops) > 1:
        layout = _with_folds(listing, inner, folds)
        _check_inside(listing, inner, claimed)
    elif len(parts) == len(tops) and any(inner.values()):
        _check_inside(listing, inner, claimed)
        layout = _with_parts(listing, inner, parts)
    elif all(map(_all_parts, subs.values())):
        layout = _parts_below(listing, inner)
    elif all(inner.values()) and claimed(level):
        below = [listing.holders(_only_branch(listing, top)) or inner[top] for top in tops]
        layout = Layout({path: split_id(path)[1] for paths in below for path in paths})
        layout.found["classes"] = "folders in those that data.group_pattern names"
    elif any(inner[top] and not listing.images.get(top) for top in set(parts) | set(folds)):
        _refuse_mixed_parts(names, set(parts), set(folds), level)
    else:
        _refuse_training_as_class(names, parts)
        if not claimed(level + 1):
            _refuse_other_parts(subs)
        _check_depth(listing, base, tops, claimed(level + 1))
        layout = Layout(names)
        layout.found["classes"] = f"folders in {base or 'data.root'}"
        layout.doubts += _doubt_names(names)
    _note_outside(listing, layout)
    _check_without_images(listing, layout)
    _check_classes(listing, layout)
    return layout


def understand_without_classes(listing: Listing) -> Layout:
    """Find the parts or folds of images whose classes a table gives.

    Args:
        listing: The images.

    Returns:
        The topmost folders in the place of classes, with their parts or folds if all have one.
    """
    tops = listing.holders(_descend(listing, ""))
    names = {top: split_id(top)[1] for top in tops}
    layout = Layout(names)
    parts, folds = parts_of(names), folds_of(names)
    if len(tops) > 1 and len(set(parts.values())) == len(tops) and "train" in parts.values():
        layout.part = parts
        layout.found["parts"] = f"the folders {enumerate_some(tops)}"
    elif len(tops) > 1 and len(set(folds.values())) == len(tops):
        layout.fold = folds
        layout.found["folds"] = f"{len(folds)}, from the folders {enumerate_some(tops)}"
    return layout


def folds_of(names: Mapping[str, str]) -> dict[str, str]:
    """Return the folds that folders such as `fold_3` stand for, by the folders' paths."""
    matches = {path: _FOLD.fullmatch(name.strip()) for path, name in names.items()}
    return {path: match[1].lstrip("0") or "0" for path, match in matches.items() if match}


def _all_parts(names: Sequence[str]) -> bool:
    """Return True if there are names and all of them stand for parts."""
    return bool(names) and len(parts_of({name: name for name in names})) == len(names)


def _descend(listing: Listing, folder: str) -> str:
    """Return the folder that holds several folders: below containers such as `images`."""
    while folder not in listing.images:
        inside = listing.holders(folder)
        if len(inside) != 1:
            break
        (only,) = inside
        below = {path: split_id(path)[1] for path in listing.holders(only)}
        above_parts = len(below) > 1 and len(parts_of(below) or folds_of(below)) == len(below)
        name = split_id(only)[1]
        contains = name.lower() in _CONTAINERS or named_as_images(name)
        if not below or not (above_parts or contains):
            break
        folder = only
    return folder


def _refuse_flat(listing: Listing, base: str, tops: Sequence[str]) -> None:
    """Refuse a folder without class folders.

    Raises:
        UserError: There are no class folders, but images; or nothing at all.
    """
    where = listing.root / base
    names = {top: split_id(top)[1] for top in tops}
    parts = parts_of(names)
    flat = bool(tops) and len(parts) == len(tops) and not any(map(listing.holders, tops))
    if tops and not flat:
        return
    n = listing.count(base)
    table = "give a table with the columns path and label as data.csv, or a folder for each class"
    boxes = sum(
        name.endswith((".txt", ".xml", ".json")) for n in listing.others.values() for name in n
    )
    note = f"; {counted(boxes, 'annotation file')} beside, as of boxes" if boxes else ""
    if not n:
        formats = sum(map(len, listing.others.values()))
        other = f", but {counted(formats, 'other file')}" if formats else ""
        raise UserError(f"data.root: there is no image below {clip_path(where)}{other}; {table}")
    if flat:
        shown = ", ".join(clip(name, 20) for name in sorted(names.values())[:3])
        raise UserError(
            f"data.root: no classes: {clip(where, 50)} has parts ({shown}) with "
            f"{counted(n, 'image')} and no class folders{note}; {table}"
        )
    raise UserError(
        f"data.root: no classes: {counted(n, 'image')} directly in {clip(where, 50)}, such as "
        f"'{clip(next(listing.ids(base)))}', and no class folders{note}; {table}"
    )


def _with_parts(
    listing: Listing, inner: Mapping[str, Sequence[str]], parts: Mapping[str, Part]
) -> Layout:
    """Understand parts with class folders in them."""
    _refuse_double(parts)
    classes = _classes_in(listing, inner, "part")
    layout = _classes_below(inner)
    layout.part = {path: parts[top] for top, paths in inner.items() for path in paths}
    trained = next((classes[top] for top in inner if parts[top] == "train"), None)
    if trained is None:
        raise UserError(
            f"data.root: there are parts ({enumerate_some(list(inner))}) but none for training; "
            "give the folder that holds train as well"
        )
    for top, own in classes.items():
        if unknown := sorted(own - trained):
            raise UserError(
                f"data.root: '{clip(top)}' has the class folder '{clip(unknown[0])}', which the "
                "training part lacks; the classes of all parts must agree: move it out, or rename "
                "it"
            )
    _describe_parts(listing, layout)
    return layout


def _parts_below(listing: Listing, inner: Mapping[str, Sequence[str]]) -> Layout:
    """Understand class folders with parts in them."""
    layout = Layout()
    for top, paths in inner.items():
        parts = parts_of({path: split_id(path)[1] for path in paths})
        _refuse_double(parts)
        for path in paths:
            if len(listing.holders(_descend(listing, path))) > 1:
                raise UserError(
                    f"data.root: '{clip(path)}' looks like a part and has folders in it: if those "
                    f"are the classes, give {clip_path(listing.root / top)} as data.root"
                )
            layout.label[path] = split_id(top)[1]
            layout.part[path] = parts[path]
        if "train" not in parts.values():
            raise UserError(
                f"data.root: the class '{clip(split_id(top)[1])}' has the parts "
                f"{enumerate_some([split_id(path)[1] for path in paths])}, but no training part; "
                "add it, or move the class out"
            )
    layout.found["classes"] = "folders above those of the parts"
    _describe_parts(listing, layout)
    return layout


def _describe_parts(listing: Listing, layout: Layout) -> None:
    """Note the parts' sizes, and what they lack."""
    folders: dict[Part, list[str]] = defaultdict(list)
    for path, part in layout.part.items():
        folders[part].append(path)
    sizes = {part: sum(map(listing.count, paths)) for part, paths in folders.items()}
    shown = [f"{part} {sizes[part]}" for part in get_args(Part) if part in sizes]
    example = {part: paths[0] for part, paths in folders.items()}
    layout.found["parts"] = f"{', '.join(shown)} images, from folders such as {example['train']}"
    option = "data.split.protocol"
    if "test" not in folders:
        layout.doubts.append(
            Doubt(
                f"the folders have the parts {' and '.join(folders)}, but no test part: a grouped "
                "split draws all parts anew from all images",
                option,
            )
        )
    for part, paths in folders.items():
        lacking = sorted(set(layout.label.values()) - {layout.label[path] for path in paths})
        if lacking:
            more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
            layout.doubts.append(
                Doubt(f"the part {part} has no image of class '{lacking[0]}'{more}", option)
            )


def _with_folds(
    listing: Listing, inner: Mapping[str, Sequence[str]], folds: Mapping[str, str]
) -> Layout:
    """Understand folds with class folders in them."""
    for top, paths in inner.items():
        names = {path: split_id(path)[1] for path in paths}
        if _all_parts(list(names.values())):
            raise UserError(
                f"data.root: the fold '{clip(top)}' has parts of its own "
                f"({enumerate_some(list(names.values()))}), so that images are there several "
                "times; give the images once, with a table as data.csv that has the column fold"
            )
        if not names:
            raise UserError(
                f"data.root: the fold '{clip(top)}' has no class folders; give a folder for each "
                "class in it, or a table as data.csv"
            )
    if len(set(folds.values())) < len(folds):
        twice = [path for path, fold in folds.items() if list(folds.values()).count(fold) > 1]
        raise UserError(
            f"data.root: the folders '{clip(twice[0])}' and '{clip(twice[1])}' are the same fold; "
            "join them, or move one out"
        )
    _classes_in(listing, inner, "fold")
    layout = _classes_below(inner)
    layout.fold = {path: folds[top] for top, paths in inner.items() for path in paths}
    layout.found["folds"] = f"{len(folds)}, from the folders {', '.join(inner)}"
    return layout


def _classes_below(inner: Mapping[str, Sequence[str]]) -> Layout:
    """Return the layout of class folders in parts or folds, whose meaning is still to be added."""
    layout = Layout({path: split_id(path)[1] for paths in inner.values() for path in paths})
    layout.found["classes"] = f"folders in {', '.join(f'{top}/' for top in inner)}"
    return layout


def _classes_in(
    listing: Listing, inner: Mapping[str, Sequence[str]], noun: str
) -> dict[str, set[str]]:
    """Return the names of the class folders in each part or fold.

    Raises:
        UserError: One holds images and no class folders.
    """
    for top, paths in inner.items():
        if not paths:
            raise UserError(
                f"data.root: the {noun} '{clip(top)}' has {counted(listing.count(top), 'image')} "
                "and no class folders, while others have them; move it out, or sort its images"
            )
    return {top: {split_id(path)[1] for path in paths} for top, paths in inner.items()}


def _refuse_double(parts: Mapping[str, Part]) -> None:
    first: dict[Part, str] = {}
    for path, part in parts.items():
        other = first.setdefault(part, path)
        if other != path:
            raise UserError(
                f"data.root: the folders '{clip(other)}' and '{clip(path)}' both look like the "
                f"part {part}; join them, or move one out"
            )


def _refuse_mixed_parts(
    names: Mapping[str, str], parts: set[str], folds: set[str], level: int
) -> None:
    first = sorted(parts | folds)[0]
    kind = "part" if first in parts else "fold"
    others = [name for top, name in names.items() if top not in parts | folds]
    other = others[0] if others else list(names.values())[-1]
    if kind == "fold":
        remedy = f"or name the folds with data.group_pattern: '{_pattern(level, 'fold')}'"
    else:
        remedy = "rename it train, val or test if it is one"
    raise UserError(
        f"data.root: '{clip(names[first])}' looks like a {kind} with folders in it, but "
        f"'{clip(other)}' beside it does not: move out what is no {kind}, {remedy}"
    )


def _refuse_training_as_class(names: Mapping[str, str], parts: Mapping[str, Part]) -> None:
    """Refuse a folder of training images beside folders that are no parts.

    Raises:
        UserError: There is one.
    """
    training = [names[top] for top, part in parts.items() if part == "train"]
    others = [name for top, name in names.items() if top not in parts]
    if training and others:
        raise UserError(
            f"data.root: '{clip(training[0])}' looks like the training part, and "
            f"'{clip(others[0])}' beside it like no part: if it is one, rename it val or test; "
            "sort the images of each part into a folder for each class, or give a table (data.csv)"
        )


def _refuse_other_parts(subs: Mapping[str, Sequence[str]]) -> None:
    """Refuse class folders that hold the training part and folders that are no parts.

    Args:
        subs: The names of the folders in each class folder.

    Raises:
        UserError: There is one.
    """
    for top, names in subs.items():
        parts = parts_of({name: name for name in names})
        others = [name for name in names if name not in parts]
        if "train" in parts.values() and others:
            raise UserError(
                f"data.root: '{clip(top)}' holds the training part and '{clip(others[0])}', which "
                "looks like no part: rename it val or test if it is one, or move it out"
            )


def _pattern(level: int, role: str) -> str:
    """Return a `data.group_pattern` for the folders at a level, counted from 0 below the root."""
    above = "[^/]+/" if level == 1 else f"(?:[^/]+/){{{level}}}" if level else ""
    return f"^{above}(?P<{role}>[^/]+)/"


def _check_depth(
    listing: Listing, base: str, tops: Sequence[str], claimed: bool, *, in_part: bool = False
) -> None:
    """Refuse folders of which it cannot be told whether they are the classes.

    Args:
        listing: The images.
        base: The folder that holds them.
        tops: The folders.
        claimed: True if data.group_pattern names the folders in them.
        in_part: True if they are in a part or a fold.

    Raises:
        UserError: Some hold images and others hold folders, or several hold folders of the same
            names, and data.group_pattern does not name those.
    """
    if claimed:
        return
    inner = {top: listing.holders(_only_branch(listing, top)) for top in tops}
    pure = [top for top in tops if len(inner[top]) > 1 and top not in listing.images]
    flat = [top for top in tops if top in listing.images]
    if pure and flat:
        raise UserError(
            f"data.root: '{clip(flat[0])}' holds images and '{clip(pure[0])}' holds folders of "
            f"images: which are the classes? Give {clip_path(listing.root / pure[0])} as "
            "data.root, move one out, or list the images in a table (data.csv)"
        )
    owners: dict[str, list[str]] = defaultdict(list)
    for top, paths in inner.items():
        for path in paths:
            owners[same_name(split_id(path)[1])].append(top)
    shared = [name for name, held in owners.items() if len(held) > 1]
    if not shared or all(len(paths) < 2 for paths in inner.values()):
        return
    first, second = owners[shared[0]][:2]
    inside = [split_id(path)[1] for path in inner[first]]
    name = next(each for each in inside if same_name(each) == shared[0])
    patterns = _suggest_patterns(base, [split_id(top)[1] for top in tops], inside, in_part)
    raise UserError(
        f"data.root: '{clip(first, 14)}' and '{clip(second, 14)}' both hold '{clip(name, 14)}': "
        f"which is the class? Rename parts train, test, or give data.group_pattern: {patterns}"
    )


def _suggest_patterns(base: str, outer: Sequence[str], inside: Sequence[str], in_part: bool) -> str:
    """Return the patterns that name one of two levels of folders, with what each of them means."""
    level = base.count("/") + 1 if base else 0
    inner = f"'{_pattern(level + 1, 'group')}' if the inner is a patient"
    if in_part:
        return f"{inner}, or list the images in a table (data.csv)"
    as_patient = "(?P<group>[^/]+) if a patient"
    if _look_like_folds(outer):
        return f"'{_pattern(level, 'fold')}' if the outer is a fold, {as_patient}; {inner}"
    if _look_like_folds(inside):
        return f"'{_pattern(level + 1, 'fold')}' if the inner is a fold, {as_patient}"
    return (
        f"'{_pattern(level, 'group')}' if the outer is a patient, "
        f"(?P<domain>[^/]+) if a lab, {inner}"
    )


def _look_like_folds(names: Sequence[str]) -> bool:
    """Return True if most names are numbers, or usual words for folds with a number or letter."""
    n = sum(_FOLD_LIKE.fullmatch(name) is not None for name in names)
    return n > 1 and 2 * n > len(names)


def _check_inside(
    listing: Listing, inner: Mapping[str, Sequence[str]], claimed: Callable[[int], bool]
) -> None:
    """Refuse parts or folds of which it cannot be told which folders in them are the classes.

    Raises:
        UserError: As `_check_depth`.
    """
    for paths in filter(None, inner.values()):
        base = split_id(paths[0])[0]
        below = claimed(base.count("/") + 2)
        _check_depth(listing, base, paths, below, in_part=True)


def _only_branch(listing: Listing, folder: str) -> str:
    """Return the first folder below, or the folder itself, that holds images or several folders."""
    while folder not in listing.images and len(inside := listing.holders(folder)) == 1:
        (folder,) = inside
    return folder


def _doubt_names(names: Mapping[str, str]) -> list[Doubt]:
    """Return doubts about folders that are taken for classes in spite of their names."""
    odd = [n for n in names.values() if part_word(n) or n.lower() in _ODD or _FOLD.fullmatch(n)]
    return [
        Doubt(
            f"the folder '{name}' is taken for a class, as it holds images and no class folders; "
            "move it out if it is none"
        )
        for name in odd
    ]


def _note_outside(listing: Listing, layout: Layout) -> None:
    """Count the images that are in no class folder, and remove them from the list."""
    inside = {each for path in layout.label for each in listing.below(path)}
    for folder in [each for each in listing.images if each not in inside]:
        for name in listing.images.pop(folder):
            listing.leave_out(OUTSIDE, name)


def _check_without_images(listing: Listing, layout: Layout) -> None:
    """Refuse an empty folder beside the class folders, and note one that has other files alone.

    Raises:
        UserError: There is one without any file, or with pictures in other formats.
    """
    parents = {split_id(path)[0] for path in layout.label}
    if layout.part or layout.fold:
        parents |= {split_id(parent)[0] for parent in parents}
    for parent in sorted(parents):
        for name in listing.folders[parent]:
            path = join(parent, name)
            if listing.has_images(path):
                continue
            files = [
                join(each, n) for each in listing.below(path) for n in listing.others.get(each, ())
            ]
            if pictures := _unread_pictures(listing, path, files):
                raise UserError(
                    f"the folder '{clip(path)}' has {counted(len(pictures), 'picture')} in "
                    f"formats that are not read, such as '{clip(split_id(pictures[0])[1])}'; "
                    "convert them to PNG or TIFF, or move the folder out"
                )
            if name in layout.classes:  # that a part lacks the class is noted elsewhere
                continue
            if listing.filled.isdisjoint(listing.below(path)) and not named_as_masks(name):
                raise UserError(
                    f"class '{clip(path)}' has no image: its folder is empty; fill it, or remove it"
                )
            if files:  # else it has held masks
                layout.doubts.append(
                    Doubt(f"the folder '{path}' has no image and is taken for no class")
                )


def _unread_pictures(listing: Listing, folder: str, files: Sequence[str]) -> Sequence[str]:
    """Return the files of a folder without images that are pictures nonetheless."""
    if named_as_masks(split_id(folder)[1]):
        return []
    found = [path for path in files if is_picture(path) or path.lower().endswith(_ARRAYS)]
    if found:
        return found
    bare = [path for path in files if "." not in split_id(path)[1]]
    return bare if bare and area(listing.root / bare[0]) else []


def is_picture(name: str) -> bool:
    """Return True for a picture in a format that is not read."""
    return name.lower().endswith(_PICTURES)


_PICTURES = (
    *(".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".svs", ".ndpi", ".czi"),
    *(".lif", ".nd2", ".vsi", ".dcm", ".nii", ".nii.gz", ".mrxs", ".scn", ".oib", ".oif", ".lsm"),
    *(".cr2", ".nef", ".arw", ".dng", ".raw", ".psd", ".exr", ".hdr", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".tga", ".dib", ".zarr", ".bif", ".ims", ".stk"),
)


_ARRAYS = (".npy", ".npz", ".mat", ".h5", ".hdf5")


def _check_classes(listing: Listing, layout: Layout) -> None:
    """Refuse class names that differ in nothing that counts, and fewer than two classes.

    Raises:
        UserError: There are such.
    """
    first: dict[str, tuple[str, str]] = {}
    for path, name in layout.label.items():
        other, other_path = first.setdefault(same_name(name), (name, path))
        if other != name:
            raise UserError(
                f"the class folders '{clip(other_path)}' and '{clip(path)}' differ only by case, "
                "blanks or Unicode form; give them one name, or names that differ"
            )
    if len(layout.label) == 1:
        (only,) = layout.label
        if inside := listing.holders(only):
            raise UserError(
                f"at least two classes are needed; found one, '{clip(only)}': if the folders in "
                f"it, such as '{clip(split_id(inside[0])[1])}', are the classes, give "
                f"{clip_path(listing.root / only)} as "
                "data.root"
            )
    refuse_one_class(layout.classes, str(listing.root))
    stripped: dict[str, tuple[str, str]] = {}
    for name in layout.classes:
        words = re.findall(r"[^\W_]+", name.lower())
        part = [word for word in words if word in PART_WORDS]
        rest = " ".join(word for word in words if word not in PART_WORDS)
        if len(part) == 1 and rest:
            other_part, other_name = stripped.setdefault(rest, (part[0], name))
            if other_part != part[0]:
                raise UserError(
                    f"the class folders '{clip(other_name)}' and '{clip(name)}' look like two "
                    "parts of one class; give folders for the parts, with the classes in them"
                )


def refuse_one_class(classes: Sequence[str], where: str) -> None:
    """Refuse fewer than two classes.

    Raises:
        UserError: There are fewer.
    """
    if len(classes) < 2:
        names = clip(", ".join(classes) or "none")
        raise UserError(
            f"at least two classes are needed; found {names} in {clip(where, 60)}: give a folder "
            "that holds one folder for each class (data.root), or a table (data.csv)"
        )
