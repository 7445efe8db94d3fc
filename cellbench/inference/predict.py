"""Predictions for images without labels, from a run's checkpoint alone."""

import csv
import shlex
import textwrap
from bisect import insort
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import matplotlib.image
import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from cellbench.artifacts import figures
from cellbench.artifacts.checkpoint import Description, read_checkpoint
from cellbench.artifacts.folder import RunFolder, whole_file
from cellbench.artifacts.predictions import PREFIX, read_predictions
from cellbench.data.dataset import Batch
from cellbench.data.unlabelled import UnlabelledImages
from cellbench.data.views import Image
from cellbench.inference.attributions import side_by_side
from cellbench.inference.rebuild import build_model
from cellbench.metrics.probabilities import fit_temperature, temper
from cellbench.models.classifier import CellClassifier
from cellbench.training.signals import EndAtSignal
from cellbench.utils.errors import UserError, counted
from cellbench.utils.html_page import plain
from cellbench.utils.terminal import say
from cellbench.utils.untrusted import check_replaceable, has_mark

_CRLF = "\r\n"

EXPLAINED = 16
"""Images whose heat maps are made at once."""

SHEET_MARK = "cellbench contact sheet"
HEAT_MARK = "cellbench heat maps"
"""Descriptions in the metadata of the PNG files, by which an earlier output is recognised."""

SHEET = 64
"""The largest number of images on a contact sheet: half of them the least certain."""


class Temperature(NamedTuple):
    """What a run's probabilities are scaled by to be confidences (Guo et al., ICML 2017).

    Attributes:
        value: The temperature; 1 where none can be fitted.
        why: What it is fitted on, or why it is not, in words.
    """

    value: float
    why: str

    @classmethod
    def of_run(cls, folder: RunFolder) -> "Temperature":
        """Fits it on the run's predictions of its validation split.

        Raises:
            UserError: The run's predictions.csv is damaged.
        """
        path = folder.predictions
        val = read_predictions(path)[1].get("val") if path.is_file() else None
        if val is None:
            return cls(1.0, "the run has no validation predictions to fit it on")
        fitted = fit_temperature(val.labels, val.probabilities)
        return cls(fitted, f"fitted on {len(val.labels)} images (val)")


def predict(
    folder: RunFolder,
    images: Sequence[Path],
    masks: Path | None,
    output: Path,
    contact_sheet: Path | None,
    explain: Path | None,
    batch_size: int,
    accelerator: str,
    max_pixels: int,
) -> None:
    """Classifies images, prepared as the training's were; a batch at a time is in memory.

    Images that cannot be read are left out, and listed with the reasons in a file beside the
    output, `.unreadable.csv` in the place of its suffix.

    Args:
        folder: The run.
        images: Folders and files.
        masks: The folder of their masks, or None.
        output: The CSV to write: file, predicted, confidence, and p_<class> for each class.
        contact_sheet: The PNG to write, or None.
        explain: The folder for a PNG of each image with its heat maps, or None.
        batch_size: The largest number of images in a batch.
        accelerator: Lightning's name of the device.
        max_pixels: The largest image that is decoded; a larger one cannot be read.

    Raises:
        UserError: There is no such checkpoint, no image that can be read, or no mask where the view
            needs one; or the output cannot be written.
    """
    if batch_size < 1:
        raise UserError(f"--batch_size: {batch_size} is less than 1")
    if max_pixels < 1:
        raise UserError(f"--max_pixels: {max_pixels} is less than 1")
    unreadable = output.with_suffix(".unreadable.csv")
    check_replaceable("--output", output, has_mark(b"file,predicted,confidence,"))
    check_replaceable("--output", unreadable, has_mark(b"file,reason\n"))
    if contact_sheet is not None:
        check_replaceable("--contact_sheet", contact_sheet, has_mark(SHEET_MARK.encode()))
    described, state = read_checkpoint(folder.best)
    dataset = UnlabelledImages(images, masks, described.preprocessing, max_pixels)
    maps: list[Callback] = []
    if explain is not None:
        maps.append(_HeatMaps(explain, dataset, described.preprocessing.fill))
    model = build_model(described, state)
    temperature = Temperature.of_run(folder)
    sampler = BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
    loader = DataLoader(dataset, sampler=sampler, batch_size=None)
    watched = EndAtSignal("nothing is written; give the command again")
    sheet = None if contact_sheet is None else _ContactSheet(model.classes)
    with whole_file(output) as beside, _open(beside) as file:
        rows = _Rows(file, dataset, model.classes, temperature.value, sheet)
        trainer = _trainer(described, accelerator, folder, [watched, rows, *maps])
        with watched.watching():
            trainer.predict(model, loader, return_predictions=False)
        if len(dataset.unreadable) == len(dataset):
            raise UserError(
                f"none of the {len(dataset)} images can be read; the first: {dataset.unreadable[0]}"
            )
        _write_unreadable(unreadable, dataset)
    say(f"{counted(rows.written, 'image')}, view {described.preprocessing.view}: {output}")
    if dataset.note:
        say(f"NOTE {dataset.note}")
    twins = len(dataset) - len({Path(name).with_suffix("") for name in dataset.names})
    if twins:
        say(
            f"NOTE {counted(twins, 'name')} given to several files that differ in the suffix: if "
            "some are masks, give their folder as --masks"
        )
    say(f"confidence at temperature {temperature.value:.3g}: {temperature.why}")
    if dataset.unreadable:
        say(
            f"NOTE {len(dataset.unreadable)} of {len(dataset)} images could not be read and have "
            f"NO PREDICTION: {unreadable} lists them"
        )
    if sheet is not None and contact_sheet is not None:
        figures.save(sheet.draw(), contact_sheet, SHEET_MARK)
        say(f"contact sheet: {contact_sheet}")
    if explain is not None:
        say(f"heat maps: {explain}")
    warn_of(folder, described)


