"""Options that every data module has."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cellbench.config.bounds import bounds, check_bounds
from cellbench.data import cellpose, files
from cellbench.data.augment import Transforms
from cellbench.data.cache import CacheConfig
from cellbench.data.cellpose import CellposeConfig
from cellbench.data.image_format import ImageFormat, Intensity
from cellbench.data.mask_format import Instance, MaskFormat, Region, Value, check_mask_values
from cellbench.data.preprocessing import LARGEST_SIDE, SMALLEST_SIDE, Fit, Masks, Preprocessing
from cellbench.data.sampling import Balance
from cellbench.data.smote import SmoteConfig
from cellbench.data.splits import SplitConfig
from cellbench.data.stain import Normalisation
from cellbench.data.views import View
from cellbench.utils.errors import UserError, counted


@dataclass(kw_only=True, eq=False, repr=False)
class DataOptions:
    """Options that every data module has; a dataset adds its own."""

    view: View = "raw"
    """Part of the image that the network sees, in training, validation, test and prediction."""

    fill: int = field(default=0, metadata=bounds(0, 255))
    """Value, 0 to 255, of the pixels that the view hides, and of what shows through transparent
    ones."""

    channels: tuple[str | int, ...] | None = None
    """Channels that the network sees, in this order, by the name that the file gives them or by
    number from 0, such as [DAPI, 2, 0]; null for grey or RGB images."""

    intensity: Intensity | None = None
    """Scaling of 16-bit and float images to 8 bits, such as {low: percentile 1, high: percentile
    99, per: image}; null for images of 8 bits. A percentile per dataset is that of the training
    images."""

    fit: Fit = "stretch"
    """How an image of another shape is brought to that of image_size: stretched, padded with fill,
    or cropped at its centre."""

    masks: Masks = "expert"
    """Source of the outlines by which a view cuts cells out: the dataset's expert, cellbench's own
    segmentation (segmentation.py), or a model of Cellpose (cellpose.py)."""

    mask_values: dict[Region, Value] | None = None
    """Values of the experts' masks for background and cell, or background, cytoplasm and nucleus:
    numbers, or colours as '#rrggbb' or [r, g, b]; a list for several of one region. null recognises
    them from all masks together."""

    mask_instance: Instance | None = None
    """Cells that count where a mask shows several: all, or only the one at the centre, or up to a
    tenth of the shorter side from it. null takes the one at the centre of Cellpose's masks, and all
    of others."""

    cellpose: CellposeConfig = field(default_factory=CellposeConfig)
    """Model of Cellpose, for masks: cellpose."""

    stain: Normalisation = "none"
    """Stain of the slides, to normalise the images to one reference (Macenko et al., ISBI 2009), in
    training and test alike."""

    augment: str | Transforms = "none"
    """A policy such as flips, geometric or strong (`POLICIES` in augment.py), or a list of policies
    and albumentations transforms; training only."""

    augment_variants: int | None = field(default=None, metadata=bounds(1, 1_000_000))
    """Number of fixed augmentations of each image, whose features a frozen backbone computes once;
    null for a new augmentation each time."""

    image_size: int | tuple[int, int] = field(
        default=128, metadata=bounds(SMALLEST_SIDE, LARGEST_SIDE)
    )
    """Height and width of the network's input in pixels; one number for a square."""

    batch_size: int = field(default=16, metadata=bounds(1, 1_000_000))
    """Largest number of images in a step, on all devices together."""

    balance: Balance | int = field(default="none", metadata=bounds(1, 10_000_000))
    """Frequency of each class in training, or a number: the images of each class that an epoch has
    at least, by repeating those of smaller classes."""

    smote: SmoteConfig | None = None
    """Oversampling of smaller classes by blends of neighbouring images; training only."""

    label_noise: float = field(default=0.0, metadata=bounds(0, below=1))
    """Share of the training labels that are replaced by another class, to test methods for wrong
    labels; validation and test keep theirs."""

    train_labels: Path | None = None
    """Table of other labels for the training split, as `relabel` writes it; replaces those of
    label_noise."""

    num_workers: int | None = field(default=None, metadata=bounds(0, 512))
    """Loader processes per device; null starts them if they pay."""

    split: SplitConfig = field(default_factory=SplitConfig)
    """Assignment of the samples to training, validation and test."""

    exclude: tuple[str, ...] = ()
    """Ids of samples to leave out, such as unreadable files."""

    copies: Literal["exact", "near"] = "exact"
    """Images that share a group because of what they show: those of equal content, or near copies
    too, which are found in the pixels once for all runs."""

    cache: CacheConfig = field(default_factory=CacheConfig)
    """Storage of the decoded images."""

    max_pixels: int = field(default=files.MAX_PIXELS, metadata=bounds(1, 10**12))
    """Largest image or mask that is decoded, in pixels; a file of a few kB can claim to be so large
    that it fills the memory."""

    def __post_init__(self) -> None:
        """Check what can be checked without reading an image.

        Raises:
            UserError: A value is out of its bounds, or two options contradict each other.
        """
        check_bounds(self, "data")
        if self.mask_values is not None:
            check_mask_values(self.mask_values)
        if self.masks == "cellpose" and self.view == "nucleus":
            raise UserError(
                "data.view: nucleus, but Cellpose outlines whole cells; use data.masks: auto, or "
                "expert"
            )
        if self.masks == "cellpose" and self.n_channels > cellpose.MAX_CHANNELS:
            raise UserError(
                f"data.masks: cellpose, which takes {cellpose.MAX_CHANNELS} channels at most, and "
                f"data.channels gives {self.n_channels}; choose fewer, or use data.masks: expert"
            )
        if self.smote is not None and self.balance != "none":
            raise UserError(f"data.smote: beside data.balance {self.balance}; choose one of them")
        if self.smote is not None and self.view == "silhouette":
            raise UserError("data.smote: two outlines have no blend; use another view")
        if not self.asked_format.is_rgb:
            others = counted(self.n_channels, "other channel")
            masks = "expert" if self.masks == "cellpose" else self.masks
            of_colours = (("stain", self.stain, "none"), ("masks", masks, "expert"))
            for key, given, without in of_colours:
                if given != without:
                    raise UserError(
                        f"data.{key}: {given} is made for the colours of RGB images, and "
                        f"data.channels gives {others}; use {without}"
                    )

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def asked_format(self) -> ImageFormat:
        """Choice and scaling of the channels; percentiles of a dataset are not measured yet."""
        channels = None if self.channels is None else tuple(self.channels)
        return ImageFormat(channels, self.intensity, self.fill)

    @property
    def image_format(self) -> ImageFormat:
        """Choice and scaling of the channels, ready for reading."""
        return self.asked_format

    @property
    def n_channels(self) -> int:
        """Number of channels of the network's input."""
        return self.asked_format.n_channels

    @property
    def preprocessing(self) -> Preprocessing:
        """Steps from a decoded image to the network's input size."""
        prepared = Preprocessing(
            self.input_size,
            self.view,
            self.fill,
            self.masks,
            self.stain,
            fit=self.fit,
            image_format=self.image_format,
        )
        if self.masks == "cellpose":
            counts = MaskFormat("ids", instance=self.mask_instance or "centre")
            return replace(prepared, mask_format=counts, cellpose=self.cellpose.anywhere)
        if self.masks == "auto":
            return replace(prepared, mask_format=MaskFormat(instance=self.mask_instance or "all"))
        return prepared
