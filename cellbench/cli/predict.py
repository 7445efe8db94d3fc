"""predict: classifies a folder of images with a run's best checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cellbench.cli.console import quieten_lightning
from cellbench.cli.parsing import Parser
from cellbench.runs.folder import RunFolder
from cellbench.runs.inference import predict


def main(args: Sequence[str]) -> int:
    """Runs the command."""
    parser = Parser(
        prog="python -m cellbench predict",
        description="Writes a CSV with each image's file, predicted class and every probability.",
    )
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument(
        "--masks",
        type=Path | None,
        help="folder of the masks: of IMAGES/a/b.jpg it is MASKS/a/b.png; needed by every view "
        "but raw",
    )
    parser.add_argument(
        "--output", type=Path | None, help="the CSV (RUN/predict/<name of IMAGES>.csv)"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    parser.add_argument("--accelerator", type=Literal["auto", "cpu", "gpu"], default="auto")
    quieten_lightning()
    given = parser.parse_args(list(args))
    folder = RunFolder.open(given.run)
    output = given.output or given.run / "predict" / f"{given.images.resolve().name}.csv"
    predict(folder, given.images, given.masks, output, given.batch_size, given.accelerator)
    return 0
