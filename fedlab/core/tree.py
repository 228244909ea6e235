"""Trees of parameters, and what a cohort sends back: rows of them.

A *Tree* maps names to tensors. Axis 0 of a parameter is its **rows**: one per item, one per user,
or a single one for an ordinary weight. A client works on the rows it touches, so what a cohort
sends back is a `Rows` for each name: all clients' rows in one tensor, with the row id and the
client beside each.

Letters: C clients in a cohort, R rows touched, c clients in a chunk of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

Tree = dict[str, Tensor]
CACHED = 1 << 16      # floats scaled at a time before they are added: what stays in a core's cache
Score = Callable[[Tensor, Tensor], Tensor]   # (users, items) of one shape -> scores of that shape


def to(tree: Tree, device: str | torch.device) -> Tree:
    """The same tree on another device."""
    return {name: value.to(device) for name, value in tree.items()}


@dataclass(frozen=True)
class Rows:
    """The rows of one parameter that a cohort touched, a stacked Tree without the padding.

    values: (R, ...) floats; ids: (R,) row of the parameter; client: (R,) position in the cohort,
    sorted.
    """

    values: Tensor
    ids: Tensor
    client: Tensor

    def scaled(self, factor: Tensor) -> "Rows":
        """Multiply every client's rows by its own factor, (C,)."""
        shape = (-1,) + (1,) * (self.values.dim() - 1)
        return Rows(self.values * factor[self.client].view(shape), self.ids, self.client)

    def only(self, chosen: Tensor) -> "Rows":
        """The rows of some clients, `chosen` (C,), who are counted anew from 0."""
        rows, place = chosen[self.client], chosen.cumsum(0) - 1
        return Rows(self.values[rows], self.ids[rows], place[self.client[rows]])

    def add_to(self, out: Tensor, weights: Tensor) -> Tensor:
        """Add to `out`, of the parameter's shape, every client's rows times its weight (C,).

        In place, row by row in their order, so that chunks of a cohort add up to the same bits
        however they are cut.
        """
        each = max(1, CACHED // max(1, out.shape[1:].numel()))
        for first in range(0, len(self.ids), each):
            here = slice(first, first + each)
            part = Rows(self.values[here], self.ids[here], self.client[here]).scaled(weights)
            out.index_add_(0, part.ids, part.values)
        return out

    def lengths(self) -> Tensor:
        """(R,) L2 norm of each row."""
        return torch.linalg.vector_norm(self.values.view(len(self.ids),
                                                         self.values.shape[1:].numel()), dim=1)

    def square_norms(self, clients: int) -> Tensor:
        """(C,) sum of squares of each client's rows."""
        return self.values.new_zeros(clients).index_add_(0, self.client, self.lengths().square())

    @staticmethod
    def joined(parts: "list[Rows]") -> "Rows":
        """One Rows from several groups of clients, in order."""
        if len(parts) == 1:
            return parts[0]
        return Rows(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Rows)))


# what the server follows: of a table of which few rows moved, `Rows` of these, to be added
Delta = Mapping[str, Tensor | Rows]


@dataclass(frozen=True)
class Update:
    """What a chunk of a cohort sends.

    deltas: `Rows` whose `client` counts from 0 in the chunk. weights, losses, cohort, steps (c,):
    each client's weight in the mean, mean local loss, number, and local steps. bytes_up (c,): of
    each, where not 4 for each number and row. members: where a sender is a platform, the clients
    behind each; `cohort` holds platforms' numbers then.
    """

    deltas: dict[str, Rows]
    weights: Tensor
    losses: Tensor
    cohort: Tensor
    steps: Tensor
    bytes_up: Tensor | None = None
    members: tuple[Tensor, ...] | None = None

    def only(self, chosen: Tensor) -> "Update":
        """Some of its clients: `chosen` (c,) true for those that stay."""
        mine = chosen.to(self.weights.device)
        return Update({name: delta.only(mine) for name, delta in self.deltas.items()},
                      self.weights[mine], self.losses[mine], self.cohort[chosen.cpu()],
                      self.steps[mine], None if self.bytes_up is None else self.bytes_up[mine],
                      None if self.members is None else tuple(
                          m for m, kept in zip(self.members, chosen.tolist(), strict=True) if kept))


def norms(deltas: Mapping[str, Rows], clients: int) -> Tensor:
    """(C,) L2 norm of each client's delta over all its parameters, on the CPU."""
    return sum((d.square_norms(clients).cpu() for d in deltas.values()),
               torch.zeros(clients)).sqrt()


def moved(value: Tensor, delta: Tensor | Rows, rate: float) -> Tensor:
    """A parameter after a step of `rate` times `delta`; of `Rows`, only these change."""
    if isinstance(delta, Tensor):
        return value + rate * delta
    return value.index_add(0, delta.ids, delta.values * rate)


def whole(delta: Tensor | Rows, like: Tensor) -> Tensor:
    """A delta as a tensor of the parameter's shape."""
    return delta if isinstance(delta, Tensor) else moved(torch.zeros_like(like), delta, 1.0)
