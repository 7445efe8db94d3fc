"""Label tables as spreadsheets and statistics programs write them: understood, or one line."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cellbench.__main__ import main
from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.reading.label_table import read_label_table
from cellbench.data.reading.reading import FolderOptions, Reading
from cellbench.data.reading.sources import read_images
from cellbench.data.reading.table_file import read_table_file
from cellbench.data.table import Sample
from cellbench.utils.errors import UserError, clip, one_line
from tests.conftest import TINY, draw_cell, write_image

CLASSES = ("mono", "neutro")
IMAGES = [f"{name}/img_{i:03d}.png" for name in CLASSES for i in range(12)]
ROWS = [(path, path.split("/")[0]) for path in IMAGES]


def as_csv(header, rows, separator=",", end="\n"):
    return end.join(separator.join(map(str, row)) for row in (header, *rows)) + end


PLAIN = as_csv(("path", "label"), ROWS)


@pytest.fixture
def root(tmp_path):
    """Twelve images of each of two classes; no table opens them."""
    for path in IMAGES:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


@pytest.fixture
def read(root):
    """Reads a table of some text or bytes; its options are those of `data.columns`."""

    def run(content, name="t.csv", **columns):
        content = content if isinstance(content, bytes) else content.encode()
        (root / name).write_bytes(content)
        return read_label_table(root, Path(name), FolderOptions(columns=columns))

    return run


@pytest.fixture
def refused(root, read):
    """Reads a table that must be refused; returns the line, with the table as t.csv."""

    def run(content, **columns):
        with pytest.raises(UserError) as error:
            read(content, **columns)
        line = one_line(error.value)
        assert len(line) <= 280
        return line.replace(f"{root}/", "")

    return run


def labels_of(reading):
    return {sample.id: reading.classes[sample.label] for sample in reading.samples}


def values_of(reading, field):
    return [getattr(sample, field) for sample in reading.samples]


# The file: encoding, separator, header.

ENCODED = {
    "plain": PLAIN,
    "byte-order mark": PLAIN.encode("utf-8-sig"),
    "CRLF": PLAIN.replace("\n", "\r\n"),
    "CR": PLAIN.replace("\n", "\r"),
    "semicolon": PLAIN.replace(",", ";"),
    "tab": PLAIN.replace(",", "\t"),
    "bar": PLAIN.replace(",", "|"),
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "UTF-16 without a mark": PLAIN.encode("utf-16-le"),
    "UTF-16, big end first, without a mark": PLAIN.encode("utf-16-be"),
    "UTF-16 with tabs, as Excel's Unicode text": PLAIN.replace(",", "\t").encode("utf-16"),
    "UTF-32": PLAIN.encode("utf-32"),
    "no end of the last line": PLAIN.rstrip("\n"),
    "Excel's first line": "sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n"),
    "Excel's first line, quoted": '"sep=,"\n' + PLAIN,
    "quoted": as_csv(('"path"', '"label"'), [(f'"{p}"', f'"{name}"') for p, name in ROWS]),
    "blanks after separators": PLAIN.replace(",", ", "),
    "blanks around everything": as_csv(
        (" path ", "label\t"), [(f" {p}", f"{n} ") for p, n in ROWS]
    ),
    "blanks without width": "\ufeff\ufeff" + PLAIN.replace(",mono", ",\u200bmono\xa0"),
    "quoted after a blank": as_csv(("path", ' "label"'), [(p, f' "{n}"') for p, n in ROWS]),
    "header in capitals": PLAIN.replace("path,label", "PATH,Label"),
    "blank lines": "\n\n" + PLAIN.replace("\n", "\n\n") + ",\n , \n",
    "separators at the end": PLAIN.replace("\n", ",,\n"),
    "separators at the end of the header alone": PLAIN.replace("label\n", "label,,\n"),
    "separators at the end of rows alone": PLAIN.replace(".png,mono\n", ".png,mono,,\n"),
    "index of pandas": as_csv(("", "path", "label"), [(i, *row) for i, row in enumerate(ROWS)]),
    "index of R": as_csv(('""', "path", "label"), [(i + 1, *row) for i, row in enumerate(ROWS)]),
    "comma in another name": as_csv(
        ("path", "label", "size, mm"), [(*row, "1,5") for row in ROWS], ";"
    ),
    "semicolon in another name": as_csv(("path", "label", "a; b"), [(*row, "") for row in ROWS]),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_the_file_is_read_as_it_was_written(read, kind):
    reading = read(ENCODED[kind])
    assert reading.classes == CLASSES
    assert labels_of(reading) == dict(ROWS)
    assert [sample.image.name for sample in reading.samples] == [p.split("/")[1] for p in IMAGES]
    assert set(reading.unused_columns) <= {"size, mm", "a; b"}


def test_text_with_separators_quotes_and_line_breaks_is_one_cell(read, refused):
    rows = [(f'"{p}"', f'"{name}, type ""A"""', '"a\nb;c"') for p, name in ROWS]
    reading = read(as_csv(("path", "label", "note"), rows))
    assert reading.classes == ('mono, type "A"', 'neutro, type "A"')
    assert reading.unused_columns == ("note",)
    assert refused(as_csv(("path", "label", "note"), [*rows, ("x.png", "", "")])) == (
        "t.csv, line 50: 'x.png' has no label; 1 row has none; fill it in, or remove the row"
    )


def test_western_text_is_read_and_said_to_be_assumed(read):
    reading = read(PLAIN.replace(",neutro", ",häm – “β”"[:6]).encode("cp1252"))
    assert reading.classes == ("häm –", "mono")
    assert reading.found["table"] == "Windows-1252 (assumed, as it is not UTF-8), comma"
    assert [doubt.what for doubt in reading.doubts] == [
        "t.csv is not UTF-8, and was read as Windows-1252"
    ]


