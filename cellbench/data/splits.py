"""Splits into training, validation and test: a function of (table, protocol, seed)."""

import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from cellbench.config.bounds import bounds, check_bounds
from cellbench.data.table import Part, SampleTable
from cellbench.utils.errors import UserError
from cellbench.utils.untrusted import open_text

PARTS: tuple[Part, ...] = get_args(Part)
DEFAULT_TEST_SHARE = 0.2
MAX_STEPS, MAX_NEEDS = 20_000, 400
"""The limits of the search for a split of few groups: a second or two, and Python's recursion."""
FIXED = ("official", "predefined")
"""Protocols whose test set the dataset fixes."""
LEAKY = {"image": "split by image, ignoring groups: copies of one source may be on both sides"}


@dataclass(frozen=True)
class SplitConfig:
    """Assignment of the samples to training, validation and test."""

    protocol: Literal["grouped", "official", "predefined", "image"] = "grouped"
    """grouped keeps every group (patient, slide, original) in one part; official takes the authors'
    test set (and validation set, if there is one); predefined takes the authors' folds; image
    ignores the groups, to reproduce published numbers, and marks metrics, figures and reports as
    leaky. Images of equal content stay together under grouped and image. Under official and
    predefined it is an error if the authors' parts share a group or a content."""
    purge: bool = False
    """Under official and predefined, leave out of training (and validation) the images that share a
    group or their content with a part that is scored, instead of raising an error."""
    folds: int | None = field(default=None, metadata=bounds(2))
    """Number of folds of the cross-validation; null for one split by shares. Under predefined, null
    takes all of the dataset's folds."""
    fold: int | None = None
    """Fold that is the test set, from 0."""
    val: float = field(default=0.15, metadata=bounds(above=0, below=1))
    """Share of the samples outside the test set that are for validation."""
    test: float | None = field(default=None, metadata=bounds(above=0, below=1))
    """Share of the samples that are for the test, if there are no folds (default 0.2)."""
    seed: int = field(default=0, metadata=bounds(0))
    """Seed of the split; nothing else random depends on it."""

    def __post_init__(self) -> None:
        """Raise UserError if a value is out of its bounds, or two contradict each other."""
        key = "data.split"
        check_bounds(self, key)
        if self.protocol == "official" and (self.folds is not None or self.test is not None):
            raise UserError(f"{key}: the official test set is fixed; remove folds, fold and test")
        if self.protocol == "predefined" and self.test is not None:
            raise UserError(f"{key}: the dataset's folds are the test sets; remove test")
        if self.folds is None and self.protocol == "predefined":
            if (self.fold or 0) < 0:
                raise UserError(f"{key}.fold: {self.fold} is negative; folds are counted from 0")
            return
        if self.folds is None:
            if self.fold is not None:
                raise UserError(f"{key}.fold: {self.fold} needs {key}.folds, the number of folds")
            return
        if self.test is not None:
            raise UserError(f"{key}: give either folds or test, not both")
        if not 0 <= (self.fold or 0) < self.folds:
            raise UserError(f"{key}.fold: {self.fold} is not one of 0 to {self.folds - 1}")


@dataclass(frozen=True)
class Split:
    """Assignment of each sample to a part, with its digest."""

    parts: np.ndarray
    """Part of each sample of the table: train, val, test or purged, shape (n,)."""
    groups: np.ndarray
    """Number of each sample's group (known groups and equal contents), shape (n,)."""
    csv: str
    """Text of split.csv: id, class, group, split, content; one row per sample."""
    digest: str
    """SHA-256 of that text. Two runs are comparable only if their digests agree."""
    leaky: str | None
    """Reason why results on this split are unreliable; None if they are reliable."""
    folds: int | None = None
    """Number of folds of the cross-validation; None if there are none."""
    fold: int | None = None
    """Fold that is the test set, from 0; None if there are no folds."""
    fold_name: str | None = None
    """Name of that fold in the dataset; None unless the folds are predefined."""

    def indices(self, part: Part) -> np.ndarray:
        """Return the positions in the table of one part's samples, ascending."""
        return np.flatnonzero(self.parts == part)


