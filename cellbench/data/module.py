"""Data module: the base class of every dataset."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from cellbench.data.augment import Augmentation
from cellbench.data.dataset import Batch, Rendering
from cellbench.data.duplicates.copies import Copy, find_copies
from cellbench.data.hooks import DatasetHooks
from cellbench.data.image_format import ImageFormat
from cellbench.data.image_store import ImageStore, content_digests, measure_limits
from cellbench.data.loading import Loaders, LoadingPlan, check_devices, plan_workers
from cellbench.data.mask_format import MaskFormat
from cellbench.data.mask_set import MaskSet
from cellbench.data.options import DataOptions
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.published import Check, check_counts
from cellbench.data.sampling import take_in_turn
from cellbench.data.smote import Smote
from cellbench.data.splits import Split, draw
from cellbench.data.table import Part, Sample, SampleTable, check_ids
from cellbench.data.training_split import TrainingSplit, describe_epoch, make_training_split
from cellbench.data.views import Image
from cellbench.utils.errors import UserError, suggest


@dataclass(kw_only=True, eq=False, repr=False)
class CellDataModule(DataOptions, DatasetHooks, LightningDataModule):
    """A dataset of cell images.

    A subclass is a dataclass that implements `classes` and `list_samples`, overrides other methods
    of `DatasetHooks` if need be, and adds options of its own as fields.
    """

    plan: LoadingPlan = field(default=LoadingPlan(), init=False)
    """Seed, devices, position in the training and loader processes; a run replaces it as it learns
    them. The seed must be known before `training` is first used: label noise depends on it."""

    trained_format: ImageFormat | None = field(default=None, init=False)
    """Format of the images that a model was trained on, whose limits of the intensity hold here;
    None if they are measured over the training split."""

    def __post_init__(self) -> None:
        """Check what can be checked without reading an image.

        Raises:
            UserError: A value is out of its bounds, or two options contradict each other.
        """
        LightningDataModule.__init__(self)  # super() would be the options' own constructor
        super().__post_init__()
        if self.masks != "expert" and not self.shows_cells:
            raise UserError(
                f"data.masks: {self.masks}, but {type(self).__name__} shows tissue, in which no "
                "single cell can be cut out; use expert masks, or view raw"
            )
        for key, given in (("channels", self.channels), ("intensity", self.intensity)):
            if given is not None and self.makes_own_images:
                raise UserError(
                    f"data.{key}: {type(self).__name__} makes RGB images of 8 bits itself; leave "
                    "the option out"
                )
        self._augmentation = Augmentation(
            self.augment, self.input_size, self.n_channels, rgb=self.asked_format.is_rgb
        )

    # Samples and splits.

    @property
    def listed(self) -> list[Sample]:
        """Labelled samples that are not excluded, sorted by id; no pixel is read."""
        listed = self.list_samples()
        check_ids(sample.id for sample in listed)
        ids = {sample.id for sample in listed}
        for name in self.exclude:
            if name not in ids:
                raise UserError(f"data.exclude: there is no sample '{name}'{suggest(name, ids)}")
        excluded = set(self.exclude)
        left = [sample for sample in listed if sample.id not in excluded]
        return sorted(left, key=lambda sample: sample.id)

    def without(self, ids: Iterable[str]) -> Self:
        """Return the same dataset without some samples; nothing has been read of it."""
        return replace(self, exclude=(*self.exclude, *ids))

    @cached_property
    def table(self) -> SampleTable:
        """All labelled samples; each file is read once, for its digest."""
        samples = self.group_samples(self.listed)
        contents = content_digests(self, samples)
        near = self.find_copies(samples, contents) if self.copies == "near" else []
        return SampleTable(
            samples, self.classes, contents, [(copy.first, copy.second) for copy in near]
        )

    def find_copies(
        self, samples: Sequence[Sample], contents: Sequence[str] | None = None
    ) -> list[Copy]:
        """Find near copies among samples, or take them from an earlier run.

        Args:
            samples: The samples.
            contents: A digest of the content of each, if they are known already.
        """
        known = content_digests(self, samples) if contents is None else contents
        how = self.scaled_by_image.image_format.identity
        seen = [f"{how} {content}".strip() for content in known]
        return find_copies(seen, self.image_reader(samples), self.cache)

    def image_reader(self, samples: Sequence[Sample]) -> Callable[[int], Image]:
        """Return a function that reads the image of the sample at a position.

        It is used before there is a split, so that limits of the intensity are those of the image.
        """
        source = self.scaled_by_image
        return lambda position: source.read_image(samples[position])

    @property
    def segments(self) -> bool:
        """True if automatic masks can be made: the images show single cells in colours."""
        return self.shows_cells and self.asked_format.is_rgb

    @property
    def scaled_by_image(self) -> Self:
        """The same dataset, with percentiles of the intensity that are each image's own."""
        if self.intensity is None or self.intensity.per == "image":
            return self
        return replace(self, intensity=replace(self.intensity, per="image"))

    @cached_property
    def partition(self) -> Split:
        """The split, checked."""
        return draw(self.table, self.split)

    @cached_property
    def training(self) -> TrainingSplit:
        """The training split, with the labels that training sees."""
        positions = self.partition.indices("train")
        return make_training_split(self.table, positions, self.targets, self, self.plan.seed)

    @property
    def epoch_summary(self) -> str | None:
        """Number of images of each class in an epoch; None if it is that of the training split."""
        if self.training.quotas is None and self.train_labels is None:
            return None
        return describe_epoch(self.training, self, self.classes)

    def class_counts(self, part: Part) -> np.ndarray:
        """Return the number of samples of each class in a part of the split, (classes,)."""
        if part == "train":
            return self.training.counts
        labels = self.table.labels[self.partition.indices(part)]
        return np.bincount(labels, minlength=len(self.classes))

    # Known facts about the dataset.

    def checks(self) -> list[Check]:
        """Compare what is known of the dataset with these files; `audit` shows it."""
        if self.published is None:
            return []
        return [check_counts(self.classes, self.published, self.table.labels)]

    @property
    def note(self) -> str | None:
        """Notes on the files for the user, a line each; None for none."""
        differing = [check.found for check in CellDataModule.checks(self) if not check.holds]
        return f"not the published set: {differing[0]}" if differing else None

    # Pixels.

    @cached_property
    def image_format(self) -> ImageFormat:
        """Choice and scaling of the channels, with limits measured over the training split.

        Raises:
            UserError: A training image cannot be read, or the split not be drawn.
        """
        asked = self.asked_format
        if not asked.lacks_limits:
            return asked
        trained = self.trained_format
        if trained is not None and trained.limits and trained.channels == asked.channels:
            return replace(asked, limits=trained.limits)
        positions = self.partition.indices("train")
        return replace(
            asked,
            limits=measure_limits(
                self,
                [self.table.samples[i] for i in positions],
                [self.table.fingerprints[i] for i in positions],
                asked,
                self.cache,
            ),
        )

    @cached_property
    def images(self) -> ImageStore:
        """Images and masks at the network's input size."""
        masks = self.mask_set.digests if self.mask_set.used else {}
        return ImageStore(self, self.table, self.preprocessing, self.cache, masks)

    @property
    def preprocessing(self) -> Preprocessing:
        """Steps from a decoded image to the network's input size."""
        prepared = super().preprocessing
        if self.masks != "expert" or not self.mask_set.used:
            return prepared
        return replace(prepared, mask_format=self.mask_format)

    @cached_property
    def mask_set(self) -> MaskSet:
        """Masks of all samples."""
        return MaskSet(self, self, self.listed)

    @property
    def mask_format(self) -> MaskFormat:
        """Meaning of the values in the mask files.

        Raises:
            UserError: It is not certain.
        """
        return self.mask_set.survey.format

    @property
    def cache_location(self) -> str:
        """Place where the decoded images are kept, for the user."""
        return self.images.pixels.where

    @property
    def variants(self) -> int | None:
        """Number of augmented variants of each image in training; None if it is unlimited."""
        if self.smote is not None:
            return None
        return self.augment_variants if self._augmentation else 0

    def identify(self, variant: int | None) -> list[Any]:
        """Return plain values that differ if the images of `every_image` do."""
        if variant is None:
            return self.images.identity
        return [
            *self.images.identity,
            self._augmentation.identity,
            self.plan.seed,
            variant,
            *self.table.sample_seeds.tolist(),
        ]

    @cached_property
    def _smote(self) -> Smote | None:
        if self.smote is None:
            return None
        quotas = self.training.quotas
        assert quotas is not None
        return Smote(
            self.images.pixels,
            self.training.positions,
            self.training.labels,
            quotas,
            self.smote,
            self.classes,
            self.view,
            self.fill,
        )

    # Loading.

    def setup(self, stage: str) -> None:
        """Draw and check the split, and decode every image, whatever the stage.

        Raises:
            UserError: The split cannot be drawn, an image cannot be read, or there are too many
                devices.
        """
        check_devices(self.plan.world_size, self.batch_size, self.partition)
        _ = self.images.pixels
        if stage == "fit":
            _ = self.training, self._smote

    def plan_loading(self, device: str, epochs: int, processes: int = 1) -> LoadingPlan:
        """Return the plan with the number of loader processes; `plan` itself stays as it is.

        Args:
            device: The device of the model: cpu, cuda or mps.
            epochs: The number of times that the training reads the images.
            processes: The number of training processes on this machine.
        """

        def measure() -> float:
            positions = self.partition.indices("train")
            return self._loaders.time_per_image(positions) * epochs * len(positions)

        return plan_workers(self.plan, self.num_workers, device, processes, measure)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of augmented images, in a new order every epoch."""
        return self.training_batches(self.plan.epoch, self.plan.batch)

    def training_batches(self, epoch: int, batch: int = 0) -> DataLoader[Any]:
        """Return a loader of the training images of an epoch, from one of its batches."""
        return self._loaders.training(self.training, self._smote, epoch, batch)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the validation images as they are, in the table's order."""
        return self._loaders.scoring(self.partition.indices("val"))

    def test_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the test images as they are, in the table's order."""
        return self._loaders.scoring(self.partition.indices("test"))

    def every_image(self, variant: int | None) -> DataLoader[Batch]:
        """Return a loader of all images in the table's order, as they are or in a variant."""
        return self._loaders.every_image(variant)

    def examples(self, part: Part, n: int = 8) -> Batch:
        """Return at most n samples of a part as the network sees them, the classes in turn."""
        chosen = take_in_turn(self.partition.indices(part), self.table.labels, n)
        return self._loaders.examples(chosen, augmented=part == "train")

    @property
    def _loaders(self) -> Loaders:
        seed, variants = self.plan.seed, self.augment_variants
        rendering = Rendering(self.view, self.fill, self._augmentation, seed, variants)
        return Loaders(self.images.pixels, self.table, rendering, self.batch_size, self.plan)
