"""Which file of a folder holds what, and which column of a table is what.

Sources: the README of each MovieLens release (grouplens.org/datasets/movielens); the page "Atomic
Files" of the RecBole documentation.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedlab.core import DataError, require
from fedlab.data.files.text import Sheet, number, sheet

# column -> names that mean it, in lower case and without signs between words; the first is usual
ROLES: dict[str, tuple[str, ...]] = {
    "user": (
        *("user", "userid", "users", "uid", "customer", "customerid", "member", "memberid"),
        *("visitor", "visitorid", "session", "sessionid", "reviewer", "reviewerid", "person"),
        *("personid", "account", "accountid", "client", "clientid", "username"),
        *("kunde", "kundennr", "kundennummer", "benutzer", "cliente", "usuario", "utilisateur"),
    ),
    "item": (
        *("item", "itemid", "items", "iid", "movie", "movieid", "film", "filmid", "product"),
        *("productid", "asin", "parentasin", "sku", "article", "articleid", "song", "songid"),
        *("track", "trackid", "artist", "artistid", "book", "bookid", "isbn", "business"),
        *("businessid", "game", "gameid", "recipe", "recipeid", "news", "newsid", "stockcode"),
        *("artikel", "artikelnr", "artikelnummer", "produkt", "produit", "producto"),
    ),
    "rating": (
        "rating",
        "ratings",
        "stars",
        "star",
        "score",
        "overall",
        "value",
        "weight",
        "bewertung",
    ),
    "time": (
        *("timestamp", "time", "unixreviewtime", "date", "datetime", "ts", "eventtime"),
        *("createdat", "created", "day", "datum", "fecha"),
    ),
}
ITEM_ROLES: dict[str, tuple[str, ...]] = {
    "item": (*ROLES["item"], "id"),
    "title": ("title", "movietitle", "itemname", "name", "producttitle", "productname"),
    "year": ("year", "releaseyear", "released"),
    "categories": ("genres", "genre", "categories", "category", "class", "tags", "type"),
    "text": ("text", "description", "plot", "overview", "abstract", "body"),
}
SESSIONS = ("session", "sessionid")  # is the user only where no other column is
FLAGS = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
# of tables without a header: what their columns are, by the name of the file
BARE_ITEMS: dict[str, dict[str, str]] = {
    "u.item": {"0": "item", "1": "title"} | {str(k + 5): flag for k, flag in enumerate(FLAGS)},
    "movies.dat": {"0": "item", "1": "title", "2": "categories"},
}
FOLDERS = (  # names of the file of interactions, and of that of items
    ("u.data", "u.item"),
    ("ratings.csv", "movies.csv"),
    ("ratings.dat", "movies.dat"),
    ("*.inter", "*.item"),
    ("ratings.*", "items.*"),
    ("interactions.*", "items.*"),
    ("*.parquet", ""),
)
# words in longer names: purchased_at, InvoiceDate and Book-Rating are taken for what they say, but
# columns that one has to have, such as Customer Email, are only proposed
WORDS = {
    **{"rating": {"rating", "stars", "score"}, "time": {"date", "time", "at", "timestamp"}},
    **{"user": {"buyer", "email", "shopper"}, "item": {"code", "ean"}},
}
DAY = re.compile(r"\d{1,4}([-./])\d{1,2}\1\d{1,4}( 00:00:00)?")
HOUR = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?")
CLOCK = 1e8  # seconds: 1973; a number above is a time, below a rating


Place = str | int | tuple[str | int, ...]  # a column by its name or place, or the two of a time


@dataclass(frozen=True)
class Asked:
    """What the caller says of a table, and what is found out otherwise.

    columns: role -> the name of its column. separator, header, encoding: of the file.
    """

    columns: Mapping[str, Place] = field(default_factory=dict)
    separator: str | None = None
    header: bool | None = None
    encoding: str | None = None


def plain(name: str) -> str:
    """A column's name for comparison: lower case, no signs, no type behind a colon (RecBole)."""
    return re.sub(r"[^a-z0-9]", "", str(name).split(":")[0].lower())


def words(name: str) -> set[str]:
    """The words of a column's name, however they are joined."""
    bare, _, _ = name.partition(":")
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", bare)}


def files_in(path: Path) -> tuple[Path, Path | None]:
    """The file of interactions that a path means, and that of items beside it where there is one.

    Raises `DataError` where there is no such file, or none is known.
    """
    if path.is_file():
        return path, None
    if not path.is_dir():
        raise DataError(f"{str(path)!r}: no such file or folder; check the path")
    for interactions, items in FOLDERS:
        found = sorted(path.glob(interactions)) + sorted(path.glob(f"{interactions}.gz"))
        if found:
            beside = [*path.glob(items), *path.glob(f"{items}.gz")] if items else []
            return found[0], next(iter(sorted(beside)), None)
    files = sorted(file for file in path.iterdir() if file.is_file())
    names = ", ".join(file.name for file in files[:8]) or "nothing"
    if len(files) == 1:
        return files[0], None
    known = ", ".join(name for name, _ in FOLDERS)
    raise DataError(
        f"{str(path)!r} is a folder with {names}; name the file of interactions in it, and "
        f"items=FILE for what is known of items (found by themselves: {known})"
    )


def interactions_in(path: Path, asked: Asked) -> tuple[Sheet, dict[str, str]]:
    """The table of interactions in a file, and the column of each role that it has."""
    every = {name for names in ROLES.values() for name in names}
    found = _sheet(path, asked, every)
    return with_roles(found, asked.columns)


