"""The door for data: files, frames and arrays in, `Interactions` or a `Split` out.

Polars, and the files of this folder that need it, load when something is read.

Letters: n rows, U users, I items.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import torch

from fedlab.core import DataError, ParameterError, require
from fedlab.data.interactions import Interactions
from fedlab.data.split import Split, hold_out

if TYPE_CHECKING:
    from fedlab.data.files.text import Sheet

Column = str | int | bool | None
Both = Column | tuple[str | int, str | int]  # of a time: days and hours may be two columns
TOO_FEW = "runs that rank leave them out, as validation and test take one each"
ARGUMENTS = (  # of `read`, that a text may give
    *("user", "item", "rating", "time", "items", "separator", "header", "encoding"),
    *("time_format", "duplicates", "missing"),
)
# an option in a message, behind what stands before it
OPTION = re.compile(
    rf"(.*?)\b({'|'.join(ARGUMENTS)})=('[^']*'|\"[^\"]*\"|\([^)]*\)|\w+|\.\.\.)", re.DOTALL
)


def read(
    path: str | Path,
    *,
    user: Column = None,
    item: Column = None,
    rating: Column = None,
    time: Both = None,
    items: str | Path | None = None,
    item_columns: Mapping[str, Column] | None = None,
    separator: str | None = None,
    header: bool | None = None,
    encoding: str | None = None,
    time_format: str | None = None,
    duplicates: str = "last",
    missing: str = "refuse",
) -> Interactions:
    r"""Interactions from a file, or from a folder with a file of them and one of items.

    Found out by themselves: how a file is packed (gzip, bzip2, xz) and written (UTF-8, UTF-16,
    Latin-1); what stands between fields; whether there is a header; and which column is what, by
    its name or, without a header, by its place: user, item, rating, time. So MovieLens' releases
    are read, RecBole's atomic files, lists of items with one line a user, parquet and JSON.

    user, item, rating, time: the name of the column, or its place from 0; False for none of it;
    time=("date", "hour"), where days and hours are two columns, as is found out where they are.
    items: a file of items with any of the columns title, year, categories, text; item_columns: role
    -> column, where its header says otherwise. separator, header, encoding: of the file of
    interactions. time_format: of dates that ISO 8601 would write otherwise, as strftime has it.
    duplicates: which row counts for a pair of user and item that comes again: 'last', 'first', or
    the 'mean' or 'sum' of their ratings. missing: 'refuse', or 'drop' rows in which a column that
    is read holds nothing (an empty field, NA, NaN, null or None), or a rating or time that is none,
    such as 31 February; `notes` says how many. Ids that are all whole numbers are
    read as such, 12.0 as 12; '01' and '1' are two.

    Users and items are sorted by id, rows by user and time, or as in the file where there are no
    times. Items of the file of items that nobody met stay in the catalogue: leaving them out would
    tell which are met. `Interactions.notes` says what was found. Raises `DataError` with file and
    line of the first bad rows.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "shop.csv"
    >>> _ = file.write_text("customer,sku,stars\nann,tea,5\nbob,tea,4\nbob,cup,3\n")
    >>> shop = read(file)
    >>> shop.catalogue.user_ids, shop.values.tolist()
    (('ann', 'bob'), [5.0, 4.0, 3.0])
    """
    from fedlab.data.files import layouts, table  # noqa: PLC0415 - loads polars

    asked = layouts.Asked(
        _given(user=user, item=item, rating=rating, time=time), separator, header, encoding
    )
    require(
        isinstance(path, str | Path) and str(path) != "", "path", path, "give a path, as a text"
    )
    file, beside = layouts.files_in(Path(path))
    sheet = _without(*layouts.interactions_in(file, asked), rating=rating, time=time)
    known = _known(Path(items) if items is not None else beside, item_columns or {}, missing)
    whole = table.table_of(sheet, missing=missing, time_format=time_format)
    return table.joined(whole, known, time_format=time_format, duplicates=duplicates)[0]


def read_asked(text: str) -> Interactions:
    """What `read` makes of a text by which settings and commands name data; see `asked_for`.

    Where an error names an option, it says how that is written in such a text.
    """
    path, how = asked_for(text)
    try:
        found = read(path, **how)
        return replace(found, notes=tuple(_also(text, note) for note in found.notes))
    except (DataError, ParameterError) as error:
        way = _also(text, str(error), "; ")
        if way == str(error):
            raise
        raise type(error)(way) from error


def _also(text: str, message: str, before: str = "; say ") -> str:
    """A message with its ways out, which stand behind a mark, as such a text has them, too."""
    ways = _as_text(text, message) if before in message else []
    return f"{message}; behind the file's name: {' or '.join(map(repr, ways))}" if ways else message


def _as_text(text: str, message: str) -> list[str]:
    """The text with each way out that a message proposes, which is what is behind its last mark."""
    ways: list[dict[str, str]] = []
    for before, name, value in OPTION.findall(message.rpartition("; ")[2]):
        signs = value.strip("()").replace("&", "%26").split(", ")
        option = {name: ",".join(sign.strip("'\"") for sign in signs)}
        if ways and " or " not in before:
            ways[-1] |= option
        else:
            ways.append(option)
    path, _, given = text.partition("?")
    kept = {name: value for name, _, value in (g.partition("=") for g in given.split("&") if g)}
    found = (path + "?" + "&".join(f"{n}={v}" for n, v in (kept | way).items()) for way in ways)
    return [way for way in dict.fromkeys(found) if way != text]


def asked_for(text: str) -> tuple[Path, dict[str, Any]]:
    """The path and the arguments of `read` in a text, as settings and commands name data.

    Arguments stand behind a question mark, `&` between them, columns of the items' file as
    `items.title=...`, two columns of a time with a comma between; signs that mean something else
    are written as in addresses (%26 for `&`, %2C for a comma).

    >>> asked_for("till.csv?user=buyer&item=2&rating=False")  # doctest: +ELLIPSIS
    (...Path('till.csv'), {'user': 'buyer', 'item': 2, 'rating': False})
    """
    if "?" not in text or Path(text).exists():
        return Path(text), {}
    from fedlab.data.files.layouts import ITEM_ROLES  # noqa: PLC0415 - loads polars

    path, _, rest = text.partition("?")
    how: dict[str, Any] = {}
    for each in rest.split("&"):
        name, equals, value = each.partition("=")
        of_items, column = name.startswith("items."), name.removeprefix("items.")
        known = ITEM_ROLES if of_items else ARGUMENTS
        require(
            bool(equals) and column in known,
            "data",
            text,
            f"{each!r} is no argument; write NAME=VALUE, with a name of {', '.join(ARGUMENTS)}, "
            f"{', '.join(f'items.{role}' for role in ITEM_ROLES)}",
        )
        into = how.setdefault("item_columns", {}) if of_items else how
        place = of_items or column in ARGUMENTS[:4]
        parts = value.split(",") if name == "time" else [value]
        values = [_value(unquote(part), place=place) for part in parts]
        into[column] = values[0] if len(values) == 1 else tuple(values)
    return Path(path), how


def _value(text: str, *, place: bool) -> str | int | bool:
    """A column's place, where it may be one; whether there is any; or a text, quotes or not."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    text = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    return int(text) if place and text.isascii() and text.isdecimal() else text


