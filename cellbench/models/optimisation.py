"""Optimisers by name, and which parameters learn how fast."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from cellbench.models.regularisation import penalised_parameters

OptimizerName = Literal["adam", "adamw", "sgd", "rmsprop"]

MOMENTUM = 0.9
PLATEAU_PATIENCE, PLATEAU_FACTOR, PLATEAU_MONITOR = 2, 0.3, "val/loss"

SCALE = "lr_scale"
"""Where a group of parameters says what its learning rate is multiplied by."""


def parameter_groups(
    parts: Sequence[tuple[Iterable[nn.Module], float]], weight_decay: float
) -> list[dict[str, Any]]:
    """Parts a network's parameters by their learning rate, and by whether they decay.

    Args:
        parts: Modules, and what their learning rate is multiplied by. Those that do not require a
            gradient are left out, and so are those of an earlier part.
        weight_decay: Of the weights; biases and norms have none.
    """
    groups: list[dict[str, Any]] = []
    taken: set[int] = set()
    for modules, scale in parts:
        decayed: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for module in modules:
            weights = {id(p) for p in penalised_parameters(module).values()}
            for parameter in module.parameters():
                if parameter.requires_grad and id(parameter) not in taken:
                    (decayed if id(parameter) in weights else rest).append(parameter)
                    taken.add(id(parameter))
        groups.append({"params": decayed, "weight_decay": weight_decay, SCALE: scale})
        groups.append({"params": rest, "weight_decay": 0.0, SCALE: scale})
    return [group for group in groups if group["params"]]


def build_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], lr: float, *, fused: bool = True
) -> Optimizer:
    """Makes an optimiser.

    Args:
        name: sgd has a momentum of 0.9; the others have torch's defaults. Weight decay is decoupled
            (Loshchilov and Hutter 2019) with adamw alone.
        groups: What `parameter_groups` gives.
        lr: Learning rate.
        fused: Steps all parameters in one kernel, in half the time of torch's default on a CPU.
            Lightning does not clip gradients for such optimisers.
    """
    scaled = [group | {"lr": lr * group[SCALE]} for group in groups]
    if name == "rmsprop":
        return torch.optim.RMSprop(scaled, lr=lr)
    if name == "sgd":
        return torch.optim.SGD(scaled, lr=lr, momentum=MOMENTUM, fused=fused)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(scaled, lr=lr, fused=fused)


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate, which each group has its own multiple of."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[SCALE]
