"""Folders as people have them: understood and shown, or refused in one line."""

import hashlib
import os
import re
import unicodedata
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.reading import groups
from cellbench.data.reading.columns import parts_in
from cellbench.data.reading.describe import notes
from cellbench.data.reading.folders import read_folder
from cellbench.data.reading.layout import folds_of
from cellbench.data.reading.masks import DERIVED
from cellbench.data.reading.parts import PART_WORDS, parts_of
from cellbench.data.reading.peek import looks_like_mask, looks_like_photograph, read_headers
from cellbench.data.reading.reading import FolderOptions
from cellbench.data.splits import SplitConfig
from cellbench.utils.errors import MAX_MESSAGE, UserError, one_line

RNG = np.random.default_rng(0)


def draw(path, size=(24, 24), **save):
    """Writes an image of noise, in which no two pixels are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (*size, 3), np.uint8)).save(path, **save)


def draw_mask(path, size=(24, 24)):
    """Writes a mask of a cell with a nucleus."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[4:-4, 4:-4], mask[8:-8, 8:-8] = 128, 255
    Image.fromarray(mask).save(path)


def classes(root, names=("mono", "neutro"), n=6, suffix=".png", name="img_{:03d}"):
    """Writes a folder of images for each class."""
    for each in names:
        for i in range(n):
            draw(root / each / (name.format(i) + suffix))
    return root


def read(root, **options):
    return read_folder(root, FolderOptions(**options))


def refused(root, **options):
    with pytest.raises(UserError) as raised:
        read(root, **options)
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) <= MAX_MESSAGE + len(str(root)) * 2
    return line


def numbers(reading):
    counts = Counter(sample.label for sample in reading.samples)
    return {name: counts[label] for label, name in enumerate(reading.classes)}


def doubts(reading):
    return "\n".join(map(str, reading.doubts))


TWO = {"mono": 6, "neutro": 6}


# Junk.


@pytest.mark.parametrize(
    "junk",
    [
        *("__MACOSX/mono/._img.png", "mono/._img_001.png", "mono/.ipynb_checkpoints/a.png"),
        *("mono/@eaDir/a.png", ".hidden/a.png", "mono/.trash/deeper/a.png", ".AppleDouble/a.png"),
        *("$RECYCLE.BIN/a.png", "lost+found/a.png", "mono/Thumbnails/a.png", "thumbs/mono/a.png"),
        "mono/deeper/__MACOSX/a.png",
    ],
)
def test_what_a_system_leaves_is_no_sample_and_is_counted(tmp_path, junk):
    classes(tmp_path)
    draw(tmp_path / junk)
    reading = read(tmp_path)
    assert numbers(reading) == TWO
    assert sum(map(Counter.total, reading.left_out.values())) == 1
    assert "1 .png file: " in notes(reading)[0]


def test_files_that_are_no_images_are_counted_by_reason_and_suffix(tmp_path):
    classes(tmp_path)
    data = FolderDataModule(root=tmp_path)
    before = data.note
    for name in ("mono/a.txt", "mono/deeper/b.TXT", "mono/Thumbs.db", "neutro/README", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    draw(tmp_path / "stray.jpg")
    reading = read(tmp_path)
    assert reading.left_out == {
        "hidden, or left by a system or a program": {".db": 1, ".DS_Store": 1},
        "images outside the class folders": {".jpg": 1},
        "in a format that is not read as an image": {".txt": 2, "": 1},
    }
    assert "1 .jpg file left out: they lie in no class folder" in doubts(reading)
    lines = FolderDataModule(root=tmp_path).note.splitlines()
    assert len(lines) == len((before or "").splitlines()) + 2
    assert "2 .txt files, 1 file without suffix: in a format" in lines[0]


def test_pictures_that_are_not_read_are_told_loudly(tmp_path):
    classes(tmp_path)
    for i in range(5):
        draw(tmp_path / "neutro" / f"new_{i}.jfif", format="JPEG")
        draw(tmp_path / "neutro" / f"old_{i}.gif")
    reading = read(tmp_path)
    assert numbers(reading) == {"mono": 6, "neutro": 11}
    assert "5 .gif files left out, of which 5 lie in 'neutro' beside 11 images" in doubts(reading)
    data = FolderDataModule(root=tmp_path)
    assert data.read_image(data.listed[-7]).shape == (24, 24, 3)
    for path in list((tmp_path / "mono").iterdir()):
        path.rename(path.with_suffix(".gif"))
    assert "the folder 'mono' has 6 pictures in formats that are not read" in refused(tmp_path)


# Links.


def test_a_link_out_of_the_root_is_refused(tmp_path):
    classes(tmp_path / "store")
    (tmp_path / "root").mkdir()
    for name in ("mono", "neutro"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "store" / name)
    assert "is a link that leaves" in refused(tmp_path / "root")
    assert "(2 such links)" in refused(tmp_path / "root")
    root = classes(tmp_path / "own")
    (root / "mono" / "a.png").symlink_to(tmp_path / "store" / "mono" / "img_000.png")
    assert "'mono/a.png' is a link that leaves" in refused(root)


def test_a_link_below_the_root_is_not_followed_and_told(tmp_path):
    classes(tmp_path)
    (tmp_path / "mono" / "again").symlink_to(tmp_path)
    (tmp_path / "mono" / "img_900.png").symlink_to("img_000.png")
    reading = read(tmp_path)
    assert numbers(reading) == {"mono": 7, "neutro": 6}
    assert "1 link to folders below data.root not followed" in doubts(reading)


def test_a_broken_link_and_a_pipe_are_named(tmp_path):
    classes(tmp_path)
    (tmp_path / "mono" / "img_900.png").symlink_to("/nonexistent/a.png")
    os.mkfifo(tmp_path / "mono" / "pipe.png")
    text = doubts(read(tmp_path))
    assert "2 images are no file but a broken link, a pipe" in text
    assert "data.exclude" in text


# Parts and folds.


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Training", "valid", "Testing"),
        ("TRAIN", "dev", "eval"),
        ("train_set", "Validation", "test data"),
        ("1_train", "2_val", "3_holdout"),
        ("Trainingsdaten", "Validierung", "Testdaten"),
        ("entrenamiento", "validaci\u00f3n", "prueba"),
        ("entrai\u0302nement", "validation", "jeu de test"),
        ("trainData", "ValidationSet", "held-out"),
    ],
)
def test_parts_above_the_classes_are_the_official_split(tmp_path, names):
    for name, n in zip(names, (6, 2, 3), strict=True):
        classes(tmp_path / name, n=n)
    reading = read(tmp_path)
    assert numbers(reading) == {"mono": 11, "neutro": 11}
    assert Counter(sample.split for sample in reading.samples) == {"train": 12, "val": 4, "test": 6}
    assert reading.found["parts"].startswith("train 12, val 4, test 6 images")
    data = FolderDataModule(root=tmp_path, split=SplitConfig(protocol="official"))
    by_id = {sample.id: sample.split for sample in reading.samples}
    assert data.partition.parts.tolist() == [by_id[sample.id] for sample in data.table.samples]


