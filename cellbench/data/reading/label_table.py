"""Reading of a label table: which images it lists, and what it says of them."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from cellbench.data.reading.columns import (
    Columns,
    Role,
    find_columns,
    is_missing,
    parts_of,
    remedy,
)
from cellbench.data.reading.listed_files import ListedFiles
from cellbench.data.reading.reading import Doubt, FolderOptions, Reading
from cellbench.data.reading.table_file import Table, read_table_file
from cellbench.data.table import Part, Sample, check_ids
from cellbench.utils.errors import UserError, counted

OF_FOLDERS = "folders of the images"
"""Origin of the classes of a table without labels."""

_FLOAT = re.compile(r"(-?\d+)[.,]0+")
"""A whole number as pandas writes it in a column that lacks a value: 1.0."""


_OF_FOLDERS = {
    "mask": "masks",
    "group": "groups",
    "split": "parts",
    "fold": "folds",
    "domain": "domains",
}
"""What the reading of a folder may tell of its images, with the names that it has there."""


def read_label_table(
    root: Path, csv: Path, options: FolderOptions, folder: Reading | None = None
) -> Reading:
    """Read a table of images below a folder.

    Args:
        root: The folder.
        csv: The table: its path below the folder, or an absolute one.
        options: The user's options.
        folder: Reading of the folder itself, for what no column gives: labels, masks, parts and so
            on. None takes the first folder of each path as the class of a table without labels.

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
    labels = labels or _labels_of_folders(rows.table, ids, folder)
    classes = tuple(sorted(set(labels)))
    numbers = {name: i for i, name in enumerate(classes)}
    columns = zip(ids, labels, masks, groups, parts, folds, domains, strict=True)
    by_table = [
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
    settled = options.columns.keys() | rows.columns.of_role.keys()
    samples = _with_folder(by_table, folder, settled) if folder else by_table
    samples.sort(key=lambda sample: sample.id)
    start = "" if root == Path() else f"{root.as_posix()}/"
    taken = {s.mask.as_posix().removeprefix(start) for s in samples if s.mask is not None}
    left = files.left({*ids, *taken})
    roles: dict[str, str | None] = {role: rows.header(role) for role in rows.columns.by_synonym}
    roles |= options.columns
    return Reading(
        classes=classes,
        samples=tuple(samples),
        found={**_found_in_folder(folder, settled), **_found(rows, samples, files)},
        left_out={"not in the table": left} if left else {},
        doubts=(*_doubts_about_table(rows), *_doubts(samples, classes)),
        unused_columns=rows.columns.unused,
        options={"csv": str(csv), **({"columns": roles} if roles else {})},
    )


def _read_rows(root: Path, csv: Path, options: FolderOptions) -> "_Rows":
    if not root.is_dir():
        raise UserError(f"data.root: there is no folder {root}")
    path = root / csv
    if not path.exists():
        here = f"; for the one in the present folder give {csv.absolute()}" if csv.exists() else ""
        raise UserError(
            f"data.csv: there is no table {path}; its path is below data.root, or absolute{here}"
        )
    table = read_table_file(path)
    if not table.rows:
        raise UserError(f"{path} has a header and no rows; give one row for each image")
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

    def where(self, row: int) -> str:
        """Return the place of a row, for messages."""
        return f"{self.table.path}, line {self.table.lines[row]}"

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
                    f"{self.where(i)}: '{path}' has the label '{b}', and in line "
                    f"{self.table.lines[j]} '{a}'; an image has one label (cut out each cell of a "
                    "field first)"
                )
            raise UserError(
                f"{self.where(i)}: sample '{path}' occurs more than once in the dataset's table, "
                f"first in line {self.table.lines[j]}; remove one"
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
                f"{self.where(row)}: '{self.paths[row]}' has no {role} and others have one; fill "
                "it in, with a name of its own where it is not known"
            )
        return list(self._alike(role, cells))

    def parts(self) -> list[Part | None]:
        """Return the part of each row; None for each without such a column.

        Raises:
            UserError: Some rows have none, or one that is not known.
        """
        names = self.names("split")
        known = parts_of(name for name in set(names) if name is not None)
        for row, name in enumerate(names):
            if name is not None and name not in known:
                folds = name.isdecimal() and "fold" not in self.columns.of_role
                number = remedy({"fold": self.header("split"), "split": None})
                raise UserError(
                    f"{self.where(row)}: '{self.paths[row]}' has the split '{name}'; "
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
                f"{self.where(without[0])}: '{self.paths[without[0]]}' has no label"
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
        first: dict[str, str] = {}
        for value in sorted(counts, key=lambda value: (-counts[value], value)):
            other = first.setdefault(_essence(value), value)
            if other != value:
                shown = _escaped if _looks_equal(other, value) else repr
                raise UserError(
                    f"{self.table.path}: {role}s {shown(other)} ({counts[other]} rows) and "
                    f"{shown(value)} ({counts[value]}) differ only in case, blanks, zeros or the "
                    "form of a character; write them alike, or rename one"
                )
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
                raise UserError(f"{self.where(row)}: the mask '{cells[row]}' is an image")
        return masks

    def _require(self, role: Role, names: Sequence[str], found: Sequence[str | None]) -> None:
        """Raise an error that counts the files that were not found, and names three of them."""
        missing = [name for name, path in zip(names, found, strict=True) if name and path is None]
        if not missing:
            return
        listed = ", ".join(f"'{name}'" for name in missing[:3])
        more = ", ..." if len(missing) > 3 else ""
        n = sum(map(bool, names))
        raise UserError(
            f"{self.table.path} lists {listed}{more}, but there {'are' if more else 'is'} no such "
            f"file{'s' if len(missing) > 1 else ''} below data.root ({len(missing):,} of {n:,} in "
            f"column '{self.header(role)}'); correct the table, or data.root"
        )


def _essence(name: str) -> str:
    """Return what two names that are meant to be one have in common.

    Case, form of the characters, blanks (but between two digits), and the zeros of a number.
    """
    name = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    name = re.sub(r"(?<!\d) | (?!\d)", "", name)
    return re.sub(r"0*(\d+)(?:[.,]0*)?", r"\1", name) if _is_number(name) else name


def _is_number(name: str) -> bool:
    return re.fullmatch(r"\d+(?:[.,]0*)?", name) is not None


def _escaped(name: str) -> str:
    """Return a name with its blanks and its characters beyond ASCII as codes."""
    return ascii(name).replace(" ", r"\x20")


def _looks_equal(a: str, b: str) -> bool:
    """Return True for names that look the same on a screen."""
    a, b = (" ".join(unicodedata.normalize("NFC", name).split()) for name in (a, b))
    return a == b


def _labels_of_folders(table: Table, ids: Sequence[str], folder: Reading | None) -> list[str]:
    """Return the label of each image by the folder that it is in.

    Raises:
        UserError: An image is in no class folder.
    """
    known = {} if folder is None else {s.id: folder.classes[s.label] for s in folder.samples}
    labels = []
    for name in ids:
        label = known.get(name) if folder else name.partition("/")[0]
        if label is None or label == name:
            raise UserError(
                f"{table.path} has no column 'label', and '{name}' is in no class folder; add the "
                "column"
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
        if sample.group is not None:
            groups_of[sample.label].add(sample.group)
            parts_of[sample.group].add(sample.split or "")
    few = [label for label, groups in groups_of.items() if len(groups) < 3]
    if few:
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
