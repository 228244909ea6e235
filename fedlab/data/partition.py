"""Ratings dealt out to clients: one per user, or K platforms that hold disjoint users.

A partition is one tensor, `owner` (U,): the client that holds each user. Since users are disjoint,
a user's vector lives on exactly one client and can stay private.

Letters: N clients, C in a cohort, n examples, U users, I items, K platforms.
Sources: Hsu, Qi, Brown 2019, "Measuring the effects of non-identical data distribution", section 3
(Dirichlet); He et al. 2017, "Neural collaborative filtering", section 4.1 (sampled negatives).
"""

import numpy as np
import torch
from torch import Tensor

from fedlab.core import require, stream
from fedlab.data.interactions import Ratings


def one_per_user(train: Ratings) -> Tensor:
    """(U,) every user is a client."""
    return torch.arange(train.user_count)


def equal(train: Ratings, platforms: int, seed: int = 0) -> Tensor:
    """(U,) K platforms of equal size, users drawn at random: as IID as platforms get."""
    _check(train, platforms)
    owner = torch.empty(train.user_count, dtype=torch.int64)
    order = torch.randperm(train.user_count, generator=stream(seed, "partition"))
    owner[order] = torch.arange(train.user_count) % platforms
    return owner


def by_activity(train: Ratings, platforms: int) -> Tensor:
    """(U,) K platforms of equal size.

    The first holds the users with the fewest ratings, the last the most.
    """
    _check(train, platforms)
    activity = torch.bincount(train.users, minlength=train.user_count)
    return activity.argsort(stable=True).argsort() * platforms // train.user_count


def by_genre(train: Ratings, platforms: int, alpha: float = 0.3, seed: int = 0) -> Tensor:
    """(U,) K platforms that differ in taste.

    Users of one favourite genre fall on platforms by Dirichlet(alpha).

    Small alpha (0.1): each genre on one or two platforms; large alpha (100): nearly IID. A platform
    left empty takes a user from the fullest one.
    """
    _check(train, platforms)
    require(0 < alpha < float("inf"), "alpha", alpha,
            "choose a positive number, say from 0.05 to 100")
    key = stream(seed, "partition").initial_seed() & (2**63 - 1)
    rng = np.random.default_rng(key)
    favourite = favourite_genre(train)
    shares = rng.dirichlet([alpha] * platforms, int(favourite.max()) + 1).cumsum(1)
    passed = rng.random((len(favourite), 1)) > shares[favourite]
    owner = torch.from_numpy(passed.sum(1).clip(max=platforms - 1))
    while len(empty := (torch.bincount(owner, minlength=platforms) == 0).nonzero()):
        fullest = torch.bincount(owner, minlength=platforms).argmax()
        owner[(owner == fullest).nonzero()[0]] = empty[0]
    return owner


def favourite_genre(train: Ratings) -> Tensor:
    """(U,) the genre a user watches most beyond what everybody does (its share over the overall share)."""
    genres = train.catalogue.genres[train.items].float()
    watched = torch.zeros(train.user_count, genres.shape[1]).index_add_(0, train.users, genres)
    watched = watched + 1e-9
    lift = watched / watched.sum(1, keepdim=True) / (watched.sum(0) / watched.sum() + 0.01)
    return lift.argmax(1)


def _check(train: Ratings, platforms: int) -> None:
    fits = isinstance(platforms, int) and 1 <= platforms <= train.user_count
    require(fits, "platforms", platforms,
            f"choose a whole number from 1 to {train.user_count}, the number of users")