def test_parts_below_the_classes_are_the_official_split(tmp_path):
    for name in ("mono", "neutro"):
        classes(tmp_path / name, ("train", "test"), n=4)
    reading = read(tmp_path)
    assert numbers(reading) == {"mono": 8, "neutro": 8}
    assert {s.split for s in reading.samples if "/test/" in s.id} == {"test"}


def test_eval_is_the_part_that_is_lacking():
    assert parts_of({"a": "train", "b": "eval"}) == {"a": "train", "b": "test"}
    assert parts_of({"a": "train", "b": "eval", "c": "test"})["b"] == "val"
    assert parts_of({"a": "tests", "b": "control", "c": "test_simple"}) == {}


@pytest.mark.parametrize("other", ["pruefung", "Pr\u00fcfung", "rest"])
def test_a_folder_beside_the_training_part_is_no_class(tmp_path, other):
    classes(tmp_path / "above" / "train")
    classes(tmp_path / "above" / other)
    assert "rename it train, val or test" in refused(tmp_path / "above")
    classes(tmp_path / "flat", ("train", other))
    assert "if it is one, rename it val or test" in refused(tmp_path / "flat")
    for name in TWO:
        classes(tmp_path / "below" / name, ("train", other))
    assert f"holds the training part and '{other}'" in refused(tmp_path / "below")


def test_folders_and_tables_know_the_same_words_for_parts():
    words = {word: word for word in PART_WORDS}
    assert parts_in(words) == parts_of(words)
    assert parts_in(["train", "Test 2"]) == {"train": "train"}


def test_parts_in_a_container_and_with_containers_in_them(tmp_path):
    for part in ("train", "test"):
        classes(tmp_path / "a" / "dataset-master" / part / "images", n=3)
    reading = read(tmp_path / "a")
    assert numbers(reading) == TWO
    assert Counter(sample.split for sample in reading.samples) == {"train": 6, "test": 6}


def test_a_class_that_a_part_lacks_is_told_or_refused(tmp_path):
    classes(tmp_path / "train", ("mono", "neutro", "baso"))
    classes(tmp_path / "val", ("mono", "neutro"), n=2)
    (tmp_path / "val" / "baso").mkdir()
    classes(tmp_path / "test", ("mono", "neutro", "baso"), n=2)
    assert "the part val has no image of class 'baso'" in doubts(read(tmp_path))
    classes(tmp_path / "test", ("eosino",), n=2)
    assert "'test' has the class folder 'eosino', which the training part lacks" in refused(
        tmp_path
    )


def test_parts_without_a_test_are_told(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "val", n=2)
    assert "but no test part" in doubts(read(tmp_path))
    classes(tmp_path / "valid", n=2)
    assert "'val' and 'valid' both look like the part val" in refused(tmp_path)


def test_something_beside_parts_is_refused(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "test")
    classes(tmp_path, ("new",))
    assert "'new' beside it does not: move out what is no part, rename it" in refused(tmp_path)


def test_classes_that_differ_between_parts_in_case_are_refused(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "test", ("Mono", "neutro"))
    assert "'test' has the class folder 'Mono'" in refused(tmp_path)


def test_parts_in_the_names_of_classes_are_refused(tmp_path):
    classes(tmp_path, ("train_mono", "train_neutro", "test_mono", "test_neutro"))
    assert "look like two parts of one class" in refused(tmp_path)


@pytest.mark.parametrize("names", [("fold0", "fold1", "fold2"), ("Fold 1", "Fold 2", "Fold 10")])
def test_folds(tmp_path, names):
    for name in names:
        classes(tmp_path / name, n=4)
    reading = read(tmp_path)
    assert numbers(reading) == {"mono": 12, "neutro": 12}
    expected = set(folds_of({name: name for name in names}).values())
    assert {sample.fold for sample in reading.samples} == expected
    assert len(expected) == 3
    data = FolderDataModule(root=tmp_path, split=SplitConfig(protocol="predefined", fold=2))
    tested = [s.id for s, part in zip(data.table.samples, data.partition.parts, strict=True)
              if part == "test"]  # fmt: skip
    assert {name.partition("/")[0] for name in tested} == {names[2]}


def test_folds_with_parts_in_them_are_refused(tmp_path):
    for fold in ("fold1", "fold2"):
        for part in ("train", "test"):
            classes(tmp_path / fold / part, n=2)
    assert "the fold 'fold1' has parts of its own" in refused(tmp_path)


@pytest.mark.parametrize("names", [("CV1", "CV2"), ("split_0", "split_1"), ("fold1", "f", "fold2")])
def test_folders_that_may_be_folds_name_the_pattern(tmp_path, names):
    for name in names:
        classes(tmp_path / "above" / name)
        for each in TWO:
            classes(tmp_path / "below" / each, (name,))
    for place, pattern in (("above", "^(?P<fold>[^/]+)/"), ("below", "^[^/]+/(?P<fold>[^/]+)/")):
        assert f"'{pattern}'" in refused(tmp_path / place)
        reading = read(tmp_path / place, group_pattern=pattern)
        assert reading.classes == tuple(TWO)
        assert {sample.fold for sample in reading.samples} == set(names)


# Which folders are classes.


def test_classes_named_as_parts_and_masks_are_told(tmp_path):
    classes(tmp_path, ("control", "test", "masks"))
    reading = read(tmp_path)
    assert reading.classes == ("control", "masks", "test")
    assert "the folder 'masks' is taken for a class" in doubts(reading)
    assert "the folder 'test' is taken for a class" in doubts(reading)


