"""How well the automatic masks agree with the experts'."""

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
    """Intersection over union of the automatic and the experts' masks of n images.

    Attributes:
        positions: The images' positions in the table, (n,).
        unreadable: Why other experts' masks cannot be read, by the ids.
        cell: Of the whole cell, (n,); 0 where no cell was found.
        nucleus: Of the nucleus, (n,); NaN where the expert marks none.
        low: Lower ends of the means' 95 % intervals, of cell and nucleus.
        high: Upper ends.
    """

    positions: np.ndarray
    unreadable: dict[str, str]
    cell: np.ndarray
    nucleus: np.ndarray
    low: tuple[float, float]
    high: tuple[float, float]


def compare(data: CellDataModule, groups: np.ndarray) -> Overlap | None:
    """Compare our masks with the expert's, in every image that has one; None if none has.

    Args:
        data: The data module.
        groups: Each sample's group as a number, (n,); the intervals rest on the variance between
            groups.
    """
    samples = data.table.samples
    masked = [i for i, sample in enumerate(samples) if data.has_mask(sample)]
    if not data.shows_cells or not masked:
        return None

    def find(k: int) -> result_cache.Found:
        sample = samples[masked[k]]
        image = data.read_image(sample)
        try:
            expert = data.read_mask(sample, image)
        except UserError as error:
            # Kept with the rest: else a second audit would not know of it.
            reason = str(error).replace(f"mask {sample.mask}", "it").replace(str(sample.mask), "it")
            return {"overlap": np.zeros((0, 2)), "error": np.array([reason])}
        try:
            ours = segmentation.segment(image)
        except UserError:
            ours = np.zeros_like(expert)
        return {"overlap": np.array([_overlap(ours, expert)]), "error": np.array([""])}

    identities = [
        f"{FORMAT} {segmentation.FORMAT} {content} {data.mask_fingerprint(sample)}"
        for sample, content in ((samples[i], data.table.fingerprints[i]) for i in masked)
    ]
    found = result_cache.for_each("comparing masks", identities, lambda: find, data.cache)
    overlap = np.concatenate([each["overlap"] for each in found])
    errors = {i: str(each["error"][0]) for i, each in zip(masked, found, strict=True)}
    unreadable = {samples[i].id: error for i, error in errors.items() if error}
    positions = np.array([i for i, error in errors.items() if not error])
    if len(positions) == 0:
        raise UserError(
            f"no expert's mask can be read; the first: {next(iter(unreadable.values()))}"
        )
    low, high = _interval(overlap, groups[positions])
    return Overlap(positions, unreadable, overlap[:, 0], overlap[:, 1], low, high)


def _overlap(ours: Mask, expert: Mask) -> tuple[float, float]:
    def share(a: np.ndarray, b: np.ndarray) -> float:
        return float((a & b).sum() / (a | b).sum()) if b.any() else float("nan")

    return share(ours > BACKGROUND, expert > BACKGROUND), share(ours == NUCLEUS, expert == NUCLEUS)


def _interval(
    overlap: np.ndarray, groups: np.ndarray
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the means' intervals: the lower ends of cell and nucleus, and the upper ones."""
    _, group = np.unique(groups, return_inverse=True)
    ends = []
    for column in overlap.T:
        known = np.isfinite(column)
        sums = np.bincount(group[known], column[known], minlength=group.max() + 1)
        counts = np.bincount(group[known], minlength=group.max() + 1)
        held = counts > 0
        ends.append(mean_interval(sums[held], counts[held]) if known.any() else (0.0, 1.0))
    (cell_low, cell_high), (nucleus_low, nucleus_high) = ends
    return (float(cell_low), float(nucleus_low)), (float(cell_high), float(nucleus_high))