def with_roles(found: Sheet, asked: Mapping[str, Place]) -> tuple[Sheet, dict[str, str]]:
    """A table of interactions, and the column of each role; days and hours are one column."""
    both = asked.get("time")
    if isinstance(both, tuple):
        require(len(both) == 2, "time", both, "name one column, or two: of days and of hours")
        halves = [_named(found, "time", half) for half in both]
        require(halves[0] != halves[1], "time", both, "twice the same column; name two")
    else:
        halves = _halves(found, asked)
    if halves:
        found = found.paired(*halves)
        asked = {**asked, "time": found.columns[-1]}
    return found, roles_of(found, asked, ROLES, ("user", "item"))


def _halves(found: Sheet, asked: Mapping[str, Place]) -> list[str]:
    """The columns of days and of hours, where there is one of each and no other is asked for.

    Where columns have names, one of the two must be that of a time.
    """
    held = {
        c: [row[k] for row in found.sample if len(row) > k] for k, c in enumerate(found.columns)
    }
    days, hours = (
        [c for c, rows in held.items() if rows and all(form.fullmatch(r.strip()) for r in rows)]
        for form in (DAY, HOUR)
    )
    if "time" in asked or len(days) != 1 or len(hours) != 1:
        return []
    both = [*days, *hours]
    named = any(plain(c) in ROLES["time"] or words(c) & WORDS["time"] for c in both)
    free = not set(both) & {_named(found, role, name) for role, name in asked.items()}
    return both if free and (named or not found.named) else []


def items_in(path: Path, asked: Asked) -> tuple[Sheet, dict[str, str]]:
    """The table of items in a file, and the column of each role, flags of categories by name."""
    every = {name for names in ITEM_ROLES.values() for name in names}
    bare = next((roles for name, roles in BARE_ITEMS.items() if path.name.startswith(name)), None)
    found = _sheet(path, asked, every if bare is None else set())
    if bare is None or found.named:
        return found, roles_of(found, asked.columns, ITEM_ROLES, ("item",))
    return found, {role: column for column, role in bare.items() if column in found.columns}


def _sheet(path: Path, asked: Asked, names: set[str]) -> Sheet:
    given = {plain(name) for name in asked.columns.values() if isinstance(name, str)}
    how = {"separator": asked.separator, "encoding": asked.encoding}
    return sheet(path, header=asked.header, known=lambda n: plain(n) in names | given, **how)


def roles_of(
    found: Sheet,
    asked: Mapping[str, Place],
    roles: Mapping[str, tuple[str, ...]],
    needed: tuple[str, ...],
) -> dict[str, str]:
    """The column of each role: as asked, by name, or by place where there is no header.

    Raises `DataError` for a column that is not there, two that may be meant, or none.
    """
    columns, taken = found.columns, dict[str, str]()
    for role, name in asked.items():
        column = _named(found, role, name)
        other = next((r for r, c in taken.items() if c == column), None)
        require(other is None, role, name, f"the same column as {other}; name another")
        taken[role] = column
    if not found.named:
        return _placed(found, taken, roles, needed)
    for role, names in roles.items():
        free = found.unused(taken.values())
        fit = [c for c in free if plain(c) in names]
        if role in taken:
            continue
        fit = [c for c in fit if plain(c) not in SESSIONS] or fit
        if not fit and role not in needed:
            near = [c for c in free if words(c) & WORDS.get(role, set())]
            taken |= {role: near[0]} if len(near) == 1 else {}
        if not fit:
            continue
        if len(fit) > 1 and role in needed:
            raise DataError(
                f"{found.name}:1: {' and '.join(map(repr, fit))} may both be the column of {role}s;"
                f" say {role}={fit[0]!r}"
            )
        taken[role] = min(fit, key=lambda c: names.index(plain(c)))
    lacks = [role for role in needed if role not in taken]
    if lacks:
        free = found.unused(taken.values())
        ways = [f"{role}={_proposed(free, roles[role], role)}" for role in lacks]
        raise DataError(
            f"{found.name}:1: no column of {' and none of '.join(f'{r}s' for r in lacks)} among "
            f"{', '.join(map(repr, columns))}; say {' and '.join(ways)}, by the names of columns"
        )
    return taken


def _proposed(free: list[str], names: tuple[str, ...], role: str) -> str:
    """The first column with a word that means such a role, for a hint; '...' where none has."""
    known = {*names, *WORDS.get(role, ())}
    return next((repr(column) for column in free if words(column) & known), "...")


def _named(found: Sheet, role: str, name: Place) -> str:
    """A column by its name, or by its place, counted from 0."""
    columns = found.columns
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(columns):
        return columns[name]
    if str(name) in columns:
        return str(name)
    raise DataError(
        f"{role}={name!r}: {found.name} has no such column; it has "
        f"{', '.join(map(repr, columns)) if found.named else f'columns 0 to {len(columns) - 1}'}"
    )


def _placed(
    found: Sheet,
    taken: dict[str, str],
    roles: Mapping[str, tuple[str, ...]],
    needed: tuple[str, ...],
) -> dict[str, str]:
    """Roles by place: user, item, rating, time; a single third column is what its numbers say."""
    free = found.unused(taken.values())
    left = [role for role in roles if role not in taken]
    if len(found.columns) == 3 and left == ["user", "item", "rating", "time"]:
        third = [number(row[2]) for row in found.sample if len(row) > 2]
        clock = any(value is None or value > CLOCK for value in third)
        left = ["user", "item", "time" if clock else "rating"]
    taken |= dict(zip(left, free, strict=False))
    for role in needed:
        if role not in taken:
            raise DataError(
                f"{found.name}:1: {len(found.columns)} fields and no header; interactions"
                " have users and items at least"
            )
    return taken
