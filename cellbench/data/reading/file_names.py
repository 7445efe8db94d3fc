"""Doubts about file names: parts of a split in them, and several files of one image."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from cellbench.data.reading.listing import split_id, stem_of
from cellbench.data.reading.parts import parts_of, words_of
from cellbench.data.reading.reading import Doubt
from cellbench.data.table import Sample
from cellbench.utils.errors import short_name

_MOST = 0.9
"""Share of the names that must be built in one way."""
_CHANNEL = re.compile(
    r"(.+?)[-_. ]?((?:ch|c|w|channel)[-_ ]?\d{1,2}"
    r"|dapi|hoechst|gfp|egfp|rfp|yfp|cfp|fitc|tritc|cy[357]|mcherry|txred|texasred|bf|brightfield"
    r"|phase|dic|af\d{3}|alexa\d{3})",
    re.IGNORECASE,
)
"""Name of a file that holds one channel of an image."""


def doubt_names(samples: Sequence[Sample]) -> Iterator[Doubt]:
    """Yield doubts about the names of the samples' files."""
    names = {sample.id: stem_of(split_id(sample.id)[1]) for sample in samples}
    yield from _doubt_channels(names)
    if not any(sample.split for sample in samples):
        yield from _doubt_parts(names)


def _doubt_channels(names: dict[str, str]) -> Iterator[Doubt]:
    """Yield a doubt if nearly all files are one of several channels of an image."""
    channels: dict[str, set[str]] = defaultdict(set)
    for path, stem in names.items():
        if match := _CHANNEL.fullmatch(stem):
            channels[f"{split_id(path)[0]}/{match[1]}"].add(match[2].lower())
    several = [found for found in channels.values() if len(found) > 1]
    if not several or sum(map(len, several)) < _MOST * len(names):
        return
    shown = ", ".join(sorted(several[0])[:4])
    yield Doubt(
        f"each image seems to have one file per channel ({shown}), and each file is a sample of "
        "its own: write the channels of an image into one TIFF file, and choose them",
        "data.channels",
    )


def _doubt_parts(names: dict[str, str]) -> Iterator[Doubt]:
    """Yield a doubt if nearly all names begin or end with the part of a split."""
    words = {path: words_of(stem) for path, stem in names.items()}
    for at in (0, -1):
        parts = parts_of({path: found[at] for path, found in words.items() if found})
        counts = Counter(parts.values())
        if len(counts) > 1 and "train" in counts and len(parts) >= _MOST * len(names):
            first = next(iter(parts))
            shown = ", ".join(f"{part} {n}" for part, n in sorted(counts.items()))
            yield Doubt(
                f"names such as '{short_name(first)}' tell a part ({shown}), which is not used: "
                "move the files into folders of the parts, or list them in a table with the column "
                "split",
                "data.csv",
            )
            return
