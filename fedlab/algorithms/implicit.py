"""Federated implicit matrix factorisation: each client solves for its own user's vector.

The server follows the items' gradients. The loss gives a small weight to all films that a user has
not met, so no negatives are drawn:

    L = sum_{u,i clicked} (1 - p_u.q_i)^2 + w0 sum_{u,i} (p_u.q_i)^2
        + reg (sum_u (n_u + w0 I) |p_u|^2 + sum_i (n_i + w0 U) |q_i|^2)

What a client needs of the films it never met is in Q'Q (D, D), which the server sends; what the
server needs of them is in the sum of p_u p_u' (D, D), which the clients send. So nobody moves the
whole table. A single p_u p_u' gives away the user's vector: it is private only in a sum, by secure
aggregation.

To recommend, a client solves its vector anew, and may weigh what it clicked last more: what one
watches next follows from it, and nothing of that leaves the client.

Letters: U users, I items, C clients in a cohort, D dimensions, n_u and n_i clicks of a user and of
a film. Sources: Ammad-ud-din et al. 2019, "Federated collaborative filtering for privacy-preserving
personalized recommendation system", algorithm 1; Hu, Koren, Volinsky 2008; Rendle et al. 2022,
"Revisiting the performance of iALS on item recommendation benchmarks", eq. 3 and 12 (the
regularisation, nu = 1).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedlab.core import (
    Delta,
    Key,
    Local,
    Round,
    RoundContext,
    Rows,
    Score,
    Summed,
    Tree,
    Update,
    add_rows,
    compiled_loops,
    knob,
    register,
    require,
    whole,
)
from fedlab.data import Federation, Source, layout_of, own_rows, recent
from fedlab.engine.fused import Clicks
from fedlab.evaluation import scorer
from fedlab.models import Model

if TYPE_CHECKING:
    from fedlab.engine.fused.least_squares import Compiled

GROUP = "implicit"
GROUP_SIZE = 256  # clients at a time, of whom each sends D x D numbers


def recency() -> float:
    """The knob of all methods in which a client recommends from its own clicks."""
    power: float = knob(
        0.0,
        0.0,
        10.0,
        "",
        "a click weighs (1 + own clicks since) ** -recency where a client recommends; in training "
        "all weigh 1",
        usual=(0.0, 2.0),
        group=GROUP,
    )
    return power


@register
class Implicit(Local):
    """Each client solves its own vector; the server's half is linear in the mean of what they send.

    It is for a model with the parameters `user` and `item`, one client per user, and a server
    optimizer such as adam; biases stay as they are.
    """

    w0: float = knob(
        0.1,
        1e-9,
        1e3,
        "",
        "implicit: weight of an item that was not clicked",
        log=True,
        usual=(0.001, 1.0),
        group=GROUP,
    )
    reg: float = knob(
        0.01,
        1e-9,
        1e3,
        "",
        "implicit: strength of the regularisation",
        log=True,
        usual=(0.0001, 1.0),
        group=GROUP,
    )
    recency: float = recency()

    def adds(self) -> dict[str, Any]:
        """The facts that all users weigh alike and that second moments are right only in a mean."""
        return {"equal": True, "second moments": True}

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` for a model without such vectors, or data other than clicks."""
        model = context.model
        fits = model.rows.get("user") == "user" and model.rows.get("item") == "item"
        require(
            fits and context.data.task == "clicks",
            "model",
            model.name,
            "implicit needs vectors `user` and `item`, on clicks; take matrix factorisation",
        )

    def asks(self, context: RoundContext) -> dict[str, tuple[Tensor, str]]:
        """The gradients of the items, and the sum of p_u p_u'."""
        items = context.params["item"]
        gram = items.new_zeros(1, items.shape[1], items.shape[1])
        return {"item": (items, "item"), "gram": (gram, "one")}

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield each client's vector, the negative half gradients of its items, and p_u p_u'.

        The vector stays with the client.
        """
        solver, users = self._solver(context.params["item"]), context.params["user"]
        for here in cohort.split(GROUP_SIZE):
            clicks, owners = clicked(context.data, here)
            vectors, item, losses = solver.gradients(clicks)
            client, films, owners = (t.to(item.device) for t in (*_rows(clicks), owners))
            clients, ones = torch.arange(len(here), device=item.device), torch.ones_like(losses)
            outer, none = vectors[:, :, None] * vectors[:, None], torch.zeros_like(owners)
            sent = {
                "item": Rows(item, films, client),
                "gram": Rows(outer, none, clients),
                "user": Rows(vectors - users.index_select(0, owners), owners, clients),
            }
            yield Update(sent, ones, losses, here, ones)

    def train_summed(
        self, context: RoundContext, cohort: Tensor, weights: Tensor, longest: float
    ) -> Summed | None:
        """What `train` yields, added up in the cache; None without compiled loops."""
        solver, users = self._solver(context.params["item"]), context.params["user"]
        layout = layout_of(context.data)
        if isinstance(solver, Plain) or layout is None or not layout.items:
            return None  # or an item may come twice
        clicks, owners = clicked(context.data, cohort)
        vectors, found = solver.summed(clicks, weights, longest)
        losses, lengths = (torch.from_numpy(column) for column in (found.losses, found.lengths))
        ones = torch.ones_like(losses)
        moved = Rows(vectors - users.index_select(0, owners), owners, torch.arange(len(cohort)))
        return Summed(
            Update({}, ones, losses, cohort, ones),
            lengths,
            {"item": torch.from_numpy(clicks.counts), "one": torch.ones_like(owners)},
            {
                "item": torch.from_numpy(found.item),
                "gram": torch.from_numpy(found.gram).view_as(context.server["gram"]),
            },
            {"user": moved},
        )

    def finish(self, delta: Delta, context: RoundContext) -> Delta:
        """The negative half gradient of the mean loss by all items.

        It is made of the gradients as sent and of what `gram` implies for all items.
        """
        items = context.params["item"]
        (gram,) = whole(delta["gram"], context.server["gram"])
        unmet = items @ gram + self.reg * items
        return {"item": whole(delta["item"], items) - self.w0 * unmet}

    def score(self, model: Model, data: Any, done: Round) -> Score:
        """Solve every user's vector anew, as its client does to recommend, and predict with it."""
        return scorer(model, self.personal(data, done.params), data.owner)

    def personal(self, data: Federation, params: Tree) -> Tree:
        """The parameters with every user's vector solved against the films as they are now.

        Each client would solve its own in the same way.
        """
        clicks, owners = clicked(data, torch.arange(len(data)))
        if self.recency:
            client, films = _rows(clicks)
            mine = recent(data.train, self.recency)[data.rows(owners[client], films)]
            clicks = clicks._replace(weights=mine.numpy())
        users = params["user"].clone()
        users[owners.to(users.device)] = self._solver(params["item"]).vectors(clicks)
        return params | {"user": users}

    def _solver(self, items: Tensor) -> "Plain | Compiled":
        """What solves for the clients' vectors, given the items'."""
        fit = items.is_cpu and items.dtype == torch.float32 and items.is_contiguous()
        if not fit or compiled_loops() is None:
            return Plain(items, self.w0, self.reg)
        from fedlab.engine.fused.least_squares import Compiled  # noqa: PLC0415 - loads numba

        return Compiled(items, self.w0, self.reg)


