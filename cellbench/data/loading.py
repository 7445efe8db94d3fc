"""Data loaders, and the plan that they follow."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import torch
from joblib import cpu_count
from torch.utils.data import DataLoader, Dataset

from cellbench.data.cache import Pixels
from cellbench.data.dataset import Batch, CellDataset, FeatureDataset, Features, Rendering
from cellbench.data.sampling import BatchSampler, SampleRequest
from cellbench.data.smote import Smote
from cellbench.data.splits import Split
from cellbench.data.table import Part, SampleTable
from cellbench.data.training_split import TrainingSplit
from cellbench.utils.errors import UserError, counted

_CHUNK = 16
"""Images in a batch of `every_image`: results that are cached must not depend on batch_size."""

_WORKERS_PAY_AFTER_S = 10.0
"""Seconds of image loading in a whole training; starting two workers takes about 2 s."""

_MAX_WORKERS = 8


@dataclass(frozen=True)
class LoadingPlan:
    """Facts about a run that decide how its data are loaded."""

    seed: int = 0
    """Seed of the order, the augmentation and the label noise; seed_everything in a run."""
    rank: int = 0
    """Number of this process among those that share each batch."""
    world_size: int = 1
    """Number of processes that share each batch."""
    epoch: int = 0
    """Epoch in which the training starts; not 0 for a resumed one."""
    batch: int = 0
    """Batch of that epoch with which the training starts."""
    workers: int = 0
    """Loader processes of this process."""
    reason: str = ""
    """Reason for the number of workers, for the user."""
    features: Features | None = field(default=None, repr=False, compare=False)
    """Features from a frozen backbone; once they are known, batches hold them instead of images."""

    def __str__(self) -> str:
        return f"{self.workers or 'no'} loader processes ({self.reason})"


def plan_workers(
    plan: LoadingPlan,
    configured: int | None,
    device: str,
    processes: int,
    measure: Callable[[], float],
) -> LoadingPlan:
    """Return a plan with the number of loader processes.

    Args:
        plan: The plan so far.
        configured: data.num_workers.
        device: The device of the model: cpu, cuda or mps.
        processes: The number of training processes on this machine.
        measure: Measures the seconds that one core takes to load the images of the whole training.
    """
    if configured is not None:
        return replace(plan, workers=configured, reason="as configured")
    if device == "cpu":
        return replace(plan, workers=0, reason="the network needs the cores")
    seconds = measure()
    pays = seconds > _WORKERS_PAY_AFTER_S
    workers = min(cpu_count() // processes, _MAX_WORKERS) if pays else 0
    reason = f"the training's images take {seconds:,.0f} s of one core"
    return replace(plan, workers=workers, reason=reason)


def check_devices(devices: int, batch_size: int, split: Split) -> None:
    """Check that each device gets images of every part, and two or more of each batch.

    Raises:
        UserError: There are too many devices.
    """
    if devices > 1 and batch_size < 2 * devices:
        raise UserError(
            f"data.batch_size: {batch_size} for {devices} devices; it counts the images of a step "
            "on all devices together, at least two for each"
        )
    for part in get_args(Part):
        n = len(split.indices(part))
        if n < devices:
            raise UserError(
                f"trainer.devices: {devices}, but {part} has {counted(n, 'image')}; use fewer "
                "devices"
            )


@dataclass(frozen=True, eq=False)
class Loaders:
    """Data loaders of one dataset, all made from the same parts."""

    pixels: Pixels
    """Decoded images and masks."""
    table: SampleTable
    """Samples of the dataset."""
    rendering: Rendering
    """Steps from a decoded image to what the network sees in training."""
    batch_size: int
    """Largest number of images in a step, on all devices together."""
    plan: LoadingPlan
    """Facts about the run."""

    def training(
        self, split: TrainingSplit, smote: Smote | None, epoch: int, batch: int
    ) -> DataLoader[Any]:
        """Return a loader of augmented images in the order of an epoch, from one of its batches."""
        sampler = BatchSampler(
            split.positions,
            self.batch_size,
            (self.plan.rank, self.plan.world_size),
            self.plan.seed,
            split.labels,
            split.quotas,
            synthetic=smote is not None,
        )
        sampler.start_at(epoch, batch)
        if self.plan.features is not None:
            features, targets = self.plan.features, split.targets
            shown = FeatureDataset(features, split.all_labels, augmented=True, targets=targets)
            return _load(shown, sampler, 0)
        images = CellDataset(
            self.pixels,
            split.all_labels,
            self.table.sample_seeds,
            self.rendering,
            split.targets,
            smote,
        )
        return _load(images, sampler, self.plan.workers)

    def scoring(self, positions: np.ndarray) -> DataLoader[Any]:
        """Return a loader of some samples as they are, in the given order."""
        shard = self.plan.rank, self.plan.world_size
        sampler = BatchSampler(positions, self.batch_size, shard)
        if self.plan.features is not None:
            features = FeatureDataset(self.plan.features, self.table.labels, augmented=False)
            return _load(features, sampler, 0)
        return _load(self._images(augmented=False), sampler, self.plan.workers)

    def every_image(self, variant: int | None) -> DataLoader[Batch]:
        """Return a loader of all images in the table's order.

        Args:
            variant: Index of the augmented variant; None for the images as they are.
        """
        n = len(self.table)
        chunks = np.array_split(np.arange(n), -(-n // _CHUNK))
        requests = [
            [SampleRequest(variant or 0, int(position)) for position in chunk] for chunk in chunks
        ]
        return _load(self._images(augmented=variant is not None), requests, self.plan.workers)

    def examples(self, positions: Iterable[int], *, augmented: bool) -> Batch:
        """Return some samples as one batch."""
        return self._images(augmented=augmented)[
            [SampleRequest(0, int(position)) for position in positions]
        ]

    def time_per_image(self, positions: np.ndarray) -> float:
        """Measure the seconds that one core takes to load an augmented image."""
        first = positions[: self.batch_size]
        start = time.perf_counter()
        self.examples(first, augmented=True)
        return (time.perf_counter() - start) / len(first)

    def _images(self, *, augmented: bool) -> CellDataset:
        rendering = self.rendering if augmented else replace(self.rendering, augmentation=None)
        return CellDataset(self.pixels, self.table.labels, self.table.sample_seeds, rendering)


def _load(
    dataset: Dataset[Any], sampler: Iterable[list[SampleRequest]], workers: int
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        persistent_workers=workers > 0,
        # In a process that was itself started by a forkserver, as those of a sweep are, torch would
        # import everything again in every worker.
        multiprocessing_context="fork" if workers else None,
        pin_memory=workers > 0 and torch.cuda.is_available(),
        # Without a generator of its own a loader draws from torch's global one, more often without
        # workers than with, and so would change the dropout.
        generator=torch.Generator(),
    )


def _unchanged(batch: Any) -> Any:
    """Return a batch as the dataset made it; the default would convert its type."""
    return batch
