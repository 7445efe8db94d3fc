"""How many processor cores there are for this process."""

import os


def available() -> int:
    """The cores that this process may use: a scheduler often gives it few of the machine's."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
