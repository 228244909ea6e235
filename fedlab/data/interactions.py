"""Interactions as tensors: who met what, and what else there happens to be, say a rating or a time.

`Interactions` is one frozen table. A split is three of them over the same users and items
(`fedlab.data.split`). Nothing here knows of clients; a `Federation` gives each client its own rows.

Letters: n interactions, U users, I items, G categories.

Source: Harper, Konstan 2015, "The MovieLens datasets: history and context" (the bundled data).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from fedlab.core import DataError, Dataset, register, require

DATA = Path(__file__).with_name("bundled")
PART = 1 << 16  # rows that are looked through at a time
GIVE, OR_NOT = "give a table of items, items=FILE,", "or choose what needs none"
WITHOUT = {
    "values": "no ratings; name their column when you read them, rating=..., or train on clicks",
    "times": "no times; name their column when you read them, time=...",
    "titles": f"no titles; {GIVE} with a column of titles, {OR_NOT}",
    "years": f"no years; {GIVE} with a column of years, {OR_NOT}",
    "texts": f"no texts; {GIVE} with a column of texts, {OR_NOT}",
    "categories": f"no categories; {GIVE} with such a column, {OR_NOT}",
}


def _asked(columns: Mapping[str, Any], name: str) -> Any:
    """A column that may be there; raises `DataError` where it is not."""
    if name not in columns:
        raise DataError(f"these data have {WITHOUT[name]}")
    return columns[name]


@dataclass(frozen=True)
class Catalogue:
    """The users and items, and what is known of the items.

    user_ids (U,), item_ids (I,): ids as in the source. columns: what there is of `titles` (I,),
    texts without the year; `years` (I,), int, 0 when unknown; `texts` (I,); `categories` (I, G)
    bool, and `category_names` (G,). Each is an attribute, too, which raises `DataError` where these
    data have no such column.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def titles(self) -> tuple[str, ...]:
        """(I,) the titles."""
        found: tuple[str, ...] = _asked(self.columns, "titles")
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """(I,) what to call items: titles where there are any, else ids."""
        return self.titles if "titles" in self.columns else self.item_ids

    @property
    def texts(self) -> tuple[str, ...]:
        """(I,) a longer text for each item."""
        found: tuple[str, ...] = _asked(self.columns, "texts")
        return found

    @property
    def years(self) -> Tensor:
        """(I,) int, 0 when unknown."""
        found: Tensor = _asked(self.columns, "years")
        return found

    @property
    def categories(self) -> Tensor:
        """(I, G) bool: which items are of which category."""
        found: Tensor = _asked(self.columns, "categories")
        return found

    @property
    def category_names(self) -> tuple[str, ...]:
        """(G,) the categories, say genres of films."""
        _asked(self.columns, "categories")
        found: tuple[str, ...] = self.columns["category_names"]
        return found

    def of_items(self, kept: Tensor) -> "Catalogue":
        """The same users with some of the items, numbers (I',)."""
        rows, columns = kept.tolist(), dict(self.columns)
        for name in columns.keys() - {"category_names"}:
            column = columns[name]
            columns[name] = (
                column[kept] if isinstance(column, Tensor) else tuple(column[i] for i in rows)
            )
        return replace(self, item_ids=tuple(self.item_ids[i] for i in rows), columns=columns)

    def of_users(self, kept: Tensor) -> "Catalogue":
        """The same items with some of the users, numbers (U',)."""
        return replace(self, user_ids=tuple(self.user_ids[u] for u in kept.tolist()))


