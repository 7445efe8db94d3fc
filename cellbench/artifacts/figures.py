"""Figures of a run, drawn on matplotlib's objects without a display or global state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cellbench.artifacts.folder import whole_file
from cellbench.data.dataset import Batch
from cellbench.data.views import as_rgb
from cellbench.utils.html_page import plain

TRAIN, VAL, MARK = "#4477aa", "#cc6677", "#222222"  # distinct for the colour-blind (Tol 2021)


def save(figure: Figure, path: Path, description: str | None = None) -> None:
    """Write a figure as a PNG.

    Args:
        figure: The figure.
        path: The file.
        description: Text for the file's metadata, if any.

    Raises:
        UserError: The file cannot be written.
    """
    with whole_file(path) as beside:
        # Half the time of the default level, and a tenth more bytes.
        figure.savefig(
            beside,
            format="png",
            dpi=120,
            metadata={"Description": description} if description else None,
            pil_kwargs={"compress_level": 3},
        )


def sample_sheet(batches: Sequence[tuple[str, Batch]], classes: Sequence[str]) -> Figure:
    """Draw images as the network sees them, each with its class, one row per part of the split.

    Args:
        batches: Title and images of each row; at most eight images of a batch are shown.
        classes: The class names.
    """
    columns = max(min(8, len(batch.labels)) for _, batch in batches)
    height, width = batches[0][1].images.shape[-2:]
    # One pair of axes for all images, in units of their width: each pair takes half a second.
    tall, gap, words, left = height / width, 0.06, 0.26, 0.3
    total = (left + columns * (1 + gap), len(batches) * (tall + words))
    figure = Figure(figsize=(1.3 * total[0], 1.3 * total[1]))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, total[0]), ylim=(total[1], 0))
    axes.axis("off")
    for row, (title, batch) in enumerate(batches):
        top = row * (tall + words) + words - gap
        axes.text(left / 2, top + tall / 2, title, rotation=90, ha="center", va="center")
        for column in range(min(columns, len(batch.labels))):
            x = left + column * (1 + gap)
            name = plain(classes[int(batch.labels[column])])
            axes.text(x + 0.5, top - gap, name, ha="center", fontsize=8)
            image = as_rgb(batch.images[column].permute(1, 2, 0).numpy())
            axes.imshow(image, extent=(x, x + 1, top + tall, top), interpolation="nearest")
    axes.set(xlim=(0, total[0]), ylim=(total[1], 0), aspect="auto")
    return figure


def confusion(scores: dict[str, Any], classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix: counts, shaded by the share of the true class.

    Args:
        scores: Scores of one part of the split, as in metrics.json.
        classes: The class names.
        title: The figure's title.
    """
    counts = np.array(scores["confusion"])
    side = 1.9 + 0.72 * len(classes)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True)
    shaded = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        colour = "white" if shares[i, j] > 0.55 else MARK
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour)
    recall = {name: own["recall"] for name, own in scores["classes"].items()}
    rows = [
        f"{plain(name)} (n = {scores['classes'][name]['n']})\nrecall {recall[name]['value']:.2f} "
        f"[{recall[name]['low']:.2f}, {recall[name]['high']:.2f}]"
        for name in classes
    ]
    axes.set_yticks(range(len(classes)), rows, fontsize=8)
    axes.set_xticks(range(len(classes)), map(plain, classes), rotation=45, ha="right", fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    accuracy = scores["metrics"]["accuracy"]
    axes.set_title(
        f"{title}\naccuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, "
        f"{accuracy['high']:.3f}], majority {accuracy['baseline']:.3f}, n = {scores['n']}",
        fontsize=9,
    )
    figure.colorbar(shaded, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def learning_curves(
    rows: Sequence[dict[str, float]], best: int, baseline: float, n_val: int
) -> Figure:
    """Draw loss and accuracy of training and validation by epoch.

    Args:
        rows: Rows of history.csv, one per epoch.
        best: Number of the best checkpoint's epoch.
        baseline: Validation accuracy of the majority class.
        n_val: Number of validation images.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "loss"), (right, "accuracy")):
        _curves(axes, rows, name)
        axes.axvline(best, color=MARK, lw=0.8, ls=":", label=f"scored epoch ({best})")
    right.axhline(baseline, color=MARK, lw=0.8, ls="--", label="majority class (val)")
    left.set_title("loss (train's includes class weights and penalties)", fontsize=9)
    right.set_title(f"accuracy (val: n = {n_val})", fontsize=9)
    right.set_ylim(0, 1.02)
    left.set_ylim(0, 1.05 * left.get_ylim()[1])
    for axes in (left, right):
        axes.legend(fontsize=8)
    return figure


def _curves(axes: Axes, rows: Sequence[dict[str, float]], name: str) -> None:
    """Draw a metric of training and validation by epoch."""
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) == 1 else None
    for part, colour in (("train", TRAIN), ("val", VAL)):
        points = [row[f"{part}/{name}"] for row in rows]
        axes.plot(epochs, points, color=colour, marker=marker, label=part)
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
