"""Predictions for images without labels, from a run's checkpoint alone."""

import csv
import io
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from cellbench.data.unlabelled import UnlabelledImages
from cellbench.errors import UserError
from cellbench.models.classifier import CellClassifier
from cellbench.models.heads import HeadConfig
from cellbench.models.weights import Undrawn
from cellbench.runs.checkpoint import Description, read_checkpoint
from cellbench.runs.folder import RunFolder, write_text
from cellbench.runs.predictions import PREFIX
from cellbench.runs.progress import EndAtSignal


def build_model(described: Description, state: dict[str, torch.Tensor]) -> CellClassifier:
    """Makes a checkpoint's model again.

    Raises:
        UserError: The weights do not fit what the checkpoint says of its model.
    """
    try:
        arguments = described.model | {"head": HeadConfig(**described.model["head"])}
        with Undrawn():
            model = CellClassifier(**arguments)
        model.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError("the checkpoint's weights do not fit its own model") from error
    return model


def predict(
    folder: RunFolder,
    images: Path,
    masks: Path | None,
    output: Path,
    batch_size: int,
    accelerator: str,
) -> None:
    """Classifies every image below a folder, prepared as the training's were.

    Args:
        folder: The run.
        images: The folder of the images.
        masks: The folder of their masks, or None.
        output: The CSV to write: file (below `images`), predicted, and p_<class> for each class.
        batch_size: The largest number of images in a batch.
        accelerator: Lightning's name of the device.

    Raises:
        UserError: There is no such checkpoint, no image, or no mask where the view needs one; an
            image cannot be read; or the output cannot be written.
    """
    if batch_size < 1:
        raise UserError(f"--batch_size: {batch_size} is less than 1")
    described, state = read_checkpoint(folder.best)
    dataset = UnlabelledImages(images, masks, described.preprocessing)
    model = build_model(described, state)
    sampler = BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
    loader = DataLoader(dataset, sampler=sampler, batch_size=None)
    watched = EndAtSignal("nothing is written; give the command again")
    try:
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            precision=described.precision,  # type: ignore[arg-type]  # written by a Trainer
            logger=False,
            enable_checkpointing=False,
            default_root_dir=str(folder.path),
            callbacks=[watched],
        )
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"--accelerator={accelerator}: {str(error).splitlines()[0]}") from error
    with watched.watching():
        batches = trainer.predict(model, loader)
    assert batches is not None
    probabilities = torch.cat(batches).cpu().numpy()  # type: ignore[arg-type]  # of one loader
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "predicted", *(f"{PREFIX}{name}" for name in model.classes)])
    for path, values in zip(dataset.files, probabilities, strict=True):
        file, predicted = path.relative_to(images).as_posix(), model.classes[values.argmax()]
        rows.writerow([file, predicted, *map(str, values)])
    write_text(output, text.getvalue())
    print(f"{len(dataset)} images, view {described.preprocessing.view}: {output}")
    if folder.unfinished:
        print(f"NOTE the run is unfinished: python -m cellbench fit --resume {folder.path}")
    if described.leaky:
        print(f"NOT TO BE BELIEVED: the run was {described.leaky}")
