"""The Lightning module: a network and its training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cellbench.data.dataset import Batch, FeatureBatch
from cellbench.models.backbones.channels import RGB
from cellbench.models.co_teaching import CoTeacher
from cellbench.models.config import ModelConfig
from cellbench.models.epoch_metrics import WeightedMean, classification_metrics
from cellbench.models.freezing import Freezing, make_plan, rewrap
from cellbench.models.mixing import Mixing
from cellbench.models.network import CellNetwork
from cellbench.models.objective import Objective, balanced_weights
from cellbench.models.optimisation import (
    PLATEAU_MONITOR,
    begin_phase,
    build_optimizer,
    build_schedule,
    layer_decay_parts,
    parameter_groups,
)
from cellbench.models.regularisation import penalised_parameters, penalty, sparsity
from cellbench.models.weights import DESCRIPTION
from cellbench.utils.terminal import say


class CellClassifier(CellNetwork):
    """Network that classifies uint8 images, and its training.

    Args:
        classes: Names of the classes.
        image_size: Height and width of the images in pixels.
        config: The options.
        channels: Number of the images' channels; 3 for RGB.

    Raises:
        UserError: The network cannot be made, or has no stage of the name that is to be frozen.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        image_size: tuple[int, int],
        config: ModelConfig = ModelConfig(),  # noqa: B008  # frozen
        channels: int = RGB,
    ) -> None:
        super().__init__(classes, image_size, config, channels)
        self.description: dict[str, Any] = {}
        """Description of the run, in plain values, for checkpoints."""
        plan = make_plan(config, epochs=1, stages=len(self.stages))
        self._freezing = Freezing(self, self.backbone, self.stages, plan)
        self._mixing = Mixing(config.mixup, config.cutmix)
        self._objective = Objective(config.loss, len(classes))
        self._teacher_state: dict[str, Any] | None = None  # of the training that is resumed
        self.train_loss = WeightedMean()
        self.train_penalty = WeightedMean()
        self.train_metrics = classification_metrics(len(classes), prefix="train/")
        self.train()  # Lightning keeps the mode that it finds
        self._freeze(phase=0)

    @property
    def logged(self) -> list[str]:
        """Names of the values that a training logs once per epoch."""
        metrics = [*map(str, self.train_metrics), *map(str, self.val_metrics)]
        return ["train/loss", "val/loss", *self._extras, *metrics]

    @property
    def _extras(self) -> dict[str, Callable[[], Any]]:
        """Values that only some trainings log, each with the function that gives it."""
        extras: dict[str, Callable[[], Any]] = {}
        if self._has_penalty:
            extras["train/penalty"] = lambda: self.train_penalty
        if self.config.l1:
            extras["train/sparsity"] = lambda: sparsity(self._penalised)
        if len(self._freezing.plan.starts) > 1:
            extras["train/parameters"] = lambda: float(self.trained)
        return extras

    @property
    def freezes_backbone(self) -> bool:
        """True if the whole backbone is frozen in at least one phase."""
        return self._freezing.backbone_ever_frozen

    @property
    def needs_images(self) -> bool:
        """True if training needs the images, and not just the features of a frozen backbone."""
        changes_images = bool(self._mixing) or self.config.co_teaching is not None
        return changes_images or not self._freezing.backbone_always_frozen

    @property
    def last_phase(self) -> int:
        """First epoch of the training's last phase."""
        return self._freezing.plan.starts[-1]

    @property
    def trained(self) -> int:
        """Number of parameters that are trained in the current phase."""
        return self._freezing.trained

    def norms_trained_since(self, epoch: int) -> list[str]:
        """Return the names of the batch norms trained from an epoch to the current one."""
        return self._freezing.norms_trained_since(epoch)

    @property
    def _has_penalty(self) -> bool:
        return bool(self.config.l1 or self.config.l2)

    # Phases.

    def setup(self, stage: str) -> None:
        """Plan the phases; only now the length of the training is known."""
        if stage == "fit":
            epochs = self.trainer.max_epochs or 1
            self._freezing.plan = make_plan(self.config, epochs, len(self.stages))
            self._freeze(phase=0)

    def train(self, mode: bool = True) -> "CellClassifier":
        """Set the mode; frozen layers stay in evaluation mode."""
        super().train(mode)
        self._freezing.set_modes()
        return self

    def _freeze(self, phase: int) -> None:
        self._freezing.enter(phase)
        self.train(self.training)
        module = self.head if self.config.penalise == "head" else self
        self._penalised = list(penalised_parameters(module).values())

    def on_train_start(self) -> None:
        """Enter the phase that a resumed training is in."""
        self._enter_phase()

    def on_train_epoch_start(self) -> None:
        """Enter the epoch's phase."""
        self._enter_phase()

    def _enter_phase(self) -> None:
        plan, before = self._freezing.plan, self._freezing.phase
        phase = plan.phase(self.current_epoch)
        self._freeze(phase)
        if phase == before:
            return
        rewrap(self.trainer.strategy, self)
        if self.trainer.is_global_zero:
            say(
                f"phase {phase + 1} of {len(plan.starts)}: epoch {self.current_epoch}, "
                f"{self.trained:,} parameters trained, lr {plan.rates[phase]:g}",
                flush=True,
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """At the start of an epoch, renew optimiser and teacher if they need it."""
        if batch_idx:
            return
        plan, epoch = self._freezing.plan, self.current_epoch
        if epoch in plan.starts[1:]:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            begin_phase(optimizer, self.lr_schedulers(), plan.rate(epoch))
        if self._objective.teacher is not None:
            self._objective.teacher.begin_epoch(epoch, self._sum_over_devices)

    # Optimisation.

    def configure_optimizers(self) -> Any:
        """Return the optimiser of all parameters that any phase trains, and its schedule."""
        config, freezing = self.config, self._freezing
        parts: Any = [([self], 1.0)]
        if config.layer_decay != 1:
            parts = layer_decay_parts(self.head, self.backbone, self.stages, config.layer_decay)
        groups = parameter_groups(parts, config.weight_decay, freezing.never_trained)
        fused = not self.trainer.gradient_clip_val
        optimizer = build_optimizer(config.optimizer, groups, freezing.plan.rates[0], fused=fused)
        schedule = build_schedule(optimizer, freezing.plan)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and let the teacher follow."""
        super().optimizer_step(*args, **kwargs)
        if self._objective.teacher is not None:
            self._objective.teacher.follow()

    def lr_scheduler_step(self, scheduler: LRScheduler | ReduceLROnPlateau, metric: Any) -> None:
        """Step a schedule that Lightning says is due, except plateau.

        Lightning skips plateau in the whole first epoch after a resume (`FitLoop.on_advance_end`),
        so `on_train_epoch_end` steps it instead.
        """
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_train_epoch_end(self) -> None:
        """Step the plateau schedule; the epoch has been validated by now."""
        schedule = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(self.trainer.callback_metrics[PLATEAU_MONITOR])

    # Training.

    def on_fit_start(self) -> None:
        """Make class weights and teacher on the model's device."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.config.class_weights == "balanced":
            weights = balanced_weights(data.class_counts("train"))
            self._objective.class_weights = weights.to(self.device)
        if self.config.co_teaching is not None:
            co_teaching, samples = self.config.co_teaching, len(data.table)
            teacher = CoTeacher(self.parts, self.logits_by, co_teaching, samples)
            if self._teacher_state is not None:
                teacher.restore(self._teacher_state)
            self._objective.teacher = teacher

    def training_step(self, batch: Batch | FeatureBatch) -> dict[str, Tensor]:
        """Return the loss with the penalties, and the logits, (B, classes)."""
        shares = self._objective.targets(batch)
        if self._mixing and isinstance(batch, Batch):
            images, shares = self._mixing(self.normalise(batch.images), shares)
            logits = self.head(self.pool(self.backbone(images))).float()
        else:
            logits = self.logits(batch)
        sample_losses, weights = self._objective(batch, logits, shares)
        n, weight = self._totals(weights)
        loss = sample_losses.sum() / weight
        if self._has_penalty:
            extra = penalty(self._penalised, self.config.l1, self.config.l2)
            loss = loss + extra
            self.train_penalty.update(extra.detach(), n)
        self.train_loss.update(loss.detach(), n)
        self.train_metrics.update(logits, batch.labels)
        return {"loss": loss, "logits": logits.detach()}

    def _totals(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return a device's part of the number of samples in a step and of their weights' sum.

        Lightning averages gradients over the devices, which may have different numbers of samples.
        With these totals the average is the gradient of a single loss over the whole batch.
        """
        both = torch.stack([torch.ones_like(weights).sum(), weights.sum()])
        both = self._sum_over_devices(both) / self.trainer.world_size
        return both[0], both[1].clamp(min=torch.finfo(both.dtype).tiny)

    def _sum_over_devices(self, tensor: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return tensor
        total: Tensor = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        return total

    def on_train_batch_end(self, outputs: Any, batch: Batch | FeatureBatch, batch_idx: int) -> None:
        """Log the epoch's losses and metrics after its last step; every step would take time."""
        if not (self.trainer.is_last_batch or self.trainer.should_stop):
            return
        extras = {name: value() for name, value in self._extras.items()}
        logged = {"train/loss": self.train_loss, **extras}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=1)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's description and, if the training may be resumed, the teacher."""
        checkpoint[DESCRIPTION] = self.description
        teacher = self._objective.teacher
        if teacher is not None and "optimizer_states" in checkpoint:
            checkpoint["co_teacher"] = teacher.state(self._sum_over_devices)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the teacher's state until `on_fit_start` makes the teacher."""
        self._teacher_state = checkpoint.get("co_teacher")


class FlatCellClassifier(CellClassifier):
    """Network that classifies uint8 images, and its training.

    Its options are those of `ModelConfig`, one by one: the keys of `model:` in a configuration.

    Args:
        classes: Names of the classes; taken from the data.
        image_size: Height and width of the images in pixels; taken from the data.
        channels: Number of the images' channels; taken from the data.
        **options: Fields of `ModelConfig`.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        image_size: tuple[int, int],
        channels: int = RGB,
        **options: Any,
    ) -> None:
        super().__init__(classes, image_size, ModelConfig(**options), channels)
