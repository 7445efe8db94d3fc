"""Watches a process from inside: its writes, the programs that it starts, its connections."""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LURE = "lure"
"""Files whose names begin with this must never be read."""

FOLLOWED = "followed"
"""The fault of an input by which such a file is read."""

READ = "read "
"""Begins the details of a file outside that was opened for reading."""

CANARY = "canary"
"""The file that hostile code writes when it runs."""

FORKS = 32
"""Processes that one input may fork."""

PROGRAMS = frozenset({"git", "uname", "lscpu", "nvidia-smi", "ldconfig"})
"""Programs that cellbench, Python or a library asks about the machine."""

LIBRARIES = (
    os.path.join("torch", "_inductor", "compile_worker"),
    "import sys, json; print(json.dumps(sys.path))",  # typeshed_client, for jsonargparse
)
"""Parts of command lines by which libraries start Python for themselves."""

_WANDB = find_spec("wandb")
SENDER = os.path.join(os.path.dirname((_WANDB and _WANDB.origin) or ""), "bin", "wandb-core")
"""The installed program by which wandb sends: it counts as use of the network."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# The position of the path, and that of the folder's descriptor, in an event's arguments.
_CHANGES = {
    "os.mkdir": (0, 2),
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
    "os.rename": (1, 3),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.truncate": (0, None),
    "os.chmod": (0, 2),
    "os.chown": (0, 3),
}

_STARTS = frozenset(
    {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "webbrowser.open"}
)


def hook(
    tell: Callable[[str, str], None], writable: Sequence[Path], secret: Path
) -> Callable[[str, tuple[Any, ...]], None]:
    """Makes an audit hook that reports, and prevents, what no input may cause.

    Args:
        tell: Is given the name of a fault and what happened.
        writable: The folders and files that may be written.
        secret: A folder that must not be read.

    Returns:
        A function for `sys.addaudithook`.
    """
    allowed = [os.path.realpath(path) for path in writable]
    forbidden = os.path.realpath(secret)
    forks = 0

    def inside(path: str) -> bool:
        return any(path == each or path.startswith(each + os.sep) for each in allowed)

    def check(given: Any, folder: int | None, *, followed: bool) -> None:
        path = _absolute(given, folder, followed=followed)
        if path is not None and not inside(path) and not os.path.isdir(path):
            tell("file outside", path)
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        nonlocal forks
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & _WRITES:
                check(path, None, followed=True)
            elif (opened := _absolute(path, None, followed=True)) is not None:
                name = os.path.basename(os.fsdecode(path))
                if opened.startswith(forbidden):
                    tell("file outside", f"{READ}{opened}")
                elif name.startswith(LURE):
                    tell(FOLLOWED, opened)
        elif event in _CHANGES:
            position, folder = _CHANGES[event]
            check(args[position], None if folder is None else args[folder], followed=False)
        elif event in _STARTS:
            program = str(args[0])
            in_box = os.sep in program and inside(os.path.realpath(program))
            known = os.path.basename(program) in PROGRAMS and not in_box
            by_library = any(part in str(args[1:2]) for part in LIBRARIES)
            if program == SENDER:
                tell("network", program)
            elif not known and not by_library:
                tell("code run", f"{event} {args[0]} {str(args[1:2])[:200]}")
        elif event == "os.fork":
            forks += 1
            if forks > FORKS:
                tell("too many processes", str(forks))
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        elif event == "socket.connect" and isinstance(args[1], tuple):
            tell("network", str(args[1]))

    return audit


def _absolute(given: Any, folder: int | None, *, followed: bool) -> str | None:
    """A path without links; None for a descriptor, and for what is no name of a file."""
    try:
        path = os.fsdecode(given)
        if folder is not None and folder >= 0:
            path = os.path.join(f"/proc/self/fd/{folder}", path)
        if followed:
            return os.path.realpath(path)
        parent, name = os.path.split(path.rstrip(os.sep))
        return os.path.join(os.path.realpath(parent), name)
    except (TypeError, ValueError, OSError):
        return None


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Each file's kind, size and time of change, by its path below a folder."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            state = os.lstat(path)
            size = 0 if stat.S_ISDIR(state.st_mode) else state.st_size
            changed = 0 if stat.S_ISDIR(state.st_mode) else state.st_mtime_ns
            found[os.path.relpath(path, folder)] = (stat.S_IFMT(state.st_mode), size, changed)
    return found
