"""The report: what it concludes, what it refuses, and a page that shows names as text."""

import html
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from scipy import stats
from sklearn.metrics import accuracy_score, roc_auc_score

from cellbench.__main__ import main
from cellbench.artifacts.conditions import few_groups
from cellbench.artifacts.finished import read_finished
from cellbench.data.files import fingerprint
from cellbench.metrics.tests import Difference, paired_interval
from cellbench.report.comparison import Comparison, Contrast
from cellbench.report.report import shown_numbers, shown_p
from tests.conftest import replace_masks, write_image
from tests.drawn_runs import CLASSES, cross_validation, draw


@pytest.fixture
def report(tmp_path, capsys):
    """Runs the command; gives what it prints, report.json and the page."""

    def run(*args):
        capsys.readouterr()
        paths = [arg for arg in args if not str(arg).startswith("--")] or [tmp_path / "runs"]
        options = [arg for arg in args if str(arg).startswith("--")]
        output = tmp_path / "out"
        assert main(["report", *map(str, paths), *options, f"--output={output}"]) == 0
        plain = json.loads((output / "report.json").read_text())
        return capsys.readouterr().out, plain, (output / "report.html").read_text()

    return run


def accuracy(path):
    (run,), _ = read_finished([path])
    return accuracy_score(run.test.labels, run.test.predicted)


def test_a_difference_is_found_with_the_mean_of_the_seeds_of_each_fold(report, tmp_path):
    cross_validation(tmp_path / "runs", seeds=3, view="raw", recall=0.9)
    cross_validation(tmp_path / "runs", seeds=3, view="background", recall=0.4)
    out, plain, page = report("--reference=raw")
    (one,) = plain["comparisons"]
    differences = [
        np.mean(
            [
                accuracy(tmp_path / "runs" / "cells-background" / f"{fold}-{seed}")
                - accuracy(tmp_path / "runs" / "cells-raw" / f"{fold}-{seed}")
                for seed in range(3)
            ]
        )
        for fold in range(5)
    ]
    found = one["contrast"]["difference"]
    assert found["mean"] == pytest.approx(np.mean(differences))
    ratio = np.mean([20 / 70] * 5)  # test images for each training image
    scale = np.sqrt((1 / 5 + ratio) * np.var(differences, ddof=1))
    assert found["high"] == pytest.approx(found["mean"] + stats.t.ppf(0.975, 4) * scale)
    assert one["p"] == found["p"] < 0.05
    assert one["contrast"]["test"] == "corrected resampled t-test"
    assert (one["n"], len(one["pairs"]), one["contrast"]["splits"]) == (100, 15, 5)
    (sentence,) = plain["verdict"]
    assert sentence.startswith("background is worse than raw (n = 100, 5 splits, 3 seeds each): ")
    assert sentence in " ".join(out.split())
    assert html.escape(sentence) in page
    assert one["judgement"] == "worse"
    assert one["contrast"]["about"] == "condition"
    assert told(sentence) == pytest.approx(
        (one["value"], one["reference_value"], found["mean"]), abs=1.1e-3
    )
    (raw, other) = plain["conditions"]
    assert (raw["name"], other["name"]) == ("raw", "background")
    assert raw["samples"] == 100
    assert raw["n"] == 300
    assert raw["groups"] == 100


def told(sentence):
    """Both values and the difference that a sentence tells."""
    pattern = r": accuracy ([.\d]+) against ([.\d]+), difference ([-+]?[.\d]+)"
    return tuple(map(float, re.search(pattern, sentence).groups()))


def test_conditions_alike_need_more_data(report, tmp_path):
    cross_validation(tmp_path / "runs", seeds=2, view="raw")
    cross_validation(tmp_path / "runs", seeds=2, view="masked")
    _, plain, _ = report()
    (sentence,) = plain["verdict"]
    assert ": too few data to tell which is better: accuracy " in sentence
    assert "within ±0.01 with probability" in sentence
    found = plain["comparisons"][0]["contrast"]["difference"]
    assert found["low"] < 0 < found["high"]
    assert f"it may be anything from {found['low']:+.3f} to {found['high']:+.3f}" in sentence
    assert plain["comparisons"][0]["judgement"] == "too few data"
    assert found["worse"] + found["same"] + found["better"] == pytest.approx(1)


