"""Lines that show a reading to the user."""

from collections import Counter
from collections.abc import Iterator, Sequence

from cellbench.data.reading.folders import by_suffix
from cellbench.data.reading.peek import Headers
from cellbench.data.reading.reading import Reading
from cellbench.utils.errors import one_line

_MANY = 24
"""Number of classes up to which each is shown."""
_KINDS = ("parts", "folds", "groups", "domains", "masks")


def notes(reading: Reading) -> list[str]:
    """Return what the user should see before a run: files left out, unused columns, doubts."""
    lines = []
    if reading.left_out:
        counts = [f"{by_suffix(n, 3)}: {reason}" for reason, n in reading.left_out.items()]
        lines.append(f"no samples: {'; '.join(counts)}")
    if "masks" in reading.found:
        lines.append(f"files taken as masks: {reading.found['masks']}")
    if reading.unused_columns:
        lines.append(f"columns not used: {', '.join(reading.unused_columns)}")
    return [one_line(line) for line in (*lines, *reading.doubts)]


def describe(reading: Reading, headers: Headers) -> Iterator[str]:
    """Yield the lines that `inspect` prints of a reading.

    Args:
        reading: The reading.
        headers: Sizes and modes of its images.
    """
    counts = Counter(sample.label for sample in reading.samples)
    yield _line("images", f"{len(reading.samples):,} of {len(reading.classes)} classes")
    for kind in ("table", "paths"):
        if kind in reading.found:
            yield _line(kind, reading.found[kind])
    yield _line("classes", reading.found.get("classes", ""))
    for label, name in enumerate(reading.classes[:_MANY]):
        yield f"{'':11}{counts[label]:7,}  {name}"
    if len(reading.classes) > _MANY:
        rest = [counts[label] for label in range(_MANY, len(reading.classes))]
        yield f"{'':11}{sum(rest):7,}  in {len(rest)} more classes, {min(rest)} to {max(rest)} each"
    absent = {"groups": "none known", "masks": f"none found; {reading.mask_places}".rstrip("; ")}
    for kind in _KINDS:
        yield _line(kind, reading.found.get(kind, absent.get(kind, "none found")))
    yield from _describe_headers(headers)
    for reason, numbers in reading.left_out.items():
        yield _line("left out", f"{by_suffix(numbers)}: {reason}")
    if reading.unused_columns:
        yield _line("not used", f"the columns {', '.join(reading.unused_columns)}")


def _describe_headers(headers: Headers) -> Iterator[str]:
    some = "" if headers.looked == headers.total else f" of {headers.looked:,} that were looked at"
    if headers.sizes:
        widths, heights = zip(*headers.sizes, strict=True)
        low, middle, high = (f"{each(widths)}x{each(heights)}" for each in (min, median, max))
        sizes = low if low == high else f"{low} to {high}, median {middle}"
        yield _line("sizes", f"{sizes} (width x height){some}")
    modes = ", ".join(f"{n:,} {mode}" for mode, n in headers.modes.most_common(6))
    yield _line("modes", f"{modes or 'none could be read'}{some}")


def median(values: Sequence[int]) -> int:
    """Return the upper median of some numbers."""
    return sorted(values)[len(values) // 2]


def _line(name: str, text: str) -> str:
    return f"{name:11}{one_line(text)}"
