"""Refusal to score images that a run was trained or selected on."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cellbench.artifacts.folder import RunFolder
from cellbench.config import yaml
from cellbench.data.splits import first_seen, read_split
from cellbench.data.table import Part
from cellbench.utils.errors import UserError

SplitRows = Sequence[Mapping[str, str]]
"""Rows of a split.csv."""


def check_weights(rows: SplitRows, config: Mapping[str, Any]) -> None:
    """Refuse initial weights from a run that has seen images which are to be scored.

    Args:
        rows: This run's split.
        config: This run's configuration, as YAML has it.

    Raises:
        UserError: The run that `model.weights` names, or one before it, has seen such an image.
    """
    for run in lineage(Path(config["model"]["weights"])):
        check_unseen("val", rows, config, run, seen=("train",))
        check_unseen("test", rows, config, run)


def check_unseen(
    part: Part,
    rows: SplitRows,
    config: Mapping[str, Any],
    run: Path,
    seen: Sequence[str] = ("train", "val"),
) -> None:
    """Refuse a part of a split that has samples which another run was trained or selected on.

    Args:
        part: The part that is to be scored.
        rows: The split.
        config: The configuration that the split belongs to, as YAML has it.
        run: Folder of the other run.
        seen: Parts of the other run's split that the samples must not be in.

    Raises:
        UserError: There is such a sample; the first one is named.
    """
    others = read_split(RunFolder(run).split)
    if rows == others:  # a split by images divides groups itself, and has a warning flag for it
        return
    one_dataset = _source(config) == _source(yaml.read_mapping(RunFolder(run).config))
    found = first_seen(part, rows, others, seen, one_dataset=one_dataset)
    if found is not None:
        name, what = found
        raise UserError(
            f"'{name}' is in the {part} split, but the run {run} was trained or selected on "
            f"the same {what}; use the run's own split, or other images"
        )


def lineage(run: Path) -> Iterator[Path]:
    """Yield a run's folder, then that of the run whose weights it began with, and so on.

    Args:
        run: Folder of a run; anything that is not a folder has no lineage.

    Raises:
        UserError: A run does not say what it began with, or began with its own weights.
    """
    known: set[Path] = set()
    while run.is_dir():
        if run.resolve() in known:
            raise UserError(
                f"model.weights: the run {run} was trained from itself, as its config.yaml and "
                "those of the runs before tell; take a run whose weights have a beginning"
            )
        yield run
        known.add(run.resolve())
        config = RunFolder(run).config
        try:
            run = Path(yaml.read_mapping(config)["model"]["weights"])
        except (UserError, KeyError, TypeError) as error:
            raise UserError(
                f"model.weights: cannot read {config}, which tells what that run was trained from "
                f"({error!r:.80}); restore it"
            ) from error


def _source(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the data module's name and the folder of its files."""
    data = config.get("data")
    if not isinstance(data, Mapping):
        return None, None
    options = data.get("init_args")
    return data.get("class_path"), options.get("root") if isinstance(options, Mapping) else None
