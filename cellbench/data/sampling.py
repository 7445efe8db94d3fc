"""The order of the samples: a function of (seed, epoch) alone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]
"""What a loader asks the dataset for: (epoch, position in the table)."""


class BatchSampler(Sampler[list[Key]]):
    """Yields batches of (epoch, position), so that workers learn the epoch with every sample.

    A dataset attribute would not do: persistent workers hold a copy and never see it change.

    Args:
        positions: The samples' positions in the table.
        batch_size: The largest number of samples in a batch. The batches of an epoch are of nearly
            equal size and none is dropped: a last batch of one sample would break batch norm.
        seed: With the epoch, decides the order; None keeps the given order.
    """

    def __init__(self, positions: np.ndarray, batch_size: int, seed: int | None = None) -> None:
        self._positions = positions
        self._batches = -(-len(positions) // batch_size)
        self._seed = seed
        self._epoch = 0
        self._skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self._epoch = epoch

    def start_at(self, epoch: int, batch: int) -> None:
        """Makes the next pass, and only that, begin at a batch of an epoch, to go on from there."""
        self._epoch, self._skipped = epoch, batch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[Key]]:
        positions = self._positions
        if self._seed is not None:
            positions = np.random.default_rng((self._seed, self._epoch)).permutation(positions)
        skipped, self._skipped = self._skipped, 0
        for batch in np.array_split(positions, self._batches)[skipped:]:
            yield [(self._epoch, int(position)) for position in batch]
