"""Predictions for images without labels, from a run's checkpoint alone."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from cellbench.artifacts import figures
from cellbench.artifacts.checkpoint import Description, read_checkpoint
from cellbench.artifacts.folder import RunFolder, whole_file
from cellbench.data.dataset import Batch
from cellbench.data.unlabelled import UnlabelledImages
from cellbench.inference.attribution_figure import side_by_side
from cellbench.inference.contact_sheet import ContactSheet
from cellbench.inference.prediction_table import PredictionTable, open_table, write_unreadable
from cellbench.inference.rebuild import build_model
from cellbench.inference.temperature import Temperature
from cellbench.models.classifier import CellClassifier
from cellbench.training.lightning_output import progress_bar
from cellbench.training.signals import EndAtSignal
from cellbench.utils.errors import UserError, counted
from cellbench.utils.terminal import say
from cellbench.utils.untrusted import check_replaceable, has_mark

EXPLAINED = 16
"""Images whose heat maps are computed together."""

SHEET_MARK = "cellbench contact sheet"
"""Description in the metadata of a contact sheet, by which an earlier one is recognised."""

HEAT_MARK = "cellbench heat maps"
"""Description in the metadata of an image's heat maps, by which earlier ones are recognised."""


@dataclass(frozen=True)
class PredictOptions:
    """Images to classify, and the files to write."""

    images: Sequence[Path]
    """Folders and files."""
    masks: Path | None
    """Folder of the masks; None if there are none."""
    output: Path
    """CSV to write: file, predicted, confidence, and p_<class> for each class."""
    contact_sheet: Path | None
    """PNG to write; None for none."""
    explain: Path | None
    """Folder for a PNG of each image with its heat maps; None for none."""
    batch_size: int
    """Greatest number of images in a batch."""
    accelerator: str
    """Lightning's name of the device."""
    max_pixels: int
    """Greatest number of pixels of an image; larger ones count as unreadable."""

    @property
    def unreadable(self) -> Path:
        """CSV to write beside the output: the images that cannot be read, with the reasons."""
        return self.output.with_suffix(".unreadable.csv")

    def check(self) -> None:
        """Check the numbers, and that no file of another kind would be replaced.

        Raises:
            UserError: A number is less than 1, or a file would be replaced.
        """
        for name in ("batch_size", "max_pixels"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--{name}: {value} is less than 1")
        check_replaceable("--output", self.output, has_mark(b"file,predicted,confidence,"))
        check_replaceable("--output", self.unreadable, has_mark(b"file,reason\n"))
        if self.contact_sheet is not None:
            check_replaceable("--contact_sheet", self.contact_sheet, has_mark(SHEET_MARK.encode()))


def predict(folder: RunFolder, options: PredictOptions) -> None:
    """Classify images, prepared as in the training, with one batch in memory at a time.

    Images that cannot be read are left out, and listed in a file of their own.

    Raises:
        UserError: There is no checkpoint, no image can be read, a mask that the view needs is
            missing, or a file cannot be written.
    """
    options.check()
    described, state = read_checkpoint(folder.best)
    prepared = described.preprocessing
    dataset = UnlabelledImages(options.images, options.masks, prepared, options.max_pixels)
    maps: list[Callback] = []
    if options.explain is not None:
        maps.append(_HeatMaps(options.explain, dataset, prepared.fill))
    model = build_model(described, state)
    temperature = Temperature.of_run(folder)
    sheet = None if options.contact_sheet is None else ContactSheet(model.classes)
    signals = EndAtSignal("nothing is written; give the command again")
    with whole_file(options.output) as beside, open_table(beside) as file:
        table = PredictionTable(file, dataset, model.classes, temperature.value, sheet)
        trainer = _trainer(described, options.accelerator, folder, [signals, table, *maps])
        with signals.watching():
            loader = _loader(dataset, options.batch_size)
            trainer.predict(model, loader, return_predictions=False)
        if len(dataset.unreadable) == len(dataset):
            raise UserError(
                f"none of the {len(dataset)} images can be read; the first: {dataset.unreadable[0]}"
            )
        write_unreadable(options.unreadable, dataset)
    say(f"{counted(table.written, 'image')}, view {prepared.view}: {options.output}")
    _show_notes(dataset, temperature, options.unreadable)
    if sheet is not None and options.contact_sheet is not None:
        figures.save(sheet.draw(), options.contact_sheet, SHEET_MARK)
        say(f"contact sheet: {options.contact_sheet}")
    if options.explain is not None:
        say(f"heat maps: {options.explain}")
    warn_of(folder, described)


def _show_notes(dataset: UnlabelledImages, temperature: Temperature, unreadable: Path) -> None:
    """Print notes on the images, and the temperature of the confidences."""
    if dataset.note:
        say(f"NOTE {dataset.note}")
    _note_possible_masks(dataset)
    say(f"confidence at temperature {temperature.value:.3g}: {temperature.why}")
    _note_unreadable(dataset, unreadable)


def warn_of(folder: RunFolder, described: Description) -> None:
    """Print a warning if a run is unfinished, or if its scores are unreliable."""
    if folder.unfinished:
        path = shlex.quote(str(folder.path))
        say(f"NOTE the run is unfinished: python -m cellbench fit --resume {path}")
    if described.leaky:
        say(f"UNRELIABLE: the run was {described.leaky}")


def _note_possible_masks(dataset: UnlabelledImages) -> None:
    """Print a note if files differ only in their suffix, as an image and its mask often do."""
    twins = len(dataset) - len({Path(name).with_suffix("") for name in dataset.names})
    if twins:
        say(
            f"NOTE {counted(twins, 'name')} given to several files that differ in the suffix: if "
            "some are masks, give their folder as --masks"
        )


def _note_unreadable(dataset: UnlabelledImages, path: Path) -> None:
    """Print a note if images could not be read; they are listed in the file."""
    if dataset.unreadable:
        say(
            f"NOTE {len(dataset.unreadable)} of {len(dataset)} images could not be read and have "
            f"NO PREDICTION: {path} lists them"
        )


def _loader(dataset: UnlabelledImages, batch_size: int) -> "DataLoader[Batch]":
    """Return a loader of whole batches, in the dataset's order."""
    sampler = BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
    return DataLoader(dataset, sampler=sampler, batch_size=None)


def _trainer(
    described: Description, accelerator: str, folder: RunFolder, callbacks: list[Callback]
) -> Trainer:
    """Return a trainer for one device that writes nothing itself.

    Raises:
        UserError: There is no such accelerator, or it does not support the precision.
    """
    try:
        return Trainer(
            accelerator=accelerator,
            devices=1,
            precision=described.precision,  # type: ignore[arg-type]  # written by a Trainer
            logger=False,
            enable_checkpointing=False,
            default_root_dir=str(folder.path),
            callbacks=[*callbacks, progress_bar()],
            inference_mode=False,  # heat maps need gradients
        )
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"--accelerator={accelerator}: {str(error).splitlines()[0]}") from error


class _HeatMaps(Callback):
    """Writes a PNG for each image: as the network sees it, and under its attribution maps.

    Args:
        folder: Folder of the PNGs; each has the image's own path below it, with .png appended.
        dataset: The images.
        fill: The view's fill, which integrated gradients start from.

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
        """Explain the images that could be read, a few at a time."""
        assert isinstance(pl_module, CellClassifier)
        positions = batch.positions.tolist()
        readable = [i for i, where in enumerate(positions) if where not in self._dataset.unreadable]
        for first in range(0, len(readable), EXPLAINED):
            some = readable[first : first + EXPLAINED]
            pictures = side_by_side(pl_module, batch.images[some], self._fill)
            for i, picture in zip(some, pictures, strict=True):
                with whole_file(self._path(self._dataset.names[positions[i]])) as beside:
                    described = {"Description": HEAT_MARK}
                    matplotlib.image.imsave(beside, picture, format="png", metadata=described)

    def _path(self, name: str) -> Path:
        """Return the PNG's path, which is always inside the folder."""
        path = self._folder / f"{name.lstrip('/')}.png"
        if ".." in path.parts:  # given as ../image.png
            path = self._folder / f"{Path(name).name}.png"
        return path
