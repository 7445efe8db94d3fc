"""Confidence of the automatic masks of a whole dataset."""

from collections.abc import Sequence

import numpy as np

from cellbench.data import result_cache, segmentation
from cellbench.data.cache import CacheConfig
from cellbench.data.hooks import DatasetHooks
from cellbench.data.table import SampleTable
from cellbench.utils.errors import UserError

NAMED = 5
"""Number of doubtful masks that a note names."""


def measure_confidence(source: DatasetHooks, table: SampleTable, cache: CacheConfig) -> np.ndarray:
    """Return the confidence of each sample's automatic mask, (n,), 0 to 1.

    It is NaN where no cell is found. Results are kept on disk: a second call is fast.

    Args:
        source: The dataset.
        table: Its samples.
        cache: Storage of the results.

    Raises:
        UserError: Results cannot be cached.
    """

    def measure(i: int) -> result_cache.Found:
        """Return the confidence of one image's mask, (1,)."""
        try:
            found = segmentation.segment_with_confidence(source.read_image(table.samples[i]))
        except UserError:
            return {"confidence": np.array([np.nan])}
        return {"confidence": np.array([found.confidence])}

    how = f"{segmentation.FORMAT} {source.image_format.identity}"
    identities = [f"{how} {content}" for content in table.fingerprints]
    results = result_cache.for_each("judging masks", identities, lambda: measure, cache)
    return np.concatenate([each["confidence"] for each in results])


def find_doubtful(confidence: np.ndarray) -> list[int]:
    """Return the positions of the doubtful masks, the least certain first."""
    order = np.argsort(confidence, kind="stable")
    return [int(i) for i in order if confidence[i] < segmentation.DOUBTFUL]


def describe_doubtful(ids: Sequence[str], n: int) -> str:
    """Return a note on doubtful masks, with the option that leaves their images out.

    Args:
        ids: Their ids, the least certain first; at least one.
        n: Number of all masks.
    """
    named = list(ids[:NAMED])
    which = "them" if len(ids) == len(named) else f"the {NAMED} least certain"
    return (
        f"automatic masks: {len(ids)} of {n} doubtful (confidence below {segmentation.DOUBTFUL}); "
        f'audit lists all; to exclude {which}: --data.exclude "{named}"'
    )
