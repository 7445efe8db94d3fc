"""Which samples make a batch: a function of (seed, epoch) alone, on any number of devices."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

Balance = Literal["none", "sqrt", "balanced"]
"""
none: an epoch shows every sample once.
sqrt: classes are drawn in proportion to the square root of their size.
balanced: all classes are drawn equally often.
"""

_POWER: dict[Balance, float] = {"none": 1.0, "sqrt": 0.5, "balanced": 0.0}

Key = tuple[int, int]
"""What a loader asks the dataset for: (turn, position in the table). A sample's turn says how often
it has been drawn before, so that each time it is augmented anew."""


class BatchSampler(Sampler[list[Key]]):
    """Yields batches of (turn, position), so that workers learn the epoch with every sample.

    A dataset attribute would not do: persistent workers hold a copy and never see it change.

    Args:
        positions: The samples' positions in the table.
        batch_size: The largest number of samples in a batch, on all devices together. The batches
            of an epoch are of nearly equal size and none is dropped: a last batch of one sample
            would break batch norm.
        shard: This device's number and the number of devices; each gets its share of every batch.
        seed: With the epoch, decides the order; None keeps the given order.
        labels: Class indices of the samples, where their classes are to be balanced.
        balance: How often each class is drawn.
    """

    def __init__(
        self,
        positions: np.ndarray,
        batch_size: int,
        shard: tuple[int, int] = (0, 1),
        seed: int | None = None,
        labels: np.ndarray | None = None,
        balance: Balance = "none",
    ) -> None:
        self._positions = positions
        self._batches = -(-len(positions) // batch_size)
        self._rank, self._ranks = shard
        self._seed = seed
        self._classes: list[np.ndarray] = []
        if labels is not None and balance != "none":
            self._classes = [positions[labels == label] for label in np.unique(labels)]
            self._draws = _quotas(len(positions), [len(own) for own in self._classes], balance)
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
        drawn = self._drawn()
        skipped, self._skipped = self._skipped, 0
        for batch in np.array_split(drawn, self._batches)[skipped:]:
            yield [
                (int(turn), int(position)) for turn, position in batch[self._rank :: self._ranks]
            ]

    def _drawn(self) -> np.ndarray:
        """The epoch's keys in order, (n, 2)."""
        positions = self._positions
        if self._seed is None:
            return np.stack([np.zeros_like(positions), positions], axis=1)
        generator = np.random.default_rng((self._seed, self._epoch))
        if not self._classes:
            positions = generator.permutation(positions)
            return np.stack([np.full_like(positions, self._epoch), positions], axis=1)
        dealt = [self._deal(label) for label in range(len(self._classes))]
        return generator.permutation(np.concatenate(dealt))

    def _deal(self, label: int) -> np.ndarray:
        """The epoch's keys of a class: the next of an endless row of its permutations.

        No sample is drawn again before all of its class have been, in whatever epoch.
        """
        assert self._seed is not None
        own, n = self._classes[label], self._draws[label]
        first = self._epoch * n
        turns = np.arange(first // len(own), (first + n - 1) // len(own) + 1)
        rows = [
            np.stack(
                [
                    np.full_like(own, turn),
                    np.random.default_rng((self._seed, int(turn), label)).permutation(own),
                ],
                axis=1,
            )
            for turn in turns
        ]
        start = first - int(turns[0]) * len(own)
        return np.concatenate(rows)[start : start + n]


def _quotas(n: int, sizes: list[int], balance: Balance) -> list[int]:
    """How many of n draws each class gets, by largest remainder."""
    rates = np.array(sizes, dtype=float) ** _POWER[balance]
    exact = n * rates / rates.sum()
    whole = np.floor(exact).astype(int)
    remainders = np.argsort(whole - exact, kind="stable")
    whole[remainders[: n - whole.sum()]] += 1
    return [int(quota) for quota in whole]