def test_one_test_set_is_judged_by_mcnemar_and_a_bootstrap(report, tmp_path):
    for view, recall in (("raw", 0.95), ("nucleus", 0.6)):
        path = tmp_path / "runs" / view
        draw(path, view=view, recall=recall, fold=None, folds=None, n=200)
    _, plain, _ = report("--reference=raw")
    (one,) = plain["comparisons"]
    assert one["contrast"]["test"] == "McNemar's exact test"
    runs, _ = read_finished([tmp_path / "runs"])
    right = [run.test.predicted == run.test.labels for run in runs]  # nucleus, raw
    b, c = (right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum()
    assert one["p"] == pytest.approx(stats.binomtest(int(b), int(b + c)).pvalue)
    found = one["contrast"]["difference"]
    assert (found["low"], found["high"]) == pytest.approx(paired_interval(c, b, len(right[0])))
    assert found["mean"] == pytest.approx(right[0].mean() - right[1].mean())
    assert found["low"] < found["mean"] < found["high"] < 0
    assert found["n"] == len(right[0])


def test_one_run_each_is_a_trained_model_and_not_a_condition(report, tmp_path):
    for view, recall in (("raw", 0.95), ("nucleus", 0.6)):
        path = tmp_path / "runs" / view
        draw(path, view=view, recall=recall, fold=None, folds=None, n=400)
    out, plain, page = report("--reference=raw")
    words = "this trained model is worse on these cells; other seeds were not tried"
    assert plain["verdict"][0].startswith("nucleus against raw (n = 80, one seed each): " + words)
    assert words in " ".join(out.split())
    assert words in page
    assert ">worse (this trained model)<" in page
    assert plain["comparisons"][0]["contrast"]["about"] == "trained model"
    for view in ("raw", "nucleus"):  # a second seed makes it the condition's
        path = tmp_path / "runs" / f"{view}-1"
        draw(path, view=view, recall=0.8, fold=None, folds=None, n=400, seed=1)
    _, plain, page = report("--reference=raw")
    assert plain["comparisons"][0]["contrast"]["about"] == "condition"
    assert "trained model" not in plain["verdict"][0] + page


def test_the_variation_between_seeds_counts_on_one_test_set(report, tmp_path):
    """The seeds of each condition differ more than the conditions do."""
    for view, recalls in (("raw", (0.2, 0.95)), ("masked", (0.3, 0.99))):
        for seed, recall in enumerate(recalls):
            path = tmp_path / "runs" / f"{view}{seed}"
            draw(path, view=view, recall=recall, fold=None, folds=None, n=2000, seed=seed)
    _, plain, _ = report("--reference=raw")
    (one,) = plain["comparisons"]
    values = np.array([[pair["reference"], pair["value"]] for pair in one["pairs"]])
    between = values.var(axis=0, ddof=1).sum() / 2
    found = one["contrast"]["difference"]
    assert found["mean"] == pytest.approx(np.diff(values.mean(axis=0))[0])
    assert (found["high"] - found["low"]) / 2 > stats.norm.ppf(0.975) * np.sqrt(between)
    assert one["judgement"] == "too few data"
    assert -1 <= found["low"] < 0 < found["high"] <= 1


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_the_sentence_has_the_values_of_the_table(report, tmp_path, metric):
    """The folds have from 10 to 30 images."""
    for view, recall in (("raw", 0.9), ("masked", 0.7)):
        cross_validation(tmp_path / "runs", view=view, recall=recall, n=100, groups=7)
    _, plain, page = report("--reference=raw", f"--metric={metric}")
    raw, masked = (one["metrics"][metric]["value"] for one in plain["conditions"])
    (one,) = plain["comparisons"]
    assert (one["reference_value"], one["value"]) == pytest.approx((raw, masked))
    assert one["contrast"]["difference"]["mean"] == pytest.approx(masked - raw)
    shown = float(f"{masked:.3f}") - float(f"{raw:.3f}")  # what a reader would subtract
    assert f"{masked:.3f} against {raw:.3f}, difference {shown:+.3f}" in plain["verdict"][0]
    assert f">{shown:+.3f} [" in page


@pytest.mark.parametrize(
    ("value", "reference", "low", "high", "shown"),
    [
        (0.8114, 0.8006, -0.02, 0.03, ("0.811", "0.801", "+0.010 [-0.020, +0.030]")),
        (0.80052, 0.80050, 1e-5, 3e-5, ("0.80052", "0.80050", "+0.00002 [+0.00001, +0.00003]")),
        (0.8004, 0.8006, -3e-4, -1e-4, ("0.8004", "0.8006", "-0.0002 [-0.0003, -0.0001]")),
        (0.80049, 0.80051, -0.03, 0.0004, ("0.8005", "0.8005", None)),
        (0.9, 0.9, None, None, ("0.900", "0.900", "0.000 (no interval)")),
    ],
)
def test_shown_numbers_agree_with_each_other(value, reference, low, high, shown):
    found = Difference(value - reference, low, high, 0.01, 100)
    contrast = Contrast(found, (), "condition", 1, (1, 1), True, "", (), 0)
    one = Comparison("b", "a", "better", value, reference, (), (), contrast, 0.01, 100)
    numbers = shown_numbers(one)
    assert (numbers.value, numbers.reference_value) == shown[:2] or shown[2] is None
    assert numbers.size == shown[2] or shown[2] is None
    difference = float(numbers.difference)
    assert difference == pytest.approx(float(numbers.value) - float(numbers.reference_value))
    assert (difference != 0) == (value != reference)
    if numbers.interval is not None:
        assert float(numbers.interval[0]) <= difference <= float(numbers.interval[1])


def test_a_p_below_the_limit_is_not_shown_as_the_limit():
    given = (0.0004, 0.012, 0.0494, 0.0496, 0.04996, 0.05, 0.0504, 1.0)
    told = ["< .001", "= .012", "= .049", "< .05", "< .05", "= .050", "= .050", "= 1.000"]
    assert [shown_p(p) for p in given] == told


def test_a_sentence_names_the_runs_without_a_partner(report, tmp_path):
    given = {"fold": None, "folds": None, "n": 400}
    draw(tmp_path / "runs" / "a", view="raw", recall=0.9, **given)
    draw(tmp_path / "runs" / "b", view="raw", recall=0.6, seed=1, **given)
    draw(tmp_path / "runs" / "c", view="masked", recall=0.85, **given)
    _, plain, page = report("--reference=raw")
    (one,) = plain["comparisons"]
    assert plain["verdict"][0].endswith("; left out, as they have no pair: seed 1 of raw.")
    assert [run["path"] for run in one["left_out"]] == [str(tmp_path / "runs" / "b")]
    paired = accuracy(tmp_path / "runs" / "c"), accuracy(tmp_path / "runs" / "a")
    assert told(plain["verdict"][0]) == pytest.approx((*paired, paired[0] - paired[1]), abs=1.1e-3)
    assert "1 run of the two conditions has no partner" in page


def test_practically_the_same_on_one_test_set(report, tmp_path):
    for view in ("raw", "masked"):
        for seed in range(3):
            path = tmp_path / "runs" / f"{view}{seed}"
            draw(path, view=view, recall=0.97, fold=None, folds=None, n=4000, seed=seed)
    _, plain, _ = report("--reference=raw", "--rope=0.05")
    (one,) = plain["comparisons"]
    assert one["judgement"] == "the same"
    assert plain["verdict"][0].startswith("masked is practically as good as raw (n = 800, 3 seeds")
    assert "; all of it within ±0.05; p " in plain["verdict"][0]
    _, plain, _ = report("--reference=raw", "--rope=0.0001")
    assert plain["comparisons"][0]["judgement"] == "too few data"


def test_the_largest_of_many_differences_is_the_largest_either_way(report, tmp_path):
    recalls = (0.95, 0.9, 0.4, 0.85, 0.8, 0.9, 0.85, 0.8)
    for k, recall in enumerate(recalls):
        path = tmp_path / "runs" / str(k)
        draw(path, view=f"view{k}", recall=recall, fold=None, folds=None, n=1500)
    _, plain, _ = report("--reference=view0")
    means = {one["name"]: one["contrast"]["difference"]["mean"] for one in plain["comparisons"]}
    assert max(means.values()) < 0
    whole, largest = plain["verdict"]
    assert largest.startswith("The largest difference of 7, and picked by it: view2 against view0")
    assert re.search(r"\d worse \(this trained model\)", whole)


def test_images_of_one_group_count_as_one(report, tmp_path):
    for view, recall in (("raw", 0.9), ("nucleus", 0.6)):
        for name, groups in (("alone", None), ("grouped", 40)):
            path = tmp_path / name / view
            draw(path, view=view, recall=recall, fold=None, folds=None, n=400, groups=groups)
    widths = {}
    for name in ("alone", "grouped"):
        _, plain, _ = report(tmp_path / name)
        (one,) = plain["comparisons"]
        widths[name] = one["contrast"]["difference"]
        kind = "McNemar's exact test" if name == "alone" else "bootstrap of the test set's groups"
        assert one["contrast"]["test"] == kind
        assert ("(n = 80, 8 groups, one seed" in plain["verdict"][0]) == (name == "grouped")
    assert widths["alone"]["n"] == 80
    assert widths["grouped"]["n"] == 8


def test_several_comparisons_are_adjusted_by_holm(report, tmp_path):
    for view, recall in (("raw", 0.9), ("nucleus", 0.7), ("silhouette", 0.5), ("crop", 0.88)):
        cross_validation(tmp_path / "runs", view=view, recall=recall, n=200)
    _, plain, _ = report("--reference=raw")
    raw = {one["name"]: one["contrast"]["difference"]["p"] for one in plain["comparisons"]}
    adjusted = {one["name"]: one["p"] for one in plain["comparisons"]}
    order = sorted(raw, key=raw.get)
    assert adjusted[order[0]] == pytest.approx(min(3 * raw[order[0]], 1))
    assert adjusted[order[1]] >= raw[order[1]]
    assert [adjusted[name] for name in order] == sorted(adjusted.values())
    for one, sentence in zip(plain["comparisons"], plain["verdict"], strict=True):
        found = one["contrast"]["difference"]
        assert (one["p"] < 0.05) == (found["low"] > 0 or found["high"] < 0)
        assert 1 - found["level"] == pytest.approx(0.05 * raw[one["name"]] / one["p"])
        assert "(p and interval by Holm for 3 comparisons)" in sentence


def test_factors_of_a_grid_have_main_effects_and_an_interaction(report, tmp_path):
    recalls = {("raw", 0.1): 0.9, ("raw", 0.3): 0.9, ("masked", 0.1): 0.9, ("masked", 0.3): 0.3}
    for (view, l2), recall in recalls.items():
        root = tmp_path / "runs" / str(l2)
        cross_validation(root, view=view, recall=recall, n=300, l2=l2)
    out, plain, _ = report("--reference=view raw, l2 0.1")
    found = {one["what"]: one for one in plain["effects"]}
    assert set(found) == {
        "view: masked against raw",
        "l2: 0.3 against 0.1",
        "view masked x l2 0.3",
    } or set(found) == {"l2: 0.3 against 0.1", "view: masked against raw", "l2 0.3 x view masked"}
    (interaction,) = [one for one in found.values() if one["interaction"]]
    value = {
        key: np.mean(
            [
                accuracy(tmp_path / "runs" / str(key[1]) / f"cells-{key[0]}" / f"{fold}-0")
                for fold in range(5)
            ]
        )
        for key in recalls
    }
    expected = value["masked", 0.3] - value["masked", 0.1] - value["raw", 0.3] + value["raw", 0.1]
    assert interaction["contrast"]["difference"]["mean"] == pytest.approx(expected)
    main_effect = found["view: masked against raw"]["contrast"]["difference"]["mean"]
    masked = value["masked", 0.3] + value["masked", 0.1]
    assert main_effect == pytest.approx((masked - value["raw", 0.3] - value["raw", 0.1]) / 2)
    assert "interaction" in out


def test_a_number_that_varies_is_drawn_as_a_curve(report, tmp_path):
    for lr in (0.0001, 0.001, 0.01):
        cross_validation(tmp_path / "runs" / str(lr), lr=lr)
    _, _, page = report()
    assert "<h2>Curves</h2>" in page
    assert ">model.lr<" in page


def test_damaged_runs_are_named_and_the_rest_is_reported(report, tmp_path):
    runs = tmp_path / "runs"
    cross_validation(runs, view="raw")
    cross_validation(runs, view="masked", recall=0.7)
    broken = {
        "no predictions": "cannot read the predictions",
        "cut": "samples of the test split, and split.csv",
        "cut in a line": "line 3 is cut short; restore it",
        "other classes": "its classes are x, y, z",
        "other digest": "and metrics.json says",
        "nan": "the probabilities of 'cell 000.png' are not numbers",
        "no yaml": "cannot read config.yaml",
        "no json": "cannot read metrics.json",
        "no split": "cannot read split.csv",
        "other labels": "has other labels in the test split than split.csv",
    }
    for seed, name in enumerate(broken, start=1):
        classes = ("x", "y", "z") if name == "other classes" else CLASSES
        draw(runs / name, seed=seed, classes=classes)
    predictions = {name: runs / name / "predictions.csv" for name in broken}
    predictions["no predictions"].unlink()
    text = predictions["cut"].read_text()
    predictions["cut"].write_text("\n".join(text.splitlines()[:-3]) + "\n")
    lines = predictions["cut in a line"].read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0]
    predictions["cut in a line"].write_text("\n".join(lines) + "\n")
    metrics = json.loads((runs / "other digest" / "metrics.json").read_text())
    metrics["split"]["digest"] = "0" * 64
    (runs / "other digest" / "metrics.json").write_text(json.dumps(metrics))
    lines = predictions["nan"].read_text().splitlines()
    k = next(i for i, line in enumerate(lines) if line.startswith("cell 000.png,test"))
    lines[k] = ",".join([*lines[k].split(",")[:4], "nan", "nan", "nan"])
    predictions["nan"].write_text("\n".join(lines) + "\n")
    (runs / "no yaml" / "config.yaml").write_text("a: [")
    (runs / "no json" / "metrics.json").write_text('{"experiment": ')
    (runs / "no split" / "split.csv").unlink()
    text = predictions["other labels"].read_text()
    predictions["other labels"].write_text(text.replace(",test,a,", ",test,b,"))
    draw(runs / "unfinished", seed=20)
    (runs / "unfinished" / "metrics.json").unlink()

    out, plain, page = report()
    left = {one["path"].rpartition("/")[2]: one for one in plain["left_out"]}
    assert set(left) == {*broken, "unfinished"}
    for name, reason in broken.items():
        assert reason in left[name]["reason"], name
        assert left[name]["damaged"]
        assert f"LEFT OUT {runs / name}" in re.sub(r"\s+", " ", out.replace("\n", ""))
        assert str(runs / name) in page
    assert not left["unfinished"]["damaged"]
    assert [len(each["runs"]) for each in plain["conditions"]] == [5, 5]
    assert plain["comparisons"][0]["contrast"]["splits"] == 5


