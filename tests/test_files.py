"""Reading files that nobody should trust: bombs, pipes, devices, damage, hostile names."""

import contextlib
import csv
import os
import signal
import struct
import threading
import zlib

import cv2
import h5py
import numpy as np
import pytest
import torch

from cellbench.__main__ import main
from cellbench.artifacts import figures
from cellbench.data import files, mask_files
from cellbench.data.datasets.hpv_slides import SLIDES, HPVSlidesDataModule
from cellbench.inference.contact_sheet import ContactSheet
from cellbench.metrics.classification import evaluate
from cellbench.utils.errors import UserError, printable
from cellbench.utils.terminal import Console, say
from tests.conftest import TINY, draw_cell, write_image


def png_header(path, side):
    """Writes a PNG of side x side pixels in 100 bytes, without their data."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")):
        png += struct.pack(">I", len(data)) + kind + data
        png += struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(png)


@pytest.fixture
def no_decoder(monkeypatch):
    """Makes it an error to decode anything."""
    monkeypatch.setattr(cv2, "imdecode", lambda *args: pytest.fail("it has been decoded"))


@pytest.mark.parametrize("read", ["read_image", "read_mask"])
@pytest.mark.usefixtures("no_decoder")
def test_a_bomb_is_refused_by_its_header(tmp_path, read):
    path = tmp_path / "bomb.png"
    png_header(path, 32_000)
    module, image = files, []
    if read == "read_mask":
        module, image = mask_files, [np.zeros((9, 9, 3), np.uint8)]
    with pytest.raises(
        UserError, match=r"bomb\.png: it has 32,000 x 32,000 pixels, more than max_pixels = 100,0"
    ):
        getattr(module, read)(path, *image)


def test_the_limit_is_configurable(folder_root, fails, tmp_path, fit):
    line = fails(
        "fit", "--data=FolderDataModule", f"--data.root={folder_root}", "--data.max_pixels=2303"
    )
    assert "it has 48 x 48 pixels, more than max_pixels = 2,303" in line
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}", "--data.max_pixels=2304")
    images, output = folder_root / "blast", tmp_path / "out.csv"
    write_image(images / "large.png", np.zeros((60, 60, 3), np.uint8))
    command = ["predict", f"--run={run}", f"--images={images}", f"--output={output}"]
    assert main([*command, "--max_pixels=2304"]) == 0
    (row,) = read_rows(tmp_path / "out.unreadable.csv")
    assert row["file"] == "large.png"
    assert "it has 60 x 60 pixels, more than max_pixels = 2,304" in row["reason"]
    assert len(read_rows(output)) == 20
    assert main(command) == 0
    assert len(read_rows(output)) == 21
    assert "--max_pixels: 0 is less than 1" in fails(*command, "--max_pixels=0")


def read_rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def place(kind, path):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**40)


@pytest.mark.parametrize("kind", ["fifo", "device", "terabyte"])
def test_what_is_no_regular_file_is_never_opened(folder_root, fails, kind):
    path = folder_root / "blast" / "odd.png"
    place(kind, path)
    line = fails("fit", "--data=FolderDataModule", f"--data.root={folder_root}", *TINY)
    why = "its 1,048,576 MiB are more than" if kind == "terabyte" else "it is not a regular file"
    assert line.startswith(f"cannot read {path}: {why}")


def test_predict_lists_what_is_no_regular_file(fit, folder_root, tmp_path):
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}")
    images, output = folder_root / "blast", tmp_path / "out.csv"
    for kind in ("fifo", "device", "terabyte"):
        place(kind, images / f"{kind}.png")
    png_header(images / "bomb.png", 32_000)
    assert main(["predict", f"--run={run}", f"--images={images}", f"--output={output}"]) == 0
    listed = {row["file"]: row["reason"] for row in read_rows(tmp_path / "out.unreadable.csv")}
    assert listed.keys() == {"fifo.png", "device.png", "terabyte.png", "bomb.png"}
    assert "it is not a regular file" in listed["fifo.png"]
    assert len(read_rows(output)) == 20


def damaged(suffix, seed=0):
    """An image file's bytes, of which a few in the middle are overwritten."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8), (96, 96))
    data = bytearray(cv2.imencode(suffix, image)[1].tobytes())
    middle = len(data) // 2
    data[middle : middle + 12] = rng.integers(0, 255, 12, dtype=np.uint8).tobytes()
    return bytes(data)


