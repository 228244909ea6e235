"""Clients that lie: what an attacker sends to spoil a model or to push one film.

An attacker holds some of the clients. They train as others do, so it knows what an honest delta is
like, and then send what it makes of that. Private rows stay with their users as they are.

Letters: N clients in all, C in a cohort, I items, U users. Sources: Blanchard et al. 2017, "Machine
learning with adversaries" (what a Byzantine client may do); Bagdasaryan et al. 2020, "How to
backdoor federated learning", section 4.2 (deltas scaled up); Zhang et al. 2022, "PipAttack:
poisoning federated recommender systems for manipulating item promotion", section 5 (exposure,
ER@k).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedlab.core import (
    RoundContext,
    Rows,
    Score,
    Stage,
    Update,
    knob,
    known,
    register,
    require,
    stream,
)
from fedlab.data import Interactions
from fedlab.evaluation import seen

GROUP = "attack"
Craft = Callable[[Update, RoundContext], dict[str, Rows]]


@register
class Poison(Stage):
    """Some clients belong to an attacker, and send what it makes of what they learned.

    clients: their numbers; by default a share `liars` of all, in an order that is drawn once, so
    that a larger share adds others to those before. craft(the attacker's updates of a chunk,
    context) -> what they send: an attack of your own in place of the named one.
    """

    attack: str = knob(
        "flipped",
        0,
        0,
        "",
        "what clients send that belong to an attacker",
        choices=("flipped", "noisy"),
        live=False,
        group=GROUP,
    )
    liars: float = knob(
        0.1, 0.0, 1.0, "of the clients", "belong to an attacker", usual=(0.0, 0.5), group=GROUP
    )
    factor: float = knob(
        -5.0,
        -1e6,
        1e6,
        "",
        "flipped: what they multiply their updates by",
        usual=(-10.0, 10.0),
        group=GROUP,
    )
    deviation: float = knob(
        0.1,
        1e-9,
        1e6,
        "",
        "noisy: of the numbers that they make up",
        log=True,
        usual=(0.001, 10.0),
        group=GROUP,
    )
    clients: Tensor | None = None
    craft: Craft | None = None

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The numbers that the attack does not read."""
        named = {"flipped": ("deviation",), "noisy": ("factor",)}[self.attack]
        own = ("attack", "factor", "deviation") if self.craft else named
        return (*own, "liars") if self.clients is not None else own

    def each(self, update: Update, context: RoundContext) -> Update:
        """Put the attacker's updates in place of what its clients learned."""
        bad = torch.isin(update.cohort, self.held(context)).to(update.weights.device)
        if not bad.any():
            return update
        craft = (
            self.craft
            or {"flipped": scaled(self.factor), "noisy": noisy(self.deviation)}[self.attack]
        )
        made = craft(update.only(bad), context)
        deltas = {name: put(rows, made[name], bad) for name, rows in update.deltas.items()}
        return replace(update, deltas=deltas)

    def held(self, context: RoundContext) -> Tensor:
        """The numbers of the clients that belong to the attacker."""
        if self.clients is not None:
            return self.clients
        return self.among(len(context.data), context.seed)

    def among(self, count: int, seed: int) -> Tensor:
        """The numbers of the liars among so many clients, where a run of this seed draws them."""
        order = torch.randperm(count, generator=stream(seed, "liars"))
        return order[: round(self.liars * count)]


def put(rows: Rows, made: Rows, bad: Tensor) -> Rows:
    """The rows of honest clients beside those that were made; bad (C,): whose rows are made."""
    honest, places = ~bad[rows.client], bad.nonzero()[:, 0]
    every = Rows.joined(
        [
            Rows(rows.values[honest], rows.ids[honest], rows.client[honest]),
            replace(made, client=places[made.client]),
        ]
    )
    order = every.client.argsort(stable=True)
    return Rows(every.values[order], every.ids[order], every.client[order])


def scaled(factor: float) -> Craft:
    """Multiply what was learned by a factor.

    A factor below 0 undoes others' work, one far above 1 outweighs it.
    """
    require(abs(factor) < float("inf"), "factor", factor, "choose a finite number, say -1 or 50")

    def craft(mine: Update, context: RoundContext) -> dict[str, Rows]:
        return {
            name: replace(rows, values=factor * rows.values) for name, rows in mine.deltas.items()
        }

    return craft


def noisy(deviation: float) -> Craft:
    """Normal noise on the rows that were trained: a broken client, or one that wants to spoil."""
    require(0 < deviation < float("inf"), "deviation", deviation, "choose a positive number")

    def craft(mine: Update, context: RoundContext) -> dict[str, Rows]:
        def made(name: str, rows: Rows) -> Tensor:
            drawn = [
                torch.randn(
                    rows.values[rows.client == place].shape,
                    generator=stream(context.seed, f"attack {client} {name}", context.number),
                )
                for place, client in enumerate(mine.cohort.tolist())
            ]
            return deviation * torch.cat(drawn).to(rows.values)

        return {name: replace(rows, values=made(name, rows)) for name, rows in mine.deltas.items()}

    return craft


def aimed(target: int, size: float, name: str = "bias") -> Craft:
    """Push one number alone, the bias of an item, by `size`, so that a bound is spent on it."""
    require(0 < size < float("inf"), "size", size, "choose a positive number")

    def craft(mine: Update, context: RoundContext) -> dict[str, Rows]:
        server, count = context.server, len(mine.cohort)
        known(list(server), {name: target})
        require(
            0 <= target < len(server[name]),
            "target",
            target,
            f"choose from 0 to {len(server[name]) - 1}",
        )
        nothing = {n: Rows(r.values[:0], r.ids[:0], r.client[:0]) for n, r in mine.deltas.items()}
        like = server[name]
        push = Rows(
            like.new_full((count, *like.shape[1:]), size),
            torch.full((count,), target, device=like.device),
            torch.arange(count, device=like.device),
        )
        return nothing | {name: push}

    return craft


def with_clicks(train: Interactions, users: Tensor, target: int) -> Interactions:
    """Train ratings in which these users have watched the target, too.

    They stand for profiles that are made up to promote it (shilling).
    """
    require(
        0 <= target < train.item_count, "target", target, f"choose from 0 to {train.item_count - 1}"
    )
    new = users[~seen([train], users)[:, target]]
    return Interactions(
        torch.cat([train.users, new]),
        torch.cat([train.items, torch.full_like(new, target)]),
        train.catalogue,
        {name: torch.cat([c, c.max().expand(len(new))]) for name, c in train.columns.items()},
    )


def exposure(score: Score, train: Interactions, target: int, k: int = 10, chunk: int = 64) -> float:
    """ER@k: the share of users to whom the target is shown among their first k unseen films.

    Only users who have not seen the target count.
    """
    shown, free = 0, 0
    for users in torch.arange(train.user_count).split(chunk):
        items = torch.arange(train.item_count).expand(len(users), -1)
        known = seen([train], users)
        scores = score(users[:, None].expand_as(items), items).cpu().masked_fill(known, -torch.inf)
        open_ = ~known[:, target]
        shown += int(
            (scores.topk(min(k, train.item_count), 1).indices == target).any(1)[open_].sum()
        )
        free += int(open_.sum())
    require(free > 0, "target", target, "every user has seen it; choose another")
    return shown / free
