"""FedRAP: each client adds a table of its own to the shared table of items.

    y_ui = w_u . (d_ui + c_i) + b_u
    L_u  = mean over examples of  cross-entropy - lambda |d_ui - c_i|^2 / D + mu |c_i|_1 / D

The client's table d_u and its score function w_u, b_u never leave it. lambda pushes the two tables
apart, so that they complement each other; mu makes the shared one sparse.

Letters: U users, I items, D dimensions, B examples.

Source: Li, Long, Zhou 2024, "Federated recommendation with additive personalization", eq. 2 and 3
and algorithm 1. Where the paper is silent, its authors' code decides: all clients start from the
same normal numbers, both tables step at one rate, and rates decay from round to round (their decay
within a round is left out). In round t lambda and mu are tanh((t - 1) / 10) of their values, as the
paper has it; the code works these out and then takes the full values, which `curriculum` can, too.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor

from fedlab.algorithms.published.pfedrec import OwnRates, score_function
from fedlab.core import (
    Recipe,
    RoundContext,
    SparseTable,
    Tree,
    Update,
    knob,
    like,
    register,
    require,
)
from fedlab.data import Interactions
from fedlab.engine import updates
from fedlab.models import MatrixFactorisation, Model
from fedlab.models.model import check_sizes, drawn

DENSE = 1 << 27  # numbers of a table of all pairs, above which only touched rows are stored


def additive_items(
    users: int, items: int, dim: int = 32, *, task: str = "clicks", spread: float = 1.0
) -> Model:
    """`y = w_u . (d_ui + c_i) + b_u`; `spread` is the standard deviation of first vectors.

    The table `personal` has a row for each user and item, the same for all users at first.

    >>> model = additive_items(3, 4, 2)
    >>> model.init(0)["personal"].shape
    torch.Size([12, 2])
    """
    check_sizes(users=users, items=items, dim=dim)

    def init(seed: int) -> Tree:
        first = drawn(seed, "personal", items, dim) * spread
        large = users * items * dim > DENSE
        # a SparseTable answers as a Tensor in all that is asked of private rows
        sparse = cast(Tensor, SparseTable.untouched(users * items, first))
        return {
            "common": drawn(seed, "common", items, dim) * spread,
            "personal": sparse if large else first.repeat(users, 1),
            **score_function(seed, users, dim),
        }

    def predict(p: Tree, batch: Tree) -> Tensor:
        return (p["weight"] * (p["personal"] + p["common"])).sum(-1) + p["bias"]

    rows = {"common": "item", "personal": "pair", "weight": "user", "bias": "user"}
    private = frozenset({"personal", "weight", "bias"})
    return Model("additive items", task, init, predict, rows, private)


@register
class AdditiveItems(Recipe):
    """A table of each client's own, added to the shared one, as FedRAP has it."""

    dim: int = like(MatrixFactorisation, "dim")

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        return additive_items(train.user_count, train.item_count, self.dim, task=task)


@register
class FedRAP(OwnRates):
    """The personal and the shared table are pushed apart, and the shared one to be sparse."""

    title = "fedrap"
    difference: float = knob(
        0.1, 0.0, 1e3, "", "fedrap: push of the two tables apart (lambda)", usual=(0.0, 1.0)
    )
    sparsity: float = knob(
        0.001, 0.0, 1e3, "", "fedrap: pull of the shared table to zero (mu)", usual=(0.0, 1.0)
    )
    rate_decay: float = knob(
        0.97, 0.001, 1.0, "a round", "fedrap: what is kept of the step sizes", usual=(0.9, 1.0)
    )

    curriculum: str = knob(
        "tanh",
        0,
        0,
        "",
        "fedrap: whether lambda and mu rise with the rounds, or are constant",
        choices=("tanh", "constant"),
    )

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` for a model without the two tables."""
        super().check(context)
        require(
            {"personal", "common"} <= context.model.rows.keys(),
            "model",
            context.model.name,
            "fedrap needs the tables `personal` and `common`; take additive items",
        )

    def turns(self, rows: Mapping[str, str]) -> tuple[Mapping[str, float], ...]:
        """All at once, both tables at their own rate."""
        return (
            {n: self.item_rate if kind in ("item", "pair") else 1.0 for n, kind in rows.items()},
        )

    def penalty(self, p: Tree) -> Tensor:
        """What is added to the loss of each example, (..., B)."""
        apart = (p["personal"] - p["common"]).square().mean(-1)
        return self.sparsity * p["common"].abs().mean(-1) - self.difference * apart

    def learns(self, model: Model) -> Model:
        """The model with the penalty."""
        return replace(model, penalty=self.penalty)

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield each client's delta, chunk by chunk, at the rates of this round."""
        context.notes["engine"] = "eager"
        before = context.number - 1
        risen = math.tanh(before / 10) if self.curriculum == "tanh" else 1.0
        now = replace(
            self,
            local_lr=self.local_lr * self.rate_decay**before,
            difference=self.difference * risen,
            sparsity=self.sparsity * risen,
        )
        return updates(
            now.learns(context.model),
            context.data,
            context.params,
            cohort,
            now,
            seed=context.seed,
            number=context.number,
        )