SAVE = "save it as CSV (UTF-8)"
NOT_TABLES = {
    "workbook": (b"PK\x03\x04" + bytes(50), "t.csv is a workbook (.xlsx, .ods) or an archive, not"),
    "old workbook": (b"\xd0\xcf\x11\xe0" + bytes(50), "t.csv is an Excel workbook (.xls), not a"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "t.csv is a gzip archive, not a CSV file; " + SAVE),
    "web page": ("\n<!DOCTYPE html><html>", "t.csv is a web page, not a CSV file; " + SAVE),
    "JSON": ('[{"path": "a.png"}]', "t.csv is a JSON file, not a CSV file; " + SAVE),
    "zeros": (PLAIN.encode() + b"\0" * 9, "t.csv is not a text file: it has NUL bytes; " + SAVE),
    "Chinese": (
        PLAIN.replace(",neutro", ",中性粒细胞").encode("gbk"),
        "t.csv, line 14: the text is neither UTF-8 nor Windows-1252; " + SAVE,
    ),
    "Russian": (
        PLAIN.replace(",neutro", ",нейтрофил").encode("cp1251"),
        "t.csv, line 14: the text is neither UTF-8 nor Windows-1252; " + SAVE,
    ),
    "two encodings": (
        PLAIN.replace(",mono", ",hä").encode() + "x.png,hä\n".encode("cp1252"),
        "t.csv, line 2: the text is neither UTF-8 nor Windows-1252; " + SAVE,
    ),
    "half a character": (PLAIN.encode("utf-16")[:-1], "t.csv is damaged: not UTF-16; " + SAVE),
    "a broken letter": (
        PLAIN.encode("utf-8-sig") + b"x.png,h\xe4",
        "t.csv is damaged: not UTF-8; " + SAVE,
    ),
    "nothing": ("", "t.csv is empty; give a table with a header, such as path,label"),
    "blanks": ("\ufeff\n \n", "t.csv is empty; give a table with a header, such as path,label"),
    "a header": ("path,label\n", "t.csv has a header and no rows; give one row for each image"),
    "an open quotation mark": (
        PLAIN + '"x.png,mono\n',
        "cannot read the table t.csv, line 26: a quotation mark is not closed, or text follows it",
    ),
    "too many cells": (
        PLAIN.replace("neutro\n", "neutro, band\n"),
        "t.csv, line 14: 3 cells, but the header has 2; put quotation marks around text that has a "
        "separator in it",
    ),
    "too few cells": (
        PLAIN + "x.png\n",
        "t.csv, line 26: 1 cell, but the header has 2; add the missing ones, empty if need be",
    ),
    "two columns of one name": (
        as_csv(("path", "label", "Label "), [(*row, 1) for row in ROWS]),
        "t.csv has two columns 'label'; rename or remove one",
    ),
    "no header": (
        as_csv(ROWS[0], ROWS[1:]),
        "t.csv has no header: its first line lists an image; put the names of the columns above "
        "it, such as path,label",
    ),
    "another separator": (
        PLAIN.replace(",", ":"),
        "t.csv: no column 'path' for the images' names; it has 'path:label'; say which one it is: "
        "data.columns: {path: ...}",
    ),
}


@pytest.mark.parametrize("kind", NOT_TABLES)
def test_what_is_no_table_is_refused_by_its_kind(refused, kind):
    content, line = NOT_TABLES[kind]
    assert refused(content).startswith(line)


def test_a_table_that_is_not_there_is_looked_for_in_the_present_folder(root, monkeypatch):
    here = root / "elsewhere"
    here.mkdir()
    (here / "t.csv").write_text(PLAIN)
    monkeypatch.chdir(here)
    with pytest.raises(UserError) as error:
        read_label_table(root, Path("t.csv"), FolderOptions())
    assert str(error.value) == (
        f"data.csv: there is no table {clip(root / 't.csv', 80)}; its path is below data.root, or "
        f"absolute; give {here}/t.csv for the one in this folder"
    )
    reading = read_label_table(root, here / "t.csv", FolderOptions())
    assert labels_of(reading) == dict(ROWS)
    assert reading.options == {"csv": f"{here}/t.csv"}
    assert reading.left_out == {}
    with pytest.raises(UserError, match=r"data\.root: there is no folder .*nowhere"):
        read_label_table(root / "nowhere", Path("t.csv"), FolderOptions())


# The columns.


@pytest.mark.parametrize(
    "header",
    [
        *(("image_id", "diagnosis"), ("Image ID", "cell type"), ("filename", "class")),
        *(("fileName", "Class"), ("ImagePath", "groundTruth"), ("img", "target"), ("id", "y")),
        *(("file", "dx"), ("image_file_name", "category"), ("image", "type"), ("name", "cellType")),
        *(("tile_path", "label_name"), ("relative_path", "true_label"), ("Filepath", "LABELS")),
    ],
)
def test_usual_names_of_path_and_label_are_taken_and_said(read, header):
    reading = read(as_csv(header, ROWS))
    assert labels_of(reading) == dict(ROWS)
    assert reading.options["columns"] == {"path": header[0], "label": header[1]}
    what = f"t.csv: took column '{header[0]}' as the path and '{header[1]}' as the label"
    assert (reading.doubts[0].what, reading.doubts[0].option) == (what, "data.columns")


def test_columns_are_given_by_their_headers(read, refused):
    text = as_csv(("wo", "was", "wer"), [(*row, f"P{i // 4}") for i, row in enumerate(ROWS)])
    reading = read(text, path="wo", label="Was ", group="wer")
    assert labels_of(reading) == dict(ROWS)
    assert values_of(reading, "group") == [f"P{i // 4}" for i in range(24)]
    assert reading.options["columns"] == {"path": "wo", "label": "Was ", "group": "wer"}
    given = {"path": "wo", "label": "was"}
    assert refused(text, **given, group="patient") == (
        "data.columns.group: t.csv has no column 'patient'; it has 'wo', 'was', 'wer'"
    )
    assert refused(text, **given, groups="wer") == (
        "data.columns: unknown role 'groups'; closest: group"
    )
    assert refused(text, **given, group="was") == (
        "data.columns: 'was' is given for two roles; choose one"
    )


def test_several_columns_that_may_be_the_label_are_a_question(read, refused):
    text = as_csv(("image", "class", "diagnosis"), [(*row, "x") for row in ROWS])
    assert refused(text) == (
        "t.csv: several columns may be the label: 'class', 'diagnosis'; choose one, as "
        "data.columns: {label: class}"
    )
    reading = read(text, label="class")
    assert labels_of(reading) == dict(ROWS)
    assert reading.unused_columns == ("diagnosis",)
    both = as_csv(("image_id", "file", "label"), [(i, *row) for i, row in enumerate(ROWS)])
    assert "t.csv: several columns may be the path: 'image_id', 'file'; " in refused(both)
    # A column with the role's own name needs no choice.
    assert labels_of(read(text.replace("class", "label"))) == dict(ROWS)


def by_four(i):
    return f"P{i // 4}"