def test_a_pair_of_other_splits_is_refused_by_name(report, tmp_path):
    cross_validation(tmp_path / "runs", view="raw")
    cross_validation(tmp_path / "runs", view="masked")
    shutil.rmtree(tmp_path / "runs" / "cells-masked" / "3-0")
    draw(tmp_path / "runs" / "cells-masked" / "3-0", view="masked", fold=3, groups=20)
    out, plain, page = report("--reference=raw")
    (one,) = plain["comparisons"]
    (reason,) = one["contrast"]["refused"]
    assert f"{tmp_path / 'runs' / 'cells-masked' / '3-0'} and " in reason
    assert "their splits differ" in reason
    assert "their splits differ" in page
    assert "NOT PAIRED" in out
    assert one["contrast"]["splits"] == 4
    shutil.rmtree(tmp_path / "runs" / "cells-masked" / "4-0")
    _, plain, page = report("--reference=raw")
    assert plain["comparisons"][0]["contrast"]["unpaired"] == 1
    assert "left out, as they have no pair: fold 4 seed 0 of raw" not in plain["verdict"][0]
    assert "fold 3 seed 0 and fold 4 seed 0 of raw, fold 3 seed 0 of masked" in plain["verdict"][0]
    assert "3 runs of the two conditions have no partner" in page


