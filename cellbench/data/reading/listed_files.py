"""Files below a folder that a table lists, found by their names as people write them."""

import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from cellbench.data.files import IMAGE_SUFFIXES
from cellbench.utils.errors import UserError, clip, clip_path

_FOREIGN_ABSOLUTE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
"""Beginning of an absolute path of Windows."""

_MASK_FOLDER = re.compile(r"(?:^|/)(?:masks?|seg[^/]*)/", re.IGNORECASE)
_HIDDEN_FOLDER = re.compile(r"(?:^|/)(?:\.|__MACOSX/|@eaDir/)")


class ListedFiles:
    """Files below a folder, by the names that a table gives them.

    Each folder is listed once, however long the table. A name may be absolute, or relative to the
    root, its parent or the table's folder; it may have backslashes, lack its suffix or its folder,
    or differ in case, as long as only one file fits.

    Args:
        root: Folder that every file must be in.
        table: The table's file, for messages and for names relative to it.
    """

    def __init__(self, root: Path, table: Path) -> None:
        self.ways: Counter[str] = Counter()
        """Number of names by the way in which they differ from the path below the root."""
        self._table = table
        self._root = os.path.abspath(root)
        self._real_root = os.path.realpath(root)
        self._bases = {
            "relative to the table's folder": os.path.dirname(os.path.abspath(table)),
            "relative to the root's parent": os.path.dirname(self._root),
        }
        self._names: dict[str, frozenset[str]] = {}
        self._links: set[str] = set()
        self._list_below()

    def find(self, name: str, *, mask: bool = False) -> str | None:
        """Return a file's POSIX path below the root; None if there is no such file.

        Args:
            name: Its name in the table.
            mask: True for a mask, which may be named relative to the folder `masks`.

        Raises:
            UserError: It leaves the root, or several files fit.
        """
        if _FOREIGN_ABSOLUTE.match(name) and os.name != "nt":
            raise self._leaves(name)
        if "\\" in name and not self._is_file(name):
            return self._find(name, name.replace("\\", "/"), "with backslashes", mask)
        return self._find(name, name, "", mask)

    def _find(self, name: str, path: str, way: str, mask: bool) -> str | None:
        if ".." in path and ".." in path.split("/"):
            return self._find_upwards(name, path, way)
        path = posixpath.normpath(path)
        if not mask and self._is_file(path):
            self._count(way)
            return self._checked(name, path)
        places = list(self._places(name, path, mask))
        for found, place in places:
            if self._is_file(found):
                self._count(way, place)
                return self._checked(name, found)
        for found, place in places:
            for index, lacking in (
                (self._by_path, "in another case"),
                (self._by_stem, "no suffix"),
            ):
                if match := self._choose(name, index.get(_key(found), []), found):
                    self._count(way, place, lacking)
                    return match
        if "/" in path:
            return None
        for index, lacking in ((self._by_name, ""), (self._by_bare_stem, "no suffix")):
            candidates = index.get(_key(path), [])
            if mask:
                candidates = [each for each in candidates if _MASK_FOLDER.search(each)]
            if match := self._choose(name, candidates, path):
                self._count(way, "no folder", lacking)
                return match
        return None

    def _find_upwards(self, name: str, path: str, way: str) -> str | None:
        """Return the file that a path with `..` leads to, from the table's folder or the root.

        Raises:
            UserError: It leads out of the root.
        """
        bases = (self._bases["relative to the table's folder"], self._root)
        below = [self._below_root(os.path.normpath(os.path.join(base, path))) for base in bases]
        if not any(below):
            raise self._leaves(name)
        for found in filter(None, below):
            if self._is_file(found):
                self._count(way, "with ..")
                return self._checked(name, found)
        return None

    def images(self) -> list[str]:
        """Return the image files below the root but those in folders of masks and hidden ones."""
        return [path for path in self._images if not _MASK_FOLDER.search(path)]

    def has_others(self, ids: Iterable[str]) -> bool:
        """Return True if there are further image files below the root than some."""
        return not set(ids).issuperset(self._images)

    def left(self, used: Iterable[str]) -> Counter[str]:
        """Return the number of files that are not used, by suffix, without the table itself.

        Args:
            used: The paths below the root of those that are.
        """
        rest = set(self._paths())
        rest.difference_update(used)
        rest.discard(self._below_root(os.path.abspath(self._table)) or "")
        names = (path.rpartition("/")[2] for path in rest)
        return Counter(os.path.splitext(name)[1].lower() or name for name in names)

    def _count(self, *ways: str) -> None:
        if any(ways):
            self.ways[", ".join(filter(None, ways))] += 1

    def _places(self, name: str, path: str, mask: bool) -> Iterator[tuple[str, str]]:
        """Yield the paths below the root that a path may stand for, each with the reason."""
        if os.path.isabs(path):
            below = self._below_root(path)
            if below is None:
                raise self._leaves(name)
            yield below, "absolute"
            return
        if mask:  # before the root, where an image may have the same name
            yield f"masks/{path}", "relative to masks"
        yield path, ""
        for place, base in self._bases.items():
            below = self._below_root(os.path.join(base, path))
            if below not in (None, path):
                yield below, place

    def _below_root(self, path: str) -> str | None:
        for root in (self._root, self._real_root):
            start = root if root.endswith(os.sep) else root + os.sep
            if path.startswith(start):
                return posixpath.normpath(path[len(start) :].replace(os.sep, "/"))
        return None

    def _list_below(self) -> None:
        """List all folders that can be reached without following a link."""
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            waiting += self._list(folder)

    def _list(self, folder: str) -> list[str]:
        """Remember the files in a folder below the root; return the folders in it."""
        start = f"{folder}/" if folder else ""
        names, folders = [], []
        try:
            with os.scandir(os.path.join(self._root, folder)) as entries:
                for entry in entries:
                    is_link = entry.is_symlink()
                    if is_link:
                        self._links.add(start + entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(start + entry.name)
                    elif os.path.isfile(entry.path) if is_link else entry.is_file():
                        names.append(entry.name)
        except (OSError, ValueError):  # not a folder, not readable, or the name is too long
            pass
        self._names[folder] = frozenset(names)
        return folders

    def _is_file(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if path.startswith("/"):
            return False
        if folder not in self._names:  # it does not exist, or is behind a link
            self._list(folder)
            if self._names[folder]:
                self._links.update(f"{folder}/{each}" for each in self._names[folder])
        return name in self._names[folder]

    def _checked(self, name: str, path: str) -> str:
        """Return a path below the root, unless it is a link out of it."""
        if path in self._links:
            real = os.path.realpath(os.path.join(self._root, path))
            if not real.startswith(os.path.join(self._real_root, "")):
                raise self._leaves(name)
        return path

    def _leaves(self, name: str) -> UserError:
        return UserError(
            f"{clip_path(self._table)}: '{clip(name, 60)}' leaves the dataset's folder; give a "
            "path below data.root"
        )

    def _choose(self, name: str, candidates: list[str], exact: str) -> str | None:
        """Return the only candidate; None if there is none.

        Raises:
            UserError: There are several.
        """
        if len(candidates) > 1:  # first those in the same case, then those that are not masks
            candidates = [each for each in candidates if exact in each] or candidates
        if len(candidates) > 1:
            candidates = [
                each for each in candidates if not _MASK_FOLDER.search(each)
            ] or candidates
        if len(candidates) > 1:
            raise UserError(
                f"{clip_path(self._table)}: '{clip(name)}' may be '{clip(candidates[0])}' or "
                f"'{clip(candidates[1])}'; give the path below data.root, with its suffix"
            )
        return self._checked(name, candidates[0]) if candidates else None

    def _paths(self) -> Iterator[str]:
        for folder, names in self._names.items():
            for name in names:
                yield f"{folder}/{name}" if folder else name

    @cached_property
    def _images(self) -> list[str]:
        """Image files that are not in hidden folders, sorted."""
        return sorted(
            path
            for path in self._paths()
            if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES
            and not _HIDDEN_FOLDER.search(path)
        )

    @cached_property
    def _by_path(self) -> dict[str, list[str]]:
        return _index(self._images, lambda path: path)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _index(self._images, lambda path: os.path.splitext(path)[0])

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _index(self._images, os.path.basename)

    @cached_property
    def _by_bare_stem(self) -> dict[str, list[str]]:
        return _index(self._images, lambda path: os.path.splitext(os.path.basename(path))[0])


def _key(name: str) -> str:
    """Return a name without case and form of its characters: macOS writes é as two of them."""
    return (name if name.isascii() else unicodedata.normalize("NFC", name)).casefold()


def _index(paths: Iterable[str], name_of: Callable[[str], str]) -> dict[str, list[str]]:
    """Return the paths by the keys of a part of them."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(_key(name_of(path)), []).append(path)
    return found
