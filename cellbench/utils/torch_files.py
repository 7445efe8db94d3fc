"""torch files, written with a digest of their content and checked against it when read."""

import hashlib
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cellbench.utils.errors import UserError

DIGEST = "digest"
"""Key of a checkpoint's own digest."""


class Damaged(Exception):
    """A file whose content has changed since it was saved. The message says what is wrong."""


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint with its digest, ready to be saved.

    The digest shows damage, not tampering: anyone can recompute it.
    """
    return {**content, DIGEST: digest(content)}


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all names, values and tensors except the digest itself.

    It depends neither on the device nor on the way in which torch packs the file.
    """
    found = hashlib.sha256()
    for part in _parts({key: value for key, value in content.items() if key != DIGEST}):
        found.update(part)
    return found.hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    """Yield bytes that differ if two values differ."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        yield f"tensor {tensor.dtype} {tuple(tensor.shape)}\n".encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}\n".encode()
        for key, inner in value.items():
            yield from _parts(key)
            yield from _parts(inner)
    elif isinstance(value, list | tuple):
        yield f"sequence {len(value)}\n".encode()
        for inner in value:
            yield from _parts(inner)
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        yield f"{type(value).__name__} {value!r}\n".encode(errors="surrogatepass")
    else:  # its repr may hold an address; the file's own checksums guard it
        yield f"{type(value).__name__}\n".encode()


def read(path: Path, *, mapped: bool = False) -> Any:
    """Read a torch file without running code in it.

    torch itself does not check the checksums that it writes.

    Args:
        path: The file.
        mapped: Map large tensors into memory rather than copy them.

    Raises:
        Damaged: It is not a torch file, or it has changed since it was saved.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Damaged("it is not a regular file")
        archive = zipfile.is_zipfile(path)
        if archive:
            _check_sums(path)
        mmap = archive and mapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's about a file that is not its own
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if isinstance(content, dict) and DIGEST in content and content[DIGEST] != digest(content):
            raise Damaged("its content does not match its digest")
    except Damaged:
        raise
    except Exception as error:  # any error that a file of another kind causes in torch's reader
        raise Damaged("torch cannot read it") from error
    return content


def _check_sums(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # torch does not compress, so a compressed entry may unpack to more than any memory.
        plain = all(each.compress_type == zipfile.ZIP_STORED for each in entries)
        if not plain or sum(each.file_size for each in entries) > path.stat().st_size:
            raise Damaged("it is not packed as torch packs")
        if (name := archive.testzip()) is not None:
            raise Damaged(f"the checksum of its part '{name}' is wrong")


def check_finite(weights: Mapping[str, Any], source: str) -> None:
    """Refuse weights that are NaN or infinite, as every prediction from them would be NaN.

    Raises:
        UserError: A weight is NaN or infinite.
    """
    for name, value in weights.items():
        if isinstance(value, Tensor) and not torch.isfinite(value).all():
            raise UserError(
                f"the weights of {source} are not finite numbers ('{name}'), so neither are its "
                "predictions; take others, or train again with a lower model.lr"
            )
