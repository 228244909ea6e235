"""Interactions as tensors: who rated what, and when.

`Ratings` is one frozen table. A split is three of them over the same users and items
(`fedlab.data.split`). Nothing here knows of clients; a `Federation` gives each client its own rows.

Letters: n ratings, U users, I items, G genres.

Source: Harper, Konstan 2015, "The MovieLens datasets: history and context" (the bundled data).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedlab.core import Dataset, register, require
from fedlab.data.readers import DataError, read_columns

DATA = Path(__file__).with_name("bundled")


@dataclass(frozen=True)
class Catalogue:
    """What is known of users and items besides the ratings.

    user_ids (U,), item_ids (I,): ids as in the source. titles (I,): without the year. years (I,):
    int, 0 when unknown. genres (I, G): bool. genre_names (G,).
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    years: Tensor
    genres: Tensor
    genre_names: tuple[str, ...]


@dataclass(frozen=True)
class Ratings:
    """A frozen, checked table with one rating a row, and at most one for each (user, item) pair.

    users, items (n,): numbers from 0 to U - 1 and I - 1. values (n,): float32 stars, unless
    standardised. times (n,): int64 seconds since 1970. Raises `DataError` for columns of different
    lengths, unknown numbers, values that are not finite, and pairs that occur twice.

    >>> ratings = load()
    >>> len(ratings), ratings.user_count, ratings.item_count
    (100004, 671, 9066)
    """

    users: Tensor
    items: Tensor
    values: Tensor
    times: Tensor
    catalogue: Catalogue

    def __post_init__(self) -> None:
        """Check what all later code relies on."""
        sizes = {len(column) for column in (self.users, self.items, self.values, self.times)}
        if len(sizes) > 1:
            raise DataError(
                f"columns users, items, values, times have lengths {sorted(sizes)}; make them equal"
            )
        for name, column, count in (
            ("users", self.users, self.user_count),
            ("items", self.items, self.item_count),
        ):
            bad = ((column < 0) | (column >= count)).nonzero()
            if len(bad):
                raise DataError(
                    f"{name}[{int(bad[0])}]={int(column[bad[0]])} is unknown; use 0 to {count - 1}"
                )
        bad = (~self.values.isfinite()).nonzero()
        if len(bad):
            raise DataError(
                f"values[{int(bad[0])}]={float(self.values[bad[0]])} is not finite; remove the row"
            )
        pairs = self.pairs().sort().values
        twice = (pairs[1:] == pairs[:-1]).nonzero()
        if len(twice):
            user, item = divmod(int(pairs[twice[0]]), self.item_count)
            raise DataError(
                f"user {user} rated item {item} more than once; keep one rating for each pair"
            )

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def user_count(self) -> int:
        """U, the users of the catalogue, with or without ratings here."""
        return len(self.catalogue.user_ids)

    @cached_property
    def item_count(self) -> int:
        """I, the items of the catalogue, rated here or not."""
        return len(self.catalogue.item_ids)

    def pairs(self) -> Tensor:
        """One number for each (user, item) pair (n,): user * I + item."""
        return self.users * self.item_count + self.items

    def take(self, rows: Tensor) -> "Ratings":
        """The ratings at `rows`: a mask (n,) or row numbers."""
        return Ratings(
            self.users[rows], self.items[rows], self.values[rows], self.times[rows], self.catalogue
        )

    def item_counts(self) -> Tensor:
        """The number of ratings of each item (I,), as floats: its popularity."""
        return torch.bincount(self.items, minlength=self.item_count).float()


def load(name: str = "ml-latest-small") -> Ratings:
    """MovieLens ml-latest-small (October 2016), which comes with the package.

    It has 100,004 ratings of 9,066 films by 671 users, sorted by user, time and film. Source,
    licence and citation: `data/README.md`. Raises `ParameterError` for any other name.

    >>> load().catalogue.titles[0]
    'Toy Story'
    """
    require(
        name == "ml-latest-small",
        "name",
        name,
        "only 'ml-latest-small' comes along; use read(folder) for others",
    )
    with np.load(DATA / f"{name}.npz") as file:
        column = {key: file[key] for key in file.files}
    genre_names = tuple(column["genres"].tobytes().decode().split("\n"))
    bits = torch.from_numpy(column["genre_bits"].astype(np.int64))
    catalogue = Catalogue(
        user_ids=tuple(map(str, column["user_id"])),
        item_ids=tuple(map(str, column["item_id"])),
        titles=tuple(column["titles"].tobytes().decode().split("\n")),
        years=torch.from_numpy(column["year"].astype(np.int64)),
        genres=(bits[:, None] >> torch.arange(len(genre_names)) & 1).bool(),
        genre_names=genre_names,
    )
    users, items, times = (
        torch.from_numpy(column[key].astype(np.int64)) for key in ("user", "item", "time")
    )
    return Ratings(
        users, items, torch.from_numpy(column["half_stars"] / np.float32(2)), times, catalogue
    )


