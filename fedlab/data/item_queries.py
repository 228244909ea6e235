"""Clicks asked item by item: each example asks who of some users of the client clicked it.

One reading of a text then serves all of these users.

Letters: N clients, C in a cohort, I items, n examples, K users asked an example.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fedlab.core import Key, Tree, below, require
from fedlab.data.federation import Federation


@dataclass(frozen=True)
class ItemQueries:
    """A Federation whose examples are a film, some of the client's users, and who clicked it.

    items: films of a client in an epoch, drawn among those that its users clicked. users: K, how
    many of them are drawn for each film.
    """

    draws_negatives: ClassVar[bool] = False  # the targets are given

    data: Federation
    items: int = 32
    users: int = 64

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(
            self.data.task == "clicks",
            "task",
            self.data.task,
            "shops know clicks; set task='clicks'",
        )
        require(self.items >= 1, "items", self.items, "choose 1 film or more")
        require(self.users >= 1, "users", self.users, "choose 1 user or more")

    @property
    def task(self) -> str:
        """'clicks'."""
        return self.data.task

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def counts(self) -> Tensor:
        """(N,) different films that each client's users clicked."""
        return torch.bincount(self._stock // self.data.train.item_count, minlength=len(self))

    @cached_property
    def _stock(self) -> Tensor:
        """The pairs client * I + item, growing."""
        train = self.data.train
        return (self.data.owner[train.users] * train.item_count + train.items).unique()

    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree:
        """The columns client, epoch, item (n,) and who, own, target (n, K).

        `negatives` is not used.
        """
        items, starts, parts = self.data.train.item_count, self.counts.cumsum(0) - self.counts, []
        films, users = key.of("items"), key.of("users")
        for place, client in enumerate(cohort.tolist()):
            stock = self._stock[starts[client] : starts[client] + self.counts[client]] % items
            people = (self.data.owner == client).nonzero()[:, 0]
            mine = cohort[place : place + 1]
            luck = films.uniform(mine, epochs * len(stock)).view(epochs, -1)
            film = stock[luck.argsort(dim=1, stable=True)[:, : self.items]].flatten()
            asked = users.runs(mine, torch.tensor([len(film) * self.users]))
            who = people[below(asked, len(people))].view(-1, self.users)
            parts.append(
                (
                    torch.full_like(film, place),
                    torch.arange(epochs).repeat_interleave(len(film) // epochs),
                    film,
                    who,
                )
            )
        client, epoch, film, who = (torch.cat(column) for column in zip(*parts, strict=True))
        clicked = (self.data.rows(who, film[:, None]) >= 0).float()
        return {
            "client": client,
            "epoch": epoch,
            "item": film,
            "who": who,
            "own": clicked,
            "target": clicked,
        }

    def few(self) -> Tree:
        """The columns item, who and own of three examples, for the trial of `from_module`."""
        drawn = self.draw(torch.tensor([0]), 1, 0, Key(0, "few"))
        return {name: drawn[name][:3] for name in ("item", "who", "own")}
