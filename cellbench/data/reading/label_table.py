"""Reading of a label table: which images it lists, and what it says of them."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import get_args

from cellbench.data.reading.columns import (
    ROLES,
    Columns,
    Role,
    find_columns,
    is_missing,
    parts_in,
    remedy,
)
from cellbench.data.reading.folders import find_roles
from cellbench.data.reading.groups import compile_pattern
from cellbench.data.reading.listed_crops import fields_among, find_fields
from cellbench.data.reading.listed_files import ListedFiles
from cellbench.data.reading.masks import find_by_pattern
from cellbench.data.reading.names import describe_alike
from cellbench.data.reading.parts import flagged_part, parts_of_flags
from cellbench.data.reading.reading import Doubt, FolderOptions, Reading
from cellbench.data.reading.table_file import Table, read_table_file
from cellbench.data.table import Part, Sample, check_ids
from cellbench.utils.errors import UserError, clip, counted, enumerate_some

OF_FOLDERS = "folders of the images"
"""Origin of the classes of a table without labels."""

_FLOAT = re.compile(r"(-?\d+)[.,]0+")
"""A whole number as pandas writes it in a column that lacks a value: 1.0."""


_OF_FOLDERS = {"mask": "masks", "split": "parts", "fold": "folds"}
"""What the reading of a folder may tell of its images, with the names that it has there."""

ReadFolder = Callable[[Path, Sequence[str], Set[str]], Reading]
"""Function that reads the open roles of listed images from the folder that they are in."""

_FILL_IN = {"split": "fill in train, val or test", "fold": "fill it in"}
"""Remedies for a missing value in columns whose names mean something."""


def read_label_table(
    root: Path,
    csv: Path,
    options: FolderOptions,
    read_folder: ReadFolder | None = None,
) -> Reading:
    """Read a table of images below a folder.

    Args:
        root: The folder.
        csv: The table: its path below the folder, or an absolute one.
        options: The user's options.
        read_folder: Function that reads the folder itself, for what no column and no pattern gives:
            labels, masks, parts and folds. It is called only if one of them is open. None takes the
            first folder of each path as the class of a table without labels.

    Raises:
        UserError: The table cannot be understood, or lists a file that does not exist.
    """
    rows = _read_rows(root, csv, options)
    rows.check_duplicates()
    parts = rows.parts()
    labels = rows.labels(parts)
    groups, folds, domains = (rows.names(role) for role in ("group", "fold", "domain"))
    files = ListedFiles(root, rows.table.path)
    ids = rows.find_images(files)
    masks = rows.find_masks(files, ids)
    settled = {*options.columns, *rows.columns.of_role, *_roles_of_patterns(rows, options)}
    if "label" not in rows.columns.of_role:
        settled.discard("label")
    if not files.has_others(ids):  # no image is left that may be a mask
        settled.add("mask")
    folder = _read_open_roles(root, read_folder, ids, settled)
    labels = labels or _labels_of_folders(rows.table, ids, folder)
    classes = tuple(sorted(set(labels)))
    numbers = {name: i for i, name in enumerate(classes)}
    columns = zip(ids, labels, masks, groups, parts, folds, domains, strict=True)
    samples = [
        Sample(
            id=name,
            label=numbers[label],
            image=root / name,
            mask=None if mask is None else root / mask,
            group=group,
            split=part,
            fold=fold,
            domain=domain,
        )
        for name, label, mask, group, part, fold, domain in columns
    ]
    samples = _with_folder(samples, folder, settled) if folder else samples
    samples.sort(key=lambda sample: sample.id)
    samples, roles_found = find_roles(samples, options)
    samples, masks_found = _with_masks(root, samples, options.mask_pattern)
    start = "" if root == Path() else f"{root.as_posix()}/"
    taken = {s.mask.as_posix().removeprefix(start) for s in samples if s.mask is not None}
    used = {*ids, *taken}
    beside = [path for path in files.images() if path not in used]
    samples, crops_found, doubts = _with_fields(root, samples, beside, rows.table)
    left = files.left(used)
    roles: dict[str, str | None] = {role: rows.header(role) for role in rows.columns.by_synonym}
    roles |= options.columns
    return Reading(
        classes=classes,
        samples=tuple(samples),
        found={
            **_found_in_folder(folder, settled),
            **_found(rows, samples, files),
            **roles_found,
            **masks_found,
            **crops_found,
        },
        left_out={"not in the table": left} if left else {},
        doubts=(
            *_doubts_about_table(rows),
            *(folder.doubts if folder else ()),
            *doubts,
            *_doubts(samples, classes),
        ),
        unused_columns=rows.columns.unused,
        options={"csv": str(csv), **({"columns": roles} if roles else {})},
    )


def _roles_of_patterns(rows: "_Rows", options: FolderOptions) -> set[str]:
    """Return the roles that `data.group_pattern` and `data.mask_pattern` give.

    Raises:
        UserError: A column gives one of them as well.
    """
    named = () if options.pattern is None else compile_pattern(options.pattern).groupindex
    roles = dict.fromkeys(named, "data.group_pattern")
    if options.mask_pattern is not None:
        roles["mask"] = "data.mask_pattern"
    role: Role
    for role in ROLES:
        if role in roles and rows.gives(role):
            raise UserError(
                f"{roles[role]}: column '{clip(rows.header(role))}' of {rows.table.place} gives "
                f"the {role} too; leave the pattern out, or give {remedy({role: None})}"
            )
    return set(roles)


def _read_open_roles(
    root: Path, read_folder: ReadFolder | None, ids: Sequence[str], settled: Set[str]
) -> Reading | None:
    """Return what the folder tells of the listed images; None if nothing is left open.

    Raises:
        UserError: The labels depend on the folder, and it cannot be understood.
    """
    wanted = {"label", *_OF_FOLDERS} - settled
    return read_folder(root, ids, wanted) if read_folder is not None and wanted else None


def _with_masks(
    root: Path, samples: list[Sample], pattern: str | None
) -> tuple[list[Sample], dict[str, str]]:
    """Return samples with the masks that `data.mask_pattern` gives, and a description.

    Raises:
        UserError: The pattern is not valid, fits no file, or gives an image of the table.
    """
    if pattern is None:
        return samples, {}
    masks = find_by_pattern(root, [sample.id for sample in samples], pattern).of
    images = {sample.id for sample in samples}
    for image, mask in masks.items():
        if mask in images:
            raise UserError(
                f"data.mask_pattern: '{clip(pattern)}' gives '{clip(mask)}' as the mask of "
                f"'{clip(image)}', and the table lists it as an image; correct one of them"
            )
    found = [
        replace(sample, mask=root / masks[sample.id] if sample.id in masks else None)
        for sample in samples
    ]
    return found, {"masks": f"{len(masks):,} of {counted(len(samples), 'image')}: {pattern}"}


def _with_fields(
    root: Path, samples: list[Sample], beside: Sequence[str], table: Table
) -> tuple[list[Sample], dict[str, str], list[Doubt]]:
    """Return samples with the field as the group of itself and its crops, if no groups are known.

    A field and its crops show the same cells, which no split may divide.

    Args:
        root: The folder.
        samples: The samples of the table.
        beside: Ids of the images that are neither listed nor masks.
        table: The table.

    Returns:
        The samples, a description of the groups, and the doubt that tells of them.

    Raises:
        UserError: Groups are known, and divide a field and its crops.
    """
    ids = [sample.id for sample in samples]
    field_of = find_fields(root, ids, beside)
    if not field_of:
        return samples, {}, []
    group_of = fields_among(ids, field_of)
    crop, whole = next(iter(field_of.items()))
    if any(sample.group is not None for sample in samples):
        _check_fields(samples, field_of, group_of, table)
        return samples, {}, []
    found = [replace(s, group=group_of.get(s.id)) for s in samples]
    n = counted(len(set(field_of.values())), "whole field")
    doubt = Doubt(
        f"{counted(len(field_of), 'image is a crop', 'images are crops')} of {n}, such as "
        f"'{clip(crop)}' of '{clip(whole)}': a field and its crops are one group",
        "data.columns or data.group_pattern for another group",
    )
    groups = counted(len(set(group_of.values())), "group")
    return found, {"groups": f"fields of the crops: {groups}"}, [doubt]


def _check_fields(
    samples: Sequence[Sample],
    field_of: Mapping[str, str],
    group_of: Mapping[str, str],
    table: Table,
) -> None:
    """Check that no listed field is in another group than its crops.

    Raises:
        UserError: One is.
    """
    fields = {group_of[s.id]: s for s in samples if s.id in group_of and s.id not in field_of}
    for sample in samples:
        field = fields.get(field_of.get(sample.id, ""))
        if field is not None and field.group != sample.group:
            raise UserError(
                f"{table.place}: '{clip(sample.id)}' looks like a crop of '{clip(field.id)}', but "
                f"they are in the groups '{clip(sample.group, 20)}' and '{clip(field.group, 20)}'; "
                "give both one group, or remove one of the two rows"
            )


def _read_rows(root: Path, csv: Path, options: FolderOptions) -> "_Rows":
    if not root.is_dir():
        raise UserError(f"data.root: there is no folder {clip(root, 120)}; correct the path")
    path = root / csv
    if not path.exists():
        here = f"; give {csv.absolute()} for the one in this folder" if csv.exists() else ""
        raise UserError(
            f"data.csv: there is no table {clip(path, 80)}; its path is below data.root, or "
            f"absolute{here}"
        )
    table = read_table_file(path)
    if not table.rows:
        raise UserError(f"{table.place} has a header and no rows; give one row for each image")
    return _Rows(table, find_columns(table, options.columns))


class _Rows:
    """The rows of a label table, by the roles of its columns.

    Args:
        table: The table.
        columns: The roles of its columns.
    """

    def __init__(self, table: Table, columns: Columns) -> None:
        self.table = table
        self.columns = columns
        self.paths = table.column(columns.of_role["path"])
        self.shortened: list[Role] = []
        """Roles whose names were whole numbers written as 1.0."""

    def header(self, role: Role) -> str:
        """Return the name of a role's column."""
        return self.table.header[self.columns.of_role[role]]

    def gives(self, role: Role) -> bool:
        """Return True if a role has a column that is not empty."""
        position = self.columns.of_role.get(role)
        return position is not None and not all(map(is_missing, self.table.column(position)))

    def where(self, row: int) -> str:
        """Return the place of a row, for messages."""
        return f"{self.table.place}, line {self.table.lines[row]}"

    def check_duplicates(self) -> None:
        """Check that each row has a path, and no two the same.

        Raises:
            UserError: A row has none; or two have one, with equal or different labels.
        """
        first: dict[str, int] = {}
        label = self.columns.of_role.get("label")
        for i, path in enumerate(self.paths):
            if is_missing(path):
                raise UserError(f"{self.where(i)}: no path; fill it in, or remove the row")
            j = first.setdefault(path.replace("\\", "/"), i)
            if j == i:
                continue
            a, b = ("" if label is None else self.table.rows[k][label] for k in (j, i))
            if a != b:
                raise UserError(
                    f"{self.where(i)}: '{clip(path)}' has the label '{clip(b, 20)}', and in line "
                    f"{self.table.lines[j]} '{clip(a, 20)}'; an image has one label (cut out each "
                    "cell of a field first)"
                )
            raise UserError(
                f"{self.where(i)}: sample '{clip(path)}' occurs more than once in the dataset's "
                f"table, first in line {self.table.lines[j]}; remove one (or cut out each cell)"
            )

    def names(self, role: Role) -> list[str | None]:
        """Return the group, fold or domain of each row; None for each without such a column.

        Raises:
            UserError: Some rows have none, or two names are nearly alike.
        """
        position = self.columns.of_role.get(role)
        cells = [] if position is None else self.table.column(position)
        lacking = {value for value in set(cells) if is_missing(value)}
        if position is None or lacking.issuperset(cells):
            return [None] * len(self.paths)
        if lacking:
            row = next(i for i, value in enumerate(cells) if value in lacking)
            raise UserError(
                f"{self.where(row)}: '{clip(self.paths[row])}' has no {role} and others have one; "
                f"{_FILL_IN.get(role, 'fill it in, with a name of its own where it is not known')}"
            )
        return list(self._alike(role, cells))

    def parts(self) -> list[Part | None]:
        """Return the part of each row; None for each without such a column.

        Raises:
            UserError: Some rows have none, or one that is not known.
        """
        names = self.names("split")
        found = {name for name in names if name is not None}
        flags = parts_of_flags(self.header("split"), found) if found else {}
        others = [each for each in self.columns.unused if flagged_part(each)]
        if flags and others:
            raise UserError(
                f"{self.table.place}: '{clip(self.header('split'), 20)}' and "
                f"'{clip(others[0], 20)}' are one column per part; write one column 'split' with "
                "train, val or test"
            )
        known = flags or parts_in(found)
        for row, name in enumerate(names):
            if name is not None and name not in known:
                folds = name.isdecimal() and "fold" not in self.columns.of_role
                number = remedy({"fold": self.header("split"), "split": None})
                raise UserError(
                    f"{self.where(row)}: '{clip(self.paths[row])}' has the split '{clip(name)}'; "
                    f"allowed: {', '.join(get_args(Part))}"
                    + (f"; if it is a fold: {number}" if folds else "")
                )
        return [None if name is None else known[name] for name in names]

    def labels(self, parts: Sequence[Part | None]) -> list[str]:
        """Return the label of each row; empty without such a column.

        Args:
            parts: The part of each row.

        Raises:
            UserError: A row has no label, or two labels are nearly alike.
        """
        position = self.columns.of_role.get("label")
        if position is None:
            return []
        cells = self.table.column(position)
        lacking = {value for value in set(cells) if is_missing(value)}
        if "+" in cells:
            lacking.discard("-")  # negative, and not missing
        without = [row for row, value in enumerate(cells) if value in lacking]
        if without:
            rows = counted(len(without), "row has none", "rows have none")
            all_tests = {parts[row] for row in without} == {"test"}
            advice = (
                "remove the rows, and classify the images with predict"
                if all_tests
                else "fill it in, or remove the row"
            )
            written = cells[without[0]]
            raise UserError(
                f"{self.where(without[0])}: '{clip(self.paths[without[0]])}' has no label"
                f"{f' but {written!r}' if written else ''}{' (part test)' if all_tests else ''}; "
                f"{rows}; {advice}"
            )
        return self._alike("label", cells)

    def _alike(self, role: Role, values: Sequence[str]) -> list[str]:
        """Return names as they are, or as whole numbers where all are such: 1 for 1.0.

        Raises:
            UserError: Two names differ only in case, blanks, `.0` or the form of a character.
        """
        counts = Counter(values)
        if all(_FLOAT.fullmatch(value) for value in counts):
            self.shortened.append(role)
            whole = {value: value.replace(",", ".").split(".")[0] for value in counts}
            return [whole[value] for value in values]
        if alike := describe_alike(counts, f"{role}s", "rows"):
            raise UserError(f"{self.table.place}: {alike}; write them alike, or rename one")
        return list(values)

    def find_images(self, files: ListedFiles) -> list[str]:
        """Return the path below the root of each row's image.

        Raises:
            UserError: Images are missing, or two rows name one image.
        """
        found = [files.find(path) for path in self.paths]
        self._require("path", self.paths, found)
        ids = [path for path in found if path is not None]
        check_ids(ids)
        return ids

    def find_masks(self, files: ListedFiles, ids: Sequence[str]) -> list[str | None]:
        """Return the path below the root of each row's mask; None for a row without one.

        Args:
            files: The files below the root.
            ids: The images' paths below the root.

        Raises:
            UserError: Masks are missing, or a mask is an image of the table.
        """
        position = self.columns.of_role.get("mask")
        if position is None:
            return [None] * len(ids)
        cells = ["" if is_missing(cell) else cell for cell in self.table.column(position)]
        masks = [files.find(cell, mask=True) if cell else None for cell in cells]
        self._require("mask", cells, masks)
        images = set(ids)
        for row, mask in enumerate(masks):
            if mask in images:
                raise UserError(
                    f"{self.where(row)}: the mask '{clip(cells[row])}' is an image; name its mask"
                )
        return masks

    def _require(self, role: Role, names: Sequence[str], found: Sequence[str | None]) -> None:
        """Raise an error that counts the files that were not found, and names three of them."""
        missing = [name for name, path in zip(names, found, strict=True) if name and path is None]
        if not missing:
            return
        n = sum(map(bool, names))
        lacking = "is no such file" if len(missing) == 1 else "are no such files"
        raise UserError(
            f"{self.table.place} lists {enumerate_some(missing)}, but there {lacking} below "
            f"data.root ({len(missing):,} of {n:,} in column '{clip(self.header(role), 20)}'); "
            "correct the table, or data.root"
        )