def draw(table: SampleTable, config: SplitConfig) -> Split:
    """Draw the split and check it.

    Raises:
        UserError: A class has too few groups for the parts asked for, there is no official
            split, or two parts share a sample, a content or a group.
    """
    groups = table.groups(known=config.protocol != "image")
    parts = _deal(table, groups, config)
    if _lacking(table, parts):
        parts = _deal_again(table, groups, config, parts)
    _check_overlap(table, groups, parts, config)
    _check_classes(table, groups, parts, config)
    groups = table.groups()
    text = _to_csv(table, groups, parts)
    folds, fold_name = config.folds, None
    if config.protocol == "predefined":
        names = fold_names(table)
        folds, fold_name = len(names), names[config.fold or 0]
    fold = None if folds is None else config.fold or 0
    leaky = LEAKY.get(config.protocol)
    return Split(parts, groups, text, digest_of(text), leaky, folds, fold, fold_name)


def fold_names(table: SampleTable) -> list[str]:
    """Return the names of the dataset's own folds, numbers in their order; empty without any."""
    names = {sample.fold for sample in table.samples if sample.fold is not None}
    return sorted(names, key=lambda name: [_as_number(each) for each in re.split(r"(\d+)", name)])


def _as_number(text: str) -> tuple[int, str]:
    """Return a key by which numbers come in their order, before other texts."""
    return (int(text), "") if text.isdecimal() else (-1, text)


def fixed_parts(table: SampleTable, config: SplitConfig) -> np.ndarray:
    """Return the parts as the dataset fixes them, (n,): train, val, test or purged.

    Args:
        table: The samples.
        config: The options of the split; the protocol is one of `FIXED`.

    Raises:
        UserError: The dataset has no such parts.
    """
    if config.protocol == "official":
        official = [sample.split for sample in table.samples]
        if None in official or "test" not in official:
            raise UserError(
                "data.split.protocol: this dataset has no official test set; use grouped"
            )
        parts = np.array(official, dtype="<U6")
    else:
        parts = _parts_of_fold(table, config)
    if config.purge:
        purge(table.groups(), parts)
    return parts


