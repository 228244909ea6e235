"""A file as a table of strings: how it is packed, its encoding, its separator, its header.

What a file is follows from its bytes, not from its name. Every bad line is named.
"""

import bz2
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from fedlab.core import DataError, require

PACKED: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", gzip.decompress),
    (b"BZh", bz2.decompress),
    (b"\xfd7zXZ\x00", lzma.decompress),
)
MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
SEPARATORS = ("::", "\t", ";", "|", ",", " ")
QUOTED = (",", ";")  # separators of tables whose fields may be quoted
INSIDE = "\x1f"  # stands for a separator of two characters, which polars does not take
SAMPLE, LINES = 1 << 18, 200  # bytes and lines that are looked at to tell what a file is
BLOCK = 1 << 20  # bytes that are searched at a time
WHOLE, NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})"), re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d+)?")
KINDS = {
    **{"text": pl.String, "small": pl.Int32, "whole": pl.Int64},
    **{"rating": pl.Float32, "number": pl.Float64},
}
NUMBERS = re.compile(r"[-+]?\d[\d.,:/ TZ+-]*")  # numbers, dates and times, however written
LIST = "list"  # separator of lines with a user and any number of items


@dataclass(frozen=True)
class Sheet:
    """What is known of a table before it is loaded.

    columns: their names; '0', '1', ... where no header names them. sample: the first rows, as
    texts. load: columns -> a frame of them, each typed as a name of `KINDS` says, or as texts.
    first: the line of the first row, 0 where rows have no lines. notes: how it is read.
    """

    name: str
    columns: list[str]
    sample: list[list[str]]
    load: Callable[[Mapping[str, str]], pl.DataFrame]
    named: bool = True
    first: int = 0
    notes: tuple[str, ...] = field(default=())

    def typed(self, roles: Mapping[str, str]) -> pl.DataFrame:
        """The columns of roles, typed where that loses nothing, else as texts."""
        kinds = {column: self._kind(column, role) for role, column in roles.items()}
        try:
            return self.load(kinds)
        except DataError:
            return self.load(dict.fromkeys(kinds, "text"))

    def _kind(self, column: str, role: str) -> str:
        """The narrowest type that the first rows fit in; where others do not, texts are read."""
        at = self.columns.index(column)
        found = [row[at] for row in self.sample if len(row) > at]
        whole = bool(found) and all(map(WHOLE.fullmatch, found))
        if role == "rating":
            return "rating" if all(map(NUMBER.fullmatch, found)) else "text"
        if role == "time":
            fits = all(map(NUMBER.fullmatch, found))
            return "whole" if whole else "number" if fits else "text"
        return "text" if not whole else "small" if max(map(len, found)) < 10 else "whole"

    def where(self, row: int) -> str:
        """File and line of a row; fields with line breaks are counted."""
        if not self.first:
            return f"{self.name}, row {row}"
        before = self.load(dict.fromkeys(self.columns, "text")).head(row)
        breaks = before.select(pl.all().str.count_matches("\n").fill_null(0).sum()).row(0)
        line = self.first + row + sum(breaks)
        return f"{self.name}:{self.load.line(line) if isinstance(self.load, _Loader) else line}"


def of_frame(frame: pl.DataFrame, name: str, notes: tuple[str, ...] = ()) -> Sheet:
    """A frame that is there as a sheet: its own types stay."""
    sample = [["" if v is None else str(v) for v in row] for row in frame.head(LINES).rows()]
    return Sheet(name, frame.columns, sample, lambda kinds: frame.select(list(kinds)), notes=notes)


