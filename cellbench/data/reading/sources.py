"""Reading of whatever the user gives: a folder, an archive, or a table of images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cellbench.data.reading.folders import (
    doubt_numbers,
    patterns_given,
    read_folder,
    read_structure,
    suggest_groups,
)
from cellbench.data.reading.label_table import read_label_table
from cellbench.data.reading.layout import refuse_one_class
from cellbench.data.reading.listing import same_name
from cellbench.data.reading.reading import Doubt, FolderOptions, Reading
from cellbench.data.table import Sample
from cellbench.utils.errors import UserError, short_name


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
    reading = read_label_table(root, csv, options, read_structure)
    refuse_one_class(reading.classes, str(csv))
    return _with_suggestions(reading, options)


def _with_suggestions(reading: Reading, options: FolderOptions) -> Reading:
    """Return the reading of a table with doubts about its classes, and with suggested groups."""
    samples = reading.samples
    doubts = [
        *reading.doubts,
        *doubt_numbers(reading.classes, samples),
        *_doubt_contradictions(reading.classes, samples),
    ]
    suggested: dict[str, object] = {}
    if options.group_pattern is None and not all(sample.group for sample in samples):
        by_class = {
            name: [s.id for s in samples if s.label == label and s.group is None]
            for label, name in enumerate(reading.classes)
        }
        in_class_folders = all(s.id.startswith(f"{reading.classes[s.label]}/") for s in samples)
        suggested, more = suggest_groups(by_class, 1 if in_class_folders else None)
        doubts += more
    return replace(
        reading,
        doubts=tuple(doubts),
        suggested=suggested,
        options={**reading.options, **patterns_given(options)},
    )


def _doubt_contradictions(classes: Sequence[str], samples: Sequence[Sample]) -> list[Doubt]:
    """Return a doubt about images that lie in the folder of another class than the table says."""
    names = {same_name(name): label for label, name in enumerate(classes)}
    other = []
    for sample in samples:
        folders = [same_name(each) for each in sample.id.split("/")[:-1]]
        of_folders = {names[each] for each in folders if each in names}
        if of_folders and sample.label not in of_folders:
            other.append(sample)
    if not other:
        return []
    first = other[0]
    return [
        Doubt(
            f"{len(other)} of {len(samples)} labels contradict the folder of the image, as "
            f"'{classes[first.label]}' for '{short_name(first.id)}': the table's labels are used",
            "data.columns: {label: null} for the folders",
        )
    ]