def _labels_of_folders(table: Table, ids: Sequence[str], folder: Reading | None) -> list[str]:
    """Return the label of each image by the folder that it is in.

    Raises:
        UserError: An image is in no class folder.
    """
    known = {s.id: s.label for s in folder.samples if s.label >= 0} if folder else {}
    labels = []
    for name in ids:
        label = name.partition("/")[0]
        if folder:
            label = folder.classes[known[name]] if name in known else name
        if label == name:
            raise UserError(
                f"{table.place} has no column 'label', and '{clip(name)}' is in no class folder; "
                "add the column"
            )
        labels.append(label)
    return labels


def _with_folder(
    samples: Sequence[Sample], folder: Reading, settled: Collection[str]
) -> list[Sample]:
    """Return the samples with what the folder tells of them.

    Args:
        samples: The samples of the table.
        folder: The reading of the folder.
        settled: Roles that have a column, or of which the user has said that none has them.
    """
    open_roles = [role for role in _OF_FOLDERS if role not in settled]
    known = {sample.id: sample for sample in folder.samples}
    return [
        replace(sample, **{role: getattr(known[sample.id], role) for role in open_roles})
        if sample.id in known
        else sample
        for sample in samples
    ]


def _found_in_folder(folder: Reading | None, settled: Collection[str]) -> dict[str, str]:
    """Describe where the folder has what no column gives."""
    kinds = [kind for role, kind in _OF_FOLDERS.items() if role not in settled]
    return {kind: folder.found[kind] for kind in kinds if folder and kind in folder.found}