@pytest.mark.parametrize(("suffix", "complaint"), [(".jpg", "Corrupt JPEG data"), (".tif", "")])
def test_damage_that_the_decoder_only_prints_is_an_error(tmp_path, suffix, complaint, capfd):
    reasons = []
    for seed in range(20):  # some damage decodes to other pixels, and no decoder can tell
        path = tmp_path / f"{seed}{suffix}"
        path.write_bytes(damaged(suffix, seed))
        with contextlib.suppress(UserError):
            files.read_image(path)
            continue
        with pytest.raises(UserError, match=rf"cannot read .*/{seed}\{suffix}: ") as caught:
            files.read_image(path)
        reasons.append(str(caught.value))
    assert len(reasons) >= 8
    assert all(f"the file is damaged ({complaint}" in reason for reason in reasons)
    assert "JPEG" not in capfd.readouterr().err


def test_damage_is_found_in_a_training_and_listed_by_predict(fit, folder_root, tmp_path, fails):
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}")
    path = folder_root / "blast" / "5 (0).jpg"
    path.write_bytes(damaged(".jpg", 1))
    line = fails("fit", "--data=FolderDataModule", f"--data.root={folder_root}", *TINY)
    assert line.startswith("cannot read ")
    assert "5 (0).jpg: the file is damaged (Corrupt JPEG data" in line
    output = tmp_path / "out.csv"
    assert main(["predict", f"--run={run}", f"--images={path.parent}", f"--output={output}"]) == 0
    (row,) = read_rows(tmp_path / "out.unreadable.csv")
    assert row["file"] == "5 (0).jpg"
    assert "Corrupt JPEG data" in row["reason"]


def test_what_others_print_meanwhile_is_not_lost(tmp_path, monkeypatch, capfd):
    path = tmp_path / "a.jpg"
    write_image(path, draw_cell(np.random.default_rng(0), 0, 48)[0])
    decode = cv2.imdecode

    def talking(*args):
        os.write(2, b"an epoch is done\nCorrupt JPEG data: bad Huffman code\n")
        return decode(*args)

    monkeypatch.setattr(cv2, "imdecode", talking)
    with pytest.raises(UserError, match=r"damaged \(Corrupt JPEG data: bad Huffman code\)"):
        files.read_image(path)
    assert capfd.readouterr().err == "an epoch is done\n"
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_an_hdf5_bomb_is_refused(tmp_path):
    for name in (name for names in SLIDES.values() for name in names):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset(
                "data", (10**9, 1, 80, 80), "uint8", chunks=(1, 1, 80, 80), compression="gzip"
            )
    with pytest.raises(UserError, match=r"glass3\.hdf5 has .* would unpack to 6,400,000,000,000"):
        HPVSlidesDataModule(root=tmp_path).list_samples()


@pytest.mark.parametrize("column", ["path", "mask"])
@pytest.mark.parametrize("name", ["../x.png", "/{root}/../x.png", "blast/../../x.png", "out.png"])
def test_a_table_names_no_file_outside_its_folder(folder_root, fails, column, name):
    image, mask = draw_cell(np.random.default_rng(0), 0, 48)
    outside = folder_root.parent / "x.png"
    write_image(outside, image if column == "path" else mask)
    (folder_root / "out.png").symlink_to(outside)
    name = name.format(root=folder_root)
    rows = [f"blast/{i} (0).jpg,masks/blast/{i} (0).png,{'ab'[i % 2]}" for i in range(20)]
    rows[3] = f"{name},,a" if column == "path" else f"blast/3 (0).jpg,{name},a"
    (folder_root / "t.csv").write_text("\n".join(["path,mask,label", *rows]))
    line = fails("fit", "--data=FolderDataModule", f"--data.root={folder_root}", "--data.csv=t.csv")
    assert "/t.csv: '" in line
    assert f"{name[-8:]}' leaves the dataset's folder; give a path below data.root" in line


def test_a_name_of_5000_characters_is_one_line(folder_root, fails):
    rows = [f"blast/{i} (0).jpg,{'ab'[i % 2]}" for i in range(20)] + [f"{'x' * 5000}.png,a"]
    (folder_root / "t.csv").write_text("\n".join(["path,label", *rows]))
    line = fails("fit", "--data=FolderDataModule", f"--data.root={folder_root}", "--data.csv=t.csv")
    assert "t.csv lists 'xxx" in line


HOSTILE = "\x1b]0;owned\x07\x1b[31m.jpg"