def _parts_of_fold(table: SampleTable, config: SplitConfig) -> np.ndarray:
    """Return train and test as one of the dataset's own folds has them, (n,).

    Raises:
        UserError: The dataset has no folds, or no such fold, or an image is in none.
    """
    key, names = "data.split", fold_names(table)
    if len(names) < 2:
        raise UserError(
            f"{key}.protocol: predefined, but this dataset has no folds of its own; use grouped "
            f"with {key}.folds"
        )
    without = [sample.id for sample in table.samples if sample.fold is None]
    if without:
        raise UserError(
            f"{key}.protocol: predefined, but '{without[0]}' has no fold ({len(without)} of "
            f"{len(table)} images have none); give each one, or use grouped"
        )
    if config.folds not in (None, len(names)):
        raise UserError(
            f"{key}.folds: {config.folds}, but the dataset has {len(names)} folds "
            f"({_shorten(names)}); give that number, or null"
        )
    if (config.fold or 0) >= len(names):
        raise UserError(
            f"{key}.fold: {config.fold} is not one of 0 to {len(names) - 1} ({_shorten(names)})"
        )
    tested = names[config.fold or 0]
    parts = ["test" if sample.fold == tested else "train" for sample in table.samples]
    return np.array(parts, dtype="<U6")


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _deal(table: SampleTable, groups: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Give every sample its part, (n,); with few groups a part may lack a class."""
    parts = np.full(len(table), "train", dtype="<U6")
    if config.protocol in FIXED:
        parts = fixed_parts(table, config)
    elif config.folds is None:
        shares = [1 - _test_share(config), _test_share(config)]
        parts[_partition(table, groups, shares, config.seed) == 1] = "test"
    else:
        folds = _partition(table, groups, [1 / config.folds] * config.folds, config.seed)
        parts[folds == (config.fold or 0)] = "test"
    if "val" not in parts:
        rest = np.flatnonzero(parts == "train")
        shares = [1 - config.val, config.val]
        parts[rest[_partition(table, groups, shares, config.seed, rest) == 1]] = "val"
    return parts


def _test_share(config: SplitConfig) -> float:
    return DEFAULT_TEST_SHARE if config.test is None else config.test


def _lacking(table: SampleTable, parts: np.ndarray) -> dict[str, list[Part]]:
    """Name the classes that some parts have no sample of, and those parts."""
    found = {}
    for label, name in enumerate(table.classes):
        own = set(parts[table.labels == label])
        if missing := [part for part in PARTS if part not in own]:
            found[name] = missing
    return found


def _deal_again(
    table: SampleTable, groups: np.ndarray, config: SplitConfig, dealt: np.ndarray
) -> np.ndarray:
    """Deal the groups so that every part has every class, if `_deal` has not managed to.

    A few groups that hold all classes are sought for each part first; the others are dealt as
    ever. Splits that `_deal` does find stay as they are: their digests must not change.

    Args:
        table: The samples.
        groups: Number of each sample's group, (n,).
        config: The options of the split.
        dealt: Parts that `_deal` returned, (n,).

    Returns:
        The parts, (n,); `dealt` if there is no such split, or the search finds none.
    """
    if config.protocol in FIXED:
        given = set() if config.protocol == "predefined" else {s.split for s in table.samples}
        if "val" in given or any("test" in parts for parts in _lacking(table, dealt).values()):
            return dealt
        rest = np.flatnonzero(np.isin(dealt, ("train", "val")))
        begun = _cover(table, groups, config.seed, ["val", "train"], rest)
        if begun is None:
            return dealt
        parts = dealt.copy()
        shares = {"train": 1 - config.val, "val": config.val}
        parts[rest] = _fill_up(table, groups, config.seed, shares, begun, rest)
        return parts
    if config.folds is not None:
        return _deal_folds_again(table, groups, config, dealt)
    everything = np.arange(len(table))
    begun = _cover(table, groups, config.seed, ["test", "val", "train"], everything)
    if begun is None:
        return dealt
    test = _test_share(config)
    shares = {
        "train": (1 - test) * (1 - config.val),
        "val": (1 - test) * config.val,
        "test": test,
    }
    return _fill_up(table, groups, config.seed, shares, begun, everything)


def _deal_folds_again(
    table: SampleTable, groups: np.ndarray, config: SplitConfig, dealt: np.ndarray
) -> np.ndarray:
    """Search again for the folds that `_deal` has missed; each sample is still tested in one fold.

    The test sets of the other folds stay as they are.
    """
    assert config.folds is not None
    fixed, free = {}, np.ones(len(table), bool)
    for fold in range(config.folds):
        parts = _deal(table, groups, replace(config, fold=fold))
        if not _lacking(table, parts):
            fixed[fold] = parts == "test"
            free &= ~fixed[fold]
    fold, places = config.fold or 0, np.flatnonzero(free)
    names = [str(each) for each in range(config.folds) if each not in fixed]
    # Of two folds each must hold every class twice: it is the other's training and validation.
    wanted = names * 2 if config.folds == 2 else names
    begun = _cover(table, groups, config.seed, wanted, places)
    if begun is None:
        return dealt
    shares = {name: 1 / len(names) for name in names}
    test = places[_fill_up(table, groups, config.seed, shares, begun, places) == str(fold)]
    parts = np.full(len(table), "train", dtype="<U6")
    parts[test] = "test"
    rest = np.flatnonzero(parts == "train")
    begun = _cover(table, groups, config.seed, ["val", "train"], rest)
    if begun is None:
        return dealt
    shares = {"train": 1 - config.val, "val": config.val}
    parts[rest] = _fill_up(table, groups, config.seed, shares, begun, rest)
    return parts


def _fill_up(
    table: SampleTable,
    groups: np.ndarray,
    seed: int,
    shares: Mapping[str, float],
    begun: Mapping[int, str],
    subset: np.ndarray,
) -> np.ndarray:
    """Deal the groups that have no part yet; return the names of a subset's parts."""
    names = list(shares)
    placed = {group: names.index(name) for group, name in begun.items()}
    found = _partition(table, groups, list(shares.values()), seed, subset, placed)
    return np.array([names[part] for part in found])


def _cover(
    table: SampleTable,
    groups: np.ndarray,
    seed: int,
    parts: Sequence[str],
    subset: np.ndarray,
) -> dict[int, str] | None:
    """Choose groups for each part that hold every class, small ones first.

    Args:
        table: The samples.
        groups: The number of each one's group, (n,).
        seed: Decides between groups of equal size.
        parts: The parts; one that occurs twice gets every class twice.
        subset: The positions of the samples whose groups may be chosen.

    Returns:
        The parts of the chosen groups, by group number; None if there is no solution.
    """
    numbers, of_sample = np.unique(groups[subset], return_inverse=True)
    holds = np.zeros((len(numbers), len(table.classes)), bool)
    holds[of_sample, table.labels[subset]] = True
    sizes = np.bincount(of_sample)
    order = sorted(
        range(len(numbers)), key=lambda i: (sizes[i], _hash(table, int(numbers[i]), seed))
    )
    if len(parts) * len(table.classes) > MAX_NEEDS:
        return None
    search = _CoverSearch(holds, order, len(parts))
    if not search.solve():
        return None
    return {int(numbers[group]): parts[part] for group, part in search.chosen.items()}


class _CoverSearch:
    """Backtracking search for groups that give every part every class.

    Of all classes that a part lacks, the one that the fewest groups can give comes first. The
    search is exhaustive up to `MAX_STEPS` steps.

    Args:
        holds: True for a class that a group holds, (groups, classes).
        order: The groups in the order in which they are tried.
        parts: The number of parts.
    """

    def __init__(self, holds: np.ndarray, order: Sequence[int], parts: int) -> None:
        self.chosen: dict[int, int] = {}
        self._holds = holds
        self._order = order
        self._free = np.ones(len(holds), bool)
        self._lacks = np.ones((parts, holds.shape[1]), bool)
        self._steps = 0

    def solve(self) -> bool:
        """Fill `chosen` with the part of each chosen group; return False if there is no way."""
        self._steps += 1
        left, needs = self._holds[self._free].sum(axis=0), self._lacks.sum(axis=0)
        if not needs.any():
            return True
        if self._steps > MAX_STEPS or (left < needs).any():
            return False
        label = int(np.where(needs > 0, left - needs, np.iinfo(np.int64).max).argmin())
        part = int(self._lacks[:, label].argmax())
        tried = set()
        for group in self._order:
            kind = self._holds[group].tobytes()  # of groups that hold the same classes one is tried
            if not self._free[group] or not self._holds[group, label] or kind in tried:
                continue
            tried.add(kind)
            before = self._lacks[part].copy()
            self._free[group], self._lacks[part] = False, before & ~self._holds[group]
            self.chosen[group] = part
            if self.solve():
                return True
            del self.chosen[group]
            self._free[group], self._lacks[part] = True, before
        return False


def _partition(
    table: SampleTable,
    groups: np.ndarray,
    shares: Sequence[float],
    seed: int,
    subset: np.ndarray | None = None,
    placed: Mapping[int, int] | None = None,
) -> np.ndarray:
    """Deal whole groups out to parts so that each part gets its share of every class.

    Groups come in order of size, largest first, and at random within a size; each goes to the
    part that is least full in the group's classes, then to the part least full in all. The random
    order is that of a hash of the seed and the group's first id, so that it depends on no
    library's random stream.

    scikit-learn's StratifiedGroupKFold knows equal folds only, and its draw is free to change
    with its version; a split's digest must not.

    Args:
        table: The samples.
        groups: The number of each one's group, (n,).
        shares: The parts' shares of the samples.
        seed: Decides the order of equally large groups.
        subset: The positions to deal out; None for all.
        placed: The groups whose part is known.

    Returns:
        The number of the part of each of the subset's samples.
    """
    placed = placed or {}
    subset = np.arange(len(table)) if subset is None else subset
    members: dict[int, list[int]] = {}
    for position, index in enumerate(subset):
        members.setdefault(int(groups[index]), []).append(position)

    def rank(item: tuple[int, list[int]]) -> tuple[bool, int, bytes]:
        return item[0] not in placed, -len(item[1]), _hash(table, item[0], seed)

    labels, n_classes = table.labels[subset], len(table.classes)
    wanted = np.outer(shares, np.maximum(np.bincount(labels, minlength=n_classes), 1))
    filled = np.zeros_like(wanted)
    result = np.empty(len(subset), dtype=np.int64)
    for group, positions in sorted(members.items(), key=rank):
        counts = np.bincount(labels[positions], minlength=n_classes)
        fullness = (filled / wanted) @ counts / len(positions)
        overall = filled.sum(axis=1) / wanted.sum(axis=1)
        part = placed.get(group, int(np.lexsort((overall, fullness.round(9)))[0]))
        filled[part] += counts
        result[positions] = part
    return result


def _hash(table: SampleTable, group: int, seed: int) -> bytes:
    """Return what decides a group's place among equals: random, but the same with every library."""
    return hashlib.sha256(f"{seed}\n{table.samples[group].id}".encode()).digest()


def purge(groups: np.ndarray, parts: np.ndarray) -> None:
    """Mark the training samples that share a group with a part that is scored."""
    for scored, others in (("test", ("train", "val")), ("val", ("train",))):
        known = np.isin(groups, groups[parts == scored]) & np.isin(parts, others)
        parts[known] = "purged"


def _check_overlap(
    table: SampleTable, groups: np.ndarray, parts: np.ndarray, config: SplitConfig
) -> None:
    """Raise an error that names two samples of one group in two parts, if there are any."""
    seen: dict[int, int] = {}
    purge = ", or data.split.purge: true" if config.protocol in FIXED else ""
    for i, group in enumerate(groups):
        if parts[i] == "purged":
            continue
        j = seen.setdefault(int(group), i)
        if parts[i] != parts[j]:
            same = table.fingerprints[i] == table.fingerprints[j]
            group_name = _group_name(table, group)
            what = "have the same content" if same else f"belong to group '{group_name}'"
            raise UserError(
                f"the split leaks: '{table.samples[j].id}' ({parts[j]}) and '{table.samples[i].id}'"
                f" ({parts[i]}) {what}; use data.split.protocol: grouped{purge}"
            )


def _group_name(table: SampleTable, group: int) -> str:
    """Return each group's name: its first sample's group, or that sample's id without one."""
    return table.samples[group].group or table.samples[group].id


def _check_classes(
    table: SampleTable, groups: np.ndarray, parts: np.ndarray, config: SplitConfig
) -> None:
    """Refuse a part without a class: no metric over the classes would mean anything.

    Raises:
        UserError: A part has none of a class; the line says whether more groups would help.
    """
    lacking = _lacking(table, parts)
    if not lacking:
        return
    name, missing = next(iter(lacking.items()))
    own = table.labels == table.classes.index(name)
    count, n_groups = int(own.sum()), len(np.unique(groups[own]))
    images = f"{count} image{'' if count == 1 else 's'} in {n_groups} group"
    images += "" if n_groups == 1 else "s"
    least = max(config.folds or 3, 3)
    what = f"{config.folds} folds need" if config.folds else "train, val and test need"
    if config.protocol in FIXED:
        why = "the authors' parts are fixed; use data.split.protocol: grouped"
        if missing == ["val"] or missing == ["train"]:
            why = "its training images cannot be divided; use data.split.protocol: grouped"
    elif n_groups < least:
        why = (
            f"{what} at least {least} groups per class; use fewer folds, or leave the class out"
            if config.folds
            else f"{what} at least {least} groups per class; leave the class out, or add groups"
        )
    else:
        why = (
            "no way was found to divide the groups, each of which stays whole, so that every part "
            "has every class; use fewer folds, or other groups"
        )
    raise UserError(f"class '{name}' ({images}) has none in {', '.join(missing)}: {why}")


def _to_csv(table: SampleTable, groups: np.ndarray, parts: np.ndarray) -> str:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "class", "group", "split", "content"])
    for sample, group, part, content in zip(
        table.samples, groups, parts, table.fingerprints, strict=True
    ):
        rows.writerow(
            [sample.id, table.classes[sample.label], _group_name(table, group), part, content]
        )
    return text.getvalue()