def read_split(
    train: str | Path,
    test: str | Path,
    validation: str | Path | None = None,
    *,
    user: Column = None,
    item: Column = None,
    rating: Column = None,
    time: Both = None,
    items: str | Path | None = None,
    item_columns: Mapping[str, Column] | None = None,
    separator: str | None = None,
    header: bool | None = None,
    encoding: str | None = None,
    time_format: str | None = None,
    duplicates: str = "last",
    missing: str = "refuse",
    seed: int = 0,
) -> Split:
    """A split that comes as files, such as u1.base and u1.test, over the same users and items.

    Without a file for validation, the last train row of each user who has two or more is held out
    for it, a random one (seed) where there are no times. The other arguments are those of `read`.
    Raises `DataError` for a pair of user and item in two of the files.
    """
    from fedlab.data.files import layouts, table  # noqa: PLC0415 - loads polars

    asked = layouts.Asked(
        _given(user=user, item=item, rating=rating, time=time), separator, header, encoding
    )
    files, sheets, kinds = (train, validation, test), [], []
    for kind, path in enumerate(files):
        if path is not None:
            found = layouts.interactions_in(layouts.files_in(Path(path))[0], asked)
            sheets.append(_without(*found, rating=rating, time=time))
            kinds.append(kind)
    whole = table.table_of(*sheets, missing=missing, time_format=time_format)
    part = np.repeat(kinds, whole.rows)
    known = _known(Path(items) if items is not None else None, item_columns or {}, missing)
    how: dict[str, Any] = {"time_format": time_format, "duplicates": duplicates}
    every, rows = table.joined(whole, known, part=part, **how)
    which = torch.from_numpy(part[rows])
    fit, choose, report = (every.take(which == kind) for kind in range(3))
    return hold_out(fit, report, seed) if validation is None else Split(fit, choose, report)


