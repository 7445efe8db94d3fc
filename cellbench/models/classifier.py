"""The Lightning module."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchvision.transforms.v2 import CutMix, MixUp

from cellbench.data.dataset import Batch, FeatureBatch
from cellbench.errors import UserError
from cellbench.models import backbones
from cellbench.models.backbones import Norm
from cellbench.models.co_teaching import CoTeacher, CoTeachingConfig
from cellbench.models.heads import HeadConfig, build_head
from cellbench.models.losses import LossConfig, as_shares, losses
from cellbench.models.optimisation import (
    PLATEAU_FACTOR,
    PLATEAU_MONITOR,
    PLATEAU_PATIENCE,
    OptimizerName,
    build_optimizer,
    parameter_groups,
    set_rate,
)
from cellbench.models.phases import Phase, Plan, ScheduleName, make_plan
from cellbench.models.regularisation import penalised_parameters, penalty, sparsity
from cellbench.models.weights import DESCRIPTION
from cellbench.terminal import say

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that keep running statistics of their inputs."""


class WeightedMean(Metric):
    """The mean of values that stand for several samples each.

    torchmetrics' MeanMetric leaves NaN out, which hides that a training diverged; told not to, it
    leaves the weights out (1.9).
    """

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor) -> None:
        """Counts a value with its weight."""
        self.total += value * weight
        self.weight += weight

    def compute(self) -> Tensor:
        """The mean of what was counted."""
        return self.total / self.weight


