"""Fewer bytes up: what a client learned in a few bits a number, or only its largest numbers, with a memory of the rest.

    sent = code(delta + e),   e <- delta + e - sent        error feedback: what was left out is sent later

Letters: C clients, R rows sent, n numbers of a client in a table.
Sources: Seide et al. 2014, "1-bit stochastic gradient descent" (sign, error feedback); Alistarh et al. 2017, "QSGD"
(levels); Stich, Cordonnier, Jaggi 2018, "Sparsified SGD with memory" (top-k with memory).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fedlab.cohort import updates
from fedlab.core import Rows, Tree, Update, require
from fedlab.models import Model

Coded = tuple[Tensor, Tensor]                 # (what arrives, of the values' shape; bytes of each client)


class Code(Protocol):
    """(values (R, ...), client (R,), C) -> Coded. says_where: whether its bytes tell which rows the numbers are of."""

    says_where: ClassVar[bool]

    def __call__(self, values: Tensor, client: Tensor, clients: int) -> Coded:
        """Code and decode one table."""


@dataclass(frozen=True)
class Quantised:
    """Each number in `bits` bits: 8, 4 or 2 for 255, 15 or 3 levels up to a table's largest; 1 for the sign alone.

    A table takes 4 bytes more for its scale: the largest number, or the mean of all sizes for signs.
    """

    bits: int = 4
    says_where: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the number."""
        require(self.bits in (1, 2, 4, 8), "bits", self.bits, "choose 1, 2, 4 or 8")

    @property
    def most(self) -> int:
        """The highest level."""
        return max(1, 2 ** (self.bits - 1) - 1)

    def __call__(self, values: Tensor, client: Tensor, clients: int) -> Coded:
        """(levels times scale, bytes)."""
        flat, each = values.reshape(len(client), -1), values[:1].numel()
        count = torch.bincount(client, minlength=clients) * each
        sizes = flat.abs()
        if self.bits == 1:
            scale = sizes.new_zeros(clients).index_add_(0, client, sizes.sum(1)) / count.clamp(min=1)
            levels = torch.where(flat < 0, -1.0, 1.0)
        else:
            scale = sizes.new_zeros(clients).scatter_reduce_(0, client, sizes.amax(1), "amax") / self.most
            levels = (flat / scale.clamp(min=1e-30)[client, None]).round()
        return (levels * scale[client, None]).view_as(values), (count * self.bits + 7) // 8 + 4 * (count > 0)


def packed(levels: np.ndarray[Any, np.dtype[np.int8]], bits: int) -> bytes:
    """Levels as they are sent: offset to 0 and more, `bits` bits each, the last byte filled with zeros."""
    codes = (levels > 0 if bits == 1 else levels + (2 ** (bits - 1) - 1)).astype(np.uint8)
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - bits:]).tobytes()


def unpacked(text: bytes, count: int, bits: int) -> np.ndarray[Any, np.dtype[np.int8]]:
    """The `count` levels that were packed."""
    table = np.unpackbits(np.frombuffer(text, np.uint8))[:count * bits].reshape(count, bits)
    codes = np.packbits(np.pad(table, ((0, 0), (8 - bits, 0))), axis=1)[:, 0].astype(np.int8)
    return 2 * codes - 1 if bits == 1 else codes - np.int8(2 ** (bits - 1) - 1)


def row_bytes(ids: Tensor, client: Tensor, clients: int) -> Tensor:
    """(C,) bytes of each client's row numbers, which grow: each as its distance from the last, 7 bits a byte."""
    first = torch.ones_like(client, dtype=torch.bool)
    first[1:] = client[1:] != client[:-1]
    apart = torch.where(first, ids + 1, ids - ids.roll(1))
    require(bool((apart > 0).all()), "ids", ids[apart <= 0][:1].tolist(), "a client's row numbers must grow")
    each = 1 + sum((apart >> 7 * more > 0).long() for more in range(1, 5))
    return torch.zeros(clients, dtype=torch.int64, device=ids.device).index_add_(0, client, torch.as_tensor(each))


