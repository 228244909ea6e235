"""SCAFFOLD: control variates that take the drift out of local steps.

Each client keeps c_i, the server c; a local step follows g - c_i + c, with c - c_i held fixed over the round. A client
corrects the rows it holds in the round, as it gets no others; what it has never held counts as 0.

Letters: N clients, C in a cohort, I rows of a parameter, R rows held, K local steps.
Source: Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning", algorithm 1,
option II: c_i <- c_i - c + (x - y_i) / (K lr), c <- c + (1 / N) sum of the changes. Where clients weigh by their
examples, 1 / N is their share of all examples: c must be the mean that the server follows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlab.core import Config, Rows, Tree, Update, require
from fedlab.models import Model
from fedlab.tables import SparseTable


@dataclass(frozen=True)
class Control:
    """The control variates of all shared parameters.

    server: name -> c, of the parameter's shape. clients: name -> c_i of all clients, (N * I, ...), in which row
    i of client k is k * I + i.
    """

    server: Tree
    clients: Mapping[str, SparseTable]

    @classmethod
    def of(cls, state: Mapping[str, Any], model: Model, params: Tree, count: int) -> "Control":
        """Those that the state of a Round holds, or zeros for `count` clients."""
        if "control" in state:
            kept: Control = state["control"]
            return kept
        shared = {name: params[name] for name in model.rows if name not in model.private}
        return cls({name: torch.zeros_like(p) for name, p in shared.items()},
                   {name: SparseTable.untouched(count * len(p), torch.zeros_like(p[:1])) for name, p in shared.items()})

    def shift(self, name: str, ids: Tensor, numbers: Tensor) -> Tensor:
        """(R, ...) c - c_i of the rows `ids` (R,) that the clients `numbers` (R,) hold."""
        server = self.server[name]
        return server.index_select(0, ids) - self.clients[name].index_select(0, numbers * len(server) + ids)

    def after(self, updates: list[Update], config: Config, total: float) -> "Control":
        """The control variates after a round that sent these updates; total: the weights of all clients together."""
        server, clients = dict(self.server), dict(self.clients)
        for name in self.server:
            rows = [self._change(name, update, config) for update in updates]
            ids, keys, change, share = (torch.cat(part) for part in zip(*rows, strict=True))
            server[name] = server[name].index_add(0, ids, change * share.view(-1, *[1] * (change.dim() - 1)) / total)
            clients[name] = clients[name].index_add(0, keys, change)
        return Control(server, clients)

    def _change(self, name: str, update: Update, config: Config) -> tuple[Tensor, ...]:
        """(rows of the server, rows of the clients, what is added to c_i, weight of its client), (R, ...) each."""
        delta: Rows = update.deltas[name]
        passed = update.steps.to(delta.values) * config.local_lr                 # (C,) K lr
        change = -delta.scaled(1 / passed).values - self.server[name].index_select(0, delta.ids)
        numbers = update.cohort.to(delta.ids.device)[delta.client]
        return delta.ids, numbers * len(self.server[name]) + delta.ids, change, update.weights[delta.client]


def check_correction(config: Config) -> None:
    """Raise `ParameterError` where control variates have no meaning."""
    if config.correction == "none":
        return
    require(config.optimizer == "sgd", "correction", config.correction,
            "control variates are gradients of plain steps; set optimizer='sgd'")
    require(config.local_lr > 0, "local_lr", config.local_lr, "SCAFFOLD divides by it; choose a positive one")