def test_little_is_said_of_little(report, tmp_path):
    cross_validation(tmp_path / "one", folds=2)
    _, plain, _ = report(tmp_path / "one")
    assert plain["verdict"][0].startswith("There is one condition alone, cells, and nothing")
    for view in ("raw", "masked"):  # the same in every pair
        cross_validation(tmp_path / "ties", view=view, recall=1.0)
    _, plain, page = report(tmp_path / "ties", "--reference=raw")
    assert plain["verdict"] == [
        "masked against raw (n = 100, 5 splits, one seed each): too few data to tell which is "
        "better: accuracy 1.000 against 1.000, difference 0.000, and it may be anything from "
        "-0.037 to +0.037; p = 1.000."
    ]
    assert ">too few data to tell<" in page
    _, plain, page = report(tmp_path / "ties", "--reference=raw", "--metric=f1_macro")
    assert plain["verdict"] == [
        "masked against raw (n = 100, 5 splits, one seed each): not to be judged, as nothing "
        "varies: f1 macro 1.000 against 1.000, difference 0.000 (no interval)."
    ]
    assert ">not judged<" in page
    for view in ("raw", "masked"):
        draw(tmp_path / "fold" / view, view=view)
    _, plain, page = report(tmp_path / "fold")
    assert plain["comparisons"][0]["contrast"]["splits"] == 1
    assert "NOTE folds 1, 2, 3, 4 are missing: 20 images are tested" in page


