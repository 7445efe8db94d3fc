"""Images, tables and archives."""

import csv
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import cv2
import numpy as np

from tests.fuzz import damage
from tests.fuzz.box import Box, Input, Outcome
from tests.fuzz.template import PREDICT, Template, encode

MODULE = [
    *("--data=FolderDataModule", "--data.root=cells", "--data.image_size=32"),
    *("--model.backbone=small_cnn", "--trainer.max_epochs=1", "--figures=false"),
    "--trainer.enable_progress_bar=false",
]
"""Options of a fit of the images in `cells`."""

_FORMULA = ("=", "+", "@", "-")


def images(rng: Random, box: Box, template: Template) -> Input:
    """A folder of images, one of which is damaged, hostile or oddly named."""
    template.copy("cells", box)
    command = rng.choices(("predict", "sheet", "fit", "masked", "audit"), (50, 15, 22, 11, 2))[0]
    if command in ("predict", "sheet"):
        template.copy("run", box)
    args = {
        "predict": [*PREDICT],
        "sheet": [*PREDICT, "--contact_sheet=sheet.png"],
        "fit": ["fit", *MODULE],
        "masked": ["fit", *MODULE, "--data.view=masked"],
        "audit": ["audit", "--data=FolderDataModule", "--data.root=cells"],
    }[command]
    if command == "sheet" and rng.random() < 0.5:
        args.append("--explain=maps")
    given = Input("images", "", args, check=_no_formula)
    folder = box.work / "cells" / rng.choice(("blast", "normal"))
    path = folder / "3.png"
    if rng.random() < 0.2:
        path = box.work / "cells" / "masks" / folder.name / "3.png"
    way = rng.choices(("bytes", "no file", "name", "content"), (20, 15, 25, 40))[0]
    if way == "bytes":
        suffix = rng.choice((".png", ".jpg", ".bmp", ".tif", ".webp"))
        content = encode(suffix, np.asarray(cv2.imread(str(path))))
        path.unlink()
        path = path.with_suffix(suffix)
        path.write_bytes(content)
        given.what = damage.corrupt(rng, path)
    elif way == "no file":
        given.what = damage.replace(rng, path)
    elif way == "name":
        name = rng.choice(_NAMES)
        os.rename(path, os.path.join(os.fsencode(folder), name))
        given.what = f"an image called {name[:60]!r}"
    else:
        what, content = rng.choice(list(_CONTENTS.items()))
        suffix = "." + what.split()[-1]
        path.unlink()
        path.with_suffix(suffix).write_bytes(content())
        given.what = what
    return given


def _no_formula(work: Path, outcome: Outcome) -> str | None:
    """A table of predictions must not hold what a spreadsheet would take for a formula."""
    for path in work.glob("out*.csv"):
        text = path.read_text(errors="surrogateescape")
        for row in csv.reader(io.StringIO(text)):
            for cell in row:
                if cell.startswith(_FORMULA):
                    return f"a cell that a spreadsheet computes: {cell[:60]!r}"
    return None


_NAMES = (
    *(b"\x1b[31mred.png", b"a\nb.png", b"a\rb.png", b"\xff\xfe.png", b"=1+1.png", b"+x.png"),
    *(b"@x.png", b"-x.png", b"$x$.png", b"$\\frac{1$.png", b"a\tb.png", b"'.png", b'"; x,y.png'),
    *("\u202egnp.png".encode(), "\u2028.png".encode(), b"\x07.png", b"\x7f.png", b"a,b.png"),
    *(b"x" * 250 + b".png", b"<script>alert(1)</script.png".replace(b"/", b""), b" .png", b"..png"),
    *("é.png".encode(), "e\u0301.png".encode(), "😀.png".encode(), b"[bold]x[.png", b"%s%n.png"),
    *(b"{x}.png", b"~.png", b"CON.png", b"a\\b.png", b".hidden.png", b"3.PNG", b"*.png"),
)