def test_images_directly_in_the_root_or_in_parts_are_refused(tmp_path):
    for name in ("all", "hem"):
        draw(tmp_path / "flat" / f"UID_1_{name}.bmp")
    assert "2 images directly in " in refused(tmp_path / "flat")
    for part in ("train2017", "val2017"):
        draw(tmp_path / "coco" / "images" / part / "1.jpg")
        label = tmp_path / "coco" / "labels" / part / "1.txt"
        label.parent.mkdir(parents=True)
        label.write_text("0 .5 .5 .2 .2\n")
    line = refused(tmp_path / "coco")
    assert "has parts (train2017, val2017) with 2 images and no class folders" in line
    assert "2 annotation files beside" in line
    (tmp_path / "empty").mkdir()
    assert "there is no image below" in refused(tmp_path / "empty")
    assert "there is no folder" in refused(tmp_path / "missing")
    (tmp_path / "file.txt").touch()
    assert "is a file and no folder" in refused(tmp_path / "file.txt")


def test_one_class_is_refused_with_the_folder_to_give(tmp_path):
    classes(tmp_path / "a", ("hem",))
    assert "at least two classes are needed; found hem" in refused(tmp_path / "a")
    classes(tmp_path / "b" / "cells", ("p1", "p2"))
    assert f"give {tmp_path / 'b' / 'cells'} as data.root" in refused(tmp_path / "b")


