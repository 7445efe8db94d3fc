"""How many processor cores there are for this process."""

import os

_share: int | None = None


def available() -> int:
    """The cores that this process may use: a scheduler often gives it few of the machine's."""
    if _share is not None:
        return _share
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit(share: int) -> None:
    """Leaves the others to the processes beside this one."""
    global _share  # torch's number of threads is as global
    _share = share
