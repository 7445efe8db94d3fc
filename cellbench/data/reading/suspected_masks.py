"""Files that look like masks under other names, and photographs under the names of masks."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from cellbench.data.mask_files import read_content
from cellbench.data.reading.listing import Listing, join, split_id, stem_of, suffix_of
from cellbench.data.reading.mask_patterns import BY_TABLE, find_pattern
from cellbench.data.reading.peek import looks_like_mask, looks_like_photograph, spread
from cellbench.utils.errors import UserError, short_name

_PLACES = re.compile(r"[-_. ]+|(?<=\d)(?=[^\W\d_])")
"""Places at which a name may be divided into that of an image and a word."""

_MAX_LOOKS = 120
"""Number of folders, of all together, that are looked into to tell masks from images."""

_KIND = 4
"""Number of files in a folder from which their names are a kind of their own."""

TRIED = 6
"""Number of files that are looked into to tell masks from images."""


def refuse_photographs(listing: Listing, named: Iterable[Sequence[str]]) -> None:
    """Refuse files that are named as masks and cannot be any; a few of each name are looked into.

    Args:
        listing: The files.
        named: Ids of the files of each kind of name.

    Raises:
        UserError: There are some.
    """
    for found in named:
        looked = spread(found, TRIED)
        wrong = [p for p in looked if looks_like_photograph(listing.root / p, read_content)]
        if not wrong:
            continue
        several = f" and {len(found) - 1} others like it are" if len(found) > 1 else " is"
        if len(wrong) == len(looked):
            raise UserError(
                f"data.root: '{short_name(wrong[0])}'{several} named as masks of images and look "
                "like photographs: if they are images, give them other names; if not, move them out"
            )
        raise UserError(
            f"data.root: '{short_name(wrong[0])}' is named as a mask, but looks like a photograph "
            f"({len(wrong)} of {len(looked)} that were looked into): replace it, or move it out"
        )


def refuse_mirrored(listing: Listing) -> None:
    """Refuse folders with the look of masks whose files are named as those in a folder beside.

    Folders of classes, directly in the root, may look so, and are doubtful at most.

    Raises:
        UserError: There is one; the line says how its files are taken as masks.
    """
    looks = 0
    for parent in listing.folders:
        inside = listing.holders(parent)
        for path in inside if inside[1:] else ():
            first = next(listing.ids(path))
            if looks == _MAX_LOOKS or (not parent and split_id(first)[0] == path):
                continue
            looks += 1
            if looks_like_mask(listing.root / first, read_content):
                _refuse_if_mirrored(listing, path, [each for each in inside if each != path])


def _refuse_if_mirrored(listing: Listing, folder: str, others: Sequence[str]) -> None:
    """Refuse a folder with the look of masks if most files are named as those in another one.

    Raises:
        UserError: They are.
    """
    own = stems_below(listing, folder)
    if not all_look_like_masks(listing, list(own.values())):
        return
    for other in others:
        images = stems_below(listing, other)
        pairs = {images[stem]: own[stem] for stem in sorted(own.keys() & images.keys())}
        if 2 * len(pairs) > len(own) and not all_look_like_masks(listing, list(pairs)):
            raise UserError(
                f"data.root: the files in '{short_name(folder, 40)}' are named as those in "
                f"'{short_name(other, 40)}' and have as few colours as masks; take them as masks "
                f"with {find_pattern(pairs)}, or move them out"
            )


def refuse_unknown_names(listing: Listing) -> None:
    """Refuse images that are named after others and look like their masks.

    Raises:
        UserError: There are some; the line gives the pattern that takes them as masks.
    """
    for folder, names in sorted(listing.images.items()):
        own = {stem_of(name): name for name in names}
        alike: dict[str, list[str]] = defaultdict(list)
        bare_of: dict[str, str] = {}
        for name in names:
            if found := _named_after(stem_of(name), own):
                bare, way = found
                bare_of[name] = own[bare]
                alike[way + suffix_of(name)].append(name)
        ways = [each for each in alike.values() if len(each) >= min(TRIED, len(names) / 4)]
        flat = []
        if len(ways) > 1:  # else nothing is read here that is read below as well
            flat = [
                each
                for each in ways
                if all_look_like_masks(listing, [join(folder, n) for n in each])
            ]
        if len(flat) > 1:
            first, second = (short_name(join(folder, ids[0])) for ids in flat[:2])
            raise UserError(
                f"data.root: images have several masks, as '{first}' and '{second}': merge them "
                "into one mask per image with a value for each region, or move all but one kind out"
            )
        for found_names in ways:
            if len(found_names) < min(TRIED, len(names) / 3):
                continue
            paths = [listing.root / folder / name for name in found_names[:TRIED]]
            if all(looks_like_mask(path, read_content) for path in paths):
                pairs = {join(folder, bare_of[name]): join(folder, name) for name in found_names}
                raise UserError(
                    f"data.root: '{short_name(join(folder, found_names[0]))}' and "
                    f"{len(found_names) - 1} more in its folder are named after other images and "
                    f"have as few colours as masks; give {find_pattern(pairs)}, or move them out"
                )


def refuse_mixed(listing: Listing) -> None:
    """Refuse folders in which all files of one kind of name look like masks, and others do not.

    The kind of a name is the name without its numbers: `12_DAPI.tif` beside `12_label.tif`.

    Raises:
        UserError: There is one.
    """
    looks = 0
    for folder, names in sorted(listing.images.items()):
        kinds: dict[str, list[str]] = defaultdict(list)
        for name in names:
            kinds[re.sub(r"\d+", "#", name)].append(join(folder, name))
        large = [ids for ids in kinds.values() if len(ids) >= _KIND]
        if len(large) < 2 or len(large) > TRIED:
            continue
        looks += len(large)
        if looks > _MAX_LOOKS:
            return
        first_flat = [looks_like_mask(listing.root / ids[0], read_content) for ids in large]
        if False not in first_flat:
            continue
        image = large[first_flat.index(False)][0]
        for ids in (ids for ids, flat in zip(large, first_flat, strict=True) if flat):
            if all_look_like_masks(listing, ids):
                raise UserError(
                    f"data.root: '{short_name(ids[0])}' and {len(ids) - 1} more of such names have "
                    f"as few colours as masks, and '{short_name(image, 40)}' beside them has not: "
                    f"move them out, or give {BY_TABLE}"
                )


def _named_after(stem: str, own: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the stem of the image that a file is named after, and the way; None if none is.

    Args:
        stem: The file's stem, which begins or ends with the image's; the rest has a letter.
        own: The stems of all files in the folder.
    """
    for match in reversed(list(_PLACES.finditer(stem))):
        rest = stem[match.start() :]
        for bare in (stem[: match.start()], stem[: match.end()]):
            if bare in own and bare != stem and re.search(r"[^\W\d_]", rest):
                return bare, f"X{rest}"
    for match in _PLACES.finditer(stem):
        bare = stem[match.end() :]
        if (
            match.end() > match.start()
            and bare in own
            and re.search(r"[^\W\d_]", stem[: match.end()])
        ):
            return bare, f"{stem[: match.end()]}X"
    return None


def all_look_like_masks(listing: Listing, ids: Sequence[str]) -> bool:
    """Return True if all of a few files that can be judged look like masks."""
    looked = [looks_like_mask(listing.root / each, read_content) for each in spread(ids, TRIED)]
    known = [each for each in looked if each is not None]
    return bool(known) and all(known)


def stems_below(listing: Listing, folder: str) -> dict[str, str]:
    """Return the ids of the images below a folder by their paths from it, without suffix."""
    start = len(folder) + 1
    return {
        join(split_id(path[start:])[0], stem_of(split_id(path)[1])): path
        for path in listing.ids(folder)
    }
