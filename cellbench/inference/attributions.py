"""Where a network looks: attributions of its test images, against the masks of their cells."""

# torch, captum and matplotlib are imported where they are used: reports read attributions.csv
# without them, and start in a tenth of the time.
from __future__ import annotations

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import numpy as np

from cellbench.artifacts.finished import Finished
from cellbench.artifacts.folder import write_text
from cellbench.data.splits import read_split
from cellbench.data.views import BACKGROUND, CYTOPLASM, NUCLEUS, apply_view
from cellbench.metrics.intervals import mean_interval
from cellbench.utils.errors import UserError, suggest
from cellbench.utils.untrusted import open_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from cellbench.data.module import CellDataModule
    from cellbench.data.preprocessing import Preprocessing
    from cellbench.data.table import Sample
    from cellbench.data.views import Image, Mask
    from cellbench.models.classifier import CellClassifier

Method = Literal["grad_cam", "integrated_gradients"]
"""
grad_cam: what the predicted class' logit gains by the last feature maps (Selvaraju et al., ICCV
    2017), its positive part, enlarged to the image: coarse.
integrated_gradients: what it gains by each pixel on the way from an image of the view's fill to
    this one (Sundararajan et al., ICML 2017): fine, and of sum f(image) - f(fill). A pixel of the
    fill's own value has none, and a black fill favours bright pixels.
What is measured hangs on the method: of 32 raw hpv cells of one run, integrated gradients have .10
in the nucleus from black, and .46 from white; Grad-CAM has .66 in the cell, and .95 in a network
with random weights. So compare conditions, and not a share with its area alone.
"""

TITLES: Mapping[Method, str] = {
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "integrated gradients",
}

REGIONS = ("nucleus", "cytoplasm", "background")
HEADER = ("id", "label", "predicted", "method", *REGIONS, *(f"area_{name}" for name in REGIONS))

STEPS = (32, 64, 128, 256)
"""Steps of the integral: more where fewer are not complete."""
TOLERANCE = 0.01
"""Complete: the sum of the attributions differs from f(image) - f(fill) by at most this share of
it, or of one logit where it is smaller."""

_TOGETHER = 16  # images in a batch
_AT_ONCE = 64  # images that pass through the network at once, each step's counted


@dataclass(frozen=True)
class Attribution:
    """Where one method sees the network look in one image.

    A share is of all positive (Grad-CAM) or absolute (integrated gradients) attribution in the
    image; None where there is no mask, or no attribution. Nucleus and cytoplasm are None where the
    run's masks do not tell them apart.

    Attributes:
        id: The sample.
        label: Its class.
        predicted: The most probable class, in float32: the one whose logit is explained.
        method: The method.
        nucleus: The share in the nucleus, 0 to 1.
        cytoplasm: The share in the cytoplasm.
        background: The share outside the cell.
        area_nucleus: The nucleus' share of the area: what attribution spread evenly has there.
        area_cytoplasm: The cytoplasm's.
        area_background: The background's.
    """

    id: str
    label: str
    predicted: str
    method: Method
    nucleus: float | None
    cytoplasm: float | None
    background: float | None
    area_nucleus: float | None
    area_cytoplasm: float | None
    area_background: float | None


@dataclass(frozen=True)
class Share:
    """How much of the attribution lies in a region, on average over images.

    Attributes:
        value: The mean share, 0 to 1.
        low: Lower end of its 95 % interval, by the variance between groups; 0 where there is one.
        high: Upper end; 1 where there is one group.
        area: The mean of the region's share of the area.
    """

    value: float
    low: float
    high: float
    area: float


@dataclass(frozen=True)
class Summary:
    """The attributions of a class, or of all.

    Attributes:
        method: The method.
        label: The class; None for all of them.
        n: The number of images, each counted once however many runs have tested it.
        groups: The number of groups among them.
        regions: By name: cell, background and, where the masks tell them apart, nucleus and
            cytoplasm.
    """

    method: Method
    label: str | None
    n: int
    groups: int
    regions: Mapping[str, Share]