SUSPECTS = {
    "patient_id": ("group", by_four),
    "Patient ID": ("group", by_four),
    "PatientID": ("group", by_four),
    "patientNumber": ("group", by_four),
    "anon_patient": ("group", by_four),
    "slide": ("group", by_four),
    "WSI": ("group", by_four),
    "case_no": ("group", by_four),
    "donor": ("group", by_four),
    "lesion_id": ("group", by_four),
    "Subject": ("group", by_four),
    "groups": ("group", by_four),
    "fov": ("group", by_four),
    "source_image": ("group", by_four),
    "subset": ("split", lambda i: "abc"[i % 3]),
    "partition": ("split", lambda i: ("Training", "Validation", "Testing")[i % 3]),
    "dataset": ("split", lambda i: ("train", "test")[i % 2]),
    "is_valid": ("split", lambda i: i % 4 == 0),
    "anything": ("split", lambda i: ("train", "dev")[i % 2]),
    "cv_fold": ("fold", lambda i: i % 3),
    "Fold ID": ("fold", lambda i: i % 3),
    "kfold": ("fold", lambda i: i % 3),
    "site": ("domain", lambda i: ("Ulm", "Bonn")[i % 2]),
    "hospital": ("domain", lambda i: ("Ulm", "Bonn")[i % 2]),
    "Scanner Model": ("domain", lambda i: ("A", "B")[i % 2]),
    "centre_id": ("domain", lambda i: i % 2),
    "data_source": ("domain", lambda i: i % 2),
    "mask_path": ("mask", lambda i: f"m/{i}.png"),
    "segmentation": ("mask", lambda i: f"m/{i}"),
}


@pytest.mark.parametrize("name", SUSPECTS)
def test_a_column_that_looks_like_a_role_is_used_or_disclaimed(read, refused, name):
    role, value = SUSPECTS[name]
    text = as_csv(("path", "label", name), [(*row, value(i)) for i, row in enumerate(ROWS)])
    assert refused(text) == (
        f"t.csv: column '{name}' ({role}) is not used; give data.columns: {{{role}: {name}}}, or "
        f"data.columns: {{{role}: null}} to leave it unused"
    )
    reading = read(text, **{role: None})
    assert reading.unused_columns == (name,)
    assert set(values_of(reading, role)) == {None}
    assert reading.options["columns"] == {role: None}
    if role in ("group", "fold", "domain"):
        assert values_of(read(text, **{role: name}), role) == [str(value(i)) for i in range(24)]


def test_several_such_columns_are_named_at_once_the_coarsest_first(read, refused):
    rows = [(*row, f"S{i // 2}", f"P{i // 4}", i % 2) for i, row in enumerate(ROWS)]
    text = as_csv(("path", "label", "slide", "patient", "lab"), rows)
    assert refused(text) == (
        "t.csv: columns 'slide' (group), 'patient' (group), 'lab' (domain) are not used; give "
        "data.columns: {group: patient, domain: lab}, or data.columns: {group: null, domain: null} "
        "to leave them unused"
    )
    reading = read(text, group="patient", domain="lab")
    assert values_of(reading, "group") == [f"P{i // 4}" for i in range(24)]
    assert reading.unused_columns == ("slide",)