def from_frame(
    frame: Any,
    *,
    user: str | None = None,
    item: str | None = None,
    rating: Column = None,
    time: Both = None,
    items: Any = None,
    item_columns: Mapping[str, Column] | None = None,
    time_format: str | None = None,
    duplicates: str = "last",
    missing: str = "refuse",
) -> Interactions:
    """Interactions from a frame of pandas or polars; items: a frame of items. See `read`.

    >>> import polars
    >>> clicks = polars.DataFrame({"who": ["a", "b"], "what": [7, 7]})
    >>> from_frame(clicks, user="who", item="what").item_count
    1
    """
    from fedlab.data.files import layouts, table, text  # noqa: PLC0415 - loads polars

    asked = _given(user=user, item=item, rating=rating, time=time)
    whole = layouts.with_roles(text.of_frame(_frame(frame), "the frame"), asked)
    sheet = _without(*whole, rating=rating, time=time)
    known = None
    _check_items(items, item_columns)
    if items is not None:
        goods, named = text.of_frame(_frame(items), "the frame of items"), item_columns or {}
        told = layouts.roles_of(goods, _given(**named), layouts.ITEM_ROLES, ("item",))
        known = table.known_of(goods, told, missing)
    found = table.table_of(sheet, missing=missing, time_format=time_format)
    return table.joined(found, known, time_format=time_format, duplicates=duplicates)[0]


def from_arrays(
    users: Sequence[Any] | np.ndarray | torch.Tensor,
    items: Sequence[Any] | np.ndarray | torch.Tensor,
    ratings: Sequence[float] | np.ndarray | torch.Tensor | None = None,
    times: Sequence[Any] | np.ndarray | torch.Tensor | None = None,
    *,
    duplicates: str = "last",
    missing: str = "refuse",
) -> Interactions:
    """Interactions from columns (n,): ids of users and items, ratings, times; see `read`.

    >>> from_arrays(["ann", "bob", "bob"], [3, 3, 5]).catalogue.item_ids
    ('3', '5')
    """
    given = {"user": users, "item": items, "rating": ratings, "time": times}
    import polars as pl  # noqa: PLC0415 - takes a tenth of a second

    columns = {
        name: column.numpy() if isinstance(column, torch.Tensor) else np.asarray(column)
        for name, column in given.items()
        if column is not None
    }
    sizes = {name: column.shape for name, column in columns.items()}
    if len(set(sizes.values())) > 1 or len(columns["user"].shape) != 1:
        raise DataError(f"columns of shapes {sizes}; give as many of each, (n,)")
    frame = pl.DataFrame({name: _column(column) for name, column in columns.items()}, strict=False)
    return from_frame(frame, duplicates=duplicates, missing=missing)


def _given(**columns: Both) -> dict[str, Any]:
    """The columns that are named; users and items are never left out."""
    for role in ("user", "item"):
        asked = columns.get(role)
        require(asked is not False, role, asked, "interactions need both users and items")
    return {role: name for role, name in columns.items() if name is not None and name is not False}


