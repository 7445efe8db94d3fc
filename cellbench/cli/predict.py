"""Command `predict`: classify images with a run's best checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cellbench.artifacts.folder import RunFolder
from cellbench.cli.options.parser import Parser
from cellbench.data.files import MAX_PIXELS
from cellbench.inference.predict import PredictOptions, predict
from cellbench.training.lightning_output import quieten_lightning


def main(args: Sequence[str]) -> int:
    """Run the command."""
    quieten_lightning()
    given = _parser().parse_args(list(args))
    name = given.images[0].resolve().name if len(given.images) == 1 else "images"
    folder = RunFolder.open(given.run)
    options = PredictOptions(
        images=given.images,
        masks=given.masks,
        output=given.output or folder.below("predict", f"{name}.csv"),
        contact_sheet=given.contact_sheet,
        explain=given.explain,
        batch_size=given.batch_size,
        accelerator=given.accelerator,
        max_pixels=given.max_pixels,
    )
    predict(folder, options)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m cellbench predict",
        description="Writes a CSV with each image's file, predicted class, confidence and every "
        "probability. Images that cannot be read are left out, and listed beside it in "
        "OUTPUT.unreadable.csv. The confidence is the highest probability, after scaling by the "
        "temperature that fits the run's validation images. In both files a ' stands before names "
        "that begin with =, +, -, @, a tab or a line break: a spreadsheet would run them as "
        "formulas. The run's best.ckpt and predictions.csv are all that is read of it; config.yaml "
        "is not.",
    )
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, help="folders of images, or single files"
    )
    parser.add_argument(
        "--masks",
        type=Path | None,
        help="folder of the masks: of FOLDER/a/b.jpg it is MASKS/a/b.png, of a single file b.jpg "
        "MASKS/b.png, or with another suffix; needed by every view but raw, read as in training",
    )
    parser.add_argument(
        "--output",
        type=Path | None,
        help="the CSV (RUN/predict/<name of IMAGES>.csv; of several, images.csv)",
    )
    parser.add_argument(
        "--contact_sheet",
        type=Path | None,
        help="a PNG of up to 64 images as the network sees them: the least certain and the most",
    )
    parser.add_argument(
        "--explain",
        type=Path | None,
        help="a folder for a PNG of each image: as the network sees it, and under the heat of "
        "Grad-CAM and of integrated gradients",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    parser.add_argument(
        "--max_pixels",
        type=int,
        default=MAX_PIXELS,
        help="the largest image that is decoded, in pixels; larger ones count as unreadable",
    )
    parser.add_argument("--accelerator", type=Literal["auto", "cpu", "gpu"], default="auto")
    return parser