def test_a_patient_that_the_groups_divide_is_a_question(read, refused):
    rows = [(*row, f"S{i // 2}", f"P{i // 4}") for i, row in enumerate(ROWS)]
    assert refused(as_csv(("path", "label", "group", "patient"), rows)) == (
        "t.csv: column 'patient' (group) is not used; give data.columns: {group: patient}, or "
        "data.columns: {group: group} to leave it unused"
    )
    # Groups that keep every slide whole leave nothing to ask.
    reading = read(as_csv(("path", "label", "slide", "group"), rows))
    assert values_of(reading, "group") == [f"P{i // 4}" for i in range(24)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patient_age", lambda i: 40 + i // 4),
        ("patient sex", lambda i: "mf"[i // 4 % 2]),
        ("sample_id", lambda i: f"S{i}"),
        ("slide", lambda i: "S1"),
        ("mask_area", lambda i: 17.5 + i),
        ("fold_change", lambda i: i % 3),
        ("set", lambda i: "AB"[i % 2]),
        ("site", lambda i: "Ulm"),
        ("patient", lambda i: ""),
        ("comment", lambda i: "out of focus"),
        ("Unnamed: 0", lambda i: i),
    ],
)
def test_other_columns_are_listed(read, name, value):
    text = as_csv(("path", "label", name), [(*row, value(i)) for i, row in enumerate(ROWS)])
    assert read(text).unused_columns == (name,)


def test_a_name_that_yaml_would_read_otherwise_is_quoted_in_the_remedy(refused):
    rows = [(*row, by_four(i)) for i, row in enumerate(ROWS)]
    line = refused(as_csv(("path", "label", "patient: no."), rows))
    assert 'data.columns: {group: "patient: no."}, or' in line


def test_parts_in_a_column_called_group_are_no_groups(refused):
    rows = [(*row, ("train", "test")[i % 2]) for i, row in enumerate(ROWS)]
    assert refused(as_csv(("path", "label", "group"), rows)) == (
        "t.csv: column 'group' holds the parts of a split (test, train); give "
        "data.columns: {split: group, group: null}"
    )


def test_one_column_per_class_is_refused(refused):
    rows = [(path, int(name == "mono"), int(name == "neutro"), 0) for path, name in ROWS]
    assert refused(as_csv(("image", "MONO", "NEUTRO", "BASO"), rows)) == (
        "t.csv: MONO, NEUTRO, BASO are one column per class; write one column 'label' with the "
        "class's name (pandas: table[names].idxmax(axis=1))"
    )


def test_a_column_of_image_names_is_proposed_as_the_path(refused):
    assert refused(as_csv(("Bild", "label"), ROWS)) == (
        "t.csv: no column 'path' for the images' names; it has 'Bild', 'label'; say which one it "
        "is: data.columns: {path: Bild}"
    )
    assert refused(as_csv(("", "label"), ROWS)) == (
        "t.csv: the column of the images' names has no header; call it path"
    )


def test_a_table_without_labels_takes_them_from_the_folders(root, read, refused):
    rows = [(path, by_four(i)) for i, path in enumerate(IMAGES)]
    text = as_csv(("path", "group"), rows)
    reading = read(text)
    assert labels_of(reading) == dict(ROWS)
    assert values_of(reading, "group") == [by_four(i) for i in range(24)]
    assert reading.found["classes"] == "folders of the images"
    # What the caller knows of the folders goes before the first folder of the path.
    other = read(as_csv(("path", "label"), [(p, f"{n}cyte") for p, n in ROWS]), "other.csv")
    known = read_label_table(root, Path("t.csv"), FolderOptions(), lambda *_: other)
    assert known.classes == ("monocyte", "neutrocyte")
    (root / "flat.png").touch()
    assert refused(text + "flat.png,P9\n") == (
        "t.csv has no column 'label', and 'flat.png' is in no class folder; add the column"
    )
    unknown = as_csv(("path", "malignancy"), [(path, i % 2) for i, path in enumerate(IMAGES)])
    assert refused(unknown) == (
        "t.csv: no column 'label'; it has 'path', 'malignancy'; say which one it is: data.columns: "
        "{label: ...}, or {label: null} where the folders' names are the classes"
    )
    assert labels_of(read(unknown, label=None)) == dict(ROWS)


def test_what_no_column_gives_is_that_of_the_folder(root, read):
    samples = [
        Sample(path, i // 12, root / path, root / f"masks/{path}", None, ("train", "test")[i % 2])
        for i, path in enumerate(IMAGES[:20])
    ]
    folder = Reading(CLASSES, tuple(samples), {"parts": "folders", "masks": "masks/{path}.png"})
    read(as_csv(("path", "label", "fold"), [(*row, i % 3) for i, row in enumerate(ROWS)]))

    def with_folder(**columns):
        options = FolderOptions(columns=columns)
        return read_label_table(root, Path("t.csv"), options, lambda *_: folder)

    (root / "masks" / "mono").mkdir(parents=True)
    (root / "masks" / IMAGES[3]).touch()
    (root / "masks" / "other.png").touch()
    reading = with_folder()
    assert values_of(reading, "split") == ["train", "test"] * 10 + [None] * 4
    assert values_of(reading, "fold") == [str(i % 3) for i in range(24)]
    assert reading.samples[3].mask == root / "masks" / IMAGES[3]
    assert with_folder().left_out == {"not in the table": {".png": 1}}
    assert reading.found["parts"] == "folders"
    assert reading.found["folds"] == "column 'fold': 3 folds"
    reading = with_folder(split=None, mask=None)
    assert set(values_of(reading, "split")) == set(values_of(reading, "mask")) == {None}
    assert {"parts", "masks"}.isdisjoint(reading.found)


# Labels, groups, parts, folds.


def test_blanks_around_labels_and_groups_do_not_make_others(read):
    rows = [
        (path, name + " " * (i % 3), f"P{i // 4}" + "\xa0" * (i % 2))
        for i, (path, name) in enumerate(ROWS)
    ]
    reading = read(as_csv(("path", "label", "group"), rows))
    assert labels_of(reading) == dict(ROWS)
    assert Counter(values_of(reading, "group")) == {f"P{i}": 4 for i in range(6)}
    assert reading.doubts == ()


ALIKE = "differ only in case, blanks, zeros or the form of a character; write them alike, or rename"


@pytest.mark.parametrize(
    ("usual", "other", "shown"),
    [
        ("mono", "Mono", ("'mono'", "'Mono'")),
        ("mono", "MONO", ("'mono'", "'MONO'")),
        ("pro B", "pro  B", (r"'pro\x20B'", r"'pro\x20\x20B'")),
        ("pro B", "pro\xa0B", (r"'pro\x20B'", r"'pro\xa0B'")),
        ("proB", "pro B", ("'proB'", "'pro B'")),
        ("häm", "ha\u0308m", (r"'h\xe4m'", r"'ha\u0308m'")),
        ("Straße", "STRASSE", ("'Straße'", "'STRASSE'")),
        ("1", "1.0", ("'1'", "'1.0'")),
        ("1", "1,0", ("'1'", "'1,0'")),
        ("7", "007", ("'7'", "'007'")),
        ("fi", "\ufb01", ("'fi'", "'\ufb01'")),
    ],
)
def test_names_that_are_nearly_alike_are_refused(refused, usual, other, shown):
    a, b = shown
    rows = [(p, other if i == 3 else usual if i < 12 else "x") for i, (p, _) in enumerate(ROWS)]
    text = as_csv(("path", "label"), [(p, f'"{name}"') for p, name in rows])
    assert refused(text) == f"t.csv: labels {a} (11 rows) and {b} (1) {ALIKE} one"
    groups = [(*row, f'"{name}"') for row, (_, name) in zip(ROWS, rows, strict=True)]
    text = as_csv(("path", "label", "group"), groups)
    assert refused(text) == f"t.csv: groups {a} (11 rows) and {b} (1) {ALIKE} one"


def test_names_that_differ_in_more_are_others(read):
    names = ["CD4", "CD4+", "CD4-", "slide 1 1", "slide 11", "1_1", "11", "10", "1", "1.5", "15"]
    rows = [(p, names[i % 11]) for i, (p, _) in enumerate(ROWS)]
    assert read(as_csv(("path", "label"), rows)).classes == tuple(sorted(names))


@pytest.mark.parametrize("zero", ["0", "0.0", "0.", "0,0", "0.00"])
def test_numbers_are_labels_and_groups(read, zero):
    one = zero.replace("0", "1", 1)
    rows = [
        (p, f'"{one if n == "neutro" else zero}"', f"{i // 4}.0") for i, (p, n) in enumerate(ROWS)
    ]
    reading = read(as_csv(("path", "label", "group"), rows))
    expected = ("0", "1") if zero in ("0", "0.0", "0,0", "0.00") else ("0.", "1.")
    assert reading.classes == expected
    assert values_of(reading, "group") == [str(i // 4) for i in range(24)]
    assert "'group' were read without their .0" in reading.doubts[-1].what


MARKERS = ("", "nan", "NaN", "NA", "N/A", "None", "null", "-", "#N/A", "<NA>", "?", " ")


@pytest.mark.parametrize("marker", MARKERS)
def test_a_missing_label_or_group_is_no_name(read, refused, marker):
    shown = f" but '{marker}'" if marker.strip() else ""
    rows = [(p, marker if i in (4, 9) else name) for i, (p, name) in enumerate(ROWS)]
    assert refused(as_csv(("path", "label"), rows)) == (
        f"t.csv, line 6: 'mono/img_004.png' has no label{shown}; 2 rows have none; fill it in, or "
        "remove the row"
    )
    for role in ("group", "split", "fold", "domain"):
        rows = [(*row, marker if i % 2 else "train") for i, row in enumerate(ROWS)]
        advice = {
            "split": "fill in train, val or test",
            "fold": "fill it in",
        }.get(role, "fill it in, with a name of its own where it is not known")
        assert refused(as_csv(("path", "label", role), rows)) == (
            f"t.csv, line 3: 'mono/img_001.png' has no {role} and others have one; {advice}"
        )
        reading = read(as_csv(("path", "label", role), [(*row, marker) for row in ROWS]))
        assert set(values_of(reading, role)) == {None}
    rows = [(marker if i == 4 else p, name) for i, (p, name) in enumerate(ROWS)]
    assert refused(as_csv(("path", "label"), rows)) == (
        "t.csv, line 6: no path; fill it in, or remove the row"
    )


@pytest.mark.parametrize(
    ("name", "flags", "parts"),
    [
        ("is_test", ("0", "1"), ("train", "test")),
        ("is_train", ("True", "False"), ("train", "test")),
        ("in_training_set", ("yes", "no"), ("train", "test")),
        ("Testing", ("0.0", "1.0"), ("train", "test")),
    ],
)
def test_a_column_of_flags_is_a_split(read, refused, name, flags, parts):
    """Once they were offered as folds, so that a model was tested on its training images."""
    rows = [(*row, flags[i % 3 == 0]) for i, row in enumerate(ROWS)]
    table = as_csv(("path", "label", name), rows)
    line = refused(table)
    assert f"{{split: {name}}}" in line
    assert "fold" not in line
    reading = read(table, split=name)
    assert values_of(reading, "split") == [parts[i % 3 == 0] for i in range(len(ROWS))]


def test_one_column_per_part_is_refused(refused):
    rows = [(*row, str(i % 3 == 0), str(i % 3 == 1)) for i, row in enumerate(ROWS)]
    table = as_csv(("path", "label", "is_test", "is_val"), rows)
    line = refused(table, split="is_test")
    assert line.endswith("write one column 'split' with train, val or test")


@pytest.mark.parametrize("name", ["Metadata_Plate", "Metadata_Well", "Fall-Nr", "Tier"])
def test_columns_of_cellprofiler_and_in_german_are_groups(refused, name):
    rows = [(*row, f"x{i % 4}") for i, row in enumerate(ROWS)]
    assert f"column '{name}' (group) is not used" in refused(as_csv(("path", "label", name), rows))


def test_labels_that_contradict_the_folders_are_a_doubt(root):
    rows = [(p, "neutro" if i == 0 else p.split("/")[0]) for i, (p, _) in enumerate(ROWS)]
    (root / "t.csv").write_text(as_csv(("path", "label"), rows))
    (doubt,) = (
        str(each)
        for each in read_images(root, Path("t.csv"), FolderOptions()).doubts
        if "contradict" in str(each)
    )
    assert doubt.startswith(f"1 of {len(ROWS)} labels contradict the folder of the image")
    assert "'neutro' for 'mono/img_000.png'" in doubt


def test_plus_and_minus_are_labels(read):
    rows = [(p, "+" if name == "mono" else "-") for p, name in ROWS]
    assert read(as_csv(("path", "label"), rows)).classes == ("+", "-")


def test_unlabelled_test_images_are_for_predict(refused):
    rows = [(p, n if i % 4 else "", "train" if i % 4 else "Test") for i, (p, n) in enumerate(ROWS)]
    assert refused(as_csv(("path", "label", "split"), rows)) == (
        "t.csv, line 2: 'mono/img_000.png' has no label (part test); 6 rows have none; remove the "
        "rows, and classify the images with predict"
    )


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "valid", "Test"),
        ("TRAINING", "Validation", "TESTING"),
        ("trn", "dev", "hold-out"),
        ("Training ", "development", "held out"),
    ],
)
def test_parts_go_by_their_usual_names(read, train, val, test):
    rows = [(*row, (train, train, val, test)[i % 4]) for i, row in enumerate(ROWS)]
    reading = read(as_csv(("path", "label", "Split"), rows))
    assert values_of(reading, "split") == ["train", "train", "val", "test"] * 6
    assert reading.found["parts"] == "column 'Split': 12 train, 6 val, 6 test"


def test_other_parts_are_refused_and_one_that_lacks_is_said(read, refused):
    def text(*parts):
        rows = [(*row, parts[i % len(parts)]) for i, row in enumerate(ROWS)]
        return as_csv(("path", "label", "split"), rows)

    assert refused(text("train", "purged")) == (
        "t.csv, line 3: 'mono/img_001.png' has the split 'purged'; allowed: train, val, test"
    )
    assert refused(text(0, 1, 2)) == (
        "t.csv, line 2: 'mono/img_000.png' has the split '0'; allowed: train, val, test; if it is "
        "a fold: data.columns: {fold: split, split: null}"
    )
    assert values_of(read(text("train", "test")), "split") == ["train", "test"] * 12
    (doubt,) = read(text("train", "train", "val")).doubts
    assert doubt.what == "the split has no test images (16 train, 8 val)"


@pytest.mark.parametrize("fold", [lambda i: i % 3, lambda i: f"{i % 3}.0", lambda i: "abc"[i % 3]])
def test_folds_and_domains_are_kept(read, fold):
    rows = [(*row, fold(i), ("Ulm", "Bonn")[i % 2]) for i, row in enumerate(ROWS)]
    reading = read(as_csv(("path", "label", "fold", "domain"), rows))
    expected = [str(fold(i)).replace(".0", "") for i in range(24)]
    assert values_of(reading, "fold") == expected
    assert values_of(reading, "domain") == ["Ulm", "Bonn"] * 12
    assert reading.found["folds"] == "column 'fold': 3 folds"
    assert reading.found["domains"] == "column 'domain': 2 domains"


def test_groups_that_cannot_be_divided_are_doubtful(read):
    rows = [(*row, f"{row[1]}-patient") for row in ROWS]
    (doubt,) = read(as_csv(("path", "label", "group"), rows)).doubts
    assert doubt.what == (
        "all images of class 'mono' are of 'mono-patient', and training, validation and test need "
        "a group each; 2 classes have fewer than three groups"
    )
    rows = [(*row, f"P{i // 3}", ("train", "test")[i % 2]) for i, row in enumerate(ROWS)]
    (doubt,) = read(as_csv(("path", "label", "group", "split"), rows)).doubts
    assert doubt.what == "8 groups in several parts, the first 'P0' in test and train"
    assert doubt.option == "data.split.purge"


def test_two_labels_in_one_cell_are_doubtful(read):
    rows = [(p, '"mono, neutro"' if i == 5 else n) for i, (p, n) in enumerate(ROWS)]
    (doubt,) = read(as_csv(("path", "label"), rows)).doubts
    assert doubt.what == "label 'mono, neutro' looks like several labels in one"


def test_an_image_occurs_once(refused):
    assert refused(PLAIN + "mono/img_000.png,mono\n") == (
        "t.csv, line 26: sample 'mono/img_000.png' occurs more than once in the dataset's table, "
        "first in line 2; remove one (or cut out each cell)"
    )
    assert refused(PLAIN + "mono\\img_000.png,neutro\n") == (
        "t.csv, line 26: 'mono\\img_000.png' has the label 'neutro', and in line 2 'mono'; an "
        "image has one label (cut out each cell of a field first)"
    )
    # Two names of one file are found out as well.
    assert refused(PLAIN + "img_000,mono\n".replace("img", "mono/img")) == (
        "sample 'mono/img_000.png' occurs more than once in the dataset's table"
    )


# The files.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path, ""),
        (lambda path: f"./{path}", ""),
        (lambda path: path.replace("/", "//"), ""),
        (lambda path: path.replace("/", "\\"), " (24 with backslashes)"),
        (lambda path: f".\\{path}".replace("/", "\\"), " (24 with backslashes)"),
        (lambda path: path[:-4], " (24 no suffix)"),
        (lambda path: path[:-4].replace("/", "\\"), " (24 with backslashes, no suffix)"),
        (lambda path: path.replace(".png", ".PNG"), " (24 in another case)"),
        (lambda path: path.title(), " (24 in another case)"),
    ],
)
def test_paths_are_found_as_they_are_written(read, change, said):
    reading = read(as_csv(("path", "label"), [(change(path), name) for path, name in ROWS]))
    assert labels_of(reading) == dict(ROWS)
    assert reading.found["paths"] == f"column 'path'{said}"
    assert reading.left_out == {}


