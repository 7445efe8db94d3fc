"""Patterns that give the path of each image's mask: `data.mask_pattern`."""

import os
import posixpath
import string
from collections.abc import Iterator, Mapping

from cellbench.data.reading.listing import join, split_id
from cellbench.utils.errors import UserError

_FIELDS = ("path", "parent", "name", "stem")

BY_TABLE = "a table of the columns path, label and mask (data.csv)"
"""Remedy that names any masks."""


def check_pattern(pattern: str) -> None:
    """Check the fields of a pattern for masks.

    Raises:
        UserError: A field is not known, or there is none.
    """
    key = "data.mask_pattern"
    try:
        fields = list(string.Formatter().parse(pattern))
        if any(form or conversion for _, _, form, conversion in fields):
            raise ValueError("only names may stand between the braces")
        names = [name for _, name, _, _ in fields if name is not None]
    except ValueError as error:
        raise UserError(f"{key}: '{pattern}': {error}") from error
    allowed = ", ".join(f"{{{name}}}" for name in _FIELDS)
    for name in names:
        if name not in _FIELDS:
            raise UserError(f"{key}: '{pattern}' has {{{name}}}; allowed: {allowed}")
    if not {"path", "name", "stem"} & set(names):
        raise UserError(f"{key}: '{pattern}' is one path for all images; use {allowed}")


def expand(pattern: str, image: str) -> str:
    """Return the path of an image's mask by a pattern, below the root.

    Args:
        pattern: The path with the fields {path} (the image's path without suffix), {parent} (its
            folder), {name} (its name) and {stem} (its name without suffix).
        image: The image's id.
    """
    folder, name = split_id(image)
    stem = os.path.splitext(name)[0]
    return pattern.format(path=join(folder, stem), parent=folder or ".", name=name, stem=stem)


def find_pattern(pairs: Mapping[str, str]) -> str:
    """Return the options that name the masks of some images, for a message.

    Args:
        pairs: The mask of each image, both as ids.

    Returns:
        data.mask_pattern with a pattern, and another data.root if none fits below the present one;
        a table of the masks if there is no such pattern.
    """
    image = next(iter(pairs))
    top = image.split("/")[0]
    for root in ("", f"{top}/"):
        if not all(each.startswith(root) for each in pairs):
            break
        inner = {a.removeprefix(root): posixpath.relpath(b, root or ".") for a, b in pairs.items()}
        first = image.removeprefix(root)
        for pattern in _possible_patterns(first, inner[first]):
            if all(os.path.normpath(expand(pattern, a)) == b for a, b in inner.items()):
                option = f"data.mask_pattern: '{pattern}'"
                return f"data.root: .../{top} and {option}" if root else option
    return BY_TABLE


def _possible_patterns(image: str, mask: str) -> Iterator[str]:
    """Yield patterns that may give the mask of an image, the most general first."""
    path, folder = os.path.splitext(image)[0], split_id(image)[0]
    stem = split_id(path)[1]
    beside = posixpath.relpath(mask, folder or ".")
    for text, value, name in (
        (mask, path, "{path}"),
        (f"{{parent}}/{beside}", stem, "{stem}"),
        (mask, stem, "{stem}"),
    ):
        start, found, end = text.rpartition(value)
        if found and not {"{", "}"} & set(start.removeprefix("{parent}") + end):
            yield f"{start}{name}{end}"