@dataclass(frozen=True, repr=False)
class Interactions:
    """A frozen, checked table of who met what, with at most one row for each (user, item) pair.

    users, items (n,): numbers from 0 to U - 1 and I - 1. columns: what else there is, each (n,):
    `values`, float32 ratings; `times`, int64 seconds since 1970; both are attributes, too, which
    raise `DataError` where these data have no such column. notes: how the table was read. Raises
    `DataError` for columns of different lengths, unknown numbers, values that are not finite, and
    pairs that occur twice.

    >>> films = load()
    >>> len(films), films.user_count, films.item_count
    (100004, 671, 9066)
    """

    users: Tensor
    items: Tensor
    catalogue: Catalogue
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Check what all later code relies on."""
        columns = {"users": self.users, "items": self.items, **self.columns}
        if len({len(column) for column in columns.values()}) > 1:
            raise DataError(
                f"columns have lengths { {n: len(c) for n, c in columns.items()} }; make them equal"
            )
        for name, count in (("users", self.user_count), ("items", self.item_count)):
            column = columns[name]
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) < count:
                bad = int(((column < 0) | (column >= count)).nonzero()[0])
                raise DataError(
                    f"{name}[{bad}]={int(column[bad])} is unknown; use 0 to {count - 1}"
                )
        for name, column in self.columns.items():
            if column.is_floating_point() and not bool(column.isfinite().all()):
                bad = int((~column.isfinite()).nonzero()[0])
                raise DataError(f"{name}[{bad}]={float(column[bad])} is not finite; remove the row")
        pair = next(self._twice(), None)
        if pair is not None:
            user, item = divmod(pair, self.item_count)
            raise DataError(
                f"user {user} met item {item} more than once; keep one row of each pair"
            )

    def _twice(self) -> Iterator[int]:
        """Pairs that stand in two rows; in parts where users are sorted, which saves memory."""
        ends = [len(self)]
        if bool((self.users[1:] >= self.users[:-1]).all()):
            # a part goes on to the end of its last user; a copy, as torch warns of steps
            last = self.users[PART - 1 :: PART].contiguous()
            ends = [*torch.searchsorted(self.users, last, right=True).tolist(), len(self)]
        for start, end in pairwise([0, *ends]):
            pairs = self.pairs(slice(start, end)).numpy()
            pairs.sort()
            yield from pairs[1:][pairs[1:] == pairs[:-1]].tolist()

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        more = "".join(f", {name}" for name in self.columns)
        return (
            f"<{len(self):,} interactions of {self.user_count:,} users with {self.item_count:,} "
            f"items{more}>"
        )

    @property
    def values(self) -> Tensor:
        """(n,) float32 ratings, say stars, unless standardised."""
        found: Tensor = _asked(self.columns, "values")
        return found

    @property
    def times(self) -> Tensor:
        """(n,) int64 seconds since 1970."""
        found: Tensor = _asked(self.columns, "times")
        return found

    @cached_property
    def user_count(self) -> int:
        """U, the users of the catalogue, with or without rows here."""
        return len(self.catalogue.user_ids)

    @cached_property
    def item_count(self) -> int:
        """I, the items of the catalogue, met here or not."""
        return len(self.catalogue.item_ids)

    def pairs(self, rows: slice = slice(None)) -> Tensor:
        """One number for each (user, item) pair (n,), or those of some rows: user * I + item."""
        return (self.users[rows] * self.item_count).add_(self.items[rows])

    def take(self, rows: Tensor) -> "Interactions":
        """The rows of a mask (n,) or of row numbers."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return replace(self, users=self.users[rows], items=self.items[rows], columns=columns)

    def having(self, **columns: Tensor) -> "Interactions":
        """The same with some columns (n,) in place of those of these names, or beside them.

        >>> films = load()
        >>> bool((films.having(values=films.values * 2).values == films.values * 2).all())
        True
        """
        return replace(self, columns={**self.columns, **columns})

    def item_counts(self) -> Tensor:
        """The number of rows of each item (I,), as floats: its popularity."""
        return torch.bincount(self.items, minlength=self.item_count).float()

    def user_counts(self) -> Tensor:
        """The number of rows of each user (U,)."""
        return torch.bincount(self.users, minlength=self.user_count)