class CellClassifier(LightningModule):
    """A backbone and a head that classify uint8 RGB images.

    Args:
        classes: The class names; linked from the data, never typed.
        image_size: Height and width of the images in pixels; linked from the data.
        backbone: A torchvision classifier's name, one of our own networks' (se_resnet8), or timm/
            and one of timm's.
        weights: none, imagenet, the path of a state-dict file, or the folder of a run whose
            backbone is taken.
        partial_weights: Whether weights that fit in part are taken; else they are an error.
        norm: group puts a group norm in the place of each batch norm.
        freeze: What keeps its weights and its batch norm's statistics: none, the backbone (the
            head alone trains), or its stages up to and with the one named, as stage3.
        phases: Parts of the training, each with its epochs, freeze and lr; null for one.
        head: The layers behind the backbone.
        loss: What training minimises, beside the penalties.
        mixup: Blends images and their targets, by a share from Beta(mixup, mixup) (Zhang et al.,
            ICLR 2018); 0 for never. With cutmix too, each step takes one of the two.
        cutmix: Pastes a box of another image, likewise (Yun et al., ICCV 2019).
        co_teaching: For labels that may be wrong: leaves out what a momentum teacher doubts.
        optimizer: adam, adamw, sgd (momentum 0.9) or rmsprop.
        lr: Learning rate.
        layer_decay: What a stage's learning rate is of the next stage's; 1 for the same.
        schedule: cosine or linear to zero, plateau (factor 0.3 after 2 epochs), or none; with
            phases it begins anew in each of them.
        l1: Factor of the penalty Σ|w|.
        l2: Factor of the penalty Σw².
        penalise: Which trainable weights l1 and l2 act on; never biases and norms.
        weight_decay: Decoupled decay of the same weights; adamw only.
        class_weights: balanced weighs a class in the training loss with n / (classes · its n).

    Raises:
        UserError: A value is out of its range, or the backbone cannot be made.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        image_size: tuple[int, int],
        backbone: str = "resnet18",
        weights: str = "none",
        partial_weights: bool = False,
        norm: Norm = "batch",
        freeze: str = "none",
        phases: list[Phase] | None = None,
        head: HeadConfig = HeadConfig(),  # noqa: B008  # frozen
        loss: LossConfig = LossConfig(),  # noqa: B008  # frozen
        mixup: float = 0.0,
        cutmix: float = 0.0,
        co_teaching: CoTeachingConfig | None = None,
        optimizer: OptimizerName = "adam",
        lr: float = 1e-3,
        layer_decay: float = 1.0,
        schedule: ScheduleName = "none",
        l1: float = 0.0,
        l2: float = 0.0,
        penalise: Literal["head", "all"] = "all",
        weight_decay: float = 0.0,
        class_weights: Literal["none", "balanced"] = "none",
    ) -> None:
        super().__init__()
        limits = {"l1": l1, "l2": l2, "weight_decay": weight_decay, "mixup": mixup}
        for name, value in (limits | {"cutmix": cutmix}).items():
            if not value >= 0:
                raise UserError(f"model.{name}: {value} is less than 0")
        if not lr > 0:
            raise UserError(f"model.lr: {lr} is not greater than 0")
        if not 0 < layer_decay <= 1:
            raise UserError(f"model.layer_decay: {layer_decay} is not above 0 and at most 1")
        if weight_decay and optimizer != "adamw":
            raise UserError(
                f"model.weight_decay: decoupled decay needs model.optimizer: adamw, not "
                f"{optimizer}; for a penalty in the loss use model.l2"
            )
        if phases and freeze != "none":
            raise UserError(f"model.freeze: {freeze}, beside model.phases; give it in each phase")
        self.classes = tuple(classes)
        size = (image_size[0], image_size[1])
        built = backbones.build(backbone, weights, size, norm, head.pool, partial=partial_weights)
        self.backbone, self.pool, self.loaded = built.trunk, built.pool, built.loaded
        self.head = build_head(head, built.width, len(classes))
        self.register_buffer("mean", torch.tensor(built.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(built.std).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.loss_weight: Tensor | None = None  # no buffer: averages pair buffers by position
        self._stages = built.stages
        self._phases, self._freeze, self._schedule = phases or [], freeze, schedule
        self._lr, self._layer_decay = lr, layer_decay
        self._backbone_name = backbone
        self._plan = self._make_plan(epochs=1)
        self._phase = -1
        self._loss = loss
        mixes = ((MixUp, mixup), (CutMix, cutmix))
        self._mixes = [mix(alpha=alpha) for mix, alpha in mixes if alpha]
        self._co_teaching = co_teaching
        self._co_teacher: CoTeacher | None = None
        self._taught: dict[str, Any] | None = None  # by an interrupted training
        self._l1, self._l2 = l1, l2
        self._penalise = penalise
        self._optimizer: OptimizerName = optimizer
        self._weight_decay = weight_decay
        self._balanced = class_weights == "balanced"
        # What a checkpoint needs to make this model again; the weights come from its state dict.
        self.arguments: dict[str, Any] = {
            "classes": list(classes),
            "image_size": list(image_size),
            "backbone": backbone,
            "norm": norm,
            "head": asdict(head) | {"hidden": list(head.hidden), "dropout": list(head.dropouts)},
        }
        self.description: dict[str, Any] = {}
        n = len(classes)
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(n, average="micro"),
                "balanced_accuracy": MulticlassAccuracy(n, average="macro"),
                "f1_macro": MulticlassF1Score(n, average="macro"),
            }
        )
        self.train_loss = WeightedMean()
        self.train_penalty = WeightedMean()
        self.val_loss = WeightedMean()
        self.test_loss = WeightedMean()
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.to(memory_format=torch.channels_last)
        self.train()  # Lightning trains in the mode it finds, and does not call this itself
        self._enter(0)

    def _make_plan(self, epochs: int) -> Plan:
        return make_plan(
            self._phases,
            self._freeze,
            self._lr,
            self._schedule,
            epochs,
            len(self._stages),
            self._backbone_name,
        )

    @property
    def logged(self) -> list[str]:
        """The names that a training logs once an epoch."""
        some = {
            "train/penalty": self._l1 or self._l2,
            "train/sparsity": self._l1,
            "train/parameters": len(self._phases) > 1,
        }
        given = [name for name, is_logged in some.items() if is_logged]
        metrics = [*map(str, self.train_metrics), *map(str, self.val_metrics)]
        return ["train/loss", "val/loss", *given, *metrics]

    @property
    def frozen(self) -> bool:
        """Whether the whole backbone stays as it is, throughout the training."""
        return min(self._plan.frozen) == len(self._stages)

    @property
    def freezes(self) -> bool:
        """Whether the whole backbone stays as it is in some phase."""
        return max(self._plan.frozen) == len(self._stages)

    @property
    def last_phase(self) -> int:
        """The first epoch of the training's last phase."""
        return self._plan.starts[-1]

    @property
    def sees_images(self) -> bool:
        """Whether training needs the images themselves, however little of the network learns."""
        return not self.frozen or bool(self._mixes) or self._co_teaching is not None

    @property
    def grouped(self) -> bool:
        """Whether the network has grouped convolutions, which bfloat16 slows down on a CPU."""
        return any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in self.backbone.modules())

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 RGB images to what the backbone expects, on their device, (B, 3, H, W) float32."""
        return (images.float() / 255 - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, classes), of uint8 RGB images, (B, 3, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """What the head sees of uint8 RGB images, (B, 3, H, W): the pooled features, (B, D)."""
        features: Tensor = self.pool(self.backbone(self.normalise(images)))
        return features

    def logits(self, batch: Batch | FeatureBatch) -> Tensor:
        """Return the logits of a batch, (B, classes), float32."""
        if isinstance(batch, FeatureBatch):
            logits: Tensor = self.head(batch.features)
        else:
            logits = self(batch.images)
        return logits.float()

    def train(self, mode: bool = True) -> "CellClassifier":
        """Sets the mode; what is frozen stays in evaluation, its batch norm untouched."""
        super().train(mode)
        for module in self._first_stages(self._plan.frozen[max(self._phase, 0)]):
            module.eval()
        return self

    def _first_stages(self, n: int) -> Iterator[nn.Module]:
        """The backbone's first n stages; itself rather than all of them."""
        if n == len(self._stages):
            yield self.backbone
        else:
            for stage in self._stages[:n]:
                yield from stage

    def _enter(self, phase: int) -> None:
        """Freezes what a phase freezes, and makes sure that it is so."""
        self._phase = phase
        self.requires_grad_(True)
        stages = self._first_stages(self._plan.frozen[phase])
        frozen = {id(p): p for module in stages for p in module.parameters()}
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        self.train(self.training)
        count = sum(p.numel() for p in frozen.values())
        assert self.trained == sum(p.numel() for p in self.parameters()) - count
        module = self.head if self._penalise == "head" else self
        self._penalised = list(penalised_parameters(module).values())

    def norms_trained_since(self, epoch: int) -> list[str]:
        """Return the names of the batch norms that learn in any epoch from this to the current."""
        phases = range(self._plan.phase(epoch), self._phase + 1)
        stages = self._first_stages(min(self._plan.frozen[phase] for phase in phases))
        frozen = {id(module) for stage in stages for module in stage.modules()}
        return [
            name
            for name, module in self.named_modules()
            if isinstance(module, BATCH_NORMS)
            and module.track_running_stats
            and id(module) not in frozen
        ]

    @property
    def trained(self) -> int:
        """The number of parameters that learn in this phase."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def setup(self, stage: str) -> None:
        """Plans the training."""
        if stage != "fit":
            return
        self._plan = self._make_plan(self.trainer.max_epochs or 1)
        self._enter(0)

    def on_fit_start(self) -> None:
        """Makes class weights and teacher, on the device that the model is on by now."""
        if self._balanced:
            counts = torch.as_tensor(self.trainer.datamodule.class_counts("train"))  # type: ignore[attr-defined]
            self.loss_weight = (counts.sum() / (len(counts) * counts)).float().to(self.device)
        if self._co_teaching is not None:
            parts = {"backbone": self.backbone, "pool": self.pool, "head": self.head}
            samples = len(self.trainer.datamodule.table)  # type: ignore[attr-defined]
            self._co_teacher = CoTeacher(
                nn.ModuleDict(parts), self._through, self._co_teaching, samples
            )
            if self._taught is not None:
                self._co_teacher.restore(self._taught)

    def _through(self, network: nn.ModuleDict, batch: Batch) -> Tensor:
        """Logits of a batch by a copy of this model's network."""
        maps = network["backbone"](self.normalise(batch.images))
        logits: Tensor = network["head"](network["pool"](maps))
        return logits

    def on_train_start(self) -> None:
        """Finds the penalised weights where they lie by now, and the phase of a resumed run."""
        self._begin_phase(self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Begins the epoch's phase."""
        self._begin_phase(self.current_epoch)

    def _begin_phase(self, epoch: int) -> None:
        before, phase = self._phase, self._plan.phase(epoch)
        self._enter(phase)
        if phase != before and self.trainer.world_size > 1:
            # DDP knows the parameters that learnt when it was made, and no others.
            strategy: Any = self.trainer.strategy
            strategy.model = strategy._setup_model(self)
        if len(self._plan.starts) > 1 and self.trainer.is_global_zero and phase != before:
            say(
                f"phase {phase + 1} of {len(self._plan.starts)}: epoch {epoch}, "
                f"{self.trained:,} parameters trained, lr {self._plan.rates[phase]:g}",
                flush=True,
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begins a phase with the optimiser as new, and tells the teacher of a new epoch."""
        if batch_idx:
            return
        if self.current_epoch in self._plan.starts[1:]:
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.state.clear()  # type: ignore[union-attr]
            set_rate(optimizer, self._plan.rate(self.current_epoch))  # type: ignore[arg-type]
            schedule = self.lr_schedulers()
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.best, schedule.num_bad_epochs = float("inf"), 0
        if self._co_teacher is not None:
            self._co_teacher.begin_epoch(self.current_epoch, self._sum)

    def training_step(self, batch: Batch | FeatureBatch) -> dict[str, Tensor]:
        """One step: `train/loss` is what is minimised; the penalty is logged apart as well.

        Returns:
            The loss, and the logits, (B, classes).
        """
        target = batch.labels if batch.targets is None else batch.targets
        shares = as_shares(target, len(self.classes), self._loss.label_smoothing)
        if self._mixes and isinstance(batch, Batch):
            mix = self._mixes[int(torch.randint(len(self._mixes), ()))]
            images, shares = mix(self.normalise(batch.images), shares)
            logits = self.head(self.pool(self.backbone(images))).float()
        else:
            logits = self.logits(batch)
        weighted = shares if self.loss_weight is None else shares * self.loss_weight
        of_sample, counted = losses(logits, weighted, self._loss), weighted.sum(dim=1)
        if self._co_teacher is not None:
            kept, factor = self._co_teacher.weigh(batch, logits, shares)
            of_sample, counted = of_sample * kept * factor, counted * kept
        n, weight = self._of_the_step(counted)
        loss = of_sample.sum() / weight
        if self._l1 or self._l2:
            extra = penalty(self._penalised, self._l1, self._l2)
            loss = loss + extra
            self.train_penalty.update(extra.detach(), n)
        self.train_loss.update(loss.detach(), n)
        self.train_metrics.update(logits, batch.labels)
        return {"loss": loss, "logits": logits.detach()}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, and lets the teacher follow."""
        super().optimizer_step(*args, **kwargs)
        if self._co_teacher is not None:
            self._co_teacher.follow()

    def on_train_batch_end(self, outputs: Any, batch: Batch | FeatureBatch, batch_idx: int) -> None:
        """Logs the epoch's losses and metrics, once: with every step it would take time."""
        if not (self.trainer.is_last_batch or self.trainer.should_stop):
            return
        logged: dict[str, Any] = {"train/loss": self.train_loss}
        if self._l1 or self._l2:
            logged["train/penalty"] = self.train_penalty
        if self._l1:
            logged["train/sparsity"] = sparsity(self._penalised)
        if len(self._plan.starts) > 1:
            logged["train/parameters"] = float(self.trained)
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=1)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)

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

    def _of_the_step(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The number of samples of a step and the sum of their weights, a device's part of each.

        Lightning averages gradients over the devices, whose shares of a batch may differ in size.
        With these, the average is the gradient of one loss over the whole batch.
        """
        both = torch.stack([torch.ones_like(weights).sum(), weights.sum()])
        both = self._sum(both) / self.trainer.world_size
        return both[0], both[1].clamp(min=torch.finfo(both.dtype).tiny)

    def _sum(self, tensor: Tensor) -> Tensor:
        """Its sum over all devices."""
        if self.trainer.world_size == 1:
            return tensor
        total: Tensor = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        return total

    def validation_step(self, batch: Batch | FeatureBatch) -> Tensor:
        """Counts the bare criterion and the metrics; returns the probabilities."""
        return self._evaluate(self.val_loss, self.val_metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Logs what was counted."""
        self.log("val/loss", self.val_loss)
        self.log_dict(self.val_metrics)

    def test_step(self, batch: Batch | FeatureBatch) -> Tensor:
        """Counts the bare criterion and the metrics; returns the probabilities."""
        return self._evaluate(self.test_loss, self.test_metrics, batch)

    def on_test_epoch_end(self) -> None:
        """Logs what was counted."""
        self.log("test/loss", self.test_loss)
        self.log_dict(self.test_metrics)

    def predict_step(self, batch: Batch) -> Tensor:
        """The probabilities, float32, (B, classes)."""
        probabilities: Tensor = self(batch.images).float().softmax(dim=1)
        return probabilities

    def _evaluate(
        self, loss: WeightedMean, metrics: MetricCollection, batch: Batch | FeatureBatch
    ) -> Tensor:
        logits = self.logits(batch)
        n = torch.tensor(len(batch.labels), device=logits.device)
        loss.update(cross_entropy(logits, batch.labels), n)
        metrics.update(logits, batch.labels)
        probabilities: Tensor = logits.softmax(dim=1)
        return probabilities

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the run's description of the model, and what a training needs to go on."""
        checkpoint[DESCRIPTION] = self.description
        if self._co_teacher is not None and "optimizer_states" in checkpoint:
            checkpoint["co_teacher"] = self._co_teacher.state(self._sum)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what the teacher knew until there is one."""
        self._taught = checkpoint.get("co_teacher")

    def configure_optimizers(self) -> Any:
        """The optimiser over all that learns in any phase, and its schedule."""
        least = min(self._plan.frozen)
        frozen = {id(p) for module in self._first_stages(least) for p in module.parameters()}
        now = [p.requires_grad for p in self.parameters()]
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)
        n = len(self._stages)
        parts = [
            ([self.head], 1.0),
            *((self._stages[i], self._layer_decay ** (n - i)) for i in reversed(range(n))),
            ([self.backbone], self._layer_decay**n),
        ]
        if self._layer_decay == 1:
            parts = [([self], 1.0)]
        groups = parameter_groups(parts, self._weight_decay)
        for parameter, requires in zip(self.parameters(), now, strict=True):
            parameter.requires_grad_(requires)
        fused = not self.trainer.gradient_clip_val
        lr = self._plan.rates[0]
        optimizer = build_optimizer(self._optimizer, groups, lr, fused=fused)
        if self._schedule == "plateau":
            schedule: Any = ReduceLROnPlateau(
                optimizer, patience=PLATEAU_PATIENCE, factor=PLATEAU_FACTOR
            )
            described = {"scheduler": schedule, "monitor": PLATEAU_MONITOR}
        elif self._schedule == "none" and len(self._plan.starts) == 1:
            return optimizer
        else:
            described = {"scheduler": LambdaLR(optimizer, lambda e: self._plan.rate(e) / lr)}
        return {"optimizer": optimizer, "lr_scheduler": described}
