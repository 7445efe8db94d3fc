"""Audit as plain values, for audit.json and the page."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

import cellbench
from cellbench.audit.audit import Audit
from cellbench.audit.images import OUTLIERS
from cellbench.audit.labels import Doubtful
from cellbench.audit.masks import Overlap
from cellbench.data.mask_confidence import find_doubtful
from cellbench.data.segmentation import DOUBTFUL
from cellbench.data.table import SampleTable


def as_plain(audit: Audit) -> dict[str, Any]:
    """Return all values of an audit as dictionaries, lists, texts and numbers, ready for JSON."""
    data, images, leaks, table = audit.data, audit.images, audit.leaks, audit.data.table
    ids = [sample.id for sample in table.samples]
    counts = np.bincount(table.labels, minlength=len(table.classes))
    return {
        "cellbench": cellbench.__version__,
        "data": type(data).__name__,
        "n": len(table),
        "leaks": leaks.leaks,
        "holds": audit.holds,
        "verdict": audit.verdict,
        "classes": {
            name: {"images": int(counts[i]), "groups": leaks.groups[i]}
            for i, name in enumerate(table.classes)
        },
        "checks": [asdict(check) for check in audit.checks],
        "unreadable": audit.unreadable,
        "formats": _count_values(images.format),
        "modes": _count_values(images.mode),
        "sizes": _count_values([f"{w}x{h}" for h, w in images.shape]),
        "outliers": {
            name: [
                {"id": ids[i], "value": float(getattr(images, name)[i])}
                for i in images.outliers(name)
            ]
            for name in OUTLIERS
        },
        "identical": [[ids[i] for i in positions] for positions in leaks.identical],
        "near_copies": [
            asdict(copy) | {"first": ids[copy.first], "second": ids[copy.second]}
            for copy in leaks.near
        ],
        "too_plain_for_near_copies": [ids[i] for i in np.flatnonzero(images.plain)],
        "conflicts": [[ids[a], ids[b]] for a, b in leaks.conflicts],
        "splits": [asdict(crossing) for crossing in leaks.crossings],
        "shortcuts": [asdict(shortcut) | {"tells": shortcut.tells} for shortcut in audit.shortcuts],
        "masks": None
        if audit.overlap is None
        else {"format": data.mask_set.survey.text, **_plain_overlap(audit.overlap, ids)},
        "automatic_masks": None
        if audit.confidence is None
        else _plain_confidence(audit.confidence, ids),
        "doubtful": [_plain_doubtful(each, table) for each in audit.doubtful],
    }


def _count_values(values: Sequence[str] | np.ndarray) -> dict[str, int]:
    """Return the number of occurrences of each value, the most frequent first."""
    names, counts = np.unique(np.asarray(values, dtype=str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(names[i]): int(counts[i]) for i in order}


def _plain_overlap(overlap: Overlap, ids: Sequence[str]) -> dict[str, Any]:
    """Return the agreement of the masks: summaries of cell and nucleus, and values per image."""
    parts = {"cell": overlap.cell}
    if not np.isnan(overlap.nucleus).all():  # some experts outline the cell only
        parts["nucleus"] = overlap.nucleus
    return {
        "n": len(overlap.cell),
        "unreadable": overlap.unreadable,
        **{
            name: {
                "mean": float(np.nanmean(values)),
                "low": overlap.low[i],
                "high": overlap.high[i],
                "fifth_percentile": float(np.nanquantile(values, 0.05)),
            }
            for i, (name, values) in enumerate(parts.items())
        },
        "images": {
            ids[position]: {part: _number(values[i]) for part, values in parts.items()}
            for i, position in enumerate(overlap.positions)
        },
    }


def _plain_confidence(confidence: np.ndarray, ids: Sequence[str]) -> dict[str, Any]:
    """Return the doubtful automatic masks, and the images in which no cell is found."""
    doubtful = find_doubtful(confidence)
    return {
        "n": len(confidence),
        "threshold": DOUBTFUL,
        "doubtful": [{"id": ids[i], "confidence": float(confidence[i])} for i in doubtful],
        "no_cell": [ids[int(i)] for i in np.flatnonzero(np.isnan(confidence))],
    }


def _number(value: float) -> float | None:
    """Return a number, or None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)


def _plain_doubtful(doubtful: Doubtful, table: SampleTable) -> dict[str, Any]:
    """Return the doubtful labels according to one cross-validation."""
    return {
        "experiment": doubtful.experiment,
        "n": doubtful.n,
        "stamps": list(doubtful.stamps),
        "doubted": None if doubtful.doubted is None else asdict(doubtful.doubted),
        "others": None if doubtful.others is None else asdict(doubtful.others),
        "images": [
            {
                "id": table.samples[i].id,
                "label": table.classes[table.labels[i]],
                "predicted": table.classes[predicted],
                "quality": float(quality),
            }
            for i, predicted, quality in zip(
                doubtful.positions, doubtful.predicted, doubtful.quality, strict=True
            )
        ],
    }
