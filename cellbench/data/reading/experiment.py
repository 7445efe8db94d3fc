"""The experiment that a reading amounts to, ready for `fit --config`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellbench.config import yaml
from cellbench.data.reading.groups import apply_pattern
from cellbench.data.reading.reading import Doubt, Reading
from cellbench.data.splits import SplitConfig, draw
from cellbench.data.table import Sample, SampleTable
from cellbench.utils.errors import UserError, one_line

MARK = "# Written by cellbench inspect."
"""First line of the file, by which an earlier one is known."""

_SMALLEST, _LARGEST, _STEP = 32, 224, 32


def plan_experiment(
    reading: Reading, root: Path, size: tuple[int, int] | None, pixels: Mapping[str, object]
) -> tuple[dict[str, Any], list[Doubt]]:
    """Return an experiment, and doubts about its split.

    The split is the authors' own where there is one that can be drawn, else a grouped one, with
    suggested groups rather than none.

    Args:
        reading: The reading.
        root: The folder, as the user gave it.
        size: Median width and height of the images; None if it is unknown.
        pixels: Options that the images need to be read, as `pixel_options` gives them.
    """
    split, extra, doubts = _choose_split(reading)
    options: dict[str, Any] = {
        "root": str(root),
        **reading.options,
        **extra,
        **pixels,
        "view": "raw",
        "augment": "flips",
        "image_size": _image_size(size),
        "split": split,
    }
    experiment = {
        "seed_everything": 0,
        "data": {"class_path": "FolderDataModule", "init_args": options},
        "model": {"backbone": "resnet18", "lr": 1e-3, "schedule": "cosine"},
        "trainer": {"max_epochs": 20},
    }
    return experiment, doubts


def as_text(experiment: Mapping[str, Any], reading: Reading) -> str:
    """Return the text of an experiment's file."""
    suggested = [name for name in reading.suggested if name in experiment["data"]["init_args"]]
    notes = [f"# data.{name} is a guess from names and folders: check it." for name in suggested]
    return "\n".join([MARK, *notes, yaml.dump(dict(experiment))])


def _choose_split(reading: Reading) -> tuple[dict[str, Any], dict[str, Any], list[Doubt]]:
    """Return the split, further options for it, and doubts."""
    samples = reading.samples
    grouped: dict[str, Any] = {"protocol": "grouped", "seed": 0}
    tried: list[tuple[dict[str, Any], dict[str, Any]]] = []
    if samples[0].fold is not None:
        tried.append(({"protocol": "predefined", "fold": 0, "seed": 0}, {}))
    if {"train", "test"} <= {sample.split for sample in samples}:
        tried.append(({"protocol": "official", "seed": 0}, dict(reading.suggested)))
    tried.append((grouped, dict(reading.suggested)))
    doubts: list[Doubt] = []
    for split, extra in tried:
        error = _split_error(reading, split, extra)
        if error is None:
            return split, extra, doubts
        doubts.append(
            Doubt(
                one_line(
                    f"the {split['protocol']} split cannot be drawn"
                    f"{' with the suggested groups' if extra else ''}: {error}"
                ),
                "data.split",
            )
        )
    return *tried[0], doubts


def _split_error(
    reading: Reading, split: Mapping[str, Any], extra: Mapping[str, Any]
) -> str | None:
    """Return why a split cannot be drawn; None if it can. Equal contents are not known here."""
    samples: list[Sample] = list(reading.samples)
    try:
        if "group_pattern" in extra:
            samples = apply_pattern(samples, extra["group_pattern"])
        samples = [replace(sample, image=None, mask=None) for sample in samples]
        table = SampleTable(samples, reading.classes, [sample.id for sample in samples])
        draw(table, SplitConfig(**split))
    except UserError as error:
        return str(error)
    return None


def _image_size(size: tuple[int, int] | None) -> int | list[int]:
    """Return the network's input size for images of a median width and height."""
    if size is None:
        return 128
    scale = min(1.0, _LARGEST / max(size))
    width, height = (max(_SMALLEST, round(side * scale / _STEP) * _STEP) for side in size)
    return width if width == height else [height, width]
