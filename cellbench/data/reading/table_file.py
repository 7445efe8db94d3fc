"""Text tables as spreadsheets and statistics programs write them: encoding, separator, header."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from cellbench.utils.errors import UserError, clip, clip_path, counted, enumerate_some
from cellbench.utils.untrusted import read_bytes

MAX_BYTES = 2**29
"""Largest table that is read: 512 MiB, several million rows."""

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}

_PROBED = 50
"""Number of records by which an ambiguous separator is decided."""

_REMEDY = "save it as CSV (UTF-8)"

# First bytes of files that people give in place of a CSV file.
_OTHER_FORMATS = {
    b"PK\x03\x04": "a workbook (.xlsx, .ods) or an archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)",
    b"\x1f\x8b": "a gzip archive",
    b"PAR1": "a Parquet file",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML file",
    b"{": "a JSON file",
    b"[{": "a JSON file",
}

# UTF-32 comes first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_NOT_WESTERN = re.compile(rb"[\x80-\xff]{4,}|[\xc2\xc3][\x80-\xbf]")
"""Bytes that hardly occur in Windows-1252, the encoding of Western languages: long runs of letters
beyond ASCII (Chinese, Russian, Greek), and accented letters in UTF-8."""

_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"
"""Characters without width, which copied cells may begin or end with."""


@dataclass(frozen=True)
class Table:
    """Rows of a text table, below a header."""

    path: Path
    """The file."""
    header: tuple[str, ...]
    """Name of each column, stripped; empty for a column without one."""
    rows: Sequence[Sequence[str]]
    """The cells of each row, stripped; as many as there are columns."""
    lines: Sequence[int]
    """Number of each row's first line in the file, from 1."""
    encoding: str
    """Encoding of the file, as Python names it."""
    separator: str
    """Character between two cells."""

    def column(self, position: int) -> list[str]:
        """Return the cells of the column at a position."""
        return [row[position] for row in self.rows]

    @property
    def place(self) -> str:
        """The path of the file, for messages."""
        return clip_path(self.path)

    @property
    def names(self) -> str:
        """The names of the first columns, for messages."""
        return enumerate_some([clip(name, 20) for name in self.header], 4)

    @property
    def format(self) -> str:
        """Encoding and separator, for the user."""
        assumed = " (assumed, as it is not UTF-8)" if self.encoding == "cp1252" else ""
        return f"{_shown(self.encoding)}{assumed}, {SEPARATORS[self.separator]}"


def read_table_file(path: Path) -> Table:
    """Read a text table with a header.

    The separator (comma, semicolon, tab or bar) is found in the header. The encoding is UTF-8,
    UTF-16 or UTF-32 with or without a byte-order mark, else Windows-1252. Empty rows and empty
    columns without a name are dropped.

    Raises:
        UserError: It is missing, not such a file, or damaged; two columns have one name; or a row
            has more or fewer cells than the header.
    """
    content = read_bytes(path, MAX_BYTES)
    text, encoding = _decode(path, content)
    first_line, text, separator = _take_separator(text)
    separator = separator or _find_separator(path, text)
    records = _records(path, text, separator, first_line)
    _, header = next(records, (0, []))
    if not header:
        raise UserError(
            f"{clip_path(path)} is empty; give a table with a header, such as path,label"
        )
    lines, rows = [], []
    for line, cells in records:
        lines.append(line)
        rows.append(cells)
    header, rows = _even_out(path, header, rows, lines)
    return Table(path, tuple(header), rows, lines, encoding, separator)


def read_table(
    path: Path, columns: Set[str], empty: Set[str] = frozenset()
) -> list[dict[str, str]]:
    """Read the columns that a dataset's table is known to have, as one dictionary per row.

    Args:
        path: The file.
        columns: The columns that it must have, with a value in every row.
        empty: Further columns that it must have, where a value may be missing.

    Raises:
        UserError: It is missing, not such a file, or lacks a column or a value.
    """
    table = read_table_file(path)
    position = {name: i for i, name in enumerate(table.header)}
    missing = sorted((columns | empty) - position.keys())
    if missing:
        raise UserError(f"{clip_path(path)}: no column '{clip(missing[0])}'; it has {table.names}")
    for line, row in zip(table.lines, table.rows, strict=True):
        lacking = sorted(name for name in columns if not row[position[name]])
        if lacking:
            raise UserError(f"{clip_path(path)}, line {line}: no value for '{lacking[0]}'")
    taken = [(name, position[name]) for name in sorted(columns | empty)]
    return [{name: row[i] for name, i in taken} for row in table.rows]


def _decode(path: Path, content: bytes) -> tuple[str, str]:
    """Return a file's text and the encoding that it was found to have."""
    for start, what in _OTHER_FORMATS.items():
        if content[:64].lstrip().startswith(start):
            raise UserError(f"{clip_path(path)} is {what}, not a CSV file; {_REMEDY}")
    encoding = _guess_encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise UserError(
                f"{clip_path(path)} is damaged: not {_shown(encoding)}; {_REMEDY}"
            ) from error
        encoding = "cp1252"
        text = _decode_western(path, content)
    if "\0" in text:
        raise UserError(f"{clip_path(path)} is not a text file: it has NUL bytes; {_REMEDY}")
    return text, encoding


