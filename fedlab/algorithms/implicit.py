"""Federated implicit matrix factorisation.

Each user solves its own vector, the server follows the items' gradients.

The loss weighs all films a user has not met a little, so there are no drawn negatives:

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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.aggregation import Delta, some_weight
from fedlab.algorithms.scaffold import Control
from fedlab.core import Config, Key, Rows, Tree, Update, require
from fedlab.data import Federation, Source, recent
from fedlab.models import Model

GROUP = 256          # clients solved at a time


@dataclass(frozen=True)
class Implicit:
    """The two halves of the method.

    Hand `update` and `aggregate` to `federate`, with a server optimizer such as adam.

    w0: weight of a film that was not clicked. reg: strength of the regularisation. recency: a click
    weighs (1 + own clicks since) ** -recency where a client recommends; in training all weigh 1.
    For a model with the parameters `user` and `item`, one client per user; biases stay as they are.
    """

    w0: float = 0.1
    reg: float = 0.01
    recency: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(self.w0 > 0, "w0", self.w0, "choose a positive weight, say 0.1")
        require(self.reg > 0, "reg", self.reg,
                "choose a positive strength, say 0.01; without it a vector has no size")
        require(self.recency >= 0, "recency", self.recency,
                "choose 0, which weighs all clicks alike, or more, say 1")

    def update(self, model: Model, data: Source, params: Tree, cohort: Tensor, config: Config, *,
               number: int = 1, control: Control | None = None) -> Iterator[Update]:
        """Each client solves its vector and sends the negative half gradients of its films' rows.

        And p_u p_u'.
        """
        fits = model.rows.get("user") == "user" and model.rows.get(
            "item") == "item" and data.task == "clicks"
        require(fits, "model", model.name, "this update needs vectors `user` and `item`, on clicks")
        require(config.correction == "none" and not config.proximal, "correction",
                config.correction,
                "there are no local steps to correct; set correction='none' and proximal=0")
        gram = params["item"].T @ params["item"]
        for here in cohort.split(GROUP):
            films, client, owners, rows, vectors = self._solved(_clicks(data, here), params["item"],
                                                                gram)
            mine = vectors.index_select(0, client)  # (n, D), as rows
            miss, clients = 1 - (mine * rows).sum(1), torch.arange(len(here), device=rows.device)
            losses = rows.new_zeros(len(here)).index_add_(0, client, miss.square())
            losses += self.w0 * ((vectors @ gram) * vectors).sum(1)
            sent = {"item": Rows(miss[:, None] * mine - self.reg * rows, films, client),
                    "gram": Rows(vectors[:, :, None] * vectors[:, None], torch.zeros_like(owners), clients),
                    "user": Rows(vectors - params["user"].index_select(0, owners), owners, clients)}
            ones = torch.ones_like(losses)
            yield Update(sent, ones, losses / torch.bincount(client), here, ones)

    def personal(self, data: Federation, params: Tree) -> Tree:
        """The parameters with every user's vector solved against the films as they are now.

        As each client would.
        """
        users, gram = params["user"].clone(), params["item"].T @ params["item"]
        weights = recent(data.train, self.recency) if self.recency else torch.ones(len(data.train))
        for here in torch.arange(len(data)).split(GROUP):
            clicks = _clicks(data, here)
            mine = weights[data.rows(clicks["user"], clicks["item"])]
            _, _, owners, _, vectors = self._solved(clicks, params["item"], gram, mine)
            users[owners] = vectors
        return params | {"user": users}

    def _solved(self, clicks: Tree, items: Tensor, gram: Tensor,
                weights: Tensor | None = None) -> tuple[Tensor, ...]:
        """Of some clients.

        (films clicked (n,), client of each, user of each client (C,), films' rows, vectors).

        weights (n,): of the clicks, all 1 where there are none.
        """
        client, user = clicks["client"], clicks["user"]
        owners = torch.zeros(int(client[-1]) + 1, dtype=torch.int64).index_copy_(0, client, user)
        require(bool((owners[client] == user).all()), "data", "platforms",
                "each client must be one user")
        films, client, owners = (t.to(items.device) for t in (clicks["item"], client, owners))
        rows, counts = items.index_select(0, films), torch.bincount(client)
        weights = torch.ones_like(rows[:, 0]) if weights is None else weights.to(items.device)
        place = client, torch.arange(len(client),
                                     device=client.device) - (counts.cumsum(0) - counts)[client]
        padded, weighted = rows.new_zeros(2, len(counts), int(counts.max()), rows.shape[1])
        padded[place], weighted[place] = rows, rows * weights[:, None]
        eye, total = torch.eye(rows.shape[1], device=rows.device), weights.new_zeros(len(counts))
        strength = self.reg * (total.index_add_(0, client, weights) + self.w0 * len(items))
        left = torch.bmm(padded.transpose(1, 2), weighted) + self.w0 * gram + strength[:, None,
                                                                                       None] * eye
        return films, client, owners, rows, torch.linalg.solve(left, weighted.sum(1))

    def aggregate(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The negative half gradient of the cohort's mean loss by all films.

        Clients' rows, and what `gram` implies.
        """
        total = torch.zeros_like(server["item"])
        gram, clients = total.new_zeros(total.shape[1], total.shape[1]), 0
        for update in updates:
            rows, clients = update.deltas["item"], clients + len(update.cohort)
            total.index_add_(0, rows.ids, rows.values)
            gram += update.deltas["gram"].values.sum(0)
        some_weight(float(clients))
        unmet = server["item"] @ gram + self.reg * clients * server["item"]
        return {"item": (total - self.w0 * unmet) / clients}


def _clicks(data: Source, here: Tensor) -> Tree:
    """What these clients clicked, client after client; the order within is of no account."""
    return data.draw(here, 1, 0, Key(0, "order"))
