"""Baselines that see all data in one place: what federation is measured against.

Letters: U users, I items, D dimensions. Sources: Steck 2019, "Embarrassingly shallow autoencoders
for sparse data", eq. 8 (EASE); Hu, Koren, Volinsky 2008 and Rendle et al. 2022, "Revisiting the
performance of iALS on item recommendation benchmarks" (iALS, nu = 1).
"""

import torch
from torch import Tensor

from fedlab.core import Score, require, stream
from fedlab.data import Ratings, recent


def clicked(train: Ratings) -> Tensor:
    """(U, I) 1 where a user rated a film in train, else 0."""
    table = torch.zeros(train.user_count, train.item_count)
    table[train.users, train.items] = 1
    return table


def ease(train: Ratings, strength: float = 300.0, recency: float = 0.0) -> Score:
    """Each film predicted from the others: B = I - P / diag(P), P = (X'X + strength I)^-1.

    Scores are X B.

    recency: in the X of the scores a film weighs as `recent` has it; 0 weighs all alike.
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


def ials(train: Ratings, dim: int = 32, *, w0: float = 0.1, reg: float = 0.01, epochs: int = 20,
         seed: int = 0) -> tuple[Tensor, Tensor]:
    """(U, D) and (I, D) by alternating least squares on the loss of `fedlab.implicit`."""
    require(w0 > 0, "w0", w0, "choose a positive weight, say 0.1")
    require(reg > 0, "reg", reg, "choose a positive strength, say 0.01")
    table, generator = clicked(train), stream(seed, "init")
    users = torch.randn(len(table), dim, generator=generator) * 0.1
    items = torch.randn(table.shape[1], dim, generator=generator) * 0.1
    for _ in range(epochs):
        users = _solved(table, items, w0, reg)
        items = _solved(table.T.contiguous(), users, w0, reg)
    return _solved(table, items, w0, reg), items


def _solved(table: Tensor, fixed: Tensor, w0: float, reg: float, chunk: int = 512) -> Tensor:
    """The rows of one side, with the other side fixed; table (rows, len(fixed)) of 0 and 1."""
    outer = (fixed[:, :, None] * fixed[:, None]).flatten(1)  # (m, D D)
    eye, gram, found = torch.eye(fixed.shape[1]), fixed.T @ fixed, []
    for part in table.split(chunk):
        own = (part @ outer).view(-1, *gram.shape)
        strength = reg * (part.sum(1) + w0 * len(fixed))
        found.append(torch.linalg.solve(own + w0 * gram + strength[:, None, None] * eye,
                                        part @ fixed))
    return torch.cat(found)


def dot(users: Tensor, items: Tensor) -> Score:
    """Scores of vectors: (U, D) and (I, D)."""
    return lambda who, what: (users.index_select(0, who.flatten())
                              * items.index_select(0, what.flatten())).sum(1).view(who.shape)