def read_attributions(path: Path) -> list[Attribution]:
    """Reads an attributions.csv back.

    Raises:
        UserError: It is missing or not an attributions.csv.
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
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method}")
    numbers = [float(value) if value else None for value in values]
    return Attribution(name, label, predicted, cast(Method, method), *numbers)


def _write(path: Path, attributions: Iterable[Attribution]) -> None:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(HEADER)
    for one in attributions:
        values = [getattr(one, column) for column in HEADER]
        rows.writerow([f"{v:.6f}" if isinstance(v, float) else v for v in values])
    write_text(path, text.getvalue())


def summarise(attributions: Sequence[Attribution], groups: Mapping[str, str]) -> list[Summary]:
    """Averages attributions, of one run or of several of one condition.

    Args:
        attributions: Those without shares do not count.
        groups: Each sample's group by its id: samples of one group stay together in the bootstrap.

    Returns:
        For each method a summary over all, then one for each class, in the order of their names.
    """
    found = []
    for method in get_args(Method):
        own = [a for a in attributions if a.method == method and a.background is not None]
        for label in (None, *sorted({a.label for a in own})):
            some = [a for a in own if label in (None, a.label)]
            if some:
                found.append(_summary(method, label, some, groups))
    return found


def _summary(
    method: Method, label: str | None, some: Sequence[Attribution], groups: Mapping[str, str]
) -> Summary:
    def column(prefix: str, region: str) -> np.ndarray:
        values = [getattr(a, f"{prefix}{region}") for a in some]
        return np.array(values, dtype=np.float64)  # None becomes NaN

    regions = [name for name in REGIONS if not np.isnan(column("", name)).any()]
    shares = np.stack([1 - column("", "background"), *(column("", name) for name in regions)], 1)
    areas = [1 - column("area_", "background"), *(column("area_", name) for name in regions)]
    of_group, group = np.unique([groups[a.id] for a in some], return_inverse=True)
    counts = np.bincount(group)
    means = {}
    for i, name in enumerate(("cell", *regions)):
        sums = np.bincount(group, shares[:, i])
        low, high = map(float, mean_interval(sums, counts) if len(of_group) > 1 else (0, 1))
        means[name] = Share(float(shares[:, i].mean()), low, high, float(areas[i].mean()))
    return Summary(method, label, len({a.id for a in some}), len(of_group), means)


def choose(ids: Iterable[str], n: int) -> list[str]:
    """The first n of some sample ids in a random order that their names alone decide."""
    return sorted(ids, key=lambda name: hashlib.blake2b(name.encode()).digest())[:n]


def is_done(run: Finished, n: int) -> bool:
    """Whether a run has the attributions of n test images, newer than its best checkpoint."""
    path = run.folder.attributions
    if not path.is_file() or path.stat().st_mtime_ns < run.folder.best.stat().st_mtime_ns:
        return False
    with suppress(UserError):  # a damaged one is written anew
        return {a.id for a in read_attributions(path)} >= set(choose(run.test.ids, n))
    return False


def heat_map(model: CellClassifier, images: Tensor, method: Method, fill: int = 0) -> np.ndarray:
    """Attributes the logit of each image's predicted class to its pixels, in float32.

    Args:
        model: On any device; it is evaluated, and left in the mode that it is in.
        images: uint8 RGB as the network sees them, (B, 3, H, W), no more than fit in a batch.
        method: How.
        fill: The value of the image that integrated gradients start from: the view's fill.

    Returns:
        Float32, (B, H, W): of Grad-CAM 0 and more, of integrated gradients of either sign.

    Raises:
        UserError: Grad-CAM has no meaning here: the backbone ends with a vector (vision
            transformers, and timm's networks without maps), or with maps of a single pixel.
    """
    return _heat(model, images, method, fill).maps


def side_by_side(model: CellClassifier, images: Tensor, fill: int) -> list[np.ndarray]:
    """Each image as the network sees it, and beside it under the heat of every method.

    Args:
        model: On any device.
        images: uint8 RGB, (B, 3, H, W), no more than fit in a batch.
        fill: The view's.

    Returns:
        For each image float, (H, W * n, 3), 0 to 1; n is 3, or 2 where Grad-CAM has no meaning.
    """
    heats = []
    for method in get_args(Method):
        with suppress(UserError):  # that has no meaning for this network
            heats.append(heat_map(model, images, method, fill))
    seen = images.permute(0, 2, 3, 1).cpu().numpy()
    return [
        np.concatenate([image / 255, *(_overlay(image, heat[i]) for heat in heats)], axis=1)
        for i, image in enumerate(seen)
    ]


class _Heat(NamedTuple):
    """What `heat_map` gives, the predicted classes, and how many images are not complete."""

    maps: np.ndarray
    predicted: list[int]
    incomplete: int


def _heat(model: CellClassifier, images: Tensor, method: Method, fill: int) -> _Heat:
    import torch

    training = model.training
    model.eval()
    try:
        # TF32 would be another precision, and the fastest algorithm not always the same one.
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            inputs = images.to(model.mean.device).float()
            with torch.no_grad():
                logits = model(inputs)
            if method == "grad_cam":
                maps, incomplete = _grad_cam(model, inputs, logits), 0
            else:
                maps, incomplete = _integrated(model, inputs, logits, float(fill))
    finally:
        model.train(training)
    return _Heat(
        np.asarray(maps.cpu().numpy(), np.float32), logits.argmax(dim=1).tolist(), incomplete
    )


def _grad_cam(model: CellClassifier, inputs: Tensor, logits: Tensor) -> Tensor:
    from captum.attr import LayerAttribution, LayerGradCam

    found = LayerGradCam(model, model.backbone).attribute(
        inputs.requires_grad_(), logits.argmax(dim=1), relu_attributions=True
    )
    if found.ndim < 4 or found[0].numel() == 1:
        raise UserError(
            f"Grad-CAM has no meaning for {model.arguments['backbone']} at this size: it ends "
            f"with {'a vector' if found.ndim < 4 else 'maps of one pixel'}"
        )
    size = (inputs.shape[2], inputs.shape[3])
    enlarged: Tensor = LayerAttribution.interpolate(found.detach(), size, "bilinear")
    return enlarged[:, 0]


def _integrated(
    model: CellClassifier, inputs: Tensor, logits: Tensor, fill: float
) -> tuple[Tensor, int]:
    """Takes more steps for the images that are not complete; says how many never are."""
    import torch
    from captum.attr import IntegratedGradients

    target = logits.argmax(dim=1)
    with torch.no_grad():
        start = model(torch.full_like(inputs[:1], fill))
    difference = (logits - start).gather(1, target[:, None])[:, 0]
    maps = torch.zeros_like(inputs[:, 0])
    left = torch.arange(len(inputs), device=inputs.device)
    for steps in STEPS:
        found = IntegratedGradients(model).attribute(
            inputs[left],
            fill,
            target[left],
            n_steps=steps,
            internal_batch_size=max(_AT_ONCE, len(left)),
        )
        maps[left] = found.detach().sum(dim=1)
        error = (maps.sum(dim=(1, 2)) - difference).abs()
        left = (error > TOLERANCE * difference.abs().clamp(min=1)).nonzero()[:, 0]
        if not len(left):
            break
    return maps, len(left)


def explain(run: Finished, data: CellDataModule, n: int) -> list[str]:
    """Writes attributions.csv and figures/attributions.png into a run's folder.

    Args:
        run: A run with a best checkpoint.
        data: Its data module; only the images that are explained are read.
        n: At most so many test images, the first of `choose`.

    Returns:
        What the user should know of it, in lines.

    Raises:
        UserError: An image or a mask has changed since the training, or is missing.
    """
    import torch

    from cellbench.artifacts import figures
    from cellbench.artifacts.checkpoint import read_checkpoint
    from cellbench.inference.rebuild import build_model

    described, state = read_checkpoint(run.folder.best)
    model = build_model(described, state).requires_grad_(False)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if described.masks and described.masks != data.masks_digest:
        raise UserError("the masks have changed since the training; restore them")
    seen = _read(run, data, described.preprocessing, choose(run.test.ids, n))
    values = {value for one in seen if one.mask is not None for value in np.unique(one.mask)}
    parted = values >= {CYTOPLASM, NUCLEUS}
    rows: list[Attribution] = []
    shown: dict[tuple[str, bool], list[_Explained]] = defaultdict(list)
    notes: list[str] = []
    incomplete = 0
    for first in range(0, len(seen), _TOGETHER):
        batch = seen[first : first + _TOGETHER]
        images = torch.from_numpy(np.stack([one.image for one in batch])).permute(0, 3, 1, 2)
        heats: dict[Method, _Heat] = {}
        for method in get_args(Method):
            try:
                heats[method] = _heat(model, images, method, described.preprocessing.fill)
            except UserError as error:
                notes = [str(error)]
        incomplete += sum(heat.incomplete for heat in heats.values())
        predicted = [model.classes[k] for k in next(iter(heats.values())).predicted]
        for i, one in enumerate(batch):
            maps = {method: heat.maps[i] for method, heat in heats.items()}
            for method, heat in maps.items():
                shares = _shares(np.abs(heat), one.mask, parted=parted)
                rows.append(Attribution(one.id, one.label, predicted[i], method, *shares))
            some = shown[one.label, predicted[i] == one.label]
            if len(some) < _SHOWN:
                some.append(_Explained(one, maps, predicted[i]))
    if incomplete:
        notes.append(
            f"integrated gradients of {incomplete} of {len(seen)} images are not complete with "
            f"{STEPS[-1]} steps: {run.folder.path}"
        )
    figures.save(_sheet(shown, model.classes), run.folder.figure("attributions"))
    _write(run.folder.attributions, rows)  # last: it says that all is done
    return notes


class _Seen(NamedTuple):
    """A test image as the network sees it, and its mask, which the view need not show."""

    id: str
    label: str
    image: Image
    mask: Mask | None


class _Explained(NamedTuple):
    """A test image for the figure."""

    seen: _Seen
    maps: Mapping[Method, np.ndarray]
    predicted: str


def _read(
    run: Finished, data: CellDataModule, prepared: Preprocessing, chosen: Sequence[str]
) -> list[_Seen]:
    samples = {sample.id: sample for sample in data.listed}
    content = {row["id"]: row["content"] for row in read_split(run.folder.split)}
    seen = []
    for name in chosen:
        if name not in samples:
            raise UserError(f"'{name}' of the test split is gone{suggest(name, samples)}")
        sample = samples[name]
        if data.fingerprint(sample) != content[name]:
            raise UserError(f"the image '{name}' has changed since the training; restore it")
        original = data.read_image(sample)
        mask = data.read_mask(sample, original) if data.has_mask(sample) else None
        image, scaled = prepared.prepare(original, mask, name)
        if scaled is None:  # the raw view
            scaled = _scaled(original, mask, prepared, sample)
        image = apply_view(image, scaled, prepared.view, prepared.fill)
        seen.append(_Seen(name, run.split.label[name], image, scaled))
    return seen


def _scaled(
    image: Image, mask: Mask | None, prepared: Preprocessing, sample: Sample
) -> Mask | None:
    """The mask that another view would use, if there is one."""
    if mask is None and prepared.masks == "expert":
        return None
    with suppress(UserError):  # no cell was found in it
        return replace(prepared, view="masked", stain="none").prepare(image, mask, sample.id)[1]
    return None


def _shares(weights: np.ndarray, mask: Mask | None, *, parted: bool) -> list[float | None]:
    """The shares of all weight, then of the area, in nucleus, cytoplasm and background."""
    shares: list[float | None] = []
    for each in (weights.astype(np.float64), np.ones(weights.shape)):
        total = each.sum()
        if mask is None or total == 0:
            shares += [None, None, None]
            continue
        background, cytoplasm, nucleus = (
            float(each[mask == value].sum() / total) for value in (BACKGROUND, CYTOPLASM, NUCLEUS)
        )
        shares += [nucleus, cytoplasm, background] if parted else [None, None, background]
    return shares


_SHOWN = 2  # right ones of each class in the figure, and as many wrong ones
_RIGHT, _WRONG = "#222222", "#bb3344"
_OUTLINE: Any = {"colors": "#33ddee", "linewidths": 0.7}


def _sheet(
    shown: Mapping[tuple[str, bool], Sequence[_Explained]], classes: Sequence[str]
) -> Figure:
    """A row a class: right images, then wrong ones, each as seen and under its heat maps."""
    from matplotlib.figure import Figure

    from cellbench.utils.html_page import plain

    rows = [[*shown.get((name, True), ()), *shown.get((name, False), ())] for name in classes]
    rows = [row for row in rows if row]
    height, width, _ = rows[0][0].seen.image.shape
    tall, tiles = height / width, 1 + len(rows[0][0].maps)
    # One picture for all, in units of an image's width: axes for each would take seconds.
    gap, words, apart = 0.04, 0.42, 0.3
    block = tiles * (1 + gap) + apart
    total = (max(map(len, rows)) * block - apart + 2 * gap, len(rows) * (tall + words) + 0.3)
    figure = Figure(figsize=(1.25 * total[0], 1.25 * total[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for i, row in enumerate(rows):
        top = i * (tall + words) + words
        for j, one in enumerate(row):
            left, right = gap + j * block, one.predicted == one.seen.label
            told = plain(one.seen.label + ("" if right else f", predicted {one.predicted}"))
            colour = _RIGHT if right else _WRONG
            axes.text(left, top - 0.21, told, fontsize=10, color=colour, weight="bold")
            pictures = [("as seen", one.seen.image)]
            pictures += [
                (TITLES[m], _overlay(one.seen.image, heat)) for m, heat in one.maps.items()
            ]
            for k, (title, picture) in enumerate(pictures):
                x = left + k * (1 + gap)
                extent = (x, x + 1, top + tall, top)
                axes.text(x, top - 0.05, title, fontsize=8, color=_RIGHT)
                axes.imshow(picture, extent=extent, interpolation="nearest")
                levels = np.unique([] if one.seen.mask is None else one.seen.mask)[1:] - 0.5
                if k and len(levels):
                    across = x + (np.arange(width) + 0.5) / width
                    down = top + tall * (np.arange(height) + 0.5) / height
                    axes.contour(across, down, one.seen.mask, levels, **_OUTLINE)
    note = "overlaid: positive Grad-CAM, absolute integrated gradients; lines: the masks' outlines"
    axes.text(gap, total[1] - 0.08, note, fontsize=8, color=_RIGHT)
    axes.set(xlim=(0, total[0]), ylim=(total[1], 0), aspect="auto")
    return figure


def _overlay(image: Image, heat: np.ndarray) -> np.ndarray:
    """Heat over the grey image, float, (H, W, 3), 0 to 1; pixels' noise is evened out."""
    import cv2
    from matplotlib import colormaps

    evened = cv2.GaussianBlur(np.abs(heat), (0, 0), 0.01 * max(heat.shape))
    share = np.clip(evened / max(float(np.quantile(evened, 0.995)), 1e-12), 0, 1)[..., None]
    grey = image.mean(axis=2, keepdims=True) / 255
    colour = colormaps["inferno"](share[..., 0])[..., :3]
    return np.asarray(np.clip((1 - share) * grey + share * colour, 0, 1))
