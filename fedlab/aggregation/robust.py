"""Robust aggregation, which a few bad clients cannot steer: medians, trimmed means, Krum, bounds.

Median and trimmed mean take only the clients that hold a row, all with equal weight: with the zeros
of the others a rare row would never move. Krum compares whole deltas, in which a row that a client
does not hold is 0. All but the two bounds keep a cohort's deltas until the last has come.

Letters: C clients in the cohort, R rows sent, H holders of a row, T different rows. Sources: Yin et
al. 2018, "Byzantine-robust distributed learning", definitions 1 and 2; Blanchard et al. 2017,
"Machine learning with adversaries", section 4 (Krum, Multi-Krum); Sun et al. 2019, "Can you really
backdoor federated learning?", section 3.3 (norm bound); Yuan et al. 2023, "Manipulating federated
recommender systems: poisoning with synthetic users and its countermeasures", section 5 (bounds by
item).
"""

from collections.abc import Callable, Iterable
from dataclasses import field, replace

import torch
from torch import Tensor

from fedlab.aggregation.mean import NoDeltaError, Weighted, WeightedMean, joined_updates
from fedlab.core import Aggregation, Delta, Rows, Tree, Update, arranged, knob, norms, register

GROUP = "aggregation"


def kept_models() -> int:
    """The knob of rules that average the best clients."""
    keep: int = knob(
        1,
        1,
        100_000,
        "clients",
        "krum and best models: how many are averaged",
        live=False,
        usual=(1, 20),
        group=GROUP,
    )
    return keep


def length_bound() -> float:
    """The knob of rules that shorten what is long."""
    bound: float = knob(
        1.0,
        1e-6,
        1e6,
        "",
        "norm bound, row bound: longest delta, or row of it (L2)",
        live=False,
        log=True,
        usual=(0.01, 10.0),
        group=GROUP,
    )
    return bound