def test_names_do_not_command_the_terminal(folder_root, fails, capsys, fit, tmp_path):
    data = ["--data=FolderDataModule", f"--data.root={folder_root}"]
    (folder_root / "blast" / "0 (0).jpg").rename(folder_root / "blast" / HOSTILE)
    run = fit(*data)
    images, output = folder_root / "blast", tmp_path / HOSTILE
    assert main(["predict", f"--run={run}", f"--images={images}", f"--output={output}"]) == 0
    (folder_root / "blast" / HOSTILE).write_bytes(b"")
    assert main(["audit", *data, f"--output={tmp_path / 'audit'}"]) in (0, 1)
    assert main(["fit", *data, *TINY]) == 2
    captured = capsys.readouterr()
    assert "\x1b]0;" not in captured.out + captured.err
    assert "\x1b[31m" not in captured.out + captured.err
    assert r"\x1b]0;owned\x07\x1b[31m.jpg" in captured.err


def test_a_class_whose_name_commands_the_terminal_is_refused(folder_root, fails):
    (folder_root / "blast").rename(folder_root / "bl\x1b[31mast")
    line = fails("fit", "--data=FolderDataModule", f"--data.root={folder_root}")
    assert r"class 'bl\x1b[31mast' has a control character in its name" in line


def test_a_sample_given_twice_is_named_before_any_file_is_looked_for(folder_root, fails):
    (folder_root / "t.csv").write_text(
        "path,label\n" + "blast/0 (0).jpg,a\nblast/1 (0).jpg,b\n" * 9
    )
    for image in (folder_root / "blast").iterdir():
        image.unlink()
    line = fails("fit", "--data=FolderDataModule", f"--data.root={folder_root}", "--data.csv=t.csv")
    assert "occurs more than once" in line


def test_figures_show_names_as_they_are(tmp_path, recwarn):
    name = "\x1b[31m$\\bad$"
    sheet = ContactSheet((name, "b"))
    sheet.add(0.5, 0, 0, f"{name}.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    labels = np.array([0, 0, 1, 1])
    scores = evaluate(labels, labels, np.arange(4), (name, "b"), np.zeros(4, int))
    for figure in (sheet.draw(), figures.confusion(scores, (name, "b"), "test")):
        figures.save(figure, tmp_path / "x.png")
    assert [str(each.message) for each in recwarn] == []
    assert r"\x1b[31m\$\bad\$.png" in sheet.draw().axes[0].texts[1].get_text()


def test_what_is_said_commands_no_terminal(capsys):
    say("a \x1b[2J\nb\r\x9b", end="")
    Console().print("[bold]c[/bold] \x1b[2J\nd")
    assert capsys.readouterr().out == "a \\x1b[2J\nb\\r\\x9b[bold]c[/bold] \\x1b[2J\nd\n"


def test_printable_keeps_what_can_be_shown():
    assert printable("für 細胞 🦠 \\ 'a'") == "für 細胞 🦠 \\ 'a'"
    assert printable("a\x1b[2J\x9b\udcff\n") == r"a\x1b[2J\x9b\udcff\n"


def test_a_spreadsheet_finds_no_formula_in_predictions(fit, folder_root, tmp_path):
    (folder_root / "blast").rename(folder_root / "=blast")
    (folder_root / "masks").rename(tmp_path / "masks")
    run = fit("--data=FolderDataModule", f"--data.root={folder_root}")
    images, output = tmp_path / "images", tmp_path / "out.csv"
    image, _ = draw_cell(np.random.default_rng(0), 0, 48)
    for i, first in enumerate(("=", "+", "-", "@", "\t", "\r", "\n", "'", "a=")):
        write_image(images / "cell.png", image)
        (images / "cell.png").rename(images / f"{first}{i}.png")
    (images / "=broken.png").write_bytes(b"")
    assert main(["predict", f"--run={run}", f"--images={images}", f"--output={output}"]) == 0
    rows = read_rows(output)
    assert {row["file"] for row in rows} == {
        *("'=0.png", "'+1.png", "'-2.png", "'@3.png", "'\t4.png", "'\r5.png", "'\n6.png"),
        *("'7.png", "a=8.png"),
    }
    assert {row["predicted"] for row in rows} <= {"'=blast", "normal cell"}
    assert all(0.5 <= float(row["confidence"]) <= 1 for row in rows)
    (row,) = read_rows(tmp_path / "out.unreadable.csv")
    assert row["file"] == "'=broken.png"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_is_forked_during_a_decoding_can_decode(tmp_path):
    path = tmp_path / "cell.jpg"
    write_image(path, np.zeros((2000, 2000, 3), np.uint8))
    end = threading.Event()

    def decode():
        while not end.is_set():
            files.read_image(path)

    thread = threading.Thread(target=decode)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                files.read_image(path)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        end.set()
        thread.join()
