"""Types of a run's options: cellbench's own, and all that config.yaml holds."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from cellbench.artifacts.checkpoint import CheckpointConfig
from cellbench.cli.options.data_modules import DATA
from cellbench.config.option_types import Linked, parameters
from cellbench.models.classifier import FlatCellClassifier
from cellbench.models.config import ModelConfig
from cellbench.training.loggers import WandbConfig

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
"""Options besides those of the trainer, the model and the data."""

SEED = int
"""Type of seed_everything; Lightning's own would take true for 0."""

MODEL = {
    **{k: v for k, v in parameters(FlatCellClassifier).items() if k != "options"},
    **parameters(ModelConfig),
}
"""Types of the model's options, by name."""

LIMIT = int | None
"""Type of trainer.limit_train_batches, without Lightning's shares of the batches."""

LINKED = {
    "classes": "data.classes",
    "image_size": "data.input_size",
    "channels": "data.n_channels",
}
"""Options of the model that always take their values from the data."""


def experiment_types() -> dict[str, Any]:
    """Return the types of the options of Lightning's trainer, the model, the data and the seed."""
    linked = {name: Linked(source) for name, source in LINKED.items()}
    return {
        "seed_everything": SEED,
        "trainer": parameters(Trainer) | {"limit_train_batches": LIMIT},
        "model": MODEL | linked,
        "data": DATA,
    }


def stored_types() -> dict[str, Any]:
    """Return the types of everything that a run's config.yaml may hold, by name."""
    return OWN | experiment_types()
