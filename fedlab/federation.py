"""Ratings dealt out to clients: one per user, or K platforms that hold disjoint users.

A partition is one tensor, `owner` (U,): the client that holds each user. Since users are disjoint, a user's
vector lives on exactly one client and can stay private.

Letters: N clients, C in a cohort, n examples, U users, I items, K platforms.
Sources: Hsu, Qi, Brown 2019, "Measuring the effects of non-identical data distribution", section 3
(Dirichlet); He et al. 2017, "Neural collaborative filtering", section 4.1 (sampled negatives).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedlab.core import ParameterError, Tree, require, stream
from fedlab.data import Ratings
from fedlab.readers import DataError


@dataclass(frozen=True)
class Federation:
    """Train ratings and the client that holds each user.

    train: the only ratings any client ever sees. owner (U,): client numbers 0..N-1, none of them empty.
    task: 'clicks' turns each rating into a click (target 1) beside drawn negatives (target 0);
    'ratings' keeps the values as targets. Raises `DataError` for an empty federation or client.
    """

    train: Ratings
    owner: Tensor
    task: str = "clicks"

    def __post_init__(self) -> None:
        """Check the partition."""
        require(self.task in ("clicks", "ratings"), "task", self.task, "choose one of clicks, ratings")
        if not len(self.train):
            raise DataError("an empty federation: train holds no ratings; hand it at least one")
        if len(self.owner) != self.train.user_count:
            raise DataError(f"owner has {len(self.owner)} entries; give one for each of {self.train.user_count} users")
        if len(empty := (self.counts == 0).nonzero()):
            raise DataError(f"client {int(empty[0])} of {len(self)} holds no train ratings; use fewer clients")

    def __len__(self) -> int:
        """N, the number of clients."""
        return int(self.owner.max()) + 1

    @cached_property
    def counts(self) -> Tensor:
        """(N,) train ratings of each client."""
        return torch.bincount(self.owner[self.train.users], minlength=len(self))

    @cached_property
    def _by_client(self) -> tuple[Tensor, Tensor]:
        """Row numbers of the ratings, client after client, and where each client starts."""
        order = self.owner[self.train.users].argsort(stable=True)
        return order, self.counts.cumsum(0) - self.counts

    @cached_property
    def _gaps(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `unseen` looks up: unseen items before each seen one (keyed by user), starts, seen counts."""
        pairs, seen = self.train.pairs().sort().values, torch.bincount(self.train.users, minlength=len(self.owner))
        users, starts = pairs // self.train.item_count, seen.cumsum(0) - seen
        place = torch.arange(len(pairs)) - starts[users]
        return pairs + users - place, starts, seen

    def unseen(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """(n,) for each user one item that the user has not in *train*, all equally likely.

        The r-th unseen item is r + (seen items with at most r unseen ones before them), so one sorted
        look-up serves all draws, without rejection. Held-out items are drawn like any other.
        """
        before, starts, seen = self._gaps
        items = self.train.item_count
        free = items - seen[users]
        if len(full := (free == 0).nonzero()):
            raise ParameterError(f"negatives: user {int(users[full[0]])} has seen all {items} items; set negatives=0")
        rank = (torch.rand(len(users), generator=generator, dtype=torch.float64) * free).long()
        return rank + torch.searchsorted(before, users * (items + 1) + rank, right=True) - starts[users]

    def draw(self, cohort: Tensor, epochs: int, negatives: int, generator: torch.Generator) -> Tree:
        """Examples of a round, shuffled within each client and epoch.

        cohort (C,): client numbers. Returns columns (n,): client (position in the cohort, sorted), epoch,
        user, item, target. For clicks each epoch draws fresh negatives.
        """
        order, starts = self._by_client
        counts = self.counts[cohort].repeat(epochs)
        client = torch.arange(len(cohort)).repeat(epochs).repeat_interleave(counts)
        epoch = torch.arange(epochs).repeat_interleave(len(client) // epochs)
        first = (starts[cohort].repeat(epochs) - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        rows = order[first + torch.arange(len(client))]
        users, items, target = self.train.users[rows], self.train.items[rows], self.train.values[rows]
        if self.task == "clicks":
            extra = users.repeat_interleave(negatives)
            items = torch.cat([items, self.unseen(extra, generator)])
            target = torch.cat([torch.ones(len(users)), torch.zeros(len(extra))])
            users = torch.cat([users, extra])
            client, epoch = (torch.cat([c, c.repeat_interleave(negatives)]) for c in (client, epoch))
        shuffled = ((client * epochs + epoch << 36) + torch.randint(2**36, client.shape, generator=generator)).argsort()
        columns = {"client": client, "epoch": epoch, "user": users, "item": items, "target": target}
        return {name: column[shuffled] for name, column in columns.items()}


def one_per_user(train: Ratings) -> Tensor:
    """(U,) every user is a client."""
    return torch.arange(train.user_count)


def equal(train: Ratings, platforms: int, seed: int = 0) -> Tensor:
    """(U,) K platforms of equal size, users drawn at random: as IID as platforms get."""
    _check(train, platforms)
    owner = torch.empty(train.user_count, dtype=torch.int64)
    owner[torch.randperm(train.user_count, generator=stream(seed, "partition"))] = (
        torch.arange(train.user_count) % platforms)
    return owner


def by_activity(train: Ratings, platforms: int) -> Tensor:
    """(U,) K platforms of equal size: the first holds the users with the fewest ratings, the last the most."""
    _check(train, platforms)
    activity = torch.bincount(train.users, minlength=train.user_count)
    return activity.argsort(stable=True).argsort() * platforms // train.user_count


def by_genre(train: Ratings, platforms: int, alpha: float = 0.3, seed: int = 0) -> Tensor:
    """(U,) K platforms that differ in taste: users of one favourite genre fall on platforms by Dirichlet(alpha).

    Small alpha (0.1): each genre on one or two platforms; large alpha (100): nearly IID. A platform left
    empty takes a user from the fullest one.
    """
    _check(train, platforms)
    require(0 < alpha < float("inf"), "alpha", alpha, "choose a positive number, say from 0.05 to 100")
    key = stream(seed, "partition").initial_seed() & (2**63 - 1)
    rng = np.random.default_rng(key)
    favourite = favourite_genre(train)
    shares = rng.dirichlet([alpha] * platforms, int(favourite.max()) + 1).cumsum(1)
    owner = torch.from_numpy((rng.random((len(favourite), 1)) > shares[favourite]).sum(1).clip(max=platforms - 1))
    while len(empty := (torch.bincount(owner, minlength=platforms) == 0).nonzero()):
        fullest = torch.bincount(owner, minlength=platforms).argmax()
        owner[(owner == fullest).nonzero()[0]] = empty[0]
    return owner


def favourite_genre(train: Ratings) -> Tensor:
    """(U,) the genre a user watches most beyond what everybody does (its share over the overall share)."""
    genres = train.catalogue.genres[train.items].float()
    watched = torch.zeros(train.user_count, genres.shape[1]).index_add_(0, train.users, genres) + 1e-9
    lift = watched / watched.sum(1, keepdim=True) / (watched.sum(0) / watched.sum() + 0.01)
    return lift.argmax(1)


def _check(train: Ratings, platforms: int) -> None:
    fits = isinstance(platforms, int) and 1 <= platforms <= train.user_count
    require(fits, "platforms", platforms, f"choose a whole number from 1 to {train.user_count}, the number of users")
