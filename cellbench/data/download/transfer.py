"""Sources of datasets, and their download."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryFile
from textwrap import shorten
from threading import Event
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

from filelock import FileLock, Timeout

from cellbench.data.download.archive import require_empty
from cellbench.utils.atomic import replacing
from cellbench.utils.errors import UserError
from cellbench.utils.progress_bar import bar

PAUSES_S = (0.5, 1.0, 2.0)
"""Seconds before each retry of a broken transfer."""

_TIMEOUT_S = 20.0
"""Seconds that a server may be silent."""

_CONNECTIONS = 8


@dataclass(frozen=True, kw_only=True)
class OnRequest:
    """A dataset that only its owners hand out; the data module's `how_to_get` names them."""

    licence: str
    """Licence of the dataset, in a few words."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Files that are drawn and not downloaded."""

    licence: str
    """Licence of the files, in a few words."""
    draw: Callable[[Path], None]
    """Function that draws them below a folder."""

    def fetch(self, root: Path) -> Path:
        """Draw the files below a folder, which must be empty or missing; all of them or none.

        Returns:
            The folder.

        Raises:
            UserError: The folder has other files.
            OSError: A file cannot be written.
        """
        require_empty(root)
        beside = root.with_name(f".{root.name}.drawn")
        shutil.rmtree(beside, ignore_errors=True)  # of a killed process
        beside.mkdir()
        try:
            self.draw(beside)
            beside.rename(root)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return root


@dataclass(frozen=True, kw_only=True)
class GitHub:
    """Files of a GitHub repository, each known by its digest."""

    licence: str
    """Licence of the files, in a few words."""
    repository: str
    """Owner and name."""
    commit: str
    """Commit of the files."""
    checksums: Path
    """A file as `sha256sum` writes it: their digests, and their paths in the repository and below
    the root alike."""
    host: str = "https://raw.githubusercontent.com"
    """Server of the files."""

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of every file, by its path."""
        lines = self.checksums.read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}

    def missing(self, root: Path) -> list[str]:
        """Return the files that are missing below a folder.

        Raises:
            UserError: One is there with another content.
        """
        there = [name for name in self.digests if (root / name).exists()]
        for name in there:
            found = _sha256((root / name).read_bytes())
            if found != self.digests[name]:
                raise UserError(
                    f"{root / name} is not the published file: its SHA-256 is {found[:12]}…, "
                    f"expected {self.digests[name][:12]}…; restore or remove it"
                )
        return [name for name in self.digests if name not in there]

    def fetch(self, root: Path) -> Path:
        """Download the files that are missing below a folder, several at a time.

        Returns:
            The folder.

        Raises:
            UserError: The server does not give a file, gives another, or `missing` raises it.
            OSError: A file cannot be written.
        """
        names, stop = self.missing(root), Event()
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            try:
                done = pool.map(lambda name: self._download(name, root / name, stop), names)
                for _ in bar(done, "downloading", len(names)):
                    pass
            except BaseException:  # Ctrl-C as well: the files that have begun end, no other begins
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return root

    def _download(self, name: str, path: Path, stop: Event) -> None:
        url = f"{self.host}/{self.repository}/{self.commit}/{quote(name)}"
        content = _get(url, stop)
        found = _sha256(content)
        if found != self.digests[name]:
            raise UserError(
                f"{url} is not the published file: its SHA-256 is {found[:12]}…, expected "
                f"{self.digests[name][:12]}…; it was changed or cut short on the way"
            )
        with replacing(path) as beside:
            beside.write_bytes(content)


@dataclass(frozen=True, kw_only=True)
class Kaggle:
    """A dataset of Kaggle."""

    licence: str
    """Licence of the dataset, in a few words."""
    handle: str
    """Owner and name."""

    def fetch(self, root: Path) -> Path:
        """Download the dataset by kagglehub, which checks it and resumes a broken transfer.

        Returns:
            The folder; in a notebook of Kaggle or Colab that where they have it already.

        Raises:
            UserError: kagglehub is missing or does not get it, or the folder is not empty.
            OSError: The folder cannot be written.
        """
        require_empty(root)
        instead = (
            f"or download https://www.kaggle.com/datasets/{self.handle} in a browser, and give "
            "the file as --archive"
        )
        # On the disk of the root, so that the dataset is moved, not copied; kept until it is whole.
        beside = root.with_name(f".{root.name}.kaggle").absolute()
        os.environ["KAGGLEHUB_CACHE"] = str(beside)
        try:
            import kagglehub  # an extra: few need it
        except ImportError as error:
            raise UserError(
                f'Kaggle needs kagglehub: pip install "cellbench[kaggle]"; {instead}'
            ) from error
        try:
            path = Path(kagglehub.dataset_download(self.handle))
        except Exception as error:  # its own, those of requests, and the disk's share no class
            raise UserError(
                f"cannot get {self.handle} from Kaggle: {shorten(str(error), 300)}; check the "
                f"network, and the token of kaggle.com/settings if it asks for one; {instead}"
            ) from error
        if not path.is_relative_to(beside):
            return path
        path.rename(root)
        shutil.rmtree(beside)
        return root


Source = OnRequest | Drawn | GitHub | Kaggle
"""Source of a dataset."""


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Lock a folder against other fetches; name in one line the reason that it cannot be written.

    Raises:
        UserError: It cannot be written, or another fetch is at work.
    """
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=root.parent):  # the lock would take this error for another's lock
            pass
        with FileLock(root.with_name(f".{root.name}.lock"), timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"{root}: another fetch is at work there; wait for its end") from error
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or root}: {error.strerror or error}; what is whole is "
            "kept: make room, or give another folder as --to"
        ) from error


def _get(url: str, stop: Event) -> bytes:
    """Return the content of a URL; a transfer that breaks is repeated until `stop` is set."""
    pauses = iter(PAUSES_S)
    while True:
        try:
            with urlopen(url, timeout=_TIMEOUT_S) as response:
                content: bytes = response.read()
                return content
        except (OSError, HTTPException) as error:  # a URLError is an OSError
            pause = next(pauses, None)
            refused = isinstance(error, HTTPError) and error.code < 500 and error.code != 429
            if refused or pause is None or stop.wait(pause):
                why = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
                raise UserError(
                    f"cannot download {url}: {why}; what is whole is kept: check the network, and "
                    "give the same command again"
                ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
