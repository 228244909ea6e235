"""From a cohort's updates to one delta: means, and how any rule becomes an aggregation.

Updates come chunk by chunk and are summed as they come, so no more than the server's own parameters
is kept.

Letters: N clients in all, C in the cohort, R rows touched.

Sources: McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized
data", algorithm 1; Ding et al. 2022, "Federated submodel optimization for hot and cold data
features".
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedlab.core import (
    Aggregation,
    Delta,
    ParameterError,
    RoundContext,
    Rows,
    Tree,
    Update,
    add_rows,
    knob,
    register,
    require,
)
from fedlab.models.losses import WHOLE

GROUP = "server step"

Rule = Callable[[Iterable[Update], Tree], Delta]


class NoDeltaError(ParameterError):
    """The updates make no delta.

    The loop skips such a round if it lost clients; if it lost none, its settings are wrong.
    """


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighted(Aggregation):
    """An aggregation in which clients have weights."""

    weighting: str = knob(
        "examples", 0, 0, "", "weight of a client", choices=("examples", "equal"), group=GROUP
    )

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The weighting, behind a clip, which makes all alike, and in a rule without weights."""
        return () if self.weighs and "equal" not in facts else ("weighting",)


@register
class WeightedMean(Weighted):
    """FedAvg: sum_k w_k delta_k / sum_k w_k. A row that a client does not hold counts as 0."""

    refuses = ()

    @property
    def streams(self) -> bool:
        """True, as it keeps sums and no updates."""
        return True

    def delta(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The mean by name; a table of which few rows moved comes as `Rows` of these."""
        sums = Sums(server)
        for update in updates:
            sums.add(update)
        return sums.mean()


@register
class MeanOfHolders(Weighted):
    """FedSubAvg: each row is the weighted mean over the clients that hold it.

    Rare items are therefore not diluted. For a parameter that every client holds it is the same as
    FedAvg. Ding et al. 2022, eq. 5.
    """

    refuses = (*Weighted.refuses, "dense")

    @property
    def streams(self) -> bool:
        """True, as it keeps sums and no updates."""
        return True

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` where every client holds every row."""
        tables = any(kind not in ("one", "client") for _, kind in context.asked.values())
        loss = context.model.list_loss  # softmax sets a click against every item
        require(
            tables and loss != WHOLE,
            "model",
            context.model.name,
            f"{self.name} needs a table of which clients hold some rows; here all hold all"
            f"{f', by the loss {loss}' if loss else ''}, so take the weighted mean",
        )

    def delta(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The mean over holders."""
        sums, held = Sums(server), dict[str, Tensor]()
        for update in updates:
            sums.add(update)
            for name, delta in update.deltas.items():
                none = torch.zeros(len(server[name]), device=update.weights.device)
                at = held.setdefault(name, none)
                add_rows(at, delta.ids, update.weights[delta.client])
        return sums.divided({name: weight.where(weight > 0, 1.0) for name, weight in held.items()})


class OwnWeights(Aggregation):
    """The mean with a weight of your own for each client.

    sum_k alpha_k delta_k / sum_k alpha_k over the cohort; alpha (N,): by client number, 0 or more.
    """

    def __init__(self, alpha: Sequence[float] | Tensor, then: Aggregation | None = None) -> None:
        """then: what aggregates with these weights, by default `WeightedMean()`."""
        self.alpha = torch.as_tensor(alpha, dtype=torch.float32)
        self.then = weighing(self, then or WeightedMean())
        bad = (~((self.alpha >= 0) & self.alpha.isfinite())).nonzero()
        require(
            not len(bad),
            "alpha",
            [float(self.alpha[k]) for k in bad[:1, 0]],
            "choose finite weights of 0 or more",
        )
        require(
            bool(self.alpha.sum() > 0),
            "alpha",
            self.alpha.tolist()[:8],
            "all are 0; give at least one client a weight",
        )

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` where there is not one weight for each client."""
        _one_each("alpha", self.alpha, context)
        self.then.check(context)

    def given(self, context: RoundContext) -> Tree:
        """What the aggregation inside is handed."""
        return self.then.given(context)

    def __call__(self, updates: Iterable[Update], server: Tree) -> Tree:
        """The delta by name."""

        def weighed(update: Update) -> Update:
            require(
                update.members is None,
                "alpha",
                "platforms",
                "weights are by client; give them to `inner`, where clients are aggregated",
            )
            return replace(update, weights=self.alpha[update.cohort].to(update.weights))

        return self.then([weighed(update) for update in updates], server)


class Hierarchical(Aggregation):
    """Devices -> platform -> server: each platform aggregates its own, the server the platforms.

    platform (N,): the platform of each client. A platform weighs as much as its devices together,
    so that two weighted means are one. Liu et al. 2020, "Client-edge-cloud hierarchical federated
    learning", algorithm 1 with one edge round.
    """

    def __init__(
        self, platform: Tensor, inner: Aggregation | None = None, outer: Aggregation | None = None
    ) -> None:
        """inner, outer: what a platform and the server do, by default `WeightedMean()`."""
        self.platform = platform
        self.inner = as_aggregation(inner or WeightedMean())
        self.outer = as_aggregation(outer or WeightedMean())

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` where there is not one platform for each client."""
        _one_each("platform", self.platform, context)
        self.inner.check(context)
        self.outer.check(context)

    def given(self, context: RoundContext) -> Tree:
        """What the aggregations inside are handed: platforms and server may judge whole models."""
        return self.inner.given(context) | self.outer.given(context)

    def __call__(self, updates: Iterable[Update], server: Tree) -> Tree:
        """The delta by name."""
        every = joined_updates(updates)
        mine = self.platform[every.cohort]
        parts = []
        for number in mine.unique().tolist():
            own = every.only(mine == number)
            rows = {name: as_rows(d) for name, d in self.inner.delta([own], server).items()}
            parts.append(
                Update(
                    rows,
                    own.weights.sum()[None],
                    own.losses.mean()[None],
                    torch.tensor([number]),
                    own.steps.sum()[None],
                    members=(own.cohort,),
                )
            )
        return self.outer(parts, server)


def _one_each(name: str, values: Tensor, context: RoundContext) -> None:
    clients = len(context.data)
    require(
        values.shape == (clients,),
        name,
        tuple(values.shape),
        f"give one for each of the {clients} clients",
    )


class Function(Aggregation):
    """A function of your own as an aggregation."""

    def __init__(self, rule: Rule) -> None:
        """rule: (updates, server) -> delta by name."""
        self.rule = rule
        self.name = getattr(rule, "__name__", type(rule).__name__)  # type: ignore[misc]

    def delta(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The delta by name."""
        found = self.rule(updates, server)
        fits = isinstance(found, Mapping) and all(
            isinstance(d, Tensor | Rows) for d in found.values()
        )
        require(
            fits,
            self.name,
            type(found).__name__,
            f"return a delta by name, say {{{next(iter(server))!r}: tensor}}",
        )
        return found


def as_aggregation(rule: Aggregation | Rule) -> Aggregation:
    """The rule as an `Aggregation`; a function (updates, server) -> delta is wrapped in one."""
    require(
        callable(rule) and not isinstance(rule, type),
        "aggregate",
        rule,
        "give an Aggregation, or a function (updates, server) -> delta; stages go into uplink",
    )
    return rule if isinstance(rule, Aggregation) else Function(rule)


def weighing(asker: Aggregation, then: Aggregation | Rule) -> Aggregation:
    """`then` as an aggregation that weighs clients; `ParameterError` if it asks for no weights."""
    found = as_aggregation(then)
    require(
        found.weighs,
        asker.name,
        found.name,
        "it asks for no weights, so they would change nothing; give one that does",
    )
    return found


def as_rows(delta: Tensor | Rows) -> Rows:
    """A delta in the form that one sender would send: each of its rows once, in growing order."""
    if isinstance(delta, Rows):
        return delta.merged(int(delta.ids.max()) + 1 if len(delta.ids) else 0)
    ids = torch.arange(len(delta), device=delta.device)
    return Rows(delta, ids, torch.zeros_like(ids))


def joined_updates(updates: Iterable[Update]) -> Update:
    """All chunks of a cohort as one; raises `NoDeltaError` when there are none."""
    parts = list(updates)
    some_weight(float(len(parts)))
    first, deltas = 0, []
    for part in parts:
        deltas.append({n: replace(d, client=d.client + first) for n, d in part.deltas.items()})
        first += len(part.cohort)
    members = None if parts[0].members is None else sum((p.members or () for p in parts), ())
    weights, losses, cohort, steps = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("weights", "losses", "cohort", "steps")
    )
    joined = {name: Rows.joined([d[name] for d in deltas]) for name in deltas[0]}
    return Update(joined, weights, losses, cohort, steps, members=members)


def some_weight(total: float) -> None:
    """Raise `NoDeltaError` when there is nothing to average."""
    if not total > 0:
        raise NoDeltaError("no client is left, or all weights are 0; the model stays as it is")


class Sums:
    """Weighted sums of deltas.

    They are kept as rows while these are fewer than the table's own, then as a whole tensor.
    """

    def __init__(self, server: Tree) -> None:
        """Start with nothing added; server: the parameters, for their shapes."""
        self.server = server
        self.rows: dict[str, list[Rows]] = {}
        self.few: dict[str, Rows] = {}
        self.whole: Tree = {}
        self.weights: list[float] = []

    @property
    def total(self) -> float:
        """The sum of all weights, rounded once, so that it does not depend on their order."""
        return math.fsum(self.weights)

    def add(self, update: Update, factor: Tensor | float = 1.0) -> None:
        """Add each client's delta times its weight.

        factor (C,): a further factor of the deltas, which does not count in the total of the
        weights.
        """
        weights = update.weights * factor
        self.weights += update.weights.tolist()
        for name, delta in update.deltas.items():
            kept = self.rows.setdefault(name, [])
            if name not in self.whole and len(delta.ids) + sum(len(r.ids) for r in kept) < len(
                self.server[name]
            ):
                kept.append(delta.scaled(weights))
                continue
            out = self.whole.setdefault(name, torch.zeros_like(self.server[name]))
            for rows in kept:
                add_rows(out, rows.ids, rows.values)
            kept.clear()
            delta.add_to(out, weights)

    def add_total(self, sums: Mapping[str, Tensor | Rows], weights: Tensor) -> None:
        """Add what has been added up elsewhere, over clients with these weights (C,)."""
        self.weights += weights.tolist()
        self.whole |= {name: total for name, total in sums.items() if isinstance(total, Tensor)}
        self.few |= {name: total for name, total in sums.items() if isinstance(total, Rows)}

    def mean(self) -> Delta:
        """The sums divided by the total weight."""
        return self.divided(dict.fromkeys(self.server, torch.tensor([self.total])))

    def divided(self, by: Tree) -> Delta:
        """The sums divided by `by`: for each name a number for each row, or (1,) for all rows."""
        some_weight(self.total)

        def over(name: str, values: Tensor, at: Tensor | slice) -> Tensor:
            divisor = by[name].to(values.device)
            return values.div_(
                (divisor if len(divisor) == 1 else divisor[at]).view(
                    (-1,) + (1,) * (values.dim() - 1)
                )
            )

        few = self.few | {
            name: Rows.joined(kept).merged(len(self.server[name]))
            for name, kept in self.rows.items()
            if kept
        }
        return {
            name: Rows(over(name, rows.values, rows.ids), rows.ids, rows.client)
            for name, rows in few.items()
        } | {name: over(name, value, slice(None)) for name, value in self.whole.items()}
