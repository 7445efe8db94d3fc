"""Which sample trains, validates, tests: drawn once from (table, protocol, seed)."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from cellbench.data.table import Part, SampleTable
from cellbench.errors import UserError

PARTS: tuple[Part, ...] = get_args(Part)
DEFAULT_TEST_SHARE = 0.2
LEAKY = {"image": "split by image, ignoring groups: copies of one source may be on both sides"}


@dataclass(frozen=True)
class SplitConfig:
    """How the samples are split into train, val and test.

    Attributes:
        protocol: grouped keeps every group (patient, slide, original) in one part; official takes
            the authors' test set (and validation set, if there is one); image ignores the groups,
            to reproduce published numbers, and stamps metrics, figures and reports as leaky.
            Images of equal content stay together under every protocol but official, where they
            are an error, and so are groups that the authors' parts share.
        purge: Under official, leaves out of training (and validation) what shares a group or its
            content with a part that it is to be scored on, instead of the error.
        folds: Number of folds of the cross-validation; null for one split by shares.
        fold: Which fold is the test set, from 0.
        val: Share of the samples outside the test set that validates.
        test: Share of the samples that tests, where there are no folds (default 0.2).
        seed: Seed of the draw; nothing else random depends on it.
    """

    protocol: Literal["grouped", "official", "image"] = "grouped"
    purge: bool = False
    folds: int | None = None
    fold: int | None = None
    val: float = 0.15
    test: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where the values contradict each other."""
        key = "data.split"
        if not 0 < self.val < 1:
            raise UserError(f"{key}.val: {self.val} is no share; give a number between 0 and 1")
        if self.test is not None and not 0 < self.test < 1:
            raise UserError(f"{key}.test: {self.test} is no share; give a number between 0 and 1")
        if self.protocol == "official" and (self.folds is not None or self.test is not None):
            raise UserError(f"{key}: the official test set is fixed; remove folds, fold and test")
        if self.folds is None:
            if self.fold is not None:
                raise UserError(f"{key}.fold: {self.fold} needs {key}.folds, the number of folds")
            return
        if self.test is not None:
            raise UserError(f"{key}: give either folds or test, not both")
        if self.folds < 2:
            raise UserError(f"{key}.folds: {self.folds} is too few; at least 2, or null")
        if not 0 <= (self.fold or 0) < self.folds:
            raise UserError(f"{key}.fold: {self.fold} is not one of 0 to {self.folds - 1}")


@dataclass(frozen=True)
class Split:
    """A drawn split.

    Attributes:
        parts: "train", "val", "test" or "purged" for each sample of the table, shape (n,).
        groups: The number of each sample's group (known groups and equal contents), shape (n,).
        csv: The text of split.csv: id, class, group, split, content; one row a sample.
        digest: SHA-256 of that text. Two runs are comparable only if their digests agree.
        leaky: Why the numbers of this split are not to be believed; None where they are.
    """

    parts: np.ndarray
    groups: np.ndarray
    csv: str
    digest: str
    leaky: str | None

    def indices(self, part: Part) -> np.ndarray:
        """The positions in the table of one part's samples, ascending."""
        return np.flatnonzero(self.parts == part)


def draw(table: SampleTable, config: SplitConfig) -> Split:
    """Draws the split and checks it.

    Raises:
        UserError: A class has too few groups for the parts asked for, there is no official
            split, or two parts share a sample, a content or a group.
    """
    groups = table.groups(known=config.protocol != "image")
    parts = np.full(len(table), "train", dtype="<U6")
    if config.protocol == "official":
        official = [sample.split for sample in table.samples]
        if None in official or "test" not in official:
            raise UserError(
                "data.split.protocol: this dataset has no official test set; use grouped"
            )
        parts = np.array(official, dtype="<U6")
        if config.purge:  # no other protocol divides a group that it knows
            purge(groups, parts)
    elif config.folds is None:
        share = DEFAULT_TEST_SHARE if config.test is None else config.test
        parts[_partition(table, groups, [1 - share, share], config.seed) == 1] = "test"
    else:
        folds = _partition(table, groups, [1 / config.folds] * config.folds, config.seed)
        parts[folds == (config.fold or 0)] = "test"
    if "val" not in parts:
        rest = np.flatnonzero(parts == "train")
        shares = [1 - config.val, config.val]
        parts[rest[_partition(table, groups, shares, config.seed, rest) == 1]] = "val"
    _check_overlap(table, groups, parts, config)
    _check_classes(table, groups, parts, config)
    groups = table.groups()
    text = _to_csv(table, groups, parts)
    return Split(parts, groups, text, digest_of(text), LEAKY.get(config.protocol))


