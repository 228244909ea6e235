"""Who rated what, when: MovieLens as tensors, split by time.

`Ratings` is one frozen table; a split is three of them over the same users and items. Nothing here knows
about clients: `fedlab.federation` hands each client its own rows.

Letters: n ratings, U users, I items, G genres.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedlab.core import require
from fedlab.readers import DataError, read_columns

DATA = Path(__file__).resolve().parents[1] / "data"


@dataclass(frozen=True)
class Catalogue:
    """What is known of users and items besides the ratings.

    user_ids (U,), item_ids (I,): ids as in the source. titles (I,), without the year. years (I,): int, 0
    when unknown. genres (I, G): bool. genre_names (G,).
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    years: Tensor
    genres: Tensor
    genre_names: tuple[str, ...]


@dataclass(frozen=True)
class Ratings:
    """A table of ratings, one a row: frozen, checked, at most one for each (user, item).

    users, items (n,): row numbers 0..U-1 and 0..I-1; values (n,): float32, stars unless standardised;
    times (n,): int64 seconds since 1970. Raises `DataError` on bad columns.
    """

    users: Tensor
    items: Tensor
    values: Tensor
    times: Tensor
    catalogue: Catalogue

    def __post_init__(self) -> None:
        """Check what every later line relies on."""
        sizes = {len(column) for column in (self.users, self.items, self.values, self.times)}
        if len(sizes) > 1:
            raise DataError(f"columns users, items, values, times have lengths {sorted(sizes)}; make them equal")
        for name, column, count in (("users", self.users, self.user_count), ("items", self.items, self.item_count)):
            bad = ((column < 0) | (column >= count)).nonzero()
            if len(bad):
                raise DataError(f"{name}[{int(bad[0])}]={int(column[bad[0]])} is unknown; use 0 to {count - 1}")
        bad = (~self.values.isfinite()).nonzero()
        if len(bad):
            raise DataError(f"values[{int(bad[0])}]={float(self.values[bad[0]])} is not finite; remove the row")
        pairs = self.pairs().sort().values
        twice = (pairs[1:] == pairs[:-1]).nonzero()
        if len(twice):
            user, item = divmod(int(pairs[twice[0]]), self.item_count)
            raise DataError(f"user {user} rated item {item} more than once; keep one rating for each pair")

    def __len__(self) -> int:
        return len(self.users)

    @property
    def user_count(self) -> int:
        """U, users of the catalogue, with or without ratings here."""
        return len(self.catalogue.user_ids)

    @property
    def item_count(self) -> int:
        """I, items of the catalogue, rated here or not."""
        return len(self.catalogue.item_ids)

    def pairs(self) -> Tensor:
        """(n,) one number for each (user, item): user * I + item."""
        return self.users * self.item_count + self.items

    def take(self, rows: Tensor) -> "Ratings":
        """The ratings at `rows`, a mask (n,) or row numbers."""
        columns = (self.users[rows], self.items[rows], self.values[rows], self.times[rows])
        return Ratings(*columns, self.catalogue)

    def item_counts(self) -> Tensor:
        """(I,) ratings of each item, float: popularity."""
        return torch.bincount(self.items, minlength=self.item_count).float()


@dataclass(frozen=True)
class Split:
    """Train, validation and test ratings. Fit on `train`, choose on `validation`, report `test` once."""

    train: Ratings
    validation: Ratings
    test: Ratings
    mean: float = 0.0   # subtracted from every value by `standardise`
    std: float = 1.0    # every value was divided by it, so an RMSE times this is in stars


def load(name: str = "ml-latest-small") -> Ratings:
    """MovieLens ml-latest-small (October 2016), offline: 100,004 ratings, 671 users, 9,066 movies.

    Sorted by user, time, movie. Source, licence and citation: `data/README.md`.
    """
    require(name == "ml-latest-small", "name", name, "only 'ml-latest-small' comes along; use read(folder) for others")
    with np.load(DATA / f"{name}.npz") as file:
        column = {key: file[key] for key in file.files}
    genre_names = tuple(column["genres"].tobytes().decode().split("\n"))
    bits = torch.from_numpy(column["genre_bits"].astype(np.int64))
    catalogue = Catalogue(
        user_ids=tuple(map(str, column["user_id"])), item_ids=tuple(map(str, column["item_id"])),
        titles=tuple(column["titles"].tobytes().decode().split("\n")),
        years=torch.from_numpy(column["year"].astype(np.int64)),
        genres=(bits[:, None] >> torch.arange(len(genre_names)) & 1).bool(), genre_names=genre_names)
    users, items, times = (torch.from_numpy(column[key].astype(np.int64)) for key in ("user", "item", "time"))
    return Ratings(users, items, torch.from_numpy(column["half_stars"] / np.float32(2)), times, catalogue)


