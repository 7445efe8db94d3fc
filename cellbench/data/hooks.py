"""Methods by which a dataset lists its samples and reads them."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from cellbench.data import files, mask_files
from cellbench.data.image_format import ImageFormat
from cellbench.data.mask_format import UNKNOWN, MaskFormat
from cellbench.data.table import Sample
from cellbench.data.views import Image, Mask


class DatasetHooks(ABC):
    """Methods that a dataset implements, or overrides if its images are not ordinary files.

    Only `classes` and `list_samples` must be implemented.
    """

    max_pixels: int
    """Largest image or mask that is decoded, in pixels."""

    shows_cells: ClassVar[bool] = True
    """True if an image shows single cells that can be cut out, False for tissue."""

    @property
    def image_format(self) -> ImageFormat:
        """Choice and scaling of the channels."""
        return ImageFormat()

    @property
    def makes_own_images(self) -> bool:
        """True if the images are no files, but 8-bit RGB images that `read_image` makes."""
        return type(self).read_image is not DatasetHooks.read_image

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels, known before any image is read."""

    @property
    def mask_places(self) -> str:
        """Places where masks were looked for, for a message; empty if they are given otherwise."""
        return ""

    @property
    def mask_format(self) -> MaskFormat:
        """Meaning of the values in mask files; by default each file is recognised by itself."""
        return UNKNOWN

    @property
    def published(self) -> tuple[int, ...] | None:
        """Published number of images of each class; None if it is unknown."""
        return None

    @property
    def targets(self) -> np.ndarray | None:
        """Share of each class in the training target, float32, (n, classes); None for the label."""
        return None

    @abstractmethod
    def list_samples(self) -> list[Sample]:
        """List the labelled samples in any order, without reading a pixel.

        Raises:
            UserError: The files are missing or damaged.
        """

    def group_samples(self, samples: list[Sample]) -> list[Sample]:
        """Return samples with the groups that have to be found in the pixels; none by default."""
        return samples

    def read_image(self, sample: Sample) -> Image:
        """Return the sample's image, uint8, (H, W, channels), at its native size.

        A dataset that overrides it returns RGB, and takes neither data.channels nor data.intensity.
        """
        assert sample.image is not None
        return files.read_image(sample.image, self.max_pixels, self.image_format)

    def read_mask(self, sample: Sample, image: Image) -> Mask:
        """Return the mask of a sample that has one, at the native size of its image."""
        assert sample.mask is not None
        return mask_files.read_mask(sample.mask, image, self.mask_format, self.max_pixels)

    def has_mask(self, sample: Sample) -> bool:
        """Return True if the sample has a mask."""
        return sample.mask is not None

    def fingerprint(self, sample: Sample) -> str:
        """Return a digest of the sample's content, equal for equal content."""
        assert sample.image is not None
        return files.fingerprint(sample.image, self.max_pixels)

    def mask_fingerprint(self, sample: Sample) -> str:
        """Return a digest of the sample's mask, equal for equal content."""
        assert sample.mask is not None
        return files.fingerprint(sample.mask, self.max_pixels)
