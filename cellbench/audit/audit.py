"""One look at a dataset: what it is, what leaks, what gives the class away."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import cellbench
from cellbench.artifacts.conditions import Condition
from cellbench.audit import images, labels, leaks, masks, shortcuts
from cellbench.audit.images import Images
from cellbench.audit.labels import Doubtful
from cellbench.audit.leaks import Leaks
from cellbench.audit.masks import Overlap
from cellbench.audit.shortcuts import Shortcut
from cellbench.data.module import CellDataModule, Check

OUTLIERS = ("blur", "brightness", "clipped")


@dataclass(frozen=True)
class Audit:
    """What is found of a dataset.

    Attributes:
        data: Its data module, without the images that cannot be read.
        unreadable: Why images cannot be read, by their ids; all else is of the others.
        checks: What is known of it, and whether it holds.
        images: What its files are.
        leaks: What belongs together, and what the splits do to it.
        shortcuts: What gives the class away beside the cell.
        overlap: The automatic masks against the experts'; None without experts.
        doubtful: The doubtful labels, by the runs that were given.
    """

    data: CellDataModule
    unreadable: dict[str, str]
    checks: list[Check]
    images: Images
    leaks: Leaks
    shortcuts: list[Shortcut]
    overlap: Overlap | None
    doubtful: list[Doubtful]

    @property
    def holds(self) -> bool:
        """Whether the chosen split can be drawn in all its folds, and leaks in none."""
        return not any(each.leaks or each.error for each in self.leaks.chosen)

    @property
    def verdict(self) -> str:
        """Whether the chosen split can be believed, in a sentence."""
        chosen = self.leaks.chosen
        protocol = f"The {chosen[0].protocol} split"
        if self.leaks.leaks:
            worst = max(chosen, key=lambda each: each.near + each.groups)
            near = worst.protocol != "image" and self.data.copies == "exact"
            mend = " data.copies: near makes groups of what shows the same." if near else ""
            return (
                f"{protocol} leaks: in more than one part stand sets of images that show the same "
                f"({worst.near}, of which {worst.identical} of identical ones) and groups "
                f"({worst.groups}).{mend}"
            )
        for each in chosen:
            if each.error is not None:
                fold = "" if each.fold is None else f", fold {each.fold},"
                return f"{protocol}{fold} cannot be drawn: {each.error}"
        return f"{protocol} does not leak: no image, near copy or group stands in two parts."


def audit(data: CellDataModule, runs: Sequence[Condition]) -> Audit:
    """Looks at a dataset; what takes long is kept, so that an interrupted audit goes on.

    Args:
        data: Its data module.
        runs: Cross-validations, each with one seed, by which labels are doubted.

    Raises:
        UserError: The dataset is not there, or what is found cannot be kept.
    """
    looked, unreadable = images.look(data)
    data = data.without(unreadable)
    found = leaks.look(data)
    return Audit(
        data,
        unreadable,
        data.checks(),
        looked,
        found,
        shortcuts.look(data, looked, found.together),
        masks.compare(data, found.together),
        [labels.find(data, each) for each in runs],
    )


def as_plain(found: Audit) -> dict[str, Any]:
    """All values of an audit, ready for JSON."""
    data, looked, table = found.data, found.images, found.data.table
    ids = [sample.id for sample in table.samples]
    counts = np.bincount(table.labels, minlength=len(table.classes))
    return {
        "cellbench": cellbench.__version__,
        "data": type(data).__name__,
        "n": len(table),
        "leaks": found.leaks.leaks,
        "holds": found.holds,
        "verdict": found.verdict,
        "classes": {
            name: {"images": int(counts[i]), "groups": found.leaks.groups[i]}
            for i, name in enumerate(table.classes)
        },
        "checks": [asdict(check) for check in found.checks],
        "unreadable": found.unreadable,
        "formats": tally(looked.format),
        "modes": tally(looked.mode),
        "sizes": tally([f"{w}x{h}" for h, w in looked.shape]),
        "outliers": {
            name: [{"id": ids[i], "value": float(getattr(looked, name)[i])} for i in where]
            for name, where in ((name, looked.outliers(name)) for name in OUTLIERS)
        },
        "identical": [[ids[i] for i in positions] for positions in found.leaks.identical],
        "near_copies": [
            asdict(copy) | {"first": ids[copy.first], "second": ids[copy.second]}
            for copy in found.leaks.near
        ],
        "conflicts": [[ids[a], ids[b]] for a, b in found.leaks.conflicts],
        "splits": [asdict(each) for each in found.leaks.crossings],
        "shortcuts": [asdict(each) | {"tells": each.tells} for each in found.shortcuts],
        "masks": None if found.overlap is None else summary(found.overlap, ids),
        "doubtful": [
            {
                "experiment": each.experiment,
                "n": each.n,
                "stamps": list(each.stamps),
                "doubted": None if each.doubted is None else asdict(each.doubted),
                "others": None if each.others is None else asdict(each.others),
                "images": [
                    {"id": ids[i], "label": table.classes[table.labels[i]], "predicted": name}
                    | {"quality": float(quality)}
                    for i, name, quality in zip(
                        each.positions,
                        (table.classes[label] for label in each.predicted),
                        each.quality,
                        strict=True,
                    )
                ],
            }
            for each in found.doubtful
        ],
    }


def tally(values: Sequence[str] | np.ndarray) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    names, counts = np.unique(np.asarray(values, dtype=str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(names[i]): int(counts[i]) for i in order}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def summary(overlap: Overlap, ids: Sequence[str]) -> dict[str, Any]:
    """Mean with interval, and fifth percentile, of cell and nucleus; each image's."""
    parts = {"cell": overlap.cell}
    if not np.isnan(overlap.nucleus).all():  # some experts mark the cell alone
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
