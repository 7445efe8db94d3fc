"""Groups, folds and domains of samples: by data.group_pattern, and guesses to suggest one."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import regex

from cellbench.data.reading.listing import split_id
from cellbench.data.reading.names import describe_alike
from cellbench.data.table import Sample
from cellbench.utils.errors import UserError, clip, counted

_KEY = "data.group_pattern"
_ROLES = ("group", "fold", "domain")
_LONGEST = 500
_PATIENCE_S = 1.0
"""Seconds after which a pattern is given up for one id."""
_SHARED = 1.5
"""Least number of images for each group that is not a mere number of the file."""
_DATE = re.compile(r"(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d[-_. ]+")
_ALIKE = 0.9
"""Share of the names of a class that must be built in one way before a pattern is suggested."""


def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """Compile `data.group_pattern`.

    Raises:
        UserError: It is no regular expression, or has no named group that means something.
    """
    if len(pattern) > _LONGEST:
        raise UserError(f"{_KEY}: it is longer than {_LONGEST} characters")
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise UserError(
            f"{_KEY}: '{clip(pattern, 60)}' is no regular expression: {clip(error, 90)}"
        ) from error
    for name in compiled.groupindex:
        if name not in _ROLES:
            raise UserError(
                f"{_KEY}: '{clip(pattern, 60)}' has a group named '{clip(name)}'; allowed: "
                f"{', '.join(_ROLES)}"
            )
    if not compiled.groupindex:
        raise UserError(
            f"{_KEY}: '{clip(pattern, 60)}' has no named group; write the part that names the "
            r"patient or slide as (?P<group>...), such as (?P<group>P\d+)"
        )
    return compiled


def _search(compiled: regex.Pattern[str], path: str) -> regex.Match[str] | None:
    """Search a pattern in an id.

    A downloaded run may hold a pattern that would take years: `re` cannot be stopped, `regex` can.

    Raises:
        UserError: It takes too long.
    """
    try:
        return compiled.search(path, timeout=_PATIENCE_S)
    except TimeoutError as error:
        raise UserError(
            f"{_KEY}: '{clip(compiled.pattern, 60)}' takes more than {_PATIENCE_S:g} s for "
            f"'{clip(path, 60)}'; write it without nested repetitions such as (a+)+"
        ) from error


def apply_pattern(samples: Sequence[Sample], pattern: str) -> list[Sample]:
    """Return samples with the groups, folds and domains that `data.group_pattern` finds in ids.

    Args:
        samples: The samples.
        pattern: The regular expression, searched in each id.

    Raises:
        UserError: The pattern is not valid, does not fit each id, or finds two names that are
            nearly alike.
    """
    found = _apply(samples, pattern)
    for role in compile_pattern(pattern).groupindex:
        counts = Counter(str(getattr(sample, role)) for sample in found)
        if alike := describe_alike(counts, f"{role}s", "images"):
            raise UserError(
                f"{_KEY}: {alike}; rename the files, or leave what differs out of (?P<{role}>...)"
            )
    return found


def _apply(samples: Sequence[Sample], pattern: str) -> list[Sample]:
    """Return samples with what a pattern finds, whatever its names.

    Raises:
        UserError: The pattern is not valid, or does not fit each id.
    """
    compiled = compile_pattern(pattern)
    found = []
    unfit: list[str] = []
    for sample in samples:
        match = _search(compiled, sample.id)
        roles = {} if match is None else {k: v for k, v in match.groupdict().items() if v}
        if len(roles) < len(compiled.groupindex):
            unfit.append(sample.id)
        else:
            found.append(_with_roles(sample, roles))
    if unfit:
        raise UserError(
            f"{_KEY}: '{clip(pattern, 60)}' fits {len(found)} of {counted(len(samples), 'id')}, "
            f"and not '{clip(unfit[0], 60)}'; all must fit"
        )
    return found


def _with_roles(sample: Sample, roles: Mapping[str, str]) -> Sample:
    return replace(
        sample,
        group=roles.get("group", sample.group),
        fold=roles.get("fold", sample.fold),
        domain=roles.get("domain", sample.domain),
    )


def divides(samples: Sequence[Sample], pattern: str) -> bool:
    """Return True if official parts or folds divide groups that a pattern finds.

    Files are often numbered anew in each part: groups count only if several images of one part
    share them.
    """
    found = _apply(samples, pattern)
    within = {(each.split, each.fold, each.group) for each in found}
    shared = len(found) >= _SHARED * len(within)
    return shared and len(within) > len({each.group for each in found})


def level_claims(pattern: str | None, ids: Sequence[str]) -> Callable[[int], bool]:
    """Return a function that tells whether a pattern names the folder at a level of each id.

    Args:
        pattern: `data.group_pattern`, or None.
        ids: The ids of all images.
    """
    if pattern is None:
        return lambda level: False
    return partial(_names_level, compile_pattern(pattern), ids)


def _names_level(compiled: regex.Pattern[str], ids: Iterable[str], level: int) -> bool:
    for path in ids:
        folders = path.split("/")[:-1]
        if level >= len(folders):
            return False
        start = sum(len(folder) + 1 for folder in folders[:level])
        span = (start, start + len(folders[level]))
        match = _search(compiled, path)
        if match is None or span not in {match.span(name) for name in compiled.groupindex}:
            return False
    return True


def suggest_pattern(
    by_class: Mapping[str, Sequence[str]], stems: Mapping[str, Sequence[str]], depth: int | None
) -> tuple[str, int] | None:
    """Suggest a `data.group_pattern`, from folders below the classes or from the files' names.

    Args:
        by_class: The ids of each class folder's images.
        stems: The same without suffix, each once.
        depth: Number of folders above an image that lies directly in a class folder; None if the
            folders below the classes mean nothing.

    Returns:
        The pattern, which fits all ids, and the number of groups that it makes; None if nothing
        hints at groups.
    """
    ids = [path for paths in by_class.values() for path in paths]
    by_folder = [] if depth is None else _by_folder(by_class, depth)
    for pattern in (*by_folder, *_by_name(stems)):
        compiled = re.compile(pattern)
        matches = [compiled.search(path) for path in ids]
        groups = {match["group"] for match in matches if match}
        if all(matches) and len(groups) < len(ids):
            return pattern, len(groups)
    return None


def _by_folder(by_class: Mapping[str, Sequence[str]], depth: int) -> list[str]:
    """Return a pattern of the folder below the class, if there are several in a class."""
    below = {
        key: {path.split("/")[depth] for path in paths if path.count("/") > depth}
        for key, paths in by_class.items()
    }
    if max(map(len, below.values()), default=0) < 2:
        return []
    above = "[^/]+/" if depth == 1 else f"(?:[^/]+/){{{depth}}}"
    return [f"^{above}(?P<group>[^/]+)/"]


def _by_name(paths: Mapping[str, Sequence[str]]) -> list[str]:
    """Return patterns of a number in the names that several images of a class share.

    A date before the names is passed over: one patient may come on several days.
    """
    stems = {key: [split_id(path)[1] for path in each] for key, each in paths.items()}
    if all(_DATE.match(stem) for each in stems.values() for stem in each):
        rests = {
            key: [_DATE.sub("", stem, count=1) for stem in each] for key, each in stems.items()
        }
        if found := _by_number(rests, _DATE.pattern):
            return found
    return _by_number(stems)


def _by_number(stems: Mapping[str, Sequence[str]], before: str = "") -> list[str]:
    """Return patterns of a number in names that several images of a class share.

    Args:
        stems: Names of the images of each class, without suffix.
        before: Pattern of what stands before all of them.
    """
    n = sum(map(len, stems.values()))
    candidates: list[tuple[bool, str]] = []
    for position in range(4):
        keys = {key: [_until(stem, position) for stem in each] for key, each in stems.items()}
        if any(key is None for each in keys.values() for key in each):
            break
        distinct = {key: {k for k, _ in filter(None, each)} for key, each in keys.items()}
        shared = n >= _SHARED * sum(map(len, distinct.values()))
        most = max(map(len, distinct.values()))
        if shared and most >= 2 and _built_alike(keys.values()):
            enough = min(map(len, distinct.values())) >= 3
            candidates.append((not enough, _as_pattern(stems, position, before)))
    return [pattern for _, pattern in sorted(candidates, key=lambda each: each[0])[:1]]


def _until(stem: str, position: int) -> tuple[str, str] | None:
    """Return a name up to and with its number at a position, and what stands before the number."""
    runs = list(re.finditer(r"\d+", stem))
    if position >= len(runs):
        return None
    return stem[: runs[position].end()], stem[: runs[position].start()]


def _built_alike(keys: Iterable[Sequence[tuple[str, str] | None]]) -> bool:
    """Return True if what stands before a number has one form in nearly all names of a class."""
    for each in keys:
        forms: dict[str, int] = defaultdict(int)
        for key in each:
            if key is not None:
                forms[re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", key[1]))] += 1
        if max(forms.values()) < _ALIKE * len(each):
            return False
    return True


def _as_pattern(stems: Mapping[str, Sequence[str]], position: int, before: str) -> str:
    """Return a pattern that finds the number at a position of a name, with what may vary before."""
    split = [re.split(r"(\d+)", stem) for each in stems.values() for stem in each]
    parts, first = [], None
    for at in range(2 * position + 1):
        values = {each[at] for each in split}
        if len(values) == 1:
            parts.append(re.escape(next(iter(values))))
            continue
        first = at if first is None else first
        parts.append(r"\d+" if at % 2 else r"[^/\d]*?")
    start = 2 * position + 1 if first is None else first
    return f"(?:^|/){before}{''.join(parts[:start])}(?P<group>{''.join(parts[start:])}\\d+)[^/]*$"
