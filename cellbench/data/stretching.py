"""Note on images whose aspect the network's input changes."""

from collections.abc import Sequence

import numpy as np

from cellbench.data.files import read_size
from cellbench.data.table import Sample

_MOST_STRETCHED = 0.1
"""Change of the aspect of a median cell above which the user is told."""

_MEASURED_SIZES = 200
"""Number of images, evenly spread, whose sizes are read for that."""


def describe_stretching(
    samples: Sequence[Sample], input_size: tuple[int, int], max_pixels: int, *, square: bool
) -> str | None:
    """Return a note on a change of the images' aspect by more than 10 %; None if there is none.

    Args:
        samples: The samples; at least one.
        input_size: Height and width of the network's input in pixels.
        max_pixels: Largest number of pixels of an image.
        square: True if square cut-outs of the images are stretched, and not the whole images.

    Raises:
        UserError: The header of an image cannot be read.
    """
    files_of = [sample.image for sample in samples[:: -(-len(samples) // _MEASURED_SIZES)]]
    sizes = [read_size(path, max_pixels) for path in files_of if path is not None]
    if square:
        sizes = [(1, 1) for _ in sizes]  # the box is square unless the image is too narrow
    height, width = input_size
    changes = [np.log(w * height / (h * width)) for h, w in sizes]
    if not changes or np.exp(abs(np.median(changes))) <= 1 + _MOST_STRETCHED:
        return None
    change = np.exp(abs(np.median(changes))) - 1
    h, w = sizes[int(np.argsort(changes)[len(changes) // 2])]
    shape = "square cut-outs" if square else f"images such as {w}x{h}"
    return (
        f"{shape} are stretched to {width}x{height} pixels, which changes the aspect of a median "
        f"cell by {change:.0%}; data.fit: pad or crop keeps it, and so may image_size"
    )
