"""Neural collaborative filtering, whose users' vectors may stay with them.

    y_ui = h . [p_u * q_i ; phi(W_L phi(... phi(W_1 [p'_u ; q'_i] + b_1) ...) + b_L)]

p_u, q_i are factorised, p'_u, q'_i go through layers that halve in width, phi is a rectifier.

Letters: U users, I items, D dimensions, B examples, A clients still active.

Sources: He et al. 2017, "Neural collaborative filtering", eq. 12 (NeuMF); Perifanis, Efraimidis
2022, "Federated neural collaborative filtering", algorithm 1 (FedNCF: users' vectors stay with
their clients; items and layers are averaged).
"""

from itertools import pairwise

import torch
from torch import Tensor

from fedlab.core import Recipe, Tree, knob, register, require
from fedlab.data import Interactions
from fedlab.models.model import Model, check_sizes, drawn, uniform
from fedlab.models.recipes import dim as vectors


def neural_collaborative_filtering(
    users: int,
    items: int,
    dim: int = 32,
    depth: int = 3,
    *,
    task: str = "clicks",
    private_users: bool = True,
    spread: float = 0.01,
) -> Model:
    """NeuMF: vectors of `dim` numbers for each half, and `depth` layers that halve from 2 `dim`.

    spread: standard deviation of the first vectors; the layers start as `nn.Linear` does. Raises
    `ParameterError` where `dim` cannot be halved so often.

    >>> model = neural_collaborative_filtering(3, 4, 8, 2)
    >>> {name: tuple(value.shape) for name, value in model.init(0).items() if name[0] == "w"}
    {'w1': (1, 16, 8), 'w2': (1, 8, 4)}
    """
    check_sizes(users=users, items=items, dim=dim, depth=depth)
    widths = [2 * dim // 2**k for k in range(depth + 1)]
    fix = f"{depth} layers halve {2 * dim} numbers to none; take fewer or a larger dim"
    require(widths[-1] > 0, "depth", depth, fix)
    names = [f"{kind}{k}" for k in range(1, depth + 1) for kind in "wb"]

    def init(seed: int) -> Tree:
        found = {
            "user": drawn(seed, "user", users, 2 * dim) * spread,
            "item": drawn(seed, "item", items, 2 * dim) * spread,
            "dense": uniform(seed, "dense", dim + widths[-1], 1, dim + widths[-1]),
            "offset": torch.zeros(1),
        }
        for k, (wide, narrow) in enumerate(pairwise(widths), 1):
            found[f"w{k}"] = uniform(seed, f"w{k}", wide, wide, narrow)[None]
            found[f"b{k}"] = uniform(seed, f"b{k}", wide, 1, narrow)
        return found

    def predict(p: Tree, batch: Tree) -> Tensor:
        user, item = torch.broadcast_tensors(p["user"], p["item"])  # (A, B, 2 D)
        h = torch.cat([user[..., dim:], item[..., dim:]], -1)
        for k in range(1, depth + 1):
            h = torch.baddbmm(p[f"b{k}"].unsqueeze(1), h, p[f"w{k}"]).relu()
        both = torch.cat([user[..., :dim] * item[..., :dim], h], -1)
        return (both * p["dense"].unsqueeze(1)).sum(-1) + p["offset"].unsqueeze(1)

    return Model(
        "neural collaborative filtering",
        task,
        init,
        predict,
        {"user": "user", "item": "item", **dict.fromkeys(("dense", "offset", *names), "one")},
        frozenset({"user"} if private_users else ()),
        activity=2 * dim + sum(widths) + dim,
    )


@register
class NeuralCollaborativeFiltering(Recipe):
    """Vectors, factorised and through layers (NeuMF); with users' vectors private, FedNCF."""

    dim: int = vectors()
    depth: int = knob(
        3, 1, 10, "layers", "ncf: that halve in width, from twice dim", live=False, usual=(1, 3)
    )

    def build(self, train: Interactions, task: str) -> Model:
        """The model for these train ratings."""
        return neural_collaborative_filtering(
            train.user_count, train.item_count, self.dim, self.depth, task=task
        )
