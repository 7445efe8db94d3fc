"""Note on images whose aspect the network's input changes."""

import numpy as np

from cellbench.data.files import read_size
from cellbench.data.options import DataOptions
from cellbench.data.table import SampleTable

_MOST_STRETCHED = 0.1
"""Change of the aspect of a median cell above which the user is told."""

_MEASURED_SIZES = 200
"""Number of images, evenly spread, whose sizes are read for that."""


def describe_stretching(options: DataOptions, table: SampleTable) -> str | None:
    """Return a note on a change of the images' aspect by more than 10 %; None if there is none.

    Args:
        options: Options of the dataset.
        table: Its samples; at least one.

    Raises:
        UserError: The header of an image cannot be read.
    """
    if options.fit != "stretch":
        return None
    square = options.view == "crop"  # cut-outs are stretched, not the whole images
    files_of = [s.image for s in table.samples[:: -(-len(table) // _MEASURED_SIZES)]]
    sizes = [read_size(path, options.max_pixels) for path in files_of if path is not None]
    if square:
        sizes = [(1, 1) for _ in sizes]  # the box is square unless the image is too narrow
    height, width = options.input_size
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
