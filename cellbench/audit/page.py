"""Page of an audit: one HTML file that needs no other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import cellbench
from cellbench.audit import pictures
from cellbench.audit.audit import Audit
from cellbench.audit.images import OUTLIERS
from cellbench.data.module import CellDataModule
from cellbench.data.table import SampleTable
from cellbench.utils.html_page import render as fill

PAIRS, EXAMPLES, WORST, OUTLINED = 40, 6, 10, 3
"""Greatest numbers on the page: of pairs, examples of a class, extreme images of a kind, and
outlined images of a class. audit.json has all."""


def render(audit: Audit, plain: dict[str, Any], name: str) -> str:
    """Return the page's HTML, which needs no other file and no network, and runs no script.

    Args:
        audit: The audit.
        plain: The same from `as_plain`.
        name: Name of the experiment or dataset.
    """
    data, images, leaks = audit.data, audit.images, audit.leaks
    rng = np.random.default_rng(0)
    outlined = _outlined(audit, rng)
    return fill(
        Path(__file__).with_name("page.html"),
        name=name,
        version=cellbench.__version__,
        audit=audit,
        plain=plain,
        classes=_classes(audit, rng),
        histograms=pictures.draw_histograms(images, data.table.labels, data.table.classes),
        identical=[_describe(data, positions[:4]) for positions in leaks.identical[:PAIRS]],
        near=_near_copies(audit),
        outliers={kind: _describe(data, images.outliers(kind)[:WORST]) for kind in OUTLIERS},
        outlined=outlined,
        doubtful=_doubtful(audit),
    )


def _describe(data: CellDataModule, positions: Sequence[int] | np.ndarray) -> list[dict[str, str]]:
    """Return id, class and image of some samples."""
    samples = [data.table.samples[int(i)] for i in positions]
    return [
        {
            "id": sample.id,
            "class": data.table.classes[sample.label],
            "image": pictures.image_url(data, int(i)),
        }
        for i, sample in zip(positions, samples, strict=True)
    ]


def _examples(table: SampleTable, label: int, rng: np.random.Generator) -> np.ndarray:
    """Return the positions of random samples of a class, sorted."""
    own = np.flatnonzero(table.labels == label)
    return np.sort(rng.permutation(own)[:EXAMPLES])


def _outlined(audit: Audit, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return images with the outlines of their masks.

    These are the images with the least overlap of automatic and expert mask. Without expert masks
    they are random images of each class, and there are none if the images show no single cells.
    """
    data, overlap = audit.data, audit.overlap
    chosen: list[tuple[int, float | None]] = []
    if overlap is not None:
        worst = np.argsort(overlap.cell, kind="stable")[:WORST]
        chosen = list(zip(overlap.positions[worst], overlap.cell[worst], strict=True))
    elif data.shows_cells:
        labels = range(len(data.table.classes))
        chosen = [(i, None) for k in labels for i in _examples(data.table, k, rng)[:OUTLINED]]
    return [
        {
            "id": data.table.samples[i].id,
            "image": pictures.outlines_url(data, int(i)),
            "overlap": value,
        }
        for i, value in chosen
    ]


def _classes(audit: Audit, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return name, mean image and random examples of each class."""
    table = audit.data.table
    means = pictures.mean_images(audit.images, table.labels, table.classes)
    return [
        {
            "name": name,
            "mean": mean,
            "examples": _describe(audit.data, _examples(table, label, rng)),
        }
        for label, (name, mean) in enumerate(zip(table.classes, means, strict=True))
    ]


def _near_copies(audit: Audit) -> list[dict[str, Any]]:
    """Return pairs of near copies, those that agree least first."""
    conflicting = {frozenset(pair) for pair in audit.leaks.conflicts}
    return [
        {
            "pair": _describe(audit.data, (copy.first, copy.second)),
            "inliers": copy.inliers,
            "agreement": copy.agreement,
            "conflict": frozenset((copy.first, copy.second)) in conflicting,
        }
        for copy in sorted(audit.leaks.near, key=lambda copy: copy.agreement)[:PAIRS]
    ]


def _doubtful(audit: Audit) -> list[list[dict[str, Any]]]:
    """Return the images with doubtful labels, according to each cross-validation."""
    classes = audit.data.table.classes
    return [
        [
            image | {"predicted": classes[label], "quality": quality}
            for image, label, quality in zip(
                _describe(audit.data, each.positions[:PAIRS]),
                each.predicted[:PAIRS],
                each.quality[:PAIRS],
                strict=True,
            )
        ]
        for each in audit.doubtful
    ]
