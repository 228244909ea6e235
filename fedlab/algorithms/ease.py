"""Federated EASE: clients send which items they clicked together, the server solves once.

All that EASE needs of people is how many of them clicked both of two items, a sum over clients:

    G = sum_u x_u x_u'        B = I - P / diag(P), P = (G + ridge I)^-1        scores x_u' B

A client sends a 1 for each pair of its own items, an item with itself included; the server adds
these up and keeps B. To recommend, a client adds up the rows of B of its own clicks, which it may
weigh by their age; nothing of that leaves it.

One round in which all take part is EASE on pooled data. A cohort of some gives an estimate, N times
its mean, and further rounds are averaged into it; who is drawn twice then counts twice.

What a client sends is as telling as its list of clicks, which can be read off it. Only the sum is
not, so this is for secure aggregation: `uplink="clip + secure sum"`, with a clip as long as the
longest update, sqrt(n (n + 1) / 2), or longer; a shorter one lets people of many clicks count less.
Even the sum gives somebody away where they alone have clicked an item.

In bytes: a client sends n (n + 1) / 2 pairs of 8 bytes in the plain, and all T (T + 1) / 2 pairs
of 4 bytes under a mask. So T has to be small there: `least_clicks` leaves rare items out. The
counts of clicks that this goes by are public in this simulation; a federation learns them by a
round of `ItemCounts`, through the same secure sum. A client fetches nothing to count its pairs, and
n rows of B, of 4 T bytes, to recommend.

Letters: N clients, C in a cohort, n items that a client clicked, I items, T of them in the table,
P = T (T + 1) / 2 pairs of these. Source: Steck 2019, "Embarrassingly shallow autoencoders for
sparse data", eq. 8.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fedlab.algorithms.implicit import recency
from fedlab.core import (
    Delta,
    Key,
    Local,
    ParameterError,
    Recipe,
    Round,
    RoundContext,
    Rows,
    Score,
    Tree,
    Update,
    knob,
    register,
    require,
    whole,
)
from fedlab.data import Interactions, Source
from fedlab.evaluation import by_history, ease_weights, frequent
from fedlab.models import Model

GROUP = "ease"
PAIRS = 1 << 22  # that clients send at a time
BYTES = 40  # of a pair of items, at most: sums, the inversion, B before and after


@register
class ItemItem(Recipe):
    """What a click on an item adds to the score of every other: the model of EASE."""

    title = "item-item"
    least_clicks: int = knob(
        0,
        0,
        1_000_000_000,
        "clicks",
        "item-item: items with fewer stay out of the table, and score 0; 0 takes every item",
        live=False,
        usual=(0, 50),
        group=GROUP,
    )
    memory_gb: float = knob(
        8.0,
        1e-6,
        1e6,
        "GB",
        "item-item: what the table of all pairs of items may take while it is made, 40 bytes each",
        live=False,
        log=True,
        usual=(0.5, 64.0),
        group=GROUP,
    )

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings; `ParameterError` for a table that would not fit."""
        require(task == "clicks", "task", task, "the model item-item ranks; set task='clicks'")
        kept = frequent(train.item_counts(), self.least_clicks, BYTES, self.memory_gb)
        return item_item(train.item_count, kept)


def item_item(items: int, kept: Tensor | None = None) -> Model:
    """The model whose `item_item` (T, T) is B; its row t is of the item kept[t].

    kept (T,): the items of the table, growing, by default all I. A score hangs on all that a user
    clicked, so it comes from `Ease.score`; `ParameterError` where a pair is to be predicted alone.

    >>> item_item(3).init(0)["item_item"].shape
    torch.Size([3, 3])
    """
    kept = torch.arange(items) if kept is None else kept

    def predict(p: Tree, batch: Tree) -> Tensor:
        raise ParameterError(
            "model='item-item': it is solved for and scores from all that a user clicked; set "
            "local='ease', or take matrix factorisation"
        )

    return Model(
        "item-item",
        "clicks",
        lambda _: {"item_item": torch.zeros(len(kept), len(kept))},
        predict,
        {"item_item": "item"},
        constants={"kept": kept},
    )