EVIL = '<script>alert("x")</script>\'&amp;'


class _Elements(HTMLParser):
    """What a browser would make elements of."""

    def __init__(self):
        super().__init__()
        self.tags, self.links = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for key, value in attrs if key in ("href", "src", "xlink:href")]
        assert not [key for key, _ in attrs if key.startswith("on")]


def test_names_are_shown_as_text_and_nothing_is_fetched(report, tmp_path):
    classes = (EVIL, "two\nlines $x^2$", "שלום {{ 7 * 7 }}")
    name = "שם <img src=x onerror=alert(1)> $a$ {:03d}.png"
    for view in ("raw", "masked"):
        cross_validation(tmp_path / "runs", view=view, recall=0.6, classes=classes, names=name)
    _, plain, page = report("--reference=raw")
    assert list(plain["conditions"][0]["classes"]) == list(classes)
    found = _Elements()
    found.feed(page)
    assert not found.tags & {"script", "iframe", "link", "object"}
    assert all(link.startswith(("data:image/", "#")) for link in found.links)
    assert "alert(&#34;x&#34;)" in page
    assert "onerror=alert(1)&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "49</bdi>" not in page


def test_the_errors_are_shown_as_pictures_of_the_very_files_that_were_tested(report, tmp_path):
    names, images = "inside {:03d}.png", tmp_path / "images"
    for i in range(100):
        write_image(images / names.format(i), np.full((40, 60, 3), 100 + i, np.uint8))
    contents = [fingerprint(images / names.format(i)) for i in range(100)]
    given = {"recall": 0.5, "names": names, "contents": contents, "data_root": images}
    cross_validation(tmp_path / "runs", **given)
    assert report()[2].count("data:image/jpeg") == 12
    for i in range(100):
        write_image(images / names.format(i), np.full((40, 60, 3), 250 - i, np.uint8))
    _, _, page = report()  # they have changed, or the configuration names other files
    assert "data:image/jpeg" not in page
    assert "inside 0" in page


