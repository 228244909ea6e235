"""Baselines that see all data in one place: what a federation is measured against.

Letters: U users, I items, D dimensions, X (U, I) the matrix of clicks.

Sources: Steck 2019, "Embarrassingly shallow autoencoders for sparse data", eq. 8 (EASE); Hu, Koren,
Volinsky 2008, "Collaborative filtering for implicit feedback datasets", eq. 4 and 5, and Rendle et
al. 2022, "Revisiting the performance of iALS on item recommendation benchmarks", with nu = 1
(iALS).
"""

import torch
from torch import Tensor

from fedlab.core import Score, require, stream
from fedlab.data import Interactions, recent
from fedlab.engine.fused import Strength
from fedlab.models import Factored, factored


def clicked(train: Interactions) -> Tensor:
    """X (U, I): 1 where the user rated the item in train, else 0.

    >>> from fedlab.data import load
    >>> int(clicked(load()).sum())
    100004
    """
    table = torch.zeros(train.user_count, train.item_count)
    table[train.users, train.items] = 1
    return table


def ease(train: Interactions, strength: float = 300.0, recency: float = 0.0) -> Score:
    """EASE: predict each item from all others by ridge regression, and score users by X B.

    B = I - P / diag(P) with P = (X'X + strength I)^-1. strength: above 0, else `ParameterError`.
    recency: in the X of the scores, a click weighs as `fedlab.data.recent` says; 0 weighs all
    alike.

    >>> from fedlab.data import at_least, load
    >>> few, *_ = at_least(load(), items=150)
    >>> score = ease(few)
    >>> score(torch.tensor([0, 0]), torch.tensor([1, 2])).shape
    torch.Size([2])
    """
    require(strength > 0, "strength", strength, "choose a positive number, say 300")
    table = clicked(train)
    gram = (table.T @ table).double()
    gram.diagonal().add_(strength)
    inverse = torch.linalg.inv(gram)
    weights = -inverse / inverse.diagonal()
    table[train.users, train.items] = recent(train, recency)
    scores = table @ weights.fill_diagonal_(0).float()
    return lambda users, items: scores[users, items]


def ials(
    train: Interactions,
    dim: int = 32,
    *,
    unseen: float = 10.0,
    regularisation: float = 1.0,
    epochs: int = 20,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Vectors (U, D) of users and (I, D) of items by alternating least squares (iALS).

    The loss is that of `fedlab.algorithms.Implicit`. unseen: weight of all pairs together, in
    multiples of the clicks, above 0. regularisation: pull to zero, in sqrt(n) clicks, above 0.
    Raises `ParameterError` for values out of range.

    >>> from fedlab.data import at_least, load
    >>> few, *_ = at_least(load(), items=150)
    >>> users, items = ials(few, dim=2, epochs=1)
    >>> users.shape == (few.user_count, 2), items.shape == (few.item_count, 2)
    (True, True)
    """
    require(unseen > 0, "unseen", unseen, "choose a positive weight, say 10")
    require(regularisation > 0, "regularisation", regularisation, "choose more than 0, say 1")
    table, generator = clicked(train), stream(seed, "init")
    mean = float(table.sum()) / len(table)
    w0, reg = Strength.of(mean, table.shape[1], unseen, regularisation)
    users = torch.randn(len(table), dim, generator=generator) * 0.1
    items = torch.randn(table.shape[1], dim, generator=generator) * 0.1
    for _ in range(epochs):
        users = _solved(table, items, w0, reg)
        items = _solved(table.T.contiguous(), users, w0, reg)
    return _solved(table, items, w0, reg), items


def _solved(table: Tensor, fixed: Tensor, w0: float, reg: float, chunk: int = 512) -> Tensor:
    """Solve for the rows of one side while the other side is fixed; table (rows, len(fixed))."""
    outer = (fixed[:, :, None] * fixed[:, None]).flatten(1)  # (m, D D)
    eye, gram, found = torch.eye(fixed.shape[1]), fixed.T @ fixed, []
    for part in table.split(chunk):
        own = (part @ outer).view(-1, *gram.shape)
        strength = reg * (part.sum(1) + w0 * len(fixed))
        found.append(
            torch.linalg.solve(own + w0 * gram + strength[:, None, None] * eye, part @ fixed)
        )
    return torch.cat(found)


def dot(users: Tensor, items: Tensor) -> Factored:
    """Score pairs by the inner product of their vectors: users (U, D), items (I, D).

    >>> import torch
    >>> score = dot(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    >>> score(torch.tensor([0]), torch.tensor([0]))
    tensor([11.])
    """
    return factored(users, items)