def test_absolute_paths_below_the_root_are_relative_ones(root, read, refused, tmp_path_factory):
    rows = [(root / path, name) for path, name in ROWS]
    reading = read(as_csv(("path", "label"), rows))
    assert labels_of(reading) == dict(ROWS)
    link = tmp_path_factory.mktemp("link") / "link"
    link.symlink_to(root)
    reading = read_label_table(link, Path("t.csv"), FolderOptions())
    assert labels_of(reading) == dict(ROWS)
    for path in ("/elsewhere/x.png", "C:\\cells\\x.png", "C:/cells/x.png", "\\\\host\\x.png"):
        assert refused(PLAIN + f"{path},mono\n") == (
            f"t.csv: '{path}' leaves the dataset's folder; give a path below data.root"
        )


def test_paths_may_start_at_the_tables_folder_or_above_the_root(root, read):
    (root / "tables").mkdir()
    rows = [(f"{root.name}/{path}", name) for path, name in ROWS]
    reading = read(as_csv(("path", "label"), rows), "tables/t.csv")
    assert labels_of(reading) == dict(ROWS)
    only = [(path.split("/")[1], path) for path in IMAGES[:12]]
    for name, path in only:
        (root / path).rename(root / "tables" / name)
    rows = [(name, name[-5]) for name, _ in only]
    reading = read(as_csv(("path", "label"), rows), "tables/t.csv")
    assert values_of(reading, "id") == [f"tables/{name}" for name, _ in only]
    assert reading.found["paths"] == "column 'path' (12 relative to the table's folder)"


