"""Metadata of an exported ONNX file: all that is needed to use it without cellbench."""

from dataclasses import asdict
from typing import Any

import cellbench
from cellbench.artifacts.checkpoint import Description
from cellbench.data.image_format import ImageFormat
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.stain import STAINS
from cellbench.data.views import BACKGROUND_MARGIN, CROP_MARGIN, silhouette_value
from cellbench.inference.temperature import Temperature
from cellbench.models.classifier import CellClassifier

INPUT, OUTPUT = "images", "probabilities"
"""Names of the graph's input and output."""


def describe(
    described: Description, model: CellClassifier, temperature: Temperature
) -> dict[str, Any]:
    """Return the metadata of an ONNX file as plain values, which JSON can hold.

    Args:
        described: Description of the checkpoint.
        model: The model.
        temperature: Temperature of the confidences.
    """
    prepared = described.preprocessing
    height, width = prepared.image_size
    colours = "RGB" if prepared.image_format.is_rgb else "channels in the order of the training"
    return {
        "cellbench": cellbench.__version__,
        "input": f"{INPUT}: uint8, (batch, {height}, {width}, {model.channels}), {colours}, 0 to "
        "255; not normalised",
        "output": f"{OUTPUT}: float32, (batch, {len(model.classes)}), in the order of classes",
        "classes": list(model.classes),
        **asdict(prepared),
        "image_size": [height, width],
        "before": preprocessing_steps(prepared),
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


def preprocessing_steps(prepared: Preprocessing) -> list[str]:
    """Return what has to be done to an image before it is given to the graph, a text per step.

    The functions are those of OpenCV, because the training used its rounding.
    """
    return [
        *_read_steps(prepared.image_format),
        *_mask_steps(prepared),
        *_stain_steps(prepared),
        *_geometry_steps(prepared),
        *_fill_steps(prepared),
    ]


def _read_steps(image_format: ImageFormat) -> list[str]:
    """Return the steps from the file to an image of 8 bits."""
    clear = f"what is transparent shows the value {image_format.fill}"
    if image_format.channels is None:
        channels = "RGB (the value of a grey image in each channel)"
    else:
        named = ", ".join(map(repr, image_format.channels))
        channels = f"the channels {named}, by name or by number from 0, in this order"
    if image_format.intensity is None:
        return [f"read the image as 8-bit {channels}, turned as its EXIF data say; {clear}"]
    ends = image_format.intensity
    if image_format.limits is not None:
        limits = f"to {[list(each) for each in image_format.limits]} (low and high of each channel)"
    elif ends.measured:
        limits = f"to low = {ends.low} and high = {ends.high} of each channel of the image"
    else:
        limits = f"to low = {ends.low} and high = {ends.high}"
    return [
        f"read the values of {channels}, turned as its EXIF data say",
        f"scale each channel linearly by its limits: 255 * (value - low) / (high - low), clipped "
        f"to 0 to 255 and rounded; the limits are set {limits}; {clear}",
    ]


def _mask_steps(prepared: Preprocessing) -> list[str]:
    """Return the step that finds the mask, if the view needs one."""
    if prepared.view == "raw":
        return []
    if prepared.masks == "auto":
        return [
            "find the cell's mask in that image: cellbench.data.segmentation.segment, which is "
            f"part of cellbench alone (0 background, 1 cytoplasm, 2 nucleus){_centre(prepared)}"
        ]
    if prepared.masks == "cellpose":
        return [
            f"find the cells in that image with Cellpose, model {prepared.cellpose.model}, as "
            f"cellbench.data.cellpose.segment does (0 background, 1 cell){_centre(prepared)}"
        ]
    return [
        f"read its expert mask, of the image's size: {prepared.mask_format.describe()}; of other "
        "values the nearest counts"
    ]


def _centre(prepared: Preprocessing) -> str:
    """Return the rest of a sentence on masks if only one cell counts."""
    centre = prepared.mask_format.instance == "centre"
    return "; only the cell at the centre counts" if centre else ""


def _stain_steps(prepared: Preprocessing) -> list[str]:
    """Return the stain normalisation, if there is one."""
    if prepared.stain == "none":
        return []
    stain = STAINS[prepared.stain]
    return [
        "normalise the stains (Macenko et al., ISBI 2009, as cellbench.data.stain.normalise "
        f"does) to the optical densities {stain.reference.tolist()} and the 99th percentiles "
        f"of concentration {stain.strengths.tolist()}"
    ]


def _geometry_steps(prepared: Preprocessing) -> list[str]:
    """Return the crop, if there is one, and the change of size."""
    height, width = prepared.image_size
    steps = []
    if prepared.view == "crop":
        steps.append(
            "crop image and mask to the square about the cell's bounding box, with a margin of "
            f"{CROP_MARGIN} of the image's longer side, moved to lie inside the image"
        )
    if prepared.fit != "stretch":
        mask = "" if prepared.view == "raw" else ", and the mask with background alike"
        shape = f"the shape of {height} x {width}, both ends alike"
        steps.append(
            f"pad the image with the value {prepared.fill} to {shape}{mask}"
            if prepared.fit == "pad"
            else f"crop the image at its centre to {shape}{mask and ', and the mask alike'}"
        )
    resize = (
        f"resize to {height} x {width} (height x width), without keeping the aspect: first every "
        "axis that shrinks, with cv2.resize and INTER_AREA, then every axis that grows, with "
        "INTER_LINEAR"
    )
    if prepared.view not in ("raw", "crop"):  # those that use the mask afterwards
        resize += (
            "; resize the mask of the cell, and that of the nucleus, in the same way, each as "
            "float32 of 0 and 1, and keep what is above 0.5"
        )
    return [*steps, resize]


def _fill_steps(prepared: Preprocessing) -> list[str]:
    """Return the step that fills the part which the view hides, if there is one."""
    hidden = {
        "masked": "all that is not cell",
        "nucleus": "all that is not nucleus",
        "background": "each bounding box of the cell's pieces, widened by "
        f"{BACKGROUND_MARGIN} of the longer side,",
    }
    if prepared.view in hidden:
        return [f"set {hidden[prepared.view]} to {prepared.fill}"]
    if prepared.view == "silhouette":
        return [
            f"set the cell to {silhouette_value(prepared.fill)} and all else to {prepared.fill}"
        ]
    return []