def warn_of(folder: RunFolder, described: Description) -> None:
    """Prints why a run's model is not what it seems, where that is so."""
    if folder.unfinished:
        path = shlex.quote(str(folder.path))
        say(f"NOTE the run is unfinished: python -m cellbench fit --resume {path}")
    if described.leaky:
        say(f"UNRELIABLE: the run was {described.leaky}")


def _trainer(
    described: Description, accelerator: str, folder: RunFolder, callbacks: list[Callback]
) -> Trainer:
    try:
        return Trainer(
            accelerator=accelerator,
            devices=1,
            precision=described.precision,  # type: ignore[arg-type]  # written by a Trainer
            logger=False,
            enable_checkpointing=False,
            default_root_dir=str(folder.path),
            callbacks=callbacks,
            inference_mode=False,  # heat maps need gradients
        )
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"--accelerator={accelerator}: {str(error).splitlines()[0]}") from error


def _open(path: Path) -> TextIO:
    """A CSV to write; names that are no UTF-8 stand in it as on the disk."""
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")


class _LineEnds:
    r"""Ends the rows of a csv.writer with \n alone, although it quotes cells that hold an \r.

    With lineterminator="\n" Python before 3.13 leaves such cells bare, and a file's name could
    begin a row of its own.

    Args:
        file: What to write to.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> None:
        """Write a row, which ends with a carriage return and a line feed."""
        self._file.write(f"{row.removesuffix(_CRLF)}\n")


def _as_text(cell: str) -> str:
    """Put a ' before what a spreadsheet would take for a formula (OWASP: CSV injection)."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell


def _write_unreadable(path: Path, dataset: UnlabelledImages) -> None:
    """Lists the images that could not be read, or removes the list of an earlier call."""
    if not dataset.unreadable:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as beside, _open(beside) as file:
        rows = csv.writer(_LineEnds(file), lineterminator=_CRLF)
        rows.writerow(["file", "reason"])
        rows.writerows(
            [_as_text(dataset.names[i]), _as_text(why)] for i, why in dataset.unreadable.items()
        )