@register
class CoordinateMedian(Aggregation):
    """Each number is the median over the clients that hold its row.

    Of an even number of clients, it is the mean of the middle two.
    """

    @property
    def weighs(self) -> bool:
        """All clients count alike."""
        return False

    def delta(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The medians of the rows that somebody sent."""
        return _by_row(
            updates,
            lambda sorted_: (
                (sorted_[:, (sorted_.shape[1] - 1) // 2] + sorted_[:, sorted_.shape[1] // 2]) / 2
            ),
        )


@register
class TrimmedMean(Aggregation):
    """Each number is the mean over its holders without the share `trim` at either end.

    How many are cut off is rounded down.
    """

    trim: float = knob(
        0.1,
        0.0,
        0.49,
        "of the clients",
        "trimmed mean: share cut off at each end",
        live=False,
        usual=(0.0, 0.45),
        group=GROUP,
    )

    @property
    def weighs(self) -> bool:
        """All clients count alike."""
        return False

    def delta(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The means of the rows that somebody sent."""

        def middle(values: Tensor) -> Tensor:
            cut = int(self.trim * values.shape[1])
            return values[:, cut : values.shape[1] - cut].mean(1)

        return _by_row(updates, middle)


def _by_row(updates: Iterable[Update], middle: Callable[[Tensor], Tensor]) -> Delta:
    """Reduce the sorted values of each row over its holders by `middle`: (T, H, ...) -> (T, ...).

    `middle` is called for each number H of holders, with all the rows that have so many.
    """
    found: dict[str, Rows] = {}
    for name, rows in joined_updates(updates).deltas.items():
        order = rows.ids.argsort(stable=True)
        ids, holders = rows.ids[order].unique_consecutive(return_counts=True)
        starts, values = (
            holders.cumsum(0) - holders,
            rows.values.new_empty(len(ids), *rows.values.shape[1:]),
        )
        for count in holders.unique().tolist():
            here = (holders == count).nonzero()[:, 0]
            places = order[starts[here, None] + torch.arange(count, device=order.device)]  # (T, H)
            values[here] = middle(arranged(rows.values, places).sort(1).values)
        found[name] = Rows(values, ids, torch.zeros_like(ids))
    return found


@register
class Krum(Aggregation):
    """The plain mean of the `keep` deltas that are closest to their C - f - 2 nearest others.

    byzantine: f, how many bad clients it should stand; it needs C >= 2 f + 3.
    """

    byzantine: int = knob(
        1,
        0,
        100_000,
        "clients",
        "krum: how many bad clients it should stand (f)",
        live=False,
        usual=(0, 20),
        group=GROUP,
    )
    keep: int = kept_models()

    @property
    def weighs(self) -> bool:
        """All clients count alike."""
        return False

    def __call__(self, updates: Iterable[Update], server: Tree) -> Tree:
        """The delta by name."""
        every = joined_updates(updates)
        clients, needed = len(every.cohort), 2 * self.byzantine + 3
        if clients < needed:
            raise NoDeltaError(
                f"byzantine={self.byzantine}: Krum needs {needed} clients and has {clients}; "
                "choose a larger cohort, or expect fewer bad clients"
            )
        scores = krum_scores(every, self.byzantine)
        kept = torch.zeros(clients, dtype=torch.bool)
        kept[scores.argsort(stable=True)[: self.keep].cpu()] = True
        alike = replace(every, weights=torch.ones_like(every.weights))
        return WeightedMean()([alike.only(kept)], server)


def krum_scores(update: Update, byzantine: int) -> Tensor:
    """The sum (C,) of the squared distances from each client to its C - f - 2 nearest others."""
    clients = len(update.cohort)
    products = sum(_products(rows, clients) for rows in update.deltas.values())
    assert isinstance(products, Tensor)
    squares = products.diagonal()
    distances = (squares[:, None] + squares - 2 * products).clamp(min=0)
    return distances.fill_diagonal_(torch.inf).sort(1).values[:, : clients - byzantine - 2].sum(1)


def _products(rows: Rows, clients: int, chunk: int = 1024) -> Tensor:
    """The inner products (C, C) of the clients' deltas in float64, `chunk` rows at a time."""
    found = rows.values.new_zeros(clients, clients, dtype=torch.float64)
    order = rows.ids.argsort(stable=True)
    ids, place = rows.ids[order].unique_consecutive(return_inverse=True)
    for first in range(0, len(ids), chunk):
        low, high = torch.searchsorted(
            place, torch.tensor([first, first + chunk], device=place.device)
        ).tolist()
        here, at = order[low:high], place[low:high] - first
        dense = rows.values.new_zeros(clients, min(chunk, len(ids) - first), *rows.values.shape[1:])
        dense[rows.client[here], at] = rows.values[here]
        flat = dense.flatten(1).double()
        found += flat @ flat.T
    return found


@register
class NormBound(Weighted):
    """Deltas with an L2 norm above `bound` are scaled down to it: min(1, bound / norm) delta.

    then: what aggregates them, by default `WeightedMean()`.
    """

    bound: float = length_bound()
    then: Aggregation = field(default_factory=WeightedMean)

    @property
    def streams(self) -> bool:
        """Whether the aggregation behind it walks the updates once."""
        return self.then.streams

    @property
    def weighs(self) -> bool:
        """Whether the aggregation behind it asks for weights."""
        return self.then.weighs

    def delta(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The delta by name."""

        def cut(update: Update) -> Update:
            factor = (self.bound / norms(update.deltas, len(update.cohort))).clamp(max=1)
            factor = factor.to(update.weights)
            return replace(update, deltas={n: r.scaled(factor) for n, r in update.deltas.items()})

        bounded = (cut(update) for update in updates)
        return self.then.delta(bounded if self.then.streams else list(bounded), server)


@register
class RowBound(Weighted):
    """Each row of each delta is scaled down to an L2 norm of `bound`: no client moves an item far.

    A delta that is all in one row slips through a bound on the whole; one that is long in many rows
    slips through this bound: hand a `NormBound` to `then` for both. A weight that all clients hold
    counts as one row.
    """

    bound: float = length_bound()
    then: Aggregation = field(default_factory=WeightedMean)

    @property
    def streams(self) -> bool:
        """Whether the aggregation behind it walks the updates once."""
        return self.then.streams

    @property
    def weighs(self) -> bool:
        """Whether the aggregation behind it asks for weights."""
        return self.then.weighs

    def delta(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The delta by name."""

        def cut(rows: Rows) -> Rows:
            factor = (self.bound / rows.lengths()).clamp(max=1)
            return replace(
                rows, values=rows.values * factor.view(-1, *[1] * (rows.values.dim() - 1))
            )

        bounded = (replace(u, deltas={n: cut(r) for n, r in u.deltas.items()}) for u in updates)
        return self.then.delta(bounded if self.then.streams else list(bounded), server)
