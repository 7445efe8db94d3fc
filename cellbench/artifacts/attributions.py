"""Attributions of test images, and attributions.csv: shares by region, and means over images."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from cellbench.artifacts.folder import write_text
from cellbench.metrics.intervals import mean_interval
from cellbench.utils.errors import UserError
from cellbench.utils.untrusted import open_text

Method = Literal["grad_cam", "integrated_gradients"]
"""
grad_cam: the last feature maps, weighted by the gradient of the predicted class's logit (Selvaraju
    et al., ICCV 2017); the positive part of their sum, enlarged to the image. Coarse.
integrated_gradients: the gradient of that logit with respect to each pixel, integrated from an
    image of the view's fill to the image itself (Sundararajan et al., ICML 2017). Fine; the sum is
    f(image) - f(fill). A pixel of the fill's own value gets none, so a black fill favours bright
    pixels.
Results depend on the method. For 32 raw hpv cells of one run, integrated gradients have a share of
.10 in the nucleus from a black fill and .46 from a white one; Grad-CAM has .66 in the cell, and .95
for a network with random weights. So compare conditions with each other, rather than a share with
the region's area.
"""

TITLES: Mapping[Method, str] = {
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "integrated gradients",
}
"""Names of the methods in tables and figures."""

REGIONS = ("nucleus", "cytoplasm", "background")
"""Regions of an image, in the order of their columns."""

HEADER = ("id", "label", "predicted", "method", *REGIONS, *(f"area_{name}" for name in REGIONS))
"""Columns of attributions.csv."""


@dataclass(frozen=True)
class Attribution:
    """Attribution of one image by one method, as shares of its regions.

    A share refers to the sum of the positive (Grad-CAM) or absolute (integrated gradients)
    attribution in the image. It is None if there is no mask, or no attribution. Nucleus and
    cytoplasm are None if the run's masks do not distinguish them.
    """

    id: str
    """Id of the sample."""
    label: str
    """True class."""
    predicted: str
    """Most probable class in float32; its logit is explained."""
    method: Method
    """Attribution method."""
    nucleus: float | None
    """Share of the attribution in the nucleus, 0 to 1."""
    cytoplasm: float | None
    """Share of the attribution in the cytoplasm, 0 to 1."""
    background: float | None
    """Share of the attribution outside the cell, 0 to 1."""
    area_nucleus: float | None
    """Share of the image's area in the nucleus: that of evenly spread attribution."""
    area_cytoplasm: float | None
    """Share of the image's area in the cytoplasm."""
    area_background: float | None
    """Share of the image's area outside the cell."""


@dataclass(frozen=True)
class Share:
    """Mean share of the attribution in a region."""

    value: float
    """Mean over the images, 0 to 1."""
    low: float
    """Lower end of its 95 % interval, from the variance between groups; 0 if there is one group."""
    high: float
    """Upper end of the interval; 1 if there is one group."""
    area: float
    """Mean share of the image's area in the region."""


@dataclass(frozen=True)
class Summary:
    """Mean attributions of one class, or of all classes."""

    method: Method
    """Attribution method."""
    label: str | None
    """The class; None for all classes."""
    n: int
    """Number of images; an image that several runs have tested counts once."""
    groups: int
    """Number of groups among the images."""
    regions: Mapping[str, Share]
    """Mean share by region: cell, background and, if the masks distinguish them, nucleus and
    cytoplasm."""


def read_attributions(path: Path) -> list[Attribution]:
    """Read an attributions.csv.

    Raises:
        UserError: The file is missing, or is not an attributions.csv.
    """
    try:
        with open_text(path) as file:
            header, *rows = csv.reader(file)
        if tuple(header) != HEADER:
            raise ValueError("wrong header")
        return [_parse(*row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read the attributions {path}: {error}") from error


def _parse(name: str, label: str, predicted: str, method: str, *values: str) -> Attribution:
    """Return the attribution in a row's cells."""
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method}")
    numbers = [float(value) if value else None for value in values]
    return Attribution(name, label, predicted, cast(Method, method), *numbers)


def write_attributions(path: Path, attributions: Iterable[Attribution]) -> None:
    """Write an attributions.csv.

    Raises:
        UserError: The file cannot be written.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(HEADER)
    for attribution in attributions:
        values = [getattr(attribution, column) for column in HEADER]
        rows.writerow([f"{v:.6f}" if isinstance(v, float) else v for v in values])
    write_text(path, text.getvalue())


def summarise(attributions: Sequence[Attribution], groups: Mapping[str, str]) -> list[Summary]:
    """Average the attributions of one run, or of several runs of one condition.

    Args:
        attributions: Attributions of images; those without shares do not count.
        groups: Group of each sample by its id. The intervals rest on the variance between groups.

    Returns:
        For each method, a summary over all classes, then one per class, sorted by name.
    """
    summaries = []
    for method in get_args(Method):
        own = [a for a in attributions if a.method == method and a.background is not None]
        for label in (None, *sorted({a.label for a in own})):
            some = [a for a in own if label in (None, a.label)]
            if some:
                summaries.append(_summary(method, label, some, groups))
    return summaries


def _summary(
    method: Method, label: str | None, some: Sequence[Attribution], groups: Mapping[str, str]
) -> Summary:
    """Average attributions of one method."""

    def column(prefix: str, region: str) -> np.ndarray:
        """Return a column of attributions.csv, (n,)."""
        values = [getattr(a, f"{prefix}{region}") for a in some]
        return np.array(values, dtype=np.float64)  # None becomes NaN

    regions = [name for name in REGIONS if not np.isnan(column("", name)).any()]
    shares = np.stack([1 - column("", "background"), *(column("", name) for name in regions)], 1)
    areas = [1 - column("area_", "background"), *(column("area_", name) for name in regions)]
    names, group = np.unique([groups[a.id] for a in some], return_inverse=True)
    counts = np.bincount(group)
    means = {}
    for i, name in enumerate(("cell", *regions)):
        sums = np.bincount(group, shares[:, i])
        low, high = map(float, mean_interval(sums, counts) if len(names) > 1 else (0, 1))
        means[name] = Share(float(shares[:, i].mean()), low, high, float(areas[i].mean()))
    return Summary(method, label, len({a.id for a in some}), len(names), means)
