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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import time
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
NAMED = 5  # bad lines that an error names
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
    first: the line of the first row, 0 where rows have no lines. notes: how it is read. line: the
    line in the file of one that is counted without blank lines. halves: the two columns that a
    column is joined of, by its name.
    """

    name: str
    columns: list[str]
    sample: list[list[str]]
    load: Callable[[Mapping[str, str]], pl.DataFrame]
    named: bool = True
    first: int = 0
    notes: tuple[str, ...] = field(default=())
    line: Callable[[int], int] = int
    halves: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def titled(self, column: str) -> str:
        """A column as messages name it, by its name or by its place from 1; both of joined ones."""
        both = self.halves.get(column, (column,))
        return " and ".join(repr(c) if self.named else f"field {int(c) + 1}" for c in both)

    def unused(self, used: Iterable[str]) -> list[str]:
        """The columns but for these, and for those that they are joined of."""
        taken = {part for column in used for part in (column, *self.halves.get(column, ()))}
        return [c for c in self.columns if c not in taken and c not in self.halves]

    def paired(self, first: str, second: str) -> "Sheet":
        """The same with one more column, what two of them hold with a space between, as text."""
        name, load = f"{first} {second}", self.load

        def loaded(kinds: Mapping[str, str]) -> pl.DataFrame:
            own = {column: kind for column, kind in kinds.items() if column != name}
            if name not in kinds:
                return load(kinds)
            frame = load(own | dict.fromkeys((first, second), "text"))
            both = (_bare(frame[column]).cast(pl.String) for column in (first, second))
            return frame.select(*own, pl.concat_str(both, separator=" ").alias(name))

        at = self.columns.index(first), self.columns.index(second)
        sample = [[*row, f"{row[at[0]]} {row[at[1]]}"] for row in self.sample if len(row) > max(at)]
        columns, halves = [*self.columns, name], {**self.halves, name: (first, second)}
        return replace(self, columns=columns, sample=sample, load=loaded, halves=halves)

    def typed(self, roles: Mapping[str, str]) -> pl.DataFrame:
        """The columns of roles, typed where that loses nothing, else as texts."""
        kinds = {column: self._kind(column, role) for role, column in roles.items()}
        try:
            return self.load(kinds)
        except DataError:
            return self.load(dict.fromkeys(kinds, "text"))

    def ended(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]]:
        """Columns of a file of text without the last rows that hold nothing; how many, in words.

        Such rows are left by who writes a table and empties its last lines.
        """
        count = len(frame)
        while self.first and count and all(value is None for value in frame.row(count - 1)):
            count -= 1
        if count == len(frame):
            return frame, ()
        said = "left out, which have nothing in the columns that are read"
        return frame.head(count), (
            f"{self.name}: {len(frame) - count:,} rows at its end are {said}",
        )

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
        """File and line of a row."""
        return f"{self.name}{':' if self.first else ', row '}{self.line_of(row)}"

    def line_of(self, row: int) -> int:
        """The line of a row, fields with line breaks counted; its number where rows have none."""
        if not self.first:
            return row
        before = self.load(dict.fromkeys(self.columns, "text")).head(row)
        breaks = before.select(pl.all().str.count_matches("\n").fill_null(0).sum()).row(0)
        return self.line(self.first + row + sum(breaks))


def several(places: Sequence[int], what: str) -> str:
    """How many lines are bad, and the first ones, where there are several.

    >>> several([3, 5, 9, 12, 20, 21], "lines")
    ' (6 bad lines: 3, 5, 9, 12, 20, ...)'
    """
    if len(places) < 2:
        return ""
    first, rest = ", ".join(map(str, places[:NAMED])), ", ..." * (len(places) > NAMED)
    return f" ({len(places):,} bad {what}: {first}{rest})"


def _bare(series: pl.Series) -> pl.Series:
    """A column of days that are typed as times, as days."""
    midnight = series.dtype == pl.Datetime and bool((series.dt.time() == time()).all())
    return series.dt.date() if midnight else series


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
        _only_of_text(name, "parquet", separator=separator, header=header, encoding=encoding)
        return of_frame(_parquet(data, name), name, (f"{name}: parquet",))
    data, notes = _decoded(data, name, encoding)
    if data.lstrip()[:1] in (b"[", b"{"):
        _only_of_text(name, "JSON", separator=separator, header=header)
        return of_frame(_json(data, name), name, (*notes, f"{name}: JSON"))
    require(header is None or isinstance(header, bool), "header", header, "say True or False")
    blank, lines, told = _head(data, name)
    separator = _said(separator) or told or _separator(lines, name)
    rows, quoted = _rows(lines, separator)
    if separator == LIST:
        fix = f"{name} holds lists of items, whose lines have no names; leave header out"
        require(not header, "header", header, fix)
        notes = (*notes, f"{name}: lists of items, one line a user")
        return replace(of_frame(_lists(data, name), name, notes), named=False)
    named = _header(rows, known) if header is None else header
    if named and len(rows) < 2:
        raise DataError(f"{name}: no rows in it; it must hold at least one")
    columns, kept, odd = _columns(rows, name, named=named)
    signs = {"\t": "tabs", " ": "spaces"}.get(separator, repr(separator))
    said = [*notes, f"{name}: fields between {signs}, {'a' if named else 'no'} header"]
    said += [f"{name}: {odd}"] if odd else []
    if not named and header is None and all(number(text) is None for text in rows[0]):
        said.append(f"{name}: if {lines[0][:60]!r} names columns, say header=True")
    load = _Loader(path, encoding, separator, columns, blank + named, quoted, [data])
    if any(len(row) > len(columns) for row in rows[named:]):
        raise load.blamed("too many fields")
    sample, first = [row[: len(kept)] for row in rows[named:]], 1 + blank + named
    return Sheet(name, kept, sample, load, named, first, tuple(said), load.line)


def _columns(rows: list[list[str]], name: str, *, named: bool) -> tuple[list[str], list[str], str]:
    """The columns that lines have, those of them that hold something, and what is odd.

    R writes the names of rows first, and nothing above them; others end each line with a separator.
    """
    below, names = rows[named:], [text.strip() for text in rows[0]] if named else []
    most = max(map(len, below))
    while len(names) > most and not names[-1]:
        names.pop()
    if most < len(names):
        raise DataError(
            f"{name}:1: {len(names)} columns are named, and no row has more than {most} fields; "
            "remove the names that stand for nothing"
        )
    more = named and all(len(row) == len(names) + 1 for row in below)
    width = len(names) + more if named else len(rows[0])
    kept = width
    while kept > 2 and not any(names[kept - 1 : kept]) and _blank(below, kept - 1, width):
        kept -= 1
    first, odd = list[str](), "a separator ends each line" if kept < width else ""
    if more and kept == width:
        first, odd = ["row name"], "the first field has no heading: names of rows"
    named_all = [*first, *(text or f"field {k}" for k, text in enumerate(names, 1))]
    columns = _distinct(named_all, name) if named else list[str]()
    columns += [str(k) for k in range(len(columns), width)]
    return columns, columns[:kept], odd


def _blank(rows: list[list[str]], at: int, width: int) -> bool:
    """Whether all rows have so many fields, and nothing in the one at this place."""
    return all(len(row) == width and not row[at].strip() for row in rows)


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


def _only_of_text(name: str, kind: str, **asked: object) -> None:
    """Raise `ParameterError` for what is said of parquet or JSON, and holds of tables of text."""
    for option, value in asked.items():
        fix = f"{name} is {kind}, which needs none; leave {option} out"
        require(value is None, option, value, fix)


def _parquet(data: bytes, name: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as error:
        raise DataError(f"{name}: a damaged parquet file ({error}); write it again") from error


def _json(data: bytes, name: str) -> pl.DataFrame:
    """A list of objects, or one on each line."""
    data = data.strip()
    try:
        return pl.read_json(data) if data.startswith(b"[") else pl.read_ndjson(data)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OverflowError) as error:
        fix = 'write a list of objects, or one on each line, such as {"user": 1, "item": 7}'
        raise DataError(f"{name}: JSON that is no table ({error}); {fix}") from error


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
    if separator == " " and not _quoted(lines, separator):  # columns may be padded
        return [[word for word in line.split(" ") if word] for line in lines]
    if _quoted(lines, separator):
        with suppress(csv.Error):  # a field too long for it, a line break of old
            return list(csv.reader(lines, delimiter=separator))
    return [line.strip(" ").split(separator) for line in lines]


def _rows(lines: list[str], separator: str) -> tuple[list[list[str]], bool]:
    """The fields of lines, and whether they may be quoted."""
    rows, quoted = fields_of(lines, separator), _quoted(lines, separator)
    if quoted or separator == LIST or not _in_quotes(rows):
        return rows, quoted
    return list(csv.reader(lines, delimiter=separator)), True


def _quoted(lines: list[str], separator: str) -> bool:
    """Whether fields may be quoted: between commas and semicolons, or as R writes its tables."""
    spaced = separator == " " and all(line.startswith('"') for line in lines)
    return separator in QUOTED or spaced


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
    """Loads columns of a text below its first lines; blank lines are nothing.

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
        if inside == " " and not self.quoted:
            data = _unpadded(data)
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
        """An error that names the first lines with more fields than those before them."""
        text = io.StringIO(self._text().decode(errors="replace"), newline="")
        most, line, long = 0, 1, list[tuple[int, int]]()
        try:
            rows = (
                csv.reader(text, delimiter=self.separator, strict=True)
                if self.quoted and len(self.separator) == 1
                else (fields_of([row.rstrip("\r\n")], self.separator)[0] for row in text)
            )
            for row in rows:
                if most and len(row) > most:
                    long.append((line, len(row)))
                most, line = most or len(row), line + 1
        except csv.Error as wrong:
            return DataError(f"{self.name}:{line}: {wrong}; close the quotes")
        if long:
            more = several([at for at, _ in long], "lines")
            return DataError(
                f"{self.name}:{long[0][0]}: {long[0][1]} fields where {most} are usual{more}; "
                "quote the field that holds the separator, or say separator=..."
            )
        text.seek(0)
        for number, whole in enumerate(text, 1):
            if self.quoted and whole.count('"') % 2:
                fix = "write it twice, in a field in quotes"
                return DataError(f"{self.name}:{number}: a quote that nothing closes; {fix}")
        return DataError(f"{self.name}: no table ({error}); say separator=... or header=...")


def _unpadded(data: bytes) -> bytes:
    """Lines with one space where there are several, and none at their ends."""
    if b"  " not in data and b" \n" not in data and b"\n " not in data and b" \r" not in data:
        return data.strip(b" ")
    return re.sub(rb"(?m)^ +| +(?=\r?$)| +(?= )", b"", data)


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
