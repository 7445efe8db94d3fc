"""Where a backbone's weights come from, and what of them fits."""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cellbench import torch_files
from cellbench.errors import UserError
from cellbench.foreign import inside

DESCRIPTION = "cellbench"
"""Where a checkpoint of ours says what it is of."""
_OWN = "backbone."  # how the backbone's names begin in it

# Published DenseNets have "norm.1" where torchvision's own has "norm1".
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class Undrawn(TorchFunctionMode):
    """Leaves the drawing of initial weights out where others are loaded; VGG16's take two seconds.

    As a context, for what is made in it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # Not Tensor.normal_ itself: torch's truncated normal calls it until it likes the values.
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def from_file(path: Path) -> dict[str, Tensor]:
    """Reads a state-dict file; no code in it is run.

    Raises:
        UserError: It is missing, or none.
    """
    if not path.is_file():
        raise UserError(
            f"model.weights: there is no file {path}; allowed: none, imagenet, a state-dict file, "
            "or the folder of a run"
        )
    try:
        # Mapped: the classifier, most of some networks' file, is not copied.
        state = torch_files.read(path, mapped=True)
    except torch_files.Damaged as error:
        raise UserError(f"model.weights: {path} is not a state-dict file: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"model.weights: {path} is not a state dict (names and tensors)")
    return state


def from_run(run: Path, name: str, *, partial: bool) -> tuple[dict[str, Tensor], str]:
    """The backbone's weights of a run's best checkpoint, and the norm that it was trained with.

    Raises:
        UserError: It is no run's folder, or the run trained another network and `partial` is not
            asked for.
    """
    path = inside(run, "checkpoints", "best.ckpt")
    if not path.is_file():
        runs = sorted(found.parents[1].name for found in run.glob("*/checkpoints/best.ckpt"))
        hint = f"; give one of the runs in it: {', '.join(runs[-3:])}" if runs else ""
        raise UserError(
            f"model.weights: {run} is no run's folder: it has no checkpoints/best.ckpt{hint}"
        )
    try:
        checkpoint = torch_files.read(path, mapped=True)
        model = checkpoint[DESCRIPTION]["model"]
        trained, norm = model["backbone"], model["norm"]
        state = checkpoint["state_dict"].items()
        own = {key.removeprefix(_OWN): value for key, value in state if key.startswith(_OWN)}
    except torch_files.Damaged as error:
        raise UserError(
            f"model.weights: {path} is not a whole checkpoint of cellbench's: {error}"
        ) from error
    except Exception as error:  # whatever a file of another kind holds
        raise UserError(f"model.weights: {path} is not a checkpoint of cellbench's") from error
    if trained != name and not partial:
        raise UserError(
            f"model.weights: the run {run} trained {trained}; give model.backbone: {trained}, or "
            "model.partial_weights: true to take what fits"
        )
    return own, norm


def load(
    network: nn.Module,
    state: dict[str, Tensor],
    source: str,
    classifiers: tuple[str, ...],
    *,
    partial: bool,
) -> str:
    """Load all but the classifier, which the head replaces.

    Args:
        network: What to load into; it has no classifier.
        state: Names and values.
        source: Where they are from, in words.
        classifiers: How the names of classifiers begin.
        partial: Whether what does not fit is left out; else it is an error.

    Returns:
        What was loaded, skipped and begun anew, in a line.

    Raises:
        UserError: A value is missing, unknown or of another shape, or nothing at all fits.
    """
    given = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
    own = network.state_dict()
    skipped = [k for k in given if k.startswith(classifiers) and k not in own]
    kept = OrderedDict((key, value) for key, value in given.items() if key not in set(skipped))
    torch_files.check_finite(kept, source)
    shapeless = [key for key, value in kept.items() if key in own and own[key].shape != value.shape]
    if partial:
        for key in shapeless:
            del kept[key]
    # The modules' versions, which MNASNet asks for.
    kept._metadata = getattr(state, "_metadata", {})  # type: ignore[attr-defined]
    try:  # a module renames old keys of its own (ViT) as it loads
        missing, unknown = network.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"model.weights: {source} does not fit the network: {reason}") from error
    loaded, amiss = len(kept) - len(unknown), [*missing, *unknown]
    if amiss and not partial:
        raise UserError(
            f"model.weights: {source} does not fit the network: {len(missing)} of its {len(own)} "
            f"entries are missing and {len(unknown)} unknown, the first '{amiss[0]}'; "
            "model.partial_weights: true takes what fits"
        )
    if not any(value.is_floating_point() for key, value in kept.items() if key not in unknown):
        raise UserError(f"model.weights: nothing in {source} fits the network")
    parts = [f"{loaded} entries of {source} loaded"]
    left = [*skipped, *unknown, *(shapeless if partial else [])]
    if left:
        parts.append(f"{len(left)} skipped ({_shown(left)})")
    if missing:
        parts.append(f"{len(missing)} of the backbone begun anew ({_shown(missing)})")
    return ", ".join([*parts, "the head is new"])


def _shown(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
