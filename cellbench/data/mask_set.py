"""Masks of a dataset, as its options ask for them."""

from collections.abc import Sequence
from functools import cached_property

from cellbench.data.hooks import DatasetHooks
from cellbench.data.image_store import digest_masks, mask_file_digests
from cellbench.data.mask_survey import MaskSurvey, survey_masks
from cellbench.data.options import DataOptions
from cellbench.data.table import Sample
from cellbench.data.views import needs_mask


class MaskSet:
    """Masks of a dataset: the meaning of the values in their files, and digests of them.

    No file is read before one of them is asked for, and then each is read once.

    Args:
        source: The dataset.
        options: Its options.
        samples: Its samples.
    """

    def __init__(
        self, source: DatasetHooks, options: DataOptions, samples: Sequence[Sample]
    ) -> None:
        self._source = source
        self._options = options
        self._samples = samples

    @cached_property
    def survey(self) -> MaskSurvey:
        """Survey of all mask files; it is kept on disk for later runs.

        Raises:
            UserError: The meaning of their values is not certain.
        """
        source, options = self._source, self._options
        if type(source).read_mask is not DatasetHooks.read_mask:
            return MaskSurvey()  # the dataset has its own files or none
        masked = [sample for sample in self._samples if source.has_mask(sample)]
        return survey_masks(
            [sample.mask for sample in masked if sample.mask is not None],
            [self._of_files[sample.id] for sample in masked],
            options.mask_values,
            options.mask_instance,
            options.cache,
            options.max_pixels,
        )

    @property
    def used(self) -> bool:
        """True if the view needs masks."""
        return needs_mask(self._options.view)

    @cached_property
    def digest(self) -> str:
        """Digest of the masks that the view uses; empty if it uses none."""
        return digest_masks(self.digests) if self.used else ""

    @cached_property
    def digests(self) -> dict[str, str]:
        """For each sample's id a text that is equal only for equal masks; empty without a mask."""
        if self._options.masks == "expert":
            return self._of_files
        segments = self._options.preprocessing.segments
        return dict.fromkeys((sample.id for sample in self._samples), segments)

    @cached_property
    def _of_files(self) -> dict[str, str]:
        """Digest of each sample's mask file, by the sample's id."""
        ids = (sample.id for sample in self._samples)
        return dict(zip(ids, mask_file_digests(self._source, self._samples), strict=True))
