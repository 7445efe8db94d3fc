"""Agreement of the automatic masks with the experts' masks."""

from dataclasses import dataclass

import numpy as np

from cellbench.audit.images import FORMAT
from cellbench.data import result_cache, segmentation
from cellbench.data.module import CellDataModule
from cellbench.data.views import BACKGROUND, NUCLEUS, Mask
from cellbench.metrics.intervals import mean_interval
from cellbench.utils.errors import UserError


@dataclass(frozen=True)
class Overlap:
    """Intersection over union of the automatic and the experts' masks of k images."""

    positions: np.ndarray
    """Positions of the images in the table, (k,)."""
    unreadable: dict[str, str]
    """Reasons why the expert masks of other images cannot be read, by the images' ids."""
    cell: np.ndarray
    """Overlap of the whole cell, (k,), 0 to 1; 0 if no cell was found."""
    nucleus: np.ndarray
    """Overlap of the nucleus, (k,), 0 to 1; NaN if the expert outlines none."""
    low: tuple[float, float]
    """Lower ends of the means' 95 % intervals, of cell and nucleus."""
    high: tuple[float, float]
    """Upper ends of the intervals."""


def compare_masks(data: CellDataModule, groups: np.ndarray) -> Overlap | None:
    """Compare automatic with expert masks, for every image that has an expert mask.

    Args:
        data: The data module.
        groups: Group of each of the n samples as a number, (n,); the intervals rest on the variance
            between groups.

    Returns:
        The overlap; None if there are no expert masks, or if the images
        do not show single cells in colours.

    Raises:
        UserError: No expert mask can be read, or results cannot be cached.
    """
    samples = data.table.samples
    masked = [i for i, sample in enumerate(samples) if data.has_mask(sample)]
    if not data.segments or not masked:
        return None

    def measure(k: int) -> result_cache.Found:
        """Return the overlap of one image's masks, (1, 2), or (0, 2) with an error."""
        sample = samples[masked[k]]
        image = data.read_image(sample)
        try:
            expert = data.read_mask(sample, image)
        except UserError as error:
            # Cached like an overlap, so that a second audit reports it too.
            reason = str(error).replace(f"mask {sample.mask}", "it").replace(str(sample.mask), "it")
            return {"overlap": np.zeros((0, 2)), "error": np.array([reason])}
        try:
            ours = segmentation.segment(image)
        except UserError:
            ours = np.zeros_like(expert)
        return {"overlap": np.array([_overlap(ours, expert)]), "error": np.array([""])}

    identities = [
        f"{FORMAT} {segmentation.FORMAT} {data.image_format.identity} {content} "
        f"{data.mask_fingerprint(sample)} {data.mask_format}"
        for sample, content in ((samples[i], data.table.fingerprints[i]) for i in masked)
    ]
    results = result_cache.for_each("comparing masks", identities, lambda: measure, data.cache)
    overlap = np.concatenate([each["overlap"] for each in results])
    errors = {i: str(each["error"][0]) for i, each in zip(masked, results, strict=True)}
    unreadable = {samples[i].id: error for i, error in errors.items() if error}
    positions = np.array([i for i, error in errors.items() if not error])
    if len(positions) == 0:
        raise UserError(f"no expert mask can be read; the first: {next(iter(unreadable.values()))}")
    low, high = _interval(overlap, groups[positions])
    return Overlap(positions, unreadable, overlap[:, 0], overlap[:, 1], low, high)


def _overlap(ours: Mask, expert: Mask) -> tuple[float, float]:
    """Return the intersection over union of cell and nucleus; NaN if the expert outlines none."""

    def share(a: np.ndarray, b: np.ndarray) -> float:
        """Return the intersection over union of two boolean masks."""
        return float((a & b).sum() / (a | b).sum()) if b.any() else float("nan")

    return share(ours > BACKGROUND, expert > BACKGROUND), share(ours == NUCLEUS, expert == NUCLEUS)


def _interval(
    overlap: np.ndarray, groups: np.ndarray
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the lower and the upper ends of the means' intervals, each for cell and nucleus.

    Args:
        overlap: Overlap of cell and nucleus, (k, 2); NaN where it is unknown.
        groups: Group of each image, (k,).
    """
    _, group = np.unique(groups, return_inverse=True)
    ends = []
    for column in overlap.T:
        known = np.isfinite(column)
        sums = np.bincount(group[known], column[known], minlength=group.max() + 1)
        counts = np.bincount(group[known], minlength=group.max() + 1)
        used = counts > 0
        ends.append(mean_interval(sums[used], counts[used]) if known.any() else (0.0, 1.0))
    (cell_low, cell_high), (nucleus_low, nucleus_high) = ends
    return (float(cell_low), float(nucleus_low)), (float(cell_high), float(nucleus_high))
