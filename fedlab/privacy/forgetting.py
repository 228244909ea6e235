"""To forget a person: what can be removed, and what a shared model may keep.

Source: Dwork, Roth 2014, "The algorithmic foundations of differential privacy", definition 2.4 and
section 2.3 (what epsilon bounds).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlab.core import Round, Tree, require
from fedlab.data import Federation, of_users
from fedlab.models import Model
from fedlab.privacy.ledger import proven


@dataclass(frozen=True)
class Forgotten:
    """What is left without a person.

    data: the federation without the person's rows. start: a Round 0 to go on from, for a model of
    one user fewer: the parameters without the person's rows, and the ledger. words: what the shared
    parameters may keep.
    """

    data: Federation
    start: Round
    words: str


def forget(name: str, data: Federation, model: Model, done: Round) -> Forgotten:
    """Remove a person's ratings and private rows; say what the shared parameters may keep.

    name: as in the catalogue's `user_ids`. model, done: what was trained, and its last Round. What
    the optimiser, control variates and memories of clients kept of earlier rounds is removed, too.
    A `Ledger` on disk keeps its lines: what was released stays released. Rows of others stay as
    they are, even where they began at the mean of members' rows, as a newcomer's do. Raises
    `ParameterError` for a person who is not in the data, or is all of them.

    >>> from fedlab import Federation, Settings, federate, load, matrix_factorisation, one_per_user
    >>> ratings = load()
    >>> data = Federation(ratings, one_per_user(ratings))
    >>> model = matrix_factorisation(len(data), ratings.item_count, 4)
    >>> *_, done = federate(model, data, Settings(rounds=1, cohort=8))
    >>> without = forget("7", data, model, done)
    >>> len(without.data), len(without.start.params["user"])
    (670, 670)
    >>> without.words[:40]
    'Nothing bounds what the shared parameter'
    """
    names = data.train.catalogue.user_ids
    require(name in names, "name", name, "no such person in the data; give an id of the catalogue")
    require(len(names) > 1, "name", name, "it is the only one; delete the data")
    user = names.index(name)
    stays = torch.arange(len(names)) != user
    owner, client = data.owner[stays], int(data.owner[user])
    gone = not bool((owner == client).any())
    clients = torch.arange(len(data)) != client if gone else torch.ones(len(data)).bool()
    left = Federation(
        of_users(data.train, stays), owner - (gone & (owner > client)).long(), data.task
    )
    kept: dict[str, Tensor] = {"user": stays, "client": clients}
    if "pair" in model.rows.values():
        kept["pair"] = stays.repeat_interleave(data.train.item_count)
    params: Tree = dict(done.params)
    for part, kind in model.rows.items():
        if kind in kept:
            require(
                isinstance(params[part], Tensor),
                "model",
                model.name,
                "its table is stored row by row; make it with sparse_users=False",
            )
            params[part] = params[part][kept[kind].to(params[part].device)]
    spent = done.state.get("ledger", {})
    start = Round(0, done.settings, params, state={"ledger": _without(spent, clients)})
    return Forgotten(left, start, _may_keep(spent, done.settings.delta))


def _without(ledger: Any, clients: Tensor) -> dict[str, Any]:
    """The books of the clients that stay, with their new numbers."""
    found, numbers = dict(ledger), (clients.cumsum(0) - 1).tolist()
    if "drift" in found:
        found["drift"] = found["drift"][clients]
    if "examples" in found:
        found["examples"] = {
            numbers[client]: own for client, own in found["examples"].items() if clients[client]
        }
    return found


def _may_keep(ledger: Any, delta: float) -> str:
    """What epsilon says of the shared parameters."""
    epsilon = 0.0 if "no guarantee" in ledger else proven(ledger, delta)
    if not epsilon:
        return (
            "Nothing bounds what the shared parameters keep of this person: they were trained "
            "without noise that hides people. To forget, train anew without the person."
        )
    relation = (
        "with this person as without"
        if all(sampling == "poisson" for *_, sampling in ledger.get("releases", {}))
        and "drift" not in ledger
        else "with this person as with any other instead"
    )
    return (
        f"The shared parameters were trained with an epsilon of {epsilon:.3g} at delta {delta:g}: "
        f"whatever they show is at most {math.exp(epsilon):.3g} times as likely {relation}, but "
        f"for a chance of {delta:g}. To be rid of that, too, train anew."
    )
