"""The Lightning module."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from cellbench.data.dataset import Batch, FeatureBatch
from cellbench.errors import UserError
from cellbench.models import backbones
from cellbench.models.heads import HeadConfig, build_head, build_pool
from cellbench.models.optimisation import (
    OptimizerName,
    ScheduleName,
    build_optimizer,
    build_schedule,
)
from cellbench.models.regularisation import penalised_parameters, penalty

DESCRIPTION = backbones.DESCRIPTION
"""The entry of a checkpoint that says all that predict needs."""


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
        backbone: A torchvision classifier's name, or one of our own networks' (small_cnn).
        weights: none, imagenet, the path of a state-dict file, or the folder of a run whose
            backbone is taken.
        freeze: backbone trains the head alone, and keeps the backbone's batch norm as it is.
        head: The layers behind the backbone.
        optimizer: adam, adamw, sgd (momentum 0.9) or rmsprop.
        lr: Learning rate.
        schedule: cosine or linear to zero, plateau (factor 0.3 after 2 epochs), or none.
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
        freeze: Literal["none", "backbone"] = "none",
        head: HeadConfig = HeadConfig(),  # noqa: B008  # frozen
        optimizer: OptimizerName = "adam",
        lr: float = 1e-3,
        schedule: ScheduleName = "none",
        l1: float = 0.0,
        l2: float = 0.0,
        penalise: Literal["head", "all"] = "all",
        weight_decay: float = 0.0,
        class_weights: Literal["none", "balanced"] = "none",
    ) -> None:
        super().__init__()
        for name, value in (("l1", l1), ("l2", l2), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise UserError(f"model.{name}: {value} is less than 0")
        if not lr > 0:
            raise UserError(f"model.lr: {lr} is not greater than 0")
        if weight_decay and optimizer != "adamw":
            raise UserError(
                f"model.weight_decay: decoupled decay needs model.optimizer: adamw, not "
                f"{optimizer}; for a penalty in the loss use model.l2"
            )
        self.classes = tuple(classes)
        built = backbones.build(backbone, weights, (image_size[0], image_size[1]))
        self.backbone = built.trunk
        self.pool, width = build_pool(head, built.shape)
        self.head = build_head(head, width, len(classes))
        self.register_buffer("mean", torch.tensor(built.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(built.std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("loss_weight", None, persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.loss_weight: Tensor | None
        self.frozen = freeze == "backbone"
        if self.frozen:
            self.backbone.requires_grad_(False)
        self._l1, self._l2 = l1, l2
        self._penalise = penalise
        self._optimizer: OptimizerName = optimizer
        self._lr, self._schedule, self._weight_decay = lr, schedule, weight_decay
        self._balanced = class_weights == "balanced"
        # What a checkpoint needs to make this model again; the weights come from its state dict.
        self.arguments: dict[str, Any] = {
            "classes": list(classes),
            "image_size": list(image_size),
            "backbone": backbone,
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

    def _logits(self, batch: Batch | FeatureBatch) -> Tensor:
        if isinstance(batch, FeatureBatch):
            logits: Tensor = self.head(batch.features)
        else:
            logits = self(batch.images)
        return logits.float()

    def train(self, mode: bool = True) -> "CellClassifier":
        """Sets the mode; a frozen backbone stays in evaluation, its batch norm untouched."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def setup(self, stage: str) -> None:
        """Checks what is trainable, and takes the class weights from the training split."""
        if stage != "fit":
            return
        if self._balanced:
            counts = torch.as_tensor(self.trainer.datamodule.class_counts("train"))  # type: ignore[attr-defined]
            self.loss_weight = (counts.sum() / (len(counts) * counts)).float().to(self.device)
        frozen = sum(p.numel() for p in self.backbone.parameters() if not p.requires_grad)
        assert (frozen == sum(p.numel() for p in self.backbone.parameters())) == self.frozen

    def on_train_start(self) -> None:
        """Finds the penalised weights once, where they lie during the training."""
        module = self.head if self._penalise == "head" else self
        self._penalised = list(penalised_parameters(module).values())

    def training_step(self, batch: Batch | FeatureBatch) -> Tensor:
        """One step: `train/loss` is what is minimised; the penalty is logged apart as well."""
        logits = self._logits(batch)
        target = batch.labels if batch.targets is None else batch.targets
        losses = cross_entropy(logits, target, weight=self.loss_weight, reduction="none")
        n, weight = self._of_the_step(target)
        loss = losses.sum() / weight
        if self._l1 or self._l2:
            extra = penalty(self._penalised, self._l1, self._l2)
            loss = loss + extra
            self.train_penalty.update(extra.detach(), n)
        self.train_loss.update(loss.detach(), n)
        self.train_metrics.update(logits, batch.labels)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch | FeatureBatch, batch_idx: int) -> None:
        """Logs the epoch's losses and metrics, once: with every step it would take time."""
        if not (self.trainer.is_last_batch or self.trainer.should_stop):
            return
        if self._l1 or self._l2:
            self.log("train/penalty", self.train_penalty, on_step=False, on_epoch=True)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)

    def _of_the_step(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The number of samples of a step and the sum of their weights, a device's part of each.

        Lightning averages gradients over the devices, whose shares of a batch may differ in size.
        With these, the average is the gradient of one loss over the whole batch.
        """
        one = torch.ones(len(target), device=target.device)
        weights = one
        if self.loss_weight is not None:  # of a class, or of the shares of several
            soft = target.is_floating_point()
            shares = (target * self.loss_weight).sum(dim=1) if soft else None  # not in bfloat16
            weights = self.loss_weight[target] if shares is None else shares
        both = torch.stack([one.sum(), weights.sum()])
        devices = self.trainer.world_size
        if devices > 1:
            both = self.trainer.strategy.reduce(both, reduce_op="sum") / devices
        return both[0], both[1]

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
        logits = self._logits(batch)
        n = torch.tensor(len(batch.labels), device=logits.device)
        loss.update(cross_entropy(logits, batch.labels), n)
        metrics.update(logits, batch.labels)
        probabilities: Tensor = logits.softmax(dim=1)
        return probabilities

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the run's description of the model."""
        checkpoint[DESCRIPTION] = self.description

    def configure_optimizers(self) -> Any:
        """The optimiser over the trainable parameters, and its schedule."""
        decayed = penalised_parameters(self)
        kept = {id(parameter) for parameter in decayed.values()}
        optimizer = build_optimizer(
            self._optimizer,
            decayed.values(),
            (p for p in self._trainable() if id(p) not in kept),
            self._lr,
            self._weight_decay,
            fused=not self.trainer.gradient_clip_val,
        )
        schedule = build_schedule(self._schedule, optimizer, self.trainer.max_epochs or 1)
        if schedule is None:
            return optimizer
        monitor = {"monitor": "val/loss"} if isinstance(schedule, ReduceLROnPlateau) else {}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, **monitor}}

    def _trainable(self) -> Iterator[nn.Parameter]:
        return (p for p in self.parameters() if p.requires_grad)
