"""Figures of a report."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from cellbench.metrics.probabilities import Bins
from cellbench.report.comparison import Comparison
from cellbench.report.report import Scored
from cellbench.utils.html_page import plain

COLOURS = ("#4477aa", "#cc6677", "#228833", "#aa7711", "#8855aa", "#117799", "#bb3388")
"""Colours that the colour-blind can tell apart (after Tol 2021), for white and black paper."""

WIDTH = 7.4
"""Width of a figure as wide as the page, inches."""


def forest(comparisons: Sequence[Comparison], rope: float, metric: str) -> Figure:
    """Draw each condition's difference from the reference with its interval, and pairs as dots.

    Args:
        comparisons: At least one, each with an interval.
        rope: Half the width of the region of practical equivalence, shaded.
        metric: The metric's name.
    """
    figure = Figure(figsize=(WIDTH, 0.9 + 0.42 * len(comparisons)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-rope, rope, color="#888888", alpha=0.25, lw=0)
    axes.axvline(0, color="#000000", lw=0.8)
    for row, one in enumerate(comparisons):
        found = one.contrast.difference
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        colour = COLOURS[0]
        each = [pair.value - pair.reference for pair in one.pairs]
        axes.plot(each, [row + 0.22] * len(each), "o", ms=3, alpha=0.45, color="#888888", mew=0)
        axes.plot([found.low, found.high], [row, row], color=colour, lw=2)
        axes.plot(found.mean, row, "s", color=colour, ms=6)
    axes.set_yticks(range(len(comparisons)), [plain(one.name) for one in comparisons], fontsize=9)
    axes.set_ylim(len(comparisons) - 0.5, -0.6)
    axes.set_xlabel(f"difference in {metric} to {plain(comparisons[0].reference)}", fontsize=9)
    _tidy(axes)
    return figure


def learning_curves(
    histories: Sequence[Sequence[Mapping[str, np.ndarray]]], names: Sequence[str]
) -> Figure:
    """Draw validation loss and accuracy by epoch: mean and range over each condition's runs.

    Args:
        histories: `loss` and `accuracy` by epoch of each run of each condition.
        names: Names of the conditions.
    """
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for k, runs in enumerate(histories):
            longest = max(len(rows[column]) for rows in runs)
            values = np.full((len(runs), longest), np.nan)
            for i, rows in enumerate(runs):
                values[i, : len(rows[column])] = rows[column]
            epochs, colour = np.arange(longest), COLOURS[k % len(COLOURS)]
            marker = "o" if longest == 1 else None
            mean = np.nanmean(values, axis=0)
            style = "--" if k >= len(COLOURS) else "-"
            axes.plot(epochs, mean, style, color=colour, marker=marker, label=plain(names[k]))
            axes.fill_between(
                epochs,
                np.nanmin(values, axis=0),
                np.nanmax(values, axis=0),
                color=colour,
                alpha=0.12,
                lw=0,
            )
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_ylabel(f"validation {column}", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _tidy(axes)
    figure.axes[0].set_yscale("log")  # a single bad epoch would flatten everything else
    figure.axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    figure.axes[0].yaxis.set_major_formatter("{x:g}")
    figure.axes[0].yaxis.set_minor_formatter(NullFormatter())
    figure.axes[1].legend(fontsize=8, frameon=False)
    return figure


def calibration(one: Scored) -> Figure:
    """Draw accuracy by confidence, before and after temperature scaling.

    Args:
        one: A condition.
    """
    figure = Figure(figsize=(2.9, 2.7), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#000000", lw=0.7, ls=":")
    curves = [("as it is", one.scores["calibration"], COLOURS[0])]
    if one.tempered is not None:
        curves.append(("tempered", one.bins, COLOURS[1]))
    for label, bins, colour in curves:
        x, y = [each["confidence"] for each in bins], [each["accuracy"] for each in bins]
        axes.plot(x, y, "o-", color=colour, ms=3, lw=1.2, label=label)
        if label == "as it is":
            pooled = one.pooled
            bars = Bins(pooled.labels, pooled.probabilities, pooled.groups).bars()
            axes.vlines(x, *bars.T, color=colour, lw=0.8, alpha=0.6)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(plain(one.condition.name), fontsize=9)
    axes.set_xlabel("confidence", fontsize=9)
    axes.set_ylabel("accuracy", fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    _tidy(axes)
    return figure


def curve(scored: Sequence[Scored], key: str, metric: str) -> Figure:
    """Draw the metric over the numbers of an option, one line per combination of the other options.

    Args:
        scored: The conditions.
        key: The option.
        metric: The metric.
    """
    by_label = lines(scored, key)
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.subplots()
    for k, (label, some) in enumerate(by_label.items()):
        points = [(value, one.scores["metrics"][metric]) for value, one in some]
        x, colour = [value for value, _ in points], COLOURS[k % len(COLOURS)]
        axes.plot(x, [e["value"] for _, e in points], "o-", color=colour, label=plain(label), ms=4)
        axes.fill_between(
            x,
            [e["low"] for _, e in points],
            [e["high"] for _, e in points],
            color=colour,
            alpha=0.12,
            lw=0,
        )
    positive = [value for some in by_label.values() for value, _ in some]
    if min(positive) > 0 and max(positive) / min(positive) > 20:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(key, fontsize=9)
    axes.set_ylabel(metric, fontsize=9)
    if len(by_label) > 1:
        axes.legend(fontsize=8, frameon=False)
    _tidy(axes)
    return figure


def lines(scored: Sequence[Scored], key: str) -> dict[str, list[tuple[float, Scored]]]:
    """Return the lines of a curve: three or more conditions that differ in one option alone.

    Args:
        scored: The conditions.
        key: The option, which is a number in each of them.

    Returns:
        By the values of the other options: the numbers, ascending, each with its condition.
    """
    others = [k for k in scored[0].condition.settings if k != key]
    found: dict[tuple[str, ...], list[tuple[float, Scored]]] = {}
    for one in scored:
        settings = one.condition.settings
        point = float(settings[key]), one
        found.setdefault(tuple(str(settings[k]) for k in others), []).append(point)
    whole = {values: points for values, points in found.items() if len(points) >= 3}
    varied = [i for i in range(len(others)) if len({values[i] for values in whole}) > 1]
    return {
        ", ".join(f"{others[i].rpartition('.')[2]} {values[i]}" for i in varied)[:60]: sorted(
            points, key=lambda point: point[0]
        )
        for values, points in whole.items()
    }


def _tidy(axes: Axes) -> None:
    """Make the labels small, and hide the frame at the top and the right."""
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