def read(folder: str | Path) -> Ratings:
    """Ratings from a folder: ML-100K as published or from RecBole, or a MovieLens CSV or 1M release.

    Users and items without a rating keep no row; ids are sorted as numbers where they are numbers, ratings by user and
    time. Ratings of the same second stay in the order of the file: ML-100K numbers its films by popularity, nearly, so
    that to go by number there would hold out rare films.
    Raises `DataError` with file:line on the first bad line.
    """
    columns = read_columns(folder)
    at = {item: i for i, item in enumerate(columns["item_id"])}
    user_ids, item_ids = _ordered(columns["user"]), _ordered(columns["item"])
    rows = [at[item] for item in item_ids]
    names = sorted({g for genres in columns["genres"] for g in genres})
    catalogue = Catalogue(
        user_ids=user_ids, item_ids=item_ids, titles=tuple(columns["title"][r] for r in rows),
        years=torch.tensor([columns["year"][r] for r in rows]), genre_names=tuple(names),
        genres=torch.tensor([[g in columns["genres"][r] for g in names] for r in rows], dtype=torch.bool))
    users, items = _numbered(columns["user"], user_ids), _numbered(columns["item"], item_ids)
    values = torch.tensor(columns["rating"], dtype=torch.float32)
    ratings = Ratings(users, items, values, torch.tensor(columns["time"]), catalogue)
    return ratings.take(torch.from_numpy(np.lexsort((ratings.times, users))))


def _ordered(ids: Sequence[str]) -> tuple[str, ...]:
    unique = set(ids)
    return tuple(sorted(unique, key=lambda i: (0, int(i), i) if i.isdecimal() else (1, 0, i)))


def _numbered(ids: Sequence[str], order: Sequence[str]) -> Tensor:
    at = {name: row for row, name in enumerate(order)}
    return torch.tensor([at[name] for name in ids])


def from_latest(ratings: Ratings) -> Tensor:
    """(n,) how many ratings of the same user come later: 0 is the user's last. Ties go by the order of the rows."""
    order = torch.from_numpy(np.lexsort((ratings.times, ratings.users)))
    ends = torch.bincount(ratings.users, minlength=ratings.user_count).cumsum(0)
    later = torch.empty_like(order)
    later[order] = ends[ratings.users[order]] - 1 - torch.arange(len(order))
    return later


def rated_often(ratings: Ratings, least: int) -> tuple[Ratings, Tensor]:
    """(the ratings of the items that have `least` or more, numbered anew; (I',) the numbers they had before)."""
    kept = (ratings.item_counts() >= least).nonzero()[:, 0]
    require(len(kept) > 0, "least", least, f"no item has so many; choose {int(ratings.item_counts().max())} or fewer")
    known, at = ratings.catalogue, torch.full((ratings.item_count,), -1)
    at[kept] = torch.arange(len(kept))
    fewer = replace(known, item_ids=tuple(known.item_ids[i] for i in kept), years=known.years[kept],
                    titles=tuple(known.titles[i] for i in kept), genres=known.genres[kept])
    rows = at[ratings.items] >= 0
    return Ratings(ratings.users[rows], at[ratings.items[rows]], ratings.values[rows], ratings.times[rows], fewer), kept


def strictly_later(ratings: Ratings) -> Tensor:
    """(n,) how many ratings of the same user have a later time; ratings of the same second count alike."""
    moments = torch.from_numpy(np.unique(ratings.times, return_inverse=True)[1])
    moments = moments + ratings.users * (len(ratings) + 1)
    ends = torch.bincount(ratings.users, minlength=ratings.user_count).cumsum(0)
    return ends[ratings.users] - torch.searchsorted(moments.sort().values, moments, right=True)


def recent(ratings: Ratings, recency: float) -> Tensor:
    """(n,) weight of each rating in its user's history, (1 + ratings strictly later) ** -recency: 1 for the last."""
    require(recency >= 0, "recency", recency, "choose 0, which weighs all alike, or more, say 1")
    return (1 + strictly_later(ratings).double()).pow(-recency).float()


def leave_one_out(ratings: Ratings) -> Split:
    """Each user's last rating to test, the one before to validation, the rest to train.

    Raises `DataError` for a user with fewer than three ratings.
    """
    few = (torch.bincount(ratings.users, minlength=ratings.user_count) < 3).nonzero()
    if len(few):
        raise DataError(f"user {int(few[0])} has fewer than 3 ratings; leave-one-out needs 3, drop such users first")
    later = from_latest(ratings)
    return Split(ratings.take(later > 1), ratings.take(later == 1), ratings.take(later == 0))


def split_by_time(ratings: Ratings, validation: float = 0.1, test: float = 0.1) -> Split:
    """Each user's latest share `test` to test, the share `validation` before it, the rest to train.

    Shares of a user's ratings are rounded down, so a user with few ratings may have none in a part.
    """
    for name, share in (("validation", validation), ("test", test)):
        require(0 <= share < 1, name, share, "choose a share from 0 to below 1")
    require(validation + test < 1, "validation + test", validation + test, "leave something to train on")
    later, counts = from_latest(ratings), torch.bincount(ratings.users, minlength=ratings.user_count)
    own = counts[ratings.users].double()
    last, held = (own * test).long(), (own * test).long() + (own * validation).long()
    middle = (later >= last) & (later < held)
    return Split(ratings.take(later >= held), ratings.take(middle), ratings.take(later < last))


def standardise(split: Split) -> Split:
    """Subtract the mean of the train values and divide by their standard deviation, in all three parts."""
    require(len(split.train) > 1, "train", len(split.train), "needs two ratings or more to have a spread")
    mean, std = float(split.train.values.mean()), float(split.train.values.std())
    require(std > 0, "train std", std, "all train ratings are equal; there is nothing to standardise")
    train, validation, test = (
        replace(part, values=(part.values - mean) / std) for part in (split.train, split.validation, split.test))
    return Split(train, validation, test, mean * split.std + split.mean, std * split.std)