def _zeros(count: int) -> bytes:
    """A zlib stream of zeros, made without writing them all."""
    block = 1 << 20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = end.compress(bytes(count % block)) + end.flush()
    checksum = (count % 65521) << 16 | 1
    return b"\x78\xda" + piece * (count // block) + rest + struct.pack(">I", checksum)


def _png(
    width: int, height: int, *, depth: int = 8, colour: int = 0, data: bytes | None = None
) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    if data is None:
        bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        data = _zeros(height * (1 + (width * bits + 7) // 8))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, *[0] * 6)


def _drawn(shape: tuple[int, ...], kind: type = np.uint8) -> np.ndarray:
    limit = 256 if kind is np.uint8 else 65536
    return np.random.default_rng(0).integers(0, limit, shape).astype(kind)


def _jpeg(pixels: np.ndarray) -> bytes:
    return encode(".jpg", pixels)


def _spoiled_jpeg() -> bytes:
    """A JPEG whose scan is damaged, with its end in place."""
    content = bytearray(_jpeg(_drawn((64, 64, 3))))
    begin = content.index(b"\xff\xda") + 20
    content[begin + 200 : begin + 260] = bytes(range(60))
    return bytes(content)


_CONTENTS: dict[str, Callable[[], bytes]] = {
    "32,000 x 32,000 grey png": lambda: _png(32000, 32000),
    "32,000 x 32,000 colour png": lambda: _png(32000, 32000, colour=2),
    "20,000 x 20,000 grey png": lambda: _png(20000, 20000),
    "a million x 1 png": lambda: _png(1_000_000, 1),
    "1 x a million png": lambda: _png(1, 1_000_000),
    "a header of 2**31 - 1 pixels a side png": lambda: _png(2**31 - 1, 2**31 - 1, data=b""),
    "a header of 60,000 pixels and no more png": lambda: _png(60000, 60000, data=_zeros(10)),
    "no pixels png": lambda: _png(0, 0, data=b""),
    "one pixel png": lambda: encode(".png", _drawn((1, 1, 3))),
    "one row png": lambda: encode(".png", _drawn((1, 500, 3))),
    "16 bits png": lambda: encode(".png", _drawn((32, 32, 3), np.uint16)),
    "16 bits tif": lambda: encode(".tif", _drawn((32, 32, 3), np.uint16)),
    "floats tif": lambda: encode(".tif", np.ones((32, 32, 3), np.float32)),
    "transparent png": lambda: encode(".png", _drawn((32, 32, 4))),
    "one colour png": lambda: encode(".png", np.full((32, 32, 3), 200, np.uint8)),
    "1 bit png": lambda: _png(32, 32, depth=1),
    "a palette without one png": lambda: _png(32, 32, colour=3),
    "HTML png": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
    "a JPEG called png": lambda: _jpeg(_drawn((32, 32, 3))),
    "text jpg": lambda: b"hello\n",
    "zeros jpg": lambda: bytes(5000),
    "a spoiled scan jpg": _spoiled_jpeg,
    "a header of 65,500 pixels a side jpg": lambda: _jpeg(_drawn((32, 32, 3))).replace(
        struct.pack(">HH", 32, 32), struct.pack(">HH", 65500, 65500), 1
    ),
    "its two first bytes jpg": lambda: b"\xff\xd8",
    "its beginning and its end jpg": lambda: _jpeg(_drawn((64, 64, 3)))[:300] + b"\xff\xd9",
    "30,000 x 30,000 header bmp": lambda: _bmp(30000, 30000),
    "negative size bmp": lambda: _bmp(-5, -5),
    "2**31 - 1 pixels bmp": lambda: _bmp(2**31 - 1, 2**31 - 1),
    "a loop of pages tif": lambda: b"II*\0" + struct.pack("<IHHHIII", 8, 1, 256, 3, 1, 32, 8),
    "no page tif": lambda: b"II*\0" + struct.pack("<I", 0),
    "two pages tif": lambda: bytes(
        cv2.imencodemulti(".tif", [_drawn((32, 32, 3)), _drawn((32, 32, 3))])[1]
    ),
    "a GIF called png": lambda: (
        b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
    ),
    "an SVG called png": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="1e9"/>',
    "cut webp": lambda: encode(".webp", _drawn((64, 64, 3)))[:100],
    "an archive called jpg": lambda: b"PK\x03\x04" + bytes(100),
}
"""The last word is the file's suffix."""


def tables(rng: Random, box: Box, template: Template) -> Input:
    """A table of images, or of labels, that is wrong in one place."""
    template.copy("cells", box)
    path = box.work / "cells" / "table.csv"
    kind = rng.choices(("table", "labels", "exclude"), (70, 25, 5))[0]
    if kind == "table":
        args = [*MODULE, "--data.csv=table.csv"]
        if rng.random() < 0.3:
            args.append("--data.view=masked")
    elif kind == "labels":
        rows = (box.work / "cells").glob("[bn]*/*.png")
        names = sorted(str(each.relative_to(box.work / "cells")) for each in rows)
        path = box.work / "labels.csv"
        path.write_text("id,label\n" + "".join(f"{n},{n.split('/')[0]}\n" for n in names))
        args = [*MODULE, "--data.train_labels=labels.csv"]
    else:
        value = rng.choice(("blast/0.png", "../x", "[x, x]", "\x1b[31m", "x" * 5000, "null", "3"))
        given = Input("tables", f"exclude: {value[:40]!r}", ["fit", *MODULE])
        given.args.append(f"--data.exclude=[{value}]")
        return given
    command = ["audit", *args[:2], *(a for a in args if "csv" in a)] if rng.random() < 0.03 else []
    given = Input("tables", "", command or ["fit", *args])
    outside = str(box.outside / "secret.png")
    paths = (
        *("../../outside/secret.png", outside, "blast/../../../outside/secret.png", "fifo", "loop"),
        *("blast", ".", "..", "/dev/zero", "blast//0.png", "./blast/0.png", "blast/../blast/0.png"),
        *("~/x.png", "file:///etc/passwd", "blast\\0.png", "BLAST/0.PNG", "/proc/self/fd/0"),
    )
    way = rng.choices(
        ("csv", "bytes", "encoding", "no file", "path", "form"), (45, 8, 12, 6, 20, 9)
    )[0]
    if way == "csv":
        given.what = damage.change_csv(rng, path)
    elif way == "bytes":
        given.what = damage.corrupt(rng, path)
    elif way == "encoding":
        given.what = damage.encode(rng, path)
    elif way == "no file":
        given.what = damage.replace(rng, path)
    elif way == "path":
        given.what = damage.change_csv(rng, path, paths * 5)
    else:
        text = path.read_text()
        header, _, rest = text.partition("\n")
        form, content = rng.choice(
            (
                ("nothing", ""),
                ("a header alone", header + "\n"),
                ("no header", rest),
                ("semicolons", text.replace(",", ";")),
                ("tabs", text.replace(",", "\t")),
                ("an open quote", text + '"x'),
                ("quotes in quotes", text.replace("blast", 'bl"a"st')),
                ("a column twice", text.replace("label", "path", 1)),
                ("100,000 rows", text + rest * 8000),
                (
                    "3,000 classes",
                    header + "\n" + "".join(f"blast/0.png,c{i}\n" for i in range(3000)),
                ),
                ("3,000 columns", header + "".join(f",c{i}" for i in range(3000)) + "\n" + rest),
                ("empty rows", text.replace("\n", "\n\n")),
                ("a field of 10 MB", text + "blast/0.png," + "x" * 10_000_000 + "\n"),
            )
        )
        path.write_text(content)
        given.what = form
    return given


def archives(rng: Random, box: Box, template: Template) -> Input:
    """An archive of a dataset that is damaged or hostile."""
    name = rng.choice(("archive.zip", "archive.tar", "archive.tar.gz"))
    path = template.archive(box, name)
    given = Input("archives", "", ["fetch", "wbc9", f"--archive={name}", "--to=data"])
    way = rng.choices(("bytes", "no file", "member", "form"), (25, 8, 55, 12))[0]
    if way == "bytes":
        given.what = damage.corrupt(rng, path)
    elif way == "no file":
        given.what = damage.replace(rng, path)
    elif way == "member":
        given.what = _add(rng, path, str(box.outside))
    else:
        given.what, content = rng.choice(list(_forms(path).items()))
        path.write_bytes(content())
    return given


def _forms(path: Path) -> dict[str, Callable[[], bytes]]:
    """Contents of an archive of another form, by what they are."""
    return {
        "a bomb": lambda: _zip_of({"wbc/blasts/0.png": bytes(50 << 20)}),
        "10,000 empty members": lambda: _zip_of(
            {f"wbc/blasts/{number}.png": b"" for number in range(10_000)}
        ),
        "an empty tar": lambda: bytes(10_240),
        "an archive in an archive": lambda: _zip_of({"archive.zip": path.read_bytes()}),
        "another dataset": lambda: _zip_of({"images/a.png": b"x"}),
        "a file behind a text": lambda: b"hello" * 1000 + path.read_bytes(),
        "text": lambda: b"hello\n",
        "a gzip of nothing": lambda: b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03" + bytes(9),
        "a huge size in the header": lambda: _claiming(1 << 40),
        "a negative size in the header": lambda: _claiming(-5),
    }


def _zip_of(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return packed.getvalue()


def _claiming(size: int) -> bytes:
    """A tar whose only member says that it has so many bytes."""
    header = bytearray(tarfile.TarInfo("wbc/blasts/0.png").tobuf(tarfile.GNU_FORMAT))
    number = size.to_bytes(12, "big", signed=True)
    header[124:136] = bytes([0x80 if size >= 0 else 0xFF]) + number[1:]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(2048)


def _add(rng: Random, path: Path, outside: str) -> str:
    """Adds a member to a good archive."""
    name = rng.choice(
        (
            "../evil.png",
            "../../outside/evil.png",
            "wbc/../../evil.png",
            f"{outside}/evil.png",
            "/evil.png",
            "..\\evil.png",
            "C:\\evil.png",
            "C:evil.png",
            "\\\\host\\share\\evil.png",
            "wbc/blasts/0_1_2_3_2.png",
            "WBC/blasts/0.png",
            "wbc/blasts/0.PNG",
            "wbc/bands/.",
            "wbc",
            "wbc/blasts",
            "wbc/blasts/x.png/y.png",
            "",
            ".",
            "..",
            "/",
            "wbc//blasts/x.png",
            "wbc/blasts/\x1b[31m.png",
            "wbc/blasts/a\nb.png",
            "wbc/x/1.png",
            "x" * 300 + ".png",
            "wbc/" + "d/" * 3000 + "x.png",
            "wbc/blasts/" + "n" * 254,
            "wbc/blasts/\u202egnp.png",
            "wbc/blasts/CON.png",
            "wbc/blasts/a:b.png",
            "wbc/blasts/x.png ",
            ".unpacked/x",
            "../data",
        )
    )
    content = b"evil"
    kind = rng.choice(("file", "file", "link", "hard link", "device", "FIFO", "folder"))
    target = rng.choice(("../../../outside/secret.txt", "/etc/passwd", "wbc/blasts", ".", "x"))
    if path.suffix == ".zip":
        info = zipfile.ZipInfo(name or "x")
        info.filename = name or "x"
        modes = {"link": stat.S_IFLNK, "device": stat.S_IFCHR, "FIFO": stat.S_IFIFO}
        info.external_attr = (modes.get(kind, stat.S_IFREG) | 0o777) << 16
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(info, target.encode() if kind == "link" else content)
        return f"{kind} {name[:60]!r} in a zip"
    types = {
        "file": tarfile.REGTYPE,
        "link": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "device": tarfile.CHRTYPE,
        "FIFO": tarfile.FIFOTYPE,
        "folder": tarfile.DIRTYPE,
    }
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    with tarfile.open(path) as old:
        for each in old:
            source = old.extractfile(each)
            members.append((each, b"" if source is None else source.read()))
    extra = tarfile.TarInfo(name)
    extra.type, extra.linkname, extra.mode = types[kind], target, 0o7777
    extra.size = len(content) if kind == "file" else 0
    members.insert(rng.choice((0, len(members))), (extra, content if kind == "file" else b""))
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as new:
        for info, inside in members:
            new.addfile(info, io.BytesIO(inside))
    return f"{kind} {name[:60]!r} in a tar"
