"""Partitions of users among clients: one for each user, or K platforms with disjoint users.

A partition is one tensor, `owner` (U,): the client that holds each user. Since users are disjoint,
a user's vector belongs to exactly one client and can stay private. Where platforms differ in what
they sell, `by_catalogue` makes a user of each platform of everybody who is on several.

Letters: U users, I items, K platforms, V users of one platform each.

Source: Hsu, Qi, Brown 2019, "Measuring the effects of non-identical data distribution for federated
visual classification", section 3 (Dirichlet).
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedlab.core import Partition, knob, register, require, stream
from fedlab.data.interactions import Catalogue, Interactions

GROUP = "partition"


def platforms() -> int:
    """The knob of all partitions into platforms."""
    count: int = knob(
        10, 1, 10_000, "clients", "how many platforms", live=False, usual=(2, 50), group=GROUP
    )
    return count


def one_per_user(train: Interactions) -> Tensor:
    """The owner (U,) of each user, where every user is a client.

    >>> from fedlab.data import load
    >>> one_per_user(load())[:3].tolist()
    [0, 1, 2]
    """
    return torch.arange(train.user_count)


def equal(train: Interactions, platforms: int, seed: int = 0) -> Tensor:
    """The owner (U,) of each user: K platforms of equal size with users drawn at random, as in IID.

    platforms: K, from 1 to U, else `ParameterError`.

    >>> from fedlab.data import load
    >>> torch.bincount(equal(load(), 4)).tolist()
    [168, 168, 168, 167]
    """
    _check(train, platforms)
    owner = torch.empty(train.user_count, dtype=torch.int64)
    order = torch.randperm(train.user_count, generator=stream(seed, "partition"))
    owner[order] = torch.arange(train.user_count) % platforms
    return owner


def by_activity(train: Interactions, platforms: int) -> Tensor:
    """The owner (U,) of each user: K platforms of equal size, users sorted by activity.

    platforms: K, from 1 to U, else `ParameterError`.

    >>> from fedlab.data import load
    >>> torch.bincount(by_activity(load(), 4)).tolist()
    [168, 168, 168, 167]
    """
    _check(train, platforms)
    activity = torch.bincount(train.users, minlength=train.user_count)
    return activity.argsort(stable=True).argsort() * platforms // train.user_count


def by_genre(train: Interactions, platforms: int, alpha: float = 0.3, seed: int = 0) -> Tensor:
    """The owner (U,) of each user: K platforms whose users prefer different genres.

    The users of each favourite genre are spread over platforms by Dirichlet(alpha). With a small
    alpha (0.1) each genre is on one or two platforms; with a large one (100) platforms are nearly
    IID. An empty platform takes a user from the largest. platforms: K, from 1 to U. alpha: above 0.
    Raises `ParameterError` for values out of range. Source: Hsu, Qi, Brown 2019, section 3.

    >>> from fedlab.data import load
    >>> len(torch.bincount(by_genre(load(), 4)))
    4
    """
    _check(train, platforms)
    require(
        0 < alpha < float("inf"), "alpha", alpha, "choose a positive number, say from 0.05 to 100"
    )
    rng = np.random.default_rng(stream(seed, "partition").initial_seed() & (2**63 - 1))
    favourite = favourite_genre(train)
    shares = rng.dirichlet([alpha] * platforms, int(favourite.max()) + 1).cumsum(1)
    passed = rng.random((len(favourite), 1)) > shares[favourite]
    owner = torch.from_numpy(passed.sum(1).clip(max=platforms - 1))
    while len(empty := (torch.bincount(owner, minlength=platforms) == 0).nonzero()):
        fullest = torch.bincount(owner, minlength=platforms).argmax()
        owner[(owner == fullest).nonzero()[0]] = empty[0]
    return owner


def main_genres(catalogue: Catalogue, platforms: int) -> Tensor:
    """The platform (I,) of each item, where K platforms divide a catalogue by genre.

    An item goes by the genre that fewest items share with it, say Western for a Drama that is one,
    and without any by the first. Genres go, those of most items first, to the platform that has
    fewest. platforms: K, from 1 to the number of genres that are some item's main one, else
    `ParameterError`.

    >>> from fedlab.data import load
    >>> main_genres(load().catalogue, 3).bincount().tolist()
    [3064, 2949, 3053]
    """
    genres = catalogue.categories
    main = torch.where(genres, genres.sum(0).float(), torch.inf).argmin(1)
    sizes = torch.bincount(main, minlength=genres.shape[1])
    fits = isinstance(platforms, int) and 1 <= platforms <= int((sizes > 0).sum())
    fix = f"choose a whole number from 1 to {int((sizes > 0).sum())}, as many as there are genres"
    require(fits, "platforms", platforms, fix)
    place, held = torch.zeros_like(sizes), torch.zeros(platforms, dtype=torch.int64)
    for genre in sizes.argsort(descending=True, stable=True).tolist():
        place[genre] = held.argmin()
        held[place[genre]] += sizes[genre]
    return place[main]


def by_catalogue(
    interactions: Interactions, platform: Tensor, least: int = 1
) -> tuple[Interactions, Tensor]:
    """The interactions as platforms with disjoint catalogues see them, and their users' owners.

    Each person is another user (of V) on every platform on which there are `least` or more
    interactions of theirs; the others are left out. Nobody knows that two of them are one person.
    Items keep their numbers. platform (I,): of each item, 0..K-1. Returns the interactions and the
    owner (V,) of each user. Raises `ParameterError` for a platform that is left without users.

    >>> from fedlab.data import load
    >>> ratings = load()
    >>> seen, owner = by_catalogue(ratings, main_genres(ratings.catalogue, 3), least=10)
    >>> seen.user_count, owner.bincount().tolist()
    (1634, [575, 479, 580])
    """
    items, users, count = interactions.item_count, interactions.users, int(platform.max()) + 1
    fix = f"give the platform of each of the {items} items, a whole number of 0 or more"
    fits = platform.shape == (items,) and platform.dtype == torch.int64 and platform.min() >= 0
    require(bool(fits), "platform", (tuple(platform.shape), str(platform.dtype)), fix)
    require(isinstance(least, int) and least >= 1, "least", least, "choose 1 or more")
    pairs = users * count + platform[interactions.items]
    kept = torch.bincount(pairs)[pairs] >= least
    ids, own = pairs[kept].unique(return_inverse=True)
    empty = (torch.bincount(ids % count, minlength=count) == 0).nonzero()[:, 0].tolist()
    fix = f"no user of platform {empty[:1]} has so many interactions; ask for fewer, or join it"
    require(not empty, "least", least, fix)
    names = interactions.catalogue.user_ids
    here = [f"{names[each // count]} on {each % count}" for each in ids.tolist()]
    mine = interactions.take(kept)
    catalogue = replace(mine.catalogue, user_ids=tuple(here))
    return replace(mine, users=own, catalogue=catalogue), ids % count


def favourite_genre(train: Interactions) -> Tensor:
    """The genre (U,) with the largest ratio of a user's share to the share overall.

    >>> from fedlab.data import load
    >>> favourite_genre(load()).shape
    torch.Size([671])
    """
    genres = train.catalogue.categories[train.items].float()
    watched = 1e-9 + torch.zeros(train.user_count, genres.shape[1]).index_add_(
        0, train.users, genres
    )
    lift = watched / watched.sum(1, keepdim=True) / (watched.sum(0) / watched.sum() + 0.01)
    return lift.argmax(1)


def _check(train: Interactions, platforms: int) -> None:
    fits = isinstance(platforms, int) and 1 <= platforms <= train.user_count
    require(
        fits,
        "platforms",
        platforms,
        f"choose a whole number from 1 to {train.user_count}, the number of users",
    )


@register
class OnePerUser(Partition):
    """Every user is a client."""

    def owner(self, train: Interactions, seed: int) -> Tensor:
        """(U,) the client of each user."""
        return one_per_user(train)


@register
class Equal(Partition):
    """Platforms of equal size, with users drawn at random."""

    platforms: int = platforms()

    def owner(self, train: Interactions, seed: int) -> Tensor:
        """(U,) the client of each user."""
        return equal(train, self.platforms, seed)


@register
class ByActivity(Partition):
    """Platforms of equal size, from those whose users rate least to those whose users rate most."""

    platforms: int = platforms()

    def owner(self, train: Interactions, seed: int) -> Tensor:
        """(U,) the client of each user."""
        return by_activity(train, self.platforms)


@register
class ByGenre(Partition):
    """Platforms whose users differ in taste."""

    platforms: int = platforms()
    alpha: float = knob(
        0.3,
        0.001,
        1_000.0,
        "",
        "by genre: how alike platforms are (Dirichlet)",
        live=False,
        log=True,
        usual=(0.05, 100.0),
        group=GROUP,
    )

    def owner(self, train: Interactions, seed: int) -> Tensor:
        """(U,) the client of each user."""
        return by_genre(train, self.platforms, self.alpha, seed)
