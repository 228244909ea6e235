"""Ratings dealt out to clients: one per user, or K platforms that hold disjoint users.

A partition is one tensor, `owner` (U,): the client that holds each user. Since users are disjoint,
a user's vector lives on exactly one client and can stay private.

Letters: N clients, C in a cohort, n examples, U users, I items, K platforms.
Sources: Hsu, Qi, Brown 2019, "Measuring the effects of non-identical data distribution", section 3
(Dirichlet); He et al. 2017, "Neural collaborative filtering", section 4.1 (sampled negatives).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedlab.core import ParameterError, Tree, require
from fedlab.data.interactions import Ratings
from fedlab.data.readers import DataError


class Source(Protocol):
    """What `federate` trains on: who holds how much, and the examples of a cohort.

    task: 'clicks' or 'ratings'. counts (N,): rows of each client. `draw` gives columns (n, ...)
    with the examples of a round, client after client: client (position in the cohort), epoch,
    target, and what the model reads. Nothing but the cohort's own rows needs to be in memory.
    """

    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def counts(self) -> Tensor: ...  # noqa: D102
    def __len__(self) -> int: ...
    def draw(self, cohort: Tensor, epochs: int, negatives: int, generator: torch.Generator) -> Tree: ...  # noqa: D102


@dataclass(frozen=True)
class Federation:
    """Train ratings and the client that holds each user.

    train: the only ratings any client ever sees. owner (U,): client numbers 0..N-1, none of them
    empty. task: 'clicks' turns each rating into a click (target 1) beside drawn negatives (target
    0); 'ratings' keeps the values as targets. Raises `DataError` for an empty federation or client.
    """

    train: Ratings
    owner: Tensor
    task: str = "clicks"

    def __post_init__(self) -> None:
        """Check the partition."""
        require(self.task in ("clicks", "ratings"), "task", self.task,
                "choose one of clicks, ratings")
        if not len(self.train):
            raise DataError("an empty federation: train holds no ratings; hand it at least one")
        if len(self.owner) != self.train.user_count:
            raise DataError(f"owner has {len(self.owner)} entries; give one for each of {self.train.user_count} users")
        if len(empty := (self.counts == 0).nonzero()):
            raise DataError(
                f"client {int(empty[0])} of {len(self)} holds no train ratings; use fewer clients")

    def __len__(self) -> int:
        """N, the number of clients."""
        return int(self.owner.max()) + 1

    @cached_property
    def counts(self) -> Tensor:
        """(N,) train ratings of each client."""
        return torch.bincount(self.owner[self.train.users], minlength=len(self))

    @cached_property
    def _by_client(self) -> tuple[Tensor, Tensor]:
        """Row numbers of the ratings by (client, user, item), and where each client starts."""
        order = (self.owner[self.train.users] * self.train.user_count * self.train.item_count
                 + self.train.pairs()).argsort()
        return order, self.counts.cumsum(0) - self.counts

    @cached_property
    def _by_pair(self) -> tuple[Tensor, Tensor]:
        """Numbers of the (user, item) pairs, growing, and the row of each."""
        pairs, rows = self.train.pairs().sort()
        return pairs, rows

    def rows(self, users: Tensor, items: Tensor) -> Tensor:
        """The rows of train with these users and items, of any one shape.

        -1 where a pair is not there.
        """
        pairs, rows = self._by_pair
        asked = users * self.train.item_count + items
        at = torch.searchsorted(pairs, asked).clamp(max=len(pairs) - 1)
        return torch.where(pairs[at] == asked, rows[at], -1)

    def draw(self, cohort: Tensor, epochs: int, negatives: int, generator: torch.Generator) -> Tree:
        """Examples of a round, shuffled within each client and epoch.

        For clicks with fresh negatives each epoch.

        cohort (C,): client numbers. Returns columns (n,): client (position in the cohort, sorted),
        epoch, user, item, target.
        """
        order, starts = self._by_client
        client, rows = own_rows(cohort, starts, self.counts)
        rows = order.index_select(0, rows)
        users, items = self.train.users.index_select(0, rows), self.train.items.index_select(0,
                                                                                             rows)
        if self.task == "ratings":
            columns = {"client": client, "user": users, "item": items,
                       "target": self.train.values[rows]}
            return shuffled(repeated(columns, epochs), epochs, generator)
        return clicks(client, users, items, self.train.item_count, epochs, negatives, generator)


def own_rows(cohort: Tensor, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of a table that lies client after client.

    For each row of the cohort its position there, and its number.
    """
    mine = counts[cohort]
    client = torch.arange(len(cohort)).repeat_interleave(mine)
    before = (starts[cohort] - (mine.cumsum(0) - mine)).index_select(0, client)
    return client, before + torch.arange(len(client))


