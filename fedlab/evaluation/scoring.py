"""Predictions of trained parameters for any users and items, as evaluation asks for them.

Letters: U users.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedlab.core import Score, Tree, arranged, require, to
from fedlab.models import Model


def scorer(model: Model, params: Tree, owner: Tensor | None = None) -> Score:
    """Predictions of a model for any users and items.

    A function (users, items of one shape) -> scores on the CPU.

    owner (U,): the client of each user; needed when a parameter has its rows by client.
    """
    each = "client" in model.rows.values()
    require(not each or owner is not None, "owner", owner,
            "name the client of each user, say federation.owner")
    device = next(iter(params.values())).device
    return pair_scorer(model, lambda name, rows, _: arranged(params[name], rows), owner, each=each,
                       device=device)


def pair_scorer(model: Model, look_up: Callable[[str, Tensor, Tensor], Tensor],
                owner: Tensor | None, *, each: bool, device: str | torch.device = "cpu") -> Score:
    """A `Score` from `look_up(name, rows, clients of the rows)`.

    The parameter's values at these rows.

    each: ask for every pair as a client with one example, not for all pairs as one long batch of
    one client.
    """
    constants = to(model.constants, device)
    holder = owner if owner is None else owner.to(device)

    def score(users: Tensor, items: Tensor) -> Tensor:
        shape = (-1, 1) if each else (1, -1)
        batch = {"user": users.reshape(shape).to(device), "item": items.reshape(shape).to(device)}
        client = torch.zeros_like(batch["user"]) if holder is None else holder[batch["user"]]
        rows = batch | {"client": client[:, 0], "one": torch.zeros_like(client[:, 0])}
        leaves = {name: look_up(name, rows[kind], client if kind in batch else client[:, 0])
                  for name, kind in model.rows.items()}
        with torch.no_grad():
            return model.predict(leaves | constants, batch).view(users.shape).cpu()
    return score
