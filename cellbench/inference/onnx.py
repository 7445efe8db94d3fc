"""A run's best model as an ONNX file, which needs neither cellbench nor torch to be used."""

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import cellbench
from cellbench.artifacts.checkpoint import Description
from cellbench.artifacts.folder import whole_file
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.stain import STAINS
from cellbench.data.views import BACKGROUND_MARGIN, CROP_MARGIN, silhouette_value
from cellbench.inference.predict import Temperature
from cellbench.models.classifier import CellClassifier
from cellbench.utils.errors import UserError

METADATA = "cellbench"
"""The key of the file's metadata that holds, as JSON, what `describe` gives."""

INPUT, OUTPUT = "images", "probabilities"
"""The names of the graph's one input and output."""

LARGEST = 2**31
"""The bytes that a single ONNX file cannot hold: protobuf's limit."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Check:
    """How far an ONNX file and the model that it was made of agree, both in float32 on a CPU.

    Attributes:
        n: The number of images.
        same_class: How many of them have the same class by both; none whose probabilities are no
            numbers.
        largest_difference: Of any class' probability of any image, 0 to 1.
    """

    n: int
    same_class: int
    largest_difference: float


class _Graph(nn.Module):
    """What the file holds: from pixels to probabilities."""

    def __init__(self, model: CellClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities, (B, classes), of uint8 RGB images, (B, H, W, 3)."""
        logits: Tensor = self.model(images.permute(0, 3, 1, 2))
        return logits.softmax(dim=1)


def require_packages() -> None:
    """Makes sure that the extra is installed.

    Raises:
        UserError: It is not.
    """
    for name in PACKAGES:
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(
                f"export needs the package {name}: pip install 'cellbench[onnx]'"
            ) from error


def export(model: CellClassifier, metadata: dict[str, Any], path: Path) -> None:
    """Writes a model as one ONNX file, with any number of images in a batch.

    Args:
        model: The model; it is put into evaluation.
        metadata: What `describe` gives; the file's metadata have it as JSON.
        path: The file.

    Raises:
        UserError: The network has an operation that ONNX has not, or is too large for one file; or
            the file cannot be written.
    """
    onnx = import_module("onnx")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size >= LARGEST:
        raise UserError(f"export: {size / 1e9:.1f} GB of weights; an ONNX file holds 2.1 at most")
    # Two images: of one, the exporter would take the number for a constant.
    example = torch.zeros(2, *metadata["image_size"], 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch's own use of its exporter
            program = torch.onnx.export(
                _Graph(model).eval(),
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"export: torch's exporter has no ONNX form of {metadata['backbone']}: "
            f"{str(error.__cause__ or error).splitlines()[0]}"
        ) from error
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(metadata, ensure_ascii=False)})
    with whole_file(path) as beside:
        onnx.save(proto, beside, format="protobuf")


def is_export(path: Path) -> bool:
    """Return True for an ONNX file that `export` has written."""
    try:
        proto = import_module("onnx").load(path, load_external_data=False)
    except Exception:  # whatever a file of another kind provokes in the reader
        return False
    return any(entry.key == METADATA for entry in proto.metadata_props)


def compare(model: CellClassifier, path: Path, batches: Iterable[Tensor]) -> Check:
    """Runs an ONNX file with onnxruntime beside the model that it was made of.

    Args:
        model: The model, float32.
        path: The file.
        batches: uint8 RGB images at the model's size, (B, 3, H, W).

    Raises:
        UserError: The model's own probabilities are not finite.
    """
    session = import_module("onnxruntime").InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    model.eval()
    n, same, largest = 0, 0, 0.0
    for images in batches:
        pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        (theirs,) = session.run([OUTPUT], {INPUT: pixels})
        with torch.no_grad():
            ours = model(images).softmax(dim=1).numpy()
        if not np.isfinite(ours).all():
            raise UserError(
                "export: the run's model gives probabilities that are not finite numbers; train "
                "again with a lower model.lr"
            )
        n += len(images)
        differences = np.nan_to_num(np.abs(theirs - ours), nan=1.0)
        equal = theirs.argmax(axis=1) == ours.argmax(axis=1)
        same += int((equal & np.isfinite(theirs + ours).all(axis=1)).sum())
        largest = max(largest, float(differences.max()))
    return Check(n, same, largest)


