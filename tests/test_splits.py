"""The split: whole groups, every class, a digest, folds that partition the data."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cellbench.data.splits import SplitConfig, draw, first_seen
from cellbench.data.table import Sample, SampleTable
from cellbench.utils.errors import UserError


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


def of_groups(groups):
    """A table of groups, each given as its samples' labels, of the classes a, b, ..."""
    samples = [
        Sample(f"s{number}-{i}", label, group=f"g{number}")
        for number, labels in enumerate(groups)
        for i, label in enumerate(labels)
    ]
    classes = "abcdef"[: 1 + max(sample.label for sample in samples)]
    return SampleTable(samples, tuple(classes), [sample.id for sample in samples])


def every_class_is_in(table, split):
    return all(
        set(table.labels[split.indices(part)]) == set(range(len(table.classes)))
        for part in ("train", "val", "test")
    )


def divisible(groups, parts=3):
    """Whether some division puts every class into every part, of all there are."""
    classes = {label for labels in groups for label in labels}
    return any(
        all(
            classes
            == {label for g, p in zip(groups, dealt, strict=True) if p == part for label in g}
            for part in range(parts)
        )
        for dealt in itertools.product(range(parts), repeat=len(groups))
    )


def test_a_split_is_found_wherever_there_is_one():
    chance, found, refused = random.Random(0), 0, 0
    for _ in range(60):
        groups = [
            [k for k in chance.sample(range(3), chance.randint(1, 2)) for _ in range(size)]
            for size in chance.choices(range(1, 5), k=chance.randint(5, 7))
        ]
        if {label for labels in groups for label in labels} != {0, 1, 2}:
            continue
        data, possible = of_groups(groups), divisible(groups)
        for seed in range(3):
            if possible:
                assert every_class_is_in(data, draw(data, SplitConfig(seed=seed)))
                found += 1
            else:
                with pytest.raises(UserError, match=r"at least 3 groups per class|no way was"):
                    draw(data, SplitConfig(seed=seed))
                refused += 1
    assert found >= 20
    assert refused >= 20


def test_nine_groups_of_three_classes_are_always_split():
    for seed in range(150):
        chance = random.Random(seed)
        data = of_groups([[number % 3] * chance.randint(1, 20) for number in range(9)])
        assert every_class_is_in(data, draw(data, SplitConfig(seed=seed)))


def test_the_seed_decides_among_splits_of_few_groups():
    data = of_groups([[1, 0], [1], [0, 2], [0, 1], [1, 2], [0, 2]])
    digests = set()
    for seed in range(150):
        split = draw(data, SplitConfig(seed=seed))
        assert every_class_is_in(data, split)
        assert draw(data, SplitConfig(seed=seed)).digest == split.digest
        digests.add(split.digest)
    assert len(digests) > 5


@pytest.mark.parametrize("folds", [2, 3])
def test_folds_of_few_groups_test_every_sample_once(folds):
    groups = [[0, 1], [1], [2, 0, 0], [1, 2], [0], [2], [0, 1, 2], [1, 1], [0], [2, 2]]
    data, partitioned = of_groups(groups), 0
    for seed in range(20):
        tested = Counter()
        for fold in range(folds):
            split = draw(data, SplitConfig(folds=folds, fold=fold, seed=seed))
            assert every_class_is_in(data, split)
            tested.update(split.indices("test").tolist())
        partitioned += tested == Counter(range(len(data)))
    assert partitioned == 20


def test_splits_that_were_found_before_are_the_same():
    """Digests of the first version; runs on disk are compared by them."""
    digests = [
        draw(table(), SplitConfig(seed=3)).digest[:12],
        draw(table(n=300, groups=60), SplitConfig(folds=5, fold=2)).digest[:12],
        draw(of_groups([[n % 3] * (1 + n % 2) for n in range(12)]), SplitConfig(seed=2)).digest[
            :12
        ],
    ]
    assert digests == ["2e8ba519b9bc", "dd7a792f01bb", "d74ae166b620"]


def test_groups_that_cannot_be_divided_are_not_called_few():
    data = of_groups([[0, 1], [0, 2], [1, 2], [0, 1, 2]])
    with pytest.raises(UserError, match=r"groups\) has none in .*: no way was found to divide"):
        draw(data, SplitConfig())


