"""Which clients count: by the loss of their models on held-out data, as weights or as a choice.

A client's model is the server's with the client's delta added; private rows are as they were before
the round.

Letters: C clients in a cohort, n held-out examples, U users. Sources: model selection as practised
among platforms that do not share data (the best local model becomes the global one); Chen et al.
2020, "FOCUS: dealing with label quality disparity in federated learning", section 3.2 (the weight
of a client follows its loss on data that is trusted).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedlab.aggregation.mean import Weighted, WeightedMean, joined_updates, weighing
from fedlab.aggregation.robust import GROUP, kept_models
from fedlab.core import (
    Aggregation,
    Delta,
    ParameterError,
    RoundContext,
    Rows,
    Score,
    Tree,
    Update,
    knob,
    moved,
    register,
)
from fedlab.data import Interactions
from fedlab.evaluation import Candidates, scorer
from fedlab.models import Model

Judge = Callable[[Update, Tree], Tensor]


@dataclass(frozen=True)
class HeldOut:
    """Examples that no client trains on: users, items, targets, weights (n,).

    The weights of a user add up to 1.
    """

    users: Tensor
    items: Tensor
    targets: Tensor
    weights: Tensor

    @classmethod
    def clicks(cls, against: Candidates) -> "HeldOut":
        """Each user's held-out item, and its negatives with as much weight together."""
        items = torch.cat([against.positives[:, None], against.negatives], 1)
        targets = torch.zeros(items.shape)
        targets[:, 0] = 1
        weights = torch.full(items.shape, 0.5 / against.negatives.shape[1])
        weights[:, 0] = 0.5
        users = against.users[:, None].expand_as(items)
        return cls(*(column.flatten() for column in (users, items, targets, weights)))

    @classmethod
    def ratings(cls, held: Interactions) -> "HeldOut":
        """Held-out ratings with their values as targets."""
        return cls(
            held.users, held.items, held.values, 1 / torch.bincount(held.users)[held.users].float()
        )

    def of(self, users: Tensor) -> "HeldOut":
        """The examples of some users."""
        here = torch.isin(self.users, users)
        return HeldOut(self.users[here], self.items[here], self.targets[here], self.weights[here])

    def loss(self, model: Model, score: Score) -> float:
        """Mean over users of the loss of their examples."""
        losses = model.loss(score(self.users[None], self.items[None])[0], self.targets)
        return float((losses * self.weights).sum() / self.weights.sum())


def local_models(update: Update, server: Tree) -> Iterator[Tree]:
    """The parameters of each client of a cohort: the server's, with its own delta added."""
    for place in range(len(update.cohort)):
        mine = {
            name: rows.only(torch.arange(len(update.cohort), device=rows.client.device) == place)
            for name, rows in update.deltas.items()
        }
        yield server | {name: moved(server[name], rows, 1.0) for name, rows in mine.items()}


def as_update(models: Iterable[Tree], server: Tree, weights: Tensor | None = None) -> Update:
    """Models that were trained elsewhere as the update of a cohort 0, 1, ..., for any rule."""
    every = list(models)
    count = len(every)
    deltas = {}
    for name, value in server.items():
        ids = torch.arange(len(value), device=value.device)
        deltas[name] = Rows(
            torch.cat([m[name] - value for m in every]),
            ids.repeat(count),
            torch.arange(count, device=value.device).repeat_interleave(len(value)),
        )
    ones = torch.ones(count)
    return Update(
        deltas, ones if weights is None else weights, ones * torch.nan, torch.arange(count), ones
    )


def judge(
    model: Model,
    held: HeldOut,
    owner: Tensor,
    *,
    own: bool = False,
    score: Callable[[Tree], Score] | None = None,
) -> Judge:
    """The held-out loss of each sender's model: on everybody's examples, or on those of its users.

    owner (U,): client of each user. A sender without held-out examples has an infinite loss; where
    it is a platform, its users are those of all clients behind it. score: how parameters predict,
    where `scorer` does not know it, say by `sequence_scorer`.
    """
    predict = score or (lambda params: scorer(model, params, owner))

    def losses(update: Update, server: Tree) -> Tensor:
        found, behind = [], update.members or update.cohort.split(1)
        for clients, params in zip(behind, local_models(update, server), strict=True):
            mine = held.of(torch.isin(owner, clients).nonzero()[:, 0]) if own else held
            found.append(mine.loss(model, predict(params)) if len(mine.users) else torch.inf)
        return torch.tensor(found)

    return losses


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged(Weighted):
    """An aggregation that asks a judge; an experiment brings its own, over its validation part."""

    judge: Judge | None = None

    def ready(self, experiment: Any) -> "Judged":
        """The aggregation with the experiment's judge, where none is given."""
        return self if self.judge else replace(self, judge=experiment.judge())

    def given(self, context: RoundContext) -> Tree:
        """The server's parameters and everybody's private rows, which a model may need."""
        return dict(context.params) | context.server

    def losses(self, update: Update, server: Tree) -> Tensor:
        """(C,) the held-out loss of each sender's model."""
        if self.judge is None:
            raise ParameterError(
                "judge=None: give the aggregation a judge, say judge(model, held_out, "
                "federation.owner)"
            )
        return self.judge(update, server)


@register
class BestModels(Judged):
    """Model selection: the sender's model with the least held-out loss becomes the server's.

    With `keep` above 1, the weighted mean of the `keep` best does. A tie goes to the client that
    comes first in the cohort.
    """

    keep: int = kept_models()

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The weighting, where a single model is kept."""
        return super().idle(facts) if self.keep > 1 else ("weighting",)

    def delta(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The delta by name."""
        every = joined_updates(updates)
        chosen = torch.zeros(len(every.cohort), dtype=torch.bool)
        chosen[self.losses(every, server).argsort(stable=True)[: self.keep]] = True
        return WeightedMean().delta([every.only(chosen)], server)


@register
class ByQuality(Judged):
    """The mean with weights n_k exp(-loss_k / temperature): a client whose model fails counts less.

    At a temperature of 0.1, a loss that is 0.1 higher makes the weight e times smaller. then: what
    aggregates with these weights, by default `WeightedMean()`.
    """

    temperature: float = knob(
        0.1,
        1e-6,
        1e6,
        "",
        "by quality: small listens to the best client alone",
        live=False,
        log=True,
        usual=(0.01, 10.0),
        group=GROUP,
    )
    then: Aggregation = field(default_factory=WeightedMean)

    def __post_init__(self) -> None:
        """Check that `then` asks for weights."""
        weighing(self, self.then)

    def delta(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The delta by name."""
        every = joined_updates(updates)
        trust = (-self.losses(every, server) / self.temperature).softmax(0)
        weighed = replace(every, weights=every.weights * trust.to(every.weights))
        return self.then.delta([weighed], server)
