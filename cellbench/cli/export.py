"""export: writes a run's best checkpoint as an ONNX file, and checks that it says the same."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from cellbench.artifacts.checkpoint import read_checkpoint
from cellbench.artifacts.folder import RunFolder, write_text
from cellbench.cli.console import quieten_lightning
from cellbench.cli.parser import Parser
from cellbench.cli.stored import read_data
from cellbench.data.module import CellDataModule
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.splits import read_split
from cellbench.data.table import Sample
from cellbench.data.unlabelled import UnlabelledImages
from cellbench.data.views import apply_view, needs_mask
from cellbench.inference import onnx
from cellbench.inference.predict import Temperature, warn_of
from cellbench.inference.rebuild import build_model
from cellbench.utils.errors import UserError, counted
from cellbench.utils.terminal import say
from cellbench.utils.untrusted import check_replaceable, has_mark

TOGETHER = 64
"""Images that are compared at a time."""

MOST = 512
"""Validation images that are compared, evenly spread over the split: they are held in memory."""


def main(args: Sequence[str]) -> int:
    """Runs the command; the exit code is 1 where the file gives an image another class."""
    parser = Parser(
        prog="python -m cellbench export",
        description="Writes a run's best checkpoint as an ONNX file, from pixels to probabilities, "
        "and compares it with the checkpoint on real images. Exit code 1: an image has another "
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
    quieten_lightning()
    given = parser.parse_args(list(args))
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
    batches: Iterable[Tensor]
    if given.images is not None:
        shown = UnlabelledImages([given.images], given.masks, prepared)
        batches, what = _of_files(shown, given.images), f"images of {given.images}"
    else:
        batches, what = _of_run(folder, prepared)
    model = build_model(described, state)
    metadata = onnx.describe(described, model, Temperature.of_run(folder))
    onnx.export(model, metadata, output)
    say(f"{metadata['backbone']}, {output.stat().st_size / 1e6:.1f} MB: {output}")
    say(f"in    {metadata['input']}\nout   {metadata['output']}")
    say("NOTE  not in the file, and to be done before (its metadata say so, too):")
    for number, step in enumerate(metadata["before"], start=1):
        say(f"  {number}. {step}")
    check = onnx.compare(model, output, batches)
    versions = {name: version(name) for name in ("torch", *onnx.PACKAGES)}
    write_text(compared, json.dumps({"on": what} | asdict(check) | versions, indent=1) + "\n")
    say(
        f"onnxruntime against torch on {check.n} {what}: {check.same_class} of the same class, "
        f"probabilities differ by {check.largest_difference:.1e} at most"
    )
    if given.images is not None and shown.note:
        say(f"NOTE {shown.note}")
    if given.images is not None and shown.unreadable:
        say(f"NOTE {counted(len(shown.unreadable), 'image')} could not be read; left out")
    warn_of(folder, described)
    if check.same_class < check.n:
        changed = counted(check.n - check.same_class, "image")
        say(f"UNRELIABLE: another class by the ONNX file: {changed}")
        return 1
    return 0


def _of_files(shown: UnlabelledImages, images: Path) -> Iterator[Tensor]:
    """The images of files that can be read, in batches, of which the first is read at once."""
    batches = _readable(shown)
    first = next(batches, None)
    if first is None:
        raise UserError(f"--images: none of the images in {images} can be read")
    return chain([first], batches)


def _readable(shown: UnlabelledImages) -> Iterator[Tensor]:
    for first in range(0, len(shown), TOGETHER):
        batch = shown[list(range(first, min(first + TOGETHER, len(shown))))]
        read = [position not in shown.unreadable for position in batch.positions.tolist()]
        if any(read):
            yield batch.images[torch.tensor(read)]


def _of_run(folder: RunFolder, prepared: Preprocessing) -> tuple[Iterable[Tensor], str]:
    """The run's validation images, or noise where they are not there any more; and what it is."""
    try:
        data = read_data(folder)
        of_id = {sample.id: sample for sample in data.listed}
        ids = [row["id"] for row in read_split(folder.split) if row["split"] == "val"]
        chosen = [of_id[name] for name in ids[:: -(-len(ids) // MOST)]]
        batches = list(_of_samples(data, chosen, prepared))
        return batches, "of the run's validation images"
    except (UserError, KeyError) as error:
        say(f"NOTE the run's validation images are not to be had ({error}); give --images")
        return onnx.noise(prepared), "images of noise"


def _of_samples(
    data: CellDataModule, samples: Sequence[Sample], prepared: Preprocessing
) -> Iterator[Tensor]:
    for first in range(0, len(samples), TOGETHER):
        shown = []
        for sample in samples[first : first + TOGETHER]:
            image, mask = data.read_image(sample), None
            if needs_mask(prepared.view) and prepared.masks == "expert":
                mask = data.read_mask(sample, image)
            image, mask = prepared.prepare(image, mask, sample.id)
            shown.append(torch.tensor(apply_view(image, mask, prepared.view, prepared.fill)))
        yield torch.stack(shown).permute(0, 3, 1, 2)
