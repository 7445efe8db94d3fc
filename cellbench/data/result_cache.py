"""On-disk cache of expensive results per image, computed in batches."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from joblib import cpu_count

from cellbench.data.cache import CacheConfig
from cellbench.utils.atomic import replacing
from cellbench.utils.progress_bar import bar

Found = dict[str, np.ndarray]
"""What is found of one image: arrays of any length, the same names for every image."""

_TOGETHER = 256


def for_each(
    what: str,
    identities: Sequence[str],
    begin: Callable[[], Callable[[int], Found]],
    cache: CacheConfig,
) -> list[Found]:
    """Compute a result for every image, in threads, or take it from an earlier call.

    A call that is interrupted loses the last few hundred images at most.

    Args:
        what: What is sought, a word for the bar and the files' names.
        identities: For each image a text that is equal only where what is found is equal.
        begin: Gives what finds it of the image at a position; called once, if anything is sought.
        cache: Where it is kept.

    Raises:
        UserError: It cannot be kept.
    """
    batches = [
        range(start, min(start + _TOGETHER, len(identities)))
        for start in range(0, len(identities), _TOGETHER)
    ]
    found: list[Found] = []
    find: Callable[[int], Found] | None = None
    with ThreadPoolExecutor(cpu_count()) as pool, _one_thread_each():
        for batch in bar(batches, what):
            key = json.dumps([what, cv2.__version__, [identities[i] for i in batch]])
            digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
            path = cache.path / f"{digest}.{what.replace(' ', '_')}.npz"
            known = _load(path, len(batch))
            if known is None:
                find = find or begin()
                known = list(pool.map(find, batch))
                _save(path, known, cache)
            found += known
    return found


def _save(path: Path, found: Sequence[Found], cache: CacheConfig) -> None:
    arrays: dict[str, Any] = {}
    for name in found[0]:
        arrays[name] = np.concatenate([each[name] for each in found])
        arrays[f"{name} of each"] = np.array([len(each[name]) for each in found])
    size = sum(array.nbytes for array in arrays.values())
    with cache.writing(size, "make room there"), replacing(path) as new, new.open("wb") as file:
        np.savez(file, **arrays)


def _load(path: Path, n: int) -> list[Found] | None:
    """Return the results of n images in a file; None if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {
                name: np.split(file[name], np.cumsum(file[f"{name} of each"])[:-1])
                for name in file
                if f"{name} of each" in file
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if any(len(each) != n for each in parts.values()):
        return None
    return [{name: each[i] for name, each in parts.items()} for i in range(n)]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Limit OpenCV to one thread per thread of ours, which would compete otherwise."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
