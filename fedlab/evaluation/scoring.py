"""Predictions of trained parameters for any users and items, as evaluation asks for them.

Those of a model that factorises are `Factored`: all items can be scored by one product.

Letters: U users, I items, C clients of a cohort, n pairs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedlab.core import Rows, Score, Tree, arranged, require, to
from fedlab.data import own_rows
from fedlab.models import Factored, Model, factored


def scorer(model: Model, params: Tree, owner: Tensor | None = None) -> Score:
    """A function (users, items of the same shape) -> predictions of a model on the CPU.

    params: trained parameters, as in a Round. owner (U,): the client of each user; it is needed
    when a parameter has rows by client, else `ParameterError`.

    >>> from fedlab.models import matrix_factorisation
    >>> model = matrix_factorisation(3, 4, 2)
    >>> score = scorer(model, model.init(torch.Generator().manual_seed(0)))
    >>> score(torch.tensor([[0, 1]]), torch.tensor([[2, 3]])).shape
    torch.Size([1, 2])
    """
    each = "client" in model.rows.values()
    require(
        not each or owner is not None,
        "owner",
        owner,
        "name the client of each user, say federation.owner",
    )
    if model.factors:
        return factored(*model.factors(to(params | model.constants, "cpu")))
    device = next(iter(params.values())).device
    return pair_scorer(
        model,
        params,
        lambda name, rows, _: arranged(params[name], rows),
        owner,
        each=each,
        device=device,
    )


def pair_scorer(
    model: Model,
    params: Tree,
    look_up: Callable[[str, Tensor, Tensor], Tensor],
    owner: Tensor | None,
    *,
    each: bool,
    device: str | torch.device = "cpu",
) -> Score:
    """A score made of `look_up(name, rows, clients of the rows)`, which returns parameter values.

    params: the sizes of the tables are theirs. owner (U,): the client of each user, or None. each:
    whether every pair is asked as a client of its own with one example, or all pairs as one long
    batch of one client. device: where to predict.
    """
    constants = to(model.constants, device)
    holder = owner if owner is None else owner.to(device)

    def score(users: Tensor, items: Tensor) -> Tensor:
        shape = (-1, 1) if each else (1, -1)
        batch = {"user": users.reshape(shape).to(device), "item": items.reshape(shape).to(device)}
        batch |= model.pairs(params, batch)
        client = torch.zeros_like(batch["user"]) if holder is None else holder[batch["user"]]
        rows = batch | {"client": client[:, 0], "one": torch.zeros_like(client[:, 0])}
        leaves = {
            name: look_up(name, rows[kind], client if kind in batch else client[:, 0])
            for name, kind in model.rows.items()
        }
        with torch.no_grad():
            return model.predict(leaves | constants, batch).view(users.shape).cpu()

    return score


def own_score(
    model: Model, params: Tree, deltas: dict[str, Rows], cohort: Tensor, owner: Tensor
) -> Score:
    """Predictions of each user's own client: server rows plus what that client learned.

    deltas: those of `cohort` (C,), as an `Update` has them. owner (U,): the client of each user.
    The function that is returned is for users whose client is in the cohort.
    """
    position = torch.full((int(owner.max()) + 1,), -1)
    position[cohort] = torch.arange(len(cohort))
    keys = {name: d.client * len(params[name]) + d.ids for name, d in deltas.items()}  # sorted

    def look_up(name: str, rows: Tensor, client: Tensor) -> Tensor:
        key = position[client] * len(params[name]) + rows
        if not len(keys[name]):  # nobody learned anything
            return params[name][rows]
        at = torch.searchsorted(keys[name], key).clamp(max=len(keys[name]) - 1)
        learned = deltas[name].values[at]
        held = (keys[name][at] == key).view(key.shape + (1,) * (learned.dim() - key.dim()))
        return params[name][rows] + learned.where(held, 0.0)

    pairs = pair_scorer(model, params, look_up, owner, each=True)
    moved = {model.rows[name] for name, d in deltas.items() if len(d.ids)}
    if model.factors is None or not moved <= {"user", "item"}:
        return pairs
    users = torch.arange(len(owner))
    mine = {n: look_up(n, users, owner) for n, kind in model.rows.items() if kind == "user"}
    tables = model.factors(params | model.constants | mine)
    learned = [d for name, d in deltas.items() if model.rows[name] == "item"]
    return Factored(*tables, pairs, lambda: _learned_pairs(learned, cohort, owner, len(tables[1])))


def _learned_pairs(deltas: list[Rows], cohort: Tensor, owner: Tensor, items: int) -> Tensor:
    """Pairs (n,), user * I + item and growing: the items of which a user's client learned rows.

    deltas: rows by item, those of `cohort` (C,). owner (U,): the client of each user. items: I.
    """
    order, counts = (
        owner.argsort(stable=True),
        torch.bincount(owner, minlength=int(cohort.max()) + 1),
    )
    found = []
    for delta in deltas:
        row, user = own_rows(cohort[delta.client], counts.cumsum(0) - counts, counts)
        found.append(order[user] * items + delta.ids[row])
    return torch.cat(found).unique()
