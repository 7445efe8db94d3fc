"""The split: whole groups, every class, a digest, folds that partition the data."""

from collections import Counter

import numpy as np
import pytest

from cellbench.data.splits import SplitConfig, draw
from cellbench.data.table import Sample, SampleTable
from cellbench.errors import UserError


def table(n=120, groups=30, duplicates=()):
    samples = [Sample(f"s{i:03d}", i % 3, group=f"g{i % groups}") for i in range(n)]
    contents = [f"c{i}" for i in range(n)]
    for i, j in duplicates:
        contents[j] = contents[i]
    return SampleTable(samples, ("a", "b", "c"), contents)


def test_folds_partition_the_data_and_keep_groups_whole():
    data = table()
    tested = Counter()
    for fold in range(5):
        split = draw(data, SplitConfig(folds=5, fold=fold))
        tested.update(split.indices("test").tolist())
        for group in np.unique(split.groups):
            assert len(set(split.parts[split.groups == group])) == 1
    assert tested == Counter(range(len(data)))


def test_equal_contents_stay_together_even_by_image():
    data = table(groups=120, duplicates=[(0, 3), (3, 99), (10, 40)])
    for seed in range(10):
        parts = draw(data, SplitConfig(protocol="image", seed=seed)).parts
        assert parts[0] == parts[3] == parts[99]
        assert parts[10] == parts[40]


def test_digest_depends_on_seed_and_not_on_the_order_of_the_files():
    data = table()
    shuffled = SampleTable(data.samples[::-1], data.classes, data.fingerprints[::-1])
    assert draw(data, SplitConfig()).digest == draw(shuffled, SplitConfig()).digest
    assert draw(data, SplitConfig()).digest != draw(data, SplitConfig(seed=1)).digest


def test_classes_keep_their_shares():
    split = draw(table(n=300, groups=300), SplitConfig(test=0.2, val=0.25))
    labels = np.arange(300) % 3
    for part, share in (("test", 0.2), ("val", 0.2), ("train", 0.6)):
        counts = np.bincount(labels[split.indices(part)])
        assert np.abs(counts - 100 * share).max() <= 1


def test_official_overlap_of_contents_is_an_error():
    samples = [Sample(f"s{i}", i % 2, split="test" if i < 8 else "train") for i in range(24)]
    contents = [f"c{i}" for i in range(24)]
    contents[20] = contents[2]
    data = SampleTable(samples, ("a", "b"), contents)
    with pytest.raises(UserError, match=r"'s2' .*'s20' .*have the same content"):
        draw(data, SplitConfig(protocol="official"))


def test_a_class_with_too_few_groups_is_named():
    samples = [Sample(f"s{i}", int(i >= 20)) for i in range(23)]
    data = SampleTable(samples, ("many", "few"), [f"c{i}" for i in range(23)])
    with pytest.raises(UserError, match=r"class 'few' \(3 images in 3 groups\).*5 folds"):
        draw(data, SplitConfig(folds=5, fold=4))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fold": 1}, "needs data.split.folds"),
        ({"folds": 5, "fold": 5}, "not one of 0 to 4"),
        ({"folds": 5, "test": 0.2}, "either folds or test"),
        ({"val": 0.0}, "no share"),
        ({"protocol": "official", "folds": 5}, "official test set is fixed"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        SplitConfig(**values)
