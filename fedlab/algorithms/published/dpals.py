"""DPALS: alternating least squares of which the server sees nothing but noisy sums.

The loss is that of `fedlab.algorithms.implicit`, and so is the client's half of a step: it solves
its own user's vector p_u, from all that it clicked, and keeps it. The server solves every item,

    (A_i + w0 s G + reg (m_i + w0 s) I) q_i = b_i       A_i = mean_u c_ui p_u p_u'
                                                        b_i = mean_u c_ui p_u
                                                        G   = mean_u p_u p_u'

where all p_u have the length R, or are as they were solved where R is 0, and the squares of a
user's weights c_ui add up to 1 at most. So a user's part of A, b and G has a length of at most R^2,
R and R^2. A client sends the three as one vector of a length of 1 or less, of whose square each has
a fixed share. A clip of 1 shortens nobody, and noise behind it makes the rest:
`uplink=[Clip(), GaussianNoise()]`. One sum with such shares is as private as three sums with a
noise for each.

The first round counts how often items were clicked, sum_u x_u / |x_u|, in the same way. Only those
with the largest counts are learned. Noise makes of A_i and G what no second moments are, and the
nearest matrices that could be are taken for them. What the server does behind the noise costs no
privacy.

Weights come in two kinds. As in 2021, a client sends its `items_each` rarest items, each with the
weight 1 / sqrt(items_each). As in 2023, and by default, it sends all of them, and an item of count
n weighs n ** -rarity, over the length of all its weights; n is a fifth of the mean count at least.
Few people clicked a rare item, and so they have to speak up to be heard above the noise. m_i, the
mean of c_ui, and s, what c_ui is on average for a click, follow from the counts.

This differs from the papers in three things. They shorten p_u where it is longer than R; here it
becomes longer, too, where it is shorter, as its noise is the same. Both sides of a step are
regularised as in `implicit`. And all rounds have the same noise, that of the counts among them.

Letters: U users, I items, T of them learned, D dimensions, E = D (D + 1) / 2, x_u 1 for the items
of a user, C clients in a group, n clicks of them.

Sources: Chien et al. 2021, "Private alternating least squares: practical private matrix completion
with tighter rates", algorithms 1 and 2; Krichene et al. 2023, "Multi-task differential privacy
under distribution skew", section 4 (weights by counts); their code, `dp_alternating_minimization`
of google-research, where the papers are silent (the weight of unseen items, the noise on G).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedlab.algorithms.implicit import GROUP_SIZE, Implicit, click_rows, clicked
from fedlab.core import Delta, RoundContext, Rows, Update, knob, register, whole

GROUP = "dpals"
GRAM = 0.05  # share of the squared length that G has
LEAST = 1e-3  # clicks that an item has, whatever noise made of its count
RARE = 0.2  # of the mean count of those learned: below it, counts are taken for noise


@register
class DPALS(Implicit):
    """Each client solves its own vector; the server solves the items from bounded sums.

    It is for a model with the parameters `user` and `item`, one client per user. The first round
    counts, so `rounds` is one more than the steps. A clip of 1 shortens nobody.
    """

    title = "dpals"
    user_length: float = knob(
        0.1,
        0.0,
        1e3,
        "L2 norm",
        "dpals: of a user's vector in what is sent (R); 0 leaves it as it was solved",
        usual=(0.0, 1.0),
        group=GROUP,
    )
    items_each: int = knob(
        0,
        0,
        1_000_000,
        "items",
        "dpals: how many of a user's items are sent, the rarest ones; 0 sends all, with weights",
        usual=(0, 100),
        group=GROUP,
    )
    rarity: float = knob(
        0.25,
        0.0,
        1.0,
        "",
        "dpals: an item that was counted n times weighs n ** -rarity, where all are sent",
        group=GROUP,
    )
    kept_items: int = knob(
        0,
        0,
        1_000_000_000,
        "items",
        "dpals: how many are learned, those that were counted most; 0 for all",
        usual=(0, 3000),
        group=GROUP,
    )
    moments: float = knob(
        0.1,
        0.001,
        0.9,
        "of the length squared",
        "dpals: what the second moments of items (A) have of what a client sends",
        group=GROUP,
    )

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The weights' exponent where as many items are sent of everybody."""
        return ("rarity",) if self.items_each else ()

    def asks(self, context: RoundContext) -> dict[str, tuple[Tensor, str]]:
        """First how often items were clicked (I,); then A (I, E), b (I, D) and G (1, E)."""
        items = context.params["item"]
        if "count" not in context.memory(self):
            return {"count": (items.new_zeros(len(items)), "item")}
        moments = items.new_zeros(len(items), pairs(items.shape[1]))
        return {
            "moments": (moments, "item"),
            "first": (items.new_zeros(items.shape), "item"),
            "gram": (moments[:1], "one"),
        }

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield what a client counted, or its part of A, b and G, of length 1 or less.

        Its vector stays with the client.
        """
        items, count = context.params["item"], context.memory(self).get("count")
        context.notes["bytes_down"] = 0
        for here in cohort.split(GROUP_SIZE):
            clicks, owners = clicked(context.data, here)
            client, films = (t.to(items.device) for t in click_rows(clicks))
            ones = torch.ones(len(here), device=items.device)
            if count is None:
                weights = self._counted(client, len(here))
                counts = {"count": Rows(weights, films, client)}
                yield Update(counts, ones, torch.zeros_like(ones), here, ones)
                continue
            solver = self._solver(items, self.strength(context.data, len(items)))
            vectors, _, losses = solver.gradients(clicks)
            own, owners = self._bounded(vectors), owners.to(items.device)
            weights, kept = self._weights(client, films, count, len(here))
            context.notes["bytes_down"] += 4 * (items[:1].numel() + 1) * len(films)
            context.notes["bytes_down"] += 4 * len(here) * pairs(items.shape[1])
            sent = self._sums(own, weights[kept], films[kept], client[kept])
            places = torch.arange(len(here), device=items.device)
            moved = vectors - context.params["user"].index_select(0, owners)
            sent["user"] = Rows(moved, owners, places)
            yield Update(sent, ones, losses, here, ones)

    def _bounded(self, vectors: Tensor) -> Tensor:
        """The vectors (C, D) with the length 1, as what is sent has R as its unit."""
        return torch.nn.functional.normalize(vectors) if self.user_length else vectors

    def _sums(self, own: Tensor, weights: Tensor, films: Tensor, client: Tensor) -> dict[str, Rows]:
        """What clients of the vectors (C, D) send; weights, films and client (n,): of clicks."""
        outer, places = packed(own), torch.arange(len(own), device=own.device)
        moments = self.moments**0.5 * weights[:, None] * outer[client]
        first = (1 - self.moments - GRAM) ** 0.5 * weights[:, None] * own[client]
        return {
            "moments": Rows(moments, films, client),
            "first": Rows(first, films, client),
            "gram": Rows(GRAM**0.5 * outer, torch.zeros_like(places), places),
        }

    def _counted(self, client: Tensor, clients: int) -> Tensor:
        """(n,) the weight of each click where clicks are counted: of one length, or less."""
        own = torch.bincount(client, minlength=clients).clamp(min=max(1, self.items_each))
        return own.float().rsqrt()[client]

    def _weights(
        self, client: Tensor, films: Tensor, count: Tensor, clients: int
    ) -> tuple[Tensor, Tensor]:
        """(n,) the weight of each click, and whether it is sent."""
        kept, often = self._learned(count)[films], count[films]
        if self.items_each:
            order = often.where(kept, torch.inf).argsort(stable=True)
            order = order[client[order].argsort(stable=True)]
            own = torch.bincount(client, minlength=clients)
            place = torch.empty_like(order)
            place[order] = torch.arange(len(order), device=order.device)
            kept &= place - (own.cumsum(0) - own)[client] < self.items_each
            return torch.full_like(often, self.items_each**-0.5), kept
        raw = self._loud(count, self._learned(count))[films] * kept
        length = raw.new_zeros(clients).index_add_(0, client, raw.square()).sqrt()
        return raw / length.clamp(min=1e-12)[client], kept

    def _loud(self, count: Tensor, learned: Tensor) -> Tensor:
        """(I,) how much an item weighs beside others of a user, given counts (I,)."""
        least = RARE * float(count[learned].mean())
        loud: Tensor = count.clamp(min=max(LEAST, least)) ** -self.rarity
        return loud

    def _learned(self, count: Tensor) -> Tensor:
        """(I,) whether an item is among those that were counted most."""
        most = self.kept_items or len(count)
        if most >= len(count):
            return torch.ones_like(count, dtype=torch.bool)
        chosen = count.argsort(descending=True, stable=True)[:most]
        return torch.zeros_like(count, dtype=torch.bool).index_fill_(0, chosen, True)

    def finish(self, delta: Delta, context: RoundContext) -> Delta:
        """How far the items move: to unit length after the counts, then to the solution.

        Items that are not learned are zero.
        """
        items, memory = context.params["item"], context.memory(self)
        if "count" not in memory:
            mean = whole(delta["count"], context.server["count"])
            memory["count"] = mean * len(context.data)
            start = torch.nn.functional.normalize(items)
            return {"item": start * self._learned(memory["count"])[:, None] - items}
        chosen = self._learned(memory["count"]).nonzero()[:, 0]
        sums = {name: whole(delta[name], like).double() for name, like in context.server.items()}
        found = torch.zeros_like(items)
        found[chosen] = self._solved(sums, memory["count"][chosen], chosen, context).to(items)
        return {"item": found - items}

    def _solved(
        self, sums: Mapping[str, Tensor], count: Tensor, chosen: Tensor, context: RoundContext
    ) -> Tensor:
        """The vectors (T, D) of the items chosen (T,), of counts (T,), for means over clients."""
        length, items = self.user_length or 1.0, context.params["item"]
        w0, reg = self.strength(context.data, len(items))
        outer = sums["moments"][chosen] * (length**2 / self.moments**0.5)
        first = sums["first"][chosen] * (length / (1 - self.moments - GRAM) ** 0.5)
        gram = sums["gram"][0] * (length**2 / GRAM**0.5)
        some = count.double().clamp(min=LEAST)
        weight = some / len(context.data)  # m
        if not self.items_each:
            loud = self._loud(count.double(), torch.ones_like(count, dtype=torch.bool))
            weight *= loud / ((some * loud.square()).sum() / some.sum()).sqrt()
        click = weight.sum() / (w0 * len(items) / self.unseen)  # s, by the mean of clicks
        unseen = w0 * click * second_moments(gram[None], items.shape[1])
        strength = reg * (weight + w0 * click)
        eye = torch.eye(items.shape[1]).to(outer)
        left = second_moments(outer, items.shape[1]) + unseen + strength[:, None, None] * eye
        return torch.linalg.solve(left, first)


def pairs(dim: int) -> int:
    """E, how many numbers a symmetric matrix of `dim` rows has.

    >>> pairs(3)
    6
    """
    return dim * (dim + 1) // 2


def packed(vectors: Tensor) -> Tensor:
    """(n, E) the upper triangles of p p' for vectors p (n, D), as long as p p' as a whole.

    >>> packed(torch.tensor([[1.0, 2.0]])).square().round()  # the squares of 1, 2, 2 and 4
    tensor([[ 1.,  8., 16.]])
    """
    first, second, size = _triangle(vectors, vectors.shape[1])
    return vectors[:, first] * vectors[:, second] * size


def second_moments(triangles: Tensor, dim: int) -> Tensor:
    """(n, D, D) the matrices without negative eigenvalues that are nearest to `packed` ones (n, E).

    >>> second_moments(packed(torch.tensor([[1.0, 2.0]])), 2).round(decimals=3)
    tensor([[[1., 2.],
             [2., 4.]]])
    """
    first, second, size = _triangle(triangles, dim)
    found = triangles.new_zeros(len(triangles), dim, dim)
    found[:, first, second] = found[:, second, first] = triangles / size
    squares, axes = torch.linalg.eigh(found)
    return (axes * squares.clamp(min=0)[:, None]) @ axes.mT


def _triangle(like: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns (E,) of an upper triangle; how much longer (E,) each number is packed."""
    first, second = torch.triu_indices(dim, dim, device=like.device)
    return first, second, torch.where(first == second, 1.0, 2**0.5).to(like)
