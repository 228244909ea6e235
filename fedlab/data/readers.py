"""Rating files as columns: MovieLens 100K, 1M and CSV releases, and RecBole's atomic files.

Each format is one entry of `FORMATS`, so a new format needs no new code. A bad line raises
`DataError` with the file and line, the value and the fix; nothing is returned half-read.

Sources: the README of each MovieLens release (grouplens.org/datasets/movielens); the page "Atomic
Files" of the RecBole documentation.
"""

import csv
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

TITLE_AND_YEAR = re.compile(r"^(.*?)\s*\((\d{4})\)\s*$")
ML100K_GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()


class DataError(ValueError):
    """A data file or table cannot be used; the message names the place, the value and the fix."""


@dataclass(frozen=True)
class Format:
    """Where a format keeps its columns: names from a header line, or positions where there is none.

    ratings, items: globs of the two files. separator: between fields; item_separator where it
    differs in the items file. columns: user, item, rating, time -> header name or position.
    item_columns: item, title, year, genres -> the same. genre_separator: between the genres of an
    item. genre_flags: the position of the first 0/1 flag, where genres are flags.
    """

    ratings: str
    items: str
    separator: str
    columns: dict[str, str | int]
    item_columns: dict[str, str | int]
    genre_separator: str = "|"
    encoding: str = "utf-8"
    item_separator: str = ""
    genre_flags: int = 0


FORMATS = (
    Format(
        "u.data",
        "u.item",
        "\t",
        {"user": 0, "item": 1, "rating": 2, "time": 3},
        {"item": 0, "title": 1},
        encoding="latin-1",
        item_separator="|",
        genre_flags=5,
    ),
    Format(
        "ratings.csv",
        "movies.csv",
        ",",
        {"user": "userId", "item": "movieId", "rating": "rating", "time": "timestamp"},
        {"item": "movieId", "title": "title", "genres": "genres"},
    ),
    Format(
        "ratings.dat",
        "movies.dat",
        "::",
        {"user": 0, "item": 1, "rating": 2, "time": 3},
        {"item": 0, "title": 1, "genres": 2},
        encoding="latin-1",
    ),
    Format(
        "*.inter",
        "*.item",
        "\t",
        {"user": "user_id", "item": "item_id", "rating": "rating", "time": "timestamp"},
        {"item": "item_id", "title": "movie_title", "year": "release_year", "genres": "class"},
        genre_separator=" ",
    ),
)


def read_columns(folder: str | Path) -> dict[str, list[Any]]:
    """Columns of the dataset in a folder, with ids as they are written in the files.

    For each rating: user and item (strings), rating (float), time (int seconds since 1970). For
    each item, in the order of the items file: item_id, title, year (0 when unknown) and genres (a
    tuple of names). Raises `DataError` when no format fits, a column is missing or a line is bad.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "ratings.dat").write_text("1::7::4::978300760")
    >>> _ = (folder / "movies.dat").write_text("7::Heat (1995)::Action|Crime")
    >>> columns = read_columns(folder)
    >>> columns["rating"], columns["title"], columns["year"]
    ([4.0], ['Heat'], [1995])
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"folder={str(folder)!r} is not a folder; name the folder that holds the dataset"
        )
    for form in FORMATS:
        found, items = sorted(folder.glob(form.ratings)), sorted(folder.glob(form.items))
        if found:
            if not items:
                raise DataError(f"{folder}: {found[0].name} needs its {form.items} beside it")
            catalogue = _items(items[0], form)
            return _ratings(found[0], form, set(catalogue["item_id"])) | catalogue
    names = ", ".join(f"{form.ratings} + {form.items}" for form in FORMATS)
    raise DataError(f"folder={str(folder)!r} holds no known dataset; expected one of: {names}")


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIO]:
    """The file as text; raises `DataError` with the line that is not in this encoding."""
    try:
        with path.open(encoding=encoding, newline="") as file:
            yield file
    except UnicodeDecodeError:
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path.name}:{number}: {line[error.start : error.end]!r} is not {encoding}; "
                    f"save the file as {encoding}"
                ) from error
        raise


def _lines(
    path: Path, separator: str, encoding: str, columns: dict[str, str | int]
) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Yield (file:line, fields by column name, all fields); `DataError` if one is missing."""
    named = any(isinstance(where, str) for where in columns.values())
    with _opened(path, encoding) as file:
        rows = (
            csv.reader(file)
            if separator == ","
            else (line.rstrip("\r\n").split(separator) for line in file)
        )
        first: list[str] = next(iter(rows), []) if named else []
        header = [name.split(":")[0].strip("\ufeff") for name in first]
        for wanted in columns.values():
            if isinstance(wanted, str) and wanted not in header:
                raise DataError(
                    f"{path.name}:1: no column {wanted!r} among {header}; add it to the header"
                )
        index = {name: header.index(w) if isinstance(w, str) else w for name, w in columns.items()}
        need = max(index.values()) + 1
        for number, row in enumerate(rows, start=2 if named else 1):
            where = f"{path.name}:{number}"
            if len(row) < need:
                raise DataError(
                    f"{where}: {len(row)} fields where {need} are needed; complete or remove the "
                    "line"
                )
            yield where, {name: row[i] for name, i in index.items()}, row


