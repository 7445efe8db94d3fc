"""Lines that are printed before a run begins."""

from collections.abc import Iterator

from cellbench.artifacts.conditions import few_groups
from cellbench.data.mask_confidence import describe_doubtful
from cellbench.data.views import needs_mask
from cellbench.training.run import Run
from cellbench.utils.errors import counted


def announcement(run: Run, precision: str, loading: str) -> str:
    """Describe a run that is about to begin, with notes on its settings, in a few lines.

    Args:
        run: The run.
        precision: Its precision, with the reason.
        loading: Description of the loading of images, with the reason.
    """
    data, model, trainer = run.data, run.model, run.trainer
    n = {part: len(data.partition.indices(part)) for part in ("train", "val", "test")}
    total = sum(p.numel() for p in model.parameters())
    fold = "" if data.split.folds is None else f", fold {data.split.fold or 0}"
    purged = int((data.partition.parts == "purged").sum())
    out = f", {counted(purged, 'image')} purged: groups shared with a scored part" if purged else ""
    lines = [
        f"data       {type(data).__name__}, {len(data.classes)} classes, view {data.view}: "
        f"{n['train']} train, {n['val']} val, {n['test']} test images",
        f"split      {data.split.protocol}{fold}, digest {data.partition.digest[:12]}{out}",
        f"images     {data.where}, {loading}",
        *([f"epoch      {data.shown}"] if run.trains and data.shown else []),
        f"model      {model.arguments['backbone']}, {total:,} parameters, "
        f"{model.trained:,} trained",
        *([f"weights    {model.loaded}"] if model.loaded else []),
        f"device     {trainer.strategy.root_device.type} x {trainer.world_size}, channels_last,"
        f" precision {precision}",
        f"run        {trainer.default_root_dir}",
    ]
    lines += [f"NOTE       {note}" for note in (*_notes_on_data(run), *_notes_on_model(run))]
    lines += [f"UNRELIABLE {flag}" for flag in run.stamps]
    return "\n".join(lines)


def _notes_on_data(run: Run) -> Iterator[str]:
    """Yield warnings about valid but unusual settings of the data and the training."""
    data = run.data
    if data.note:
        yield data.note
    if data.masks == "auto" and needs_mask(data.view) and (doubtful := data.doubtful_masks):
        yield describe_doubtful(doubtful, len(data.table))
    batches = run.config["trainer"].get("limit_train_batches")
    if run.trains and batches is not None:
        limit = counted(batches, "batch", "batches")
        yield f"an epoch ends after {limit}: trainer.limit_train_batches"
    if run.trains and data.train_labels is not None:
        training = data.training
        out = len(data.partition.indices("train")) - len(training.positions)
        other = int((training.all_labels != data.table.labels)[training.positions].sum())
        yield (
            f"data.train_labels leaves {counted(out, 'training image')} out, and gives {other} "
            "another label than the dataset's"
        )
    elif data.label_noise:
        yield f"{data.label_noise:.0%} of the training labels replaced by others"
    tested = data.partition.indices("test")
    yield from few_groups(
        data.partition.groups[tested].tolist(),
        [data.classes[label] for label in data.table.labels[tested]],
    )


def _notes_on_model(run: Run) -> Iterator[str]:
    """Yield warnings about valid but unusual settings of the model."""
    model = run.model
    swapped = model.arguments["norm"] == "group" and model.loaded is not None
    if swapped and model.trained < sum(p.numel() for p in model.parameters()):
        yield "what is frozen was trained with batch norm, and has group norm now"
    if model.freezes and run.config["model"]["weights"] == "none":
        yield "the frozen backbone has random weights; give model.weights"
