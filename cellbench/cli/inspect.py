"""Command `inspect`: show how a folder or a table of images is understood."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cellbench.artifacts.folder import write_text
from cellbench.cli.options.parser import Parser
from cellbench.data import files
from cellbench.data.cache import CacheConfig
from cellbench.data.image_format import ImageFormat, Intensity
from cellbench.data.mask_files import read_mask
from cellbench.data.mask_survey import survey_masks
from cellbench.data.reading.describe import describe, median
from cellbench.data.reading.experiment import MARK, as_text, plan_experiment
from cellbench.data.reading.npz import Archive, find_archive
from cellbench.data.reading.peek import Headers, pixel_options, read_headers, spread
from cellbench.data.reading.reading import Doubt, FolderOptions, Reading
from cellbench.data.reading.sources import read_images
from cellbench.utils.errors import UserError, one_line
from cellbench.utils.terminal import say
from cellbench.utils.untrusted import check_replaceable, has_mark

_SURVEYED = 200
"""Number of masks, evenly spread, whose values are looked into; so few need no cache."""


def main(args: Sequence[str]) -> int:
    """Run the command."""
    given = _parser().parse_args(list(args))
    if given.output is not None:
        check_replaceable("--output", given.output, has_mark(MARK.encode()))
    options = FolderOptions(given.mask_pattern, given.group_pattern, given.columns or {})
    reading = read_images(given.folder, given.csv, options)
    headers = _headers(reading, given.folder)
    size = None
    if headers.sizes:
        widths, heights = zip(*headers.sizes, strict=True)
        size = (median(widths), median(heights))
    pixels = pixel_options(first) if (first := reading.samples[0].image) else {}
    seen = _doubt_pixels(first, pixels) if first else []
    experiment, doubts = plan_experiment(reading, given.folder, size, pixels)
    for line in describe(reading, headers):
        say(line)
    values, of_masks = _survey_some_masks(reading)
    if values:
        say(f"values     {one_line(values)}")
    for doubt in (*reading.doubts, *doubts, *seen, *_doubt_headers(headers), *of_masks):
        say(f"DOUBT      {one_line(doubt)}")
    text = as_text(experiment, reading)
    say(f"\n{text}")
    if given.output is None:
        say("--output FILE writes this experiment, for fit --config FILE")
        return 0
    try:
        given.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make {error.filename}: {error.strerror}") from error
    write_text(given.output, text)
    say(f"Next: python -m cellbench fit --config {given.output}")
    return 0


def _headers(reading: Reading, folder: Path) -> Headers:
    """Return sizes and modes of the images."""
    paths = [sample.image for sample in reading.samples if sample.image is not None]
    if paths:
        return read_headers(paths)
    archive = find_archive(folder)
    assert archive is not None
    headers = Headers(len(reading.samples), len(reading.samples))
    headers.sizes = [Archive(archive).size]
    headers.modes["uint8, of an array"] = len(reading.samples)
    return headers


def _doubt_pixels(path: Path, options: Mapping[str, object]) -> list[Doubt]:
    """Return a doubt about an image that cannot be read with the options that it seems to need."""
    channels, intensity = options.get("channels"), options.get("intensity")
    image_format = ImageFormat(
        tuple(channels) if isinstance(channels, list) else None,
        Intensity("percentile 1", "percentile 99") if intensity else None,
    )
    try:
        files.read_image(path, image_format=image_format)
    except UserError as error:
        return [Doubt(str(error))]
    return []


def _survey_some_masks(reading: Reading) -> tuple[str, list[Doubt]]:
    """Return what the values of some masks mean, empty without masks, and doubts about them."""
    pairs = [(s.image, s.mask) for s in reading.samples if s.image and s.mask]
    some = spread(pairs, _SURVEYED)
    if not some:
        return "", []
    what = f"of {len(some):,} of {len(pairs):,} masks"
    masks = [mask for _, mask in some]
    try:
        survey = survey_masks(masks, [""] * len(some), None, None, CacheConfig(), files.MAX_PIXELS)
    except UserError as error:
        return f"{what}: not certain", [Doubt(str(error))]
    refused = []
    for image, mask in some:
        try:
            shape = *files.read_size(image), 3
            read_mask(mask, np.broadcast_to(np.uint8(0), shape), survey.format)  # its shape alone
        except UserError as error:
            refused.append(error)
    if not refused:
        return f"{what}: {survey.text}", []
    n = f"{len(refused)} of {len(some):,} masks that were looked into"
    return f"{what}: {survey.text}", [Doubt(f"{n} cannot be used: {refused[0]}")]


def _doubt_headers(headers: Headers) -> list[Doubt]:
    """Return doubts about files whose header is no image's, and about images of several depths."""
    depths = Counter[str]()
    for mode, n in headers.modes.items():
        if depth := re.search(r"\d+ bit(?: float)?", mode):
            depths[depth[0]] += n
    several = [
        Doubt(
            f"{' and '.join(f'{n} images of {depth}' for depth, n in depths.most_common())}: no "
            "scale of the dataset fits all; convert them, or scale each by itself",
            "data.intensity: per: image",
        )
    ]
    if depths.keys() <= {"1 bit", "8 bit"} or len(depths) < 2:
        several = []
    if not headers.unreadable:
        return several
    return [
        *several,
        Doubt(
            f"{len(headers.unreadable)} of {headers.looked} files that were looked at are no "
            f"images or damaged, such as {headers.unreadable[0]}; audit lists all of them",
            "data.exclude",
        ),
    ]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m cellbench inspect",
        description="Show how a folder or a table of images is understood: classes, parts, groups, "
        "masks, what is left out, and what looks suspicious; and the experiment that follows.",
    )
    parser.add_argument("folder", type=Path, help="the folder, as for data.root")
    parser.add_argument("--csv", type=Path | None, help="a table of the images, as for data.csv")
    parser.add_argument(
        "--columns", type=dict[str, str | None] | None, help="its columns, as for data.columns"
    )
    parser.add_argument("--mask_pattern", type=str | None, help="as for data.mask_pattern")
    parser.add_argument("--group_pattern", type=str | None, help="as for data.group_pattern")
    parser.add_argument("--output", type=Path | None, help="the experiment's file to write (.yaml)")
    return parser
