"""Clients that lie.

What an attacker sends in place of what it learned, to spoil a model or to push one film.

An attacker holds some of the clients. They train as others do, so it knows what an honest delta is
like, and then send what it makes of that. Private rows stay with their users as they are.

Letters: N clients in all, C in a cohort, I items, U users. Sources: Blanchard et al. 2017, "Machine
learning with adversaries" (what a Byzantine client may do); Bagdasaryan et al. 2020, "How to
backdoor federated learning", section 4.2 (deltas scaled up); Zhang et al. 2022, "PipAttack:
poisoning federated recommender systems for manipulating item promotion", section 5 (exposure,
ER@k).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedlab.core import Rows, Score, Tree, Update, require, stream
from fedlab.data import Ratings
from fedlab.engine import updates
from fedlab.evaluation import seen
from fedlab.models import Model

Craft = Callable[[dict[str, Rows], Tree, int], dict[str, Rows]]


class Poisoned:
    """A client update in which some clients belong to an attacker; hand `update` to `federate`."""

    def __init__(self, clients: Tensor, craft: Craft, *, trained: Callable[...,
                                                                           Iterator[
        Update]] = updates) -> None:
        """clients: the attacker's, numbers. craft(its deltas, server, how many) -> what it sends.

        trained: the others'.

        `craft` sees the attacker's clients of a chunk, counted from 0; private rows are not among
        the deltas.
        """
        self.clients, self.craft, self.trained = clients, craft, trained

    def update(self, model: Model, data: Any, params: Tree, cohort: Tensor, *given: Any,
               **named: Any) -> Iterator[Update]:
        """As `fedlab.cohort.updates`, with the attacker's deltas in the place of its clients'."""
        for sent in self.trained(model, data, params, cohort, *given, **named):
            bad = torch.isin(sent.cohort, self.clients.to(sent.cohort)).to(sent.weights.device)
            if not bad.any():
                yield sent
                continue
            mine = {name: rows for name, rows in sent.deltas.items() if name not in model.private}
            theirs, count = {name: rows.only(bad) for name, rows in mine.items()}, int(bad.sum())
            made = self.craft(theirs, params, count)
            yield replace(sent, deltas=sent.deltas | {name: _put(rows, made[name], bad) for name,
                                                      rows in mine.items()})


def _put(rows: Rows, made: Rows, bad: Tensor) -> Rows:
    """Rows of honest clients with those that were made, (C,) `bad` says whose, by client."""
    honest, places = ~bad[rows.client], bad.nonzero()[:, 0]
    both = [Rows(rows.values[honest], rows.ids[honest], rows.client[honest]), replace(made,
                                                                                      client=places[
        made.client])]
    every = Rows.joined(both)
    order = every.client.argsort(stable=True)
    return Rows(every.values[order], every.ids[order], every.client[order])


def scaled(factor: float) -> Craft:
    """What was learned, times a factor.

    Below 0 to undo what others learn, far above 1 to outweigh them.
    """
    require(abs(factor) < float("inf"), "factor", factor, "choose a finite number, say -1 or 50")

    def craft(deltas: dict[str, Rows], server: Tree, count: int) -> dict[str, Rows]:
        return {name: replace(rows, values=factor * rows.values) for name, rows in deltas.items()}
    return craft


def noisy(deviation: float, seed: int = 0) -> Craft:
    """Normal noise on the rows that were trained.

    A client that is broken, or wants to spoil the model.
    """
    require(0 < deviation < float("inf"), "deviation", deviation, "choose a positive number")
    generator = stream(seed, "attack")

    def craft(deltas: dict[str, Rows], server: Tree, count: int) -> dict[str, Rows]:
        return {name: replace(rows, values=deviation * torch.randn(rows.values.shape,
                                                                   generator=generator).to(
            rows.values)) for name, rows in deltas.items()}
    return craft


def aimed(target: int, size: float, name: str = "bias") -> Craft:
    """One number alone: the bias of a film, pushed by `size`.

    A bound on the whole delta is spent where it counts.
    """
    require(0 < size < float("inf"), "size", size, "choose a positive number")

    def craft(deltas: dict[str, Rows], server: Tree, count: int) -> dict[str, Rows]:
        require(name in deltas, "name", name, f"clients send {', '.join(deltas)}")
        require(0 <= target < len(server[name]), "target", target,
                f"choose from 0 to {len(server[name]) - 1}")
        nothing = {n: Rows(r.values[:0], r.ids[:0], r.client[:0]) for n, r in deltas.items()}
        like = server[name]
        push = Rows(like.new_full((count, *like.shape[1:]), size), torch.full((count,), target,
                                                                              device=like.device),
                    torch.arange(count, device=like.device))
        return nothing | {name: push}
    return craft


def with_clicks(train: Ratings, users: Tensor, target: int) -> Ratings:
    """Train ratings in which these users have watched the target too.

    Profiles made up to promote it (shilling).
    """
    require(0 <= target < train.item_count, "target", target,
            f"choose from 0 to {train.item_count - 1}")
    new = users[~seen([train], users)[:, target]]
    return Ratings(torch.cat([train.users, new]), torch.cat([train.items, torch.full_like(new,
                                                                                          target)]),
                   torch.cat([train.values, train.values.max().expand(len(new))]),
                   torch.cat([train.times, train.times.max().expand(len(new))]), train.catalogue)


def exposure(score: Score, train: Ratings, target: int, k: int = 10, chunk: int = 64) -> float:
    """ER@k.

    To what share of the users who have not seen the target it is shown among their first k unseen
    films.
    """
    shown, free = 0, 0
    for users in torch.arange(train.user_count).split(chunk):
        items = torch.arange(train.item_count).expand(len(users), -1)
        known = seen([train], users)
        scores = score(users[:, None].expand_as(items), items).cpu().masked_fill(known, -torch.inf)
        open_ = ~known[:, target]
        shown += int((scores.topk(min(k, train.item_count),
                                  1).indices == target).any(1)[open_].sum())
        free += int(open_.sum())
    require(free > 0, "target", target, "every user has seen it; choose another")
    return shown / free