class Plain:
    """The same as `Compiled`, which solves for the vectors, by torch, on any device."""

    def __init__(self, items: Tensor, w0: float, reg: float) -> None:
        """Multiply once for all clients."""
        self.items, self.fine, self.w0, self.reg = items, items.double(), w0, reg
        self.gram = self.fine.T @ self.fine

    def vectors(self, clicks: Clicks) -> Tensor:
        """The clients' vectors (C, D)."""
        where = np.stack([clicks.starts, clicks.starts + clicks.counts], 1)
        groups = torch.from_numpy(where).split(GROUP_SIZE)
        return torch.cat([self._solved(clicks, group.tolist()) for group in groups])

    def gradients(self, clicks: Clicks) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors (C, D), negative half gradients of the items clicked (n, D), losses (C,)."""
        vectors = self.vectors(clicks)
        client, films = (column.to(vectors.device) for column in _rows(clicks))
        mine, rows = vectors.index_select(0, client), self.items.index_select(0, films)
        miss = 1 - (mine * rows).sum(1)
        losses = self.w0 * ((vectors @ self.gram.float()) * vectors).sum(1)
        losses = add_rows(losses, client, miss.square()) / torch.bincount(client)
        return vectors, miss[:, None] * mine - self.reg * rows, losses

    def _solved(self, clicks: Clicks, where: list[list[int]]) -> Tensor:
        """The vectors of clients whose clicks are these, from the first to before the last."""
        eye, lefts, rights = torch.eye(len(self.gram)).to(self.gram), list[Tensor](), list[Tensor]()
        for first, last in where:
            films = torch.from_numpy(clicks.items[first:last].astype(np.int64))
            rows = self.fine.index_select(0, films.to(self.fine.device))
            weights = torch.from_numpy(clicks.weights[first:last]).to(rows)
            weights = weights if len(weights) else torch.ones_like(rows[:, 0])
            strength = self.reg * (weights.sum() + self.w0 * len(self.items))
            lefts.append((rows.T * weights) @ rows + self.w0 * self.gram + strength * eye)
            rights.append(weights @ rows)
        return torch.linalg.solve(torch.stack(lefts), torch.stack(rights)).to(self.items)


def clicked(data: Source, cohort: Tensor) -> tuple[Clicks, Tensor]:
    """What these clients (C,) clicked, and the user of each (C,).

    Raises `ParameterError` for a client of several users.
    """
    layout, who, none = layout_of(data), cohort.numpy(), np.empty(0, np.float32)
    if layout is not None and layout.items:  # its rows lie by user and item
        starts, counts = layout.starts[who], layout.counts[who]
        items, user = layout.columns["item"], layout.columns.get("user")
    else:
        drawn = {n: c.numpy() for n, c in data.draw(cohort, 1, 0, Key(0, "order")).items()}
        order = np.lexsort([drawn[name] for name in ("item", "user", "client")])
        counts = np.bincount(drawn["client"])
        starts, items, user = counts.cumsum() - counts, drawn["item"][order], drawn["user"][order]
    first, last = (who, who) if user is None else (user[starts], user[starts + counts - 1])
    require(
        bool((first == last).all()),
        "data",
        "platforms",
        "implicit solves one user at each client; set partition='one per user'",
    )
    return Clicks(starts, counts, items, none), torch.from_numpy(first).long()


def _rows(clicks: Clicks) -> tuple[Tensor, Tensor]:
    """(client (n,), item (n,)) of all clicks, client after client."""
    starts, counts = torch.from_numpy(clicks.starts), torch.from_numpy(clicks.counts)
    client, rows = own_rows(torch.arange(len(counts)), starts, counts)
    return client, torch.from_numpy(clicks.items.take(rows.numpy()).astype(np.int64))
