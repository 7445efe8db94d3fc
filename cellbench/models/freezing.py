"""Frozen stages of a backbone, which may differ between the phases of a training."""

from collections.abc import Iterator
from itertools import accumulate

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn

from cellbench.models.backbones.factory import Stages
from cellbench.models.config import ModelConfig
from cellbench.models.phases import Phase, Plan
from cellbench.utils.errors import UserError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that keep running statistics of their inputs."""


def make_plan(config: ModelConfig, epochs: int, stages: int) -> Plan:
    """Fill in what the phases of a configuration leave open.

    Args:
        config: The model's options.
        epochs: Length of a training without phases.
        stages: Number of the backbone's stages.

    Raises:
        UserError: The backbone does not have a stage that is to be frozen.
    """
    phases = config.phases or [Phase(epochs, config.freeze)]
    lengths = tuple(phase.epochs for phase in phases)
    return Plan(
        frozen=tuple(_count_frozen(config, phase.freeze, stages) for phase in phases),
        starts=(0, *accumulate(lengths[:-1])),
        rates=tuple(config.lr if phase.lr is None else phase.lr for phase in phases),
        epochs=lengths,
        schedule=config.schedule,
    )


def _count_frozen(config: ModelConfig, freeze: str, stages: int) -> int:
    names = {"none": 0, **{f"stage{i}": i for i in range(1, stages + 1)}, "backbone": stages}
    if freeze not in names:
        key = "model.phases" if config.phases else "model.freeze"
        allowed = ", ".join(names)
        raise UserError(f"{key}: {config.backbone} has no stage '{freeze}'; allowed: {allowed}")
    return names[freeze]


class Freezing:
    """Frozen first stages of a backbone, in the current phase of the training.

    Frozen layers keep their weights, and stay in evaluation mode, so that frozen batch norms keep
    their statistics.

    Args:
        network: The network, with its head.
        backbone: The part of it that has stages.
        stages: The backbone's stages.
        plan: Number of stages that each phase freezes.
    """

    def __init__(self, network: nn.Module, backbone: nn.Module, stages: Stages, plan: Plan) -> None:
        self.plan = plan
        self.phase = 0
        self._network = network
        self._backbone = backbone
        self._stages = stages

    @property
    def backbone_always_frozen(self) -> bool:
        """True if the whole backbone is frozen throughout the training."""
        return min(self.plan.frozen) == len(self._stages)

    @property
    def backbone_ever_frozen(self) -> bool:
        """True if the whole backbone is frozen in at least one phase."""
        return max(self.plan.frozen) == len(self._stages)

    @property
    def never_trained(self) -> list[nn.Parameter]:
        """Parameters that are frozen in every phase."""
        return self._parameters(min(self.plan.frozen))

    @property
    def trained(self) -> int:
        """Number of parameters that are trained in the current phase."""
        return sum(p.numel() for p in self._network.parameters() if p.requires_grad)

    def enter(self, phase: int) -> None:
        """Freeze the parameters that a phase freezes, and no others; `set_modes` does the rest."""
        self.phase = phase
        frozen = self._parameters(self.plan.frozen[phase])
        self._network.requires_grad_(True)
        for parameter in frozen:
            parameter.requires_grad_(False)

    def set_modes(self) -> None:
        """Put the frozen layers into evaluation mode; to be called after `Module.train`."""
        for module in self._first_stages(self.plan.frozen[self.phase]):
            module.eval()

    def norms_trained_since(self, epoch: int) -> list[str]:
        """Return the names of the batch norms that are trained between an epoch and the current.

        Args:
            epoch: First epoch of the range.
        """
        phases = range(self.plan.phase(epoch), self.phase + 1)
        stages = self._first_stages(min(self.plan.frozen[phase] for phase in phases))
        frozen = {id(module) for stage in stages for module in stage.modules()}
        return [
            name
            for name, module in self._network.named_modules()
            if isinstance(module, BATCH_NORMS)
            and module.track_running_stats
            and id(module) not in frozen
        ]

    def _first_stages(self, n: int) -> Iterator[nn.Module]:
        """Yield the layers of the first n stages; for all stages, the backbone itself."""
        if n == len(self._stages):
            yield self._backbone
        else:
            for stage in self._stages[:n]:
                yield from stage

    def _parameters(self, n: int) -> list[nn.Parameter]:
        """Return the parameters of the first n stages, each once."""
        found = {id(p): p for module in self._first_stages(n) for p in module.parameters()}
        return list(found.values())


def rewrap(strategy: Strategy, module: LightningModule) -> None:
    """Make DistributedDataParallel anew; it knows the parameters that it was made with.

    Args:
        strategy: The trainer's strategy; unless it is DDP, there is nothing to do.
        module: The module, with the parameters that are trained from now on.
    """
    if isinstance(strategy, DDPStrategy):
        strategy.model = module
        strategy.configure_ddp()
