"""Aggregation that a few bad clients cannot steer.

Coordinate median, trimmed mean, Krum, norm bound, row bound.

Median and trimmed mean ask the clients that hold a row, all alike: with the others' zeros a rare
row would never move. Krum compares whole deltas, in which a row that a client does not hold is 0.
All but the two bounds keep a cohort's deltas until the last has come.

Letters: C clients in the cohort, R rows sent, H holders of a row, T different rows. Sources: Yin et
al. 2018, "Byzantine-robust distributed learning", definitions 1 and 2; Blanchard et al. 2017,
"Machine learning with adversaries", section 4 (Krum, Multi-Krum); Sun et al. 2019, "Can you really
backdoor federated learning?", section 3.3 (norm bound); Yuan et al. 2023, "Manipulating federated
recommender systems: poisoning with synthetic users and its countermeasures", section 5 (bounds by
item).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from fedlab.aggregation.mean import (
    Aggregate,
    Delta,
    NoDeltaError,
    Sums,
    joined_updates,
    weighted_mean,
)
from fedlab.core import Rows, Tree, Update, arranged, norms, require


def coordinate_median(updates: Iterable[Update], server: Tree) -> Delta:
    """Each number is the median over the clients that hold its row.

    The mean of the middle two of an even count.
    """
    return _by_row(updates, lambda sorted_: (sorted_[:, (sorted_.shape[1] - 1) // 2]
                                             + sorted_[:, sorted_.shape[1] // 2]) / 2)


def trimmed_mean(share: float = 0.1) -> Aggregate:
    """Each number is the mean over its holders without the `share` largest and the `share` smallest, rounded down."""
    require(0 <= share < 0.5, "trim", share,
            "choose a share from 0 to below 0.5; 0.5 leaves nobody")

    def rule(updates: Iterable[Update], server: Tree) -> Delta:
        def middle(values: Tensor) -> Tensor:
            cut = int(share * values.shape[1])
            return values[:, cut:values.shape[1] - cut].mean(1)
        return _by_row(updates, middle)
    return rule


def _by_row(updates: Iterable[Update], middle: Callable[[Tensor], Tensor]) -> Delta:
    """`middle` (T, H, ...) -> (T, ...) of the sorted values of all rows with H holders.

    For each H.
    """
    found: dict[str, Rows] = {}
    for name, rows in joined_updates(updates).deltas.items():
        order = rows.ids.argsort(stable=True)
        ids, holders = rows.ids[order].unique_consecutive(return_counts=True)
        starts, values = holders.cumsum(0) - holders, rows.values.new_empty(len(ids),
                                                                            *rows.values.shape[1:])
        for count in holders.unique().tolist():
            here = (holders == count).nonzero()[:, 0]
            places = order[starts[here, None] + torch.arange(count, device=order.device)]  # (T, H)
            values[here] = middle(arranged(rows.values, places).sort(1).values)
        found[name] = Rows(values, ids, torch.zeros_like(ids))
    return found


def krum(byzantine: int = 1, keep: int = 1) -> Aggregate:
    """The delta that is closest to its C - f - 2 nearest.

    Multi-Krum averages the `keep` closest, each alike.

    byzantine: f, how many bad clients it should stand; it needs C >= 2 f + 3.
    """
    require(byzantine >= 0, "byzantine", byzantine, "choose 0 or more")
    require(keep >= 1, "keep", keep, "choose 1 or more")

    def rule(updates: Iterable[Update], server: Tree) -> Delta:
        every = joined_updates(updates)
        clients = len(every.cohort)
        if clients < 2 * byzantine + 3:
            raise NoDeltaError(
                f"byzantine={byzantine}: Krum needs {2 * byzantine + 3} clients and has {clients}; "
                "choose a larger cohort, or expect fewer bad clients")
        scores = krum_scores(every, byzantine)
        kept = torch.zeros(clients, dtype=torch.bool)
        kept[scores.argsort(stable=True)[:keep].cpu()] = True
        return weighted_mean([replace(every, weights=torch.ones_like(every.weights)).only(kept)],
                             server)
    return rule


def krum_scores(update: Update, byzantine: int) -> Tensor:
    """(C,) sum of the squared distances to each client's C - f - 2 nearest others."""
    clients = len(update.cohort)
    products = sum(_products(rows, clients) for rows in update.deltas.values())
    assert isinstance(products, Tensor)
    squares = products.diagonal()
    distances = (squares[:, None] + squares - 2 * products).clamp(min=0)
    return distances.fill_diagonal_(torch.inf).sort(1).values[:, :clients - byzantine - 2].sum(1)


def _products(rows: Rows, clients: int, chunk: int = 1024) -> Tensor:
    """(C, C) inner products of the clients' deltas, in float64.

    `chunk` different rows at a time.
    """
    found = rows.values.new_zeros(clients, clients, dtype=torch.float64)
    order = rows.ids.argsort(stable=True)
    ids, place = rows.ids[order].unique_consecutive(return_inverse=True)
    for first in range(0, len(ids), chunk):
        low, high = torch.searchsorted(place, torch.tensor([first, first + chunk],
                                                           device=place.device)).tolist()
        here, at = order[low:high], place[low:high] - first
        dense = rows.values.new_zeros(clients, min(chunk, len(ids) - first), *rows.values.shape[1:])
        dense[rows.client[here], at] = rows.values[here]
        flat = dense.flatten(1).double()
        found += flat @ flat.T
    return found


def norm_bound(bound: float) -> Aggregate:
    """FedAvg of min(1, bound / norm) delta.

    Those with an L2 norm above `bound` are scaled down to it.

    The factor goes into a client's weight in the sum, so no delta is copied.
    """
    require(0 < bound < float("inf"), "bound", bound,
            "choose a positive number, say the usual norm of a delta")

    def rule(updates: Iterable[Update], server: Tree) -> Delta:
        sums = Sums(server)
        for update in updates:
            factor = (bound / norms(update.deltas, len(update.cohort))).clamp(max=1)
            sums.add(update, factor.to(update.weights))
        return sums.mean()
    return rule


def row_bound(bound: float, then: Aggregate = weighted_mean) -> Aggregate:
    """Each row of each delta is scaled down to an L2 norm of `bound`.

    So that no film moves far for one client's sake.

    A delta that is all in one row passes a bound on the whole; one that is long in many rows passes
    this: hand a `norm_bound` to `then` for both. A weight that all clients hold counts as one row.
    """
    require(0 < bound < float("inf"), "bound", bound,
            "choose a positive number, say the longest usual row of a delta")

    def cut(rows: Rows) -> Rows:
        factor = (bound / rows.lengths()).clamp(max=1)
        return replace(rows, values=rows.values * factor.view(-1, *[1] * (rows.values.dim() - 1)))

    def rule(updates: Iterable[Update], server: Tree) -> Delta:
        return then((replace(u, deltas={n: cut(r) for n, r in u.deltas.items()}) for u in updates),
                    server)
    return rule