def test_names_without_their_folder_are_found_if_only_one_fits(root, read, refused):
    for i, path in enumerate(IMAGES):
        (root / path).rename(root / path.split("/")[0] / f"cell{i}.png")
    rows = [(f"cell{i}", name) for i, (_, name) in enumerate(ROWS)]
    reading = read(as_csv(("image_id", "dx"), rows))
    assert {sample.id for sample in reading.samples} == {
        f"{name}/cell{i}.png" for i, (_, name) in enumerate(ROWS)
    }
    assert reading.found["paths"] == "column 'image_id' (24 no folder, no suffix)"
    for folder in ("masks/mono", ".cache", "__MACOSX"):  # not taken for the images
        (root / folder).mkdir(parents=True)
        (root / folder / "cell0.png").touch()
    assert len(read(as_csv(("image_id", "dx"), rows)).samples) == 24
    (root / "neutro" / "cell0.png").touch()
    assert refused(as_csv(("image_id", "dx"), rows)) == (
        "t.csv: 'cell0' may be 'mono/cell0.png' or 'neutro/cell0.png'; give the path below "
        "data.root, with its suffix"
    )
    (root / "neutro" / "cell0.png").unlink()
    (root / "mono" / "cell0.bmp").touch()
    assert "'cell0' may be 'mono/cell0.bmp' or 'mono/cell0.png'" in refused(
        as_csv(("image_id", "dx"), rows)
    )


def test_names_in_another_unicode_form_are_found(root, read):
    (root / "mono" / "ha\u0308m.png").touch()
    reading = read(PLAIN + "mono/h\xe4m.png,mono\n")
    assert "mono/ha\u0308m.png" in values_of(reading, "id")