def sheet(
    path: Path,
    *,
    separator: str | None = None,
    header: bool | None = None,
    encoding: str | None = None,
    known: Callable[[str], bool] = lambda name: False,
) -> Sheet:
    """The table in a file; what is not given is found out.

    known: whether a name is that of a column, by which a header is recognised. Raises `DataError`
    for what is no table.
    """
    data, name = _content(path), path.name
    if data[:4] == b"PAR1":
        return of_frame(_parquet(data, name), name, (f"{name}: parquet",))
    data, notes = _decoded(data, name, encoding)
    require(header is None or isinstance(header, bool), "header", header, "say True or False")
    blank, lines, told = _head(data, name)
    separator = _said(separator) or told or _separator(lines, name)
    rows, quoted = fields_of(lines, separator), separator in QUOTED
    if not quoted and separator != LIST and _in_quotes(rows):
        rows, quoted = list(csv.reader(lines, delimiter=separator)), True
    if separator == LIST:
        notes = (*notes, f"{name}: lists of items, one line a user")
        return replace(of_frame(_lists(data, name), name, notes), named=False)
    named = _header(rows, known) if header is None else header
    names = [text.strip() for text in rows[0]] if named else []
    if named and len(rows) < 2:
        raise DataError(f"{name}: no rows in it; it must hold at least one")
    columns = _distinct(names, name) or [str(k) for k in range(len(rows[0]))]
    signs = {"\t": "tabs", " ": "spaces"}.get(separator, repr(separator))
    said = [*notes, f"{name}: fields between {signs}, {'a' if named else 'no'} header"]
    if not named and header is None and all(number(text) is None for text in rows[0]):
        said.append(f"{name}: if {lines[0][:60]!r} names columns, say header=True")
    load = _Loader(path, encoding, separator, columns, blank + named, quoted, [data])
    if any(len(row) > len(columns) for row in rows):
        raise load.blamed("too many fields")
    return Sheet(name, columns, rows[named:], load, named, 1 + blank + named, tuple(said))


def _said(separator: str | None) -> str | None:
    """A separator as it was given, or as one types a tab."""
    if separator is not None:
        require(isinstance(separator, str), "separator", separator, "give a text")
        require(separator not in ("", "\n"), "separator", separator, "give a sign")
    return {"\\t": "\t", "tab": "\t"}.get(separator or "", separator)


def _head(data: bytes, name: str) -> tuple[int, list[str], str]:
    """How many lines stand on top of a table, its first ones, and the separator that they tell.

    These are blank lines, comments behind #, and Excel's `sep=;`.
    """
    first = re.match(rb"(?:#[^\n]*\n|\r?\n)*(?i:sep=.\r?\n)?", data)
    head = first[0].decode(errors="ignore") if first else ""
    left_out = [line for line in head.splitlines() if line.strip()]
    lines = _sample(data, name)[len(left_out) :]
    if not lines:
        raise DataError(f"{name}: no rows in it; it must hold at least one")
    if lines[0].lstrip()[:1] in ("[", "{"):
        raise DataError(f"{name}: JSON; read it with pandas or polars, and use from_frame")
    told = left_out[-1][4] if left_out and left_out[-1].lower().startswith("sep=") else ""
    return head.count("\n"), lines, told