def repeated(columns: Tree, epochs: int) -> Tree:
    """All rows once for each epoch, with its number in a column of its own."""
    epoch = torch.arange(epochs).repeat_interleave(len(columns["client"]))
    again = {name: torch.cat([column] * epochs) for name,
             column in columns.items()} if epochs > 1 else columns
    return again | {"epoch": epoch}


def shuffled(columns: Tree, epochs: int, generator: torch.Generator) -> Tree:
    """The same rows client after client, epoch after epoch, in random order within these."""
    run = columns["client"] * epochs + columns["epoch"]
    count = len(run)
    # bits for the row and for its run
    low, high = count.bit_length(), (int(run.max()) + 1).bit_length()
    luck = torch.randint(2 ** (62 - low - high), (count,), generator=generator)
    key = (run << 62 - high) + (luck << low) + torch.arange(count)
    order = torch.from_numpy(np.sort(key.numpy())) & (1 << low) - 1  # 5x faster here than argsort
    return {name: column.index_select(0, order) for name, column in columns.items()}


def clicks(client: Tensor, users: Tensor, items: Tensor, item_count: int, epochs: int,
           negatives: int, generator: torch.Generator, train: Tensor | None = None) -> Tree:
    """Clicks (target 1), for each epoch and click `negatives` unseen items of its user (target 0).

    Shuffled.

    client, users, items (n,): what the cohort has seen by (client, user, item). train (n,): which
    of these are trained on; all of them, unless a benchmark is to show what goes wrong otherwise
    (`fedlab.leaky`).
    """
    first = torch.ones(len(users), dtype=torch.int64)
    first[1:] = (users[1:] != users[:-1]) | (client[1:] != client[:-1])
    run = first.cumsum(0) - 1
    full = (torch.bincount(run)[run] >= item_count).nonzero()
    if negatives and len(full):
        raise ParameterError(
            f"negatives={negatives}: user {int(users[full[0]])} has seen all {item_count} items; "
            "set negatives=0")
    own = run if train is None else run[train]
    drawn = unseen(run, items, item_count, own.repeat(epochs).repeat_interleave(negatives),
                   generator)
    client, users, items = (c if train is None else c[train] for c in (client, users, items))
    seen = repeated({"client": client, "user": users, "item": items,
                     "target": torch.ones(len(items))}, epochs)
    extra = {name: seen[name].repeat_interleave(negatives) for name in ("client", "epoch", "user")}
    extra |= {"item": drawn, "target": torch.zeros(len(drawn))}
    return shuffled({name: torch.cat([column, extra[name]]) for name, column in seen.items()},
                    epochs, generator)


def unseen(run: Tensor, items: Tensor, item_count: int, who: Tensor,
           generator: torch.Generator) -> Tensor:
    """(k,) an item for each of `who` (k,) that this user has not seen, all equally likely.

    run (n,): 0, 1, ... for the user of each row; items (n,) grow within each; who (k,): such
    numbers. The r-th unseen item is r + (seen items with at most r unseen ones before them), so one
    sorted look-up serves all draws, without rejection. Held-out items are drawn like any other.
    """
    seen = torch.bincount(run)
    starts, free = seen.cumsum(0) - seen, item_count - seen
    before = items - torch.arange(len(run)) + starts[run] + run * (item_count + 1)
    chance = torch.rand(len(who), generator=generator, dtype=torch.float64)
    rank = (chance * free.index_select(0, who)).long()
    place = torch.searchsorted(before, who * (item_count + 1) + rank, right=True)
    return rank + place - starts.index_select(0, who)
