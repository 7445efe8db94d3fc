"""Meaning of the levels of folders: classes, and parts or folds above or below them."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from cellbench.data.reading.listing import Listing, join, same_name, split_id
from cellbench.data.reading.masks import named_as_images, named_as_masks
from cellbench.data.reading.peek import area
from cellbench.data.reading.reading import Doubt
from cellbench.data.table import Part
from cellbench.utils.errors import UserError, counted

OUTSIDE = "images outside the class folders"

_PARTS: Mapping[str, Part | None] = {
    **dict.fromkeys(("train", "training", "trn", "trainset", "trainingset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "valset"), "val"),
    **dict.fromkeys(("validationset", "devset"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "testset", "holdout", "heldout"), "test"),
    **dict.fromkeys(("eval", "evaluation"), None),
}
"""Part that a word in a folder's name stands for; None if it depends on the other folders."""
_FILLERS = frozenset(
    {"set", "data", "dataset", "images", "image", "imgs", "img", "split", "part", "the", "folder"}
)
_CONTAINERS = frozenset(
    {
        *("images", "image", "imgs", "img", "data", "dataset", "datasets", "raw", "original"),
        *("originals", "pictures", "jpg", "png", "tif", "tiff", "bmp", "train", "all"),
    }
)
"""Names of folders that hold the folders of the classes, and are no class themselves."""
_FOLD = re.compile(r"(?:k|cv)?[-_ ]*folds?[-_ ]*([a-z]|\d+)", re.IGNORECASE)
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
        layout = _with_parts(listing, inner, parts)
        _check_inside(listing, inner, claimed)
    elif all(map(_all_parts, subs.values())):
        layout = _parts_below(listing, inner)
    elif any(inner[top] and not listing.images.get(top) for top in set(parts) | set(folds)):
        _refuse_mixed_parts(names, set(parts) | set(folds), tops)
    elif all(inner.values()) and claimed(level):
        below = [listing.holders(_only_branch(listing, top)) or inner[top] for top in tops]
        layout = Layout({path: split_id(path)[1] for paths in below for path in paths})
        layout.found["classes"] = "folders in those that data.group_pattern names"
    else:
        _check_depth(listing, base, tops, claimed(level + 1))
        layout = Layout(names)
        layout.found["classes"] = f"folders in {base or 'data.root'}"
        layout.doubts += _doubt_names(names)
    _note_outside(listing, layout)
    _check_without_images(listing, layout)
    _check_classes(listing, layout)
    return layout


def parts_of(names: Mapping[str, str]) -> dict[str, Part]:
    """Return the parts of the official split that folders stand for.

    Args:
        names: The name of each folder, by its path.

    Returns:
        The part of each folder that stands for one, by its path.
    """
    words = {path: _part_word(name) for path, name in names.items()}
    known = {path: part for path, word in words.items() if word and (part := _PARTS[word])}
    others: Part = "val" if "test" in known.values() else "test"
    undecided = {path: others for path, word in words.items() if word and _PARTS[word] is None}
    return known | undecided


def folds_of(names: Mapping[str, str]) -> dict[str, str]:
    """Return the folds that folders such as `fold_3` stand for, by the folders' paths."""
    matches = {path: _FOLD.fullmatch(name.strip()) for path, name in names.items()}
    return {path: match[1].lstrip("0") or "0" for path, match in matches.items() if match}


def _all_parts(names: Sequence[str]) -> bool:
    """Return True if there are names and all of them stand for parts."""
    return bool(names) and len(parts_of({name: name for name in names})) == len(names)


def _part_word(name: str) -> str | None:
    """Return the one word of a name that stands for a part, if it has no others."""
    words = [word for word in re.findall(r"[^\W\d_]+", name.lower()) if word not in _FILLERS]
    return words[0] if len(words) == 1 and words[0] in _PARTS else None


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
        raise UserError(f"data.root: there is no image below {where}{other}; {table}")
    if flat:
        shown = ", ".join(sorted(names.values()))
        raise UserError(
            f"data.root: no classes: {where} has parts ({shown}) with {counted(n, 'image')} and no "
            f"class folders{note}; {table}"
        )
    raise UserError(
        f"data.root: no classes: {counted(n, 'image')} directly in {where}, such as "
        f"'{next(listing.ids(base))}', and no class folders{note}; {table}"
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
            f"data.root: there are parts ({', '.join(inner)}) but none for training; give the "
            "folder that holds train as well"
        )
    for top, own in classes.items():
        if unknown := sorted(own - trained):
            raise UserError(
                f"data.root: '{top}' has the class folder '{unknown[0]}', which the training part "
                "lacks; the classes of all parts must agree: move it out, or rename it"
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
                    f"data.root: '{path}' looks like a part and has folders in it: if those are "
                    f"the classes, give {listing.root / top} as data.root"
                )
            layout.label[path] = split_id(top)[1]
            layout.part[path] = parts[path]
        if "train" not in parts.values():
            raise UserError(
                f"data.root: the class '{split_id(top)[1]}' has the parts "
                f"{', '.join(split_id(path)[1] for path in paths)}, but no training part; add it, "
                "or move the class out"
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
                f"data.root: the fold '{top}' has parts of its own ({', '.join(names.values())}), "
                "so that images are there several times; give the images once, with a table as "
                "data.csv that has the column fold"
            )
        if not names:
            raise UserError(
                f"data.root: the fold '{top}' has no class folders; give a folder for each class "
                "in it, or a table as data.csv"
            )
    if len(set(folds.values())) < len(folds):
        raise UserError(f"data.root: two of the folders {', '.join(folds)} are the same fold")
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
                f"data.root: the {noun} '{top}' has {counted(listing.count(top), 'image')} and no "
                "class folders, while others have them; move it out, or sort its images"
            )
    return {top: {split_id(path)[1] for path in paths} for top, paths in inner.items()}