def read(folder: str | Path) -> Ratings:
    """Ratings from a folder: MovieLens 100K, 1M or a CSV release, or RecBole's atomic files.

    Users and items without a rating get no row. Ids are sorted as numbers where they are numbers;
    ratings are sorted by user and time. Ratings of the same second keep the order of the file:
    since ML-100K numbers its films nearly by popularity, sorting them by number would hold out rare
    films. Raises `DataError` with file and line at the first bad line.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "ratings.dat").write_text("1::7::4::978300760")
    >>> _ = (folder / "movies.dat").write_text("7::Heat (1995)::Action|Crime")
    >>> read(folder).values
    tensor([4.])
    """
    columns = read_columns(folder)
    at = {item: i for i, item in enumerate(columns["item_id"])}
    user_ids, item_ids = _ordered(columns["user"]), _ordered(columns["item"])
    rows = [at[item] for item in item_ids]
    names = sorted({g for genres in columns["genres"] for g in genres})
    catalogue = Catalogue(
        user_ids=user_ids,
        item_ids=item_ids,
        titles=tuple(columns["title"][r] for r in rows),
        years=torch.tensor([columns["year"][r] for r in rows]),
        genre_names=tuple(names),
        genres=torch.tensor(
            [[g in columns["genres"][r] for g in names] for r in rows], dtype=torch.bool
        ),
    )
    users, items = _numbered(columns["user"], user_ids), _numbered(columns["item"], item_ids)
    ratings = Ratings(
        users,
        items,
        torch.tensor(columns["rating"], dtype=torch.float32),
        torch.tensor(columns["time"]),
        catalogue,
    )
    return ratings.take(torch.from_numpy(np.lexsort((ratings.times, users))))


def _ordered(ids: Sequence[str]) -> tuple[str, ...]:
    unique = set(ids)
    return tuple(sorted(unique, key=lambda i: (0, int(i), i) if i.isdecimal() else (1, 0, i)))


def _numbered(ids: Sequence[str], order: Sequence[str]) -> Tensor:
    at = {name: row for row, name in enumerate(order)}
    return torch.tensor([at[name] for name in ids])


def rated_often(ratings: Ratings, least: int) -> tuple[Ratings, Tensor]:
    """(ratings of the items with `least` or more ratings, the former numbers (I',) of these items).

    The items are numbered anew. Raises `ParameterError` when no item has so many ratings.

    >>> few, numbers = rated_often(load(), 300)
    >>> few.item_count == len(numbers)
    True
    """
    kept = (ratings.item_counts() >= least).nonzero()[:, 0]
    require(
        len(kept) > 0,
        "least",
        least,
        f"no item has so many; choose {int(ratings.item_counts().max())} or fewer",
    )
    known = ratings.catalogue
    at = torch.full((ratings.item_count,), -1)
    at[kept] = torch.arange(len(kept))
    fewer = replace(
        known,
        item_ids=tuple(known.item_ids[i] for i in kept),
        years=known.years[kept],
        titles=tuple(known.titles[i] for i in kept),
        genres=known.genres[kept],
    )
    rows = at[ratings.items] >= 0
    return Ratings(
        ratings.users[rows],
        at[ratings.items[rows]],
        ratings.values[rows],
        ratings.times[rows],
        fewer,
    ), kept


def of_users(ratings: Ratings, chosen: Tensor) -> Ratings:
    """The ratings of the chosen users (U,), who are numbered anew."""
    rows, at = chosen[ratings.users], chosen.cumsum(0) - 1
    ids = tuple(
        name for name, mine in zip(ratings.catalogue.user_ids, chosen.tolist(), strict=True) if mine
    )
    return Ratings(
        at[ratings.users[rows]],
        ratings.items[rows],
        ratings.values[rows],
        ratings.times[rows],
        replace(ratings.catalogue, user_ids=ids),
    )


@register
class LatestSmall(Dataset):
    """MovieLens ml-latest-small, which comes with the package."""

    title = "ml-latest-small"

    def load(self) -> Ratings:
        """All its ratings."""
        return load(self.name)
