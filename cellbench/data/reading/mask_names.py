"""Names of masks and of the folders that hold them."""

import os
import re
from collections.abc import Iterator
from functools import lru_cache

from cellbench.data.reading.listing import join, split_id

_MASK_WORDS = frozenset(
    {
        *("mask", "masks", "msk", "msks", "seg", "segs", "segmentation", "segmentations"),
        *("segmented", "label", "labels", "annotation", "annotations", "gt", "groundtruth"),
        *("groundtruths", "ground", "truth", "instances", "maske", "masken", "segmentierung"),
    }
)
"""Words in the name of a folder of masks."""

_IMAGE_WORDS = frozenset(
    {
        *("image", "images", "img", "imgs", "raw", "original", "originals", "picture"),
        *("pictures", "photo", "photos"),
    }
)
"""Words in the name of a folder of the images that such masks belong to."""

_MASK_KINDS = frozenset(
    {
        *("class", "classes", "object", "objects", "instance", "binary", "bin", "cell", "cells"),
        *("nucleus", "nuclei", "cyto", "cytoplasm", "png", "tif", "tiff", "bmp", "npy"),
    }
)
"""Words that say more of a folder of masks."""

_IMAGE_KINDS = frozenset({"jpeg", "jpg", "png", "tif", "tiff", "bmp", "tissue", "rgb"})
"""Words that say more of a folder of images."""

DERIVED_FOLDERS = frozenset({"overlay", "overlays", "outline", "outlines", "flows", "previews"})
"""Names of folders of pictures that are made of the images."""

_WORD = r"(?:masks?|seg(?:mentation)?|labels?|gt|ground[-_ ]?truth|annotations?)"

_AFTER = re.compile(rf"(.+?)[-_. ]?(?<![a-z])({_WORD})(?:[-_. ]?\d+)?", re.IGNORECASE)

_BEFORE = re.compile(rf"({_WORD})(?: of)?[-_. ](.+)", re.IGNORECASE)

DERIVED_NAME = re.compile(
    r"(.+?)[-_. ](?:(?:cp[-_. ])?outlines?(?:[-_. ]cp[-_. ]masks)?|cp[-_. ]output|overlays?"
    r"|contours?|flows?|thumb(?:nail)?s?)",
    re.IGNORECASE,
)

_QUALIFIER = re.compile(
    r"(.+)[-_. ](?:cp|cells?|nucle(?:us|i)|cyto(?:plasm)?|bin(?:ary)?|instances?|simple)",
    re.IGNORECASE,
)


def describe_places(image: str) -> str:
    """Return the usual places of masks, for an image that has none."""
    path, folder = os.path.splitext(image)[0], split_id(image)[0]
    stem = split_id(path)[1]
    return f"looked for {join(folder, stem)}_mask.*, masks/{path}.* and the like"


def named_as_images(name: str) -> bool:
    """Return True for the name of a folder of all images, such as `JPEGImages`."""
    return not without_words(name, loosely=True) and not named_as_masks(name)


def named_as_masks(name: str) -> bool:
    """Return True for the name of a folder that may hold masks."""
    return not _MASK_WORDS.isdisjoint(_words(name))


def bare_stems(stem: str) -> Iterator[tuple[str, str]]:
    """Yield the stems of images whose mask a file may be by its name, with the way of naming."""
    if match := _AFTER.fullmatch(stem):
        bare = match[1].rstrip("-_. ")
        yield bare, f"X{stem[len(bare) :]}"
        if inner := _QUALIFIER.fullmatch(bare):
            yield inner[1], f"X{stem[len(inner[1]) :]}"
    if match := _BEFORE.fullmatch(stem):
        yield match[2], f"{stem[: -len(match[2])]}X"


@lru_cache(maxsize=4096)  # each folder holds many files
def canonical(folder: str, *, loosely: bool = False) -> tuple[str, ...]:
    """Return the parts of a path without the words that tell masks from images.

    Args:
        folder: The path.
        loosely: True to drop the words that say more of masks or images as well.
    """
    parts = (without_words(part, loosely=loosely) for part in folder.split("/"))
    return tuple(part for part in parts if part)


def without_words(name: str, *, loosely: bool = False) -> str:
    """Return a folder's name without the words of `canonical`; empty if it has no others."""
    words = set(_words(name))
    dropped = words & (_MASK_WORDS | _IMAGE_WORDS)
    if not dropped:
        return name
    if loosely and words & _MASK_WORDS:
        dropped |= _MASK_KINDS
    if loosely and words & _IMAGE_WORDS:
        dropped |= _IMAGE_KINDS
    return "_".join(word for word in _words(name) if word not in dropped)


def _words(name: str) -> list[str]:
    """Return the words in a name, in lower case: `SegmentationClass` and `rawimages` have two."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    parts = re.sub(r"(?<=[a-z])(?=(?:images|masks)\b)", " ", parts)
    return re.findall(r"[^\W_]+", parts.lower())
