"""PFedRec: each client has a score function of its own, and a view of its own on the items.

    y_ui = w_u . q_i + b_u

The score function w_u, b_u never leaves its client. In each batch it steps first, and the items'
vectors step after it, at a rate of their own; what clients learned of these is averaged. To
predict, a client tunes the averaged vectors to its own data once more ("dual personalisation").

Letters: U users, I items, D dimensions.

Source: Zhang et al. 2023, "Dual personalization on federated recommendation", eq. 3 to 6 and
algorithm 1. Where the paper is silent, its authors' code decides: all clients start from the same
normal numbers, and the clients' tables are averaged whole, which is the weighted mean of the rows
that they touched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlab.algorithms.personalisation import fine_tuned
from fedlab.core import (
    Key,
    Recipe,
    Round,
    RoundContext,
    Score,
    Tree,
    knob,
    like,
    register,
    require,
    strict,
)
from fedlab.data import Federation, Interactions
from fedlab.engine import SGD
from fedlab.models import MatrixFactorisation, Model
from fedlab.models.model import check_sizes, drawn


def score_function(seed: int, users: int, dim: int) -> Tree:
    """First w (U, D) and b (U,), the same for all users, uniform as in `nn.Linear`."""
    luck = Key(seed, "init score function").uniform(torch.arange(1), dim + 1)
    first = ((luck * 2 - 1) / dim**0.5).float()
    return {"weight": first[:, :dim].repeat(users, 1), "bias": first[0, dim:].repeat(users)}


def personal_scores(
    users: int, items: int, dim: int = 32, *, task: str = "clicks", spread: float = 1.0
) -> Model:
    """`y = w_u . q_i + b_u`; `spread` is the standard deviation of the first item vectors.

    >>> model = personal_scores(3, 4, 2)
    >>> sorted(model.private)
    ['bias', 'weight']
    """
    check_sizes(users=users, items=items, dim=dim)

    def init(seed: int) -> Tree:
        own = score_function(seed, users, dim)
        return {"item": drawn(seed, "item", items, dim) * spread, **own}

    def predict(p: Tree, batch: Tree) -> Tensor:
        return (p["weight"] * p["item"]).sum(-1) + p["bias"]

    def factors(p: Tree) -> tuple[Tensor, Tensor, Tensor]:
        ones = torch.ones(len(p["item"]), 1)  # a bias by user is one more dimension
        users = torch.cat([p["weight"], p["bias"][:, None]], 1)
        return users, torch.cat([p["item"], ones], 1), torch.zeros(len(ones))

    return Model(
        "personal scores",
        task,
        init,
        predict,
        {"item": "item", "weight": "user", "bias": "user"},
        frozenset({"weight", "bias"}),
        factors=factors,
    )


@register
class PersonalScores(Recipe):
    """A score function for each user on shared vectors of the items, as PFedRec has it."""

    dim: int = like(MatrixFactorisation, "dim")

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        return personal_scores(train.user_count, train.item_count, self.dim, task=task)


@strict
@dataclass(frozen=True, kw_only=True, eq=False)
class OwnRates(SGD):
    """SGD in which items' vectors step at a rate of their own."""

    item_rate: float = knob(
        10.0,
        0.0,
        1e9,
        "times local_lr",
        "pfedrec, fedrap: step size on the items' vectors",
        log=True,
        usual=(0.1, 1e6),
    )

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """What plain steps at several rates do not read."""
        return (*super().idle(facts), "optimizer", "proximal", "weight_decay")

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` for another rule, and for pulls that all rates would share."""
        name, turned = self.name, {"optimizer": "sgd", "proximal": 0.0, "weight_decay": 0.0}
        for knob_name, usual in turned.items():
            value = getattr(self, knob_name)
            require(value == usual, knob_name, value, f"{name} takes plain steps; set {usual!r}")


@register
class PFedRec(OwnRates):
    """The score function steps, then the items; a client predicts with items tuned to its data."""

    title = "pfedrec"

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` for a model that has not both, and for data drawn otherwise."""
        super().check(context)
        own = [context.model.rows[name] for name in context.model.private]
        require(
            bool(own) and "item" in context.model.rows.values(),
            "model",
            context.model.name,
            "pfedrec needs private rows by user and shared rows by item; take personal scores",
        )
        require(
            isinstance(context.data, Federation),
            "model",
            context.model.name,
            "pfedrec tunes items to the clicks or ratings of a federation, and this model has "
            "examples of its own; take personal scores",
        )

    def turns(self, rows: Mapping[str, str]) -> tuple[Mapping[str, float], ...]:
        """First what goes by user, then what goes by item."""
        items = {name: self.item_rate for name, kind in rows.items() if kind == "item"}
        return dict.fromkeys((name for name in rows if name not in items), 1.0), items

    def score(self, model: Model, data: Federation, done: Round) -> Score:
        """Each client predicts with the items as one more local training leaves them."""
        return fine_tuned(
            model, data, done.params, self, seed=int(done.settings.seed), number=done.number + 1
        )