def test_an_empty_class_is_refused_and_a_folder_of_notes_told(tmp_path):
    classes(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.pdf").touch()
    reading = read(tmp_path)
    assert numbers(reading) == TWO
    assert "the folder 'docs' has no image and is taken for no class" in doubts(reading)
    (tmp_path / "baso").mkdir()
    assert "class 'baso' has no image: its folder is empty" in refused(tmp_path)


@pytest.mark.parametrize(
    "other", ["Mono", "mono ", "m ono", unicodedata.normalize("NFKC", "\uff4dono").upper()]
)
def test_classes_that_differ_in_nothing_that_counts_are_refused(tmp_path, other):
    classes(tmp_path, ("mono", "neutro", other))
    assert "differ only by case, blanks or Unicode form" in refused(tmp_path)
    composed, decomposed = (unicodedata.normalize(form, "für") for form in ("NFC", "NFD"))
    classes(tmp_path / "x", (composed, decomposed))
    assert "differ only by" in refused(tmp_path / "x")


def test_odd_names_and_many_classes(tmp_path):
    names = ["Pro-B [Malignant] 100%", "Früh & „gut“"]
    classes(tmp_path / "odd", names, name='Snap, (1)#{:03d} "x" ä')
    assert numbers(read(tmp_path / "odd")) == {names[1]: 6, names[0]: 6}
    classes(tmp_path / "many", [f"type_{i:03d}" for i in range(200)], n=1)
    assert len(read(tmp_path / "many").classes) == 200


def test_too_few_images_and_imbalance_are_doubtful(tmp_path):
    classes(tmp_path, ("blast",), n=4)
    classes(tmp_path, ("lympho",), n=40)
    assert "the class 'blast' has 4 images of 44: too few to score it" in doubts(read(tmp_path))


LABS = r"'^(?P<domain>[^/]+)/'"


def test_laboratories_above_classes_need_a_pattern(tmp_path):
    for lab in ("lab a", "lab b"):
        classes(tmp_path / lab, n=3)
    line = refused(tmp_path)
    assert "'lab a' and 'lab b' both hold 'mono'" in line
    assert "(?P<domain>[^/]+) if a lab" in line
    reading = read(tmp_path, group_pattern=LABS.strip("'"))
    assert numbers(reading) == TWO
    assert {s.domain for s in reading.samples if s.id.startswith("lab a")} == {"lab a"}
    assert reading.found["domains"] == "2 by data.group_pattern: lab a, lab b"
    other = read(tmp_path, group_pattern="^[^/]+/(?P<group>[^/]+)/")
    assert other.classes == ("lab a", "lab b")
    assert {sample.group for sample in other.samples} == {"mono", "neutro"}


def test_folders_of_different_depth_are_refused(tmp_path):
    classes(tmp_path / "crops")
    for i in range(3):
        draw(tmp_path / "fields" / f"{i}.png")
    line = refused(tmp_path)
    assert "'fields' holds images and 'crops' holds folders of images" in line
    assert f"Give {tmp_path / 'crops'} as data.root" in line


def test_patients_in_folders_below_the_classes_are_suggested_as_groups(tmp_path):
    classes(tmp_path / "mono", ("p1", "p2", "p3"), n=4)
    classes(tmp_path / "neutro", ("p4", "p5", "p6"), n=4)
    reading = read(tmp_path)
    assert numbers(reading) == {"mono": 12, "neutro": 12}
    pattern = reading.suggested["group_pattern"]
    assert f"6 groups of 24 images (data.group_pattern: '{pattern}')" in doubts(reading)
    grouped = read(tmp_path, **reading.suggested)
    assert {sample.group for sample in grouped.samples} == {f"p{i}" for i in range(1, 7)}
    assert not grouped.suggested


def test_levels_that_repeat_below_a_single_folder_are_refused(tmp_path):
    for lab in ("a", "b"):
        classes(tmp_path / "labs" / lab / f"slides of {lab}")
    assert "both hold 'mono'" in refused(tmp_path / "labs")
    assert numbers(read(tmp_path / "labs", group_pattern=LABS.strip("'"))) == {
        "mono": 12,
        "neutro": 12,
    }
    for part in ("train", "test"):
        classes(tmp_path / "seg" / f"seg_{part}" / f"seg_{part}")
        for lab in ("a", "b"):
            classes(tmp_path / "above" / lab / part, n=1)
            classes(tmp_path / "below" / part / lab, n=1)
    assert "'seg_test' and 'seg_train' both hold 'mono'" in refused(tmp_path / "seg")
    assert f"give {tmp_path / 'above' / 'a'} as data.root" in refused(tmp_path / "above")
    line = refused(tmp_path / "below")
    assert "'test/a' and 'test/b' both hold 'mono'" in line
    assert "list the images in a table" in line
    pattern = "^[^/]+/[^/]+/(?P<group>[^/]+)/"
    assert read(tmp_path / "below", group_pattern=pattern).classes == ("a", "b")


def test_images_without_a_known_suffix_are_no_empty_class(tmp_path):
    classes(tmp_path)
    draw(tmp_path / "baso" / "IMG_1", format="PNG")
    assert "the folder 'baso' has 1 picture in formats that are not read" in refused(tmp_path)
    (tmp_path / "baso" / "IMG_1").unlink()
    np.save(tmp_path / "baso" / "a.npy", np.zeros(3))
    assert "such as 'a.npy'" in refused(tmp_path)


# Groups in names.


@pytest.mark.parametrize(
    ("name", "first", "n"),
    [
        ("UID_{p}_{i}_1_all.png", "0", 12),
        ("{p:02d}_78_{i}.png", "00", 12),
        ("SOB_B_A-1{p}-2254{p}AB-100-{i:03d}.png", "10", 12),
        ("slide{p}-cell{i}.png", "0", 12),
    ],
)
def test_a_pattern_is_suggested_where_names_share_a_number(tmp_path, name, first, n):
    for k, each in enumerate(("all", "hem")):
        for i in range(24):
            draw(tmp_path / each / name.format(p=i // 4 + 6 * k, i=i), (8, 8))
    reading = read(tmp_path)
    assert f"{n} groups of 48 images" in doubts(reading)
    samples = read(tmp_path, **reading.suggested).samples
    assert len({sample.group for sample in samples}) == n
    assert samples[0].group.endswith(first)
    data = FolderDataModule(root=tmp_path, **reading.suggested)
    for group in {sample.group for sample in data.table.samples}:
        own = [sample.group == group for sample in data.table.samples]
        assert len(set(data.partition.parts[own])) == 1


@pytest.mark.parametrize("name", ["img_{:03d}", "{1}", "cell ({})", "Image_{:05d}", "{}_64x64"])
def test_no_pattern_is_suggested_where_names_share_nothing(tmp_path, name):
    for each in ("all", "hem"):
        for i in range(24):
            digest = hashlib.sha256(f"{each} {i}".encode()).hexdigest()
            draw(tmp_path / each / (name.format(i, digest) + ".png"), (8, 8))
    assert not read(tmp_path).suggested


def test_one_image_in_two_formats_is_suggested_as_one_group(tmp_path):
    classes(tmp_path)
    classes(tmp_path, suffix=".bmp")
    reading = read(tmp_path)
    assert numbers(reading) == {"mono": 12, "neutro": 12}
    assert {s.group for s in read(tmp_path, **reading.suggested).samples} == {
        f"{name}/img_{i:03d}" for name in ("mono", "neutro") for i in range(6)
    }


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (r"img_(\d+)", "has no named group"),
        (r"(?P<patient>\d+)", "has a group named 'patient'; allowed: group, fold, domain"),
        (r"(?P<group>", "is no regular expression"),
        (r"mono/img_(?P<group>\d+)", "fits 6 of 12 ids, and not 'neutro/img_000.png'"),
    ],
)
def test_a_group_pattern_that_does_not_fit_is_refused(tmp_path, pattern, line):
    classes(tmp_path)
    assert line in refused(tmp_path, group_pattern=pattern)


@pytest.mark.parametrize("date", ["20230{}01_", "2023-0{}-14 ", "2023.0{}.14-"])
@pytest.mark.parametrize("name", ["D{:02d}_{}", "patientA{}_{}", "p{} img{}"])
def test_a_date_is_not_the_patient(tmp_path, date, name):
    """Its digits come first, and a patient may come on several days."""
    for each in ("mono", "neutro"):
        for i in range(16):
            stem = date.format(1 + i % 3) + name.format(i // 4, i)
            draw(tmp_path / each / f"{stem}.png")
    pattern = read(tmp_path).suggested["group_pattern"]
    samples = read(tmp_path, group_pattern=pattern).samples
    assert [int(sample.group[-1]) for sample in sorted(samples, key=lambda s: s.id)] == [
        int(re.search(r"(\d+)[_ ](?:img)?\d+$", sample.id[:-4])[1]) for sample in samples
    ]


@pytest.mark.parametrize(
    ("train", "test"),
    [("训练集", "测试集"), ("学習", "テスト"), ("обучение", "тест"), ("trainen", "testen")],
)
def test_parts_in_other_scripts(tmp_path, train, test):
    classes(tmp_path / train)
    classes(tmp_path / test, n=3)
    counts = Counter(sample.split for sample in read(tmp_path).samples)
    assert counts == {"train": 12, "test": 6}


@pytest.mark.parametrize("picture", ["{}_cp_masks.png", "{}_masks.png"])
def test_of_a_picture_and_an_array_the_picture_is_the_mask(tmp_path, picture):
    """Cellpose writes both beside the image; here the array is none of its pickles."""
    classes(tmp_path)
    for path in list(tmp_path.rglob("*.png")):
        draw_mask(path.with_name(picture.format(path.stem)))
        np.save(path.with_name(f"{path.stem}_seg.npy"), np.ones((24, 24), np.uint8))
    reading = read(tmp_path)
    assert numbers(reading) == {"mono": 6, "neutro": 6}
    assert {s.mask.name for s in reading.samples} == {
        picture.format(f"img_{i:03d}") for i in range(6)
    }
    assert reading.found["masks"] == f"12 of 12 images: {picture.format('X')[:-4]}"


@pytest.mark.parametrize("channels", [("DAPI", "GFP", "BF"), ("w1", "w2"), ("ch00", "ch01")])
def test_one_file_per_channel_is_a_doubt(tmp_path, channels):
    for each in ("mono", "neutro"):
        for i in range(6):
            for channel in channels:
                draw(tmp_path / each / f"cell{i:03d}_{channel}.png")
    assert "one file per channel" in doubts(read(tmp_path, group_pattern="none"))


def test_parts_in_the_names_of_files_are_a_doubt(tmp_path):
    for each in ("mono", "neutro"):
        for i in range(12):
            draw(tmp_path / each / f"{('train', 'train', 'val', 'test')[i % 4]}_{i}.png")
    said = doubts(read(tmp_path, group_pattern="none"))
    assert "tell a part (test 6, train 12, val 6), which is not used" in said
    assert "tell a part" not in doubts(read(classes(tmp_path / "other"), group_pattern="none"))


def test_two_masks_for_each_image_are_told_at_once(tmp_path):
    """One pattern was asked for, and with it the other, and so on in a circle."""
    classes(tmp_path)
    for path in list(tmp_path.rglob("*.png")):
        for kind in ("cytoplasm", "nucleus"):
            draw_mask(path.with_name(f"{path.stem}_{kind}.png"))
    line = refused(tmp_path)
    assert "images have several masks, as 'mono/img_000_cytoplasm.png' and 'mono/img_000_" in line
    assert "merge them into one mask per image" in line


def test_a_pattern_that_would_take_years_is_given_up(tmp_path):
    classes(tmp_path, n=2, name="a" * 60 + "-{}")
    assert "takes more than 1 s for 'mono/aaa" in refused(
        tmp_path, group_pattern=r"(?P<group>(a|aa)+)$"
    )


def test_a_pattern_gives_folds_and_domains(tmp_path):
    classes(tmp_path, name="lab1_k{}_x")
    reading = read(tmp_path, group_pattern=r"(?P<domain>lab\d)_k(?P<fold>\d)")
    assert {sample.domain for sample in reading.samples} == {"lab1"}
    assert {sample.fold for sample in reading.samples} == set("012345")
    assert groups.compile_pattern("(?P<group>a)")


@pytest.mark.parametrize("other", ["p1", "P01", "P1 ", "P1.0"])
def test_groups_of_a_pattern_that_are_nearly_alike_are_refused(tmp_path, other):
    classes(tmp_path, name="P1_{}")
    classes(tmp_path, ("mono",), name=other + "_{}")
    pattern = r"/(?P<group>[^_]+)_"
    line = refused(tmp_path, group_pattern=pattern)
    assert line.startswith("data.group_pattern: groups 'P1' (12 images) and ")
    assert "(6) differ only in case, blanks, zeros" in line


# Masks.


@pytest.mark.parametrize(
    "mask",
    [
        *(
            "{}_mask.png",
            "{}_masks.tif",
            "{}_cp_masks.png",
            "{}-mask.bmp",
            "{}_seg.png",
            "{}_GT.png",
        ),
        *("{}_label.png", "mask_{}.png", "{}_nuclei_mask.png", "{}-d.bmp", "{}_segmentation.png"),
        "{}_annotation.png",
    ],
)
def test_masks_beside_their_images(tmp_path, mask):
    classes(tmp_path)
    for path in list(tmp_path.rglob("*.png")):
        draw_mask(path.with_name(mask.format(path.stem)))
    reading = read(tmp_path)
    assert numbers(reading) == TWO
    for sample in reading.samples:
        assert sample.mask == sample.image.with_name(mask.format(sample.image.stem))
    assert reading.found["masks"] == f"12 of 12 images: {mask.split('.')[0].format('X')}"


def test_masks_with_another_suffix_alone_are_told_by_their_pixels(tmp_path):
    classes(tmp_path, suffix=".bmp")
    for path in list(tmp_path.rglob("*.bmp")):
        draw_mask(path.with_suffix(".png"))
    reading = read(tmp_path)
    assert numbers(reading) == TWO
    assert all(s.mask == s.image.with_suffix(".png") for s in reading.samples)


def test_names_that_only_look_like_masks_are_images(tmp_path):
    classes(tmp_path, name="seg_{:03d}")
    assert numbers(read(tmp_path)) == TWO
    classes(tmp_path / "b", name="a-{}")
    for i in range(2):
        draw(tmp_path / "b" / "mono" / f"a-{i}-d.png")
    assert numbers(read(tmp_path / "b")) == {"mono": 8, "neutro": 6}


def test_cellpose_files_are_masks_and_no_samples(tmp_path):
    classes(tmp_path)
    for path in list(tmp_path.rglob("*.png")):
        draw_mask(path.with_name(f"{path.stem}_cp_masks.png"))
        draw(path.with_name(f"{path.stem}_flows.tif"))
        draw(path.with_name(f"{path.stem}_cp_outlines.png"))
        path.with_name(f"{path.stem}_seg.npy").touch()
    draw_mask(tmp_path / "mono" / "gone_cp_masks.png")
    reading = read(tmp_path)
    assert numbers(reading) == TWO
    assert reading.found["masks"] == "12 of 12 images: X_cp_masks"
    assert reading.left_out == {
        "pictures made of others (overlays, outlines, thumbnails)": {".tif": 12, ".png": 12},
        "masks of no image here": {".png": 1},
        "in a format that is not read as an image": {".npy": 12},
    }


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{c}/{n}.png", "masks/{c}/{n}.png"),
        ("{c}/{n}.png", "Mask/{c}/{n}.jpg"),
        ("{c}/{n}.png", "labels/{c}/{n}_mask.tif"),
        ("{c}/{n}.png", "{c}_masks/{n}.png"),
        ("{c}/{n}.png", "{c}/masks/{n}.png"),
        ("images/{c}/{n}.png", "GT/{c}/{n}.png"),
        ("{c}/images/{n}.png", "{c}/ground truth/{n}.png"),
        ("train/{c}/{n}.png", "train_masks/{c}/{n}.png"),
        ("{c}/{c}{n}.png", "masks/{c}{n}.png"),
        ("{c}/{n}.png", "masks/{c}/{n}.png.png"),
    ],
)
def test_masks_in_folders_that_mirror_the_images(tmp_path, image, mask):
    for c in ("mono", "neutro"):
        for i in range(5):
            n = f"img_{i}"
            draw(tmp_path / image.format(c=c, n=n))
            if i:
                draw_mask(tmp_path / mask.format(c=c, n=n))
    reading = read(tmp_path)
    assert numbers(reading) == {"mono": 5, "neutro": 5}
    masks = {sample.id: sample.mask for sample in reading.samples}
    assert masks == {
        image.format(c=c, n=f"img_{i}"): tmp_path / mask.format(c=c, n=f"img_{i}") if i else None
        for c in ("mono", "neutro")
        for i in range(5)
    }
    assert reading.found["masks"].startswith("8 of 10 images")
    assert "2 of 10 images have no mask" in doubts(reading)


