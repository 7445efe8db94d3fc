"""Masks of cells by Cellpose, an optional package."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from cellbench.config import keys
from cellbench.config.bounds import bounds, check_bounds
from cellbench.data.mask_format import Labels, MaskFormat
from cellbench.data.views import Image, Mask
from cellbench.utils.errors import UserError

FORMAT = 1
"""Part of the name of cached masks; raise it when the use of Cellpose changes."""

MODELS = keys.find("data.cellpose.model").words
"""Names of the models that Cellpose downloads itself; which there are depends on its version."""

MAX_CHANNELS = 3
"""Number of channels that the network of Cellpose has."""

_ONE_AT_A_TIME = Lock()


@dataclass(frozen=True)
class CellposeConfig:
    """Model of Cellpose, and its use."""

    model: str = "cpsam"
    """Name of a model that Cellpose downloads (cpsam is Cellpose-SAM; Pachitariu, Rariden and
    Stringer 2025), or a file of your own with weights of Cellpose 4."""
    diameter: float | None = field(default=None, metadata=bounds(above=0, at_most=10_000))
    """Diameter of the cells in pixels, by which the images are scaled; null leaves them as they
    are, which Cellpose-SAM is trained for."""

    def __post_init__(self) -> None:
        """Raise UserError if the diameter is out of its bounds."""
        check_bounds(self, "data.cellpose")

    @property
    def anywhere(self) -> "CellposeConfig":
        """The same with an absolute path for a file, for use from another folder."""
        if self.model in MODELS:
            return self
        return replace(self, model=os.path.abspath(self.model))

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "CellposeConfig":
        """Return the configuration from the dictionary that `dataclasses.asdict` makes of it.

        Raises:
            TypeError: There is an unknown entry.
            ValueError: A value has another type.
        """
        found = cls(**plain)
        if not isinstance(found.model, str) or not isinstance(found.diameter, float | int | None):
            raise ValueError("not a configuration of Cellpose")
        return found


DEFAULT = CellposeConfig()
"""Cellpose-SAM on the images as they are."""


def identify(config: CellposeConfig) -> str:
    """Return a text that differs if the masks may: versions, model and diameter.

    Raises:
        UserError: Cellpose is not installed, or there is no file of the model.
    """
    model = config.model
    if model not in MODELS:
        path = _existing(model)
        model = _digest(path, path.stat().st_mtime_ns, path.stat().st_size)
    return f"cellpose {FORMAT} {_installed()} {model} {config.diameter}"


def segment(image: Image, config: CellposeConfig, mask_format: MaskFormat) -> Mask:
    """Find the cells of an image with Cellpose; nuclei are not distinguished.

    Cellpose drops cells larger than .4 of the image by default; here they are kept, as a cut-out
    of one cell is mostly cell.

    Args:
        image: uint8, (H, W, channels), RGB or at most three other channels.
        config: The model and its use.
        mask_format: The cells that count.

    Returns:
        BACKGROUND and CYTOPLASM, uint8, (H, W).

    Raises:
        UserError: Cellpose is not installed or has no such model, or finds no cell.
    """
    lacking = MAX_CHANNELS - image.shape[2]
    with _ONE_AT_A_TIME:
        ids, _, _ = _load(config.model).eval(
            np.pad(image, ((0, 0), (0, 0), (0, lacking))),
            diameter=config.diameter,
            channel_axis=2,
            max_size_fraction=1.0,
        )
    ids = np.asarray(ids, np.int64).reshape(image.shape[:2])
    return mask_format.read(Labels(ids), "by data.masks: cellpose")


@lru_cache(maxsize=1)
def _load(model: str) -> Any:
    """Load a model of Cellpose once.

    Cellpose 4 loads weights with torch.load and weights_only, which runs no code of the file.
    """
    _installed()
    if model not in MODELS:
        _existing(model)  # of a missing file Cellpose would take its default model
    try:
        models = import_module("cellpose.models")
    except ImportError as error:
        raise UserError(
            f"data.masks: cellpose, but it cannot be imported ({error}); install it anew: "
            "pip install 'cellbench[cellpose]'"
        ) from error
    known = getattr(models, "MODEL_NAMES", MODELS)
    if model in MODELS and model not in known:
        raise UserError(
            f"data.cellpose.model: this version of Cellpose has no '{model}'; it has "
            f"{', '.join(known)}"
        )
    try:
        return models.CellposeModel(gpu=True, pretrained_model=model)  # or the CPU if there is none
    except Exception as error:  # no network, or a file of another kind: many kinds of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"data.cellpose.model: Cellpose cannot load '{model}': {reason:.120}; give a model of "
            "Cellpose 4, or put the file where the machine has no network"
        ) from error


def _installed() -> str:
    """Return the version of Cellpose.

    Raises:
        UserError: It is not installed, or too old.
    """
    try:
        found = version("cellpose")
    except PackageNotFoundError as error:
        raise UserError(
            "data.masks: cellpose needs Cellpose: pip install 'cellbench[cellpose]'; or use "
            "data.masks: auto"
        ) from error
    if int(found.split(".")[0]) < 4:
        raise UserError(
            f"data.masks: cellpose needs Cellpose 4, but {found} is installed: "
            "pip install 'cellbench[cellpose]'"
        )
    return found


def _existing(model: str) -> Path:
    path = Path(model)
    if not path.is_file():
        raise UserError(
            f"data.cellpose.model: there is no file {path}, and no model of that name; known are "
            f"{', '.join(MODELS)}"
        )
    return path


@lru_cache(maxsize=4)
def _digest(path: Path, changed: int, size: int) -> str:
    """Return the digest of a file of weights, read again only if it has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
