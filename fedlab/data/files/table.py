"""Columns as they were read, made into interactions: ids, numbers, times, what comes twice.

Letters: n rows, U users, I items, G categories.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from fedlab.core import DataError, require
from fedlab.data.files.layouts import ITEM_ROLES, ROLES
from fedlab.data.files.text import Sheet, texts
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
YEAR = 365 * 24 * 3600
SAME = ("last", "first", "mean", "sum")


class Ids(NamedTuple):
    """The numbers (n,) of a column's ids, int32, and the ids in their order."""

    numbers: np.ndarray
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Columns by role, of one sheet or of several below each other.

    columns: of each role, until it is taken. sheets: each with the columns of its roles. rows: of
    each sheet.
    """

    columns: dict[str, pl.Series]
    sheets: tuple[tuple[Sheet, Mapping[str, str]], ...]
    rows: tuple[int, ...]

    def bad(self, role: str, row: int, fix: str) -> DataError:
        """An error that names the place, the column and what is there."""
        at = 0
        while row >= self.rows[at]:
            row, at = row - self.rows[at], at + 1
        sheet, roles = self.sheets[at]
        column = roles[role]
        line = sheet.load(dict.fromkeys(sheet.columns, "text")).row(row, named=True)
        name, what = repr(column) if sheet.named else f"field {int(column) + 1}", line[column]
        if what is None:
            count = sum(value is not None for value in line.values())
            short = f"{count} of {len(line)} fields; " if sheet.first else ""
            return DataError(f"{sheet.where(row)}: {name} is missing; {short}{fix}")
        return DataError(f"{sheet.where(row)}: {name} is {str(what)[:60]!r}; {fix}")


def table_of(*sheets: tuple[Sheet, Mapping[str, str]]) -> Table:
    """The columns of the roles that sheets have; raises `DataError` where these differ."""
    frames = []
    for sheet, roles in sheets:
        names = {column: role for role, column in roles.items()}
        loaded = sheet.typed(roles).rename(names)
        frames.append(loaded.select(sorted(loaded.columns)))
    if len({tuple(frame.columns) for frame in frames}) > 1:
        raise DataError(
            f"the files have {', '.join(str(frame.columns) for frame in frames)}; leave out what "
            "not all of them have, as in time=False"
        )
    if len({tuple(frame.dtypes) for frame in frames}) > 1:
        frames = [frame.cast(pl.String) for frame in frames]
    whole = pl.concat(frames) if len(frames) > 1 else frames[0]
    return Table({s.name: s for s in whole.get_columns()}, sheets, tuple(map(len, frames)))


def ids_of(found: Table, role: str) -> Ids:
    """The ids of a column; those that are whole numbers in the order of numbers.

    '01' and '1' are two ids.
    """
    series = found.columns.pop(role)
    if not len(series):
        raise DataError(f"{found.sheets[0][0].name}: no rows in it; it must hold at least one")
    if series.dtype.is_nested():
        raise found.bad(role, 0, "a list; write a row for each of its items")
    if series.null_count():
        row = int(series.is_null().arg_max() or 0)
        raise found.bad(role, row, "complete or remove the row")
    if series.dtype.is_float() and bool((series == series.round(0)).all()):
        series = series.cast(pl.Int64)  # as pandas has whole numbers with gaps
    if series.dtype.is_integer() and series.dtype != pl.UInt64:
        wide = series.dtype in (pl.Int32, pl.Int64)
        return _numbered((series if wide else series.cast(pl.Int64)).to_numpy())
    series = series.cast(pl.String).str.strip_chars()
    ordered = sorted(series.unique().to_list(), key=_place)
    at = pl.DataFrame({"id": ordered, "at": np.arange(len(ordered))})
    numbers = pl.DataFrame({"id": series}).join(at, on="id", how="left", maintain_order="left")
    return Ids(numbers["at"].to_numpy().astype(np.int32), tuple(ordered))


def _place(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isdecimal() and name.isascii() else (1, 0, name)


def _numbered(values: np.ndarray) -> Ids:
    low, high = int(values.min()), int(values.max())
    if high - low > 4 * len(values) + 1_000_000:
        unique, numbers = np.unique(values, return_inverse=True)
        return Ids(numbers.astype(np.int32), tuple(map(str, unique.tolist())))
    there = np.zeros(high - low + 1, bool)
    there[values - low] = True
    unique, at = there.nonzero()[0] + low, there.cumsum(dtype=np.int32) - 1
    return Ids(at[values - low], tuple(map(str, unique.tolist())))


def ratings_of(found: Table) -> np.ndarray:
    """The ratings (n,), float32."""
    series = found.columns.pop("rating")
    numbers = series if series.dtype.is_float() else _decimals(series)
    fine = numbers.is_not_null() & (numbers.abs() <= FARTHEST)
    if not fine.all():
        row = int((~fine.fill_null(False)).arg_max() or 0)
        fix = "write it with a point" if "," in str(series[row]) else "correct or remove the row"
        raise found.bad("rating", row, f"no rating; {fix}, or leave ratings out with rating=False")
    return numbers.to_numpy().astype(np.float32)


def _decimals(series: pl.Series) -> pl.Series:
    """Texts as numbers; where all that are none have a comma for a point, they are read so."""
    if series.dtype != pl.String:
        return series.cast(pl.Float64, strict=False)
    texts = series.str.strip_chars()
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
    series, fix = found.columns.pop("time"), "correct it, or leave times out with time=False"
    if series.dtype in (pl.Date, pl.Datetime):
        times = series.cast(pl.Datetime("us")).dt.epoch("s")
    elif form is not None:
        times = _dates(series, form)
        fix = f"not as time_format={form!r} says; {fix}"
    else:
        times = _clock(series)
        if times.null_count() == len(times):
            times = _dates(series, None)
        fix = f"no time; say how it is written, time_format='%d/%m/%Y', or {fix}"
    fine = times.is_not_null() & (times >= 0) & (times < LAST_TIME)
    if not fine.all():
        row = int((~fine.fill_null(False)).arg_max() or 0)
        if times[row] is not None:
            fix = "before 1970 or after 2100; correct it, or leave times out with time=False"
        raise found.bad("time", row, fix)
    return times.cast(pl.Int64).to_numpy()


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
        series = series.str.replace("T", " ").str.replace("Z$", "+0000")
        series = series.str.replace(r"([+-]\d\d):?(\d\d)$", "${1}${2}")
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


def known_of(sheet: Sheet, roles: Mapping[str, str]) -> Known:
    """What a table of items says; raises `DataError` for an item that stands there twice."""
    frame = sheet.load(dict.fromkeys(roles.values(), "text"))
    table = {role: frame[column] for role, column in roles.items()}
    found = Table(table, ((sheet, roles),), (len(frame),))
    numbers, columns = ids_of(found, "item"), dict[str, Any]()
    ids = tuple(numbers.ids[k] for k in numbers.numbers.tolist())
    if len(set(ids)) < len(ids):
        first: dict[str, int] = {}
        row = next(k for k, name in enumerate(ids) if first.setdefault(name, k) != k)
        there = sheet.where(first[ids[row]])
        raise found.bad("item", row, f"it stands already at {there}; keep one")
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
    return Known(ids, columns, sheet.notes)


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
    number, ids = items.numbers, items.ids
    if known is not None:
        ids = tuple(sorted({*items.ids, *known.ids}, key=_place))
        at = {name: row for row, name in enumerate(ids)}
        number = np.array([at[name] for name in items.ids], np.int32)[items.numbers]
        notes += [*known.notes, *_told(items.ids, known.ids)]
    columns: dict[str, np.ndarray] = {}
    if "rating" in found.columns:
        columns["values"] = ratings_of(found)
    if "time" in found.columns:
        columns["times"] = times_of(found, time_format)
    notes += _doubts(users.numbers, len(users.ids), columns.get("times"))
    if part is not None:
        _apart(found, _pairs(users.numbers, number, len(ids)), part)
    kept, twice = None, len(number) - _different(_pairs(users.numbers, number, len(ids)))
    if twice:
        kept = _once(_pairs(users.numbers, number, len(ids)), columns, duplicates)
    if twice:
        how = {"last": "the last", "first": "the first"}.get(duplicates, f"their {duplicates}")
        notes.append(f"{twice:,} rows repeat a pair of user and item: {how} counts")
    order = _by(users.numbers, columns.get("times"))
    order = order if kept is None else order[kept[order]]
    taken = {name: torch.from_numpy(columns.pop(name)[order]) for name in tuple(columns)}
    catalogue = catalogue_of(users.ids, ids, known)
    who, what = (torch.from_numpy(column[order]).long() for column in (users.numbers, number))
    del users, items, number  # before the table is looked through, which takes memory
    return Interactions(who, what, catalogue, taken, tuple(notes)), order


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
    keys = keys[order]
    run = np.zeros(len(keys), np.int64)  # rows of the same key lie in their own order
    np.cumsum(keys[1:] != keys[:-1], out=run[1:])
    del keys
    run <<= bits
    run |= order
    run.sort()
    run &= (1 << bits) - 1
    return run


def _columns(sheet: Sheet, roles: Mapping[str, str]) -> str:
    """Which column is what, and which are left alone."""
    names = {role: repr(c) if sheet.named else f"field {int(c) + 1}" for role, c in roles.items()}
    said = ", ".join(f"{role} from {names[role]}" for role in ROLES if role in names)
    left = [repr(c) for c in sheet.columns if c not in roles.values()] if sheet.named else []
    return f"{sheet.name}: {said}" + (f"; not used: {', '.join(left)}" if left else "")


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
            row,
            "its user met it in an earlier part, too; what is held out must not be trained on: "
            "remove one",
        )