def _without(
    sheet: "Sheet", roles: dict[str, str], **columns: Both
) -> tuple["Sheet", dict[str, str]]:
    """The roles but for those that are asked to be left out, and what else may be times."""
    from fedlab.data.files import table  # noqa: PLC0415 - loads polars

    kept = {role: name for role, name in roles.items() if columns.get(role) is not False}
    said = () if columns.get("time") is False else table.overlooked(sheet, kept)
    return replace(sheet, notes=(*sheet.notes, *said)), kept


def _check_items(items: Any, columns: Mapping[str, Column] | None) -> None:
    """Raise `ParameterError` for columns of items without a table of items."""
    fix = "there is no table of items; name it with items, or leave this out"
    require(items is not None or not columns, "item_columns", columns, fix)


def _known(path: Path | None, columns: Mapping[str, Column], missing: str) -> Any:
    """What a file of items says, a `table.Known`; None without one."""
    from fedlab.data.files import layouts, table  # noqa: PLC0415 - loads polars

    _check_items(path, columns)
    if path is None:
        return None
    if not path.is_file():
        raise DataError(f"items={str(path)!r}: no such file; check the path")
    return table.known_of(*layouts.items_in(path, layouts.Asked(_given(**columns))), missing)


def _frame(frame: Any) -> Any:
    """A frame of pandas or polars as one of polars."""
    import polars as pl  # noqa: PLC0415 - takes a tenth of a second

    if isinstance(frame, pl.DataFrame):
        found = frame
    elif hasattr(frame, "columns") and hasattr(frame, "__getitem__"):
        found = pl.DataFrame(
            {str(name): _column(np.asarray(frame[name])) for name in frame.columns}, strict=False
        )
    else:
        raise DataError(f"frame={type(frame).__name__}: give a frame of pandas or polars")
    if not len(found):
        raise DataError("the frame is empty; it must hold at least one row")
    return found


def _column(values: np.ndarray) -> np.ndarray | list[Any]:
    """A column, with None in place of what pandas has for nothing."""
    if values.dtype != object:
        return values
    held = values.tolist()
    return [
        None if each is None or str(each) in ("nan", "<NA>", "NaT") else str(each) for each in held
    ]


def described(interactions: Interactions) -> str:
    """What there is, and what was found when it was read: some lines.

    >>> from fedlab.data import load
    >>> print(described(load()).splitlines()[0])
    100,004 interactions of 671 users with 9,066 items (1.64 % of all pairs)
    """
    n, users, items = len(interactions), interactions.user_count, interactions.item_count
    each, popular = interactions.user_counts(), interactions.item_counts()
    few = int((each < 3).sum())
    why = f"; {TOO_FEW}" if few else ""
    lines = [
        f"{n:,} interactions of {users:,} users with {items:,} items "
        f"({100 * n / (users * items):.2f} % of all pairs)",
        f"of a user {int(each.min()):,} to {int(each.max()):,}, half have {int(each.median()):,} "
        f"or fewer; {few:,} have fewer than 3{why}",
        f"of an item up to {int(popular.max()):,}; {int((popular == 0).sum()):,} have none",
    ]
    if "values" in interactions.columns:
        values = interactions.values
        lines.append(
            f"ratings from {values.min():g} to {values.max():g}, {values.mean():.2f} on average"
        )
    else:
        lines.append("no ratings")
    if "times" in interactions.columns:
        ends = (int(interactions.times.min()), int(interactions.times.max()))
        first, last = (np.datetime64(end, "s").astype("datetime64[D]") for end in ends)
        lines.append(f"from {first} to {last}")
    else:
        lines.append("no times: what is held out is drawn at random")
    known = [
        name
        for name in ("titles", "years", "categories", "texts")
        if name in interactions.catalogue.columns
    ]
    lines.append(f"of items: {', '.join(known)}" if known else "of items nothing but their ids")
    return "\n".join([*lines, *interactions.notes])
