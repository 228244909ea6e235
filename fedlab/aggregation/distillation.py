"""Output aggregation: the predictions of several models as one, and one model that learns them.

An ensemble costs as many downloads and predictions as it has models. Distilling makes one model of
it again.

Letters: K models, n examples. Source: Lin et al. 2020, "Ensemble distillation for robust model
fusion in federated learning", algorithm 1 (FedDF).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlab.aggregation.mean import WeightedMean, joined_updates
from fedlab.aggregation.selection import local_models
from fedlab.core import Aggregation, RoundContext, Score, Tree, Update, moved, one_thread, require
from fedlab.data import Columns
from fedlab.engine import LocalSettings
from fedlab.engine import updates as train
from fedlab.evaluation import scorer
from fedlab.models import Model


def ensemble(
    model: Model, members: Sequence[Tree], weights: Sequence[float] | None = None
) -> Score:
    """The weighted mean of what K models predict: of chances for clicks, of values for ratings.

    weights (K,): 0 or more; by default all are equal. For clicks the score is that mean chance, as
    a logit.
    """
    require(
        not model.private,
        "model",
        model.name,
        "its private rows are trained beside one model's; an ensemble needs one without private "
        "rows",
    )
    share = torch.tensor(
        list(weights) if weights is not None else [1.0] * len(members), dtype=torch.float32
    )
    fits = len(share) == len(members) > 0 and bool((share >= 0).all()) and float(share.sum()) > 0
    require(fits, "weights", share.tolist(), f"give {len(members)} weights of 0 or more, not all 0")
    scores, clicks = [scorer(model, params) for params in members], model.task == "clicks"

    def score(users: Tensor, items: Tensor) -> Tensor:
        given = torch.stack([s(users, items) for s in scores])  # (K, ...)
        mean = torch.tensordot(share / share.sum(), given.sigmoid() if clicks else given, 1)
        return mean.logit(eps=1e-7) if clicks else mean

    return score


def distil(
    model: Model,
    start: Tree,
    teacher: Score,
    users: Tensor,
    items: Tensor,
    local: LocalSettings,
    seed: int = 0,
) -> Tree:
    """`start` trained to predict what `teacher` does on pairs (n,) of users and items.

    The pairs need no labels: any users and items that the server may know. local: how it trains.
    """
    soft = teacher(users[None], items[None])[0]
    targets = soft.sigmoid() if model.task == "clicks" else soft
    data = Columns(
        {"user": users, "item": items, "target": targets}, torch.zeros_like(users), model.task
    )
    with one_thread():
        single = replace(model, list_loss="")  # soft targets are of single items
        trained = train(single, data, start, torch.tensor([0]), local, seed=seed, purpose="distil ")
        learned = joined_updates(trained)
    return start | {name: moved(start[name], delta, 1.0) for name, delta in learned.deltas.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Distilled(Aggregation):
    """FedDF: the mean model, trained towards the ensemble of the clients' models.

    users, items (n,): the unlabelled pairs that it trains on. local: how it trains. pick: (update,
    server) -> weights of the clients in the ensemble (C,); by default all are equal.
    """

    model: Model
    users: Tensor
    items: Tensor
    local: LocalSettings
    pick: Callable[[Update, Tree], Tensor] | None = None
    seed: int = 0

    def given(self, context: RoundContext) -> Tree:
        """The server's parameters and everybody's private rows, which a model may need."""
        return dict(context.params) | context.server

    def __call__(self, updates: Iterable[Update], server: Tree) -> Tree:
        """The delta by name."""
        every = joined_updates(updates)
        mean = WeightedMean()([every], server)
        start = server | {name: server[name] + change for name, change in mean.items()}
        weights = self.pick(every, server).tolist() if self.pick else None
        teacher = ensemble(self.model, list(local_models(every, server)), weights)
        student = distil(self.model, start, teacher, self.users, self.items, self.local, self.seed)
        return {name: student[name] - server[name] for name in mean}