def _number(where: str, name: str, text: str, kind: type = float) -> Any:
    """`text` as a finite number; anything else raises `DataError`."""
    try:
        value = kind(float(text)) if kind is int else kind(text)
    except (ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{where}: {name}={text!r} is not a finite number; correct or remove the line"
        )
    return value


def _ratings(path: Path, form: Format, items: set[str]) -> dict[str, list[Any]]:
    """The ratings file; `DataError` for a repeated (user, item) pair or an unknown item."""
    first: dict[tuple[str, str], str] = {}
    columns: dict[str, list[Any]] = {name: [] for name in ("user", "item", "rating", "time")}
    for where, row, _ in _lines(path, form.separator, form.encoding, form.columns):
        pair = row["user"], row["item"]
        if pair in first:
            raise DataError(
                f"{where}: user {pair[0]!r} rated item {pair[1]!r} already at {first[pair]}; keep "
                "one"
            )
        if row["item"] not in items:
            raise DataError(
                f"{where}: item={row['item']!r} is not in the items file; add it there or remove "
                "the line"
            )
        first[pair] = where
        values = (
            *pair,
            _number(where, "rating", row["rating"]),
            _number(where, "time", row["time"], int),
        )
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
    if not first:
        raise DataError(f"{path.name}: no ratings in the file; it must hold at least one line")
    return columns


def _items(path: Path, form: Format) -> dict[str, list[Any]]:
    """The items file: ids, titles without the year, years and genres."""
    columns: dict[str, list[Any]] = {name: [] for name in ("item_id", "title", "year", "genres")}
    seen: dict[str, str] = {}
    separator = form.item_separator or form.separator
    for where, row, everything in _lines(path, separator, form.encoding, form.item_columns):
        if row["item"] in seen:
            raise DataError(
                f"{where}: item={row['item']!r} stands already at {seen[row['item']]}; keep one"
            )
        seen[row["item"]] = where
        match = TITLE_AND_YEAR.match(row["title"])
        year = row.get("year") or (match[2] if match else "0")
        if form.genre_flags:
            flags = zip(ML100K_GENRES, everything[form.genre_flags :], strict=False)
            names = [genre for genre, flag in flags if flag == "1"]
        else:
            names = row["genres"].split(form.genre_separator)
        values = (
            row["item"],
            match[1] if match else row["title"],
            _number(where, "year", year, int) if year.isdigit() else 0,
            tuple(g for g in names if g not in ("", "unknown", "(no genres listed)")),
        )
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
    return columns
