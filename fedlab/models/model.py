"""Recommenders as pairs of pure functions: draw the parameters, predict from them.

`predict(p, batch)` sees its parameters already looked up: p['item'] holds the vectors of the
batch's items, (..., B, D), not the whole table. The leading axes are free, so the same line serves
one client, a stacked cohort (A, B, ...) and the scoring of users against candidates. Predictions
are logits for clicks and values for ratings.

Letters: U users, I items, B examples, D dimensions, F features, A clients still active.
Sources: Rendle et al. 2009 and Koren et al. 2009 (matrix factorisation); He et al. 2017, "Neural
collaborative filtering", eq. 9-10 (the interaction model, with an item bias and dropout added).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fedlab.core import Key, Tree, require


class Product(NamedTuple):
    """A gradient (A, F, H) = left (A, F, B) @ right (A, B, H).

    To be added to weights while it is multiplied.
    """

    left: Tensor
    right: Tensor


Pull = Callable[[Tensor], Mapping[str, Tensor | Product]]
TASKS = ("clicks", "ratings")


def _nothing(client: Tensor, counts: Tensor, key: Key) -> Tree:
    return {}


@dataclass(frozen=True)
class Model:
    """A recommender.

    init(seed) -> Tree; axis 0 of each parameter is its rows, and each row is drawn by its number
    and the parameter's name, see `drawn`. predict(parameters at the examples, batch) -> (..., B).
    rows: for each parameter what picks its rows: 'item', 'user', 'client', or 'one' (a single row).
    private: names that never leave a client; their rows go by user or client. constants: fixed
    tables that `predict` looks into, handed to it whole. noise(client (C,), counts (C,), key) ->
    columns (n, ...) drawn for the training examples of these clients, counts of each (dropout);
    empty otherwise. pullback(parameters, batch) -> (predictions, a function from their gradient to
    the gradient of each parameter at the examples): predict's gradient by hand, where it is worth
    it; None leaves it to autograd. activity: floats that `predict` keeps for one example beside its
    parameters, to plan memory by. module: what it was made from, for `loaded`.
    """

    name: str
    task: str
    init: Callable[[int], Tree]
    predict: Callable[[Tree, Tree], Tensor]
    rows: Mapping[str, str]
    private: frozenset[str] = frozenset()
    constants: Tree = field(default_factory=dict)
    noise: Callable[[Tensor, Tensor, Key], Tree] = _nothing
    pullback: Callable[[Tree, Tree], tuple[Tensor, Pull]] | None = None
    activity: int = 0
    module: nn.Module | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be kept private."""
        require(self.task in TASKS, "task", self.task, f"choose one of {', '.join(TASKS)}")
        for name in self.private:
            fits = self.rows.get(name) in ("user", "client")
            require(fits, "private", name,
                    "only parameters with rows by user or client can be private")

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of each example: cross-entropy for clicks, squared error for ratings.

        Of K targets, their mean.
        """
        if self.task == "clicks":
            loss = binary_cross_entropy_with_logits(prediction, target, reduction="none")
        else:
            loss = (prediction - target).square()
        return loss.mean(-1) if loss.dim() > 2 else loss

    def slope(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Derivative of each example's loss by its prediction.

        The sigmoid is 1 / (1 + exp(-x)): torch's own gives other bits at the end of a tensor.
        """
        if self.task == "clicks":
            slope = prediction.neg().exp_().add_(1).reciprocal_().sub_(target)
        else:
            slope = 2 * (prediction - target)
        return slope / prediction.shape[-1] if prediction.dim() > 2 else slope


def drawn(seed: int, name: str, rows: int, columns: int) -> Tensor:
    """(R, D) normal first values of the parameter `name`, by row.

    More rows change none of these.
    """
    return Key(seed, f"init {name}").normal(torch.arange(rows), columns)


def check_sizes(**sizes: int) -> None:
    """Raise `ParameterError` unless all are whole numbers of 1 or more."""
    for name, size in sizes.items():
        require(isinstance(size, int) and size > 0, name, size,
                "choose a whole number of 1 or more")
