"""The input path alone: 12,000 JPEGs of 320x240 to augmented images of 224 px."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from cellbench.data.augment import Augmentation
from cellbench.data.cache import CacheConfig
from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.data.splits import SplitConfig
from tests.benchmarks.measure import apart, spread
from tests.conftest import SHARED

IMAGES, SIZE, WORKERS, REPETITIONS = 12_000, 224, 2, 3
POLICIES = ("flips", "geometric", "strong")


def make_images(root: Path) -> str:
    """Writes the JPEGs, in four class folders, and says what they were made of.

    The real images of blood_cells where they are, else drawn cells; each in several copies,
    turned and brightened, so that no two files are equal.
    """
    real = sorted((SHARED / "blood_cells").rglob("_*.jpeg"))
    if real:
        sources = [cv2.imread(str(path)) for path in real]
    else:
        data = SyntheticDataModule(samples=600)
        drawn = (data.read_image(sample) for sample in data.list_samples())
        sources = [cv2.resize(image[..., ::-1], (320, 240)) for image in drawn]

    def write(number: int) -> None:
        image = sources[number % len(sources)]
        copy = number // len(sources)
        image = cv2.convertScaleAbs(cv2.flip(image, copy % 4 - 1), alpha=1, beta=copy)
        path = root / str(number % 4) / f"{number:05d}.jpg"
        assert cv2.imwrite(str(path), cv2.resize(image, (320, 240)))

    for label in range(4):
        (root / str(label)).mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(IMAGES)))
    return "real cells" if real else "drawn cells"


def data_module(root: Path, cache: Path, policy: str) -> FolderDataModule:
    return FolderDataModule(
        root=root,
        image_size=SIZE,
        batch_size=64,
        augment=policy,
        num_workers=WORKERS,
        split=SplitConfig(test=0.01, val=0.01),
        cache=CacheConfig(folder=cache),
    )


def set_up(root: Path, cache: Path) -> float:
    """Seconds until the data are ready to be trained on."""
    begun = time.perf_counter()
    data_module(root, cache, "none").setup("fit")
    return time.perf_counter() - begun


def rate_and_memory(root: Path, cache: Path, policy: str) -> tuple[float, float, float]:
    """Images a second of the second epoch, and the MiB of this process and of the whole tree."""
    data = data_module(root, cache, policy)
    data.setup("fit")
    data.plan = data.plan_loading("cpu", 1)
    loader = data.train_dataloader()
    for _ in loader:
        pass
    loader.sampler.set_epoch(1)
    begun, n = time.perf_counter(), 0
    for batch in loader:
        n += len(batch.labels)
    seconds = time.perf_counter() - begun
    workers = [process.pid for process in multiprocessing.active_children()]
    return n / seconds, private_mib(os.getpid()), sum(map(private_mib, [os.getpid(), *workers]))


def private_mib(pid: int) -> float:
    """Resident memory that is not of the file cache; pages of several processes are divided."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return (sizes["Pss_Anon"] + sizes["Pss_Shmem"]) / 1024


def naive_rate(root: Path) -> float:
    """Images a second of one core that decodes and resizes each image in every epoch."""
    data = data_module(root, root, "strong")
    augment = Augmentation("strong", data.input_size)
    paths = sorted(root.rglob("*.jpg"))[:600]
    begun = time.perf_counter()
    for number, path in enumerate(paths):
        image, _ = data.preprocessing.prepare(cv2.imread(str(path))[..., ::-1], None, "")
        augment(np.ascontiguousarray(image), None, (0, 0, number))
    return len(paths) / (time.perf_counter() - begun)


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its figure."""
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder, "images"), Path(folder, "cache")
        what = make_images(root)
        first, again = apart(set_up, root, cache), apart(set_up, root, cache)
        yield f"{IMAGES:,} JPEGs of {what}: first set-up against later ones", f"{first / again:.1f}"
        naive = apart(naive_rate, root)
        for policy in POLICIES:
            measured = [apart(rate_and_memory, root, cache, policy) for _ in range(REPETITIONS)]
            rates = [rate for rate, _, _ in measured]
            what = f"input path, {SIZE} px, `{policy}`, {WORKERS} workers: images a second"
            yield what, spread(rates, 0)
            per_core = [rate / WORKERS / naive for rate in rates]
            yield "  a core, against decoding and `strong` in every epoch", spread(per_core)
        own, tree = (spread([m[i] for m in measured], 0) for i in (1, 2))
        yield (
            "  memory without the file cache, MiB: main process; with its workers",
            f"{own}; {tree}",
        )
