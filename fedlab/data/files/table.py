"""Columns as they were read, made into interactions: ids, numbers, times, what comes twice.

Letters: n rows, U users, I items, G categories.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from fedlab.core import DataError, require
from fedlab.data.files.layouts import HOUR, ITEM_ROLES, ROLES
from fedlab.data.files.text import NAMED, Sheet, several, texts
from fedlab.data.interactions import Catalogue, Interactions

TITLE_AND_YEAR = re.compile(r"^(.*?)\s*\((\d{4})\)\s*$")
NO_CATEGORY = ("", "unknown", "(no genres listed)")
MOST_CATEGORIES = 512  # a column for each item: 1 MB for 2,000 items
FARTHEST = 1e6  # a rating beyond is none
UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6), (math.inf, 10**9))  # a second, by the median time
LAST_TIME = 4_102_444_800  # the year 2100
DAYS = (19_700_101, 20_991_231)  # days as whole numbers: as seconds they would all lie in 1970
ISO = (
    *("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d", "%Y-%m-%d %H:%M"),
    *("%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%d %H:%M%z"),
    *("%d.%m.%Y", "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S"),  # with points the day stands first
)
NUMBERED = re.compile(  # 31/12/2000 11:59 PM
    r"(\d\d?)([/.-])(\d\d?)[/.-](\d{4}|\d\d)(?: \d\d?:\d\d(:\d\d)?( [AaPp][Mm])?)?"
)
YEAR = 365 * 24 * 3600
BLOCK = 1 << 16  # rows that are compared at a time
CLOCKS = (10**9, 10**12)  # seconds, milliseconds: from 2001 to 2033 there are so many, up to twice
SAME = ("last", "first", "mean", "sum")
MISSING = ("refuse", "drop")
DROP = "leave out all such rows with missing='drop'"
# how tables write that a field holds nothing, beside leaving it empty
NOTHING = ("", *("NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NaT", "null", "NULL", "None"))
WHOLE = r"^-?(0|[1-9]\d*)(\.0+)?$"  # a whole number, or one that was written as 12.0


class Ids(NamedTuple):
    """The numbers (n,) of a column's ids, int32, the ids in their order, and how they are read."""

    numbers: np.ndarray
    ids: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Columns by role, of one sheet or of several below each other.

    columns: of each role, until it is taken. sheets: each with the columns of its roles. rows: how
    many are left of each sheet. kept: (n,) where each row stood in its sheet. notes: what was left
    out.
    """

    columns: dict[str, pl.Series]
    sheets: tuple[tuple[Sheet, Mapping[str, str]], ...]
    rows: tuple[int, ...]
    kept: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def _place(self, row: int) -> tuple[int, int]:
        """The sheet of a row, and where it stands in that."""
        at, place = 0, row
        while place >= self.rows[at]:
            place, at = place - self.rows[at], at + 1
        return at, place if self.kept is None else int(self.kept[row])

    def where(self, row: int) -> str:
        """File and line of a row."""
        at, place = self._place(row)
        return self.sheets[at][0].where(place)

    def bad(self, role: str, rows: Sequence[int], fix: str) -> DataError:
        """An error that names column and place of the first of these rows, and the next places."""
        at, place = self._place(rows[0])
        sheet, roles = self.sheets[at]
        line = sheet.load(dict.fromkeys(sheet.columns, "text")).row(place, named=True)
        name, what = sheet.titled(roles[role]), line[roles[role]]
        found = f"is {str(what)[:60]!r}"
        if what is None:
            own = [value for column, value in line.items() if column not in sheet.halves]
            count = sum(value is not None for value in own)
            fix = f"{count} of {len(own)} fields; {fix}" if sheet.first else fix
            found = "is missing"
        mine = [each for own, each in map(self._place, rows) if own == at]
        lines = [sheet.line_of(each) for each in mine[:NAMED]] + mine[NAMED:]
        more = several(lines, "lines" if sheet.first else "rows")
        return DataError(f"{sheet.where(place)}: {name} {found}{more}; {fix}")

    def without(self, why: Mapping[str, np.ndarray]) -> "Table":
        """The rows of which none of these (n,) holds; `notes` says how many are left out, and why.

        why: what a row has, or lacks -> which rows.
        """
        gone = np.any(list(why.values()), axis=0)
        if not gone.any():
            return self
        whose = np.repeat(np.arange(len(self.rows)), self.rows)
        rows = tuple(np.bincount(whose[~gone], minlength=len(self.rows)).tolist())
        kept = np.concatenate([np.arange(count) for count in self.rows])[~gone]
        columns = {role: series.filter(~gone) for role, series in self.columns.items()}
        what = " or ".join(f"{words} ({n.sum():,})" for words, n in why.items() if n.any())
        note = f"{self.sheets[0][0].name}: {gone.sum():,} rows are left out, which have {what}"
        return Table(columns, self.sheets, rows, kept, (*self.notes, note))


def _lacks(series: pl.Series) -> np.ndarray:
    """Which rows (n,) hold nothing."""
    if series.dtype == pl.String:
        nothing = series.str.strip_chars().is_in(NOTHING)
    else:
        nothing = series.is_nan() if series.dtype.is_float() else series.is_null()
    return nothing.fill_null(True).to_numpy()


def table_of(
    *sheets: tuple[Sheet, Mapping[str, str]], missing: str, time_format: str | None
) -> Table:
    """The columns of the roles that sheets have; raises `DataError` where these differ.

    missing: 'drop' leaves out rows that lack something, or hold a rating or a time that is none;
    who asks for columns refuses them else.
    """
    require(missing in MISSING, "missing", missing, f"choose one of {', '.join(MISSING)}")
    frames, notes = [], list[str]()
    for sheet, roles in sheets:
        names = {column: role for role, column in roles.items()}
        loaded, said = sheet.ended(sheet.typed(roles).rename(names))
        frames.append(loaded.select(sorted(loaded.columns)))
        notes += said
    if len({tuple(frame.columns) for frame in frames}) > 1:
        raise DataError(
            f"the files have {', '.join(str(frame.columns) for frame in frames)}; leave out what "
            "not all of them have, as in time=False"
        )
    if len({tuple(frame.dtypes) for frame in frames}) > 1:
        frames = [frame.cast(pl.String) for frame in frames]
    whole = pl.concat(frames) if len(frames) > 1 else frames[0]
    columns = {series.name: series for series in whole.get_columns()}
    found = Table(columns, sheets, tuple(map(len, frames)), notes=tuple(notes))
    for role, series in found.columns.items():
        if series.dtype.is_nested():
            raise found.bad(role, [0], "a list or an object; write a row for each thing in it")
    return found.without(_spoiled(found, time_format)) if missing == "drop" else found


def _spoiled(found: Table, time_format: str | None) -> dict[str, np.ndarray]:
    """What rows (n,) lack, or hold in vain, in words.

    A column that most rows hold in vain is read wrongly: it is left for the error that says how.
    """
    why, columns = dict[str, np.ndarray](), found.columns
    lacks = {role: _lacks(columns[role]) for role in ROLES if role in columns}
    for role, nothing in lacks.items():
        why[f"no {role}"] = nothing
        if role in ("rating", "time"):
            read = (
                _numbers(columns[role])
                if role == "rating"
                else _seconds(columns[role], time_format)
            )
            vain = read.is_null().to_numpy() & ~nothing
            if 2 * vain.sum() < len(vain):
                why[f"a {role} that is none"] = vain
    return why


def ids_of(found: Table, role: str) -> Ids:
    """The ids of a column; those that are whole numbers in the order of numbers.

    '01' and '1' are two ids.
    """
    series = found.columns.pop(role)
    if not len(series):
        raise DataError(f"{found.sheets[0][0].name}: no rows in it; it must hold at least one")
    if gone := _lacks(series).nonzero()[0].tolist():
        fix = f"no id; complete or remove the row, or {DROP}"
        raise found.bad(role, gone, fix)
    notes = tuple[str, ...]()
    if series.dtype.is_float() and bool((series == series.round(0)).all()):
        series = series.cast(pl.Int64)  # as pandas has whole numbers with gaps
        notes = (f"{role}s are whole numbers, kept as floats: 12.0 is read as 12",)
    if series.dtype.is_integer() and series.dtype != pl.UInt64:
        wide = series.dtype in (pl.Int32, pl.Int64)
        return _numbered((series if wide else series.cast(pl.Int64)).to_numpy(), notes)
    series, more = _whole(series.cast(pl.String).str.strip_chars(), role)
    ordered = sorted(series.unique().to_list(), key=_place)
    at = pl.DataFrame({"id": ordered, "at": np.arange(len(ordered))})
    numbers = pl.DataFrame({"id": series}).join(at, on="id", how="left", maintain_order="left")
    return Ids(numbers["at"].to_numpy().astype(np.int32), tuple(ordered), (*notes, *more))


def _whole(series: pl.Series, role: str) -> tuple[pl.Series, tuple[str, ...]]:
    """Ids as texts, and what to say: where all are whole numbers, 12.0 is 12."""
    ids = series.unique()
    ended = ids.filter(ids.str.contains(r"\.0+$"))
    if not len(ended):
        return series, ()
    if ids.str.contains(WHOLE).all():
        note = f"{role}s are whole numbers, some written as {ended[0]}: read as {ended[0][:-2]}"
        return series.str.replace(r"\.0+$", ""), (note,)
    both = ended.filter(ended.str.replace(r"\.0+$", "").is_in(ids.to_list()))
    said = tuple(f"{text!r} and {text.split('.')[0]!r} are two {role}s" for text in both[:1])
    return series, said


def _place(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isdecimal() and name.isascii() else (1, 0, name)


def _numbered(values: np.ndarray, notes: tuple[str, ...]) -> Ids:
    low, high = int(values.min()), int(values.max())
    if high - low > 4 * len(values) + 1_000_000:
        unique, numbers = np.unique(values, return_inverse=True)
        return Ids(numbers.astype(np.int32), tuple(map(str, unique.tolist())), notes)
    there = np.zeros(high - low + 1, bool)
    there[values - low] = True
    unique, at = there.nonzero()[0] + low, there.cumsum(dtype=np.int32) - 1
    return Ids(at[values - low], tuple(map(str, unique.tolist())), notes)


def ratings_of(found: Table) -> np.ndarray:
    """The ratings (n,), float32."""
    series = found.columns.pop("rating")
    numbers = _numbers(series)
    if bad := _nulls(numbers):
        fix = "write it with a point" if "," in str(series[bad[0]]) else "correct or remove the row"
        fix = f"no rating; {fix}, {_dropped(series, bad)}or leave ratings out with rating=False"
        raise found.bad("rating", bad, fix)
    return numbers.to_numpy().astype(np.float32, copy=False)


def _numbers(series: pl.Series) -> pl.Series:
    """Ratings as numbers; none where there is none, or one that is too large for a rating."""
    numbers = series if series.dtype.is_float() else _decimals(series)
    return _only(numbers, numbers.abs() <= FARTHEST)


def _only(series: pl.Series, fine: pl.Series) -> pl.Series:
    """What is fine, and nothing in place of the rest."""
    return series if fine.all() else series.set(~fine.fill_null(False), None)


def _dropped(series: pl.Series, bad: Sequence[int]) -> str:
    """The way out for rows of a column, where it is one; see `_spoiled`."""
    return f"or {DROP}, " if _lacks(series)[bad[0]] or 2 * len(bad) < len(series) else ""


def _nulls(series: pl.Series) -> Sequence[int]:
    """The rows in which there is nothing."""
    return series.is_null().arg_true().to_list() if series.null_count() else ()


def _decimals(series: pl.Series) -> pl.Series:
    """Texts as numbers: with a comma for a point where all that are none have one, true as 1."""
    if series.dtype != pl.String:
        return series.cast(pl.Float64, strict=False)
    texts = series.str.strip_chars()
    if texts.head(1).str.to_lowercase().is_in(["true", "false"]).all():
        told = texts.str.to_lowercase()
        return told.replace_strict({"true": 1.0, "false": 0.0}, default=None)
    numbers = texts.cast(pl.Float64, strict=False)
    if numbers.null_count() and not texts.str.contains(".", literal=True).any():
        parts = texts.filter(texts.str.contains(",", literal=True))
        thousands = parts.str.contains(r"^-?\d{1,3}(,\d{3})+$").all()  # 3,547 may be either
        if len(parts) and not thousands:
            return texts.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    return numbers


def times_of(found: Table, form: str | None) -> np.ndarray:
    """The times (n,), seconds since 1970.

    Numbers are seconds, milliseconds, microseconds or nanoseconds, whichever is between 1973 and
    2100 for most; texts are dates as ISO 8601 writes them, or as `form` says (strftime).
    """
    series = found.columns.pop("time")
    times = _seconds(series, form)
    if bad := _nulls(times):
        raise found.bad("time", bad, _no_time(series, times, bad, form))
    return times.cast(pl.Int64).to_numpy()


def _seconds(series: pl.Series, form: str | None) -> pl.Series:
    """Times as seconds; none where there is none, or one before 1970 or after 2100."""
    times = _moments(series, form)
    return _only(times, (times >= 0) & (times < LAST_TIME))


def _moments(series: pl.Series, form: str | None) -> pl.Series:
    """Times as seconds, however far; none where there is none."""
    if series.dtype in (pl.Date, pl.Datetime):
        fix = "the column holds times, not texts; leave it out"
        require(form is None, "time_format", form, fix)
        return series.cast(pl.Datetime("us")).dt.epoch("s")
    if form is not None:
        return _dates(series, form)
    times = _clock(series)
    return times if times.null_count() < len(times) else _dates(series, None)


def _no_time(series: pl.Series, times: pl.Series, bad: Sequence[int], form: str | None) -> str:
    """What is wrong with the time of the first of these rows, and the ways out."""
    ways = f"correct it, {_dropped(series, bad)}or leave times out with time=False"
    if _moments(series, form)[bad[0]] is not None:
        return f"before 1970 or after 2100; {ways}"
    if form is not None and not _lacks(series)[bad[0]]:
        return f"not as time_format={form!r} says; {ways}"
    if times.null_count() < len(times):
        return f"no time; {ways}"
    return f"{_how_times(series)}, or leave times out with time=False"


def _how_times(series: pl.Series) -> str:
    """What to say of texts of which none is read as a time."""
    held = series.drop_nulls().cast(pl.String).str.strip_chars()
    if len(held) and held.str.contains(f"^{HOUR.pattern}$").all():
        return "an hour without its day; name both columns, as in time=('date', 'time')"
    found = [match for match in map(NUMBERED.fullmatch, held.head(10_000).to_list()) if match]
    if not found:
        return "no time; say how it is written, as in time_format='%d/%m/%Y %H:%M'"
    days, months = (max(int(match[group]) for match in found) > 12 for group in (1, 3))
    orders = ["%m{0}%d{0}"] if months and not days else ["%d{0}%m{0}"]
    orders += [] if months or days else ["%m{0}%d{0}"]
    _, sign, _, year, seconds, half = found[0].groups()
    rest = "%Y" if len(year) == 4 else "%y"
    if ":" in found[0][0]:
        rest += (" %I:%M" if half else " %H:%M") + bool(seconds) * ":%S" + bool(half) * " %p"
    ways = (f"time_format={order.format(sign) + rest!r}" for order in orders)
    return f"no time; say how it is written, {' or '.join(ways)}"


def _clock(series: pl.Series) -> pl.Series:
    """Numbers as seconds; none where there is no number."""
    if series.dtype == pl.String:
        series = series.str.strip_chars()
    numbers = series.cast(pl.Int64, strict=False)
    if numbers.null_count():
        numbers = series.cast(pl.Float64, strict=False)
        numbers = numbers.set(numbers.is_infinite() | numbers.is_nan(), None)
    usual = numbers.head(10_000).median()
    if usual is None:
        return numbers
    if DAYS[0] <= float(usual) <= DAYS[1]:  # type: ignore[arg-type]
        found = _dates(series, "%Y%m%d")
        if not found.null_count():
            return found
    unit = next(unit for most, unit in UNITS if abs(float(usual)) < most)  # type: ignore[arg-type]
    return numbers if unit == 1 else numbers // unit


def _dates(series: pl.Series, form: str | None) -> pl.Series:
    """Dates as seconds; none where there is no date."""
    series, forms = series.cast(pl.String).str.strip_chars(), ISO if form is None else (form,)
    if form is None:
        series = series.str.replace(r"(\d)T", "${1} ").str.replace("(Z| UTC| GMT)$", "+0000")
        series = series.str.replace(r"(:\d\d(?:\.\d+)?) ?([+-]\d\d):?(\d\d)?$", "${1}${2}${3}")
        series = series.str.replace(r"(:.*[+-]\d\d)$", "${1}00")
    found = pl.Series([None] * len(series), dtype=pl.Int64)
    for each in forms:
        if found.null_count():
            try:
                times = series.str.to_datetime(each, strict=False, time_unit="us")
            except pl.exceptions.PolarsError:  # a format without hours, or none
                times = _days(series, each)
            found = found.fill_null(times.dt.epoch("s"))
    return found


def _days(series: pl.Series, form: str) -> pl.Series:
    try:
        return series.str.to_date(form, strict=False).cast(pl.Datetime("us"))
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"time_format={form!r}: {error}; write it as in '%d/%m/%Y' or '%Y-%m-%d %H:%M:%S'"
        ) from error


class Known(NamedTuple):
    """What a table of items says: ids, and columns as `Catalogue` has them, in its own order.

    notes: how the table is read.
    """

    ids: tuple[str, ...]
    columns: dict[str, Any]
    notes: tuple[str, ...] = ()


def known_of(sheet: Sheet, roles: Mapping[str, str], missing: str) -> Known:
    """What a table of items says; raises `DataError` for an item that stands there twice.

    missing: 'drop' leaves out rows without an item.
    """
    frame, said = sheet.ended(sheet.load(dict.fromkeys(roles.values(), "text")))
    columns = {role: frame[column] for role, column in roles.items()}
    found = Table(columns, ((sheet, roles),), (len(frame),), notes=said)
    found = found.without({"no item": _lacks(columns["item"])}) if missing == "drop" else found
    numbers = ids_of(found, "item")
    ids = tuple(numbers.ids[k] for k in numbers.numbers.tolist())
    if len(set(ids)) < len(ids):
        first: dict[str, int] = {}
        row = next(k for k, name in enumerate(ids) if first.setdefault(name, k) != k)
        there = found.where(first[ids[row]])
        raise found.bad("item", [row], f"it stands already at {there}; keep one")
    said = tuple(f"{sheet.name}: {note}" for note in numbers.notes)
    return Known(ids, _about(found.columns, roles), (*sheet.notes, *found.notes, *said))


def _about(table: Mapping[str, pl.Series], roles: Mapping[str, str]) -> dict[str, Any]:
    """What the columns of a table of items say, as `Catalogue` has it."""
    columns = dict[str, Any]()
    flags = [role for role in roles if role not in ITEM_ROLES]
    if "title" in roles:
        titles = [(TITLE_AND_YEAR.match(text), text) for text in texts(table["title"])]
        columns["titles"] = [match[1] if match else text for match, text in titles]
        if "year" not in roles and any(match for match, _ in titles):
            columns["years"] = [int(match[2]) if match else 0 for match, _ in titles]
    if "year" in roles:
        years = (text[:4] for text in texts(table["year"]))
        columns["years"] = [int(text) if text.isdecimal() else 0 for text in years]
    if "text" in roles:
        columns["texts"] = list(texts(table["text"]))
    if flags:
        rows = zip(*(texts(table[flag]) for flag in flags), strict=True)
        columns["categories"] = [
            [flag for flag, on in zip(flags, row, strict=True) if on == "1"] for row in rows
        ]
    elif "categories" in roles:
        spaced = roles["categories"].endswith(":token_seq")
        columns["categories"] = _lists(table["categories"], spaced=spaced)
    return columns


def _lists(series: pl.Series, *, spaced: bool) -> list[list[str]]:
    """The categories of each row; spaced: whether spaces part them, where no other sign does."""
    if series.dtype == pl.List:
        return [[str(each) for each in row or ()] for row in series.to_list()]
    rows = list(texts(series))
    usual = " " if spaced else "|"
    between = next((sign for sign in "|;," if any(sign in row for row in rows)), usual)
    return [[name.strip() for name in row.split(between)] for row in rows]


def catalogue_of(users: tuple[str, ...], items: tuple[str, ...], known: Known | None) -> Catalogue:
    """The catalogue of items in their order; those that the table lacks go by their ids."""
    if known is None:
        return Catalogue(users, items)
    at = {name: row for row, name in enumerate(known.ids)}
    rows = [at.get(name, -1) for name in items]
    found: dict[str, Any] = {}
    for name, column in known.columns.items():
        if name == "categories":
            found |= _flags([column[r] if r >= 0 else [] for r in rows])
        elif name == "years":
            found[name] = torch.tensor([column[r] if r >= 0 else 0 for r in rows])
        else:
            found[name] = tuple(
                (r >= 0 and column[r]) or own for r, own in zip(rows, items, strict=True)
            )
    return Catalogue(users, items, found)


def _flags(rows: list[list[str]]) -> dict[str, Any]:
    """Categories (I, G), the most frequent ones, and their names."""
    count = Counter(name for row in rows for name in row if name not in NO_CATEGORY)
    names = sorted(name for name, _ in count.most_common(MOST_CATEGORIES))
    if not names:
        return {}
    at, flags = {name: g for g, name in enumerate(names)}, torch.zeros(len(rows), len(names)).bool()
    for i, row in enumerate(rows):
        for name in row:
            if name in at:
                flags[i, at[name]] = True
    return {"categories": flags, "category_names": tuple(names)}


def joined(
    found: Table,
    known: Known | None,
    *,
    time_format: str | None,
    duplicates: str,
    part: np.ndarray | None = None,
) -> tuple[Interactions, np.ndarray]:
    """Interactions of a table, sorted by user and time, a pair once; and the row (n,) of each.

    part: which sheet each row comes from; a pair in two of them raises `DataError`.
    """
    require(duplicates in SAME, "duplicates", duplicates, f"choose one of {', '.join(SAME)}")
    users, items = (ids_of(found, role) for role in ("user", "item"))
    notes = [n for sheet, roles in found.sheets for n in (*sheet.notes, _columns(sheet, roles))]
    notes += [*found.notes, *users.notes, *items.notes]
    number, ids = items.numbers, items.ids
    if known is not None:
        ids = tuple(sorted({*items.ids, *known.ids}, key=_place))
        at = {name: row for row, name in enumerate(ids)}
        number = np.array([at[name] for name in items.ids], np.int32)[items.numbers]
        notes += [*known.notes, *_told(items.ids, known.ids)]
    columns = _ratings_and_times(found, time_format)
    notes += _doubts(users.numbers, len(users.ids), columns.get("times"))
    if part is not None:
        _apart(found, _pairs(users.numbers, number, len(ids)), part)
    kept, twice = None, len(number) - _different(_pairs(users.numbers, number, len(ids)))
    if twice:
        kept = _once(_pairs(users.numbers, number, len(ids)), columns, duplicates)
        how = {"last": "the last", "first": "the first"}.get(duplicates, f"their {duplicates}")
        notes.append(f"{twice:,} rows repeat a pair of user and item: {how} counts")
    order = _by(users.numbers, columns.get("times"))
    order = order if kept is None else order[kept[order]]
    catalogue = catalogue_of(users.ids, ids, known)
    rows = torch.from_numpy(order)
    # memory is at its highest here: what takes most is gathered first, and what it is of let go
    who, what = (torch.from_numpy(column)[rows].long() for column in (users.numbers, number))
    del users, items, number
    taken = {name: torch.from_numpy(columns.pop(name)[order]) for name in sorted(columns)}
    return Interactions(who, what, catalogue, taken, tuple(notes)), order


def _ratings_and_times(found: Table, time_format: str | None) -> dict[str, np.ndarray]:
    """The columns (n,) that a table has beside users and items, as `Interactions` names them."""
    columns: dict[str, np.ndarray] = {}
    if "rating" in found.columns:
        columns["values"] = ratings_of(found)
    if "time" in found.columns:
        columns["times"] = times_of(found, time_format)
    fix = "no column of times is read; name it with time, or leave time_format out"
    require("times" in columns or time_format is None, "time_format", time_format, fix)
    return columns


def _by(users: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """The order (n,) by user, time and row.

    Numbers are packed into one and sorted as such, which is several times faster than a stable sort
    by several keys.
    """
    if times is None:
        keys = users
    else:
        low, span = int(times.min()), int(times.max()) - int(times.min()) + 1
        if (int(users.max()) + 1) * span >= 2**63:
            return np.lexsort((times, users))
        keys = users.astype(np.int64)
        keys *= span
        keys += times
        keys -= low
    order, bits = keys.argsort(), len(keys).bit_length()
    new = np.zeros(len(keys), bool)
    for at in range(0, len(keys), BLOCK):  # a copy of all would be a tenth of what reading holds
        some = keys[order[at : at + BLOCK + 1]]
        new[at + 1 : at + len(some)] = some[1:] != some[:-1]
    del keys
    run = new.cumsum(dtype=np.int64)  # rows of the same key lie in their own order
    run <<= bits
    run |= order
    run.sort()
    run &= (1 << bits) - 1
    return run


def _columns(sheet: Sheet, roles: Mapping[str, str]) -> str:
    """Which column is what, and which are left alone."""
    said = ", ".join(f"{r} from {sheet.titled(roles[r])}" for r in ROLES if r in roles)
    left = [sheet.titled(column) for column in sheet.unused(roles.values())]
    return f"{sheet.name}: {said}" + (f"; not used: {', '.join(left)}" if left else "")


def overlooked(sheet: Sheet, roles: Mapping[str, str]) -> tuple[str, ...]:
    """What to say of columns that hold times, where none is read."""
    at = {column: place for place, column in enumerate(sheet.columns)}
    held = {
        column: [row[at[column]].strip() for row in sheet.sample if len(row) > at[column]]
        for column in sheet.unused(roles.values())
    }
    timed = [column for column, texts in held.items() if _timed([t for t in texts if t])]
    if "time" in roles or not timed:
        return ()
    names = " and ".join(sheet.titled(column) for column in timed)
    ways = " or ".join(f"time={c if not sheet.named else repr(c)}" for c in timed)
    return (f"{sheet.name}: {names} may be times, but none are read; say {ways}",)


def _timed(held: list[str]) -> bool:
    """Whether texts look like times: most are dates, or seconds or ms from 2001 to 2033."""
    texts = pl.Series(held, dtype=pl.String)
    numbers = texts.cast(pl.Int64, strict=False)
    if numbers.null_count() < len(numbers):
        return any(numbers.is_between(unit, 2 * unit).fill_null(True).all() for unit in CLOCKS)
    dates = int(_dates(texts, None).is_not_null().sum())
    return len(held) < 2 * max(dates, sum(NUMBERED.fullmatch(text) is not None for text in held))


def _doubts(users: np.ndarray, count: int, times: np.ndarray | None) -> list[str]:
    """What is odd, and may mean that a column is something else."""
    notes = []
    if count == len(users) > 1:
        notes.append("every user has one row: is the column of users another?")
    if times is not None and int(times.max()) < YEAR:
        notes.append("all times lie in 1970: say time_format=... if they are dates, or time=False")
    return notes


def _told(met: tuple[str, ...], known: tuple[str, ...]) -> list[str]:
    """What to say of items that one of two tables lacks."""
    unknown, unmet = len(set(met) - set(known)), len(set(known) - set(met))
    notes = []
    if unknown:
        notes.append(f"{unknown:,} items are not in the table of items: they go by their ids")
    if unmet:
        notes.append(
            f"{unmet:,} items that nobody met stay in the catalogue; at_least(..., items=1) "
            "leaves them out"
        )
    return notes


def _pairs(users: np.ndarray, items: np.ndarray, width: int) -> np.ndarray:
    """One number for each pair (n,)."""
    found = users.astype(np.int64)
    found *= width
    found += items
    return found


def _different(pairs: np.ndarray) -> int:
    """How many pairs there are; they are sorted where they lie."""
    pairs.sort()
    return 1 + int(np.count_nonzero(pairs[1:] != pairs[:-1]))


def _once(pairs: np.ndarray, columns: dict[str, np.ndarray], duplicates: str) -> np.ndarray:
    """Which rows (n,) stand for their pair.

    Which is first or last follows the times, and the file among equal ones. Means and sums of
    ratings take their place in `columns`, at the last row; without ratings it is the last that
    counts.
    """
    order = np.lexsort((columns["times"], pairs)) if "times" in columns else _by(pairs, None)
    new = np.concatenate([[True], pairs[order][1:] != pairs[order][:-1]])
    first = new.nonzero()[0]
    last = np.concatenate([first[1:], [len(pairs)]]) - 1
    if duplicates in ("mean", "sum") and "values" in columns:
        total = np.add.reduceat(columns["values"][order].astype(np.float64), first)
        if duplicates == "mean":
            total /= last - first + 1
        columns["values"] = columns["values"].copy()
        columns["values"][order[last]] = total
    kept = np.zeros(len(pairs), bool)
    kept[order[first] if duplicates == "first" else order[last]] = True
    return kept


def _apart(found: Table, pairs: np.ndarray, part: np.ndarray) -> None:
    """Raise `DataError` for a pair that is in two parts: what is held out would be trained on."""
    order = np.lexsort((part, pairs))
    same = (pairs[order][1:] == pairs[order][:-1]) & (part[order][1:] != part[order][:-1])
    if same.any():
        row = int(order[1:][same][0])
        raise found.bad(
            "item",
            [row],
            "its user met it in an earlier part, too; what is held out must not be trained on: "
            "remove one",
        )