def test_an_official_test_set_is_one_test_set_whatever_the_splits_seed(report, tmp_path):
    """Its seed draws another validation split, so that the digests differ."""
    for view in ("raw", "masked"):
        for k in range(3):
            path = tmp_path / "runs" / f"{view}{k}"
            draw(path, view=view, fold=None, folds=None, split_seed=k, seed=k, n=200)
    runs, _ = read_finished([tmp_path / "runs"])
    assert len({run.split.digest for run in runs}) == 3
    _, plain, _ = report()
    contrast = plain["comparisons"][0]["contrast"]
    assert contrast["splits"] == 1
    assert contrast["runs"] == [3, 3]
    assert contrast["test"] == "bootstrap of the test set's groups, with the variance between runs"
    assert contrast["difference"]["n"] == 40


def test_seeds_are_counted_by_split(report, tmp_path):
    for view in ("raw", "masked"):
        cross_validation(tmp_path / "runs", view=view)
        for seed in (1, 2):
            draw(tmp_path / "runs" / f"{view}-more{seed}", view=view, fold=0, seed=seed)
    _, plain, _ = report()
    assert "5 splits, 1 to 3 seeds each" in plain["verdict"][0]
    assert plain["notes"] == ["some seeds lack folds, whose images count less in what is pooled"]
    assert plain["stamps"] == []


def test_what_differs_by_less_than_matters_is_the_same(report, tmp_path):
    for view in ("raw", "masked"):
        cross_validation(tmp_path / "runs", view=view, seeds=2, n=400, recall=0.99)
    _, plain, _ = report("--rope=0.2")
    assert "is practically as good as" in plain["verdict"][0]


def test_other_images_are_another_condition(report, tmp_path):
    cross_validation(tmp_path / "runs" / "one", data_root=tmp_path / "a")
    contents = [f"{i + 7:032x}" for i in range(100)]
    cross_validation(tmp_path / "runs" / "other", data_root=tmp_path / "b", contents=contents)
    _, plain, _ = report()
    assert [len(each["runs"]) for each in plain["conditions"]] == [5, 5]
    assert len(plain["comparisons"][0]["contrast"]["refused"]) == 5
    cross_validation(tmp_path / "moved" / "one", data_root=tmp_path / "a", seeds=1)
    cross_validation(tmp_path / "moved" / "other", data_root=tmp_path / "b", view="masked")
    _, plain, _ = report(tmp_path / "moved")
    assert [each["name"] for each in plain["conditions"]] == ["raw", "masked"]


def test_runs_with_replaced_masks_are_not_pooled(fit, report, folder_root, tmp_path):
    options = ["--data=FolderDataModule", f"--data.root={folder_root}", "--data.view=masked"]
    before = fit(*options)
    replace_masks(folder_root)
    after = fit(*options, "--seed_everything=1")
    fit(*options, "--seed_everything=2")
    splits = [json.loads((run / "metrics.json").read_text())["split"] for run in (before, after)]
    names = [f"masks_digest {split['masks'][:12]}" for split in splits]
    assert names[0] != names[1]
    assert splits[0]["digest"] == splits[1]["digest"]
    _, plain, _ = report(tmp_path / "runs")
    assert [each["name"] for each in plain["conditions"]] == names
    assert [each["seeds"] for each in plain["conditions"]] == [[0], [1, 2]]