class _Rows(Callback):
    """Writes each batch's predictions as they come, and keeps none of them.

    Args:
        file: What to write to.
        dataset: The images.
        classes: The class names.
        temperature: Of the confidences.
        sheet: Is shown every image, where there is one.
    """

    def __init__(
        self,
        file: TextIO,
        dataset: UnlabelledImages,
        classes: Sequence[str],
        temperature: float,
        sheet: "_ContactSheet | None",
    ) -> None:
        self.written = 0
        self._rows = csv.writer(_LineEnds(file), lineterminator=_CRLF)
        self._rows.writerow(["file", "predicted", "confidence", *(PREFIX + c for c in classes)])
        self._dataset = dataset
        self._classes = classes
        self._temperature = temperature
        self._sheet = sheet

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes a row for each image that could be read."""
        probabilities = outputs.cpu().numpy()
        self._check_finite(batch.positions.tolist(), probabilities)
        confidence = temper(probabilities, self._temperature).max(axis=1).astype(np.float32)
        for i, position in enumerate(batch.positions.tolist()):
            if position in self._dataset.unreadable:
                continue
            predicted = int(probabilities[i].argmax())
            name, shown = self._dataset.names[position], map(str, probabilities[i])
            texts = _as_text(name), _as_text(self._classes[predicted])
            self._rows.writerow([*texts, confidence[i], *shown])
            if self._sheet is not None:
                self._sheet.add(
                    float(confidence[i]), position, predicted, Path(name).name, batch.images[i]
                )
            self.written += 1

    def _check_finite(self, positions: list[int], probabilities: np.ndarray) -> None:
        for position, values in zip(positions, probabilities, strict=True):
            if position not in self._dataset.unreadable and not np.isfinite(values).all():
                raise UserError(
                    f"the probabilities of '{self._dataset.names[position]}' are not finite "
                    "numbers: nothing is written; train again with a lower model.lr"
                )


class _HeatMaps(Callback):
    """Writes a PNG for each image: as the network sees it, and where the network looks.

    Args:
        folder: Below it, the PNG has the image's own path, with .png behind it.
        dataset: The images.
        fill: The view's, which integrated gradients start from.

    Raises:
        UserError: The folder is a file, or another file would be overwritten.
    """

    def __init__(self, folder: Path, dataset: UnlabelledImages, fill: int) -> None:
        self._folder = folder
        self._dataset = dataset
        self._fill = fill
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--explain: {folder} is a file; give a folder")
        for name in dataset.names if folder.exists() else ():
            check_replaceable("--explain", self._path(name), has_mark(HEAT_MARK.encode()))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Explains the images that could be read, a few at a time."""
        assert isinstance(pl_module, CellClassifier)
        positions = batch.positions.tolist()
        read = [i for i, place in enumerate(positions) if place not in self._dataset.unreadable]
        for first in range(0, len(read), EXPLAINED):
            some = read[first : first + EXPLAINED]
            pictures = side_by_side(pl_module, batch.images[some], self._fill)
            for i, picture in zip(some, pictures, strict=True):
                with whole_file(self._path(self._dataset.names[positions[i]])) as beside:
                    described = {"Description": HEAT_MARK}
                    matplotlib.image.imsave(beside, picture, format="png", metadata=described)

    def _path(self, name: str) -> Path:
        path = self._folder / f"{name.lstrip('/')}.png"
        if ".." in path.parts:  # given as ../image.png
            path = self._folder / f"{Path(name).name}.png"
        return path


class _Shown(NamedTuple):
    """An image on a contact sheet; they are sorted by the first two."""

    confidence: float
    position: int
    predicted: int
    name: str
    image: Image


class _ContactSheet:
    """The images that a model is the least and the most certain of.

    Args:
        classes: The class names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._kept: list[_Shown] = []
        self._seen = 0

    def add(
        self, confidence: float, position: int, predicted: int, name: str, image: Tensor
    ) -> None:
        """Looks at one more image, uint8 RGB, (3, H, W), and keeps it if it is to be shown."""
        copied = image.permute(1, 2, 0).cpu().numpy().copy()  # of a batch that must not stay
        insort(self._kept, _Shown(confidence, position, predicted, name, copied))
        if len(self._kept) > SHEET:
            del self._kept[SHEET // 2]
        self._seen += 1

    def draw(self) -> Figure:
        """The images, the least certain first, each with its predicted class and confidence."""
        columns = min(8, len(self._kept))
        height, width = self._kept[0].image.shape[:2]
        tall, gap, words = height / width, 0.06, 0.3  # in units of an image's width
        rows = -(-len(self._kept) // columns)
        total = (columns * (1 + gap), rows * (tall + words) + words)
        figure = Figure(figsize=(1.3 * total[0], 1.3 * total[1]))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        half = SHEET // 2
        what = f"the {half} least and the {half} most certain" if self._seen > SHEET else "all"
        axes.text(gap, words / 2, f"{what} of {self._seen} images", fontsize=8)
        for i, shown in enumerate(self._kept):
            x, top = i % columns * (1 + gap), i // columns * (tall + words) + 2 * words
            # What there is room for; of a long file name its end tells more.
            name = textwrap.wrap(self._classes[shown.predicted], 20)[0]
            text = f"{plain(shown.name[-22:])}\n{plain(name)} {shown.confidence:.3f}"
            axes.text(x + 0.5, top - gap, text, ha="center", fontsize=6)
            axes.imshow(shown.image, extent=(x, x + 1, top + tall, top))
        axes.set(xlim=(0, total[0]), ylim=(total[1], 0), aspect="auto")
        return figure
