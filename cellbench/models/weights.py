"""Initial weights of a backbone: their sources, and loading of the entries that fit."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cellbench.models.norms import NORMS, Norm
from cellbench.utils import torch_files
from cellbench.utils.errors import UserError
from cellbench.utils.untrusted import inside

DESCRIPTION = "cellbench"
"""Key of a checkpoint under which it describes its run."""

_BACKBONE = "backbone."  # prefix of the backbone's entries in a checkpoint

# Published DenseNets have "norm.1" where torchvision's own has "norm1".
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True)
class Weights:
    """Initial weights, not yet matched to the network."""

    state: dict[str, Tensor]
    """The state dict."""
    source: str
    """Origin, for messages."""
    of_run: bool = False
    """True for the backbone of a run, False for a whole network with its classifier."""
    norm: Norm = "batch"
    """Norm that the network was trained with, as in model.norm."""
    channels: int = 3
    """Number of channels of the images that the network was trained on."""


class SkipInit(TorchFunctionMode):
    """Context in which new layers keep uninitialised memory, as weights are loaded into them next.

    Drawing the initial weights of VGG16, for example, takes two seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # Not Tensor.normal_ and the like, as torch's truncated normal redraws until values fit.
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def from_file(path: Path) -> Weights:
    """Read a state-dict file without running code in it.

    Raises:
        UserError: The file is missing, or not a state dict.
    """
    if not path.is_file():
        raise UserError(
            f"model.weights: there is no file {path}; allowed: none, imagenet, a state-dict file, "
            "or the folder of a run"
        )
    try:
        # Mapped, so that the classifier, most of some networks' file, is not copied.
        state = torch_files.read(path, mapped=True)
    except torch_files.Damaged as error:
        raise UserError(f"model.weights: {path} is not a state-dict file: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"model.weights: {path} is not a state dict (names and tensors)")
    return Weights(state, str(path))


def from_run(run: Path, name: str, *, partial: bool) -> Weights:
    """Read the backbone's weights from the best checkpoint of a run.

    Args:
        run: The run's folder.
        name: The backbone that they are for.
        partial: Accept weights of another backbone.

    Raises:
        UserError: It is not a run's folder, its checkpoint is damaged, or it trained another
            backbone.
    """
    path = inside(run, "checkpoints", "best.ckpt")
    if not path.is_file():
        runs = sorted(found.parents[1].name for found in run.glob("*/checkpoints/best.ckpt"))
        hint = f"; give one of the runs in it: {', '.join(runs[-3:])}" if runs else ""
        raise UserError(
            f"model.weights: {run} is not a run's folder: it has no checkpoints/best.ckpt{hint}"
        )
    try:
        checkpoint = torch_files.read(path, mapped=True)
        model = checkpoint[DESCRIPTION]["model"]
        trained, norm, channels = model["backbone"], model["norm"], int(model.get("channels", 3))
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm}")
        state = checkpoint["state_dict"].items()
        own = {k.removeprefix(_BACKBONE): v for k, v in state if k.startswith(_BACKBONE)}
    except torch_files.Damaged as error:
        raise UserError(
            f"model.weights: {path} is not a whole checkpoint of cellbench's: {error}"
        ) from error
    except Exception as error:  # a file of another kind may cause any error
        raise UserError(f"model.weights: {path} is not a checkpoint of cellbench's") from error
    if trained != name and not partial:
        raise UserError(
            f"model.weights: the run {run} trained {trained}; give model.backbone: {trained}, or "
            "model.partial_weights: true to load the entries that fit"
        )
    return Weights(own, f"the run {run}", of_run=True, norm=norm, channels=channels)


def load(
    network: nn.Module, weights: Weights, classifiers: tuple[str, ...], *, partial: bool
) -> str:
    """Load weights into a network without classifier, except those of a classifier.

    Args:
        network: The network.
        weights: The weights.
        classifiers: Prefixes of the classifier's entries.
        partial: Leave out what does not fit; otherwise it is an error.

    Returns:
        A line that says what was loaded, left out, and initialised at random.

    Raises:
        UserError: An entry is missing, unknown or of the wrong shape, or not a single one fits.
    """
    own, source = network.state_dict(), weights.source
    given, skipped = _without_classifier(weights.state, own, classifiers)
    torch_files.check_finite(given, source)
    misshapen = [k for k, v in given.items() if partial and k in own and own[k].shape != v.shape]
    for key in misshapen:
        del given[key]
    try:  # some modules rename old keys as they load them (ViT)
        missing, unknown = network.load_state_dict(given, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"model.weights: {source} does not fit the network: {reason}") from error
    if (missing or unknown) and not partial:
        first = [*missing, *unknown][0]
        raise UserError(
            f"model.weights: {source} does not fit the network: {len(missing)} of its {len(own)} "
            f"entries are missing and {len(unknown)} unknown, the first '{first}'; "
            "model.partial_weights: true loads those that fit"
        )
    if not any(value.is_floating_point() for key, value in given.items() if key not in unknown):
        raise UserError(f"model.weights: nothing in {source} fits the network")
    loaded = f"{len(given) - len(unknown)} entries of {source} loaded"
    return loaded + _left_out([*skipped, *unknown, *misshapen], missing) + ", the head is new"


def _without_classifier(
    state: dict[str, Tensor], own: Mapping[str, Tensor], classifiers: tuple[str, ...]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the entries of the backbone, by their current names, and the classifier's names.

    Args:
        state: A state dict.
        own: The state dict of the network, whose own entries are never a classifier's.
        classifiers: Prefixes of the classifier's entries.
    """
    kept = copy.copy(state)  # keeps its modules' versions, which MNASNet needs
    kept.clear()
    skipped = []
    for old, value in state.items():
        key = _OLD_DENSENET.sub(r"\1\2", old)
        if key.startswith(classifiers) and key not in own:
            skipped.append(key)
        else:
            kept[key] = value
    return kept, skipped


def _left_out(skipped: Sequence[str], missing: Sequence[str]) -> str:
    parts = [f", {len(skipped)} skipped ({_some(skipped)})"] if skipped else []
    if missing:
        parts.append(f", {len(missing)} of the backbone initialised at random ({_some(missing)})")
    return "".join(parts)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
