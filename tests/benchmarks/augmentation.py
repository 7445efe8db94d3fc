"""Augmentation alone: the images that one core feeds, without decoding or copying to a device."""

import time
from collections.abc import Iterator

from cellbench.data.augment import Augmentation
from cellbench.data.datasets.synthetic import SyntheticDataModule
from tests.benchmarks.measure import apart, spread

SIZE, IMAGES, REPETITIONS = 96, 2000, 3
POLICIES = ("geometric", "strong")


def rate(policy: str) -> float:
    """Images per second of one core's time, so that other processes on the core do not matter."""
    data = SyntheticDataModule(samples=64, slides=16, image_size=SIZE)
    images = [data.read_image(sample) for sample in data.list_samples()]
    augment = Augmentation(policy, (SIZE, SIZE))
    start = time.process_time()
    for number in range(IMAGES):
        augment(images[number % len(images)], None, (0, 0, number))
    return IMAGES / (time.process_time() - start)


def measure() -> Iterator[tuple[str, str]]:
    """Yield rows of the table: what is measured, and its figure."""
    for policy in POLICIES:
        rates = [apart(rate, policy) for _ in range(REPETITIONS)]
        yield (
            f"augmentation, {SIZE} px, `{policy}`: images per second of one core",
            spread(rates, 0),
        )
