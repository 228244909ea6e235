"""Clients as dots: where their taste puts them, when they took part last, and their loss then.

Letters: N clients, I items, n interactions, C in a cohort.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedlab.core import Round
from fedlab.data import Federation

DOTS = 1000  # clients that are drawn; of more, these are taken evenly by their number
TURNS = 40  # of the power iteration
KNOWN = 300  # the ends of the axis are named by items among so many that are clicked most
ENDS = 3


def taste(data: Federation) -> tuple[Tensor, Tensor]:
    """What clients differ in most: places (N,) on one axis, and the items' (I,) shares in it.

    It is the first principal component of the rows of clicks (N, I), each of length 1, by power
    iteration from a fixed start: what is common to all, popularity first, is taken off.

    >>> from fedlab import from_arrays, one_per_user
    >>> clicks = from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 2, 3])
    >>> places, items = taste(Federation(clicks, one_per_user(clicks)))
    >>> bool(places[0] == places[1]), bool(places[0] * places[2] < 0)
    (True, True)
    """
    client, items = data.owner[data.train.users], data.train.items
    weight = data.counts[client].double().rsqrt()
    draw = torch.Generator().manual_seed(0)
    shares = torch.randn(data.train.item_count, generator=draw, dtype=torch.float64)
    mean = shares.new_zeros(len(shares)).index_add_(0, items, weight) / len(data)
    places = shares.new_zeros(len(data))
    for _ in range(TURNS):
        shares = shares / shares.norm().clamp(min=1e-300)
        seen = shares[items] * weight
        places = places.new_zeros(len(data)).index_add_(0, client, seen) - mean @ shares
        back = shares.new_zeros(len(shares)).index_add_(0, items, places[client] * weight)
        shares = back - mean * places.sum()
    return places, shares


class People:
    """The clients of a federation as dots, and what is known of them so far."""

    def __init__(self, data: Federation) -> None:
        """data: whose taste is worked out once."""
        every = len(data)
        self.shown = torch.arange(every)
        if every > DOTS:
            self.shown = torch.linspace(0, every - 1, DOTS).round().long()
        places, shares = taste(data)
        rank = places.argsort(stable=True).argsort().double() / max(every - 1, 1)
        popular = data.train.item_counts().argsort(descending=True, stable=True)[:KNOWN]
        order = popular[shares[popular].argsort(stable=True)]
        names = data.train.catalogue.names
        sizes = data.counts[self.shown].double().sqrt()
        self.fixed: dict[str, Any] = {
            "count": every,
            "x": _short(rank[self.shown]),
            "size": _short(sizes / sizes.max()),
            "ends": [[names[i] for i in end] for end in _ends(order.tolist())],
            "people": _owners(data, self.shown),
        }
        self._loss = torch.full((every,), torch.nan)
        self._when = torch.zeros(every, dtype=torch.int64)
        self._read: tuple[object, int] = None, 0  # of which run how many Rounds are noted

    def dots(self, run: object, rounds: Sequence[Round]) -> dict[str, Any]:
        """Who takes part and with what loss, after these Rounds of a run, each read once.

        round: the last one. cohort: places among the shown of who was in it. loss: the last one
        of each, None before the first. since: rounds since then. met: clients that had a turn.
        """
        before, done = self._read
        if before is not run or len(rounds) < done:
            self._loss.fill_(torch.nan)
            self._when.zero_()
            done = 0
        for each in rounds[done:]:
            self._loss[each.cohort] = each.losses.float().cpu()
            self._when[each.cohort] = each.number
        self._read = run, len(rounds)
        last = rounds[-1].number if rounds else 0
        when = self._when[self.shown]
        return {
            "round": last,
            "cohort": (when == last).nonzero()[:, 0].tolist() if last else [],
            "loss": _short(self._loss[self.shown]),
            "since": (last - when).tolist(),
            "met": int((self._when > 0).sum()),
        }


def _ends(order: list[int]) -> tuple[list[int], list[int]]:
    """The items at both ends of the axis, from the outside in."""
    some = min(ENDS, len(order) // 2)
    return order[:some], order[::-1][:some]


def _owners(data: Federation, shown: Tensor) -> list[str]:
    """For each dot whom to follow there: the first of its users by id."""
    first = torch.full((len(data),), data.train.user_count)
    users = torch.arange(data.train.user_count)
    first.scatter_reduce_(0, data.owner, users, "amin")
    ids = data.train.catalogue.user_ids
    return [ids[user] for user in first[shown].tolist()]


def _short(values: Tensor) -> list[float | None]:
    """Numbers with four digits; None for what is not finite."""
    good = values.isfinite().tolist()
    return [
        float(f"{v:.4g}") if fine else None for v, fine in zip(values.tolist(), good, strict=True)
    ]
