"""List of the files in a folder: images, others, and what no user has put there."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cellbench.data.files import IMAGE_SUFFIXES
from cellbench.utils.errors import UserError, counted

SYSTEM = "hidden, or left by a system or a program"
THUMBNAILS = "in folders of thumbnails"
OTHER_FORMATS = "in a format that is not read as an image"
LINKS = "links to folders that are listed under their own names"

_SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "@recycle", "@tmp", "$recycle.bin", "recycler"),
        *("lost+found", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        *("icon\r", "__pycache__", "picasa.ini", "@recently-snapshot", "network trash folder"),
    }
)
_THUMBNAIL_NAMES = frozenset({"thumbs", "thumbnails", "thumbnail", "_thumbs"})
_MAX_DEPTH = 64


@dataclass
class Listing:
    """Files below a folder, by the folders that hold them.

    Folders are relative POSIX paths, empty for the root itself; files are named without them.
    """

    root: Path
    """The folder that was listed."""
    images: dict[str, list[str]] = field(default_factory=dict)
    """Image files of each folder, sorted; only folders that have some."""
    others: dict[str, list[str]] = field(default_factory=dict)
    """Other files of each folder, sorted; only folders that have some."""
    folders: dict[str, list[str]] = field(default_factory=dict)
    """Names of the folders in each folder, sorted; every folder has an entry."""
    filled: set[str] = field(default_factory=set)
    """Folders that held an image or another file when they were listed."""
    unreadable: list[str] = field(default_factory=list)
    """Ids of images that are broken links, pipes or devices."""
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    """Files that are never samples: for each reason, their numbers by suffix."""

    def leave_out(self, reason: str, name: str, n: int = 1) -> None:
        """Count a file that is not a sample."""
        self.left_out.setdefault(reason, Counter())[suffix_of(name)] += n

    def below(self, folder: str) -> Iterator[str]:
        """Yield a folder and all folders below it, sorted."""
        yield folder
        for name in self.folders.get(folder, ()):
            yield from self.below(join(folder, name))

    def ids(self, folder: str = "") -> Iterator[str]:
        """Yield the ids of all images below a folder."""
        for each in self.below(folder):
            for name in self.images.get(each, ()):
                yield join(each, name)

    def count(self, folder: str) -> int:
        """Return the number of images below a folder."""
        return sum(len(self.images.get(each, ())) for each in self.below(folder))

    def holders(self, folder: str) -> list[str]:
        """Return the folders directly in a folder that have an image below them."""
        paths = [join(folder, name) for name in self.folders.get(folder, ())]
        return [path for path in paths if self.has_images(path)]

    def has_images(self, folder: str) -> bool:
        """Return True if there is an image below a folder."""
        return any(each in self.images for each in self.below(folder))

    def check_names(self) -> None:
        """Check that all images have names that a table can hold.

        Raises:
            UserError: A name is not UTF-8.
        """
        for path in self.ids():
            try:
                path.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{path!r} in {self.root} is not a UTF-8 name, which no table can hold; rename "
                    "it"
                ) from error

    def remove(self, folder: str, names: set[str]) -> None:
        """Remove images of a folder from the list."""
        kept = [name for name in self.images[folder] if name not in names]
        if kept:
            self.images[folder] = kept
        else:
            del self.images[folder]


def list_folder(root: Path, key: str = "data.root") -> Listing:
    """List all files below a folder; links to folders below the same root are not followed.

    Args:
        root: The folder.
        key: The option that names it, for errors.

    Raises:
        UserError: A folder cannot be listed, or a link leaves the root.
    """
    found = Listing(root)
    real_root = os.path.realpath(root)
    outside: list[str] = []
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        inside: list[str] = []
        images: list[str] = []
        others: list[str] = []
        for entry in _entries(root / folder):
            name, path = entry.name, join(folder, entry.name)
            reason = _junk(name)
            if reason is not None:
                _count_junk(found, reason, entry)
                continue
            linked = entry.is_symlink()
            if linked and _leaves(entry, real_root):
                outside.append(path)
                continue
            if _is_folder(entry):
                if linked:
                    found.leave_out(LINKS, name)
                else:
                    inside.append(name)
            elif is_image(name):
                images.append(name)
                if not _is_file(entry):
                    found.unreadable.append(path)
            else:
                others.append(name)
        found.folders[folder] = sorted(inside)
        if images:
            found.images[folder] = sorted(images)
        if others:
            found.others[folder] = sorted(others)
        if images or others:
            found.filled.add(folder)
        if folder.count("/") > _MAX_DEPTH:
            raise UserError(f"{root}: '{folder}' is more than {_MAX_DEPTH} folders deep")
        waiting += [join(folder, name) for name in inside]
    if outside:
        raise UserError(
            f"{key}: '{outside[0]}' is a link that leaves {root} "
            f"({counted(len(outside), 'such link')}); put copies there (cp -rL), or give the "
            "folder that it leads to"
        )
    return found


def join(folder: str, name: str) -> str:
    """Return a relative POSIX path; the folder may be empty."""
    return f"{folder}/{name}" if folder else name


def split_id(path: str) -> tuple[str, str]:
    """Return the folder, empty for the root, and the name of a relative POSIX path."""
    folder, _, name = path.rpartition("/")
    return folder, name


def stem_of(name: str) -> str:
    """Return a file's name without its suffix, of which `.ome.tif` is one."""
    stem = os.path.splitext(name)[0]
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def suffix_of(name: str) -> str:
    """Return the lower-case suffix of a file's name; of a name such as .DS_Store the whole."""
    return os.path.splitext(name)[1].lower() or (name if name.startswith(".") else "")


def is_image(name: str) -> bool:
    """Return True for the name of a file that is read as an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def same_name(name: str) -> str:
    """Return a text that is equal for names that differ only by case, blanks or Unicode form."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror or error}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a cycle of links
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a cycle of links
        return False


def _leaves(link: os.DirEntry[str], real_root: str) -> bool:
    """Return True for a link to an image or a folder that is not below the root."""
    target = os.path.realpath(link.path)
    if not (os.path.isdir(target) or (is_image(link.name) and os.path.isfile(target))):
        return False
    return not _is_below(target, real_root)


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _junk(name: str) -> str | None:
    """Return the reason why a file or folder is never read; None if it may be."""
    lower = name.lower()
    if lower.startswith(".") or lower in _SYSTEM_NAMES:
        return SYSTEM
    return THUMBNAILS if lower in _THUMBNAIL_NAMES else None


def _count_junk(found: Listing, reason: str, entry: os.DirEntry[str]) -> None:
    """Count a file, or all files of a folder, that are never read."""
    if not entry.is_dir(follow_symlinks=False):
        found.leave_out(reason, entry.name)
        return
    for _, _, names in os.walk(entry.path):
        for name in names:
            found.leave_out(reason, name)
