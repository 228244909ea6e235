"""Tasks for meta-learning: clients' examples cut into support and query, and made-up curves.

A column `query` says of each example whether a client learns from it (0, support) or is judged by
it (1).

Letters: N clients, C in a cohort, n examples, F inputs. Sources: Finn, Abbeel, Levine 2017,
"Model-agnostic meta-learning for fast adaptation of deep networks", section 5.1 (sines); Chen et
al. 2018, "Federated meta-learning with fast convergence and efficient communication", section 3.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedlab.core import Key, Tree, require
from fedlab.data.federation import Federation


@dataclass(frozen=True)
class Episodes:
    """A Federation whose examples have a column `query`, cut anew in each round.

    support: (least, most) ratings or clicks that a client learns from; their number is drawn by
    ratios, and a client with few keeps at least half of them for the query. query: the most
    examples that judge a client which learns from `most`; what it does not learn from judges it,
    too. Clicks take their share of the negatives along.
    """

    data: Federation
    support: tuple[int, int] = (5, 20)
    query: int = 100

    def __post_init__(self) -> None:
        """Check the numbers."""
        least, most = self.support
        require(1 <= least <= most, "support", self.support, "choose (least, most), 1 or more each")
        require(self.query >= 1, "query", self.query, "choose 1 example or more")

    @property
    def task(self) -> str:
        """'clicks' or 'ratings'."""
        return self.data.task

    @property
    def counts(self) -> Tensor:
        """(N,) ratings of each client that a round takes."""
        return self.data.counts.clamp(max=self.support[1] + self.query)

    def __len__(self) -> int:
        return len(self.data)

    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree:
        """The columns of `Federation.draw` for the examples in support or query, and query (n,)."""
        columns = self.data.draw(cohort, epochs, negatives, key)
        least, most = self.support
        luck = key.of("support").uniform(cohort, 1)[:, 0]
        # (C,) how many each client learns from
        wanted = (least * (most / least) ** luck).round().long().minimum(self.counts[cohort] // 2)
        group = columns["client"] * epochs + columns["epoch"]
        clicked = torch.ones_like(group, dtype=torch.bool)
        if self.task == "clicks":
            clicked = columns["target"] > 0
        each, support = torch.where(clicked, 1, negatives), wanted[columns["client"]]
        place = torch.where(clicked, _place(clicked, group), _place(~clicked, group))
        kept = place < (most + self.query) * each
        columns["query"] = (place >= support * each).float()
        return {name: column[kept] for name, column in columns.items()}


def _place(chosen: Tensor, group: Tensor) -> Tensor:
    """How many (n,) of the chosen rows come before a row in its group.

    Groups are contiguous and grow.
    """
    before = chosen.cumsum(0) - chosen.long()
    first = torch.searchsorted(group, group)
    return before - before[first]


@dataclass(frozen=True)
class Curves:
    """Made-up tasks with columns x (n, F) and target: each client is a curve of its own.

    kind: 'sine', y = a sin(x - p), with a from 0.1 to 5, p from 0 to pi, x from -5 to 5, F = 1; or
    'linear', y = w . x with x and w normal, F = 10, where clients' w have a common mean of ones.
    """

    clients: int = 1000
    support: int = 10
    query: int = 10
    kind: str = "sine"
    seed: int = 0
    task: str = "ratings"

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(self.kind in ("sine", "linear"), "kind", self.kind, "choose one of sine, linear")
        for name in ("clients", "query"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "choose 1 or more")
        require(self.support >= 0, "support", self.support, "choose 0 examples or more")

    @property
    def inputs(self) -> int:
        """F, the number of inputs."""
        return 1 if self.kind == "sine" else 10

    @property
    def counts(self) -> Tensor:
        """(N,) examples of each client in a round."""
        return torch.full((self.clients,), self.support + self.query)

    def __len__(self) -> int:
        return self.clients

    @cached_property
    def _own(self) -> Tensor:
        """(N, 2) amplitude and phase, or (N, 10) weights."""
        key, everyone = Key(self.seed, "curves"), torch.arange(self.clients)
        if self.kind == "linear":
            return 1 + 0.5 * key.normal(everyone, self.inputs)
        low, wide = torch.tensor([0.1, 0]), torch.tensor([4.9, math.pi])
        return key.uniform(everyone, 2).float() * wide + low

    def values(self, client: Tensor, x: Tensor) -> Tensor:
        """(n,) the curves of clients (n,) at x (n, F)."""
        own = self._own[client]
        return (
            (own * x).sum(1) if self.kind == "linear" else own[:, 0] * (x[:, 0] - own[:, 1]).sin()
        )

    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree:
        """Fresh points of each client's curve: columns client, epoch, x (n, F), query and target.

        There are no negatives.
        """
        each = self.support + self.query
        place = torch.arange(len(cohort)).repeat_interleave(epochs * each)
        step = torch.arange(epochs * each).repeat(len(cohort))
        numbers = epochs * each * self.inputs  # of a client
        x = (
            key.normal(cohort, numbers)
            if self.kind == "linear"
            else key.uniform(cohort, numbers).float() * 10 - 5
        ).view(-1, self.inputs)
        return {
            "client": place,
            "epoch": step // each,
            "x": x,
            "query": (step % each >= self.support).float(),
            "target": self.values(cohort[place], x),
        }