def _found(rows: _Rows, samples: Sequence[Sample], files: ListedFiles) -> dict[str, str]:
    """Describe where each kind of information was found."""
    of_role = rows.columns.of_role
    names = {role: f"column '{rows.header(role)}'" for role in of_role}
    found = {"table": rows.table.format, "paths": names["path"]}
    ways = [f"{n:,} {way}" for way, n in files.ways.most_common(3)]
    if ways:
        found["paths"] += f" ({', '.join(ways)})"
    found["classes"] = names.get("label", OF_FOLDERS)
    if "mask" in of_role:
        n = sum(sample.mask is not None for sample in samples)
        found["masks"] = f"{names['mask']}: {n:,} of {counted(len(samples), 'image')}"
    role: Role
    for role in ("group", "fold", "domain"):
        if role in of_role:
            values = {getattr(sample, role) for sample in samples}
            empty = values == {None}
            found[f"{role}s"] = f"{names[role]}: {'empty' if empty else counted(len(values), role)}"
    if "split" in of_role:
        counts = Counter(sample.split for sample in samples)
        listed = [f"{counts[part]:,} {part}" for part in get_args(Part) if counts[part]]
        found["parts"] = f"{names['split']}: {', '.join(listed) or 'empty'}"
    return found


def _doubts_about_table(rows: _Rows) -> Iterator[Doubt]:
    """Yield what was assumed of the table itself."""
    if rows.columns.by_synonym:
        taken = [f"'{rows.header(role)}' as the {role}" for role in rows.columns.by_synonym]
        yield Doubt(f"{rows.table.path.name}: took column {' and '.join(taken)}", "data.columns")
    if rows.table.encoding == "cp1252":
        yield Doubt(
            f"{rows.table.path.name} is not UTF-8, and was read as Windows-1252", "data.csv"
        )
    if rows.shortened:
        columns = " and ".join(f"'{rows.header(role)}'" for role in rows.shortened)
        yield Doubt(f"whole numbers in {columns} were read without their .0", "data.columns")


