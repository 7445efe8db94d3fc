"""Ways to damage a file that hold for files of any format, for text, JSON and CSV."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

LINKS = ("/dev/zero", "/dev/full", "/dev/tty", "/proc/self/mem", "/", "itself", "nowhere")
"""What a file may be replaced by a link to."""

JSON_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 10**30, 1e308, float("nan"), float("inf"), -0.0, 2**63),
    *("", " ", "x", "x" * 5000, "\x1b[31m", "a\nb", "\u202e", "\ud800", "NaN", "<script>alert(1)"),
    *([], {}, [None], [[]], {"": None}, [1, 2, 3], ["a"], {"a": {"b": 1}}, [1e400, "x"], "../x"),
)


def replace(rng: Random, path: Path) -> str:
    """Replaces a file by what is none, or removes it; says what it has done."""
    kind = rng.choice(("missing", "empty", "FIFO", "folder", *LINKS))
    path.unlink(missing_ok=True)
    if kind == "empty":
        path.touch()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.symlink_to(path.name if kind == "itself" else kind)
    return f"{path.name} is {kind if kind in ('missing', 'empty') else f'a {kind}'}"


def corrupt(rng: Random, path: Path) -> str:
    """Changes bytes of a file of any format; says what it has done."""
    content = bytearray(path.read_bytes())
    kind = rng.choice(("bit", "bytes", "cut", "begin cut", "zeros", "twice", "text", "noise"))
    place = rng.randrange(max(len(content), 1))
    if kind == "bit" and content:
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.randint(1, 30)):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == "cut":
        del content[place:]
    elif kind == "begin cut":
        del content[:place]
    elif kind == "zeros":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    elif kind == "twice":
        content += bytes(content)
    elif kind == "text":
        content = bytearray(b"<html><body>404 Not Found</body></html>\n")
    elif kind == "noise":
        content = bytearray(rng.randbytes(rng.choice((1, 100, 5000))))
    path.write_bytes(content)
    return f"{path.name}: {kind} at {place}"


def encode(rng: Random, path: Path) -> str:
    """Writes a text in another encoding, or with what does not belong into one."""
    text = path.read_text()
    ways: dict[str, Callable[[], bytes]] = {
        "UTF-16": lambda: text.encode("utf-16"),
        "UTF-32": lambda: text.encode("utf-32"),
        "a BOM": lambda: b"\xef\xbb\xbf" + text.encode(),
        "two BOMs": lambda: b"\xef\xbb\xbf" * 2 + text.encode(),
        "Latin-1": lambda: ("# é\n" + text + "é").encode("latin-1"),
        "NUL": lambda: text.encode() + b"\0",
        "NUL inside": lambda: text.encode().replace(b"e", b"\0", 1),
        "ESC": lambda: text.replace("a", "\x1b[31m", 1).encode(),
        "CRLF": lambda: text.replace("\n", "\r\n").encode(),
        "CR": lambda: text.replace("\n", "\r").encode(),
        "tabs": lambda: text.replace(" ", "\t").encode(),
        "no last line end": lambda: text.rstrip("\n").encode(),
        "NEL": lambda: text.replace("\n", "\x85").encode(),
        "10 MB of text": lambda: text.encode() + b"#" + b"x" * 10_000_000,
        "10 MB in one value": lambda: text.encode() + b"x: " + b"x" * 10_000_000,
    }
    way = rng.choice(list(ways))
    path.write_bytes(ways[way]())
    return f"{path.name}: {way}"


def change_json(rng: Random, path: Path) -> str:
    """Changes one value of a JSON file, or its whole shape; says what it has done."""
    content = json.loads(path.read_text())
    kind = rng.choice(
        ("value", "value", "value", "key", "drop", "whole", "deep", "twice", "digits")
    )
    holder, key = _somewhere(rng, content)
    if kind == "value" or (kind == "key" and isinstance(holder, list)):
        value = rng.choice(JSON_VALUES)
        holder[key] = value
        what = f"{key} is {str(value)[:30]!r}"
    elif kind == "key":
        holder[str(key) + "s"] = holder.pop(key)
        what = f"{key} is called {key}s"
    elif kind == "drop":
        del holder[key]
        what = f"no {key}"
    elif kind == "whole":
        content = rng.choice(JSON_VALUES)
        what = f"all of it is {str(content)[:30]!r}"
    elif kind == "digits":
        holder[key] = "DIGITS"
        what = f"{key} has 6,000 digits"
    else:
        what = kind
    text = json.dumps(content).replace('"DIGITS"', "9" * 6000)
    if kind == "deep":
        text = text[:-1] + ', "deep": ' + "[" * 100_000 + "]" * 100_000 + "}"
    elif kind == "twice":
        text = text[:-1] + "," + text[1:]
    path.write_text(text)
    return f"{path.name}: {what}"


def change_csv(rng: Random, path: Path, values: tuple[str, ...] = ()) -> str:
    """Changes a cell, a row or a column of a CSV file; says what it has done."""
    rows = [list(row) for row in csv.reader(io.StringIO(path.read_text()))]
    kind = rng.choice(("cell", "cell", "cell", "row", "column", "header", "twice", "short", "long"))
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    what = f"{kind} in row {row}, column {column}"
    if kind == "cell":
        value = rng.choice((*values, *CELLS))
        rows[row][column] = value
        what += f": {value[:40]!r}"
    elif kind == "row":
        del rows[row:]
    elif kind == "column":
        for each in rows:
            del each[column]
    elif kind == "header":
        rows[0][column] = rng.choice(
            ("", "x", rows[0][0], "\ufeffid", "=id", "\x1b[31m", "x" * 9999)
        )
    elif kind == "twice":
        rows += [list(rows[row])] * rng.choice((1, 1000))
    elif kind == "short":
        rows[row] = rows[row][:column]
    else:
        rows[row] += ["x"] * rng.choice((1, 1000))
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.write_text(text.getvalue(), errors="surrogateescape")
    return f"{path.name}: {what}"


CELLS = (
    *("", " ", "x", "0", "-1", "nan", "NaN", "inf", "-inf", "1e400", "1e-400", "9" * 400, "0x1"),
    *("=1+1", "+x", "@x", '"', "a\nb", "a\0b", "\x1b[31mred", "\u202e", "x" * 5000, "x" * 200_000),
    *(
        "../x",
        "/etc/passwd",
        "é",
        "😀",
        "\udcff",
        "None",
        "True",
        "trian",
        "1_000",
        "\uff11",
        "0.30000001",
    ),
)


def _somewhere(rng: Random, content: Any) -> tuple[Any, Any]:
    """A place in nested lists and dictionaries: what holds it, and its key."""
    while True:
        key = (
            rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
        )
        inner = content[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
            return content, key
        content = inner
