"""SCAFFOLD: control variates that take the drift out of local steps.

Each client keeps c_i, the server c; a local step follows g - c_i + c, with c - c_i held fixed over
the round. A client corrects the rows it holds in the round, as it gets no others; what it has never
held counts as 0.

Letters: N clients, C in a cohort, I rows of a parameter, R rows held, r by one client so far, K
local steps. Source: Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for
federated learning", algorithm 1, option II: c_i <- c_i - c + (x - y_i) / (K lr), c <- c + (1 / N)
sum of the changes. Where clients weigh by their examples, 1 / N is their share of all examples: c
must be the mean that the server follows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedlab.core import Config, Rows, SparseTable, Tree, Update, require
from fedlab.models import Model


@dataclass(frozen=True)
class Control:
    """The control variates of all shared parameters.

    server: name -> c, of the parameter's shape. clients: name -> client -> the rows of its c_i that
    it has held: their ids (r,), growing, and values (r, ...). A round rewrites those of its cohort
    alone.
    """

    server: Tree
    clients: Mapping[str, Mapping[int, tuple[Tensor, Tensor]]]

    @classmethod
    def of(cls, state: Mapping[str, Any], model: Model, params: Tree) -> "Control":
        """Those that the state of a Round holds, or zeros."""
        if "control" in state:
            kept: Control = state["control"]
            return kept
        shared = [name for name in model.rows if name not in model.private]
        return cls({name: torch.zeros_like(params[name]) for name in shared},
                   {name: {} for name in shared})

    def shift(self, name: str, ids: Tensor, client: Tensor, cohort: Tensor) -> Tensor:
        """(R.

        ...) c - c_i of the rows `ids` (R,) that the clients at `client` (R,) in the cohort (C,)
        hold.
        """
        server = self.server[name]
        return server.index_select(0, ids) - self._of(name, cohort).index_select(0,
                                                                                 client
                                                                                 * len(server)
                                                                                 + ids)

    def after(self, updates: list[Update], config: Config, total: float) -> "Control":
        """The control variates after a round that sent these updates; total.

        The weights of all clients together.
        """
        server, clients = dict(self.server), {name: dict(kept) for name,
                                              kept in self.clients.items()}
        for name in self.server:
            for update in updates:
                delta, size = update.deltas[name], len(server[name])
                passed = update.steps.to(delta.values) * config.local_lr                 # (C,) K lr
                change = -delta.scaled(1 / passed).values - self.server[name].index_select(0, delta.ids)
                table = self._of(name, update.cohort).index_add(0, delta.client * size + delta.ids,
                                                                change)
                cuts = torch.bincount(table.ids // size, minlength=len(update.cohort)).tolist()
                for k, ids, values in zip(update.cohort.tolist(), table.ids.split(cuts),
                                          table.values.split(cuts), strict=True):
                    # not a view, which would keep them all
                    clients[name][k] = ids % size, values.clone()
                sent = Rows(change, delta.ids, delta.client)
                server[name] = sent.add_to(server[name].clone(), update.weights / total)
        return Control(server, clients)

    def _of(self, name: str, cohort: Tensor) -> SparseTable:
        """c_i of some clients, one after another.

        With I rows each, row i of the k-th is k * I + i.
        """
        size, kept = len(self.server[name]), self.clients[name]
        table = SparseTable.untouched(len(cohort) * size, torch.zeros_like(self.server[name][:1]))
        found = [(k * size + kept[client][0], kept[client][1]) for k,
                 client in enumerate(cohort.tolist()) if client in kept]
        if not found:
            return table
        ids, values = (torch.cat(parts) for parts in zip(*found, strict=True))
        return replace(table, ids=ids, values=values)


def check_correction(config: Config) -> None:
    """Raise `ParameterError` where control variates have no meaning."""
    if config.correction == "none":
        return
    require(config.optimizer == "sgd", "correction", config.correction,
            "control variates are gradients of plain steps; set optimizer='sgd'")
    require(config.local_lr > 0, "local_lr", config.local_lr,
            "SCAFFOLD divides by it; choose a positive one")
