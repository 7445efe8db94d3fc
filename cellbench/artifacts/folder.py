"""Files of a run, each written whole or not at all."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from cellbench.config import keys, yaml
from cellbench.utils import atomic
from cellbench.utils.errors import CannotWrite, UserError
from cellbench.utils.untrusted import inside, read_bytes


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, and move the file there once it is on the disk.

    Raises:
        CannotWrite: The file cannot be written; a file that was at `path` before is untouched.
    """
    try:
        with atomic.replacing(path) as beside:
            yield beside
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file; bytes of file names that are not valid UTF-8 are written escaped.

    Raises:
        CannotWrite: It cannot be written.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def as_yaml(config: Mapping[str, Any]) -> str:
    """Return the text of a config.yaml."""
    return yaml.dump(dict(config))


_NAMES = (
    *("config.yaml", "environment.json", "metrics.json", ".lock"),
    *("attributions.csv", "history.csv", "label_history.csv", "predictions.csv", "split.csv"),
    *("checkpoints", "export", "figures", "predict", "tensorboard", "test", "validate", "wandb"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "figures/attributions.png"),
)
"""Files and folders that cellbench makes in a run's folder; all others are the user's."""


@dataclass(frozen=True)
class RunFolder:
    """Files of one run. The folder may have been downloaded, so no path may lead out of it."""

    path: Path
    """The folder."""

    @classmethod
    def create(cls, parent: Path) -> "RunFolder":
        """Make a folder below `parent`, named by the time, and by a number if that name is taken.

        Raises:
            CannotWrite: It cannot be made.
        """
        now = time.strftime("%Y-%m-%d_%H-%M-%S")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for number in count(1):
                path = parent / (now if number == 1 else f"{now}-{number}")
                with suppress(FileExistsError):
                    path.mkdir()
                    return cls(path)
        except OSError as error:
            raise CannotWrite(
                f"--runs: cannot make a folder in {parent}: {error.strerror}; give one that can be "
                "written"
            ) from error
        raise AssertionError

    def make(self) -> None:
        """Make the folder, unless it exists.

        Raises:
            CannotWrite: It cannot be made.
        """
        if self.path.is_file():
            raise CannotWrite(f"cannot make the folder {self.path}: it is a file; give another")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(f"cannot make the folder {self.path}: {error.strerror}") from error

    def discard(self) -> None:
        """Remove the folder of a run that never began, and its parent if that is empty."""
        shutil.rmtree(self.path)
        with suppress(OSError):
            self.path.parent.rmdir()

    def tidy(self) -> None:
        """Remove files that killed processes left half written; the caller must hold the lock."""
        for folder in (self.path, self.best.parent, self.below("figures")):
            atomic.remove_left(folder, everywhere=True)

    def check(self) -> None:
        """Make sure that none of cellbench's files is a link that leads out of the folder.

        Raises:
            UserError: One is, or is neither a file nor a folder.
        """
        for name in _NAMES:
            self.below(name)

    @property
    def unfinished(self) -> bool:
        """True if a run has begun here and has not been scored."""
        return self.config.is_file() and not self.metrics.is_file()

    def has_config(self, config: Mapping[str, Any]) -> bool:
        """Return True if config.yaml holds this configuration; a damaged file holds none.

        Options that have been removed since config.yaml was written do not count, unless they
        decide the result.
        """
        with suppress(UserError):
            expected = as_yaml(config).encode(errors="backslashreplace")
            content = read_bytes(self.config, yaml.MAX_BYTES)
            if content == expected:
                return True
            stored = yaml.parse(content, str(self.config))
            if not isinstance(stored, dict) or keys.depends_on_removed(stored):
                return False
            keys.drop_removed(stored)
            return as_yaml(stored).encode(errors="backslashreplace") == expected
        return False

    @classmethod
    def open(cls, path: Path, option: str = "--run") -> "RunFolder":
        """Open the folder of an existing run.

        Args:
            path: The folder.
            option: Option that the folder was given by, for errors.

        Raises:
            UserError: It is not a run's folder, or a file in it is a link that leads out of it.
        """
        folder = cls(path)
        folder.check()
        if not folder.config.is_file():
            what = "is a file" if path.is_file() else "does not exist"
            if path.is_dir():
                inside = [*path.glob("*/config.yaml"), *path.glob("trials/*/config.yaml")]
                runs = sorted(str(inner.parent.relative_to(path)) for inner in inside)
                what = f"has no config.yaml; runs in it: {', '.join(runs[-3:]) or 'none'}"
            raise UserError(f"{option}: {path} is not a run's folder: it {what}")
        return folder

    @property
    def config(self) -> Path:
        """Path of the whole configuration."""
        return inside(self.path, "config.yaml")

    @property
    def lock(self) -> Path:
        """Path of the lock of the process that writes to the folder."""
        return inside(self.path, ".lock")

    @property
    def split(self) -> Path:
        """Path of the table of the samples, with the part of the split that each is in."""
        return inside(self.path, "split.csv")

    @property
    def history(self) -> Path:
        """Path of the losses and metrics, one row per epoch."""
        return inside(self.path, "history.csv")

    @property
    def label_history(self) -> Path:
        """Path of the probability of each training image's label, one column per epoch."""
        return inside(self.path, "label_history.csv")

    @property
    def predictions(self) -> Path:
        """Path of the probability of each class for each validation and test sample."""
        return inside(self.path, "predictions.csv")

    @property
    def metrics(self) -> Path:
        """Path of the metrics, each with n, interval and baseline."""
        return inside(self.path, "metrics.json")

    @property
    def environment(self) -> Path:
        """Path of the description of machine, versions and command."""
        return inside(self.path, "environment.json")

    @property
    def best(self) -> Path:
        """Path of the weights of the best epoch."""
        return inside(self.path, "checkpoints", "best.ckpt")

    @property
    def last(self) -> Path:
        """Path of the whole state of the training when it was last saved."""
        return inside(self.path, "checkpoints", "last.ckpt")

    def figure(self, name: str) -> Path:
        """Return the path of a figure."""
        return inside(self.path, "figures", f"{name}.png")

    @property
    def attributions(self) -> Path:
        """Path of the shares of the attribution in each region of each test image."""
        return inside(self.path, "attributions.csv")

    @property
    def tests(self) -> list[Path]:
        """Paths of the metrics.json of each later test, the oldest first."""
        return sorted(self.below("test").glob("*/metrics.json"))

    def tested(self, name: str) -> "RunFolder":
        """Return the folder of a later test of the run, by its name."""
        return RunFolder(self.below("test", name))

    def below(self, *parts: str) -> Path:
        """Return a path below the folder."""
        return inside(self.path, *parts)
