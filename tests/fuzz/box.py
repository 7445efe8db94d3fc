"""Runs one input in a process and a folder of its own, and judges what came of it."""

import atexit
import faulthandler
import fcntl
import hashlib
import multiprocessing
import os
import re
import resource
import runpy
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.watch import CANARY, FOLLOWED, READ, hook, snapshot

LIMIT = 10.0
"""Seconds after which an input hangs. Waiting for a processor does not count."""

GRACE = 10.0
"""Seconds that a command has to end once it was told to."""

LONGEST = 300
"""Characters of an error message."""

MEMORY = 1536
"""MiB that an input may take beyond what the imports take."""

SPACE = 4096
"""MiB of addresses that a process can have beyond that; more is refused by the system."""

FILE = 256
"""MiB of the largest file that an input can write."""

_MAY_FAIL = (["audit"], ["fetch"], ["export"], ["sweep"])
"""Commands whose exit code 1 has a meaning."""

SECRET_FILE = "outside/secret.txt"
"""The file beside the working folder that some inputs name."""

SECRET = "not-for-any-page-7c1f"
"""What the files beside the working folder hold."""

IMPORTED = " was imported"
"""What a module writes into the canary when it is imported."""

ERROR = "cellbench: error: "

_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]"
)

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
"""Changes the colour or the weight of the text, and nothing else of a terminal."""

_OF_JSONARGPARSE = "--print_config \b[=flags]"
"""A backspace in every help that jsonargparse writes."""

# Files that a command may change although it fails: locks, where a run went on, and what a sweep
# knows so far.
_CHANGING = re.compile(
    r"(^|/)(\.lock|environment\.json|[^/]*\.log|\.place|study\.[^/]*|trials\.csv|sweep\.yaml|best\.yaml)$"
)


@dataclass
class Input:
    """A command line, and what was written into the working folder for it."""

    kind: str
    """The row of the table that it counts in."""
    what: str
    """What is odd about it, in words."""
    args: list[str]
    """The command line behind `python -m cellbench`."""
    number: int = -1
    """Its number within the campaign; with the seed it decides everything about the input."""
    good: bool = False
    """Nothing is wrong with it: the exit code must be 0."""
    refused: bool = False
    """It must not be accepted: the exit code must be 2."""
    may_last: bool = False
    """It may rightly work for long, as a training of a million epochs, and ends at SIGTERM then."""
    own_code: bool = False
    """It is the user's own: it may name modules, which are imported, and files, which are read.

    A run's folder, a table or an archive may come from somebody else, and may not.
    """
    room: int | None = None
    """Bytes of its output that the system lets it write, and no more."""
    network: bool = False
    """It asks for something from the network."""
    colours: bool = False
    """The user asked for colours, wherever the output goes."""
    limit: float = LIMIT
    """Seconds that it may take."""
    prepare: Callable[[], None] | None = None
    """Is called in the process, before the command."""
    check: Callable[[Path, "Outcome"], str | None] | None = None
    """Looks at the working folder afterwards, and says what is wrong."""


@dataclass
class Outcome:
    """What an input has led to."""

    code: int
    """The exit code; below 0 for the signal that has killed the process."""
    seconds: float
    """Wall-clock time without the time that the process waited for a processor."""
    work: float
    """Seconds of a processor."""
    memory: int
    """The greatest resident size, MiB."""
    out: str
    """Standard output."""
    err: str
    """Standard error."""
    told: bool = False
    """It was still at work at its limit, and was told to end."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    """Each fault's name, and the details."""


Command = Callable[[Sequence[str]], None]
"""What is run in the process."""


