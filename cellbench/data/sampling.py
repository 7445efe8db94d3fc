"""Batches of samples: a function of (seed, epoch) alone, on any number of devices."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler

POWERS = {"none": 1.0, "sqrt": 0.5, "balanced": 0.0}
"""Power of a class's size that its frequency in an epoch is proportional to.

none: an epoch shows every sample once.
sqrt: classes occur in proportion to the square root of their size.
balanced: all classes occur equally often.
"""

if TYPE_CHECKING:
    Balance = str
else:
    Balance = Literal[*POWERS]
"""Name of a power in `POWERS`."""


class SampleRequest(NamedTuple):
    """Request of a loader to the dataset for one image of a sample."""

    turn: int
    """Number of times that the sample has occurred before; its augmentation depends on it."""
    position: int
    """Position of the sample in the table."""
    synthetic: bool = False
    """True to blend the sample with another one."""


class BatchSampler(Sampler[list[SampleRequest]]):
    """Sampler of batches of requests, which tell workers the epoch with every sample.

    A dataset attribute would not do: persistent workers hold a copy and never see it change.

    Args:
        positions: The samples' positions in the table.
        batch_size: The largest number of samples in a batch, on all devices together. The batches
            of an epoch are of nearly equal size and none is dropped: a last batch of one sample
            would break batch norm.
        shard: This device's number and the number of devices; each gets its share of every batch.
        seed: With the epoch, decides the order; None keeps the given order.
        labels: Class indices of the samples, where each class has its quota.
        quotas: Number of samples of each class in an epoch; None for each sample once.
        synthetic: True to blend the images that a class lacks of its quota; False to repeat some.
    """

    def __init__(
        self,
        positions: np.ndarray,
        batch_size: int,
        shard: tuple[int, int] = (0, 1),
        seed: int | None = None,
        labels: np.ndarray | None = None,
        quotas: Sequence[int] | None = None,
        synthetic: bool = False,
    ) -> None:
        self._positions = positions
        length = len(positions) if quotas is None else sum(quotas)
        self._batches = -(-length // batch_size)
        self._rank, self._ranks = shard
        self._seed = seed
        self._classes: list[tuple[np.ndarray, int]] = []
        if labels is not None and quotas is not None:
            self._classes = [(positions[labels == i], quota) for i, quota in enumerate(quotas)]
        self._synthetic = synthetic
        self._epoch = 0
        self._skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls it at the start of each."""
        self._epoch = epoch

    def start_at(self, epoch: int, batch: int) -> None:
        """Start the next pass, and only that, at a batch of an epoch."""
        self._epoch, self._skipped = epoch, batch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        requests = self._epoch_requests()
        skipped, self._skipped = self._skipped, 0
        for batch in np.array_split(requests, self._batches)[skipped:]:
            yield [
                SampleRequest(int(turn), int(position), bool(synthetic))
                for turn, position, synthetic in batch[self._rank :: self._ranks]
            ]

    def _epoch_requests(self) -> np.ndarray:
        """Return the epoch's requests in order, (n, 3)."""
        if self._seed is None:
            return _requests(0, self._positions)
        generator = np.random.default_rng((self._seed, self._epoch))
        if not self._classes:
            return _requests(self._epoch, generator.permutation(self._positions))
        dealt = []
        for label, (own, quota) in enumerate(self._classes):
            if self._synthetic and quota > len(own):
                blended = self._deal(label, own, quota - len(own))
                blended[:, 2] = True
                dealt += [_requests(self._epoch, own), blended]
            else:
                dealt.append(self._deal(label, own, quota))
        return generator.permutation(np.concatenate(dealt))

    def _deal(self, label: int, own: np.ndarray, n: int) -> np.ndarray:
        """Return the epoch's n requests for a class, from an endless row of its permutations.

        Epochs take turns: no sample is repeated before all of its class have been used.
        """
        assert self._seed is not None
        first = self._epoch * n
        if not n:
            return _requests(0, own[:0])
        turns = np.arange(first // len(own), (first + n - 1) // len(own) + 1)
        rows = [
            _requests(
                int(turn), np.random.default_rng((self._seed, int(turn), label)).permutation(own)
            )
            for turn in turns
        ]
        start = first - int(turns[0]) * len(own)
        return np.concatenate(rows)[start : start + n]


def _requests(turn: int, positions: np.ndarray) -> np.ndarray:
    """Return requests for samples that are not synthetic, (n, 3)."""
    columns = [np.full_like(positions, turn), positions, np.zeros_like(positions)]
    return np.stack(columns, axis=1)


def quotas(sizes: Sequence[int], balance: Balance | int) -> list[int] | None:
    """Return the number of samples of each class in an epoch; None to show each once.

    Args:
        sizes: How many samples each class has.
        balance: Rule for the classes' frequencies, or the least number of samples of each class.
    """
    if balance == "none":
        return None
    if isinstance(balance, int):
        return [max(size, balance) for size in sizes]
    return _share(sum(sizes), sizes, balance)


def take_in_turn(positions: np.ndarray, labels: np.ndarray, n: int) -> list[int]:
    """Return at most n of some samples' positions, one of each class in turn.

    Args:
        positions: Positions in the table.
        labels: Class indices of the whole table.
        n: The largest number of positions.
    """
    of_class = [positions[labels[positions] == label] for label in np.unique(labels[positions])]
    turns = (position for turn in zip_longest(*of_class) for position in turn)
    return [int(position) for position in turns if position is not None][:n]


def _share(n: int, sizes: Sequence[int], balance: Balance) -> list[int]:
    """Apportion n samples to the classes by largest remainder."""
    rates = np.array(sizes, dtype=float) ** POWERS[balance]
    exact = n * rates / rates.sum()
    whole = np.floor(exact).astype(int)
    remainders = np.argsort(whole - exact, kind="stable")
    whole[remainders[: n - whole.sum()]] += 1
    return [int(quota) for quota in whole]
