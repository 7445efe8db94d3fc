"""Network of a classifier, from images to probabilities, and its evaluation."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection

from cellbench.data.dataset import Batch, FeatureBatch
from cellbench.models.backbones import factory
from cellbench.models.backbones.channels import RGB
from cellbench.models.config import ModelConfig
from cellbench.models.epoch_metrics import WeightedMean, classification_metrics
from cellbench.models.heads import HeadConfig, build_head


class CellNetwork(LightningModule):
    """Backbone, pooling and head that classify uint8 images.

    Args:
        classes: Names of the classes.
        image_size: Height and width of the images in pixels.
        config: The options; those of the training are not used here.
        channels: Number of the images' channels, C below; 3 for RGB.

    Raises:
        UserError: The backbone cannot be made.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: tuple[str, ...],
        image_size: tuple[int, int],
        config: ModelConfig,
        channels: int = RGB,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.image_size = (image_size[0], image_size[1])
        self.config = config
        self.channels = channels
        built = factory.build(
            config.backbone,
            config.weights,
            self.image_size,
            config.norm,
            config.head.pool,
            partial=config.partial_weights,
            channels=channels,
        )
        self.backbone, self.pool = built.trunk, built.pool
        self.stages, self.loaded = built.stages, built.loaded
        self.head = build_head(config.head, built.width, len(classes))
        self.register_buffer("mean", torch.tensor(built.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(built.std).view(1, -1, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)
        self.val_loss = WeightedMean()
        self.test_loss = WeightedMean()
        self.val_metrics = classification_metrics(len(classes), prefix="val/")
        self.test_metrics = classification_metrics(len(classes), prefix="test/")

    @property
    def arguments(self) -> dict[str, Any]:
        """Plain values from which `from_arguments` makes this network again, without its weights.

        Checkpoints hold them.
        """
        head = self.config.head
        return {
            "classes": list(self.classes),
            "image_size": list(self.image_size),
            "channels": self.channels,
            "backbone": self.config.backbone,
            "norm": self.config.norm,
            "head": asdict(head) | {"hidden": list(head.hidden), "dropout": list(head.dropouts)},
        }

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """Make a network, with random weights, from what `arguments` gave.

        Raises:
            UserError: The network cannot be made.
            KeyError, TypeError, ValueError: These are not the arguments of a network.
        """
        options = dict(arguments)
        classes, image_size = options.pop("classes"), options.pop("image_size")
        channels = options.pop("channels", RGB)  # earlier versions had RGB alone
        head = HeadConfig(**options.pop("head"))
        return cls(classes, image_size, ModelConfig(head=head, **options), channels)

    @property
    def grouped(self) -> bool:
        """True if there are grouped convolutions, which bfloat16 slows down on a CPU."""
        return any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in self.backbone.modules())

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 images, (B, C, H, W), as the backbone expects them; float32."""
        return (images.float() / 255 - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features, (B, D), of uint8 images, (B, C, H, W)."""
        features: Tensor = self.pool(self.backbone(self.normalise(images)))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (B, classes), of uint8 images, (B, C, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def logits(self, batch: Batch | FeatureBatch) -> Tensor:
        """Return the logits of a batch, (B, classes), float32."""
        if isinstance(batch, FeatureBatch):
            logits: Tensor = self.head(batch.features)
        else:
            logits = self(batch.images)
        return logits.float()

    @property
    def parts(self) -> nn.ModuleDict:
        """The network's layers, of which a copy can be made for `logits_by`."""
        return nn.ModuleDict({"backbone": self.backbone, "pool": self.pool, "head": self.head})

    def logits_by(self, parts: nn.ModuleDict, batch: Batch) -> Tensor:
        """Return the logits of a batch, (B, classes), by a copy of this network's `parts`."""
        maps = parts["backbone"](self.normalise(batch.images))
        logits: Tensor = parts["head"](parts["pool"](maps))
        return logits

    def predict_step(self, batch: Batch) -> Tensor:
        """Return the probabilities of a batch, (B, classes), float32."""
        probabilities: Tensor = self(batch.images).float().softmax(dim=1)
        return probabilities

    def validation_step(self, batch: Batch | FeatureBatch) -> Tensor:
        """Add a batch to the validation's loss and metrics; return its probabilities."""
        return self._evaluate(self.val_loss, self.val_metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the validation's loss and metrics."""
        self.log("val/loss", self.val_loss)
        self.log_dict(self.val_metrics)

    def test_step(self, batch: Batch | FeatureBatch) -> Tensor:
        """Add a batch to the test's loss and metrics; return its probabilities."""
        return self._evaluate(self.test_loss, self.test_metrics, batch)

    def on_test_epoch_end(self) -> None:
        """Log the test's loss and metrics."""
        self.log("test/loss", self.test_loss)
        self.log_dict(self.test_metrics)

    def _evaluate(
        self, loss: WeightedMean, metrics: MetricCollection, batch: Batch | FeatureBatch
    ) -> Tensor:
        logits = self.logits(batch)
        n = torch.tensor(len(batch.labels), device=logits.device)
        loss.update(cross_entropy(logits, batch.labels), n)
        metrics.update(logits, batch.labels)
        probabilities: Tensor = logits.softmax(dim=1)
        return probabilities
