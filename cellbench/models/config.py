"""Options of the model, as the keys of `model:` in a configuration."""

from dataclasses import dataclass, field
from typing import Literal

from cellbench.config.bounds import bounds, check_bounds
from cellbench.models.co_teaching import CoTeachingConfig
from cellbench.models.heads import HeadConfig
from cellbench.models.losses import LossConfig
from cellbench.models.norms import Norm
from cellbench.models.optimisation import OptimizerName
from cellbench.models.phases import Phase, ScheduleName
from cellbench.utils.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """Options of a classifier and of its training."""

    backbone: str = "resnet18"
    """A torchvision classifier, one of cellbench's own networks (se_resnet8), or timm/ followed by
    the name of a timm model."""
    weights: str = "none"
    """Initial weights: none, imagenet, the path of a state-dict file, or the folder of a run whose
    backbone is taken."""
    partial_weights: bool = False
    """Accept weights that fit only in part; otherwise they are an error."""
    norm: Norm = "batch"
    """group replaces each batch norm by a group norm."""
    freeze: str = "none"
    """Part of the backbone that keeps its weights and batch norm statistics: none, backbone (only
    the head is trained), or all stages up to and including the one named, e.g. stage3."""
    phases: list[Phase] | None = None
    """Parts of the training, each with its own epochs, freeze and lr; null for a single one."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Layers after the backbone."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Training loss, to which the penalties are added."""
    mixup: float = field(default=0.0, metadata=bounds(0))
    """Parameter of the Beta distribution that the share of the second image is drawn from when
    images and targets are blended (Zhang et al., ICLR 2018); 0 for never. With cutmix too, each
    step uses one of the two."""
    cutmix: float = field(default=0.0, metadata=bounds(0))
    """The same for pasting a box from another image (Yun et al., ICCV 2019)."""
    co_teaching: CoTeachingConfig | None = None
    """For noisy labels: leaves out samples whose label a momentum teacher finds improbable."""
    optimizer: OptimizerName = "adam"
    """adam, adamw, sgd (momentum 0.9) or rmsprop."""
    lr: float = field(default=1e-3, metadata=bounds(above=0))
    """Learning rate."""
    layer_decay: float = field(default=1.0, metadata=bounds(at_most=1, above=0))
    """Ratio of a stage's learning rate to that of the next stage; 1 for equal rates."""
    schedule: ScheduleName = "none"
    """cosine or linear decay to zero, plateau (factor 0.3 after 2 epochs without a lower val/loss),
    or none; starts anew in each phase."""
    l1: float = field(default=0.0, metadata=bounds(0))
    """Factor of the penalty Σ|w|."""
    l2: float = field(default=0.0, metadata=bounds(0))
    """Factor of the penalty Σw²."""
    penalise: Literal["head", "all"] = "all"
    """Trainable weights that l1 and l2 act on; biases and norms are never penalised."""
    weight_decay: float = field(default=0.0, metadata=bounds(0))
    """Decoupled weight decay of all weights but biases and norms; adamw only."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs each class in the training loss by n / (classes · n of the class)."""

    def __post_init__(self) -> None:
        """Raise UserError if a value is out of its bounds, or two options exclude each other."""
        check_bounds(self, "model")
        if self.weight_decay and self.optimizer != "adamw":
            raise UserError(
                f"model.weight_decay: decoupled decay needs model.optimizer: adamw, not "
                f"{self.optimizer}; for a penalty in the loss use model.l2"
            )
        if self.phases and self.freeze != "none":
            raise UserError(
                f"model.freeze: {self.freeze}, beside model.phases; give it in each phase"
            )
