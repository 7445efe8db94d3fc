"""Survey of all masks of a dataset: what their values mean, and what is unusual in them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from joblib import cpu_count

from cellbench.data import result_cache
from cellbench.data.cache import CacheConfig
from cellbench.data.mask_files import read_labels
from cellbench.data.mask_format import (
    MAX_STRAYS,
    UNKNOWN,
    Instance,
    MaskFormat,
    Region,
    Value,
    are_colours,
    from_option,
)
from cellbench.data.mask_recognition import MaskSet, Regions, Tally, quantise, recognise
from cellbench.data.views import BACKGROUND, NUCLEUS
from cellbench.utils.errors import UserError, counted, short_name

FORMAT = 2
"""Part of the name of cached surveys; raise it when reading or counting changes."""

QUICK = 1000
"""Greatest number of masks that are counted anew in each run, in less than a second: small sets
need no folder for a cache."""


@dataclass(frozen=True)
class MaskSurvey:
    """Result of a survey."""

    format: MaskFormat = UNKNOWN
    """Meaning of the values."""
    notes: tuple[str, ...] = ()
    """Unusual properties of the masks, with numbers and an example, a phrase each."""

    @property
    def text(self) -> str:
        """Format and notes in one line."""
        return "; ".join([self.format.describe(), *self.notes])


def survey_masks(
    paths: Sequence[Path],
    digests: Sequence[str],
    values: Mapping[Region, Value] | None,
    instance: Instance | None,
    cache: CacheConfig,
    max_pixels: int,
) -> MaskSurvey:
    """Read all masks once, or take the counts from an earlier run, and find their format.

    Masks that cannot be read are passed over here: reading them again raises the error.

    Args:
        paths: The mask files.
        digests: Digest of the content of each.
        values: The values, as data.mask_values names them; None to recognise them.
        instance: Cells that count; None if the user has not said so.
        cache: Storage of the counts of larger sets.
        max_pixels: The largest number of pixels of a mask that is read.

    Raises:
        UserError: The meaning of the values is not certain, or results cannot be cached.
    """

    def count(k: int) -> result_cache.Found:
        try:
            tally = Tally.of(read_labels(paths[k], max_pixels))
        except UserError:
            none = np.zeros(0, np.int64)
            return _as_arrays(Tally(none, none, none, none, coloured=False))
        return _as_arrays(tally)

    identities = [
        f"{FORMAT} {max_pixels} {path.suffix.lower()} {digest}"
        for path, digest in zip(paths, digests, strict=True)
    ]
    quick = len(paths) <= QUICK
    found = _for_each("counting mask values", identities, count, None if quick else cache)
    read = [k for k, each in enumerate(found) if len(each["values"])]
    if not read:
        return MaskSurvey()
    tallies = [_tally(found[k]) for k in read]
    names = [short_name("/".join(paths[k].parts[-2:])) for k in read]

    def examine(chosen: Sequence[int], known: MaskFormat | None) -> list[Regions]:
        """Examine masks, or take the results from an earlier run."""

        def look(i: int) -> result_cache.Found:
            labels = read_labels(paths[read[chosen[i]]], max_pixels)
            return _as_arrays(Regions.of(quantise(labels.pixels, known)))

        texts = [f"{identities[read[k]]} {known}" for k in chosen]
        results = _for_each("examining masks", texts, look, None if quick else cache)
        return [Regions(**each) for each in results]

    masks = MaskSet(names, tallies, examine)
    if values is None:
        mask_format = recognise(masks, instance)
    else:
        if any(tally.coloured for tally in tallies) and not are_colours(values):
            raise UserError(
                f"data.mask_values has numbers, but the masks have colours: {masks.shares()} "
                f"({names[0]}); name those, as '#rrggbb'"
            )
        mask_format = from_option(values, instance or "all")
    return MaskSurvey(mask_format, tuple(_note(masks, mask_format)))


def _for_each(
    what: str,
    identities: Sequence[str],
    find: Callable[[int], result_cache.Found],
    cache: CacheConfig | None,
) -> list[result_cache.Found]:
    """Compute a result for each mask, or take it from an earlier run if there is a cache."""
    if cache is not None:
        return result_cache.for_each(what, identities, lambda: find, cache)
    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(find, range(len(identities))))


def _tally(found: result_cache.Found) -> Tally:
    values, counts, edges, colours, coloured = (found[field.name] for field in fields(Tally))
    return Tally(values, counts, edges, colours, coloured=bool(coloured[0]))


def _as_arrays(found: Tally | Regions) -> result_cache.Found:
    return {field.name: np.atleast_1d(getattr(found, field.name)) for field in fields(found)}


def _note(masks: MaskSet, mask_format: MaskFormat) -> list[str]:
    """Describe unusual properties of masks, a phrase each."""
    n = len(masks.tallies)
    if mask_format.kind == "ids":
        several = sum((tally.values != 0).sum() > 1 for tally in masks.tallies)
        if not several:
            return []
        all_count = "" if mask_format.instance == "centre" else ", all of which count"
        return [
            f"several cells in {several} of {n} masks{all_count}; if the values are kinds of "
            "regions, name them in data.mask_values"
        ]
    strays, noisy, bare, refused = [0] * n, 0, [], []
    for k, tally in enumerate(masks.tallies):
        tally = tally.in_colours if mask_format.coloured else tally
        nearest, distance = mask_format.find_nearest(tally.values)
        if distance.any():
            found = mask_format.find_strays(tally.values, tally.counts)
            strays[k] = int(tally.counts[found].sum())
            if strays[k] > MAX_STRAYS * tally.counts.sum():
                strays[k] = 0
                refused.append(masks.names[k])
                continue
            noisy += bool((distance[~found] > 0).any())
        regions = mask_format.regions[nearest]
        if set(regions.tolist()) == {BACKGROUND, NUCLEUS}:
            bare.append(masks.names[k])
    notes = []
    if refused:
        notes.append(
            f"{len(refused)} of {n} masks refused, as more than {MAX_STRAYS:.0%} of their pixels "
            f"have other values ({refused[0]})"
        )
    if any(strays):
        most = int(np.argmax(strays))
        notes.append(
            f"{counted(sum(strays), 'stray pixel')} in {sum(map(bool, strays))} of {n} masks, at "
            f"most {strays[most]} in one ({masks.names[most]}): the nearest value counts"
        )
    if noisy:
        notes.append(f"noise of compression in {noisy} of {n} masks: the nearest value counts")
    if bare:
        notes.append(f"a nucleus without cytoplasm in {len(bare)} of {n} masks ({bare[0]})")
    return notes
