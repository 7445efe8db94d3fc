"""Large sets: table and splits of many images; the audit; the originals of augmented copies."""

import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from cellbench.audit.audit import audit
from cellbench.data.cache import CacheConfig
from cellbench.data.datasets.blood_cells import BloodCellsDataModule
from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.duplicates.registration import Index, find_keypoints, fit, to_compare
from cellbench.data.splits import SplitConfig, draw
from tests.benchmarks.measure import apart, spread
from tests.conftest import SHARED

REPETITIONS = 3
IMAGES, AUDITED = 100_000, 5_000
COPIES = 1_800


def draw_images(root: Path, n: int) -> None:
    """Images of 32x32 in four class folders, every hundredth a copy of another."""

    def one(i: int) -> None:
        rng = np.random.default_rng(i // 100 * 100 if i % 100 == 99 else i)
        image = np.full((32, 32, 3), 220, np.uint8)
        x, y, radius = rng.integers((10, 10, 5), (22, 22, 10)).tolist()
        cv2.circle(image, (x, y), radius, rng.integers(60, 200, 3).tolist(), -1)
        noisy = np.clip(image + rng.normal(0, 8, image.shape), 0, 255)
        cv2.imwrite(str(root / "abcd"[i % 4] / f"{i:06d}.png"), noisy.astype(np.uint8))

    for name in "abcd":
        (root / name).mkdir()
    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(n)))


def table_and_splits(root: str, n: int) -> tuple[float, float]:
    """Seconds and MiB of the table of n images, their digests, and a split of each protocol."""
    begun = time.perf_counter()
    data = FolderDataModule(root=Path(root))
    assert len(data.table) == n
    for protocol in ("grouped", "image"):
        draw(data.table, SplitConfig(protocol=protocol))
    seconds = time.perf_counter() - begun
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def audit_it(root: str, cache: str) -> tuple[float, float]:
    """Seconds and MiB of an audit."""
    begun = time.perf_counter()
    audit(FolderDataModule(root=Path(root), cache=CacheConfig(folder=Path(cache))), [])
    seconds = time.perf_counter() - begun
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def recognise(n: int) -> tuple[float, list[float]]:
    """Images a second whose originals are found; the share of one core's time by step."""
    with tempfile.TemporaryDirectory() as cache:
        data = BloodCellsDataModule(
            root=SHARED / "blood_cells", cache=CacheConfig(folder=Path(cache))
        )
        copies = data._in_folders(data._images / "TRAIN", [c.upper() for c in data.classes])
        data.find_copies(data._originals())
        chosen = copies[:: max(1, len(copies) // n)]
        begun = time.perf_counter()
        found = list(data._matched(chosen))
        rate = len(found) / (time.perf_counter() - begun)
        originals = data._originals()
    known = [find_keypoints(to_compare(data.read_image(sample))) for sample in originals]
    index = Index([keypoints.descriptors for keypoints in known])
    seconds = np.zeros(4)
    for sample in chosen[:: max(1, len(chosen) // 100)]:
        times = [time.perf_counter()]
        grey = to_compare(data.read_image(sample))
        times.append(time.perf_counter())
        keypoints = find_keypoints(grey)
        times.append(time.perf_counter())
        votes = index.votes(keypoints.descriptors)
        times.append(time.perf_counter())
        fit(keypoints, known[int(votes.argmax())])
        times.append(time.perf_counter())
        seconds += np.diff(times)
    return rate, (100 * seconds / seconds.sum()).tolist()


def measure() -> Iterator[tuple[str, str]]:
    """Yields rows of the table: what, and its figure."""
    with tempfile.TemporaryDirectory() as folder:
        draw_images(Path(folder), IMAGES)
        runs = [apart(table_and_splits, folder, IMAGES) for _ in range(REPETITIONS)]
        seconds, memory = zip(*runs, strict=True)
        yield f"{IMAGES:,} images of 32 px: table, digests and two splits, s", spread(seconds, 1)
        yield "  peak memory, MiB", spread(memory, 0)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        draw_images(Path(folder), AUDITED)
        first, again = apart(audit_it, folder, cache), apart(audit_it, folder, cache)
        yield (
            f"audit of {AUDITED:,} images of 32 px, s; again, s",
            f"{first[0]:.0f}; {again[0]:.0f}",
        )
        yield "  peak memory, MiB", f"{first[1]:,.0f}"
    if not SHARED.is_dir():
        return
    rates, shares = zip(*(apart(recognise, COPIES) for _ in range(REPETITIONS)), strict=True)
    what = f"originals of {COPIES:,} real blood cells: images a second, 2 threads"
    yield what, spread(rates, 0)
    read, keypoints, votes, fits = np.median(shares, axis=0)
    yield (
        "  share of the time, %: reading, keypoints, look-up, fit",
        f"{read:.0f}, {keypoints:.0f}, {votes:.0f}, {fits:.0f}",
    )