def program(args: Sequence[str]) -> None:
    """Runs `python -m cellbench ARGS` in this process.

    Two things differ: a sweep's workers are forked from this process, as a fork server of their own
    would import for ten seconds; and a run on several devices is not started.
    """
    from cellbench.cli.execution import running
    from cellbench.sweeps import workers
    from tests.conftest import last_of_each

    workers._context = multiprocessing.get_context("fork")  # type: ignore[assignment]
    workers.warm_up = lambda modules: None
    running.launch = lambda args, processes: 0
    sys.argv = ["cellbench", *last_of_each(args)]
    with suppress(FileNotFoundError):
        sys.path.insert(0, os.getcwd())
    sys.modules.pop("cellbench.__main__", None)  # else runpy warns
    runpy.run_module("cellbench", run_name="__main__", alter_sys=True)


class Box:
    """A folder for one input: `work` to run in, `home`, `tmp`, and `outside`, which is not its own.

    Args:
        parent: Where the folder is made.
    """

    def __init__(self, parent: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="box-", dir=parent))
        self.folder.chmod(0o755)
        for path in (self.work, self.home, self.tmp, self.outside):
            path.mkdir()
        (self.folder / SECRET_FILE).write_text(SECRET)
        self._pid = 0
        self._told = 0.0
        self._waited = 0.0

    @property
    def work(self) -> Path:
        """The working folder, which the generators fill."""
        return self.folder / "work"

    @property
    def home(self) -> Path:
        """The user's folder."""
        return self.folder / "home"

    @property
    def tmp(self) -> Path:
        """For temporary files."""
        return self.folder / "tmp"

    @property
    def outside(self) -> Path:
        """Files of somebody else."""
        return self.folder / "outside"

    def start(self, given: Input, command: Command = program) -> None:
        """Begins the process."""
        self._input = given
        self._begun = time.monotonic()
        self._base = _resident()
        self._before = snapshot(self.outside)
        self._secret_is_named = given.own_code and self._is_named(given, SECRET_FILE)
        self._digests = {} if given.good else _digests(self.work)
        self._pid = os.fork()
        if not self._pid:
            _be_the_process(self, given, command)

    def poll(self) -> Outcome | None:
        """Gives the outcome once the process has ended; ends it where its time is over."""
        pid, status, used = os.wait4(self._pid, os.WNOHANG)
        if pid:
            seconds = time.monotonic() - self._begun - self._waited
            self._end_others()
            return self._judge(os.waitstatus_to_exitcode(status), seconds, used)
        passed = time.monotonic() - self._begun - self._waited
        if passed > self._input.limit:
            self._waited = max([_waited(self._pid), *map(_waited, self._others())])
            passed = time.monotonic() - self._begun - self._waited
        if not self._told and passed > self._input.limit:
            self._told = time.monotonic()
            os.kill(self._pid, signal.SIGUSR2)  # writes where it is
            time.sleep(0.05)
            os.kill(self._pid, signal.SIGTERM)
        elif self._told and time.monotonic() - self._told > GRACE:
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
        return None

    def run(self, given: Input, command: Command = program) -> Outcome:
        """Runs one input to its end."""
        self.start(given, command)
        while (outcome := self.poll()) is None:
            time.sleep(0.005)
        return outcome

    def end(self) -> None:
        """Kills the process."""
        self._end_others()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def remove(self) -> None:
        """Deletes the folder, whatever lies in it."""
        for parent, folders, _ in os.walk(self.folder):
            for name in folders:
                path = os.path.join(parent, name)
                if not os.path.islink(path):
                    os.chmod(path, 0o755)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_named(self, given: Input, path: str) -> bool:
        """Return whether the command line, or a configuration beside it, names a file."""
        configs = (_text(each) for each in self.work.glob("*.yaml") if each.is_file())
        return any(path in text for text in (*given.args, *configs))

    def _end_others(self) -> None:
        """Kills what the process has left behind: all that works below the box."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        for pid in self._others():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _others(self) -> Iterator[int]:
        """The processes that work below the box."""
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with suppress(OSError):
                    if os.readlink(f"/proc/{entry.name}/cwd").startswith(f"{self.folder}/"):
                        yield int(entry.name)

    def _judge(self, code: int, seconds: float, used: resource.struct_rusage) -> Outcome:
        given = self._input
        outcome = Outcome(
            code,
            seconds,
            used.ru_utime + used.ru_stime,
            max(used.ru_maxrss // 1024 - self._base, 0),
            _text(self.folder / "stdout"),
            _text(self.folder / "stderr"),
            bool(self._told),
        )
        faults = list(_of_process(given, outcome, _text(self.folder / "stack")))
        faults += list(_of_output(given, outcome))
        secret = os.path.realpath(self.folder / SECRET_FILE)
        for line in dict.fromkeys(_text(self.folder / "events").splitlines()):
            name, _, detail = line.partition("\t")
            allowed = {"network": given.network, FOLLOWED: given.own_code}
            read_as_named = self._secret_is_named and detail == ascii(f"{READ}{secret}")
            if not allowed.get(name) and not read_as_named:
                faults.append((name, detail))
        ran = _text(self.folder / CANARY).splitlines()
        if given.own_code:
            ran = [line for line in ran if not line.endswith(IMPORTED)]
        faults += [("code run", line) for line in ran]
        if snapshot(self.outside) != self._before:
            faults.append(("file outside", "a file of somebody else was changed"))
        known = {"work", "home", "tmp", "outside", "stdout", "stderr", "stack", "events", CANARY}
        strange = sorted(set(os.listdir(self.folder)) - known)
        if strange:
            faults.append(("file outside", strange[0]))
        if code != 0:
            lost = sorted(
                name
                for name, digest in self._digests.items()
                if not _CHANGING.search(name) and _digest(self.work / name) != digest
            )
            if lost:
                faults.append(("lost", f"{lost[0]} was changed by a command that failed"))
        if given.check is not None and (wrong := given.check(self.work, outcome)):
            faults.append(("accepted", wrong))
        outcome.faults = list(dict.fromkeys(faults))
        return outcome


def _of_process(given: Input, outcome: Outcome, stack: str) -> Iterator[tuple[str, str]]:
    """How the process ended."""
    code = outcome.code
    if outcome.told:
        if not (given.may_last and code == 128 + signal.SIGTERM):
            where = re.findall(r'File "([^"]+)", line (\d+) in (\w+)', stack)
            own = next((w for w in where if "/cellbench/" in w[0]), where[0] if where else None)
            yield "hang", "nowhere" if own is None else ":".join(own)
        return
    if code < 0:
        yield "killed", signal.Signals(-code).name
    elif code not in (0, 1, 2) and code <= 128:
        yield "exit code", str(code)
    elif code == 1 and given.args[:1] not in _MAY_FAIL and "Traceback" not in outcome.err:
        yield "exit code", "1"
    if given.good and code != 0:
        yield "exit code", f"{code} for a good input: {outcome.err[-300:]}"
    if given.refused and code == 0:
        yield "accepted", given.what
    if outcome.memory > MEMORY:
        yield "memory", f"{outcome.memory} MiB"


def _of_output(given: Input, outcome: Outcome) -> Iterator[tuple[str, str]]:
    """What the process has said."""
    if given.room is not None and len(outcome.err) >= given.room:
        return  # a line is cut off
    if "Traceback (most recent call last)" in outcome.err + outcome.out:
        said = outcome.err if "Traceback" in outcome.err else outcome.out
        yield "traceback", last_frame(said)
    elif "Exception ignored" in outcome.err:
        yield "traceback", outcome.err[outcome.err.index("Exception ignored") :][:200]
    lines = [line for line in outcome.err.splitlines() if line.startswith(ERROR)]
    if outcome.code == 2 and outcome.err and len(lines) != 1:
        yield "no one line", outcome.err[-200:]
    for line in lines:
        if len(line) > LONGEST + len(ERROR):
            yield "long line", f"{len(line)} characters: {line[:120]}..."
    if outcome.code == 2 and lines and not outcome.err.endswith(lines[-1] + "\n"):
        yield "no one line", f"more behind it: {outcome.err[-200:]!r}"
    for text in (outcome.out, outcome.err):
        text = text.replace(_OF_JSONARGPARSE, "")
        if given.colours:
            text = _COLOUR.sub("", text)
        if "Traceback" not in text and (found := _CONTROL.search(text)):
            yield "control character", repr(text[max(found.start() - 60, 0) : found.end() + 20])
    if SECRET in outcome.out + outcome.err:
        yield "file outside", "its content was shown"


def last_frame(text: str) -> str:
    """Where an error was raised: the last line of cellbench's own, and the error."""
    shown = text[text.rindex("Traceback (most recent call last)") :]
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', shown)
    own = [frame for frame in frames if "/cellbench/" in frame[0]] or frames
    errors = re.findall(r"^(?!\s|Traceback)(\S.*)$", shown, re.MULTILINE)
    place = ""
    if own:
        path, line, function = own[-1]
        place = f"{path.rpartition('/cellbench/')[2]}:{line} {function}: "
    return place + (errors[-1][:200] if errors else "")


