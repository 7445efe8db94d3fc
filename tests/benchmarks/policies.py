"""Draws policies.png: every augmentation policy on one real cell, and normalised stains.

`python -m tests.benchmarks.policies --shared DIR`, with the folder of the real images.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from cellbench.data.augment import POLICIES, Augmentation
from cellbench.data.files import read_image
from cellbench.data.preprocessing import resize
from cellbench.data.stain import normalise
from cellbench.data.views import Image

CELL, OTHERS = "042", ("001", "060", "120", "180", "222", "268", "290", "300")
SIDE, COLUMNS = 120, 8


def rows(cells: dict[str, Image]) -> dict[str, list[Image]]:
    """What each row shows."""
    shown = {}
    for policy in POLICIES:
        augmentation = Augmentation(policy, (SIDE, SIDE))
        if augmentation:
            drawn = [augmentation(cells[CELL], None, (0, turn))[0] for turn in range(COLUMNS - 1)]
            shown[policy] = [cells[CELL], *drawn]
    others = [cells[name] for name in OTHERS]
    shown["as they are"] = others
    shown["stain: giemsa"] = [normalise(cell, "giemsa") for cell in others]
    return shown


def main() -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("policies.png"))
    asked = parser.parse_args()
    folder = asked.shared / "hpv" / "Dataset 1"
    read = {name: read_image(folder / f"{name}.bmp") for name in {CELL, *OTHERS}}
    shown = rows({name: resize(image, (SIDE, SIDE)) for name, image in read.items()})
    figure, axes = plt.subplots(
        len(shown), COLUMNS, figsize=(COLUMNS + 1.3, len(shown)), layout="constrained"
    )
    for row, (name, images) in zip(axes, shown.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.savefig(asked.output, dpi=72)
    print(f"{np.size(axes)} images: {asked.output}")


if __name__ == "__main__":
    main()