@pytest.mark.parametrize("name", ["{}_mask.png", "{}-d.png", "mask_{}.png", "{}_seg.png"])
def test_photographs_named_as_masks_are_refused(tmp_path, name):
    """They were left out of the samples, with no word but their number."""
    classes(tmp_path)
    for path in list(tmp_path.rglob("*.png")):
        draw(path.with_name(name.format(path.stem)))
    line = refused(tmp_path)
    assert "11 others like it are named as masks of images and look like photographs" in line
    assert line.endswith("if they are images, give them other names; if not, move them out")


def test_one_photograph_among_masks_is_refused_by_name(tmp_path):
    classes(tmp_path)
    for i, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        mask = path.with_name(f"{path.stem}_mask.png")
        draw(mask) if i == 0 else draw_mask(mask)
    assert "'mono/img_000_mask.png' is named as a mask, but looks like a photo" in refused(tmp_path)


def test_masks_of_many_values_are_no_photographs(tmp_path):
    """JPEG masks, blurred ones, and those of more cells than a mask of few colours has."""
    disc = np.hypot(*(np.mgrid[:64, :64] - 32)) < 20
    Image.fromarray(255 * disc.astype(np.uint8)).save(tmp_path / "jpeg.jpg", quality=40)
    blurred = cv2.GaussianBlur(255 * disc.astype(np.uint8), (5, 5), 0)
    Image.fromarray(blurred).save(tmp_path / "blurred.png")
    cells = np.kron(np.arange(1, 65).reshape(8, 8), np.ones((8, 8))).astype(np.uint16)
    Image.fromarray(cells).save(tmp_path / "cells.png")
    np.save(tmp_path / "array.npy", cells)
    draw(tmp_path / "photograph.png")
    names = ("jpeg.jpg", "blurred.png", "cells.png", "array.npy", "photograph.png", "none.png")
    looked = [looks_like_photograph(tmp_path / name) for name in names]
    assert looked == [False, False, False, False, True, None]