def _shown(encoding: str) -> str:
    return "Windows-1252" if encoding == "cp1252" else encoding.upper().removesuffix("-SIG")


def _guess_encoding(content: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return encoding
    # ASCII characters in UTF-16 have a zero in one of their two bytes.
    even, odd = content[:4096:2].count(0), content[1:4096:2].count(0)
    if max(even, odd) > 4 * min(even, odd) and max(even, odd) > len(content[:4096]) / 4:
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def _decode_western(path: Path, content: bytes) -> str:
    """Decode Windows-1252, unless the text looks like that of another encoding."""
    foreign = _NOT_WESTERN.search(content)
    if foreign is None:
        try:
            return content.decode("cp1252")
        except UnicodeDecodeError as error:
            position = error.start
    else:
        position = foreign.start()
    line = len(re.findall(rb"\r\n|\r|\n", content[:position])) + 1
    raise UserError(
        f"{clip_path(path)}, line {line}: the text is neither UTF-8 nor Windows-1252; {_REMEDY}"
    )


def _take_separator(text: str) -> tuple[int, str, str | None]:
    """Take off the line `sep=;` that tells Excel the separator.

    Returns:
        The number of the text's first line, the text, and the separator; None if there is no such
        line.
    """
    found = re.match(r'"?sep=([,;|\t])"?[,;|\t]*(\r\n|\r|\n)', text, re.IGNORECASE)
    return (1, text, None) if found is None else (2, text[found.end() :], found[1])


def _find_separator(path: Path, text: str) -> str:
    """Return the separator that divides the header.

    If several do, it is the one by which the rows have as many cells as the header.
    """
    dividing: dict[str, tuple[int, int]] = {}
    for separator in SEPARATORS:
        records = _records(path, text, separator, 1)
        try:
            _, header = next(records, (0, []))
            if len(_without_empty_end(header)) < 2:
                continue
            even = sum(
                len(_without_empty_end(cells)) <= len(header)
                and (len(cells) >= len(_without_empty_end(header)))
                for _, (_, cells) in zip(range(_PROBED), records, strict=False)
            )
        except UserError:  # quotation marks that make no sense with this separator
            continue
        dividing[separator] = (even, len(header))
    return max(dividing, key=lambda each: dividing[each], default=",")


def _records(
    path: Path, text: str, separator: str, first_line: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that are not empty, stripped, with the number of their first line."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    strip = str.strip if text.isascii() else _strip
    line = first_line
    try:
        for cells in reader:
            stripped = [strip(cell) for cell in cells]
            if any(stripped):
                yield line, stripped
            line = first_line + reader.line_num
    except csv.Error as error:
        reason = str(error)
        if "expected after" in reason or "end of data" in reason:
            reason = "a quotation mark is not closed, or text follows it"
        raise UserError(
            f"cannot read the table {clip_path(path)}, line {line}: {reason}"
        ) from error


def _strip(cell: str) -> str:
    """Strip blanks and characters without width."""
    cell = cell.strip()
    return cell if cell.isascii() else cell.strip(_INVISIBLE).strip()


def _without_empty_end(cells: Sequence[str]) -> Sequence[str]:
    end = len(cells)
    while end and not cells[end - 1]:
        end -= 1
    return cells[:end]


def _even_out(
    path: Path, header: list[str], rows: list[list[str]], lines: list[int]
) -> tuple[list[str], list[list[str]]]:
    """Give every row as many cells as the header, and drop empty columns without a name.

    Raises:
        UserError: A row has more or fewer cells than there are columns, or two columns have one
            name.
    """
    width, named = len(header), len(_without_empty_end(header))
    for line, row in zip(lines, rows, strict=True):
        if len(row) > width:
            del row[max(width, len(_without_empty_end(row))) :]
        elif named <= len(row):
            row += [""] * (width - len(row))
        if len(row) != width:
            if len(row) < width:
                remedy = "add the missing ones, empty if need be"
            elif named < 2:
                remedy = "remove the lines above the line with the columns' names"
            else:
                remedy = "put quotation marks around text that has a separator in it"
            raise UserError(
                f"{clip_path(path)}, line {line}: {counted(len(row), 'cell')}, but the header has "
                f"{width}; {remedy}"
            )
    unnamed = [i for i, name in enumerate(header) if not name]
    empty = {i for i in unnamed if not any(row[i] for row in rows)}
    if empty:
        kept = [i for i in range(width) if i not in empty]
        header = [header[i] for i in kept]
        rows = [[row[i] for i in kept] for row in rows]
    counts = Counter(" ".join(name.split()).casefold() for name in header if name)
    twice = next((name for name in header if counts[" ".join(name.split()).casefold()] > 1), None)
    if twice is not None:
        raise UserError(f"{clip_path(path)} has two columns '{clip(twice)}'; rename or remove one")
    return header, rows
