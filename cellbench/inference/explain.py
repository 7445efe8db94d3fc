"""Explanation of a run: attributions of its test images, compared with the masks of their cells."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from cellbench.artifacts import figures
from cellbench.artifacts.attributions import Attribution, read_attributions, write_attributions
from cellbench.artifacts.checkpoint import read_checkpoint
from cellbench.artifacts.finished import Finished
from cellbench.data.module import CellDataModule
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.splits import read_split
from cellbench.data.table import Sample
from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS, Image, Mask, apply_view
from cellbench.inference.attribution_figure import Example, draw_examples
from cellbench.inference.attributions import STEPS, attribute_by_all
from cellbench.inference.rebuild import build_model
from cellbench.utils.errors import UserError, suggest

BATCH = 16
"""Images that are explained together."""

EXAMPLES = 2
"""Greatest number of correct, and of wrong, predictions of each class in the figure."""


class _Prepared(NamedTuple):
    """A test image, prepared for the network."""

    id: str
    """Id of the sample."""
    label: str
    """True class."""
    image: Image
    """The image as the network sees it, (H, W, channels)."""
    mask: Mask | None
    """Its mask, (H, W), whether the view shows it or not; None if there is none."""


def choose(ids: Iterable[str], n: int) -> list[str]:
    """Return at most n sample ids, sampled by a hash of each id, whatever their order."""
    return sorted(ids, key=lambda name: hashlib.blake2b(name.encode()).digest())[:n]


def is_done(run: Finished, n: int) -> bool:
    """Return True if a run has attributions of n test images, newer than its best checkpoint."""
    path = run.folder.attributions
    if not path.is_file() or path.stat().st_mtime_ns < run.folder.best.stat().st_mtime_ns:
        return False
    with suppress(UserError):  # a damaged file is written again
        return {a.id for a in read_attributions(path)} >= set(choose(run.test.ids, n))
    return False


def explain(run: Finished, data: CellDataModule, n: int) -> list[str]:
    """Write attributions.csv and figures/attributions.png into a run's folder.

    Args:
        run: A run with a best checkpoint.
        data: Its data module; only the images that are explained are read.
        n: Greatest number of test images; `choose` selects them.

    Returns:
        Notes for the user, a line each.

    Raises:
        UserError: An image or a mask is missing or has changed since the training, or a file cannot
            be written.
    """
    described, state = read_checkpoint(run.folder.best)
    model = build_model(described, state).requires_grad_(False)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if described.masks and described.masks != data.mask_set.digest:
        raise UserError("the masks have changed since the training; restore them")
    images = _read_images(run, data, described.preprocessing, choose(run.test.ids, n))
    nuclei = _distinguish_nuclei(images)
    rows: list[Attribution] = []
    examples: dict[tuple[str, bool], list[Example]] = defaultdict(list)
    notes: list[str] = []
    incomplete = 0
    for first in range(0, len(images), BATCH):
        batch = images[first : first + BATCH]
        pixels = torch.from_numpy(np.stack([each.image for each in batch])).permute(0, 3, 1, 2)
        by_method, notes = attribute_by_all(model, pixels, described.preprocessing.fill)
        incomplete += sum(found.incomplete for found in by_method.values())
        predicted = [model.classes[k] for k in next(iter(by_method.values())).predicted]
        for i, each in enumerate(batch):
            maps = {method: found.maps[i] for method, found in by_method.items()}
            for method, heat in maps.items():
                shares = _shares(np.abs(heat), each.mask, nuclei=nuclei)
                rows.append(Attribution(each.id, each.label, predicted[i], method, *shares))
            example = Example(each.label, predicted[i], each.image, each.mask, maps)
            if len(examples[each.label, example.correct]) < EXAMPLES:
                examples[each.label, example.correct].append(example)
    if incomplete:
        notes.append(
            f"integrated gradients of {incomplete} of {len(images)} images are not complete with "
            f"{STEPS[-1]} steps: {run.folder.path}"
        )
    figures.save(draw_examples(examples, model.classes), run.folder.figure("attributions"))
    write_attributions(run.folder.attributions, rows)  # last: it marks the run as explained
    return notes


def _read_images(
    run: Finished, data: CellDataModule, preprocessing: Preprocessing, ids: Sequence[str]
) -> list[_Prepared]:
    """Read and prepare test images as the network sees them.

    Raises:
        UserError: An image is missing or has changed since the training.
    """
    data.trained_format = preprocessing.image_format
    samples = {sample.id: sample for sample in data.listed}
    content = {row["id"]: row["content"] for row in read_split(run.folder.split)}
    images = []
    for name in ids:
        if name not in samples:
            raise UserError(f"'{name}' of the test split is missing{suggest(name, samples)}")
        sample = samples[name]
        if data.fingerprint(sample) != content[name]:
            raise UserError(f"the image '{name}' has changed since the training; restore it")
        original = data.read_image(sample)
        expert = data.read_mask(sample, original) if data.has_mask(sample) else None
        image, mask = preprocessing.prepare(original, expert, name)
        if mask is None:  # the raw view
            mask = _mask_for_comparison(original, expert, preprocessing, sample)
        image = apply_view(image, mask, preprocessing.view, preprocessing.fill)
        images.append(_Prepared(name, run.split.label[name], image, mask))
    return images


def _mask_for_comparison(
    image: Image, expert: Mask | None, preprocessing: Preprocessing, sample: Sample
) -> Mask | None:
    """Return the mask that another view would use, at the network's size; None if there is none."""
    if expert is None and preprocessing.masks == "expert":
        return None
    with suppress(UserError):  # no cell was found in the image
        masked = replace(preprocessing, view="masked", stain="none")
        return masked.prepare(image, expert, sample.id)[1]
    return None


def _distinguish_nuclei(images: Iterable[_Prepared]) -> bool:
    """Return True if the masks distinguish nucleus and cytoplasm."""
    values = {value for each in images if each.mask is not None for value in np.unique(each.mask)}
    return values >= {CYTOPLASM, NUCLEUS}


def _shares(weights: np.ndarray, mask: Mask | None, *, nuclei: bool) -> list[float | None]:
    """Return the shares of nucleus, cytoplasm and background: of the weights, then of the area.

    Args:
        weights: Weight of each pixel, not negative, (H, W).
        mask: The image's mask; without one, all shares are None.
        nuclei: True if the masks distinguish nucleus and cytoplasm; otherwise their shares are
            None.
    """
    shares: list[float | None] = []
    for each in (weights.astype(np.float64), np.ones(weights.shape)):
        total = each.sum()
        if mask is None or total == 0:
            shares += [None, None, None]
            continue
        background, cytoplasm, nucleus = (
            float(each[mask == value].sum() / total) for value in (BACKGROUND, CYTOPLASM, NUCLEUS)
        )
        shares += [nucleus, cytoplasm, background] if nuclei else [None, None, background]
    return shares