def _content(path: Path) -> bytes:
    """What a file holds, unpacked."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read, {error.strerror or error}") from error
    if data[:4] == b"PK\x03\x04" and b"xl/workbook" in data:
        raise DataError(f"{path.name}: a workbook of Excel; save the sheet as CSV, and read that")
    if data[:4] == b"PK\x03\x04":
        raise DataError(f"{path.name}: a zip; unpack it and name the file or folder in it")
    for mark, unpack in PACKED:
        if data.startswith(mark):
            try:
                return unpack(data)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise DataError(
                    f"{path.name}: damaged, it cannot be unpacked ({error}); get it again"
                ) from error
    return data


def _parquet(data: bytes, name: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as error:
        raise DataError(f"{name}: a damaged parquet file ({error}); write it again") from error


def _decoded(data: bytes, name: str, encoding: str | None) -> tuple[bytes, tuple[str, ...]]:
    """The text as UTF-8, and what there is to say of its encoding."""
    marked = next((known for mark, known in MARKS if data.startswith(mark)), None)
    asked = encoding or marked
    if asked is None:
        try:
            if not data.isascii():
                data.decode()
            found, notes = data, tuple[str, ...]()
        except UnicodeDecodeError:
            found, notes = _western(data, name)
    else:
        found, notes = _as(data, name, asked), (f"{name}: {asked}",) * (encoding is None)
    if b"\r\r\n" in found:  # Windows' breaks, written twice
        found = found.replace(b"\r\r\n", b"\n")
    if b"\r" in found and b"\n" not in found:  # a Mac's of old
        found = found.replace(b"\r", b"\n")
    if (at := found.find(b"\0")) >= 0:
        line = found.count(b"\n", 0, at) + 1
        raise DataError(
            f"{name}:{line}: a NUL character; if the file is UTF-16, say encoding='utf-16-le' or "
            "'utf-16-be'"
        )
    return found, notes


def _western(data: bytes, name: str) -> tuple[bytes, tuple[str, ...]]:
    """Text that is no UTF-8: Latin-1, or what Windows makes of it where it has signs of its own."""
    windows = re.search(rb"[\x80-\x9f]", data)
    with suppress(UnicodeDecodeError):
        if windows:
            return data.decode("cp1252").encode(), (f"{name}: read as Windows-1252",)
    return data.decode("latin-1").encode(), (f"{name}: read as Latin-1",)


def _as(data: bytes, name: str, encoding: str) -> bytes:
    """Text of an encoding as UTF-8; names the line that is not."""
    try:
        return data.decode(encoding).encode()
    except LookupError as error:
        raise DataError(
            f"encoding={encoding!r}: Python knows none of this name; try 'utf-8' or 'latin-1'"
        ) from error
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        line, found = data.count(b"\n", 0, at) + 1, data[at : at + 1]
        raise DataError(
            f"{name}:{line}: {found!r} is not {encoding}; leave encoding out, or name another"
        ) from error


def _sample(data: bytes, name: str) -> list[str]:
    """The first lines that are not blank."""
    text = data[:SAMPLE].decode(errors="ignore")
    if len(data) > SAMPLE:
        text = text[: text.rfind("\n") + 1]
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()][:LINES]
    if not lines:
        raise DataError(f"{name}: empty; it must hold at least one line")
    return lines


def fields_of(lines: list[str], separator: str) -> list[list[str]]:
    """The fields of lines."""
    if separator == LIST:
        return [line.split() for line in lines]
    if separator in QUOTED:
        with suppress(csv.Error):  # a field too long for it, a line break of old
            return list(csv.reader(lines, delimiter=separator))
    return [line.strip(" ").split(separator) for line in lines]


def _in_quotes(rows: list[list[str]]) -> bool:
    """Whether quotes stand around whole fields, and nowhere else."""
    marked = [field.strip() for row in rows for field in row if '"' in field]
    return bool(marked) and all(len(f) > 1 and f[0] == f[-1] == '"' for f in marked)


def _separator(lines: list[str], name: str) -> str:
    """What stands between fields: that by which most lines have as many of them, two or more."""
    best, share = "", 0.0
    for separator in SEPARATORS:
        sizes = [len(row) for row in fields_of(lines, separator)]
        usual = max(set(sizes), key=sizes.count)
        agree = sizes.count(usual) / len(sizes)
        if usual > 1 and agree > share + 0.05:
            best, share = separator, agree
    words = [line.split() for line in lines]
    sizes = [len(row) for row in words]
    spaced = not any("\t" in line for line in lines)
    if share < 0.9 and spaced and min(sizes) > 1 and all(w.isdecimal() for r in words for w in r):
        return LIST
    if not best:
        raise DataError(
            f"{name}:1: {lines[0][:60]!r} is one field; say what stands between fields, "
            "separator=..., if it is a table with a column of users and one of items"
        )
    return best


def _header(rows: list[list[str]], known: Callable[[str], bool]) -> bool:
    """Whether the first line names columns: one is known, or all are words above some numbers."""
    if any(known(name) for name in rows[0]):
        return True
    first, others = rows[0], rows[1:]
    if not others or any(number(name) is not None for name in first):
        return False
    columns = ([row[k] for row in others if len(row) > k] for k in range(len(first)))
    return any(
        column and all(NUMBERS.fullmatch(each.strip()) for each in column) for column in columns
    )


def number(text: str) -> float | None:
    """A text as a number; None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class _Loader:
    """Loads columns of a text below its first lines; blank lines at the end are nothing.

    kept: the text, which is let go when it is first loaded, and read again if it is once more.
    """

    path: Path
    encoding: str | None
    separator: str
    columns: list[str]
    skip: int
    quoted: bool
    kept: list[bytes]

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def _text(self) -> bytes:
        if self.kept:
            return self.kept.pop()
        return _decoded(_content(self.path), self.name, self.encoding)[0]

    def __call__(self, kinds: Mapping[str, str]) -> pl.DataFrame:
        """The columns of these names, typed as `KINDS` says."""
        data, inside = self._text(), self.separator
        if b"\n\n" in data or b"\n\r\n" in data:
            data = self._without_blank(data)
        if len(inside) > 1:
            data, inside = data.replace(inside.encode(), INSIDE.encode()), INSIDE
        ids = {name for name, kind in kinds.items() if kind in ("small", "whole")}
        if ids and _leading(data, inside):  # '01' and '1' are two ids
            kinds = {name: "text" if name in ids else kind for name, kind in kinds.items()}
        wanted = sorted(kinds, key=self.columns.index)
        try:
            frame = pl.read_csv(
                data,
                separator=inside,
                has_header=False,
                skip_rows=self.skip,
                quote_char='"' if self.quoted else None,
                new_columns=self.columns,
                columns=[self.columns.index(name) for name in wanted],
                schema={name: KINDS[kinds.get(name, "text")] for name in self.columns},
                raise_if_empty=False,
            )
        except (pl.exceptions.PolarsError, OverflowError) as error:
            raise self.blamed(error) from error
        while len(frame) and all(value is None for value in frame.row(-1)):
            frame = frame.head(-1)
        if not len(frame):
            raise DataError(f"{self.name}: no rows in it; it must hold at least one")
        return frame

    def _without_blank(self, data: bytes) -> bytes:
        """The text with no blank lines below its first ones."""
        head = 0
        for _ in range(self.skip):
            head = data.find(b"\n", head) + 1
        head = max(head - 1, 0)  # the break of the last one stands before a blank line
        return data[:head] + re.sub(rb"\n(?:\r?\n)+", b"\n", data[head:])

    def line(self, at: int) -> int:
        """The line in the file of one that is counted without blank lines."""
        number = 0
        for number, text in enumerate(self._text().split(b"\n"), 1):
            at -= number <= self.skip or bool(text.strip())
            if not at:
                break
        return number

    def blamed(self, error: object) -> DataError:
        """An error that names the first line with more fields than those before it."""
        text = io.StringIO(self._text().decode(errors="replace"), newline="")
        most, line = 0, 1
        try:
            rows = (
                csv.reader(text, delimiter=self.separator, strict=True)
                if self.quoted and len(self.separator) == 1
                else (row.rstrip("\r\n").split(self.separator) for row in text)
            )
            for row in rows:
                if most and len(row) > most:
                    return DataError(
                        f"{self.name}:{line}: {len(row)} fields where {most} are usual; quote the "
                        "field that holds the separator, or say separator=..."
                    )
                most, line = max(most, len(row)), line + 1
        except csv.Error as wrong:
            return DataError(f"{self.name}:{line}: {wrong}; close the quotes")
        text.seek(0)
        for number, whole in enumerate(text, 1):
            if self.quoted and whole.count('"') % 2:
                fix = "write it twice, in a field in quotes"
                return DataError(f"{self.name}:{number}: a quote that nothing closes; {fix}")
        return DataError(f"{self.name}: no table ({error}); say separator=... or header=...")


