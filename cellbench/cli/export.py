"""Command `export`: write a run's best checkpoint as an ONNX file, and check its predictions."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cellbench.artifacts.checkpoint import read_checkpoint
from cellbench.artifacts.folder import RunFolder, write_text
from cellbench.cli.options.parser import Parser
from cellbench.cli.options.stored import read_data
from cellbench.data.module import CellDataModule
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.splits import read_split
from cellbench.data.table import Sample
from cellbench.data.unlabelled import UnlabelledImages
from cellbench.data.views import apply_view, needs_mask
from cellbench.inference import onnx
from cellbench.inference.onnx_metadata import describe
from cellbench.inference.predict import warn_of
from cellbench.inference.rebuild import build_model
from cellbench.inference.temperature import Temperature
from cellbench.models.classifier import CellClassifier
from cellbench.training.lightning_output import quieten_lightning
from cellbench.utils.errors import UserError, counted
from cellbench.utils.terminal import say
from cellbench.utils.untrusted import check_replaceable, has_mark

BATCH_IMAGES = 64
"""Number of images that are compared at a time."""

MAX_IMAGES = 512
"""Greatest number of validation images to compare, as they are held in memory."""


class _Images(NamedTuple):
    """Images on which the file is compared with the checkpoint."""

    batches: Iterable[Tensor]
    """Batches, uint8, (B, C, H, W)."""
    origin: str
    """Their origin, for messages."""
    unreadable: Mapping[int, str]
    """Reason for each image that could not be read; filled while the batches are read."""
    note: str | None = None
    """Note on image files that were left out; None for none."""


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code is 1 if the file predicts another class for an image."""
    quieten_lightning()
    given = _parser().parse_args(list(args))
    if given.masks is not None and given.images is None:
        raise UserError("--masks: they are of --images, which is not given")
    folder = RunFolder.open(given.run)
    onnx.require_packages()
    output = given.output or folder.below("export", "model.onnx")
    compared = output.with_suffix(".check.json")
    check_replaceable("--output", output, onnx.is_export)
    check_replaceable("--output", compared, has_mark(b'{\n "on": '))
    described, state = read_checkpoint(folder.best)
    prepared = described.preprocessing
    model = build_model(described, state)
    if given.images is not None:
        images = _from_files(given.images, given.masks, prepared)
    else:
        images = _from_run(folder, model, prepared)
    metadata = describe(described, model, Temperature.of_run(folder))
    onnx.export(model, metadata, output)
    _show_file(output, metadata)
    check = onnx.compare(model, output, images.batches)
    _write_check(compared, check, images.origin)
    say(
        f"onnxruntime against torch on {check.n} {images.origin}: {check.same_class} of the same "
        f"class, probabilities differ by {check.largest_difference:.1e} at most"
    )
    if images.note:
        say(f"NOTE {images.note}")
    if images.unreadable:
        say(f"NOTE {counted(len(images.unreadable), 'image')} could not be read; left out")
    warn_of(folder, described)
    if check.same_class < check.n:
        changed = counted(check.n - check.same_class, "image")
        say(f"UNRELIABLE: another class by the ONNX file: {changed}")
        return 1
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m cellbench export",
        description="Write a run's best checkpoint as an ONNX file, from pixels to probabilities, "
        "and compare it with the checkpoint on real images. Exit code 1: an image has another "
        "class.",
    )
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument(
        "--output",
        type=Path | None,
        help="the file (RUN/export/model.onnx); the comparison is written beside, as .check.json",
    )
    parser.add_argument(
        "--images",
        type=Path | None,
        help="folder of images to compare on (the run's validation images)",
    )
    parser.add_argument("--masks", type=Path | None, help="folder of their masks, as of predict")
    return parser


def _show_file(path: Path, metadata: Mapping[str, Any]) -> None:
    """Print a file's inputs and outputs, and the preprocessing that it leaves to the user."""
    say(f"{metadata['backbone']}, {path.stat().st_size / 1e6:.1f} MB: {path}")
    say(f"in    {metadata['input']}\nout   {metadata['output']}")
    say("NOTE  not in the file, and to be done before (its metadata say so, too):")
    for number, step in enumerate(metadata["before"], start=1):
        say(f"  {number}. {step}")


def _write_check(path: Path, check: onnx.Check, origin: str) -> None:
    """Write the comparison, with the versions of the packages that took part."""
    versions = {name: version(name) for name in ("torch", *onnx.PACKAGES)}
    write_text(path, json.dumps({"on": origin} | asdict(check) | versions, indent=1) + "\n")


def _from_files(folder: Path, masks: Path | None, prepared: Preprocessing) -> _Images:
    """Return the images of a folder that can be read; the first batch is read at once."""
    images = UnlabelledImages([folder], masks, prepared)
    batches = _readable(images)
    first = next(batches, None)
    if first is None:
        raise UserError(f"--images: none of the images in {folder} can be read")
    return _Images(chain([first], batches), f"images of {folder}", images.unreadable, images.note)


def _readable(images: UnlabelledImages) -> Iterator[Tensor]:
    for first in range(0, len(images), BATCH_IMAGES):
        batch = images[list(range(first, min(first + BATCH_IMAGES, len(images))))]
        read = [position not in images.unreadable for position in batch.positions.tolist()]
        if any(read):
            yield batch.images[torch.tensor(read)]


def _from_run(folder: RunFolder, model: CellClassifier, prepared: Preprocessing) -> _Images:
    """Return some of the run's validation images, evenly spread; noise if they are missing."""
    try:
        data = read_data(folder)
        data.trained_format = prepared.image_format
        of_id = {sample.id: sample for sample in data.listed}
        ids = [row["id"] for row in read_split(folder.split) if row["split"] == "val"]
        chosen = [of_id[name] for name in ids[:: -(-len(ids) // MAX_IMAGES)]]
        batches = list(_of_samples(data, chosen, prepared))
        return _Images(batches, "of the run's validation images", {})
    except (UserError, KeyError) as error:
        say(f"NOTE the run's validation images cannot be read ({error}); give --images")
        return _Images(onnx.random_images(model), "images of noise", {})


def _of_samples(
    data: CellDataModule, samples: Sequence[Sample], prepared: Preprocessing
) -> Iterator[Tensor]:
    for first in range(0, len(samples), BATCH_IMAGES):
        batch = []
        for sample in samples[first : first + BATCH_IMAGES]:
            image, mask = data.read_image(sample), None
            if needs_mask(prepared.view) and prepared.masks == "expert":
                mask = data.read_mask(sample, image)
            image, mask = prepared.prepare(image, mask, sample.id)
            batch.append(torch.tensor(apply_view(image, mask, prepared.view, prepared.fill)))
        yield torch.stack(batch).permute(0, 3, 1, 2)