def noise(preprocessing: Preprocessing, n: int = 64) -> Iterator[Tensor]:
    """Images of nothing, for want of real ones: a batch of n."""
    drawn = torch.Generator().manual_seed(0)
    shape = (n, 3, *preprocessing.image_size)
    yield torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn)


def describe(
    described: Description, model: CellClassifier, temperature: Temperature
) -> dict[str, Any]:
    """What is needed to use the file without cellbench, in plain values."""
    prepared = described.preprocessing
    height, width = prepared.image_size
    return {
        "cellbench": cellbench.__version__,
        "input": f"{INPUT}: uint8, (batch, {height}, {width}, 3), RGB, 0 to 255; not normalised",
        "output": f"{OUTPUT}: float32, (batch, {len(model.classes)}), in the order of classes",
        "classes": list(model.classes),
        **asdict(prepared),
        "image_size": [height, width],
        "before": before(prepared),
        "normalisation": {  # inside the graph: (pixel / 255 - mean) / std
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
            "inside": True,
        },
        "temperature": {
            "value": temperature.value,
            "why": temperature.why,
            "use": "confidence = max(softmax(log(probabilities) / value)); not inside",
        },
        "backbone": described.model["backbone"],
        "data": described.data,
        "split": described.split,
        "leaky": described.leaky,
    }


def before(prepared: Preprocessing) -> list[str]:
    """What is to be done to an image before it is given to the graph, step by step.

    Sizes are those of OpenCV, whose own rounding the training has had.
    """
    height, width = prepared.image_size
    steps = ["read the image as 8-bit RGB, turned as its EXIF data say"]
    masked = prepared.view != "raw"
    if masked and prepared.masks == "auto":
        steps.append(
            "find the cell's mask in that image: cellbench.data.segmentation.segment, which is "
            "part of cellbench alone (0 background, 1 cytoplasm, 2 nucleus)"
        )
    elif masked:
        steps.append(
            "read its expert mask: 0 background, 128 cytoplasm, 255 nucleus, or 0 and another "
            "value for the cell; of the image's size"
        )
    if prepared.stain != "none":
        stain = STAINS[prepared.stain]
        steps.append(
            "normalise the stains (Macenko et al., ISBI 2009, as cellbench.data.stain.normalise "
            f"does) to the optical densities {stain.reference.tolist()} and the 99th percentiles "
            f"of concentration {stain.strengths.tolist()}"
        )
    if prepared.view == "crop":
        steps.append(
            "crop image and mask to the square about the cell's bounding box, with a margin of "
            f"{CROP_MARGIN} of the image's longer side, moved to lie inside the image"
        )
    steps.append(
        f"resize to {height} x {width} (height x width), without keeping the aspect: first every "
        "axis that shrinks, with cv2.resize and INTER_AREA, then every axis that grows, with "
        "INTER_LINEAR"
        + (
            "; resize the mask of the cell, and that of the nucleus, in the same way, each as "
            "float32 of 0 and 1, and keep what is above 0.5"
            if masked and prepared.view != "crop"
            else ""
        )
    )
    hidden = {
        "masked": "all that is not cell",
        "nucleus": "all that is not nucleus",
        "background": "each bounding box of the cell's pieces, widened by "
        f"{BACKGROUND_MARGIN} of the longer side,",
    }
    if prepared.view in hidden:
        steps.append(f"set {hidden[prepared.view]} to {prepared.fill}")
    if prepared.view == "silhouette":
        steps.append(
            f"set the cell to {silhouette_value(prepared.fill)} and all else to {prepared.fill}"
        )
    return steps