@register
class Ease(Local):
    """Each client sends the pairs of its items; the server's half inverts their sum.

    It is for the model `item_item`. A platform of several users sends the sum over them.
    """

    ridge: float = knob(
        300.0,
        1e-6,
        1e9,
        "clicks",
        "ease: strength of the ridge, added to how often each item was clicked",
        log=True,
        usual=(1.0, 10_000.0),
        group=GROUP,
    )
    recency: float = recency()

    def adds(self) -> dict[str, Any]:
        """The facts that all clients are equal and that second moments are right only in a sum."""
        return {"equal": True, "second moments": True}

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` for another model, or data other than clicks."""
        fits = "item_item" in context.model.rows and context.data.task == "clicks"
        require(
            fits,
            "model",
            context.model.name,
            "ease needs its own, on clicks; set model='item-item'",
        )

    def asks(self, context: RoundContext) -> dict[str, tuple[Tensor, str]]:
        """How often each pair of items was clicked together, (P,)."""
        table = context.params["item_item"]
        return {"pairs": (table.new_zeros(1).expand(pair_count(len(table))), "pair")}

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield the pairs of each client's items, and how many of its users clicked both.

        A client without an item of the table sends one 0, so that it counts as one that is there.
        """
        context.notes["bytes_down"] = 0  # nothing is needed to count one's own pairs
        kept, own = context.model.constants["kept"].cpu(), context.data.counts[cohort]
        pairs = own * (own + 1) // 2
        _, sizes = ((pairs.cumsum(0) - pairs) // PAIRS).unique_consecutive(return_counts=True)
        for here in cohort.split(sizes.tolist()):
            rows = co_clicks(context.data, here, kept)
            none = torch.zeros(len(here))
            mine = Rows(*(t.to(context.params["item_item"].device) for t in rows))
            yield Update({"pairs": mine}, none + 1, none, here, none + 1)

    def finish(self, delta: Delta, context: RoundContext) -> Delta:
        """How far B moves, given the mean of what the cohort sent and of earlier rounds."""
        mean, table = whole(delta["pairs"], context.server["pairs"]), context.params["item_item"]
        known = context.memory(self)
        total = known.get("share", 0.0) + context.share
        if "pairs" in known:
            mean = torch.lerp(known["pairs"].to(mean), mean, context.share / total)
        context.memory(self).update(pairs=mean, share=total)
        gram = unpacked(mean.cpu(), len(table)).mul_(len(context.data))
        return {"item_item": ease_weights(gram, self.ridge).to(table).sub_(table)}

    def score(self, model: Model, data: Any, done: Round) -> Score:
        """Add up the rows of B of what each user clicked, as its client does to recommend."""
        table, kept = done.params["item_item"].cpu(), model.constants["kept"].cpu()
        return by_history(data.train, table, self.recency, kept)

    def recommend(self, weights: Tree, clicks: Tensor) -> Tensor:
        """Scores (I,) of all items for somebody, known here or not.

        weights: the table `item_item` (T, T), and `kept` (T,), which items it is of; those outside
        score 0. clicks (I,): how much each weighs, as `recent` says, 0 where there is none.
        """
        kept, scores = weights["kept"].cpu(), torch.zeros_like(clicks)
        scores[kept] = clicks[kept] @ weights["item_item"].cpu()
        return scores


def pair_count(items: int) -> int:
    """P: how many pairs there are of so many items, each with itself included.

    >>> pair_count(3)
    6
    """
    return items * (items + 1) // 2


def co_clicks(data: Source, cohort: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many of each client's users clicked both items of a pair.

    Returns three (m,), client after client and pairs growing: how many, the pair, and the client's
    place in the cohort (C,). Pair (a, b) of places a <= b in `kept` (T,) has the number
    a T - a (a - 1) / 2 + b - a.
    """
    size, every = len(kept), torch.arange(len(cohort))
    client, item = _histories(data, cohort, kept)
    _, counts = client.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).repeat_interleave(counts)
    each = ends - torch.arange(len(item))  # of an item, with those of its run from itself on
    first = torch.arange(len(item)).repeat_interleave(each)
    second = first + torch.arange(len(first)) - (each.cumsum(0) - each)[first]
    a, b = item[first], item[second]
    owner = (client >> 32)[first]
    key = owner * pair_count(size) + a * size - a * (a - 1) // 2 + b - a
    silent = every[~torch.isin(every, owner)] * pair_count(size)
    keys, place = torch.cat([key, silent]).unique(return_inverse=True)
    told = torch.zeros(len(keys)).index_add_(0, place[: len(key)], torch.ones(len(key)))
    return told, keys % pair_count(size), keys // pair_count(size)


def _histories(data: Source, cohort: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """(client << 32 | user (n,), place of the item in `kept` (n,)), growing."""
    drawn = data.draw(cohort, 1, 0, Key(0, "order"))
    client, item = drawn["client"].cpu().long(), drawn["item"].cpu().long()
    user = drawn["user"].cpu().long() if "user" in drawn else client
    at = torch.searchsorted(kept, item).clamp(max=len(kept) - 1)
    mine = kept[at] == item
    who, at = (client << 32 | user)[mine], at[mine]
    order = at.argsort(stable=True)
    order = order[who[order].argsort(stable=True)]
    return who[order], at[order]


def unpacked(pairs: Tensor, items: int) -> Tensor:
    """Sums over pairs (P,) as the symmetric table (T, T), in float64.

    >>> unpacked(torch.tensor([1.0, 2.0, 3.0]), 2)
    tensor([[1., 2.],
            [2., 3.]], dtype=torch.float64)
    """
    table, rows = torch.empty(items, items, dtype=torch.float64), range(items)
    for a, row in zip(rows, pairs.split([items - a for a in rows]), strict=True):
        table[a, a:] = row
        table[a:, a] = row
    return table
