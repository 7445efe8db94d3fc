"""Models rebuilt from their checkpoints."""

import torch

from cellbench.artifacts.checkpoint import Description, check_pooling, check_segmentation
from cellbench.models.classifier import CellClassifier
from cellbench.models.weights import SkipInit
from cellbench.utils.errors import UserError


def build_model(described: Description, state: dict[str, torch.Tensor]) -> CellClassifier:
    """Rebuild a checkpoint's model.

    Args:
        described: The checkpoint's description.
        state: The checkpoint's weights.

    Raises:
        UserError: The weights do not fit the description, or they come from an earlier cellbench
            that pooled the network's features in another way.
    """
    try:
        with SkipInit():
            model = CellClassifier.from_arguments(described.model)
        model.load_state_dict(state)
    except UserError as error:
        raise UserError(f"the checkpoint's description is not of a valid model: {error}") from error
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        reason = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
        raise UserError(
            f"the checkpoint's weights do not fit its own model: {reason:.120}; restore it from a "
            "copy, or train again"
        ) from error
    check_pooling(described, model)
    check_segmentation(described)
    return model
