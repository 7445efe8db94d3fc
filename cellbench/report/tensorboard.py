"""A report as TensorBoard's event files, for those without W&B."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image

from cellbench.runs.loggers import check_tensorboard


def publish(
    folder: Path,
    verdict: Sequence[str],
    figures: Sequence[Path],
    table: Sequence[Mapping[str, Any]],
) -> None:
    """Writes the verdict and the table as text, the figures, and each condition's numbers.

    The numbers stand under `report/<metric>`, a run for each condition, so that TensorBoard
    compares them as it compares trainings.

    Args:
        folder: Where the event files go; what an earlier call has written is removed.
        verdict: Its sentences.
        figures: PNG files, shown under their stems.
        table: A row a condition, all of the same columns.

    Raises:
        UserError: TensorBoard is not installed.
    """
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    for left in folder.rglob("events.out.tfevents.*"):
        left.unlink()
    columns = list(table[0])
    lines = ["|".join(columns), "|".join("---" for _ in columns)]
    lines += ["|".join(_cell(row[column]) for column in columns) for row in table]
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("report/verdict", "\n\n".join(verdict))
        writer.add_text("report/conditions", "\n".join(lines))
        for path in figures:
            image = matplotlib.image.imread(path)
            writer.add_image(f"report/{path.stem}", image, dataformats="HWC")
    for number, row in enumerate(table):
        name = "".join(c if c.isalnum() or c in " -_.," else "_" for c in str(row["condition"]))
        with SummaryWriter(str(folder / f"{number:02d} {name}")) as writer:
            for key, value in row.items():
                if isinstance(value, float):
                    writer.add_scalar(f"report/{key}", value)


def _cell(value: Any) -> str:
    """A cell of a Markdown table."""
    shown = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(shown.split()).replace("|", "\\|")