@pytest.mark.parametrize(
    "mask", ["{c}/{n}.npy", "{c}/{n}_mask.npy", "{c}/{n}_seg.npy", "masks/{c}/{n}.npy"]
)
def test_arrays_are_found_as_masks(tmp_path, mask):
    classes(tmp_path)
    cell = np.zeros((24, 24), bool)
    cell[4:-4, 4:-4] = True
    for path in list(tmp_path.rglob("*.png")):
        array = tmp_path / mask.format(c=path.parent.name, n=path.stem)
        array.parent.mkdir(parents=True, exist_ok=True)
        np.save(array, cell)
    reading = read(tmp_path)
    assert numbers(reading) == TWO
    assert all(sample.mask is not None for sample in reading.samples)
    assert reading.left_out == {}
    data = FolderDataModule(root=tmp_path, view="masked", image_size=24, group_pattern="none")
    data.setup("fit")
    assert (data.images.pixels.masks.any(axis=0) == cell).all()


def test_arrays_that_are_no_masks_stay_left_out(tmp_path):
    classes(tmp_path)
    for path in list(tmp_path.rglob("*.png")):
        np.save(path.with_suffix(".npy"), np.random.default_rng(0).normal(size=512))
        np.save(path.with_name(f"{path.stem}_seg.npy"), {"masks": [0]}, allow_pickle=True)
    reading = read(tmp_path)
    assert "masks" not in reading.found
    assert reading.left_out == {"in a format that is not read as an image": {".npy": 24}}
    assert "12 files of Cellpose, as 'mono/img_000_seg.npy', could run code" in doubts(reading)


NAMES = [
    *(("imgs", "msks"), ("images", "masks"), ("img", "msk"), ("image", "label"), ("raw", "gt")),
    *(("JPEGImages", "SegmentationClass"), ("Photos", "Segmentierung")),
    *(("rawimages", "groundtruth"), ("tissue images", "mask binary")),
]


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("layout", ["{k}/{c}/{n}.png", "{c}/{k}/{n}.png", "train/{k}/{c}/{n}.png"])
def test_folders_of_images_and_masks_above_and_below_the_classes(tmp_path, names, layout):
    for c in ("mono", "neutro"):
        for i in range(6):
            image, mask = (layout.format(k=k, c=c, n=f"img_{i}") for k in names)
            draw(tmp_path / image)
            draw_mask(tmp_path / mask)
    if layout.startswith("train"):
        draw_parts = [
            p.relative_to(tmp_path / "train") for p in (tmp_path / "train").rglob("*.png")
        ]
        for path in draw_parts:
            target = tmp_path / "test" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            draw_mask(target) if path.parts[0] == names[1] else draw(target)
    reading = read(tmp_path)
    assert reading.classes == ("mono", "neutro")
    for sample in reading.samples:
        image, mask = sample.image.as_posix(), sample.mask.as_posix()
        assert image.replace(f"/{names[0]}/", f"/{names[1]}/") == mask


@pytest.mark.parametrize(
    ("layout", "remedy", "root"),
    [
        ("{k}/{c}/{n}.png", "data.root: .../x and data.mask_pattern: '../y/{path}.png'", "x"),
        ("{c}/{k}/{n}.png", "data.mask_pattern: '{parent}/../y/{stem}.png'", "."),
    ],
)
def test_masks_under_unknown_names_of_folders_are_suspected_first(tmp_path, layout, remedy, root):
    for c in ("mono", "neutro"):
        for i in range(6):
            draw(tmp_path / layout.format(k="x", c=c, n=f"img_{i}"))
            draw_mask(tmp_path / layout.format(k="y", c=c, n=f"img_{i}"))
    assert remedy in refused(tmp_path)
    reading = read(tmp_path / root, mask_pattern=remedy.split("'")[1])
    assert [sample.mask is not None for sample in reading.samples] == [True] * 12


@pytest.mark.parametrize(
    ("first", "second", "pattern"),
    [
        ("cell_masks/{c}/{n}.png", "nucleus_masks/{c}/{n}.png", "cell_masks/{path}.png"),
        ("{c}/cell_masks/{n}.png", "{c}/nucleus_masks/{n}.png", "{parent}/cell_masks/{stem}.png"),
        ("{c}/{n}_cell_mask.png", "{c}/{n}_nucleus_mask.png", "{path}_cell_mask.png"),
    ],
)
def test_two_sets_of_masks_are_refused_with_a_pattern_that_works(tmp_path, first, second, pattern):
    classes(tmp_path)
    for path in list(tmp_path.rglob("*.png")):
        for mask in (first, second):
            draw_mask(tmp_path / mask.format(c=path.parent.name, n=path.stem))
    line = refused(tmp_path)
    assert line.startswith("all 12 images with masks have two")
    assert line.endswith(f"data.mask_pattern: '{pattern}'")
    reading = read(tmp_path, mask_pattern=pattern)
    assert numbers(reading) == TWO
    assert [sample.mask is not None for sample in reading.samples] == [True] * 12
    assert reading.left_out == {"masks of no image here": {".png": 12}}


def test_one_file_for_each_cell_is_refused(tmp_path):
    """As in the Data Science Bowl of 2018."""
    for c in ("mono", "neutro"):
        for i in range(6):
            draw(tmp_path / c / f"{i}" / "images" / f"{i}.png")
            for k in "ab":
                draw_mask(tmp_path / c / f"{i}" / "masks" / f"{k}.png")
    assert "join the masks of an image in one file, a number for each cell" in refused(tmp_path)


def test_pictures_made_of_the_images_are_no_samples(tmp_path):
    classes(tmp_path)
    for path in list(tmp_path.rglob("*.png")):
        draw(path.parent / "overlay" / path.name)
        draw(path.with_name(f"{path.stem}_cp_output.png"))
        draw_mask(path.with_name(f"Mask of {path.stem}.tif"))
    reading = read(tmp_path)
    assert numbers(reading) == TWO
    assert reading.found["masks"] == "12 of 12 images: Mask of X"
    assert reading.left_out == {DERIVED: {".png": 24}}


