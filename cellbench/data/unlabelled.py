"""Images to be classified: read and prepared batch by batch, however many there are."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from cellbench.data import files
from cellbench.data.dataset import Batch
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.views import apply_view, needs_mask
from cellbench.errors import UserError


class UnlabelledImages(Dataset[Batch]):
    """The image files below a folder; the item of a list of positions is a batch, labels -1.

    Args:
        images: The folder. Every image file below it counts, but those that are masks of others.
        masks: The folder of the masks: of `images/a/b.jpg` it is `masks/a/b.png`. It may be the
            same folder. None where there are none.
        preprocessing: The training's.

    Attributes:
        files: The image files, sorted by their path below the folder.

    Raises:
        UserError: A folder is missing or holds no image, or an image lacks the mask that the view
            needs.
    """

    def __init__(self, images: Path, masks: Path | None, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        for option, folder in (("--images", images), ("--masks", masks)):
            if folder is not None and not folder.is_dir():
                raise UserError(f"{option}: there is no folder {folder}")
        inside = images / "masks"  # where a folder of one's own has them
        found = [path for path in files.images_below(images) if inside not in path.parents]
        paths = dict.fromkeys(found) if masks is None else _with_masks(found, images, masks)
        if not paths:
            raise UserError(f"--images: there is no image file below {images}")
        self.files = sorted(paths)
        self._masks = [paths[path] for path in self.files]
        if needs_mask(preprocessing.view) and preprocessing.masks == "expert":
            lacking = [p for p, m in zip(self.files, self._masks, strict=True) if m is None]
            if masks is None:
                raise UserError(
                    f"the model was trained on view {preprocessing.view} and needs a mask of every "
                    "image: give their folder as --masks"
                )
            if lacking:
                raise UserError(
                    f"the model was trained on view {preprocessing.view}, and {lacking[0]} has no "
                    f"mask {_mask_path(lacking[0], images, masks)} ({len(lacking)} of "
                    f"{len(self.files)} images have none)"
                )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, positions: list[int]) -> Batch:
        """Makes a batch of the images at the given positions."""
        prepared = self._preprocessing
        images = np.empty((len(positions), *prepared.image_size, 3), dtype=np.uint8)
        for i, position in enumerate(positions):
            path, mask_path = self.files[position], self._masks[position]
            image = files.read_image(path)
            mask = None
            if needs_mask(prepared.view) and mask_path is not None:
                mask = files.read_mask(mask_path, image)
            image, mask = prepared.prepare(image, mask, str(path))
            images[i] = apply_view(image, mask, prepared.view, prepared.fill)
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.full((len(positions),), -1),
            torch.tensor(positions),
        )


def _mask_path(image: Path, images: Path, masks: Path) -> Path:
    return masks / image.relative_to(images).with_suffix(".png")


def _with_masks(found: list[Path], images: Path, masks: Path) -> dict[Path, Path | None]:
    """Each image with its mask; a file that is another's mask is no image."""
    paths = {path: _mask_path(path, images, masks) for path in found}
    are_masks = {mask for path, mask in paths.items() if mask != path}
    return {
        path: mask if mask != path and mask.is_file() else None
        for path, mask in paths.items()
        if path not in are_masks
    }
