"""From a cohort's updates to one delta: a function (updates, server parameters) -> delta for each name.

Updates come chunk by chunk, so a sum needs no more memory than the server's own parameters.

Letters: C clients in the cohort, R rows touched.
Sources: McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data",
algorithm 1; Ding et al. 2022, "Federated submodel optimization for hot and cold data features".
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fedlab.core import Tree, Update

Aggregate = Callable[[Iterable[Update], Tree], Tree]


def weighted_mean(updates: Iterable[Update], server: Tree) -> Tree:
    """FedAvg: sum_k w_k delta_k / sum_k w_k. A row a client does not hold counts as 0."""
    sums: Tree = {}
    total = 0.0
    for update in updates:
        total += float(update.weights.sum())
        _add(sums, update, server)
    return {name: value.div_(total) for name, value in sums.items()}


def mean_of_holders(updates: Iterable[Update], server: Tree) -> Tree:
    """FedSubAvg: each row is the weighted mean over the clients that hold it, so rare items are not diluted.

    The same as FedAvg for a parameter that every client holds. Ding et al. 2022, eq. 5.
    """
    sums: Tree = {}
    held: Tree = {}
    for update in updates:
        _add(sums, update, server)
        for name, delta in update.deltas.items():
            at = held.setdefault(name, torch.zeros(len(server[name]), device=update.weights.device))
            at.index_add_(0, delta.ids, update.weights[delta.client])
    return {name: value.div_(held[name].where(held[name] > 0, 1.0).view((-1,) + (1,) * (value.dim() - 1)))
            for name, value in sums.items()}


def _add(sums: Tree, update: Update, server: Mapping[str, Tensor]) -> None:
    """Add each client's delta times its weight to `sums`, which start at zero."""
    for name, delta in update.deltas.items():
        sums[name] = delta.add_to(sums[name] if name in sums else torch.zeros_like(server[name]), update.weights)