def _leading(data: bytes, separator: str) -> bool:
    """Whether a field begins as no number does that is written in the usual way: 01, +1, -0."""
    for first in range(0, len(data), BLOCK):
        block = np.frombuffer(data, np.uint8, min(BLOCK + 2, len(data) - first), first)
        begins = (block[:-2] == ord(separator)) | (block[:-2] == ord("\n"))
        lead, then = block[1:-1], block[2:]
        odd = (lead == ord("+")) | ((lead == ord("-")) & (then == ord("0")))
        odd |= (lead == ord("0")) & (then >= ord("0")) & (then <= ord("9"))
        if bool((begins & odd).any()):
            return True
    return False


def _distinct(names: list[str], name: str) -> list[str]:
    twice = {text for text in names if names.count(text) > 1}
    if twice:
        raise DataError(f"{name}:1: column {min(twice)!r} stands there twice; rename one")
    return names


def _lists(data: bytes, name: str) -> pl.DataFrame:
    """(user, item) for each item of each line, whose first word is the user."""
    users, items = list[str](), list[str]()
    for line in data.decode().split("\n"):
        words = line.split()
        users.extend(words[:1] * (len(words) - 1))
        items.extend(words[1:])
    if not users:
        raise DataError(f"{name}: no line has an item; write a user and items on each")
    return pl.DataFrame({"0": users, "1": items})


def texts(column: pl.Series) -> Iterator[str]:
    """The fields as strings, '' where there is none."""
    yield from column.cast(pl.String).fill_null("").to_list()
