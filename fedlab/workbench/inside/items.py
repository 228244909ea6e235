"""Items as a map, and the place of one item in everybody's list.

Letters: I items, D dimensions, K items on the map, U users.
"""

from typing import Any

import torch
from torch import Tensor

from fedlab.core import Score
from fedlab.data import Federation
from fedlab.evaluation import seen
from fedlab.models import ByUser, Factored

ON_THE_MAP, WIDEST = 120, 2048  # items; dimensions of a vector, at most
LOOKED_AT = 200  # users in whose lists an item's place is looked up
COLOURS = 6  # categories that have a colour of their own


class Map:
    """The items that most people know, where their vectors lie in two fixed directions.

    The directions are the two in which the vectors differ most, worked out anew at rounds 1, 2, 4,
    8 and so on, and turned so that the picture jumps as little as it can; they are fixed in
    between.
    """

    def __init__(self, data: Federation) -> None:
        """data: the counts of clicks say who is on the map."""
        train = data.train
        order = train.item_counts().argsort(descending=True, stable=True)
        self.items = order[:ON_THE_MAP]
        names = train.catalogue.names
        self.fixed: dict[str, Any] = {
            "items": [names[i] for i in self.items.tolist()],
            "ids": [train.catalogue.item_ids[i] for i in self.items.tolist()],
            **_coloured(data, self.items),
        }
        self._axes: Tensor | None = None
        self._since = -1

    def at(self, score: Score, number: int) -> dict[str, Any]:
        """Where items lie after round `number`; {} for a model without a vector of each item.

        xy: (K, 2). since: the round at which the directions were worked out.
        """
        if not isinstance(score, Factored) or not 2 <= score.items.shape[1] <= WIDEST:
            return {}
        if len(self.items) < 2:  # a single item lies in no direction
            return {}
        vectors = score.items[self.items].float()
        vectors = vectors.nan_to_num(0.0, 0.0, 0.0)
        stage = number.bit_length()
        if self._axes is None or stage != self._since or self._axes.shape[0] != vectors.shape[1]:
            self._axes, self._since = _axes(vectors, self._axes), stage
        at = vectors @ self._axes
        since = 1 << (stage - 1) if stage else 0
        return {
            "round": number,
            "since": since,
            "xy": [[float(f"{v:.4g}") for v in pair] for pair in at.tolist()],
        }


def _axes(vectors: Tensor, before: Tensor | None) -> Tensor:
    """Two directions (D, 2) in which these vectors (K, D) differ most, turned like those before."""
    _, _, found = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    axes = found[:2].T
    if before is not None and before.shape == axes.shape:
        left, _, right = torch.linalg.svd((vectors @ axes).T @ (vectors @ before))
        axes = axes @ (left @ right)
    return axes


def _coloured(data: Federation, items: Tensor) -> dict[str, Any]:
    """The category of each item, by place among those that are named; -1 for the others."""
    columns = data.train.catalogue.columns
    if "categories" not in columns:
        return {"categories": [], "colours": [-1] * len(items)}
    table = columns["categories"][items]
    common = table.sum(0).argsort(descending=True, stable=True)[:COLOURS]
    rare_first = common.flip(0)  # the rarer of two tells more
    found = torch.full((len(items),), -1)
    for place in reversed(range(len(rare_first))):
        found[table[:, rare_first[place]]] = len(common) - 1 - place
    names = data.train.catalogue.category_names
    return {"categories": [names[g] for g in common.tolist()], "colours": found.tolist()}


def every_score(score: Score, users: Tensor, items: int) -> Tensor:
    """The scores (U, I) of all items for these users (U,)."""
    if isinstance(score, Factored):
        return score.every(users)[0]
    if isinstance(score, ByUser):
        return score.rows(users)
    every = torch.arange(items).expand(len(users), -1)
    return torch.cat(
        [
            score(mine[:, None].expand_as(row), row).cpu()
            for mine, row in zip(users.split(16), every.split(16), strict=True)
        ]
    )


def place_of(item: int, score: Score, data: Federation) -> dict[str, float | int]:
    """Where an item stands in people's lists, of those who have not met it.

    shown: the share of them who find it among their first ten; median: its place; people: how many
    lists were looked at; items: how many there are.
    """
    train = data.train
    users = torch.arange(train.user_count)
    if len(users) > LOOKED_AT:
        users = torch.linspace(0, train.user_count - 1, LOOKED_AT).round().long()
    known = seen([train], users)
    scores = every_score(score, users, train.item_count).masked_fill(known, -torch.inf)
    free = ~known[:, item]
    if not bool(free.any()):
        return {}
    better = (scores[free] >= scores[free, item, None]).sum(1)  # ties against it, and itself
    return {
        "shown": float((better <= 10).float().mean()),
        "median": int(better.median()),
        "people": int(free.sum()),
        "items": train.item_count,
    }
