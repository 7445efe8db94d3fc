"""Export of a model to ONNX, which needs neither cellbench nor torch to run, and its check."""

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cellbench.artifacts.folder import whole_file
from cellbench.inference.onnx_metadata import INPUT, OUTPUT
from cellbench.models.classifier import CellClassifier
from cellbench.utils.errors import UserError

METADATA = "cellbench"
"""Key of the file's metadata that holds those of `onnx_metadata.describe`, as JSON."""

LIMIT = 2**31
"""Bytes that a single ONNX file must stay below: protobuf's limit."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""Packages of the extra `onnx`, all of which an export needs."""


@dataclass(frozen=True)
class Check:
    """Agreement of an ONNX file with the model that was exported, both in float32 on a CPU."""

    n: int
    """Number of images."""
    same_class: int
    """Number of images whose probabilities are finite and whose predicted class is the same."""
    largest_difference: float
    """Largest difference of a probability, over all images and classes, 0 to 1."""


class _Graph(nn.Module):
    """Graph of the file: from pixels to probabilities."""

    def __init__(self, model: CellClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities, (B, classes), of uint8 images, (B, H, W, channels)."""
        logits: Tensor = self.model(images.permute(0, 3, 1, 2))
        return logits.softmax(dim=1)


def require_packages() -> None:
    """Import the packages of the extra, and raise UserError if one is not installed."""
    for name in PACKAGES:
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(
                f"export needs the package {name}: pip install 'cellbench[onnx]'"
            ) from error


def export(model: CellClassifier, metadata: dict[str, Any], path: Path) -> None:
    """Write a model as an ONNX file, which takes batches of any size.

    Args:
        model: The model; it is set to evaluation mode.
        metadata: Metadata from `onnx_metadata.describe`, stored in the file as JSON.
        path: The file.

    Raises:
        UserError: The network has an operation that cannot be exported, or is too large for one
            file; or the file cannot be written.
    """
    onnx = import_module("onnx")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size >= LIMIT:
        raise UserError(f"export: {size / 1e9:.1f} GB of weights; an ONNX file holds 2.1 at most")
    # Two images: with one, the exporter would take the batch size for a constant.
    example = torch.zeros(2, *metadata["image_size"], model.channels, dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch warns about its own exporter
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
    _drop_origins(proto)
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(metadata, ensure_ascii=False)})
    with whole_file(path) as beside:
        onnx.save(proto, beside, format="protobuf")


def _drop_origins(message: Any) -> None:
    """Remove the origins of a graph's parts: lines of source code, with their paths here.

    Args:
        message: The graph, or a part of it, as a protobuf message; changed in place.
    """
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None and field.name != "initializer":
            for part in value if isinstance(value, Iterable) else [value]:
                _drop_origins(part)


def is_export(path: Path) -> bool:
    """Return True for an ONNX file that `export` has written."""
    try:
        proto = import_module("onnx").load(path, load_external_data=False)
    except Exception:  # whatever a file of another kind provokes in the reader
        return False
    return any(entry.key == METADATA for entry in proto.metadata_props)


def compare(model: CellClassifier, path: Path, batches: Iterable[Tensor]) -> Check:
    """Compare an ONNX file, run by onnxruntime, with the model that was exported.

    Args:
        model: The model, float32, on the CPU.
        path: The file.
        batches: Batches of uint8 images at the model's size, (B, C, H, W).

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


def random_images(model: CellClassifier, n: int = 64) -> Iterator[Tensor]:
    """Yield one batch of noise, uint8, (n, C, H, W), for a comparison without real images."""
    generator = torch.Generator().manual_seed(0)
    shape = (n, model.channels, *model.image_size)
    yield torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
