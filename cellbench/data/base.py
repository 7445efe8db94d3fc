"""What every data module shares: table, split, view, augmentation, loaders."""

import hashlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import cv2
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from cellbench import cores
from cellbench.data import files, segmentation
from cellbench.data.augment import Augmentation, Policy, Transforms
from cellbench.data.augment_batch import BatchAugmentation, unsupported
from cellbench.data.cache import FORMAT, CacheConfig, Pixels, decode
from cellbench.data.copies import Copy, find_copies
from cellbench.data.dataset import (
    Batch,
    CellDataset,
    FeatureBatch,
    FeatureDataset,
    Features,
    finish,
)
from cellbench.data.download import Source
from cellbench.data.labels import check_classes, flip, read_labels
from cellbench.data.preprocessing import LARGEST_SIDE, SMALLEST_SIDE, Masks, Preprocessing
from cellbench.data.sampling import Balance, BatchSampler, Key, quotas
from cellbench.data.smote import Smote, SmoteConfig
from cellbench.data.splits import Split, SplitConfig, draw
from cellbench.data.stain import FORMAT as STAIN_FORMAT
from cellbench.data.stain import Normalisation
from cellbench.data.table import Part, Sample, SampleTable, check_ids
from cellbench.data.views import Image, Mask, View, needs_mask
from cellbench.errors import UserError, suggest

_TOGETHER = 16
"""Images in a batch of `every_image`: what is kept of them must not depend on data.batch_size."""

_WORKERS_PAY_AFTER = 10.0
"""Seconds of input path in a whole training; starting two workers takes about 2."""

LIMITS = {
    "batch_size": (1, 1_000_000),
    "num_workers": (0, 512),
    "augment_variants": (1, 1_000_000),
    "balance": (1, 10_000_000),
    "max_pixels": (1, 10**12),
}
"""The least and the greatest value of the options that are whole numbers."""


@dataclass(frozen=True)
class Check:
    """Something that is known of a dataset.

    Attributes:
        expected: What is known.
        found: What the files say.
        holds: Whether the two agree.
    """

    expected: str
    found: str
    holds: bool


