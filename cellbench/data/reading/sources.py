"""Reading of whatever the user gives: a folder, an archive, or a table of images."""

import os
from dataclasses import replace
from pathlib import Path

from cellbench.data.reading.folders import (
    doubt_numbers,
    find_roles,
    patterns_given,
    read_folder,
    suggest_groups,
)
from cellbench.data.reading.label_table import OF_FOLDERS, read_label_table
from cellbench.data.reading.layout import refuse_one_class
from cellbench.data.reading.masks import check_pattern, expand
from cellbench.data.reading.reading import FolderOptions, Reading
from cellbench.utils.errors import UserError


def read_images(root: Path, csv: Path | None, options: FolderOptions) -> Reading:
    """Read a folder, an archive of MedMNIST, or a table of images below a folder.

    Args:
        root: The folder or the archive.
        csv: The table; None for a folder of each class.
        options: Patterns for masks and groups, and the table's columns.

    Raises:
        UserError: It cannot be told what the samples are, or an option does not fit.
    """
    if csv is None:
        if options.columns:
            raise UserError("data.columns: they are those of a table; give it as data.csv")
        return read_folder(root, options)
    folder: Reading | None = None
    error: UserError | None = None
    try:
        folder = read_folder(root, FolderOptions())
    except UserError as caught:  # the table may do without it
        error = caught
    reading = read_label_table(root, csv, options, folder)
    if error is not None and reading.found.get("classes") == OF_FOLDERS:
        raise error
    refuse_one_class(reading.classes, str(csv))
    return _complete(reading, root, options)


def _complete(reading: Reading, root: Path, options: FolderOptions) -> Reading:
    """Return the reading of a table with what the patterns add, and with doubts as of a folder."""
    samples, roles = find_roles(reading.samples, options)
    found = {**reading.found, **roles}
    if options.mask_pattern is not None:
        check_pattern(options.mask_pattern)
        paths = [root / os.path.normpath(expand(options.mask_pattern, s.id)) for s in samples]
        samples = [
            replace(sample, mask=path) if path.is_file() else sample
            for sample, path in zip(samples, paths, strict=True)
        ]
        n = sum(sample.mask is not None for sample in samples)
        if n == 0:
            raise UserError(
                f"data.mask_pattern: '{options.mask_pattern}' fits no file (no {paths[0]})"
            )
        found["masks"] = f"{n} of {len(samples)} images: {options.mask_pattern}"
    doubts = [*reading.doubts, *doubt_numbers(reading.classes, samples)]
    suggested: dict[str, object] = {}
    if options.group_pattern is None and not all(sample.group for sample in samples):
        by_class = {
            name: [s.id for s in samples if s.label == label and s.group is None]
            for label, name in enumerate(reading.classes)
        }
        suggested, more = suggest_groups(by_class, None)
        doubts += more
    return replace(
        reading,
        doubts=tuple(doubts),
        suggested=suggested,
        samples=tuple(samples),
        found=found,
        options={**reading.options, **patterns_given(options)},
    )
