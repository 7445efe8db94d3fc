"""Audit of a dataset and of the split that an experiment makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellbench.artifacts.conditions import Condition
from cellbench.audit.images import Images, measure_images
from cellbench.audit.labels import Doubtful, find_doubtful
from cellbench.audit.leaks import Leaks, find_leaks
from cellbench.audit.masks import Overlap, compare_masks
from cellbench.audit.shortcuts import Shortcut, find_shortcuts
from cellbench.data.mask_confidence import measure_confidence
from cellbench.data.module import CellDataModule
from cellbench.data.published import Check


@dataclass(frozen=True)
class Audit:
    """Findings about a dataset."""

    data: CellDataModule
    """The data module, without the images that cannot be read."""
    unreadable: dict[str, str]
    """Reasons why images cannot be read, by their ids; all other findings leave them out."""
    checks: list[Check]
    """Known facts about the dataset, compared with its files."""
    images: Images
    """Properties of the image files."""
    leaks: Leaks
    """Copies and groups, and the splits that divide them."""
    shortcuts: list[Shortcut]
    """Predictions of the class from something other than the cell."""
    overlap: Overlap | None
    """Agreement of automatic and expert masks; None if there are no expert masks."""
    confidence: np.ndarray | None
    """Confidence of the n automatic masks, (n,), 0 to 1, NaN where no cell is found; None if the
    images show no single cells."""
    doubtful: list[Doubtful]
    """Doubtful labels, according to each of the cross-validations given."""

    @property
    def holds(self) -> bool:
        """True if all folds of the chosen split can be drawn and none of them leaks."""
        return not any(each.leaks or each.error for each in self.leaks.chosen)

    @property
    def limits(self) -> str | None:
        """Sentence about the images whose near copies cannot be recognised; None without any."""
        n = int(self.images.plain.sum())
        if n == 0:
            return None
        which = "1 image has" if n == 1 else f"{n:,} images have"
        return (
            f"{which} too little texture to be told from a near copy; only exact copies are found "
            "there."
        )

    @property
    def verdict(self) -> str:
        """Sentence about the chosen split: it leaks, cannot be drawn, or does not leak."""
        chosen = self.leaks.chosen
        protocol = f"The {chosen[0].protocol} split"
        if self.leaks.leaks:
            worst = max(chosen, key=lambda each: each.near + each.groups)
            near = worst.protocol != "image" and self.data.copies == "exact"
            remedy = " data.copies: near keeps copies together." if near else ""
            return (
                f"{protocol} leaks: it divides sets of copies ({worst.near}, of which "
                f"{worst.identical} are identical) and groups ({worst.groups}) between its "
                f"parts.{remedy}"
            )
        for each in chosen:
            if each.error is not None:
                fold = "" if each.fold is None else f", fold {each.fold},"
                return f"{protocol}{fold} cannot be drawn: {each.error}"
        return f"{protocol} does not leak: no image, near copy or group is in two parts."


def audit(data: CellDataModule, runs: Sequence[Condition]) -> Audit:
    """Audit a dataset; expensive results are cached, so that an interrupted audit resumes.

    Args:
        data: The data module.
        runs: Cross-validations, each with one seed, whose predictions are compared with the labels.

    Raises:
        UserError: The dataset is missing, the meaning of its masks is uncertain, or results cannot
            be cached.
    """
    data = data.scaled_by_image  # the split, which other limits need, may not be to be believed
    _ = data.mask_set.survey  # before all that takes long
    images, unreadable = measure_images(data)
    data = data.without(unreadable)
    leaks = find_leaks(data)
    return Audit(
        data,
        unreadable,
        data.checks(),
        images,
        leaks,
        find_shortcuts(data, images, leaks.together),
        compare_masks(data, leaks.together),
        measure_confidence(data, data.table, data.cache) if data.segments else None,
        [find_doubtful(data, each) for each in runs],
    )