def test_runs_with_other_masks_are_no_pair(report, tmp_path):
    for view, masks in (("raw", ""), ("masked", "a" * 32), ("nucleus", "b" * 32)):
        draw(tmp_path / "runs" / view, view=view, masks=masks)
    out, plain, _ = report("--reference=masked")
    nucleus, raw = plain["comparisons"]
    assert raw["contrast"]["refused"] == []
    assert len(raw["pairs"]) == 1
    assert nucleus["pairs"] == []
    (reason,) = nucleus["contrast"]["refused"]
    assert reason.endswith("their masks differ (digests bbbbbbbbbbbb and aaaaaaaaaaaa)")
    assert "NOT PAIRED" in out


def test_runs_that_do_not_tell_their_masks_are_counted(report, tmp_path):
    for seed, masks in enumerate((None, "a" * 32, "a" * 32)):
        draw(tmp_path / "runs" / f"{seed}", view="masked", seed=seed, masks=masks)
    _, plain, _ = report()
    (condition,) = plain["conditions"]
    assert condition["seeds"] == [0, 1, 2]
    draw(tmp_path / "runs" / "raw", masks="")
    draw(tmp_path / "runs" / "3", view="masked", seed=3, masks="b" * 32)
    _, plain, _ = report()
    assert [each["name"] for each in plain["conditions"]] == [
        f"masks_digest {masks}, view {view}"
        for masks, view in (
            ("unknown", "masked"),
            ("a" * 12, "masked"),
            ("b" * 12, "masked"),
            ("none", "raw"),
        )
    ]


def test_of_two_runs_of_one_fold_the_later_counts(report, tmp_path):
    draw(tmp_path / "runs" / "a", recall=0.2, started="2026-06-02T10:00:00+0200")
    draw(tmp_path / "runs" / "b", recall=1.0, started="2026-01-01T10:00:00+0000")
    out, plain, _ = report()
    (condition,) = plain["conditions"]
    assert condition["runs"] == [str(tmp_path / "runs" / "a")]
    assert "1 older run of" in out


def test_runs_stand_once_and_are_not_hidden_by_what_lies_about(report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("my: own")
    draw(tmp_path / "runs" / "mine")
    draw(tmp_path / "runs" / "mine" / "test" / "later")
    _, plain, _ = report("runs", "runs/mine", tmp_path / "runs")
    (condition,) = plain["conditions"]
    assert condition["runs"] == ["runs/mine"]
    assert condition["older"] == 0


def test_an_auroc_compares_samples_of_one_run(report, tmp_path):
    cross_validation(tmp_path / "runs", seeds=2, recall=0.7)
    _, plain, _ = report()
    runs, _ = read_finished([tmp_path / "runs"])
    found = plain["conditions"][0]["classes"]["a"]["auroc"]["value"]
    right = pairs = 0.0
    for run in runs:
        positive = run.test.labels == 0
        n = positive.sum() * (~positive).sum()
        right += n * roc_auc_score(positive, run.test.probabilities[:, 0])
        pairs += n
    assert found == pytest.approx(right / pairs)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("history.csv", "epoch,val/loss,val/accuracy,seconds\n0,1.0\n"),
        ("environment.json", "[]"),
        ("environment.json", "[" * 100_000),
        ("environment.json", '{"command": 3, "packages": 4, "devices": "x", "started": 5}'),
    ],
)
def test_what_is_not_needed_may_be_damaged(report, tmp_path, file, content):
    draw(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "a" / file).write_text(content)
    _, plain, page = report()
    assert len(plain["conditions"][0]["runs"]) == 1
    assert "What was run" in page


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("metrics.json", '"folds": 5, ', "", "cannot read metrics.json"),
        ("metrics.json", '"stamps": []', '"stamps": null', "cannot read metrics.json"),
        ("metrics.json", '"stamps": []', '"stamps": [1]', "cannot read metrics.json"),
        ("metrics.json", '"stamps": []', f'"stamps": {"[" * 100_000}', "nested deeper than 50"),
        ("config.yaml", "devices: 1", "devices: {a: 1, a: 2}", "cannot read config.yaml"),
        ("split.csv", "cell 000.png", '"cell 000.png', "split"),
    ],
)
def test_what_is_needed_and_damaged_is_named(report, tmp_path, file, old, new, reason):
    draw(tmp_path / "runs" / "a")
    draw(tmp_path / "runs" / "b", seed=1)
    path = tmp_path / "runs" / "b" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    _, plain, _ = report()
    (left,) = plain["left_out"]
    assert left["path"] == str(tmp_path / "runs" / "b")
    assert reason in left["reason"]


