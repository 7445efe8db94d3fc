"""Unlabelled images, read and prepared batch by batch, however many there are."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from cellbench.data import files
from cellbench.data.dataset import Batch
from cellbench.data.mask_files import MASK_SUFFIXES, read_mask
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.views import Image, apply_view, needs_mask
from cellbench.utils.errors import UserError, counted

_MASKS = "masks"
"""Folder in a folder of images that holds their masks, as FolderDataModule has it."""


class UnlabelledImages(Dataset[Batch]):
    """Image files without labels; the item of a list of positions is a batch, labels -1.

    An image that cannot be read, or cannot be prepared for the view, is blank in its batch and
    listed in `unreadable`.

    Args:
        images: Folders and single files. All image files below a folder are taken, except those
            that are masks of others; a single file is taken whatever its name.
        masks: Folder of the masks, which may be that of the images; None without masks. The mask
            of `FOLDER/a/b.jpg` is `masks/a/b.png`, that of a single `any/b.jpg` is `masks/b.png`.
            Other suffixes of `MASK_SUFFIXES` are taken too, unless the file is among the images.
        preprocessing: The preprocessing of the training.
        max_pixels: Largest image or mask that is decoded, in pixels.

    Raises:
        UserError: A file or folder is missing or a folder cannot be listed, there is no image, an
            image lacks the mask that the view needs, or two would have the same; or masks are given
            and would change nothing.
    """

    def __init__(
        self,
        images: Sequence[Path],
        masks: Path | None,
        preprocessing: Preprocessing,
        max_pixels: int = files.MAX_PIXELS,
    ) -> None:
        self._preprocessing = preprocessing
        self._max_pixels = max_pixels
        if masks is not None and not masks.is_dir():
            raise UserError(f"--masks: there is no folder {masks}")
        below = _image_files(images)
        mask_of = {} if masks is None else _find_masks(below, masks)
        are_masks = {mask for path, mask in mask_of.items() if mask != path}
        self._paths = [path for path in below if path not in are_masks]
        if not self._paths:
            raise UserError(f"--images: there is no image file below {', '.join(map(str, images))}")
        alone = len(images) == 1 and images[0].is_dir()
        self.names = [below[path] for path in self._paths] if alone else self._paths
        """Name of each file: its path below the folder if only one folder was given, else its
        path. They are in the order given; the files of a folder are sorted."""
        self.unreadable: dict[int, str] = {}
        """Reason for each position whose image could not be read so far."""
        self.note = _note_left_out(images, masks)
        """Image files left out as masks although no `masks` named their folder; None for none."""
        self._masks: list[str] | None = None
        if needs_mask(preprocessing.view) and preprocessing.masks == "expert":
            if masks is None:
                raise UserError(
                    f"the model was trained on view {preprocessing.view} and needs a mask of every "
                    "image: give their folder as --masks"
                )
            self._masks = [mask_of[path] for path in self._paths]
            _check_masks(self._paths, self._masks, preprocessing.view)
        elif masks is not None and len(self._paths) == len(below):
            made = {"auto": " but cellbench's own segmentation", "cellpose": " but Cellpose's"}
            own = "" if preprocessing.view == "raw" else made[preprocessing.masks]
            raise UserError(
                f"--masks: the model was trained on view {preprocessing.view}, which uses no masks"
                f"{own}; leave --masks out"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, positions: list[int]) -> Batch:
        """Return a batch of the images at the given positions."""
        prepared = self._preprocessing
        shape = len(positions), *prepared.image_size, prepared.n_channels
        images = np.zeros(shape, dtype=np.uint8)
        for i, position in enumerate(positions):
            try:
                images[i] = self._show(position)
            except UserError as error:
                self.unreadable[position] = str(error)
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.full((len(positions),), -1),
            torch.tensor(positions),
        )

    def _show(self, position: int) -> Image:
        """Return an image as the network sees it."""
        prepared, path = self._preprocessing, Path(self._paths[position])
        image, mask = files.read_image(path, self._max_pixels, prepared.image_format), None
        if self._masks is not None:
            mask = read_mask(
                Path(self._masks[position]), image, prepared.mask_format, self._max_pixels
            )
        image, mask = prepared.prepare(image, mask, str(path))
        return apply_view(image, mask, prepared.view, prepared.fill)


def _image_files(images: Sequence[Path]) -> dict[str, str]:
    """Each image file once, with its path below what was given.

    They are texts, not paths: of a million images those would take a gigabyte.
    """
    below: dict[str, str] = {}
    for given in images:
        if given.is_file():
            below.setdefault(str(given), given.name)
            continue
        if not given.is_dir():
            raise UserError(f"--images: there is no file or folder {given}")
        for folder, inside, names in os.walk(given, onerror=_refuse):
            own = os.path.relpath(folder, given)
            inside[:] = sorted(name for name in inside if (own, name) != (".", _MASKS))
            for name in sorted(names):
                if _is_image(name):
                    path = os.path.normpath(os.path.join(folder, name))
                    below.setdefault(path, os.path.normpath(os.path.join(own, name)))
    return below


def _note_left_out(images: Sequence[Path], masks: Path | None) -> str | None:
    """Return a note on the image files in folders called masks that `_image_files` passes over."""
    notes = []
    for folder in dict.fromkeys(given / _MASKS for given in images):
        if masks is None or not os.path.isdir(folder) or not os.path.samefile(folder, masks):
            n = sum(_is_image(name) for _, _, names in os.walk(folder) for name in names)
            if n:
                notes.append(f"{counted(n, 'image file')} in {folder}")
    if not notes:
        return None
    return f"left out as masks: {', '.join(notes)}; to classify them give that folder as --images"


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in files.IMAGE_SUFFIXES


def _refuse(error: OSError) -> None:
    raise UserError(f"--images: cannot list {error.filename}: {error.strerror}") from error


def _find_masks(below: Mapping[str, str], masks: Path) -> dict[str, str]:
    """Return the path of each image's mask; of a missing one, the path with the suffix .png.

    Args:
        below: For each image, its path below the folder that was given.
        masks: Folder of the masks.

    Raises:
        UserError: Several files could be the mask of an image.
    """
    listed: dict[str, dict[str, list[str]]] = {}
    found = {}
    for image, name in below.items():
        folder, stem = os.path.split(os.path.join(masks, os.path.splitext(name)[0]))
        if folder not in listed:
            listed[folder] = _by_stem(folder)
        own = [
            path
            for path in listed[folder].get(stem, [])
            if path.lower().endswith(".png") or os.path.normpath(path) not in below
        ]
        if len(own) > 1:
            raise UserError(
                f"--masks: {own[0]} and {os.path.basename(own[1])} could both be the mask of "
                f"{image}; keep one of them"
            )
        found[image] = own[0] if own else os.path.join(folder, f"{stem}.png")
    return found


def _by_stem(folder: str) -> dict[str, list[str]]:
    """Return the paths of the files in a folder that could be masks, by their names' stems."""
    found: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in MASK_SUFFIXES:
            found.setdefault(stem, []).append(os.path.join(folder, name))
    return found


def _check_masks(paths: Sequence[str], masks: Sequence[str], view: str) -> None:
    """Check that each image has a mask of its own.

    Raises:
        UserError: One has none, or that of another.
    """
    pairs = list(zip(paths, masks, strict=True))
    lacking = [(path, mask) for path, mask in pairs if path == mask or not os.path.isfile(mask)]
    if lacking:
        raise UserError(
            f"the model was trained on view {view}, and {lacking[0][0]} has no mask "
            f"{lacking[0][1]} ({len(lacking)} of {len(paths)} images have none)"
        )
    owner: dict[str, str] = {}
    for path, mask in pairs:
        if owner.setdefault(mask, path) != path:
            raise UserError(
                f"--masks: {mask} would be the mask of {owner[mask]} and of {path}; give their "
                "folders one at a time, each with its own masks"
            )
