"""Reading of a table of images."""

import os
from pathlib import Path
from typing import get_args

from cellbench.data import files
from cellbench.data.reading.folders import doubt_numbers
from cellbench.data.reading.layout import refuse_one_class
from cellbench.data.reading.reading import FolderOptions, Reading
from cellbench.data.table import Part, Sample, check_ids
from cellbench.utils.errors import UserError


def read_label_table(
    root: Path, csv: Path, options: FolderOptions, folder: Reading | None = None
) -> Reading:
    """Read a CSV file with the columns path and label, and where known mask, group and split.

    Args:
        root: The folder that its paths start at.
        csv: The table, below the root.
        options: Not used.
        folder: Not used.

    Raises:
        UserError: The table or a file in it is missing, or a value is not allowed.
    """
    if not root.is_dir():
        raise UserError(f"data.root: there is no folder {root}; give the folder of the images")
    table = root / csv
    if not table.is_file():
        raise UserError(f"data.csv: there is no table {table}; its path is below data.root")
    rows = files.read_table(table, {"path", "label"})
    classes = tuple(sorted({row["label"] for row in rows}))
    refuse_one_class(classes, str(csv))
    ids = [Path(row["path"]).as_posix() for row in rows]
    check_ids(ids)  # before the file system is asked for each
    for column in ("group", "split"):
        without = [row["path"] for row in rows if not row.get(column)]
        if without and len(without) < len(rows):
            raise UserError(
                f"{csv}: '{without[0]}' has no {column} and others have one; fill it in, "
                "with a name of its own where it is not known"
            )
    samples = []
    for name, row in zip(ids, rows, strict=True):
        split = row.get("split") or None
        if split is not None and split not in get_args(Part):
            raise UserError(
                f"{csv}: '{row['path']}' has the split '{split}'; "
                f"allowed: {', '.join(get_args(Part))}"
            )
        mask = row.get("mask") or None
        samples.append(
            Sample(
                id=name,
                label=classes.index(row["label"]),
                image=_listed(root, table, row["path"]),
                mask=_listed(root, table, mask) if mask else None,
                group=row.get("group") or None,
                split=split,  # type: ignore[arg-type]  # checked above
            )
        )
    samples.sort(key=lambda sample: sample.id)
    return Reading(
        classes,
        tuple(samples),
        {"classes": f"column label of {csv}"},
        doubts=tuple(doubt_numbers(classes, samples)),
        options={"csv": str(csv)},
    )


def _listed(root: Path, table: Path, name: str) -> Path:
    path = Path(name)
    inside = not path.is_absolute() and ".." not in path.parts and "\0" not in name
    if inside:
        real_root, real = (os.path.realpath(each) for each in (root, root / path))
        inside = os.path.commonpath([real_root, real]) == real_root
    if not inside:
        raise UserError(
            f"{table}: '{name}' leaves the dataset's folder; give a path below data.root"
        )
    path = root / path
    if not os.path.isfile(path):  # Path.is_file raises if the name is too long
        raise UserError(f"{table} lists '{name}', but there is no {path}")
    return path