@pytest.mark.parametrize("name", ["{}_Zell Kontur.png", "Kontur {}.png", "{}-labelled.png"])
def test_names_of_several_words_before_or_after_are_suspected(tmp_path, name):
    classes(tmp_path)
    for path in list(tmp_path.rglob("*.png")):
        draw_mask(path.with_name(name.format(path.stem)))
    line = refused(tmp_path)
    assert "have as few colours as masks; give data.mask_pattern: '" in line
    reading = read(tmp_path, mask_pattern=line.split("mask_pattern: '")[1].split("'")[0])
    assert [sample.mask is not None for sample in reading.samples] == [True] * 12


@pytest.mark.parametrize("mask", ["{}_label.tif", "Mask of {}_DAPI-1.tif"])
def test_masks_named_after_no_image_are_suspected_by_their_look(tmp_path, mask):
    """They were samples, beside the images that they are masks of."""
    classes(tmp_path, name="img_{:03d}_DAPI")
    for path in list(tmp_path.rglob("*.png")):
        draw_mask(path.with_name(mask.format(path.stem.removesuffix("_DAPI"))))
    line = refused(tmp_path)
    assert "and 5 more of such names have as few colours as masks" in line
    assert line.endswith("or give a table of the columns path, label and mask (data.csv)")


def test_lines_about_masks_show_their_remedy_however_long_the_names(tmp_path):
    for c in ("mono", "neutro"):
        for i in range(6):
            image = tmp_path / c / f"{i} {'a long name of a slide ' * 8}x.png"
            draw(image)
            draw_mask(image.with_name(f"{image.stem}_Kontur.png"))
    line = refused(tmp_path)
    assert len(line) <= 280
    assert line.endswith("give data.mask_pattern: '{path}_Kontur.png', or move them out")


def test_a_folder_of_masks_of_nothing_is_no_class(tmp_path):
    classes(tmp_path)
    for i in range(6):
        draw_mask(tmp_path / "masks" / f"img_{i:03d}.png")  # of mono, or of neutro?
    line = refused(tmp_path)
    assert "the folder 'masks' holds masks by its name and its pixels" in line
    assert "data.mask_pattern" in line


def test_masks_of_many_colours_in_one_folder_may_be_a_class(tmp_path):
    classes(tmp_path, ("control",))
    classes(tmp_path, ("masks",))
    line = refused(tmp_path)
    assert "masks, or a class? As masks: data.mask_pattern 'masks/{stem}.png'" in line


def test_a_class_of_masks_is_doubtful(tmp_path):
    classes(tmp_path)
    for i in range(6):
        draw_mask(tmp_path / "other" / f"{i}.png")
    assert "the images of 'other' have as few colours as masks" in doubts(read(tmp_path))


def test_two_masks_of_one_image_are_doubtful(tmp_path):
    classes(tmp_path)
    draw_mask(tmp_path / "mono" / "img_000_mask.png")
    draw_mask(tmp_path / "mono" / "img_000_nucleus_mask.png")
    reading = read(tmp_path)
    assert numbers(reading) == TWO
    assert reading.samples[0].mask is None
    assert "1 image with two masks each, of which none is used: 'mono/img_000.png'" in doubts(
        reading
    )


@pytest.mark.parametrize(
    ("pattern", "mask"),
    [
        ("outer/{path}.png", "outer/{c}/{n}.png"),
        ("../other/masks/{path}.png", "../other/masks/{c}/{n}.png"),
        ("{parent}/{stem}-cell.tif", "{c}/{n}-cell.tif"),
        ("m/{parent}/{name}.bmp", "m/{c}/{n}.png.bmp"),
    ],
)
def test_masks_by_a_pattern(tmp_path, pattern, mask):
    root = classes(tmp_path / "root")
    for path in list(root.rglob("*.png")):
        draw_mask(root / mask.format(c=path.parent.name, n=path.stem))
    reading = read(root, mask_pattern=pattern)
    assert numbers(reading) == TWO
    for sample in reading.samples:
        name = mask.format(c=sample.image.parent.name, n=sample.image.stem)
        assert os.path.samefile(sample.mask, root / name)
    assert reading.options == {"mask_pattern": pattern}


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("nowhere/{path}.png", "'nowhere/{path}.png' fits no file (no "),
        ("masks/a.png", "is one path for all images"),
        ("{path}.png", "gives each image's own path, such as 'mono/img_000.png'"),
        ("masks/{nmae}.png", "has {nmae}; allowed: {path}, {parent}, {name}, {stem}"),
        ("masks/{path.png", "data.mask_pattern: 'masks/{path.png'"),
    ],
)
def test_a_mask_pattern_that_does_not_fit_is_refused(tmp_path, pattern, line):
    classes(tmp_path)
    assert line in refused(tmp_path, mask_pattern=pattern)


def test_the_places_of_masks_are_said_where_none_is_found(tmp_path):
    classes(tmp_path, n=12)
    with pytest.raises(UserError) as raised:
        FolderDataModule(root=tmp_path, view="masked", image_size=24).setup("fit")
    line = str(raised.value)
    assert "'mono/img_000.png' has none (24 of 24 images have none)" in line
    assert "looked for mono/img_000_mask.*, masks/mono/img_000.* and the like" in line
    assert "data.mask_pattern names another place" in line
    assert len(line) <= MAX_MESSAGE


# Fields and crops.


@pytest.mark.parametrize(
    "crop", ["{c}/{c}/CROPPED/{f:03d}_{i:02d}.bmp", "{c}/{c}/{f:03d}_{i:02d}.bmp"]
)
def test_crops_are_samples_and_their_fields_are_not(tmp_path, crop):
    for c in ("im_Dyskeratotic", "im_Parabasal"):
        for f in range(4):
            draw(tmp_path / c / c / f"{f:03d}.bmp", (120, 160))
            for i in range(3):
                draw(tmp_path / crop.format(c=c, f=f, i=i), (40, 40))
                (tmp_path / crop.format(c=c, f=f, i=i)).with_suffix(".dat").touch()
    reading = read(tmp_path)
    assert numbers(reading) == {"im_Dyskeratotic": 12, "im_Parabasal": 12}
    assert Counter(Counter(s.group for s in reading.samples).values()) == {3: 8}
    assert reading.left_out["whole fields, whose crops are the samples"] == {".bmp": 8}
    assert "8 whole fields left out, as 24 crops of them are there" in doubts(reading)
    data = FolderDataModule(root=tmp_path)
    for group in {sample.group for sample in data.table.samples}:
        own = [sample.group == group for sample in data.table.samples]
        assert len(set(data.partition.parts[own])) == 1


