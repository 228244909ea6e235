"""Recommenders as pairs of pure functions: draw the parameters, predict from them.

`predict(p, batch)` sees its parameters already looked up: p['item'] holds the vectors of the
batch's items, (..., B, D), not the whole table. The leading axes are free, so the same line serves
one client, a stacked cohort (A, B, ...) and the scoring of users against candidates. Predictions
are logits for clicks and values for ratings.

Letters: U users, I items, B examples, D dimensions, F features, A clients still active.
Sources: Rendle et al. 2009 and Koren et al. 2009 (matrix factorisation); He et al. 2017, "Neural
collaborative filtering", eq. 9-10 (the interaction model, with an item bias and dropout added).
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from fedlab.core import Key, SparseTable, Tree, require
from fedlab.models.model import Model, Product, Pull, check_sizes, drawn

DISTINCT = 4096      # different first vectors among sparse users


def matrix_factorisation(users: int, items: int, dim: int = 32, *, task: str = "clicks",
                         private_users: bool = True, sparse_users: bool = False,
                         spread: float = 0.1) -> Model:
    """`y = p_u . q_i + beta_i`; `spread` is the standard deviation of the first vectors.

    sparse_users: store a private user vector once it has trained, for federations of very many
    users.
    """
    check_sizes(users=users, items=items, dim=dim)
    require(private_users or not sparse_users, "sparse_users", sparse_users,
            "only private users can be sparse")

    def init(seed: int) -> Tree:
        first = drawn(seed, "user", min(users, DISTINCT) if sparse_users else users, dim) * spread
        # a SparseTable answers as a Tensor in all that is asked of private rows
        user = cast(Tensor, SparseTable.untouched(users, first)) if sparse_users else first
        return {"user": user, "item": drawn(seed, "item", items, dim) * spread,
                "bias": torch.zeros(items)}

    def predict(p: Tree, batch: Tree) -> Tensor:
        return (p["user"] * p["item"]).sum(-1) + p["bias"]

    def pullback(p: Tree, batch: Tree) -> tuple[Tensor, Pull]:
        user, item = p["user"], p["item"]  # (A, B, D), or (A, 1, D) of a client's one user

        def pull(g: Tensor) -> Mapping[str, Tensor | Product]:                           # (A, B)
            single = user.shape[1] == 1 and item.shape[2] > 1
            mine = torch.bmm(g.unsqueeze(1), item) if single else g.unsqueeze(-1) * item
            if user.shape[1] == 1 and not single:        # a product of width 1 hangs on A
                mine = mine.sum(1, keepdim=True)
            return {"user": mine, "item": g.unsqueeze(-1) * user, "bias": g}
        return predict(p, batch), pull

    return Model("matrix factorisation", task, init, predict, {"user": "user", "item": "item",
                                                               "bias": "item"},
                 frozenset({"user"} if private_users else ()), pullback=pullback)


def interaction(users: int, items: int, dim: int = 32, *, dropout: float = 0.1,
                task: str = "clicks", private_users: bool = True, spread: float = 0.1) -> Model:
    """`y = w . dropout(p_u * q_i) + b + beta_i`; a sigmoid of it is the chance of a click.

    dropout: share of the interaction's entries set to zero in training, from 0 to below 1.
    """
    check_sizes(users=users, items=items, dim=dim)
    require(0 <= dropout < 1, "dropout", dropout, "choose a share from 0 to below 1")
    table = matrix_factorisation(users, items, dim, task=task, private_users=private_users,
                                 spread=spread)

    def init(seed: int) -> Tree:
        return table.init(seed) | {"dense": torch.ones(1, dim, 1), "offset": torch.zeros(1, 1)}

    def noise(client: Tensor, counts: Tensor, key: Key) -> Tree:
        return {"keep": key.keep(client, counts, dim, dropout)} if dropout else {}

    def predict(p: Tree, batch: Tree) -> Tensor:
        h = p["user"] * p["item"]                              # (..., B, D)
        if "keep" in batch:
            h = h * batch["keep"] / (1 - dropout)
        return (h @ p["dense"]).squeeze(-1) + p["offset"] + p["bias"]

    rows = {**table.rows, "dense": "one", "offset": "one"}
    return Model("interaction", task, init, predict, rows, table.private, noise=noise)


def hybrid(users: int, known: Tensor, dim: int = 32, *, task: str = "clicks",
           private_users: bool = True, spread: float = 0.1) -> Model:
    """`y = p_u . (q_i + W x_i) + beta_i`: an item by its own row and by what is known of it.

    known: x (I, F), say narrowed text vectors. So an item that few have clicked is not without.
    """
    table = matrix_factorisation(users, len(known), dim, task=task, private_users=private_users,
                                 spread=spread)

    def init(seed: int) -> Tree:
        return table.init(seed) | {"told": torch.zeros(1, known.shape[1], dim)}

    def predict(p: Tree, batch: Tree) -> Tensor:
        item = p["item"] + p["known"][batch["item"]] @ p["told"]  # (..., B, D)
        return (p["user"] * item).sum(-1) + p["bias"]

    return Model("hybrid", task, init, predict, {**table.rows, "told": "one"}, table.private,
                 {"known": known})
