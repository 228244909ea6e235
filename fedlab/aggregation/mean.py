"""From a cohort's updates to one delta.

A function (updates, server parameters) -> delta for each name.

Updates come chunk by chunk and are summed as they come, so no more than the server's own parameters
is kept. The delta of a table of which few rows changed is `Rows` of these, to be added; any other
is a Tensor.

Letters: C clients in the cohort, R rows touched. Sources: McMahan et al. 2017,
"Communication-efficient learning of deep networks from decentralized data", algorithm 1; Ding et
al. 2022, "Federated submodel optimization for hot and cold data features".
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedlab.core import ParameterError, Rows, Tree, Update, require

Delta = Mapping[str, Tensor | Rows]
Aggregate = Callable[[Iterable[Update], Tree], Delta]


class NoDeltaError(ParameterError):
    """These updates make no delta.

    A round that lost clients is skipped, one that lost none has wrong settings.
    """


def weighted_mean(updates: Iterable[Update], server: Tree) -> Delta:
    """FedAvg: sum_k w_k delta_k / sum_k w_k. A row a client does not hold counts as 0."""
    sums = Sums(server)
    for update in updates:
        sums.add(update)
    return sums.mean()


def mean_of_holders(updates: Iterable[Update], server: Tree) -> Delta:
    """FedSubAvg.

    Each row is the weighted mean over the clients that hold it, so rare items are not diluted.

    The same as FedAvg for a parameter that every client holds. Ding et al. 2022, eq. 5.
    """
    sums, held = Sums(server), dict[str, Tensor]()
    for update in updates:
        sums.add(update)
        for name, delta in update.deltas.items():
            at = held.setdefault(name, torch.zeros(len(server[name]), device=update.weights.device))
            at.index_add_(0, delta.ids, update.weights[delta.client])
    return sums.divided({name: weight.where(weight > 0, 1.0) for name, weight in held.items()})


def given(alpha: Sequence[float] | Tensor, then: Aggregate = weighted_mean) -> Aggregate:
    """The mean with a weight of your own for each client.

    Sum_k alpha_k delta_k / sum_k alpha_k over the cohort.

    alpha (N,): by client number, 0 or more.
    """
    weights = torch.as_tensor(alpha, dtype=torch.float32)
    bad = (~((weights >= 0) & weights.isfinite())).nonzero()
    require(not len(bad), "alpha", [float(weights[k]) for k in bad[:1, 0]],
            "choose finite weights of 0 or more")
    require(bool(weights.sum() > 0), "alpha", weights.tolist()[:8],
            "all are 0; give at least one client a weight")

    def rule(updates: Iterable[Update], server: Tree) -> Delta:
        return then((replace(u, weights=weights[u.cohort].to(u.weights)) for u in updates), server)
    return rule


def hierarchical(platform: Tensor, inner: Aggregate = weighted_mean,
                 outer: Aggregate = weighted_mean) -> Aggregate:
    """Devices -> platform -> server.

    Each platform aggregates its own devices, the server aggregates platforms.

    platform (N,): of each client. A platform weighs as much as its devices together, so that two
    weighted means are one. Liu et al. 2020, "Client-edge-cloud hierarchical federated learning",
    algorithm 1 with one edge round.
    """
    def rule(updates: Iterable[Update], server: Tree) -> Delta:
        every = joined_updates(updates)
        mine = platform[every.cohort]
        parts = []
        for number in mine.unique().tolist():
            own = every.only(mine == number)
            delta = inner([own], server)
            rows = {name: as_rows(d) for name, d in delta.items()}
            parts.append(Update(rows, own.weights.sum()[None], own.losses.mean()[None],
                                torch.tensor([number]), own.steps.sum()[None]))
        return outer(parts, server)
    return rule


def as_rows(delta: Tensor | Rows) -> Rows:
    """A delta as what one client would send."""
    if isinstance(delta, Rows):
        return replace(delta, client=torch.zeros_like(delta.client))
    ids = torch.arange(len(delta), device=delta.device)
    return Rows(delta, ids, torch.zeros_like(ids))


def joined_updates(updates: Iterable[Update]) -> Update:
    """All chunks of a cohort as one. Raises `NoDeltaError` when there are none."""
    parts = list(updates)
    some_weight(float(len(parts)))
    first, deltas = 0, []
    for part in parts:
        deltas.append({name: replace(d, client=d.client + first) for name,
                       d in part.deltas.items()})
        first += len(part.cohort)
    columns = ((getattr(part, name) for part in parts) for name in ("weights", "losses", "cohort",
                                                                    "steps"))
    return Update({name: Rows.joined([d[name] for d in deltas]) for name in deltas[0]},
                  *(torch.cat(list(column)) for column in columns))


def some_weight(total: float) -> None:
    """Raise `NoDeltaError` when there is nothing to average."""
    if not total > 0:
        raise NoDeltaError("no client is left, or all weights are 0; the model stays as it is")


class Sums:
    """Weighted sums of deltas.

    As rows while these are fewer than the table's own, then as a whole tensor.
    """

    def __init__(self, server: Tree) -> None:
        """Nothing added yet. server: for the shapes."""
        self.server = server
        self.rows: dict[str, list[Rows]] = {}
        self.whole: Tree = {}
        self.weights: list[float] = []

    @property
    def total(self) -> float:
        """The sum of all weights, rounded once, so that it hangs on no order."""
        return math.fsum(self.weights)

    def add(self, update: Update, factor: Tensor | float = 1.0) -> None:
        """Add each client's delta times its weight.

        And times a factor (C,) that the weights' total does not have.
        """
        weights = update.weights * factor
        self.weights += update.weights.tolist()
        for name, delta in update.deltas.items():
            kept = self.rows.setdefault(name, [])
            if name not in self.whole and len(delta.ids) + sum(len(r.ids)
                                                               for r in kept) < len(
                self.server[name]):
                kept.append(delta.scaled(weights))
                continue
            out = self.whole.setdefault(name, torch.zeros_like(self.server[name]))
            for rows in kept:
                out.index_add_(0, rows.ids, rows.values)
            kept.clear()
            delta.add_to(out, weights)

    def mean(self) -> Delta:
        """The sums over the total weight."""
        return self.divided(dict.fromkeys(self.server, torch.tensor([self.total])))

    def divided(self, by: Tree) -> Delta:
        """The sums over `by`, for each name a number for each row, or one for all, (rows or 1,)."""
        some_weight(self.total)

        def over(name: str, values: Tensor, at: Tensor | slice) -> Tensor:
            divisor = by[name].to(values.device)
            return values.div_((divisor if len(divisor) == 1 else divisor[at]).view((-1,) + (1,
                                                                                             )
                                                                                    * (values.dim()
                                                                                       - 1)))
        few = {name: Rows.joined(kept) for name, kept in self.rows.items() if kept}
        return ({name: Rows(over(name, rows.values, rows.ids), rows.ids, rows.client) for name,
                 rows in few.items()} | {name: over(name, value, slice(None)) for name,
                                         value in self.whole.items()})
