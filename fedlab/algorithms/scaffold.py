"""SCAFFOLD: control variates that take the drift out of local steps.

Each client keeps c_i, the server c; a local step follows g - c_i + c, with c - c_i held fixed over
the round. A client corrects the rows it holds in the round, as it gets no others; what it has never
held counts as 0. It sends the change of its c_i beside its delta, under a name of its own: so c is
aggregated, clipped, coded, masked and noised by whatever does so to the delta.

Letters: N clients, C in a cohort, I rows of a parameter, R rows held, r by one client so far, K
local steps.

Source: Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning",
algorithm 1, option II: c_i <- c_i - c + (x - y_i) / (K lr), c <- c + |S| / N mean of the changes.
Where clients weigh by their examples, |S| / N is the share of all examples: c must be the mean that
the server follows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlab.core import (
    Delta,
    RoundContext,
    Rows,
    SparseTable,
    Tree,
    Update,
    register,
    require,
    stored,
    whole,
)
from fedlab.engine import SGD, how, updates

CONTROL = "control of "


@stored
@dataclass(frozen=True)
class Control:
    """The control variates of all shared parameters.

    server: name -> c, of the parameter's shape. clients: name -> client -> the rows of its c_i that
    the client has held: their ids (r,), growing, and values (r, ...).
    """

    server: Tree
    clients: Mapping[str, Mapping[int, tuple[Tensor, Tensor]]]

    @classmethod
    def of(cls, shared: Tree) -> "Control":
        """Control variates of zero; shared: the parameters that clients send."""
        return cls(
            {name: torch.zeros_like(value) for name, value in shared.items()},
            {name: {} for name in shared},
        )

    def shift(self, name: str, ids: Tensor, client: Tensor, cohort: Tensor) -> Tensor:
        """The correction c - c_i (R, ...) of some rows of a parameter.

        ids (R,): the rows. client (R,): the place in the cohort of the client that holds each.
        """
        server = self.server[name]
        own = self._of(name, cohort).index_select(0, client * len(server) + ids)
        return server.index_select(0, ids) - own

    def moved(self, update: Update, local_lr: float) -> tuple["Control", dict[str, Rows]]:
        """The control variates after these clients trained, and by name the change of their c_i."""
        clients, changes = {name: dict(kept) for name, kept in self.clients.items()}, {}
        for name, server in self.server.items():
            rows, size = update.deltas[name], len(server)
            passed = update.steps.to(rows.values) * local_lr  # (C,) K lr
            change = -rows.scaled(1 / passed).values - server.index_select(0, rows.ids)
            changes[name] = replace(rows, values=change)
            table = self._of(name, update.cohort).index_add(
                0, rows.client * size + rows.ids, change
            )
            cuts = torch.bincount(table.ids // size, minlength=len(update.cohort)).tolist()
            parts = zip(
                update.cohort.tolist(), table.ids.split(cuts), table.values.split(cuts), strict=True
            )
            for client, ids, values in parts:
                # a copy, not a view, which would keep the whole table
                clients[name][client] = ids % size, values.clone()
        return replace(self, clients=clients), changes

    def _of(self, name: str, cohort: Tensor) -> SparseTable:
        """The c_i of some clients, one after another: row i of the k-th of them is k * I + i."""
        size, kept = len(self.server[name]), self.clients[name]
        table = SparseTable.untouched(len(cohort) * size, torch.zeros_like(self.server[name][:1]))
        found = [
            (place * size + kept[client][0], kept[client][1])
            for place, client in enumerate(cohort.tolist())
            if client in kept
        ]
        if not found:
            return table
        ids, values = (torch.cat(parts) for parts in zip(*found, strict=True))
        return replace(table, ids=ids, values=values)


@register
class Scaffold(SGD):
    """Epochs of SGD whose steps are corrected by control variates."""

    refuses = ("stale",)

    def check(self, context: RoundContext) -> None:
        """Raise `ParameterError` where control variates have no meaning."""
        require(
            self.optimizer == "sgd",
            "optimizer",
            self.optimizer,
            "SCAFFOLD's control variates are gradients of plain steps; set optimizer='sgd'",
        )
        require(
            self.local_lr > 0,
            "local_lr",
            self.local_lr,
            "SCAFFOLD divides by it; choose a positive one",
        )

    def asks(self, context: RoundContext) -> dict[str, tuple[Tensor, str]]:
        """The parameters, and the change of the control variate of each."""
        own = super().asks(context)
        return own | {CONTROL + name: pair for name, pair in own.items()}

    def tells(self, context: RoundContext) -> Tree:
        """The server's c."""
        return {CONTROL + name: c for name, c in self._control(context).server.items()}

    def hears(self, context: RoundContext, told: Tree) -> None:
        """Take the server's c; the c_i are the clients' own."""
        server = {name.removeprefix(CONTROL): c for name, c in told.items()}
        context.memory(self)["control"] = replace(self._control(context), server=server)

    def _control(self, context: RoundContext) -> Control:
        """The control variates, which begin at zero."""
        shared = {name: context.params[name] for name, _ in super().asks(context).items()}
        found: Control = context.memory(self).setdefault("control", Control.of(shared))
        return found

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield each client's delta and the change of its c_i, chunk by chunk."""
        memory, control = context.memory(self), self._control(context)
        context.notes["engine"] = how(context.model, context.data, context.params, self)
        sent = updates(
            context.model,
            context.data,
            context.params,
            cohort,
            self,
            seed=context.seed,
            number=context.number,
            correction=control,
        )
        for update in sent:
            after, changes = memory["control"].moved(update, self.local_lr)
            memory["control"] = after
            yield replace(
                update, deltas=update.deltas | {CONTROL + n: rows for n, rows in changes.items()}
            )

    def finish(self, delta: Delta, context: RoundContext) -> Delta:
        """The deltas of the parameters alone; the server's c follows the changes of the c_i."""
        memory = context.memory(self)
        control: Control = memory["control"]
        server = {
            name: c + context.share * whole(delta[CONTROL + name], c)
            if CONTROL + name in delta
            else c
            for name, c in control.server.items()
        }
        memory["control"] = replace(control, server=server)
        return {name: d for name, d in delta.items() if not name.startswith(CONTROL)}