def _doubts(samples: Sequence[Sample], classes: Sequence[str]) -> Iterator[Doubt]:
    """Yield what looks suspicious in the labels, groups and parts."""
    parts = Counter(sample.split for sample in samples)
    if not parts[None] and not parts["test"]:
        yield Doubt(
            f"the split has no test images ({parts['train']:,} train, {parts['val']:,} val)",
            "data.split.protocol",
        )
    for name in classes:
        several = [each.strip() for each in re.split(r"[,;|/+&]", name)]
        if len(several) > 1 and set(several) <= set(classes):
            yield Doubt(f"label '{name}' looks like several labels in one", "data.exclude")
    yield from _doubts_about_groups(samples, classes)


def _doubts_about_groups(samples: Sequence[Sample], classes: Sequence[str]) -> Iterator[Doubt]:
    groups_of: dict[int, set[str]] = defaultdict(set)
    parts_of: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        groups_of[sample.label].add(sample.group or f"image {sample.id}")
        if sample.group is not None:
            parts_of[sample.group].add(sample.split or "")
    few = [label for label, groups in groups_of.items() if len(groups) < 3]
    if few and parts_of:
        label = min(few)
        names = " and ".join(f"'{name}'" for name in sorted(groups_of[label]))
        also = f"; {len(few)} classes have fewer than three groups" if len(few) > 1 else ""
        yield Doubt(
            f"all images of class '{classes[label]}' are of {names}, and training, validation and "
            f"test need a group each{also}",
            "data.columns",
        )
    divided = sorted(name for name, parts in parts_of.items() if len(parts) > 1)
    if divided:
        parts = " and ".join(sorted(parts_of[divided[0]]))
        yield Doubt(
            f"{counted(len(divided), 'group')} in several parts, the first '{divided[0]}' in "
            f"{parts}",
            "data.split.purge",
        )
