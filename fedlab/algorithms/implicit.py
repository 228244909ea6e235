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
from typing import Any

import torch
from torch import Tensor

from fedlab.algorithms.participation import longest_first
from fedlab.core import (
    Delta,
    Key,
    Local,
    Round,
    RoundContext,
    Rows,
    Score,
    Tree,
    Update,
    add_rows,
    knob,
    register,
    require,
    whole,
)
from fedlab.data import Federation, Source, recent
from fedlab.evaluation import scorer
from fedlab.models import Model

GROUP = "implicit"
GROUP_SIZE = 64  # clients solved at a time, padded to the longest of them


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
    recency: float = knob(
        0.0,
        0.0,
        10.0,
        "",
        "implicit: a click weighs (1 + own clicks since) ** -recency where a client recommends; in "
        "training all weigh 1",
        usual=(0.0, 2.0),
        group=GROUP,
    )

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
        params = context.params
        gram = params["item"].T @ params["item"]
        for here in cohort.split(GROUP_SIZE):
            films, client, owners, rows, vectors = self._solved(
                _clicks(context.data, here), params["item"], gram
            )
            mine = vectors.index_select(0, client)  # (n, D), as rows
            miss, clients = 1 - (mine * rows).sum(1), torch.arange(len(here), device=rows.device)
            losses = add_rows(rows.new_zeros(len(here)), client, miss.square())
            losses += self.w0 * ((vectors @ gram) * vectors).sum(1)
            sent = {
                "item": Rows(miss[:, None] * mine - self.reg * rows, films, client),
                "gram": Rows(
                    vectors[:, :, None] * vectors[:, None], torch.zeros_like(owners), clients
                ),
                "user": Rows(vectors - params["user"].index_select(0, owners), owners, clients),
            }
            ones = torch.ones_like(losses)
            yield Update(sent, ones, losses / torch.bincount(client), here, ones)

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
        users, gram = params["user"].clone(), params["item"].T @ params["item"]
        weights = recent(data.train, self.recency) if self.recency else torch.ones(len(data.train))
        everyone = longest_first(data, torch.arange(len(data)))  # so that little is padded
        for here in everyone.split(GROUP_SIZE):
            clicks = _clicks(data, here)
            mine = weights[data.rows(clicks["user"], clicks["item"])]
            _, _, owners, _, vectors = self._solved(clicks, params["item"], gram, mine)
            users[owners] = vectors
        return params | {"user": users}

    def _solved(
        self, clicks: Tree, items: Tensor, gram: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Solve the vectors of the clients whose clicks these are.

        weights (n,): of the clicks, by default all 1. Returns the films clicked (n,), the client of
        each, the user of each client (C,), the films' rows and the clients' vectors.
        """
        client, user = clicks["client"], clicks["user"]
        owners = torch.zeros(int(client[-1]) + 1, dtype=torch.int64).index_copy_(0, client, user)
        require(
            bool((owners[client] == user).all()),
            "data",
            "platforms",
            "implicit solves one user at each client; set partition='one per user'",
        )
        films, client, owners = (t.to(items.device) for t in (clicks["item"], client, owners))
        rows, counts = items.index_select(0, films), torch.bincount(client)
        weights = torch.ones_like(rows[:, 0]) if weights is None else weights.to(items.device)
        place = (
            client,
            torch.arange(len(client), device=client.device) - (counts.cumsum(0) - counts)[client],
        )
        padded, weighted = rows.new_zeros(2, len(counts), int(counts.max()), rows.shape[1])
        padded[place], weighted[place] = rows, rows * weights[:, None]
        eye, total = torch.eye(rows.shape[1], device=rows.device), weights.new_zeros(len(counts))
        strength = self.reg * (add_rows(total, client, weights) + self.w0 * len(items))
        left = (
            torch.bmm(padded.transpose(1, 2), weighted)
            + self.w0 * gram
            + strength[:, None, None] * eye
        )
        return films, client, owners, rows, torch.linalg.solve(left, weighted.sum(1))


def _clicks(data: Source, here: Tensor) -> Tree:
    """What these clients clicked, client after client, with the items of each growing."""
    drawn = data.draw(here, 1, 0, Key(0, "order"))
    order = (drawn["client"] << 32 | drawn["item"]).argsort()
    return {name: column[order] for name, column in drawn.items()}