def _be_the_process(box: Box, given: Input, command: Command) -> None:
    """Becomes the process of an input, and never returns."""
    code = 70
    try:
        os.setsid()
        out, err = (
            os.open(box.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
            for name in ("stdout", "stderr")
        )
        events = _high(os.open(box.folder / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        stack = _high(os.open(box.folder / "stack", os.O_WRONLY | os.O_CREAT))
        null = os.open(os.devnull, os.O_RDONLY)
        for number, source in enumerate((null, out, err)):
            os.dup2(source, number)
        os.closerange(3, 200)
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.disable()
        faulthandler.register(signal.SIGUSR2, file=stack, all_threads=False)
        atexit._clear()
        os.umask(0o022)
        os.chdir(box.work)
        os.environ |= {
            "HOME": str(box.home),
            "XDG_CACHE_HOME": str(box.home / ".cache"),
            "TMPDIR": str(box.tmp),
            "TORCHINDUCTOR_CACHE_DIR": str(box.tmp / "inductor"),
            "COLUMNS": "100",
        }
        tempfile.tempdir = None
        space = _addresses() + SPACE * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE * 2**20, FILE * 2**20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (120, 120))

        def tell(name: str, detail: str) -> None:
            line = f"{name}\t{detail!a}"[:500]
            os.write(events, f"{line}\n".encode())

        folders = [box.work, box.home, box.tmp, box.folder / CANARY, *LIBRARIES]
        writable = [*folders, Path("/dev/null"), Path("/dev/shm")]
        if given.prepare is not None:
            given.prepare()
        sys.addaudithook(hook(tell, writable, box.outside))
        code = _code_of(command, given.args)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _code_of(command: Command, args: Sequence[str]) -> int:
    """Runs a command as the interpreter does: the exit code of the process."""
    try:
        command(args)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        if sys.stderr is not None:
            traceback.print_exc()
        code = 1
    with suppress(Exception):
        atexit._run_exitfuncs()
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError as error:
        if sys.stderr is not None:
            with suppress(OSError):
                print(f"Exception ignored in: {sys.stdout!r}\n{error!r}", file=sys.stderr)
        code = 120
    return code


LIBRARIES: list[Path] = []
"""Caches of libraries, which no input decides."""


def _high(descriptor: int) -> int:
    """Moves a file's descriptor out of the way of what the process opens and closes."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 200)
    os.close(descriptor)
    return moved


def _waited(pid: int) -> float:
    """Seconds that a process was ready and had no processor: its thread that waited longest."""
    longest = 0
    with suppress(OSError, IndexError, ValueError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            longest = max(longest, int((thread / "schedstat").read_text().split()[1]))
    return longest / 1e9


def _resident() -> int:
    """This process' resident size without mapped files, which a fork has not; MiB."""
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) >> 10


def _addresses() -> int:
    """This process' size in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4 << 20).decode(errors="surrogateescape")
    except OSError:
        return ""


def _digests(folder: Path) -> Mapping[str, bytes]:
    found = {}
    for parent, _, files in os.walk(folder):
        for name in files:
            path = Path(parent, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                found[str(path.relative_to(folder))] = _digest(path)
    return found


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return b""
