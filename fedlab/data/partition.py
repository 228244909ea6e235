"""Partitions of users among clients: one for each user, or K platforms with disjoint users.

A partition is one tensor, `owner` (U,): the client that holds each user. Since users are disjoint,
a user's vector belongs to exactly one client and can stay private.

Letters: U users, K platforms.

Source: Hsu, Qi, Brown 2019, "Measuring the effects of non-identical data distribution for federated
visual classification", section 3 (Dirichlet).
"""

import numpy as np
import torch
from torch import Tensor

from fedlab.core import Partition, knob, register, require, stream
from fedlab.data.interactions import Interactions

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
