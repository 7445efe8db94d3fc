"""The audit as one page, with everything in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import cellbench
from cellbench.audit import pictures
from cellbench.audit.audit import OUTLIERS, Audit
from cellbench.utils.html_page import render as fill

PAIRS, EXAMPLES, WORST = 40, 6, 10
"""At most so many pairs, images of a class, and images of a kind are shown; audit.json has all."""


def render(found: Audit, plain: dict[str, Any], name: str) -> str:
    """The page's HTML: it needs no other file and no network, and runs no script.

    Args:
        found: The audit.
        plain: The same as plain values.
        name: What it is the audit of.
    """
    data, looked, leaks = found.data, found.images, found.leaks
    table = data.table
    rng = np.random.default_rng(0)

    def describe(positions: Sequence[int] | np.ndarray) -> list[dict[str, str]]:
        samples = [table.samples[int(i)] for i in positions]
        return [
            {
                "id": sample.id,
                "class": table.classes[sample.label],
                "image": pictures.shown(data, int(i)),
            }
            for i, sample in zip(positions, samples, strict=True)
        ]

    def some(label: int) -> np.ndarray:
        own = np.flatnonzero(table.labels == label)
        return np.sort(rng.permutation(own)[:EXAMPLES])

    conflicting = {frozenset(pair) for pair in leaks.conflicts}
    near = sorted(leaks.near, key=lambda copy: copy.agreement)[:PAIRS]
    outlined: list[tuple[int, float | None]] = []
    if found.overlap is not None:
        worst = np.argsort(found.overlap.cell, kind="stable")[:WORST]
        outlined = list(zip(found.overlap.positions[worst], found.overlap.cell[worst], strict=True))
    elif data.shows_cells:
        outlined = [(i, None) for label in range(len(table.classes)) for i in some(label)[:3]]
    return fill(
        Path(__file__).with_name("page.html"),
        name=name,
        version=cellbench.__version__,
        audit=found,
        plain=plain,
        classes=[
            {
                "name": class_name,
                "mean": mean,
                "examples": describe(some(label)),
            }
            for label, (class_name, mean) in enumerate(
                zip(
                    table.classes,
                    pictures.mean_images(looked, table.labels, table.classes),
                    strict=True,
                )
            )
        ],
        histograms=pictures.histograms(looked, table.labels, table.classes),
        identical=[describe(positions[:4]) for positions in leaks.identical[:PAIRS]],
        near=[
            {
                "pair": describe((copy.first, copy.second)),
                "inliers": copy.inliers,
                "agreement": copy.agreement,
                "conflict": frozenset((copy.first, copy.second)) in conflicting,
            }
            for copy in near
        ],
        outliers={kind: describe(looked.outliers(kind)[:WORST]) for kind in OUTLIERS},
        outlined=[
            {
                "id": table.samples[i].id,
                "image": pictures.outlined(data, int(i)),
                "overlap": overlap,
            }
            for i, overlap in outlined
        ],
        doubtful=[
            [
                image | {"predicted": table.classes[label], "quality": quality}
                for image, label, quality in zip(
                    describe(each.positions[:PAIRS]),
                    each.predicted[:PAIRS],
                    each.quality[:PAIRS],
                    strict=True,
                )
            ]
            for each in found.doubtful
        ],
    )