def test_a_class_that_the_authors_left_out_of_the_test_set_is_named():
    samples = [
        Sample(f"s{i}", i % 2, group=f"g{i}", split="test" if i % 4 == 0 else "train")
        for i in range(40)
    ]
    data = SampleTable(samples, ("a", "b"), [sample.id for sample in samples])
    with pytest.raises(UserError, match=r"class 'b' .* has none in test: the authors' parts are"):
        draw(data, SplitConfig(protocol="official"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fold": 1}, "needs data.split.folds"),
        ({"folds": 5, "fold": 5}, "not one of 0 to 4"),
        ({"folds": 5, "test": 0.2}, "either folds or test"),
        ({"val": 0.0}, "data.split.val: 0.0 is not greater than 0"),
        ({"protocol": "official", "folds": 5}, "official test set is fixed"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        SplitConfig(**values)


def rows(*samples):
    keys = ("id", "group", "split", "content")
    return [dict(zip(keys, sample, strict=True)) for sample in samples]


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        # Other images under the same names, and groups of the same name.
        ([("a/0", "p1", "test", "x")], [("a/0", "p1", "train", "y")], None),
        # The same image under another name.
        ([("b/9", "b/9", "test", "y")], [("a/0", "p1", "train", "y")], ("b/9", "content")),
        # What the other run did not see.
        ([("a/0", "p1", "test", "y")], [("a/0", "p1", "test", "y")], None),
        # One dataset, as its second image shows: an image that was replaced since.
        (
            [("a/0", "p1", "test", "x"), ("a/1", "p2", "train", "z")],
            [("a/0", "p3", "train", "y"), ("a/1", "p2", "train", "z")],
            ("a/0", "id"),
        ),
        # One dataset that has grown: another image of a patient.
        (
            [("a/2", "p1", "test", "x"), ("a/1", "p2", "train", "z")],
            [("a/0", "p1", "train", "y"), ("a/1", "p2", "train", "z")],
            ("a/2", "group"),
        ),
        # A copied dataset under other names: p1 was divided there, and is q1 here.
        (
            [("n0", "q1", "test", "x"), ("n1", "q1", "test", "z")],
            [("a/0", "p1", "train", "y"), ("a/1", "p1", "test", "z")],
            ("n0", "group"),
        ),
    ],
)
def test_samples_are_the_same_by_content_and_by_name_within_a_dataset(now, before, expected):
    assert first_seen("test", rows(*now), rows(*before), ("train", "val")) == expected


def with_folds(names, **sample):
    """Return a table with one image for each fold name, the classes in turn."""
    samples = [Sample(f"s{i:02}", i % 2, fold=name, **sample) for i, name in enumerate(names)]
    return SampleTable(samples, ["a", "b"], [str(i) for i in range(len(samples))])


def test_predefined_folds_are_the_test_sets():
    names = [name for name in ("10", "2", "1") for _ in range(8)]
    data = with_folds(names)
    tested = []
    for fold, name in enumerate(["1", "2", "10"]):  # numbers in their order
        split = draw(data, SplitConfig("predefined", fold=fold))
        assert (split.folds, split.fold, split.fold_name) == (3, fold, name)
        test = split.indices("test")
        assert {data.samples[i].fold for i in test} == {name}
        assert every_class_is_in(data, split)
        assert {data.samples[i].fold for i in split.indices("val")} <= set(names) - {name}
        tested += test.tolist()
    assert sorted(tested) == list(range(24))
    assert draw(data, SplitConfig("predefined", folds=3)).fold == 0


def test_predefined_folds_that_share_a_group_are_refused_or_purged():
    names = ["x"] * 8 + ["y"] * 8 + ["z"] * 8
    samples = list(with_folds(names).samples)
    samples[0], samples[8] = (replace(samples[i], group="patient 7") for i in (0, 8))
    data = SampleTable(samples, ["a", "b"], [str(i) for i in range(24)])
    with pytest.raises(UserError, match=r"belong to group 'patient 7'; .*data\.split\.purge"):
        draw(data, SplitConfig("predefined"))
    purged = draw(data, SplitConfig("predefined", purge=True))
    assert purged.parts[8] == "purged"
    assert (purged.parts == "purged").sum() == 1


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([None] * 12, {}, "this dataset has no folds of its own"),
        (["a"] * 12, {}, "this dataset has no folds of its own"),
        (["a"] * 6 + ["b"] * 5 + [None], {}, "'s11' has no fold .1 of 12"),
        (["a"] * 6 + ["b"] * 6, {"fold": 2}, r"data.split.fold: 2 is not one of 0 to 1 .a, b."),
        (["a"] * 6 + ["b"] * 6, {"folds": 5}, r"folds: 5, but the dataset has 2 folds .a, b."),
        (["a"] * 6 + ["b"] * 6, {"fold": -1}, "-1 is negative"),
        (["a"] * 6 + ["b"] * 6, {"test": 0.2}, "the dataset's folds are the test sets"),
    ],
)
def test_predefined_folds_that_do_not_fit_are_refused(names, options, message):
    with pytest.raises(UserError, match=message):
        draw(with_folds(names), SplitConfig("predefined", **options))


def test_the_known_groups_are_counted():
    assert with_folds(["a", "b"]).known_groups == "none known"
    assert with_folds(["a", "b"], group="p").known_groups == "1 group, known for all images"
    samples = [Sample("a", 0, group="p"), Sample("b", 1, group="q"), Sample("c", 1)]
    some = SampleTable(samples, ["a", "b"], ["1", "2", "3"])
    assert some.known_groups == "2 groups, known for 2 of 3 images"