@dataclass(frozen=True)
class TopK:
    """The `share` largest numbers of each client's table, at least one, each with 4 bytes to say where."""

    share: float = 0.1
    says_where: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the number."""
        require(0 < self.share <= 1, "share", self.share, "choose a share of the numbers from above 0 to 1")

    def __call__(self, values: Tensor, client: Tensor, clients: int) -> Coded:
        """(values with zeros elsewhere, bytes)."""
        each, flat = values[:1].numel(), values.reshape(-1)
        owner = client.repeat_interleave(each)
        count = torch.bincount(owner, minlength=clients)
        kept = (count.double() * self.share).ceil().long()
        order = flat.abs().argsort(descending=True, stable=True)
        order = order[owner[order].argsort(stable=True)]                       # by client, the largest first
        place = torch.arange(len(flat), device=flat.device) - (count.cumsum(0) - count)[owner[order]]
        chosen = order[place < kept[owner[order]]]
        found = torch.zeros_like(flat)
        found[chosen] = flat[chosen]
        return found.view_as(values), 8 * kept


class Compressed:
    """A client update whose deltas go through `code`; hand `update` to `federate`. One object for one run.

    feedback: whether clients keep what was left out for the next time that they hold the row. trained: what clients do
    before. Rows' numbers go beside tables whose code does not tell them, as distances, see `row_bytes`.
    """

    def __init__(self, code: Code, *, feedback: bool = True,
                 trained: Callable[..., Iterator[Update]] = updates) -> None:
        """Nothing left out yet."""
        self.code, self.feedback, self.trained = code, feedback, trained
        self.left: dict[str, Memory] = {}

    def update(self, model: Model, data: Any, params: Tree, cohort: Tensor, *given: Any, **named: Any
               ) -> Iterator[Update]:
        """As `fedlab.cohort.updates`, compressed; private rows do not leave and are left as they are."""
        for sent in self.trained(model, data, params, cohort, *given, **named):
            clients, deltas = len(sent.cohort), dict(sent.deltas)
            size = torch.zeros(clients, dtype=torch.int64, device=sent.weights.device)
            kinds: set[str] = set()
            for name, rows in sent.deltas.items():
                if name in model.private:
                    continue
                deltas[name], bytes_ = self._coded(name, rows, len(params[name]), sent.cohort)
                size += bytes_
                if not self.code.says_where and model.rows[name] not in {"one", *kinds}:
                    kinds.add(model.rows[name])
                    size += row_bytes(rows.ids, rows.client, clients)
            yield replace(sent, deltas=deltas, bytes_up=size)

    def _coded(self, name: str, rows: Rows, height: int, cohort: Tensor) -> tuple[Rows, Tensor]:
        """(what arrives of a table, bytes of each client)."""
        if not self.feedback:
            arrives, size = self.code(rows.values, rows.client, len(cohort))
            return replace(rows, values=arrives), size
        memory = self.left.setdefault(name, Memory(height, rows.values))
        client = cohort.to(rows.ids.device)[rows.client]
        values = rows.values + memory.of(client, rows.ids)
        arrives, size = self.code(values, rows.client, len(cohort))
        memory.keep(client, rows.ids, (values - arrives).nan_to_num(0.0, 0.0, 0.0))    # a bad round stays one
        return replace(rows, values=arrives), size


class Memory:
    """What clients left out of each row: a place for each row that a client ever held, 4 bytes for each that it may."""

    def __init__(self, height: int, like: Tensor) -> None:
        """Empty. height: rows of the table. like (R, ...): values of its rows."""
        self.place = torch.full((0, height), -1, dtype=torch.int32, device=like.device)
        self.values, self.used = like.new_zeros(0, *like.shape[1:]), 0

    def of(self, client: Tensor, ids: Tensor) -> Tensor:
        """(R, ...) of these rows, 0 where there is nothing; client (R,): numbers."""
        missing = int(client.max()) + 1 - len(self.place) if len(client) else 0
        if missing > 0:
            more = self.place.new_full((missing, self.place.shape[1]), -1)
            self.place = torch.cat([self.place, more])
        at = self.place[client, ids].long()
        found = self.values.new_zeros(len(ids), *self.values.shape[1:])
        found[at >= 0] = self.values[at[at >= 0]]
        return found

    def keep(self, client: Tensor, ids: Tensor, rest: Tensor) -> None:
        """Remember these instead; `of` has been asked for the same rows."""
        fresh = self.place[client, ids] < 0
        count = int(fresh.sum())
        self.place[client[fresh], ids[fresh]] = torch.arange(self.used, self.used + count, dtype=torch.int32,
                                                             device=ids.device)
        self.used += count
        if self.used > len(self.values):                     # twice the room, so that few rounds copy
            more = self.values.new_zeros(2 * self.used - len(self.values), *self.values.shape[1:])
            self.values = torch.cat([self.values, more])
        self.values[self.place[client, ids].long()] = rest