def test_missing_files_are_counted_and_named(root, read, refused):
    rows = [(path.replace("img", "pic") if i % 2 else path, n) for i, (path, n) in enumerate(ROWS)]
    assert refused(as_csv(("path", "label"), rows)) == (
        "t.csv lists 'mono/pic_001.png', 'mono/pic_003.png', 'mono/pic_005.png' and 9 others, but "
        "there are no such files below data.root (12 of 24 in column 'path'); correct the table, "
        "or data.root"
    )
    assert refused(PLAIN + "mono,mono\n") == (
        "t.csv lists 'mono', but there is no such file below data.root (1 of 25 in column 'path'); "
        "correct the table, or data.root"
    )
    for name in ("mono/new.png", "extra.TIF", "notes.txt", "masks/a.png", "README"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    left = read(as_csv(("path", "label"), ROWS[1:])).left_out
    assert left == {"not in the table": {".png": 3, ".tif": 1, ".txt": 1, "README": 1}}


@pytest.mark.parametrize("place", ["masks/{}", "{}", "seg/{}"])
def test_masks_are_found_below_the_root_or_in_masks(root, read, refused, place):
    folder = "seg" if place.startswith("seg") else "masks"
    for path in IMAGES:
        (root / folder / path).parent.mkdir(parents=True, exist_ok=True)
        (root / folder / path).touch()
    rows = [(*row, "nan" if i == 7 else place.format(row[0])) for i, row in enumerate(ROWS)]
    reading = read(as_csv(("path", "label", "mask"), rows))
    masks = {sample.id: sample.mask for sample in reading.samples}
    assert masks.pop("mono/img_007.png") is None
    assert masks == {path: root / folder / path for path in masks}
    assert reading.found["masks"] == "column 'mask': 23 of 24 images"
    assert reading.left_out == {"not in the table": {".png": 1}}
    if folder == "seg":
        rows[0] = (*rows[0][:2], rows[0][0])
        assert refused(as_csv(("path", "label", "mask"), rows)) == (
            "t.csv, line 2: the mask 'mono/img_000.png' is an image; name its mask"
        )


def test_links_may_lead_anywhere_below_the_root(root, read, refused):
    (root / "store").mkdir()
    (root / "mono").rename(root / "store" / "mono")
    (root / "mono").symlink_to(root / "store" / "mono")
    assert labels_of(read(PLAIN)) == dict(ROWS)
    (root / "mono").unlink()
    outside = root.parent / f"{root.name}-outside"
    (root / "store" / "mono").rename(outside)
    (root / "mono").symlink_to(outside)
    assert refused(PLAIN) == (
        "t.csv: 'mono/img_000.png' leaves the dataset's folder; give a path below data.root"
    )
    outside.rename(root / "elsewhere")


def test_20_000_rows_take_less_than_two_seconds(root, read):
    rows = []
    for folder in range(100):
        (root / f"s{folder}").mkdir()
        for i in range(200):
            (root / f"s{folder}" / f"{i}.png").touch()
            rows.append((f"s{folder}\\{i}", f"c{folder % 5}", f"P{folder}", folder % 4))
    started = time.process_time()
    reading = read(as_csv(("path", "label", "group", "fold"), rows, ";").encode("utf-16"))
    assert len(reading.samples) == 20_000
    assert time.process_time() - started < 2  # one call to the system a folder


# The data module and the commands.


def test_a_run_uses_the_columns_that_are_given(tmp_path, fit, fails, capsys):
    rng = np.random.default_rng(0)
    for path, name in ROWS:
        image, _ = draw_cell(rng, 2 * CLASSES.index(name), 32)
        write_image(tmp_path / "cells" / path, image)
    rows = [(p[:-4], n, f"P{i // 2}", "x") for i, (p, n) in enumerate(ROWS)]
    table = as_csv(("Image ID", "Diagnosis", "Patient", "Note"), rows, ";")
    (tmp_path / "cells" / "t.csv").write_bytes(table.encode("utf-16"))
    data = ["--data=FolderDataModule", f"--data.root={tmp_path / 'cells'}", "--data.csv=t.csv"]
    line = fails("fit", *data, *TINY)
    assert line.endswith(
        "t.csv: column 'Patient' (group) is not used; give data.columns: {group: Patient}, or "
        "data.columns: {group: null} to leave it unused"
    )
    run = fit(*data, "--data.columns={group: Patient}", "--data.split.val=0.25")
    said = capsys.readouterr().out
    assert "columns not used: Note" in said
    assert "took column 'Image ID' as the path and 'Diagnosis' as the label" in said
    split = read_table_file(run / "split.csv")
    assert split.header == ("id", "class", "group", "split", "content")
    assert [(row[0], row[1], row[2]) for row in split.rows] == [
        (path, name, f"P{i // 2}") for i, (path, name) in enumerate(ROWS)
    ]
    output = tmp_path / "p.csv"
    images = tmp_path / "cells" / "mono"
    assert main(["predict", f"--run={run}", f"--images={images}", f"--output={output}"]) == 0
    assert fails("fit", *data[:2], *TINY, "--data.columns={group: Patient}") == (
        "data.columns: they are those of a table; give it as data.csv"
    )
    assert fails("fit", *data, *TINY, "--data.columns={patient: Patient}") == (
        "data.columns: unknown role 'patient'; allowed: path, label, mask, group, split, fold, "
        "domain"
    )


def test_the_module_lists_what_the_table_says(root):
    rows = [(*row, by_four(i)) for i, row in enumerate(ROWS)]
    (root / "t.csv").write_text(as_csv(("path", "label", "Patient"), rows))
    (root / "mono" / "new.png").touch()
    data = FolderDataModule(root=root, csv=Path("t.csv"), columns={"group": "patient"})
    assert data.classes == CLASSES
    assert [sample.group for sample in data.listed] == [by_four(i) for i in range(24)]
    assert data.note == "no samples: 1 .png file: not in the table"
    (root / "t.csv").write_text(PLAIN.replace(",neutro", ",mono"))
    with pytest.raises(UserError, match=r"at least two classes are needed; found mono in t\.csv"):
        _ = FolderDataModule(root=root, csv=Path("t.csv")).classes


# Fields and crops, patterns, and the folder of the images.


@pytest.fixture
def images(tmp_path):
    """Draws images of a size in pixels, and reads a table of them and of their labels."""

    def run(sizes, *header, rows=None, **options):
        for path, side in sizes.items():
            write_image(tmp_path / path, np.zeros((side, side, 3), np.uint8))
        rows = rows or [(path, CLASSES[i % 2]) for i, path in enumerate(sizes)]
        (tmp_path / "t.csv").write_text(as_csv(header or ("path", "label"), rows))
        return read_images(tmp_path, Path("t.csv"), FolderOptions(**options))

    return run


FIELDS = {f"fields/{name}.png": 90 for name in "ABCD"}
CROPS = {
    "numbered": {f"crops/{name}_{i}.png": 20 for name in "ABCD" for i in range(3)},
    "in a folder": {f"crops/{name}/{i}.png": 20 for name in "ABCD" for i in range(3)},
    "of the same name": {f"crops/{name}.png": 20 for name in "ABCD"},
    "beside": {f"fields/{name}-cell{i}.png": 20 for name in "ABCD" for i in range(3)},
}


def field_of(path):
    return next(name for name in "ABCD" if name in path)


@pytest.mark.parametrize("kind", CROPS)
def test_a_listed_field_is_the_group_of_its_crops(images, kind):
    reading = images(FIELDS | CROPS[kind])
    assert {s.id: s.group for s in reading.samples} == {
        path: f"fields/{field_of(path)}" for path in FIELDS | CROPS[kind]
    }
    assert reading.found["groups"] == "fields of the crops: 4 groups"
    assert f"{len(CROPS[kind])} images are crops of 4 whole fields" in str(reading.doubts[0])


def test_crops_of_fields_that_are_not_listed_are_grouped_as_well(images):
    crops = CROPS["numbered"]
    rows = [(path, CLASSES[i % 2]) for i, path in enumerate(crops)]
    reading = images(FIELDS | crops, rows=rows)
    assert [s.group for s in reading.samples] == [f"fields/{field_of(p)}" for p in sorted(crops)]


def test_images_of_one_size_are_no_crops(images):
    same = {f"{folder}/{name}{i}.png": 20 for folder in CLASSES for name in "ab" for i in ("", 1)}
    assert {sample.group for sample in images(same).samples} == {None}
    rows = [(path, CLASSES[i % 2]) for i, path in enumerate(same)]
    reading = images({**same, "mono.png": 90}, rows=rows)  # a picture named as a folder
    assert {sample.group for sample in reading.samples} == {None}


def test_groups_that_divide_a_field_and_its_crop_are_refused(images):
    sizes = FIELDS | CROPS["numbered"]
    rows = [(path, CLASSES[i % 2], f"P{field_of(path)}") for i, path in enumerate(sizes)]
    reading = images(sizes, "path", "label", "group", rows=rows)
    assert {s.group for s in reading.samples} == {"PA", "PB", "PC", "PD"}
    rows = [(path, name, group + path[0]) for path, name, group in rows]
    with pytest.raises(UserError, match=r"t\.csv: 'crops/A_0\.png' looks like a crop of 'fields/A"):
        images(sizes, "path", "label", "group", rows=rows)


def given(root, text=PLAIN, **options):
    (root / "t.csv").write_text(text)
    return read_images(root, Path("t.csv"), FolderOptions(**options))


def refused_with(root, text=PLAIN, **options):
    with pytest.raises(UserError) as error:
        given(root, text, **options)
    return one_line(error.value).replace(f"{root}/", "")


def test_a_mask_pattern_is_checked_as_for_a_folder(root):
    (root / "m").mkdir()
    for i in range(12):
        (root / "m" / f"img_{i:03d}.png").touch()
    key = "data.mask_pattern: "
    assert refused_with(root, mask_pattern="{path}.png") == (
        f"{key}'{{path}}.png' gives each image's own path, such as 'mono/img_000.png'; write where "
        "the masks are, such as masks/{path}.png"
    )
    assert refused_with(root, mask_pattern="m/{stem}.png") == (
        f"{key}'m/{{stem}}.png' gives 'mono/img_000.png' and 'neutro/img_000.png' one mask, "
        "'m/img_000.png'; write {path} or {parent} in it to tell them apart"
    )
    assert "fits no file (no " in refused_with(root, mask_pattern="n/{path}.png")
    assert refused_with(root, mask_pattern="neutro/{stem}.png") == (
        f"{key}'neutro/{{stem}}.png' gives 'neutro/img_000.png' as the mask of 'mono/img_000.png', "
        "and the table lists it as an image; correct one of them"
    )


def test_a_column_and_a_pattern_for_one_role_are_refused(root):
    rows = [(*row, by_four(i), "") for i, row in enumerate(ROWS)]
    text = as_csv(("path", "label", "group", "mask"), rows)
    pattern = r"(?P<group>[^/]+)/"
    assert refused_with(root, text, group_pattern=pattern) == (
        "data.group_pattern: column 'group' of t.csv gives the group too; leave the pattern out, "
        "or give data.columns: {group: null}"
    )
    reading = given(root, text, group_pattern=pattern, columns={"group": None})
    assert {sample.group for sample in reading.samples} == set(CLASSES)
    (root / "masks").mkdir()
    (root / "masks" / "0.png").touch()
    rows = [(*row, "masks/0.png" if i == 0 else "") for i, row in enumerate(ROWS)]
    text = as_csv(("path", "label", "mask"), rows)
    assert refused_with(root, text, mask_pattern="masks/{path}.png") == (
        "data.mask_pattern: column 'mask' of t.csv gives the mask too; leave the pattern out, or "
        "give data.columns: {mask: null}"
    )


def test_names_that_a_pattern_finds_are_refused_if_nearly_alike(root):
    for name in CLASSES:
        (root / name / "IMG_001.png").touch()
    text = PLAIN + "".join(f"{name}/IMG_001.png,{name}\n" for name in CLASSES)
    assert refused_with(root, text, group_pattern=r"(?P<group>(?i:img)_\d+)") == (
        "data.group_pattern: groups 'IMG_001' (2 images) and 'img_001' (2) differ only in case, "
        "blanks, zeros or the form of a character; rename the files, or leave what differs out of "
        "(?P<group>...)"
    )


def test_zeros_within_a_name_do_not_make_another(refused):
    rows = [(*row, ("P1", "P01", "P2")[i % 3]) for i, row in enumerate(ROWS)]
    assert "groups 'P01' (8 rows) and 'P1' (8) differ only" in refused(
        as_csv(("path", "label", "group"), rows)
    )


def test_parts_that_hold_the_images_directly_are_those_of_a_table(root):
    for part, name in zip(("Trainingsdaten", "test"), CLASSES, strict=True):
        (root / name).rename(root / part)
    paths = [f"{part}/img_{i:03d}.png" for part in ("Trainingsdaten", "test") for i in range(12)]
    rows = [(path, CLASSES[i % 2]) for i, path in enumerate(paths)]
    reading = given(root, as_csv(("path", "label"), rows))
    assert {s.id: s.split for s in reading.samples} == {
        path: "train" if path.startswith("Train") else "test" for path in paths
    }
    assert reading.found["parts"] == "the folders 'Trainingsdaten', 'test'"


def test_the_folder_is_read_only_for_what_is_open(root):
    asked = []

    def read_folder(folder, ids, wanted):
        asked.append(set(wanted))
        return Reading((), tuple(Sample(path, -1) for path in ids))

    def ask(header, *values, **options):
        rows = [(*row, *values) for row in ROWS]
        (root / "t.csv").write_text(as_csv(("path", "label", *header), rows))
        read_label_table(root, Path("t.csv"), FolderOptions(**options), read_folder)

    ask(())
    (root / "masks").mkdir()
    (root / "masks" / "a.png").touch()
    ask(("fold",), "1")
    ask(("split", "fold", "mask"), "train", "1", "")
    assert asked == [{"split", "fold"}, {"split", "mask"}]


def test_a_table_opens_no_image_for_doubts(root, monkeypatch):
    opened = []
    monkeypatch.setattr("PIL.Image.open", lambda path: opened.append(path))
    assert len(given(root).samples) == 24
    assert opened == []


def test_two_masks_of_a_listed_image_are_told(root):
    for end in ("mask", "nucleus_mask"):
        (root / "mono" / f"img_000_{end}.png").touch()
    reading = given(root)
    assert reading.samples[0].mask is None
    assert "1 image with two masks each" in str(reading.doubts[0])


@pytest.mark.parametrize("start", ["..\\", "../", "..\\other\\..\\"])
def test_separators_of_windows_are_understood_in_each_column_of_paths(root, read, start):
    for path in IMAGES:
        (root / "seg" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "seg" / path).touch()
    (root / "tables").mkdir()
    rows = [
        (start + p.replace("/", "\\"), n, f"{start}seg\\{p}".replace("/", "\\")) for p, n in ROWS
    ]
    reading = read(as_csv(("path", "label", "mask"), rows), "tables/t.csv")
    assert labels_of(reading) == dict(ROWS)
    assert [sample.mask for sample in reading.samples] == [root / "seg" / path for path in IMAGES]


def test_lines_above_the_header_are_named(refused):
    assert refused("Results of the laboratory\n" + PLAIN) == (
        "t.csv, line 2: 2 cells, but the header has 1; remove the lines above the line with the "
        "columns' names"
    )


LONG = "a long name " * 16 + "{}"


@pytest.mark.parametrize(
    ("table", "remedy"),
    [
        (f"path,label\n{LONG}.png,a\n{LONG}2.png,b\n", "correct the table, or data.root"),
        (f"path,label\nmono,\n{LONG}2.png,b\n", "fill it in, or remove the row"),
        (f"path,label\n{LONG},a\n{LONG},b\n", "an image has one label (cut out each cell of a"),
        (f"path,label\n{LONG},a\n{LONG},a\n", "remove one (or cut out each cell)"),
        (f"path,label,group\n{LONG},a,1\n{LONG}2,a,\n", "name of its own where it is not known"),
        (f"path,label,split\n{LONG},a,{LONG}\n", "allowed: train, val, test"),
        (f"path,label,group\n1,a,{LONG}\n2,b,{LONG} \n3,b,{LONG.upper()}\n", "or rename one"),
        (f"{LONG}1,{LONG}2\na.x,b\n", "data.columns: {path: ...}"),
        (f"path\n../../{LONG}\n", "give a path below data.root"),
        (f"path,{LONG}\na.png,b,c\n", "quotation marks around text that has a separator in it"),
    ],
)
def test_long_names_leave_the_remedy_in_the_line(refused, table, remedy):
    line = refused(table)
    assert remedy in line
    assert " ... " not in line
