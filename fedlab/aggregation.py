"""From a cohort's deltas to one: a function (deltas, weights, server parameters) -> one delta for each name.

Letters: C clients in the cohort, R rows touched.
Sources: McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data",
algorithm 1; Ding et al. 2022, "Federated submodel optimization for hot and cold data features".
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedlab.core import Rows, Tree

Aggregate = Callable[[Mapping[str, Rows], Tensor, Tree], Tree]


def weighted_mean(deltas: Mapping[str, Rows], weights: Tensor, server: Tree) -> Tree:
    """FedAvg: sum_k w_k delta_k / sum_k w_k, with weights (C,). A row a client does not hold counts as 0."""
    share = weights / weights.sum()
    return {name: delta.scaled(share).total(server[name]) for name, delta in deltas.items()}


def mean_of_holders(deltas: Mapping[str, Rows], weights: Tensor, server: Tree) -> Tree:
    """FedSubAvg: each row is the weighted mean over the clients that hold it, so rare items are not diluted.

    The same as FedAvg for a parameter that every client holds. Ding et al. 2022, eq. 5.
    """
    merged = {}
    for name, delta in deltas.items():
        held = torch.zeros(len(server[name]), device=weights.device).index_add_(0, delta.ids, weights[delta.client])
        total = delta.scaled(weights).total(server[name])
        merged[name] = total / held.where(held > 0, 1.0).view((-1,) + (1,) * (total.dim() - 1))
    return merged
