"""The types of a run's options: of cellbench's own, and of all that its config.yaml holds."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from cellbench.cli.parsing import data_modules
from cellbench.config.values import OneOf, parameters
from cellbench.models.classifier import FlatCellClassifier
from cellbench.models.config import ModelConfig
from cellbench.runs.checkpoint import CheckpointConfig
from cellbench.runs.loggers import WandbConfig

OWN: dict[str, Any] = {
    "name": str | None,
    "test": bool,
    "figures": bool,
    "runs": Path,
    "checkpoint": CheckpointConfig,
    "wandb": WandbConfig,
    "tensorboard": bool,
    "label_history": bool,
}
"""Options beside those of the trainer, the model and the data."""

SEED = int
"""The type of seed_everything; Lightning's own would take true for 0."""

MODEL = {
    **{k: v for k, v in parameters(FlatCellClassifier).items() if k != "options"},
    **parameters(ModelConfig),
}
"""The types of the model's options, by name."""

LIMIT = int | None
"""The type of trainer.limit_train_batches.

Of Lightning's `int | float` Python keeps the order that the process has met first, so that a
sweep's 1 would become 1.0, which is all batches.
"""


def stored_types() -> dict[str, Any]:
    """Return the types of everything that a run's config.yaml may hold, by name."""
    trainer = parameters(Trainer) | {"limit_train_batches": LIMIT}
    return OWN | {
        "seed_everything": SEED,
        "trainer": trainer,
        "model": MODEL,
        "data": OneOf(data_modules),
    }