def _refuse_double(parts: Mapping[str, Part]) -> None:
    first: dict[Part, str] = {}
    for path, part in parts.items():
        other = first.setdefault(part, path)
        if other != path:
            raise UserError(
                f"data.root: the folders '{other}' and '{path}' both look like the part {part}; "
                "join them, or move one out"
            )


def _refuse_mixed_parts(names: Mapping[str, str], known: set[str], tops: Sequence[str]) -> None:
    first = sorted(known)[0]
    others = [names[top] for top in tops if top not in known]
    raise UserError(
        f"data.root: '{names[first]}' looks like a part or fold with folders in it, but "
        f"'{others[0] if others else names[tops[-1]]}' beside it does not: move what is no part "
        "out, or give one of the folders as data.root"
    )


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
            f"data.root: '{flat[0]}' holds images and '{pure[0]}' holds folders of images: which "
            f"are the classes? Give {listing.root / pure[0]} as data.root, move one out, or list "
            "the images in a table (data.csv)"
        )
    owners: dict[str, list[str]] = defaultdict(list)
    for top, paths in inner.items():
        for path in paths:
            owners[same_name(split_id(path)[1])].append(top)
    shared = [name for name, held in owners.items() if len(held) > 1]
    if not shared or all(len(paths) < 2 for paths in inner.values()):
        return
    first, second = owners[shared[0]][:2]
    depth = base.count("/") + 1 if base else 0
    above = f"(?:[^/]+/){{{depth}}}" if depth else ""
    inner_groups = f"'^{above}[^/]+/(?P<group>[^/]+)/' if the inner folders are patients"
    if in_part:
        patterns = f"{inner_groups}, or list the images in a table (data.csv)"
    else:
        patterns = (
            f"'^{above}(?P<group>[^/]+)/' if '{first[-30:]}' is a patient, (?P<domain>[^/]+) if a "
            f"laboratory, {inner_groups}"
        )
    raise UserError(
        f"data.root: '{first[-30:]}' and '{second[-30:]}' both hold '{shared[0][:30]}': which "
        f"level is the class? Name the other with data.group_pattern: {patterns}"
    )


def _check_inside(
    listing: Listing, inner: Mapping[str, Sequence[str]], claimed: Callable[[int], bool]
) -> None:
    """Refuse parts or folds of which it cannot be told which folders in them are the classes.

    Raises:
        UserError: As `_check_depth`.
    """
    for paths in inner.values():
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
    odd = [n for n in names.values() if _part_word(n) or n.lower() in _ODD or _FOLD.fullmatch(n)]
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
                    f"the folder '{path}' has {counted(len(pictures), 'picture')} in formats that "
                    f"are not read, such as '{split_id(pictures[0])[1]}'; convert them to PNG or "
                    "TIFF, or move the folder out"
                )
            if name in layout.classes:  # that a part lacks the class is noted elsewhere
                continue
            if listing.filled.isdisjoint(listing.below(path)) and not named_as_masks(name):
                raise UserError(
                    f"class '{path}' has no image: its folder is empty; fill it, or remove it"
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
                f"the class folders '{other_path}' and '{path}' differ only by case, blanks or "
                "Unicode form; give them one name, or names that differ"
            )
    if len(layout.label) == 1:
        (only,) = layout.label
        if inside := listing.holders(only):
            raise UserError(
                f"at least two classes are needed; found one, '{only}': if the folders in it, such "
                f"as '{split_id(inside[0])[1]}', are the classes, give {listing.root / only} as "
                "data.root"
            )
    refuse_one_class(layout.classes, str(listing.root))
    stripped: dict[str, tuple[str, str]] = {}
    for name in layout.classes:
        words = re.findall(r"[^\W_]+", name.lower())
        part = [word for word in words if word in _PARTS]
        rest = " ".join(word for word in words if word not in _PARTS)
        if len(part) == 1 and rest:
            other_part, other_name = stripped.setdefault(rest, (part[0], name))
            if other_part != part[0]:
                raise UserError(
                    f"the class folders '{other_name}' and '{name}' look like two parts of one "
                    "class; give folders for the parts, with the classes in them"
                )


def refuse_one_class(classes: Sequence[str], where: str) -> None:
    """Refuse fewer than two classes.

    Raises:
        UserError: There are fewer.
    """
    if len(classes) < 2:
        names = ", ".join(classes) or "none"
        raise UserError(
            f"at least two classes are needed; found {names} in {where}: give a folder that holds "
            "one folder for each class (data.root), or a table (data.csv)"
        )
