"""What SMOTE adds to an epoch of the input path: memory and time."""

import resource
import time
from collections.abc import Iterator

from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.data.smote import SmoteConfig
from tests.benchmarks.measure import apart, ratios, spread

IMAGES, SIZE, REPETITIONS = 2000, 256, 3


def epoch(smote: bool) -> tuple[float, float, int]:
    """Peak memory in MiB, seconds an image, and the images of an epoch of the training split."""
    data = SyntheticDataModule(
        samples=IMAGES, image_size=SIZE, smote=SmoteConfig() if smote else None
    )
    data.setup("fit")
    data.plan = data.plan_loading("cpu", 1)
    begun = time.perf_counter()
    shown = sum(len(batch.labels) for batch in data.train_dataloader())
    seconds = (time.perf_counter() - begun) / shown
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds, shown


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its figure."""
    epoch_plain = [apart(epoch, False) for _ in range(REPETITIONS)]
    epoch_smote = [apart(epoch, True) for _ in range(REPETITIONS)]
    (_, _, plain), (_, _, filled) = epoch_plain[0], epoch_smote[0]
    what = f"an epoch of {plain:,} images of {SIZE} px, filled up to {filled:,} by SMOTE"
    above = [b[0] - a[0] for a, b in zip(epoch_plain, epoch_smote, strict=True)]
    yield f"{what}: memory above that of one without, MiB", spread([max(m, 0) for m in above], 0)
    seconds = ([run[1] for run in epochs] for epochs in (epoch_smote, epoch_plain))
    yield "  time an image, against one without", ratios(*seconds)
