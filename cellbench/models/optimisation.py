"""Optimisers by name, groups of parameters, learning-rate schedules. An optimiser is one entry."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from cellbench.models.backbones.factory import Stages
from cellbench.models.phases import Plan
from cellbench.models.regularisation import weights_of

ParameterGroups = list[dict[str, Any]]
"""Groups of parameters, as torch's optimisers take them."""

MOMENTUM = 0.9
PLATEAU_PATIENCE = 2
"""Epochs without a lower loss after which plateau lowers the learning rate."""
PLATEAU_FACTOR = 0.3
PLATEAU_MONITOR = "val/loss"

SCALE = "lr_scale"
"""Key of a group's own factor of the learning rate."""

# A fused optimiser steps all parameters in one kernel, in half the time of torch's default on a
# CPU; RMSprop has none.
OPTIMIZERS: dict[str, Callable[[ParameterGroups, float, bool], Optimizer]] = {
    "adam": lambda groups, lr, fused: torch.optim.Adam(groups, lr=lr, fused=fused),
    "adamw": lambda groups, lr, fused: torch.optim.AdamW(groups, lr=lr, fused=fused),
    "sgd": lambda groups, lr, fused: torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, fused=fused),
    "rmsprop": lambda groups, lr, fused: torch.optim.RMSprop(groups, lr=lr),
}
"""Functions from groups, learning rate and `fused` to an optimiser, with torch's defaults."""

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]


def layer_decay_parts(
    head: nn.Module, backbone: nn.Module, stages: Stages, decay: float
) -> list[tuple[Sequence[nn.Module], float]]:
    """Return the parts of a network, from the head down, with their factors of the learning rate.

    Args:
        head: The head, whose factor is 1.
        backbone: The backbone; what is in none of its stages gets the factor of the first.
        stages: Its layers by stage, from input to output.
        decay: Ratio of a stage's factor to that of the next stage.
    """
    n = len(stages)
    decayed = [(stages[i], decay ** (n - i)) for i in reversed(range(n))]
    return [([head], 1.0), *decayed, ([backbone], decay**n)]


def parameter_groups(
    parts: Iterable[tuple[Iterable[nn.Module], float]],
    weight_decay: float,
    excluded: Iterable[nn.Parameter] = (),
) -> ParameterGroups:
    """Divide parameters into groups by learning rate and weight decay.

    Args:
        parts: Modules, with their factor of the learning rate. A parameter belongs to the first
            part that has it.
        weight_decay: Weight decay of the weights; biases and norms have none.
        excluded: Parameters that belong to no group.

    Returns:
        The groups that are not empty.
    """
    groups: ParameterGroups = []
    taken = {id(p) for p in excluded}
    for modules, scale in parts:
        decayed: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for module in modules:
            weights = {id(p) for p in weights_of(module).values()}
            for parameter in module.parameters():
                if id(parameter) not in taken:
                    (decayed if id(parameter) in weights else rest).append(parameter)
                    taken.add(id(parameter))
        groups.append({"params": decayed, "weight_decay": weight_decay, SCALE: scale})
        groups.append({"params": rest, "weight_decay": 0.0, SCALE: scale})
    return [group for group in groups if group["params"]]


def build_optimizer(
    name: OptimizerName, groups: ParameterGroups, lr: float, *, fused: bool = True
) -> Optimizer:
    """Make an optimiser.

    Args:
        name: Its name in `OPTIMIZERS`. Only adamw decouples weight decay from the gradient
            (Loshchilov and Hutter 2019).
        groups: Result of `parameter_groups`.
        lr: Learning rate, which each group scales by its own factor.
        fused: Step all parameters in one kernel, where the optimiser can. Lightning does not clip
            gradients for fused optimisers.
    """
    scaled = [group | {"lr": lr * group[SCALE]} for group in groups]
    return OPTIMIZERS[name](scaled, lr, fused)


def build_schedule(optimizer: Optimizer, plan: Plan) -> dict[str, Any] | None:
    """Return a learning-rate schedule as Lightning takes it; None if the rate never changes."""
    if plan.schedule == "plateau":
        plateau = ReduceLROnPlateau(optimizer, patience=PLATEAU_PATIENCE, factor=PLATEAU_FACTOR)
        return {"scheduler": plateau, "monitor": PLATEAU_MONITOR}
    if plan.schedule == "none" and len(plan.starts) == 1:
        return None
    first = plan.rates[0]
    return {"scheduler": LambdaLR(optimizer, lambda epoch: plan.rate(epoch) / first)}


def begin_phase(
    optimizer: Optimizer, schedule: LRScheduler | ReduceLROnPlateau | Any, lr: float
) -> None:
    """Start a phase: with a new state of the optimiser, its own learning rate, a new plateau."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["lr"] = lr * group[SCALE]
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.best, schedule.num_bad_epochs = float("inf"), 0
