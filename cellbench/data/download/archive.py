"""Unpacking an archive that somebody else has made: whole or not at all, and never outside."""

import errno
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path, PureWindowsPath
from typing import IO, Literal

from cellbench.utils.errors import UserError
from cellbench.utils.progress_bar import bar

_RATIO = 100
"""How many times its size an archive may unpack to: images are compressed already."""

_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, ValueError),
    RuntimeError,  # zipfile's: a password, or a compression that it does not know
)


def require_empty(root: Path) -> None:
    """Raise UserError if a folder is not empty."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} is there already; remove it, or give another folder as --to")


def unpack(archive: Path, root: Path, find: Callable[[Path], Path]) -> None:
    """Unpack a .zip, .tar or .tar.gz into a folder, whole or not at all.

    Args:
        archive: The file.
        root: The folder; it must be empty, or not be there.
        find: Gives what is to be in the root: the folder that it is given, or one below it. It
            raises UserError where neither is as it should be.

    Raises:
        UserError: The archive is damaged, reaches out of its folder, holds links or devices, is
            far larger than it seems, or `find` raises it.
        OSError: The folder cannot be written.
    """
    require_empty(root)
    beside = root.with_name(f".{root.name}.unpacked")
    shutil.rmtree(beside, ignore_errors=True)  # of a killed process
    try:
        _extract(archive, beside)
        find(beside).rename(root)
    except UserError as error:  # the user knows the archive alone
        raise UserError(str(error).replace(str(beside), str(archive))) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    try:
        with _open(archive) as file:
            members = _checked(archive, file, shutil.disk_usage(folder.parent).free)
            folder.mkdir()
            for member in bar(members, "unpacking"):
                member.write(folder)
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's; those of gzip and bz2 have no number
        raise UserError(f"cannot unpack {archive}: {error}; download it again") from error


_Kind = Literal["file", "folder", "link or device"]


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    kind: _Kind
    open: Callable[[], IO[bytes] | None]

    @property
    def path(self) -> PureWindowsPath:
        """The name by Windows' rules: both slashes part it, wherever the archive was made."""
        return PureWindowsPath(self.name)

    def write(self, folder: Path) -> None:
        path = folder.joinpath(*self.path.parts)
        if self.kind == "folder":
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        source = self.open()
        assert source is not None
        with source, path.open("xb") as file:
            shutil.copyfileobj(source, file)


def _checked(archive: Path, file: zipfile.ZipFile | tarfile.TarFile, free: int) -> list[_Member]:
    """Return the entries of an archive, all of which are safe to write."""
    members, size, most = [], 0, _RATIO * archive.stat().st_size
    files: set[str] = set()
    for member in _members(file):
        if member.path.anchor or ".." in member.path.parts:
            raise UserError(f"{archive} reaches out of its folder: {member.name!r}; do not use it")
        if member.kind == "link or device":
            raise UserError(f"{archive} holds a {member.kind}: {member.name!r}; do not use it")
        if member.kind == "file" and (str(member.path) in files or not member.path.parts):
            raise UserError(f"{archive} has {member.name!r} twice; download it again")
        files.add(str(member.path))
        members.append(member)
        size += member.size
        if size > most:
            raise UserError(f"{archive} unpacks to over {_RATIO} times its size; do not use it")
        if size > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return members


def _open(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    try:
        return tarfile.open(archive)
    except tarfile.ReadError:
        return zipfile.ZipFile(archive)


def _members(file: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    kind: _Kind
    if isinstance(file, zipfile.ZipFile):
        for entry in file.infolist():
            kind = "folder" if entry.filename.endswith(("/", "\\")) else "file"
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "link or device"
            yield _Member(entry.filename, entry.file_size, kind, partial(file.open, entry))
        return
    for info in file:
        if info.size < 0:  # tarfile would go back, for ever
            raise tarfile.ReadError("a negative size")
        kind = "file" if info.isreg() else "folder" if info.isdir() else "link or device"
        yield _Member(info.name, info.size, kind, partial(file.extractfile, info))
    # tarfile takes a damaged header for the end, but that is zeros; gzip's checksum is behind it.
    assert file.fileobj is not None
    file.fileobj.seek(file.offset)
    if file.fileobj.read(1 << 20)[:512] != bytes(512):
        raise tarfile.ReadError("it is cut short")
