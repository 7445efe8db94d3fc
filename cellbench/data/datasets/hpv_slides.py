"""Cells of whole cervical slides: tumour against healthy."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from cellbench.config.bounds import bounds
from cellbench.data.download.transfer import OnRequest
from cellbench.data.file_module import FileDataModule
from cellbench.data.table import Sample
from cellbench.data.views import Image
from cellbench.utils.errors import UserError

SLIDES = {
    "healthy": [f"glass{number}.hdf5" for number in range(3, 9)],
    "tumour": [f"glass{number}.hdf5" for number in (12, 36, 37, 38)],
}

DEFLATE = 1032
"""The largest ratio of deflate's compression (zlib's technical details)."""


@dataclass(kw_only=True, eq=False, repr=False)
class HPVSlidesDataModule(FileDataModule):
    """Grey images of cells from ten slides: six healthy, four with a tumour; not public.

    A slide is one patient's, so that it is the group: whole slides train or test, and there are
    four of the rarer class. Needs the package h5py (`pip install "cellbench[h5py]"`).

    Layout: `glass3.hdf5` to `glass8.hdf5` (healthy), `glass12.hdf5`, `glass36.hdf5`, `glass37.hdf5`
    and `glass38.hdf5` (tumour), each with a dataset `data`, (cells, 1, 80, 80), grey: integers of
    0 to 255, or fractions of 0 to 1.
    """

    root: Path = Path("data/hpv_slides")
    cells: int | None = field(default=None, metadata=bounds(1))
    """Number of cells to take from each slide at random; null takes all."""
    draw_seed: int = 0
    """Seed of that choice."""
    side: int = field(default=48, metadata=bounds(8, 80))
    """Height and width of the centre that is cut out, in pixels."""

    how_to_get = "the slides are not public: give the folder of the glass*.hdf5 as --data.root"

    source = OnRequest(licence="private")

    @property
    def classes(self) -> tuple[str, ...]:
        """healthy, tumour."""
        return tuple(SLIDES)

    def list_samples(self) -> list[Sample]:
        """List the cells that were taken from each slide.

        Raises:
            UserError: A slide is missing, or holds no such dataset.
        """
        return [
            Sample(f"{name}/{number:06d}", label, group=name)
            for label, (_, names) in enumerate(SLIDES.items())
            for name in names
            for number in self._drawn[name]
        ]

    def read_image(self, sample: Sample) -> Image:
        """Return the centre of a cell's image, its grey in all three channels."""
        name, number = sample.id.rsplit("/", 1)
        cell = self._drawn[name][int(number)]
        margin = (cell.shape[0] - self.side) // 2
        centre = cell[margin : margin + self.side, margin : margin + self.side]
        return np.repeat(centre[..., None], 3, axis=2)

    def has_mask(self, sample: Sample) -> bool:
        """Return False: there are no masks."""
        return False

    def fingerprint(self, sample: Sample) -> str:
        """Return a digest of the cell's pixels."""
        return hashlib.blake2b(self.read_image(sample).tobytes(), digest_size=16).hexdigest()

    @cached_property
    def _drawn(self) -> dict[str, dict[int, np.ndarray]]:
        """The cells of each slide, by their number in it, (80, 80), uint8."""
        drawn = {}
        for name in (name for names in SLIDES.values() for name in names):
            path = self._require(self.root / name, "the slide")
            drawn[name] = self._read(path)
        return drawn

    def _read(self, path: Path) -> dict[int, np.ndarray]:
        try:
            import h5py  # an extra: few need it
        except ImportError as error:
            raise UserError("HDF5 files need h5py: pip install h5py") from error
        try:
            if not path.is_file():
                raise UserError(f"cannot read {path}: it is not a regular file")
            with h5py.File(path) as file:
                data = file.get("data")
                if not isinstance(data, h5py.Dataset) or data.shape[1:] != (1, 80, 80):
                    held = ", ".join(f"{key} {getattr(file[key], 'shape', '')}" for key in file)
                    raise UserError(
                        f"{path} has no dataset 'data' of (cells, 1, 80, 80); it has {held or '-'}"
                    )
                if data.nbytes > DEFLATE * path.stat().st_size:
                    raise UserError(
                        f"{path} has {path.stat().st_size:,} bytes, and its 'data' would unpack to "
                        f"{data.nbytes:,}: most of it was never written"
                    )
                numbers = np.arange(len(data))
                if self.cells is not None and self.cells < len(data):
                    text = f"{self.draw_seed} {path.name}".encode()
                    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
                    generator = np.random.default_rng(seed)
                    numbers = np.sort(generator.permutation(len(data))[: self.cells])
                cells = data[numbers][:, 0]
        except OSError as error:
            raise UserError(f"cannot read {path}: {error}; is it a whole HDF5 file?") from error
        return dict(zip(numbers.tolist(), _grey(cells, path), strict=True))


def _grey(cells: np.ndarray, path: Path) -> np.ndarray:
    """Return grey values as uint8."""
    low, high = (float(cells.min()), float(cells.max())) if cells.size else (0.0, 0.0)
    if np.issubdtype(cells.dtype, np.integer) and low >= 0 and high <= 255:
        return np.asarray(cells, np.uint8)
    if np.issubdtype(cells.dtype, np.floating) and low >= 0 and high <= 1:
        return np.asarray(np.rint(cells * 255), np.uint8)
    raise UserError(
        f"{path}: the grey values are {cells.dtype} of {low:g} to {high:g}; expected integers of "
        "0 to 255 or fractions of 0 to 1"
    )
