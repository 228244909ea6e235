"""Tables of interactions as people have them, each three rows of the same two users.

Files by name, and the path that is read. All that edition 0.5.0 refused is here, but for parquet
and frames, and a pair of files for train and test, which `reading.py` writes.
"""

import gzip
from pathlib import Path

from fedlab.data import Interactions

ROWS = [("1", "10", 4, 978300760), ("2", "10", 3, 978300761), ("2", "7", 5, 978300762)]


def lines(separator: str, rows: list = ROWS, columns: int = 4) -> str:
    """Rows as text."""
    return "".join(separator.join(map(str, row[:columns])) + "\n" for row in rows)


CSV = "userId,movieId,rating,timestamp\n" + lines(",")
INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + lines("\t")
ITEM = "item_id:token\tmovie_title:token_seq\tclass:token_seq\n10\tHeat\tCrime Drama\n7\tBabe\t\n"
DATES = ["2000-12-31 22:12:40", "2000-12-31 22:12:41.5", "2000-12-31T23:12:42+01:00"]


def dated(row: tuple, date: str) -> tuple:
    """A row with its time as a date."""
    return (*row[:3], date)


# name -> (files, what is read, with what is read); each is one of those that 0.5.0 refused
LAYOUTS = {
    "ratings.dat with commas": ({"ratings.dat": lines(",")}, "."),
    "ratings.dat with ::": ({"ratings.dat": lines("::")}, "."),
    "ratings.csv without movies.csv": ({"ratings.csv": CSV}, "."),
    "another header": ({"ratings.csv": CSV.replace("userId,movieId", "user,item")}, "ratings.csv"),
    "another name": ({"export-2024.txt": lines("\t")}, "export-2024.txt"),
    "packed": ({"ratings.csv.gz": gzip.compress(CSV.encode())}, "ratings.csv.gz"),
    ".inter without .item": ({"x.inter": INTER}, "."),
    ".item with another column of titles": (
        {"x.inter": INTER, "x.item": ITEM.replace("movie_title", "name")},
        ".",
    ),
    "ISO dates": (
        {"shop.csv": "user,item,rating,date\n" + lines(",", map(dated, ROWS, DATES))},
        "shop.csv",
    ),
    "a repeated event": ({"u.data": lines("\t", [ROWS[0], *ROWS])}, "."),
    "a trailing blank line": ({"ratings.csv": CSV + "\n\n"}, "."),
    "semicolons": ({"ratings.csv": CSV.replace(",", ";")}, "."),
    "an item that the items file lacks": (
        {"ratings.dat": lines("::"), "movies.dat": "10::Heat (1995)::Crime|Drama\n"},
        ".",
    ),
    "Latin-1 items": (
        {
            "ratings.csv": CSV,
            "movies.csv": "movieId,title,genres\n10,Amélie (2001),Drama\n7,Babe,\n".encode(
                "latin-1"
            ),
        },
        ".",
    ),
    "a file's path": (
        {"ratings.csv": CSV, "movies.csv": "movieId,title\n10,Heat\n"},
        "ratings.csv",
    ),
}
WITHOUT_TIMES = {
    "three columns": ({"ratings.csv": "user,item,rating\n" + lines(",", columns=3)}, "."),
    "three columns without a header": ({"r.txt": lines(" ", columns=3)}, "r.txt"),
}
CLICKS = {
    "lists of items": ({"train.txt": "1 10\n2 10 7\n"}, "train.txt"),
    "an implicit .inter": (
        {"x.inter": "user_id:token\titem_id:token\n" + lines("\t", columns=2)},
        ".",
    ),
}


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    """Write files into a folder."""
    for name, text in files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def rows_of(found: Interactions) -> list[tuple[str, str]]:
    """The (user, item) pairs by id."""
    users, items = found.catalogue.user_ids, found.catalogue.item_ids
    return sorted(
        (users[u], items[i])
        for u, i in zip(found.users.tolist(), found.items.tolist(), strict=True)
    )
