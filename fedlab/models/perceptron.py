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

import torch
from torch import Tensor

from fedlab.core import Key, Tree
from fedlab.models.model import Model, Product, Pull, check_sizes


def perceptron(inputs: int, hidden: int = 64, *, task: str = "clicks") -> Model:
    """`y = w2 . relu(W1 x + b1) + b2` on a column `x` (n, F) of the examples.

    A first layer as in `nn.Linear`.
    """
    check_sizes(inputs=inputs, hidden=hidden)

    def init(seed: int) -> Tree:
        def uniform(name: str, fan: int, rows: int, columns: int) -> Tensor:
            luck = Key(seed, f"init {name}").uniform(torch.arange(rows), columns)
            return ((luck * 2 - 1) / fan**0.5).float()
        return {"w1": uniform("w1", inputs, inputs, hidden)[None],
                "b1": uniform("b1", inputs, 1, hidden), "w2": uniform("w2", hidden, 1, hidden),
                "b2": uniform("b2", hidden, 1, 1)}

    def layers(p: Tree, batch: Tree) -> tuple[Tensor, Tensor]:
        h = torch.baddbmm(p["b1"].unsqueeze(1), batch["x"], p["w1"]).relu_()        # (A, B, H)
        # 4x faster here than a matrix product of width 1
        return (h * p["w2"].unsqueeze(1)).sum(-1) + p["b2"], h

    def pullback(p: Tree, batch: Tree) -> tuple[Tensor, Pull]:
        y, h = layers(p, batch)

        def pull(g: Tensor) -> Mapping[str, Tensor | Product]:                           # (A, B)
            gh = h.sign().mul_(p["w2"].unsqueeze(1)).mul_(g.unsqueeze(-1))
            return {"w1": Product(batch["x"].transpose(1, 2), gh), "b1": gh.sum(1),
                    "w2": torch.bmm(g.unsqueeze(1), h).squeeze(1), "b2": g.sum(1, keepdim=True)}
        return y, pull
    def predict(p: Tree, batch: Tree) -> Tensor:
        return layers(p, batch)[0]
    return Model("perceptron", task, init, predict, dict.fromkeys(("w1", "b1", "w2", "b2"), "one"),
                 pullback=pullback, activity=2 * hidden)
