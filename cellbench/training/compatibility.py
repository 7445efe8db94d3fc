"""Checks of a checkpoint against the model and the data at hand."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cellbench.artifacts.checkpoint import (
    Description,
    check_pooling,
    check_segmentation,
    read_checkpoint,
)
from cellbench.data.mask_format import UNKNOWN
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.views import needs_mask
from cellbench.models.classifier import CellClassifier
from cellbench.utils.errors import UserError


def load_weights(path: Path, model: CellClassifier) -> Description:
    """Load a checkpoint's weights into a model of the same configuration.

    Args:
        path: The checkpoint.
        model: The model, which describes itself in `model.description`.

    Returns:
        The checkpoint's description of itself.

    Raises:
        UserError: The checkpoint is damaged, or holds another model.
    """
    description, state = read_checkpoint(path)
    own = model.description["model"]
    if description.model != own:
        differs = [key for key in own if description.model.get(key) != own[key]]
        raise UserError(
            f"{path} holds another model: {', '.join(differs)} differ from the configuration's"
        )
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{path}: its weights do not fit its own model: {reason:.120}; restore it from a "
            "copy, or train again"
        ) from error
    check_pooling(description, model)
    check_segmentation(description)
    return description


def check_unchanged(trained: Description, current: Description) -> None:
    """Make sure that an interrupted training would resume with the same data.

    Args:
        trained: The checkpoint's description.
        current: The description that a checkpoint of this run would have now.

    Raises:
        UserError: The split, the labels, the masks or the preprocessing have changed.
    """
    ours, theirs = current.preprocessing, trained.preprocessing
    if theirs.mask_format == UNKNOWN and ours.masks == "expert":  # a run of an earlier version
        ours = replace(ours, mask_format=theirs.mask_format)
    for what, changed, now, then in (
        ("split", "images or labels", current.split, trained.split),
        ("table of training labels", "labels", current.labels, trained.labels),
        ("set of masks", "masks", current.masks, trained.masks),
        ("preprocessing", "settings", ours, theirs),
    ):
        if now != then:
            raise UserError(
                f"--resume: the {what} is not the one that the run began with: {changed} have "
                "changed since; put them back, or begin afresh"
            )


def check_masks(trained: Description, current: Description) -> None:
    """Make sure that the masks are those of the training, if both use the same kind of masks.

    Args:
        trained: The checkpoint's description.
        current: The description of the data that it is to be scored on.

    Raises:
        UserError: The masks have changed.
    """
    ours, theirs = current.preprocessing, trained.preprocessing
    known = trained.masks and needs_mask(ours.view) and ours.masks == theirs.masks
    if known and trained.masks != current.masks:
        raise UserError(
            f"the masks of {current.data} have changed since the run was trained; put them back, "
            "or train again"
        )


def changed_preprocessing(trained: Description, current: Description) -> list[str]:
    """Describe, as warning flags, each setting of the preprocessing that is not the training's.

    Args:
        trained: The checkpoint's description.
        current: The description of the data that it is to be scored on.
    """
    ours, theirs = _settings(current.preprocessing), _settings(trained.preprocessing)
    return [
        f"{name} is {value} here, and was {theirs[name]} in training"
        for name, value in ours.items()
        if value != theirs[name]
    ]


def _settings(prepared: Preprocessing) -> dict[str, Any]:
    """Return the settings of a preprocessing by their names, those of its parts among them."""
    settings = asdict(prepared)
    settings |= settings.pop("image_format")
    # Other files may have other values for the same regions; those read them right.
    settings["mask_instance"] = settings.pop("mask_format")["instance"]
    return settings
