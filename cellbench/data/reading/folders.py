"""Reading of a folder of images: classes, parts, folds, groups and masks."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from cellbench.data.reading.crops import Crops, leave_fields_out
from cellbench.data.reading.file_names import doubt_names
from cellbench.data.reading.groups import (
    apply_pattern,
    compile_pattern,
    level_claims,
    suggest_pattern,
)
from cellbench.data.reading.layout import (
    OUTSIDE,
    Layout,
    is_picture,
    understand,
    understand_without_classes,
)
from cellbench.data.reading.listing import (
    LINKS,
    OTHER_FORMATS,
    Listing,
    join,
    list_folder,
    split_id,
    stem_of,
    suffix_of,
)
from cellbench.data.reading.mask_names import describe_places
from cellbench.data.reading.masks import Masks, take_by_pattern, take_masks
from cellbench.data.reading.npz import find_archive, read_archive
from cellbench.data.reading.peek import looks_like_mask, spread
from cellbench.data.reading.reading import Doubt, FolderOptions, Reading
from cellbench.data.table import Sample
from cellbench.utils.errors import UserError, clip_path, counted

_FEW = 10
"""Number of images below which a class is doubtful."""
_RARE = 50
"""Ratio of the largest to the smallest class from which the numbers are doubtful."""
_LOOKED_INTO = 120
"""Number of images, of all classes together, that are looked into to tell them from masks."""

HOW_TO = "give a folder that holds one folder for each class, or a table as --data.csv"


def read_folder(root: Path, options: FolderOptions) -> Reading:
    """Read a folder of images, or an archive of MedMNIST; only headers are read of the images.

    Args:
        root: The folder, or the archive.
        options: Patterns for masks and groups.

    Raises:
        UserError: It cannot be told what the samples are, or an option does not fit the files.
    """
    archive = find_archive(root)
    if archive is not None:
        return read_archive(archive, options)
    if not root.is_dir():
        shown = clip_path(root)
        what = (
            f"{shown} is a file and no folder" if root.exists() else f"there is no folder {shown}"
        )
        raise UserError(f"data.root: {what}; {HOW_TO}")
    listing = list_folder(root)
    listing.check_names()
    if options.mask_pattern is None:
        masks = take_masks(listing)
    else:
        masks = take_by_pattern(listing, options.mask_pattern)
    ambiguous = masks.settle()
    layout = understand(listing, level_claims(options.pattern, list(listing.ids())))
    crops = leave_fields_out(listing, layout)
    by_folder = {path: list(listing.ids(path)) for path in layout.label}
    samples = _samples(root, by_folder, layout, masks, crops)
    found = dict(layout.found)
    if crops.field_of:
        found["groups"] = (
            f"fields of the crops: {counted(len(set(crops.field_of.values())), 'group')}"
        )
    samples, roles = find_roles(samples, options)
    found |= roles
    suggested: dict[str, object] = {}
    guesses: list[Doubt] = []
    if options.group_pattern is None:
        suggested, guesses = _guess_groups(samples, by_folder)
    found |= {"masks": _describe_masks(samples, masks)} if masks.of else {}
    _count_others(listing)
    doubts = [
        *_doubt_left_out(listing, by_folder),
        *layout.doubts,
        *crops.doubts,
        *ambiguous,
        *_doubt_masks(samples),
        *_doubt_unreadable(listing),
        *_doubt_mask_classes(listing, by_folder),
        *guesses,
        *doubt_names(samples),
        *doubt_numbers(layout.classes, samples),
    ]
    return Reading(
        layout.classes,
        tuple(samples),
        found,
        listing.left_out,
        tuple(doubts),
        options=patterns_given(options),
        suggested=suggested,
        mask_places=describe_places(samples[0].id),
    )


def _guess_groups(
    samples: Sequence[Sample], by_folder: Mapping[str, Sequence[str]]
) -> tuple[dict[str, object], list[Doubt]]:
    """Return options for the groups that names and folders hint at, and doubts.

    Args:
        samples: The samples, some of which may have a group.
        by_folder: Ids of the images below each class folder.
    """
    alone = {sample.id for sample in samples if sample.group is None}
    if not alone:
        return {}, []
    ungrouped = {folder: [id_ for id_ in ids if id_ in alone] for folder, ids in by_folder.items()}
    depths = {folder.count("/") + 1 for folder in by_folder}
    return suggest_groups(ungrouped, depths.pop() if len(depths) == 1 else None)


def read_structure(root: Path, ids: Sequence[str], wanted: Set[str]) -> Reading:
    """Read what the folders tell of the images that a table lists; no image is opened for doubts.

    Args:
        root: The folder.
        ids: Ids of the listed images.
        wanted: Roles that the table leaves open: label, mask, split or fold.

    Returns:
        A sample for each image, with label -1 and without an image file.

    Raises:
        UserError: The label is wanted, and it cannot be told which folders are the classes.
    """
    layout, listing = Layout(), _list_ids(root, ids)
    if wanted & {"label", "split", "fold"}:
        try:
            layout = understand(listing, lambda level: False)
        except UserError:
            if "label" in wanted:
                raise
            layout = understand_without_classes(listing)
    masks, doubts = _masks_of_listed(root, ids) if "mask" in wanted else (Masks(), [])
    folder_of = {path: folder for folder in layout.label for path in listing.ids(folder)}
    number = {name: label for label, name in enumerate(layout.classes)}
    samples = []
    for path in ids:
        folder, mask = folder_of.get(path, ""), masks.of.get(path)
        samples.append(
            Sample(
                path,
                number[layout.label[folder]] if folder in layout.label else -1,
                mask=None if mask is None else root / mask,
                split=layout.part.get(folder),
                fold=layout.fold.get(folder),
            )
        )
    found = dict(layout.found)
    found |= {"masks": _describe_masks(samples, masks)} if masks.of else {}
    return Reading(layout.classes, tuple(samples), found, doubts=tuple(doubts))


def _masks_of_listed(root: Path, ids: Sequence[str]) -> tuple[Masks, list[Doubt]]:
    """Return the masks of listed images in the usual places; none if these cannot be understood."""
    try:
        masks = take_masks(list_folder(root))
    except UserError:
        return Masks(), []
    listed = set(ids)
    masks.of = {
        path: mask for path, mask in masks.of.items() if path in listed and mask not in listed
    }
    masks.several = [each for each in masks.several if each[0] in masks.of]
    return masks, masks.settle()


def _list_ids(root: Path, ids: Iterable[str]) -> Listing:
    """Return a listing that has nothing but some images."""
    images: dict[str, list[str]] = defaultdict(list)
    folders: dict[str, set[str]] = {"": set()}
    for path in ids:
        folder, name = split_id(path)
        images[folder].append(name)
    for folder in images:
        folders.setdefault(folder, set())
        while folder:
            folder, name = split_id(folder)
            folders.setdefault(folder, set()).add(name)
    return Listing(
        root,
        images={folder: sorted(names) for folder, names in images.items()},
        folders={folder: sorted(names) for folder, names in folders.items()},
        filled=set(images),
    )


def patterns_given(options: FolderOptions) -> dict[str, object]:
    """Return the patterns that are given, by the names that FolderDataModule has for them."""
    patterns = {"mask_pattern": options.mask_pattern, "group_pattern": options.group_pattern}
    return {name: pattern for name, pattern in patterns.items() if pattern is not None}


def doubt_numbers(classes: Sequence[str], samples: Sequence[Sample]) -> list[Doubt]:
    """Return doubts about classes with too few images."""
    counts = Counter(sample.label for sample in samples)
    numbers = {name: counts[label] for label, name in enumerate(classes)}
    smallest, largest = min(numbers, key=numbers.__getitem__), max(numbers.values())
    n = numbers[smallest]
    if n < _FEW:
        few = sum(each < _FEW for each in numbers.values())
        more = f" ({few} classes have fewer than {_FEW})" if few > 1 else ""
        return [
            Doubt(
                f"the class '{smallest}' has {counted(n, 'image')} of {len(samples)}{more}: too "
                "few to score it; add images, or leave it out"
            )
        ]
    if largest < _RARE * n:
        return []
    return [Doubt(f"the class '{smallest}' has {n} images, the largest {largest}", "data.balance")]


def _samples(
    root: Path,
    by_folder: Mapping[str, Sequence[str]],
    layout: Layout,
    masks: Masks,
    crops: Crops,
) -> list[Sample]:
    """Return the samples of the class folders, sorted by id."""
    position = {name: label for label, name in enumerate(layout.classes)}
    samples = []
    for folder, ids in by_folder.items():
        label, part, fold = (
            position[layout.label[folder]],
            layout.part.get(folder),
            layout.fold.get(folder),
        )
        for path in ids:
            mask = masks.of.get(path)
            samples.append(
                Sample(
                    path,
                    label,
                    root / path,
                    None if mask is None else root / mask,
                    crops.field_of.get(path),
                    part,
                    fold=fold,
                )
            )
    return sorted(samples, key=lambda sample: sample.id)


def find_roles(
    samples: Sequence[Sample], options: FolderOptions
) -> tuple[list[Sample], dict[str, str]]:
    """Return samples with what `data.group_pattern` finds, if it is given, and a description.

    Raises:
        UserError: The pattern is not valid, or does not fit each id.
    """
    if options.pattern is None:
        return list(samples), {}
    samples = apply_pattern(samples, options.pattern)
    return samples, _describe_roles(samples, options.pattern)


def _describe_roles(samples: Sequence[Sample], pattern: str) -> dict[str, str]:
    """Describe the groups, folds and domains that `data.group_pattern` has found."""
    found = {}
    for role in compile_pattern(pattern).groupindex:
        values = {getattr(sample, role) for sample in samples}
        examples = ", ".join(sorted(values)[:3]) + (", ..." if len(values) > 3 else "")
        found[f"{role}s"] = f"{len(values)} by data.group_pattern: {examples}"
    return found


def _describe_masks(samples: Sequence[Sample], masks: Masks) -> str:
    n = sum(sample.mask is not None for sample in samples)
    ways = ", ".join(way for way, _ in masks.found.most_common(3))
    return f"{n} of {counted(len(samples), 'image')}: {ways}"


def suggest_groups(
    by_class: Mapping[str, Sequence[str]], depth: int | None
) -> tuple[dict[str, object], list[Doubt]]:
    """Suggest a `data.group_pattern`, if names or folders hint at groups.

    Args:
        by_class: The ids of the images of each class, or of each class folder.
        depth: Number of folders above an image that lies directly in a class folder; None if the
            folders have no such meaning.

    Returns:
        The option that is suggested, and the doubt that names it.
    """
    stems = {
        key: sorted({join(split_id(path)[0], stem_of(split_id(path)[1])) for path in ids})
        for key, ids in by_class.items()
    }
    total, n = sum(map(len, by_class.values())), sum(map(len, stems.values()))
    suggestion = suggest_pattern(by_class, stems, depth)
    if suggestion is None and n < total:  # one image in two formats
        suggestion = (r"^(?P<group>.+?)(?:\.ome)?\.[^.]+$", n)
    if suggestion is None:
        return {}, []
    pattern, groups = suggestion
    doubt = Doubt(
        "names or folders look as if several images were of one patient, slide or field: "
        f"{counted(groups, 'group')} of {total} images",
        f"data.group_pattern: '{pattern}'",
    )
    return {"group_pattern": pattern}, [doubt]


def _doubt_masks(samples: Sequence[Sample]) -> list[Doubt]:
    lacking = [sample.id for sample in samples if sample.mask is None]
    if not 0 < len(lacking) < len(samples):
        return []
    return [
        Doubt(
            f"{len(lacking)} of {len(samples)} images have no mask, such as '{lacking[0]}'",
            "data.mask_pattern",
        )
    ]


def _doubt_unreadable(listing: Listing) -> list[Doubt]:
    if not listing.unreadable:
        return []
    n = counted(len(listing.unreadable), "image is", "images are")
    return [
        Doubt(
            f"{n} no file but a broken link, a pipe or the like, such as '{listing.unreadable[0]}'",
            "data.exclude",
        )
    ]


def _doubt_left_out(listing: Listing, by_folder: Mapping[str, Sequence[str]]) -> list[Doubt]:
    """Return doubts about pictures and links that are left out."""
    doubts = []
    pictures: Counter[str] = Counter()
    where: dict[str, int] = defaultdict(int)
    for folder in by_folder:
        for each in listing.below(folder):
            own = [suffix_of(n) for n in listing.others.get(each, ()) if is_picture(n)]
            pictures.update(own)
            where[folder] += len(own)
    if pictures:
        worst = max(where, key=where.__getitem__)
        doubts.append(
            Doubt(
                f"{by_suffix(pictures)} left out, of which {where[worst]} lie in '{worst}' beside "
                f"{len(by_folder[worst])} images: convert them to PNG or TIFF"
            )
        )
    if outside := listing.left_out.get(OUTSIDE):
        doubts.append(Doubt(f"{by_suffix(outside)} left out: they lie in no class folder"))
    tables = [n for n in listing.others.get("", ()) if suffix_of(n) in (".csv", ".tsv", ".xlsx")]
    if tables:
        doubts.append(
            Doubt(
                f"{counted(len(tables), 'table')} in data.root not used, such as '{tables[0]}': if "
                "labels, groups or parts are in it, name it",
                "data.csv",
            )
        )
    if links := listing.left_out.get(LINKS):
        doubts.append(
            Doubt(f"{counted(links.total(), 'link')} to folders below data.root not followed")
        )
    return doubts


def _doubt_mask_classes(listing: Listing, by_folder: Mapping[str, Sequence[str]]) -> list[Doubt]:
    """Return doubts about classes whose images have as few colours as masks have."""
    each = max(_LOOKED_INTO // max(len(by_folder), 1), 1)
    flat = []
    for folder, ids in by_folder.items():
        looked = [looks_like_mask(listing.root / path) for path in spread(ids, min(each, 3))]
        if looked and all(looked):
            flat.append(folder)
    if not flat:
        return []
    return [
        Doubt(
            f"the images of '{flat[0]}'{'' if len(flat) == 1 else ' and others'} have as few "
            "colours as masks: if they are some, move them out, or name them",
            "data.mask_pattern",
        )
    ]


def _count_others(listing: Listing) -> None:
    for names in listing.others.values():
        for name in names:
            listing.leave_out(OTHER_FORMATS, name)


def by_suffix(counts: Mapping[str, int], most: int = 5) -> str:
    """Return numbers of files by suffix, the most frequent first."""
    ranked = Counter(counts).most_common()
    shown = [
        counted(n, f"{suffix} file") if suffix else f"{counted(n, 'file')} without suffix"
        for suffix, n in ranked[:most]
    ]
    rest = sum(n for _, n in ranked[most:])
    return ", ".join(shown) + (f" and {rest} others" if rest else "")