def load(name: str = "ml-latest-small") -> Interactions:
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
        "only 'ml-latest-small' comes along; use read(path) for others",
    )
    with np.load(DATA / f"{name}.npz") as file:
        column = {key: file[key] for key in file.files}
    names = tuple(column["genres"].tobytes().decode().split("\n"))
    bits = torch.from_numpy(column["genre_bits"].astype(np.int64))
    about = {
        "titles": tuple(column["titles"].tobytes().decode().split("\n")),
        "years": torch.from_numpy(column["year"].astype(np.int64)),
        "categories": (bits[:, None] >> torch.arange(len(names)) & 1).bool(),
        "category_names": names,
    }
    user_ids, item_ids = (tuple(map(str, column[key])) for key in ("user_id", "item_id"))
    users, items, times = (
        torch.from_numpy(column[key].astype(np.int64)) for key in ("user", "item", "time")
    )
    values = torch.from_numpy(column["half_stars"] / np.float32(2))
    return Interactions(
        users, items, Catalogue(user_ids, item_ids, about), {"values": values, "times": times}
    )


class Kept(NamedTuple):
    """What `at_least` gives, three things: interactions, and who and what is in them.

    users (U',), items (I',): the numbers that those who are kept had before, in their order.
    """

    interactions: Interactions
    users: Tensor
    items: Tensor

    def __getattr__(self, name: str) -> NoReturn:
        """Who takes the three for the interactions is told."""
        raise AttributeError(
            f"at_least gives three things, and none is called {name!r}; take the interactions: "
            "few, users, items = at_least(...), or at_least(...).interactions"
        )


def at_least(interactions: Interactions, *, users: int = 0, items: int = 0) -> Kept:
    """Keep users and items with enough interactions; returns three things, see `Kept`.

    users: how many of each user; items: how many of each item. Both hold for what is left: whoever
    falls short goes, until nobody does. With 0 all stay, with or without rows. Users (U',) and
    items (I',) are numbered anew, in their order. Raises `ParameterError` where nothing is left.

    >>> few, users, items = at_least(load(), items=300)
    >>> few.item_count == len(items), few.user_count == len(users) == 671
    (True, True)
    >>> len(at_least(load(), items=300).interactions) == len(few)  # where no number is needed
    True
    """
    for name, least in (("users", users), ("items", items)):
        whole = isinstance(least, int) and least >= 0
        require(whole, name, least, "choose a whole number, 0 to keep all")
    keep_users = torch.ones(interactions.user_count, dtype=torch.bool)
    keep_items, before = torch.ones(interactions.item_count, dtype=torch.bool), -1
    while before != (before := int(keep_users.sum()) + int(keep_items.sum())):
        rows = keep_users[interactions.users] & keep_items[interactions.items]
        mine, theirs = interactions.users[rows], interactions.items[rows]
        keep_users &= torch.bincount(mine, minlength=len(keep_users)) >= users
        keep_items &= torch.bincount(theirs, minlength=len(keep_items)) >= items
    rows = keep_users[interactions.users] & keep_items[interactions.items]
    most = int(interactions.user_counts().max()), int(interactions.item_counts().max())
    require(
        bool(rows.any()),
        "users, items",
        (users, items),
        f"nothing is left; the busiest user has {most[0]}, the most popular item {most[1]}",
    )
    return Kept(*_numbered_anew(interactions, rows, keep_users, keep_items))


def _numbered_anew(
    every: Interactions, rows: Tensor, users: Tensor, items: Tensor
) -> tuple[Interactions, Tensor, Tensor]:
    """The rows (n,), a mask, with the users (U,) and items (I,) of masks numbered anew."""
    kept = users.nonzero()[:, 0], items.nonzero()[:, 0]
    at = users.cumsum(0) - 1, items.cumsum(0) - 1
    some = every.take(rows)
    catalogue = every.catalogue.of_users(kept[0]).of_items(kept[1])
    return replace(
        some, users=at[0][some.users], items=at[1][some.items], catalogue=catalogue
    ), *kept


def of_users(interactions: Interactions, chosen: Tensor) -> Interactions:
    """The rows of the chosen users, a mask (U,), who are numbered anew."""
    items = torch.ones(interactions.item_count, dtype=torch.bool)
    return _numbered_anew(interactions, chosen[interactions.users], chosen, items)[0]


@register
class LatestSmall(Dataset):
    """MovieLens ml-latest-small, which comes with the package."""

    title = "ml-latest-small"

    def load(self) -> Interactions:
        """All its ratings."""
        return load(self.name)