def digest_of(text: str) -> str:
    """Return the SHA-256 of a split.csv's text, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_split(path: Path) -> list[dict[str, str]]:
    """Read a split.csv back as one dictionary per row.

    Raises:
        UserError: It is missing or not a split.csv.
    """
    try:
        with open_text(path) as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the split {path}: {error}") from error
    if not rows or set(rows[0]) != {"id", "class", "group", "split", "content"}:
        raise UserError(f"{path} is not a split.csv (id, class, group, split, content)")
    return rows


def first_seen(
    part: Part,
    rows: Sequence[Mapping[str, str]],
    others: Sequence[Mapping[str, str]],
    seen: Sequence[str],
    *,
    one_dataset: bool = False,
) -> tuple[str, str] | None:
    """Find a sample of a part that is in given parts of another split as well.

    Samples are compared by their contents, as two folders may use the same names for different
    images. Names of samples and groups count only where the two splits are of one dataset, as
    where a sample has the same name and the same content in both.

    Args:
        part: The part to look through.
        rows: The split that it is a part of, as `read_split` gives it.
        others: The other split.
        seen: The other split's parts that no sample may be in.
        one_dataset: True if the two splits are known to be of one dataset.

    Returns:
        The first such sample's id, and what the splits share: "content", "id" or "group"; None
        where there is no such sample.
    """
    groups = {row["group"] for row in others if row["split"] in seen}
    group_of = {row["content"]: row["group"] for row in others}
    # A group goes by another name in a copied folder; its images' contents say which one it is.
    linked = {row["group"] for row in rows if group_of.get(row["content"]) in groups}
    names = {(row["id"], row["content"]) for row in others}
    one_dataset = one_dataset or any((row["id"], row["content"]) in names for row in rows)
    known = {key: {row[key] for row in others if row["split"] in seen} for key in ("content", "id")}
    for row in rows:
        if row["split"] != part:
            continue
        if row["content"] in known["content"]:
            return row["id"], "content"
        if one_dataset and row["id"] in known["id"]:
            return row["id"], "id"
        if row["group"] in linked or (one_dataset and row["group"] in groups):
            return row["id"], "group"
    return None