def _partition(
    table: SampleTable,
    groups: np.ndarray,
    shares: Sequence[float],
    seed: int,
    subset: np.ndarray | None = None,
) -> np.ndarray:
    """Deals whole groups out to parts so that each part gets its share of every class.

    Groups come in order of size, largest first, and at random within a size; each goes to the
    part that is least full in the group's classes, then to the part least full in all. The random
    order is that of a hash of the seed and the group's first id, so that it depends on no
    library's random stream.

    scikit-learn's StratifiedGroupKFold knows equal folds only, and its draw is free to change
    with its version; a split's digest must not.
    """
    subset = np.arange(len(table)) if subset is None else subset
    members: dict[int, list[int]] = {}
    for position, index in enumerate(subset):
        members.setdefault(int(groups[index]), []).append(position)

    def rank(item: tuple[int, list[int]]) -> tuple[int, bytes]:
        first_id = table.samples[item[0]].id
        return -len(item[1]), hashlib.sha256(f"{seed}\n{first_id}".encode()).digest()

    labels, n_classes = table.labels[subset], len(table.classes)
    wanted = np.outer(shares, np.maximum(np.bincount(labels, minlength=n_classes), 1))
    filled = np.zeros_like(wanted)
    result = np.empty(len(subset), dtype=np.int64)
    for _, positions in sorted(members.items(), key=rank):
        counts = np.bincount(labels[positions], minlength=n_classes)
        fullness = (filled / wanted) @ counts / len(positions)
        overall = filled.sum(axis=1) / wanted.sum(axis=1)
        part = int(np.lexsort((overall, fullness.round(9)))[0])
        filled[part] += counts
        result[positions] = part
    return result


def purge(groups: np.ndarray, parts: np.ndarray) -> None:
    """Marks what shares a group with a part that it is to be scored on."""
    for scored, others in (("test", ("train", "val")), ("val", ("train",))):
        known = np.isin(groups, groups[parts == scored]) & np.isin(parts, others)
        parts[known] = "purged"


def _check_overlap(
    table: SampleTable, groups: np.ndarray, parts: np.ndarray, config: SplitConfig
) -> None:
    """Says which two samples of one group stand in two parts, if any do."""
    seen: dict[int, int] = {}
    purge = ", or data.split.purge: true" if config.protocol == "official" else ""
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
    """A group goes by its first sample's group, or that sample's id where it has none."""
    return table.samples[group].group or table.samples[group].id


def _check_classes(
    table: SampleTable, groups: np.ndarray, parts: np.ndarray, config: SplitConfig
) -> None:
    """Every class must be in every part: without it no metric over the classes means anything."""
    for label, name in enumerate(table.classes):
        own = table.labels == label
        missing = [part for part in PARTS if not np.any(own & (parts == part))]
        if missing:
            count, n_groups = int(own.sum()), len(np.unique(groups[own]))
            images = f"{count} image{'' if count == 1 else 's'} in {n_groups} group"
            folds = f"{config.folds} folds need" if config.folds else "train, val and test need"
            raise UserError(
                f"class '{name}' ({images}{'' if n_groups == 1 else 's'}) has none in "
                f"{', '.join(missing)}: {folds} at least {max(config.folds or 3, 3)} groups a "
                "class; use fewer folds, larger shares, or leave the class out"
            )


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
    """The SHA-256 of a split.csv's text, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_split(path: Path) -> list[dict[str, str]]:
    """Reads a split.csv back as one dictionary a row.

    Raises:
        UserError: It is missing or not a split.csv.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
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
) -> tuple[str, str] | None:
    """Find a sample of a part that is in given parts of another split as well.

    Samples are compared by their contents, as two folders may use the same names for different
    images. Names of samples and groups count only where the two splits are of one dataset: where
    a sample has the same name and the same content in both.

    Args:
        part: The part to look through.
        rows: The split that it is a part of, as `read_split` gives it.
        others: The other split.
        seen: The other split's parts that no sample may be in.

    Returns:
        The first such sample's id, and what the splits share: "content", "id" or "group"; None
        where there is no such sample.
    """
    groups = {row["group"] for row in others if row["split"] in seen}
    group_of = {row["content"]: row["group"] for row in others}
    # A group goes by another name in a copied folder; its images' contents say which one it is.
    linked = {row["group"] for row in rows if group_of.get(row["content"]) in groups}
    names = {(row["id"], row["content"]) for row in others}
    one_dataset = any((row["id"], row["content"]) in names for row in rows)
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