def test_images_at_two_levels_are_refused_if_they_are_of_two_kinds(tmp_path):
    classes(tmp_path)
    for i in range(3):
        draw(tmp_path / "mono" / "crops" / f"x{i}.png", (6, 6))
    line = refused(tmp_path)
    assert "'mono' has 6 images, and 'mono/crops' in it has others, 16 times as large" in line
    for path in (tmp_path / "mono" / "crops").iterdir():
        draw(path)
    assert "images lie at two levels: 6 in 'mono', 3 in folders below it" in doubts(read(tmp_path))


# MedMNIST.


@pytest.fixture
def medmnist(tmp_path):
    rng = np.random.default_rng(0)

    def write(name="bloodmnist.npz", **changes):
        arrays = {}
        for part, n in (("train", 40), ("val", 10), ("test", 10)):
            arrays[f"{part}_images"] = rng.integers(0, 255, (n, 28, 28, 3), np.uint8)
            arrays[f"{part}_labels"] = np.arange(n)[:, None] % 3
        arrays = {k: v for k, v in (arrays | changes).items() if v is not None}
        (tmp_path / "npz").mkdir(exist_ok=True)
        np.savez_compressed(tmp_path / "npz" / name, **arrays)
        return tmp_path / "npz" / name, arrays

    return write


@pytest.mark.parametrize("as_folder", [True, False])
def test_medmnist_is_read_with_its_parts(medmnist, as_folder):
    path, arrays = medmnist()
    data = FolderDataModule(
        root=path.parent if as_folder else path,
        image_size=28,
        split=SplitConfig(protocol="official"),
    )
    assert data.classes == ("0", "1", "2")
    assert [len(data.partition.indices(part)) for part in ("train", "val", "test")] == [40, 10, 10]
    samples = {sample.id: sample for sample in data.listed}
    assert samples["val/000004"].label == 1
    assert np.array_equal(data.read_image(samples["val/000004"]), arrays["val_images"][4])
    data.setup("fit")
    assert len(data.images.pixels.images) == 60


def test_grey_medmnist_has_three_planes(medmnist):
    grey = {f"{p}_images": np.arange(n * 64, dtype=np.uint8).reshape(n, 8, 8)
            for p, n in (("train", 40), ("val", 10), ("test", 10))}  # fmt: skip
    path, _ = medmnist(**grey)
    data = FolderDataModule(root=path)
    image = data.read_image(next(s for s in data.listed if s.id == "test/000003"))
    assert image.shape == (8, 8, 3)
    assert np.array_equal(image[..., 2], grey["test_images"][3])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train_labels": np.zeros((40, 14), int)}, "train_labels has 14 labels for each image"),
        ({"val_images": np.zeros((10, 28, 28, 28), np.uint8)}, "not volumes"),
        ({"val_images": np.zeros((10, 28, 28), np.float32)}, "expected uint8"),
        ({"test_labels": np.zeros((9, 1), int)}, "for 10 images"),
        ({"test_labels": np.array([{}] * 10)}, "holds Python objects"),
        ({f"{p}_labels": None for p in ("train", "val", "test")}, "expected MedMNIST's"),
        ({f"{p}_labels": np.zeros(n, int) for p, n in (("train", 40), ("val", 10), ("test", 10))},
         "at least two classes"),
    ],
)  # fmt: skip
def test_another_archive_is_refused(medmnist, changes, line):
    path, _ = medmnist(**changes)
    assert line in refused(path)


def test_archives_that_cannot_be_chosen_between_or_read(medmnist):
    path, _ = medmnist()
    assert "has no names and no masks" in refused(path, group_pattern="(?P<group>.)")
    medmnist("bloodmnist_64.npz")
    assert "give one of them as data.root" in refused(path.parent)
    path.write_bytes(path.read_bytes()[:2000])
    assert "is it a whole .npz file?" in refused(path)


# Headers.


def test_sizes_and_modes_of_odd_formats(tmp_path):
    planes = np.zeros((8, 9, 5), np.uint16)
    Image.fromarray(planes[..., 0]).save(tmp_path / "a.tif")
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(
        tmp_path / "b.tif", save_all=True, append_images=[Image.new("RGB", (9, 8))]
    )
    Image.new("RGBA", (9, 8)).save(tmp_path / "c.png")
    Image.new("F", (9, 8)).save(tmp_path / "d.tiff")
    (tmp_path / "e.tif").write_bytes(b"II*\0\xff\xff\xff\xff")
    found = read_headers(sorted(tmp_path.iterdir()))
    assert found.modes == {
        "grey, 16 bit": 1,
        "RGB, 8 bit, 2 pages": 1,
        "RGB with alpha, 8 bit": 1,
        "grey, 32 bit float": 1,
    }
    assert set(found.sizes) == {(9, 8)}
    assert [path.name for path in found.unreadable] == ["e.tif"]


def test_masks_are_told_by_their_colours(tmp_path):
    draw(tmp_path / "image.png")
    draw_mask(tmp_path / "mask.png")
    Image.new("L", (9, 9), 77).save(tmp_path / "plain.png")
    rgb = np.zeros((9, 9, 3), np.uint8)
    rgb[3:] = (255, 0, 9)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    (tmp_path / "broken.png").touch()
    names = ("image", "mask", "plain", "rgb", "broken")
    looked = [looks_like_mask(tmp_path / f"{name}.png") for name in names]
    assert looked == [False, True, None, True, None]


LONG = "a long name " * 16


def test_long_names_leave_the_remedy_in_the_line(tmp_path):
    a, b = f"{LONG}a", f"{LONG}b"
    for i, (folders, remedy) in enumerate(
        [
            ([f"train/{a}", f"rest/{a}"], "rename it train, val or test if it is one"),
            ([f"fold1/{a}", f"fold2/{a}", b], "^(?P<fold>[^/]+)/'"),
            ([f"{a}/{a}", f"{b}/{a}", f"{a}/{b}", f"{b}/{b}"], "if the inner is a patient"),
            ([a, a.upper()], "give them one name, or names that differ"),
            ([f"train/{a}", f"test/{a}", f"test/{b}"], "move it out, or rename it"),
            ([a], "or a table (data.csv)"),
            ([f"{a}/train", f"{a}/{b}", b], "if it is one, or move it out"),
        ]
    ):
        root = tmp_path / str(i)
        for folder in folders:
            classes(root, (folder,), n=1)
        with pytest.raises(UserError) as raised:
            read(root)
        line = one_line(raised.value)
        assert remedy in line
        assert " ... " not in line