def test_names_are_not_obeyed_by_the_terminal(report, tmp_path):
    for seed, view in enumerate(("raw", "\x1b[31m[bold]red[/bold]")):
        run = draw(tmp_path / "runs" / view, view=view, seed=seed, groups=8)
        text = (run / "metrics.json").read_text()
        (run / "metrics.json").write_text(text.replace('"stamps": []', r'"stamps": ["\u009b2J"]'))
    draw(tmp_path / "runs" / "x", view="\u202e")
    (tmp_path / "runs" / "x" / "predictions.csv").write_text("")
    out, _, _ = report()
    assert all(character.isprintable() or character == "\n" for character in out)
    assert r"\x1b[31m[bold]red[/bold]" in out
    assert r"UNRELIABLE: \x9b2J" in out


def test_the_page_says_the_command_that_made_it(report, tmp_path):
    draw(tmp_path / "runs" / "a")
    _, _, page = report("--metric=f1_macro", "--rope=0.05")
    assert "report " + str(tmp_path / "runs") in page
    assert "--metric=f1_macro --rope=0.05 --output=" in page


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothing"], "there is no folder nothing"),
        (["empty"], "there is no finished run below"),
        (["runs", "--reference=0.001"], "--reference: no condition '0.001'"),
        (["runs", "--reference=rwa"], "--reference: no condition 'rwa'; closest: raw"),
        (["runs", "--rope=2"], "--rope: 2.0 is not in 0 to 1"),
        (["runs", "--metric=accurcy"], "metric: expected accuracy"),
        (["runs", "--audit=none.json"], "--audit: none.json is not an audit.json"),
    ],
)
def test_mistakes_are_told_in_a_line(fails, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for view in ("raw", "masked"):
        draw(tmp_path / "runs" / view, view=view)
    assert message in fails("report", *args)


def test_an_audit_stands_on_the_page(report, tmp_path):
    draw(tmp_path / "runs" / "a")
    audit = tmp_path / "audit.json"
    audit.write_text(json.dumps({"verdict": "the splits leak by two", "holds": False}))
    assert "the splits leak by two" in report(f"--audit={audit}")[2]


@pytest.mark.parametrize("option", [["--tensorboard=true"], ["--tensorboard", "true"]])
def test_the_option_that_wrote_event_files_is_named_as_removed(fails, tmp_path, option):
    draw(tmp_path / "runs" / "a")
    line = fails("report", str(tmp_path / "runs"), *option)
    assert line.startswith("--tensorboard was removed from report: ")
    assert not list(tmp_path.rglob("report.html"))


def test_a_report_goes_to_wandb_offline(report, tmp_path):
    cross_validation(tmp_path / "runs", view="raw")
    cross_validation(tmp_path / "runs", view="masked", recall=0.6)
    out, _, _ = report("--wandb=me/cells", "--wandb_mode=offline")
    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    assert folder.name in out.replace("\n", "")
    assert len(list(folder.rglob("*.wandb"))) == 1


def test_a_note_names_the_classes_of_few_groups():
    groups, classes = [0, 1, 2, 3, 4, 5, 6, 6], ["healthy"] * 5 + ["tumour"] * 3
    assert few_groups(groups, classes) == [
        "few test groups, so that intervals mean little: tumour 2"
    ]
    (whole,) = few_groups([0, 1, 2, 2], ["healthy"] * 2 + ["tumour"] * 2)
    assert whole == "the test images are of 3 groups: too few for any interval to mean much"
    assert few_groups(range(10), ["healthy", "tumour"] * 5) == []


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_only_an_earlier_report_is_overwritten(fails, tmp_path, name):
    cross_validation(tmp_path / "runs")
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_text("mine")
    args = ["report", str(tmp_path / "runs"), f"--output={output}"]
    assert fails(*args).startswith(f"--output: {output / name} exists and would be overwritten")
    assert (output / name).read_text() == "mine"
    (output / name).unlink()
    assert main(args) == main(args) == 0
    assert fails(*args[:-1], f"--output={output / name}").endswith("is a file; give a folder")


def test_a_run_of_an_earlier_version_has_the_defaults_of_newer_options(report, tmp_path):
    old = draw(tmp_path / "runs" / "0", fold=0)
    new = draw(tmp_path / "runs" / "1", fold=1)
    for run, lines in ((old, []), (new, ["fit: stretch", "mask_instance: null"])):
        config = yaml.safe_load((run / "config.yaml").read_text())
        for line in lines:
            config["data"]["init_args"] |= yaml.safe_load(line)
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    _, found, _ = report(tmp_path / "runs")
    assert len(found["conditions"]) == 1