@dataclass(kw_only=True, eq=False, repr=False)
class CellDataModule(LightningDataModule, ABC):
    """A dataset of cell images; a subclass lists its samples and, where need be, reads them.

    Attributes:
        view: What of the image the network sees, in training, validation, test and prediction.
        fill: The value, 0 to 255, of what the view hides.
        masks: Who outlines the cells that a view cuts out: the dataset's expert, or cellbench
            itself (segmentation.py).
        stain: With what the images were stained, where their stains are to be brought to one
            reference (Macenko et al., ISBI 2009), in training and test alike.
        augment: A policy's name, or a list of policies and albumentations transforms; training
            only.
        augment_variants: How many augmentations an image has: a number draws from that many fixed
            ones, whose features a frozen backbone computes once; null draws a new one each time.
        augment_on: cpu augments image by image; device in batches, where the model runs; auto takes
            device where that is a GPU and the transforms have a batched form.
        image_size: Height and width of the network's input in pixels; one number for a square.
        batch_size: The largest number of images in a step, on all devices together.
        balance: How often each class is drawn, or a number: how many images of each class an epoch
            has at least, the smaller classes' drawn again; training only.
        smote: Fills the smaller classes up with blends of neighbours instead, to count (null: the
            largest class's number), each with one of so many neighbours (5); training only.
        label_noise: Share of the training labels that are replaced by another class, for trials of
            what is made for wrong labels; validation and test keep theirs.
        train_labels: A table of other labels for the training split, as `relabel` writes it; goes
            before label_noise.
        num_workers: Loader processes for each device; null starts them where they pay.
        split: Which samples train, validate and test.
        exclude: Ids of samples to leave out, as an unreadable file's.
        copies: Which images share a group for what they show: those of equal content, or near
            copies too, which are found in the pixels once for all runs.
        cache: Where the decoded images are kept.
        max_pixels: The largest image or mask that is decoded, in pixels; a file of a few kB can
            claim to be so large that it fills the memory.
    """

    view: View = "raw"
    fill: int = 0
    masks: Masks = "expert"
    stain: Normalisation = "none"
    augment: Policy | Transforms = "none"
    augment_variants: int | None = None
    augment_on: Literal["auto", "cpu", "device"] = "auto"
    image_size: int | tuple[int, int] = 128
    batch_size: int = 16
    balance: Balance | int = "none"
    smote: SmoteConfig | None = None
    label_noise: float = 0.0
    train_labels: Path | None = None
    num_workers: int | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    exclude: tuple[str, ...] = ()
    copies: Literal["exact", "near"] = "exact"
    cache: CacheConfig = field(default_factory=CacheConfig)
    max_pixels: int = files.MAX_PIXELS
    seed: int = field(default=0, init=False)
    """Decides the order and the augmentation; the command line sets it to seed_everything."""
    start: tuple[int, int] = field(default=(0, 0), init=False)
    """Epoch and batch that the training begins at; not zero where it goes on."""
    features: Features | None = field(default=None, init=False)
    """What a frozen backbone made of the images; where they are known, batches hold them instead
    of images."""
    _workers: int = field(default=0, init=False)
    _batched: BatchAugmentation | None = field(default=None, init=False)
    shard: tuple[int, int] = field(default=(0, 1), init=False)
    """This device's number and the number of devices; each gets its share of every batch."""

    def __post_init__(self) -> None:
        """Checks what can be checked without reading an image.

        Raises:
            UserError: A value is out of its range.
        """
        super().__init__()
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, int) and not least <= value <= most:
                wrong = f"less than {least}" if value < least else f"more than {most:,}"
                raise UserError(f"data.{name}: {value} is {wrong}")
        if self.smote is not None and self.balance != "none":
            raise UserError(f"data.smote: beside data.balance {self.balance}; choose one of them")
        if self.smote is not None and self.view == "silhouette":
            raise UserError("data.smote: two outlines have no blend; use another view")
        if not 0 <= self.label_noise < 1:
            raise UserError(f"data.label_noise: {self.label_noise} is not in 0 to 1, without 1")
        if not 0 <= self.fill <= 255:
            raise UserError(f"data.fill: {self.fill} is not between 0 and 255")
        if min(self.input_size) < SMALLEST_SIDE:
            raise UserError(
                f"data.image_size: {self.image_size} is too small; at least {SMALLEST_SIDE}"
            )
        if max(self.input_size) > LARGEST_SIDE:
            raise UserError(
                f"data.image_size: {self.image_size} is too large; at most {LARGEST_SIDE}"
            )
        if self.masks == "auto" and not self.shows_cells:
            raise UserError(
                f"data.masks: auto, but {type(self).__name__} shows tissue, in which no single "
                "cell can be cut out; use expert masks, or view raw"
            )
        self._augmentation = Augmentation(self.augment, self.input_size)

    # What a dataset provides.

    shows_cells: ClassVar[bool] = True
    """Whether an image shows cells that can be cut out, and not a tissue."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of their labels, known before any image is read."""

    @property
    def published(self) -> tuple[int, ...] | None:
        """The number of images of each class that are known to be; None where it is not known."""
        return None

    @property
    def targets(self) -> np.ndarray | None:
        """Each class' share in what training aims at, float32, (n, classes); None for the label."""
        return None

    @abstractmethod
    def list_samples(self) -> list[Sample]:
        """Lists the labelled samples, in any order, without a look at the pixels.

        Raises:
            UserError: The files are not there, or not as they should be.
        """

    def group_samples(self, samples: list[Sample]) -> list[Sample]:
        """Gives samples the groups that take a look at the pixels; none are sought by default."""
        return samples

    def read_image(self, sample: Sample) -> Image:
        """The sample's image: RGB, uint8, (H, W, 3), at its native size."""
        assert sample.image is not None
        return files.read_image(sample.image, self.max_pixels)

    def read_mask(self, sample: Sample, image: Image) -> Mask:
        """The mask of a sample that has one, at the native size of its image."""
        assert sample.mask is not None
        return files.read_mask(sample.mask, image, self.max_pixels)

    def has_mask(self, sample: Sample) -> bool:
        """Whether the sample has a mask."""
        return sample.mask is not None

    def fingerprint(self, sample: Sample) -> str:
        """A digest of the sample's content, equal where the content is equal."""
        assert sample.image is not None
        return files.fingerprint(sample.image, self.max_pixels)

    def mask_fingerprint(self, sample: Sample) -> str:
        """The same of its mask."""
        assert sample.mask is not None
        return files.fingerprint(sample.mask, self.max_pixels)

    # What every dataset has.

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to the pixels before the model."""
        return Preprocessing(self.input_size, self.view, self.fill, self.masks, self.stain)

    @property
    def listed(self) -> list[Sample]:
        """The labelled samples that are not excluded, sorted by their ids; no pixel is read."""
        listed = self.list_samples()
        check_ids(sample.id for sample in listed)
        ids = {sample.id for sample in listed}
        for name in self.exclude:
            if name not in ids:
                raise UserError(f"data.exclude: there is no sample '{name}'{suggest(name, ids)}")
        excluded = set(self.exclude)
        left = [sample for sample in listed if sample.id not in excluded]
        return sorted(left, key=lambda sample: sample.id)

    @cached_property
    def table(self) -> SampleTable:
        """All labelled samples; the files have been read once, for their contents' digests."""
        samples = self.group_samples(self.listed)
        contents = self.contents_of(samples)
        near = self.find_copies(samples, contents) if self.copies == "near" else []
        return SampleTable(
            samples, self.classes, contents, [(copy.first, copy.second) for copy in near]
        )

    def find_copies(
        self, samples: Sequence[Sample], contents: Sequence[str] | None = None
    ) -> list[Copy]:
        """Finds near copies among samples, or takes what an earlier run has found.

        Args:
            samples: The samples.
            contents: A digest of each one's content, where it is known already.
        """
        known = self.contents_of(samples) if contents is None else contents
        return find_copies(known, self._reader(samples), self.cache)

    def _reader(self, samples: Sequence[Sample]) -> Callable[[int], Image]:
        """What reads the image of the sample at a position."""
        return lambda position: self.read_image(samples[position])

    def contents_of(self, samples: Sequence[Sample]) -> list[str]:
        """A digest of each sample's content."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self.fingerprint, samples))

    def checks(self) -> list[Check]:
        """What is known of the dataset, and whether it holds of these files; `audit` shows it."""
        if self.published is None:
            return []
        expected = ", ".join(
            f"{n:,} {name}" for name, n in zip(self.classes, self.published, strict=True)
        )
        return [
            Check(
                f"the published numbers: {expected}",
                self._differing or "as published",
                not self._differing,
            )
        ]

    @property
    def _differing(self) -> str:
        """The classes with another number of images than the published one; empty for none."""
        if self.published is None:
            return ""
        found = np.bincount(self.table.labels, minlength=len(self.classes)).tolist()
        triples = zip(self.classes, found, self.published, strict=True)
        return ", ".join(f"{name} {n:,} of {known:,}" for name, n, known in triples if n != known)

    @property
    def note(self) -> str | None:
        """How the numbers of images differ from the published ones; None where they do not."""
        return f"not the published set: {self._differing}" if self._differing else None

    @cached_property
    def drawn(self) -> Split:
        """The split, checked."""
        return draw(self.table, self.split)

    @cached_property
    def training(self) -> tuple[np.ndarray, np.ndarray]:
        """The positions that train, ascending, and all labels as training has them, (n,)."""
        positions, labels = self.drawn.indices("train"), self.table.labels.copy()
        changed = next((k for k in ("label_noise", "train_labels") if getattr(self, k)), None)
        if changed and self.targets is not None:
            raise UserError(f"data.{changed}: training aims at votes, which it would not change")
        if self.label_noise:
            own = labels[positions]
            labels[positions] = flip(own, len(self.classes), self.label_noise, self.seed)
            check_classes(labels[positions], self.classes, "data.label_noise")
        if self.train_labels is not None:
            positions, given = read_labels(self.train_labels, self.table, positions)
            labels[positions] = given
            check_classes(given, self.classes, "data.train_labels")
        return positions, labels

    @property
    def training_digest(self) -> str:
        """A digest of the samples that train and of their labels, or of what they aim at."""
        positions, labels = self.training
        trained = np.stack([positions, labels[positions]]).tobytes()
        if self.targets is not None:
            trained += self.targets[positions].tobytes()
        return hashlib.blake2b(trained, digest_size=16).hexdigest()

    @cached_property
    def masks_digest(self) -> str:
        """A digest of the masks that the view uses; empty if it uses none."""
        if not needs_mask(self.view):
            return ""
        samples = self.listed
        named = [(s.id, mask) for s, mask in zip(samples, self._masks_of(samples), strict=True)]
        return hashlib.blake2b(json.dumps(named).encode(), digest_size=16).hexdigest()

    def _masks_of(self, samples: Sequence[Sample]) -> list[str]:
        """Return for each sample a text that is equal only if the mask is equal."""
        if self.masks == "auto":
            return [f"auto {segmentation.FORMAT}"] * len(samples)

        def digest(sample: Sample) -> str:
            return self.mask_fingerprint(sample) if self.has_mask(sample) else ""

        with ThreadPoolExecutor() as pool:
            return list(pool.map(digest, samples))

    @cached_property
    def _smote(self) -> Smote | None:
        if self.smote is None:
            return None
        if self.targets is not None:
            raise UserError("data.smote: training aims at votes, which have no class to fill up")
        positions, labels = self.training
        quotas = self._quotas
        assert quotas is not None
        return Smote(
            self._pixels,
            positions,
            labels[positions],
            quotas,
            self.smote,
            self.classes,
            self.view,
            self.fill,
        )

    @property
    def shown(self) -> str | None:
        """How many images of each class an epoch shows; None where it is the training split."""
        if self._quotas is None and self.train_labels is None:
            return None
        numbers = self._quotas or self.class_counts("train").tolist()
        named = ", ".join(f"{n} {name}" for n, name in zip(numbers, self.classes, strict=True))
        return f"{named}{', blended where there are fewer' if self.smote else ''}"

    @property
    def _quotas(self) -> list[int] | None:
        """How many images of each class an epoch has; None where each image is shown once."""
        sizes = self.class_counts("train").tolist()
        if self.smote is not None:
            return quotas(sizes, self.smote.count or max(sizes))
        return quotas(sizes, self.balance)

    @cached_property
    def _contents(self) -> list[str]:
        """For each sample a text that is equal only where what is read of its files is equal."""
        contents = self.table.fingerprints
        if self.stain != "none":
            contents = [f"{self.stain} {STAIN_FORMAT} {content}" for content in contents]
        if not needs_mask(self.view):
            return contents
        masks = self._masks_of(self.table.samples)
        # These views read the image otherwise; the rest hide what they hide after the cache.
        kind = self.view if self.view in ("crop", "nucleus") else "whole"
        return [f"{kind} {a} {b}" for a, b in zip(contents, masks, strict=True)]

    @cached_property
    def _pixels(self) -> Pixels:
        samples, preprocessing = self.table.samples, self.preprocessing
        with_masks, by_expert = needs_mask(self.view), self.masks == "expert"
        if with_masks and by_expert:
            self.table.check_masks()
        lacking = [s.id for s in samples if with_masks and by_expert and not self.has_mask(s)]
        if lacking:
            instead = "data.masks: auto" if self.shows_cells else "view raw"
            raise UserError(
                f"data.view: {self.view} needs a mask, and '{lacking[0]}' has none "
                f"({len(lacking)} of {len(samples)} images have none); add them, or use {instead}"
            )

        def read(position: int) -> tuple[Image, Mask | None]:
            sample = samples[position]
            try:
                image, mask = self.read_image(sample), None
                if with_masks and by_expert:
                    mask = self.read_mask(sample, image)
                return preprocessing.prepare(image, mask, sample.id)
            except UserError as error:
                raise UserError(
                    f"{error}; to leave it out: --data.exclude \"['{sample.id}']\"; audit lists "
                    "all that cannot be read"
                ) from error

        # What takes longer than decoding is kept, however small.
        cache = self.cache if by_expert or not with_masks else replace(self.cache, memory=0)
        return decode(cache, self._contents, self.input_size, read, with_masks=with_masks)

    def setup(self, stage: str) -> None:
        """Draws and checks the split, and decodes every image, whatever the stage.

        Raises:
            UserError: What `drawn` and the reading raise, or there are too many devices.
        """
        devices = self.shard[1]
        if devices > 1 and self.batch_size < 2 * devices:
            raise UserError(
                f"data.batch_size: {self.batch_size} for {devices} devices; it counts the images "
                "of a step on all devices together, at least two for each"
            )
        for part in get_args(Part):
            n = len(self.drawn.indices(part))
            if n < devices:
                raise UserError(
                    f"trainer.devices: {devices}, but {part} has {n} images; use fewer devices"
                )
        _ = self._pixels
        if stage == "fit":
            _ = self.training, self._smote

    @property
    def where(self) -> str:
        """Where the decoded images are kept, in words."""
        return self._pixels.where

    def choose_loading(self, device: str, epochs: int, processes: int = 1) -> str:
        """Decides where images are augmented and by how many processes, if not configured.

        Args:
            device: cpu, cuda or mps: what the model runs on.
            epochs: How often the training reads the images.
            processes: How many share this machine.

        Returns:
            Where, how many each device has, and why, in words.

        Raises:
            UserError: The device was asked for and cannot do it.
        """
        lacking = unsupported(self._augmentation)
        if self.view == "background":
            lacking = "view background"
        if self.augment_on == "device" and lacking:
            raise UserError(f"data.augment_on: device has no batched form of {lacking}; use cpu")
        if self.augment_on == "auto":
            self.augment_on = "cpu" if device == "cpu" or lacking else "device"
        if self.augment_on == "device" and self._augmentation:
            self._batched = BatchAugmentation(self._augmentation, self.input_size)
        if self.num_workers is not None:
            self._workers, why = self.num_workers, "as configured"
        elif device == "cpu":
            self._workers, why = 0, "the network needs the cores"
        else:
            positions = self.drawn.indices("train")
            batch = [Key(0, int(position)) for position in positions[: self.batch_size]]
            begun = time.perf_counter()
            _ = self._dataset(self._batched or self._augmentation)[batch]
            seconds = (time.perf_counter() - begun) * epochs * len(positions) / len(batch)
            pays = seconds > _WORKERS_PAY_AFTER
            self._workers = min(cores.available() // processes, 8) if pays else 0
            why = f"the training's images take {seconds:,.0f} s of one core"
        where = "" if not self._augmentation else f"augmented on the {self.augment_on}, "
        return f"{where}{self._workers or 'no'} loader processes ({why})"

    def on_after_batch_transfer(
        self, batch: Batch | FeatureBatch, dataloader_idx: int
    ) -> Batch | FeatureBatch:
        """Called by Lightning once a batch is on its device: does there what is left to do."""
        if self._batched is None or isinstance(batch, FeatureBatch):
            return batch
        return finish(batch, self._batched, self.view, self.fill)

    @property
    def variants(self) -> int | None:
        """How many augmented variants of each image training shows; None where it has no end."""
        if self.smote is not None:
            return None
        return self.augment_variants if self._augmentation else 0

    def every_image(self, variant: int | None) -> DataLoader[Batch]:
        """All images of the table in its order, as they are or in an augmented variant."""
        augmentation = None if variant is None else self._batched or self._augmentation
        n = len(self.table)
        batches = np.array_split(np.arange(n), -(-n // _TOGETHER))
        keys = [[Key(variant or 0, int(position)) for position in batch] for batch in batches]
        return self._load(self._dataset(augmentation), keys, self._workers)

    def identify(self, variant: int | None) -> list[Any]:
        """Plain values that differ where the pixels of `every_image` do."""
        what: list[Any] = [FORMAT, cv2.__version__, asdict(self.preprocessing), self._contents]
        if variant is not None:
            batched = self._batched is not None
            what += [self._augmentation.identity, batched, self.seed, variant]
            what += [int(key) for key in self.table.keys]
        return what

    def class_counts(self, part: Part) -> np.ndarray:
        """The number of samples of each class in a part of the split, shape (classes,)."""
        positions, labels = self.drawn.indices(part), self.table.labels
        if part == "train":
            positions, labels = self.training
        labels = labels[positions]
        return np.bincount(labels, minlength=len(self.classes))

    def train_dataloader(self) -> DataLoader[Any]:
        """Augmented, in an order drawn anew every epoch."""
        return self.training_batches(*self.start)

    def training_batches(self, epoch: int, batch: int = 0) -> DataLoader[Any]:
        """Return a loader of what an epoch trains on, from one of its batches."""
        loader = self._loader("train", train=True)
        assert isinstance(loader.sampler, BatchSampler)
        loader.sampler.start_at(epoch, batch)
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """As they are, in the table's order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """As they are, in the table's order."""
        return self._loader("test")

    def examples(self, part: Part, n: int = 8) -> Batch:
        """At most n samples of a part as the network sees them, the classes in turn."""
        own = self.drawn.indices(part)
        of_class = [own[self.table.labels[own] == label] for label in range(len(self.classes))]
        turns = (position for turn in zip_longest(*of_class) for position in turn)
        chosen = [int(position) for position in turns if position is not None][:n]
        augmentation = self._augmentation if part == "train" else None
        return self._dataset(augmentation)[[Key(0, position) for position in chosen]]

    def _dataset(
        self, augmentation: Augmentation | BatchAugmentation | None, *, train: bool = False
    ) -> CellDataset:
        table = self.table
        return CellDataset(
            self._pixels,
            self.training[1] if train else table.labels,
            table.keys,
            self.view,
            self.fill,
            augmentation,
            self.seed,
            self.augment_variants,
            self.targets if train else None,
            self._smote if train else None,
        )

    def _loader(self, part: Part, *, train: bool = False) -> DataLoader[Any]:
        positions, labels = self.drawn.indices(part), self.table.labels
        if train:
            positions, labels = self.training
        sampler = BatchSampler(
            positions,
            self.batch_size,
            self.shard,
            self.seed if train else None,
            labels[positions],
            self._quotas if train else None,
            synthetic=self.smote is not None,
        )
        if self.features is not None:
            targets = self.targets if train else None
            features = FeatureDataset(self.features, labels, augmented=train, targets=targets)
            return self._load(features, sampler, 0)
        augmentation = (self._batched or self._augmentation) if train else None
        return self._load(self._dataset(augmentation, train=train), sampler, self._workers)

    def _load(
        self, dataset: Dataset[Any], sampler: Iterable[list[Key]], workers: int
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            # Where this process was itself started by a forkserver, as a sweep's are, torch would
            # import everything anew in every worker.
            multiprocessing_context="fork" if workers else None,
            pin_memory=workers > 0 and torch.cuda.is_available(),
            # Without one of its own a loader draws from torch's generator, more often without
            # workers than with, and so changes the dropout.
            generator=torch.Generator(),
        )


def _as_it_is(batch: Any) -> Any:
    """Batches come whole from the dataset; the default would copy them to another type."""
    return batch


@dataclass(kw_only=True, eq=False, repr=False)
class FileDataModule(CellDataModule):
    """A dataset in files below a root folder.

    Attributes:
        root: The folder that holds the dataset.
    """

    root: Path = Path("data")

    how_to_get = "check the path"
    """What to do where the root is missing, in one line."""

    source: ClassVar[Source | None] = None
    """Where `fetch` gets it; None where there is nothing to get."""

    def _require(self, path: Path, what: str) -> Path:
        """Returns a path that must be there.

        Raises:
            UserError: It is not; the line says how to get the dataset.
        """
        if not self.root.is_dir():
            raise UserError(f"data.root: there is no folder {self.root}; {self.how_to_get}")
        if not path.exists():
            relative = path.relative_to(self.root)
            near = (*self.root.glob("*"), *self.root.glob("*/*"), *self.root.absolute().parents[:2])
            for other in near:
                if (other / relative).exists():
                    raise UserError(f"data.root: {what} is in {other}; give that folder")
            raise UserError(f"{what} {path} is missing; {self.how_to_get}")
        return path

    def _below(self, name: str, where: str) -> Path:
        """Return the path that a table or list names, which must lie below the root.

        Args:
            name: What the table has.
            where: What table and row, for the error.

        Raises:
            UserError: The path is absolute, has `..`, or follows a link out of the root.
        """
        path = Path(name)
        inside = not path.is_absolute() and ".." not in path.parts and "\0" not in name
        if inside:
            root, real = (os.path.realpath(each) for each in (self.root, self.root / path))
            inside = os.path.commonpath([root, real]) == root
        if not inside:
            raise UserError(
                f"{where}: '{name}' leaves the dataset's folder; give a path below data.root"
            )
        return self.root / path

    def _in_folders(
        self, parent: Path, names: Sequence[str], *, split: Part | None = None
    ) -> list[Sample]:
        """The image files below one folder for each class, without masks.

        Args:
            parent: The folder that holds them.
            names: The folders' names, in the order of the classes.
            split: The part that the authors put them in.

        Raises:
            UserError: A folder is missing, or there is one of another name.
        """
        self._require(parent, "the folder")
        found = {path.name for path in parent.iterdir() if path.is_dir()}
        for name in names:
            if name not in found:
                raise UserError(f"{parent} has no folder '{name}'{suggest(name, found)}")
        for name in sorted(found - set(names)):
            raise UserError(f"{parent / name} is no class of this dataset{suggest(name, names)}")
        return [
            Sample(self._id(path), label, path, split=split)
            for label, name in enumerate(names)
            for path in files.images_below(parent / name)
        ]

    def _id(self, path: Path) -> str:
        name = path.relative_to(self.root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{name!r} in {self.root} is no UTF-8 name, and no table could hold it; rename it"
            ) from error
        return name
