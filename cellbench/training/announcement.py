"""Lines that are printed before a run begins."""

from collections import Counter
from collections.abc import Iterator

from cellbench.artifacts.conditions import few_groups
from cellbench.data.mask_confidence import describe_doubtful, find_doubtful, measure_confidence
from cellbench.data.module import CellDataModule
from cellbench.data.splits import fold_names
from cellbench.data.stretching import describe_stretching
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
    fold = "" if data.partition.fold is None else f", fold {data.partition.fold}"
    fold += f" ('{data.partition.fold_name}')" if data.partition.fold_name is not None else ""
    purged = int((data.partition.parts == "purged").sum())
    out = f", {counted(purged, 'image')} purged: groups shared with a scored part" if purged else ""
    lines = [
        f"data       {type(data).__name__}, {len(data.classes)} classes, view {data.view}: "
        f"{n['train']} train, {n['val']} val, {n['test']} test images",
        f"split      {data.split.protocol}{fold}, digest {data.partition.digest[:12]}{out}",
        f"groups     {_describe_groups(data)}",
        f"images     {data.cache_location}, {loading}",
        *([f"masks      {data.mask_set.survey.text}"] if _shows_experts_masks(data) else []),
        *([f"epoch      {data.epoch_summary}"] if run.trains and data.epoch_summary else []),
        f"model      {model.arguments['backbone']}, {total:,} parameters, "
        f"{model.trained:,} trained",
        *([f"weights    {model.loaded}"] if model.loaded else []),
        f"device     {trainer.strategy.root_device.type} x {trainer.world_size}, channels_last,"
        f" precision {precision}",
        f"run        {trainer.default_root_dir}",
    ]
    lines += [f"NOTE       {note}" for note in (*_notes_on_data(run), *_notes_on_model(run))]
    lines += [f"UNRELIABLE {flag}" for flag in run.warning_flags]
    return "\n".join(lines)


def _describe_groups(data: CellDataModule) -> str:
    """Describe the groups that the split keeps in one part, if any are known."""
    known = data.table.known_groups
    if data.table.copies:
        known += f"; {counted(len(data.table.copies), 'pair')} of near copies kept together"
    if known == "none known" and data.split.protocol == "grouped":
        known += ": each image counts as its own; patients or slides may be in several parts"
    return known


def _shows_experts_masks(data: CellDataModule) -> bool:
    """Return True if the view uses mask files."""
    return data.mask_set.used and data.masks == "expert" and data.mask_format.kind != "unknown"


def _notes_on_data(run: Run) -> Iterator[str]:
    """Yield warnings about valid but unusual settings of the data and the training."""
    data = run.data
    if data.note:
        yield from data.note.splitlines()
    if stretching := describe_stretching(data, data.table):
        yield stretching
    yield from _unused_parts(data)
    if data.masks == "auto" and data.mask_set.used:
        doubtful = find_doubtful(measure_confidence(data, data.table, data.cache))
        if doubtful:
            ids = [data.table.samples[i].id for i in doubtful]
            yield describe_doubtful(ids, len(data.table))
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


def _unused_parts(data: CellDataModule) -> Iterator[str]:
    """Yield a note for the authors' parts and for their folds, if the split does not use them."""
    protocol = data.split.protocol
    parts = Counter(sample.split for sample in data.table.samples if sample.split is not None)
    if parts["test"] and protocol != "official":
        shown = ", ".join(f"{n} {part}" for part, n in parts.items())
        yield (
            f"the dataset's own parts ({shown}) are not used: data.split.protocol is {protocol}, "
            "not official"
        )
    if len(names := fold_names(data.table)) > 1 and protocol != "predefined":
        yield (
            f"the dataset's own {len(names)} folds are not used: data.split.protocol is "
            f"{protocol}, not predefined"
        )


def _notes_on_model(run: Run) -> Iterator[str]:
    """Yield warnings about valid but unusual settings of the model."""
    model = run.model
    swapped = model.arguments["norm"] == "group" and model.loaded is not None
    if swapped and model.trained < sum(p.numel() for p in model.parameters()):
        yield "what is frozen was trained with batch norm, and has group norm now"
    if model.freezes_backbone and run.config["model"]["weights"] == "none":
        yield "the frozen backbone has random weights; give model.weights"
