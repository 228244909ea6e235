"""Trees of parameters, the rows of them that clients send, and tables that keep less than a Tensor.

A *Tree* maps names to tensors. Axis 0 of a parameter is its **rows**: one per item, one per user,
or a single one for an ordinary weight. A client works on the rows it touches, so what a cohort
sends back is a `Rows` for each name: all clients' rows in one tensor, with the row id and the
client beside each.

A million users with a private vector each would fill the memory, and copying them would fill the
round, while a cohort moves a thousand: a `SparseTable` keeps the rows that changed. Wide columns of
examples are copied once, into batches: a `Lookup` keeps row numbers until then.

Letters: C clients in a cohort, c in a chunk of it, R rows touched or asked for, N rows of a table,
T of them changed, P different first rows.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from fedlab.core.knobs import require

# MKL is asked before its first product: else, on AMD, bits change with where a matrix lies in
# memory, and so with who else is in a cohort; this costs no time
os.environ.setdefault("MKL_CBWR", "AUTO")

Tree = dict[str, Tensor]
CACHED = 1 << 16  # floats scaled at a time before they are added: what stays in a core's cache
Score = Callable[[Tensor, Tensor], Tensor]  # (users, items) of one shape -> scores of that shape


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

    def __post_init__(self) -> None:
        """Check that there is a number and a client for each row."""
        sizes = len(self.values), len(self.ids), len(self.client)
        require(len(set(sizes)) == 1, "rows", sizes, "give as many values, ids and clients")

    def scaled(self, factor: Tensor) -> "Rows":
        """Multiply every client's rows by its own factor, (C,)."""
        shape = (-1,) + (1,) * (self.values.dim() - 1)
        return Rows(self.values * factor[self.client].view(shape), self.ids, self.client)

    def only(self, chosen: Tensor) -> "Rows":
        """The rows of some clients, `chosen` (C,), who are counted anew from 0."""
        chosen = chosen.to(self.client.device)
        rows, place = chosen[self.client], chosen.cumsum(0) - 1
        return Rows(self.values[rows], self.ids[rows], place[self.client[rows]])

    def add_to(self, out: Tensor, weights: Tensor) -> Tensor:
        """Add every client's rows times its weight (C,) to `out`, which has the parameter's shape.

        This happens in place, row by row in their order, so that chunks of a cohort add up to the
        same bits however they are cut.
        """
        fit = self.values.shape[1:] == out.shape[1:] and self._numbered
        if loops := fit and _loops(out, self.values, weights):
            flat = out.view(len(out), -1), self.values.view(len(self.ids), -1)
            _run(loops.add_weighted, flat[0], self.ids, self.client, weights, flat[1])
            return out
        factor = weights[self.client].view((-1,) + (1,) * (self.values.dim() - 1))
        size = max(1, self.values.numel())
        each = max(1, CACHED * len(self.ids) // size) if out.is_cpu else size
        parts = zip(self.values.split(each), factor.split(each), self.ids.split(each), strict=True)
        for values, share, ids in parts:
            add_rows(out, ids, values * share)
        return out

    @property
    def _numbered(self) -> bool:
        """Whether ids and clients are plain whole numbers, as compiled loops read them."""
        return all(t.is_cpu and t.dtype == torch.int64 for t in (self.ids, self.client))

    def merged(self, height: int) -> "Rows":
        """The sums of the rows of each number, added in their order; numbers grow, to `height`."""
        if loops := self._numbered and _loops(self.values):
            flat = self.values.view(len(self.ids), -1).numpy()
            ids, values = loops.merged(self.ids.numpy(), flat, height)
            found = torch.from_numpy(ids), torch.from_numpy(values).view(-1, *self.values.shape[1:])
        else:
            ids, place = self.ids.unique(return_inverse=True)
            none = self.values.new_zeros(len(ids), *self.values.shape[1:])
            found = ids, add_rows(none, place, self.values)
        return Rows(found[1], found[0], torch.zeros_like(found[0]))

    def senders(self, clients: int) -> int:
        """How many of `clients` have rows here; -1 where these do not lie client after client."""
        if loops := self._numbered and compiled_loops():
            return int(loops.senders(self.client.numpy(), clients))
        step = self.client.diff()
        if len(step) and bool((step < 0).any()):
            return -1
        ends = self.client[[0, -1]].tolist() if len(self.client) else [0, 0]
        return len(self.client.unique()) if ends[0] >= 0 and ends[1] < clients else -1

    def growing(self, height: int) -> bool:
        """Whether the row numbers of each client grow and are those of a table of this height."""
        if loops := self._numbered and compiled_loops():
            return bool(loops.growing(self.ids.numpy(), self.client.numpy(), height))
        inside = bool(((self.ids >= 0) & (self.ids < height)).all())
        return inside and bool(((self.client.diff() != 0) | (self.ids.diff() > 0)).all())

    def lengths(self) -> Tensor:
        """(R,) L2 norm of each row."""
        return torch.linalg.vector_norm(
            self.values.view(len(self.ids), self.values.shape[1:].numel()), dim=1
        )

    def square_norms(self, clients: int) -> Tensor:
        """(C,) sum of squares of each client's rows, float64.

        Without compiled loops at most 64 numbers are added up in float32, which is right to 2e-7
        and takes a third of the time; over a row of a million equal numbers it would be off by a
        thousandth.
        """
        if loops := self._numbered and _loops(self.values):
            found = torch.zeros(clients, dtype=torch.float64)
            _run(loops.add_squares, found, self.client, self.values.view(len(self.ids), -1))
            return found
        flat = self.values.float().view(len(self.ids), self.values.shape[1:].numel())
        cut = flat.shape[1] // 64 * 64
        squares = torch.linalg.vector_norm(flat[:, cut:], dim=1).double().square_()
        if cut:
            wide = torch.linalg.vector_norm(flat[:, :cut].unflatten(1, (-1, 64)), dim=2)
            squares += wide.double().square_().sum(1)
        if not bool((fine := squares.isfinite()).all()):  # squares above the range of float32
            squares = torch.where(fine, squares, flat.double().square().sum(1))
        return add_rows(squares.new_zeros(clients), self.client, squares)

    @staticmethod
    def joined(parts: "list[Rows]") -> "Rows":
        """One Rows from several groups of clients, in order."""
        if len(parts) == 1:
            return parts[0]
        return Rows(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Rows)))


# what the server follows; a table of which few rows moved may be `Rows` of these, to be added
Delta = Mapping[str, Tensor | Rows]


@dataclass(frozen=True)
class Update:
    """What a chunk of a cohort sends.

    deltas: `Rows` whose `client` counts from 0 in the chunk. weights, losses, cohort, steps (c,):
    each client's weight in the mean, mean local loss, number, and local steps. bytes_up (c,): the
    bytes that each client sent, where these are not 4 for each number and row number. members:
    where a sender is a platform, the clients behind each; `cohort` then holds the platforms'
    numbers.
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
        return Update(
            {name: delta.only(mine) for name, delta in self.deltas.items()},
            self.weights[mine],
            self.losses[mine],
            self.cohort[chosen.cpu()],
            self.steps[mine],
            None if self.bytes_up is None else self.bytes_up[mine],
            None
            if self.members is None
            else tuple(m for m, kept in zip(self.members, chosen.tolist(), strict=True) if kept),
        )


def in_memory(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors share that are the same numbers in the same memory."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device


@cache
def compiled_loops() -> Any:
    """The module of compiled loops; None where numba is not installed."""
    try:
        return importlib.import_module("fedlab.core.loops.cpu")
    except ImportError:
        return None


def _loops(*tensors: Tensor) -> Any:
    """The compiled loops, where these tensors are what they take: float32 side by side on a CPU."""
    fit = all(t.is_cpu and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    return compiled_loops() if fit and all(map(len, tensors)) else None


def _run(loop: Callable[..., bool], *tensors: Tensor) -> None:
    """Run a compiled loop; raises `IndexError` for a row or client that does not exist."""
    if not loop(*(tensor.detach().numpy() for tensor in tensors)):
        raise IndexError("index out of range: a row or a client does not exist")


def add_rows(out: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Add `values` (R, ...) to the rows `ids` (R,) of `out`, in place and in their order.

    On a GPU, index_add_ would add rows of the same number in whatever order threads come to them;
    index_put_ sorts them first, so that a run gives the same bits again.
    """
    fit = values.shape == (*ids.shape, *out.shape[1:]) and ids.dtype == torch.int64
    if loops := fit and _loops(out, values):
        flat = out.view(len(out), -1), values.view(len(ids), -1)
        _run(loops.add_rows, flat[0], ids, flat[1])
        return out
    if out.is_cpu:
        return out.index_add_(0, ids, values)
    return out.index_put_((ids,), values, accumulate=True)


def norms(deltas: Mapping[str, Rows], clients: int) -> Tensor:
    """The L2 norm (C,) of each client's delta over all its parameters, in float64, on the CPU."""
    return sum(
        (d.square_norms(clients).cpu() for d in deltas.values()),
        torch.zeros(clients, dtype=torch.float64),
    ).sqrt()


def moved(value: Tensor, delta: Tensor | Rows, rate: float, *, used_up: bool = False) -> Tensor:
    """A parameter after a step of `rate` times `delta`; where that is `Rows`, only these change.

    used_up: whether the result may lie in the memory of the delta.
    """
    if isinstance(delta, Tensor):
        if value.shape == delta.shape and (loops := _loops(value, delta)):
            out = delta if used_up else torch.empty_like(value)
            given = [each.detach().view(-1).numpy() for each in (value, delta, out)]
            loops.step_all(*given[:2], rate, given[2])
            return out
        return value + rate * delta
    return value.index_add(0, delta.ids, delta.values * rate)


def move_rows(value: Tensor, delta: Rows, rate: float) -> None:
    """Move rows of a parameter in place, each of them once."""
    fit = delta.values.shape[1:] == value.shape[1:] and delta.ids.dtype == torch.int64
    if loops := fit and _loops(value, delta.values):
        flat = [each.view(len(each), -1) for each in (value, delta.values)]
        if not loops.step_rows(flat[0].numpy(), delta.ids.numpy(), flat[1].numpy(), rate):
            raise IndexError("index out of range: a row does not exist")
        return
    value.index_copy_(0, delta.ids, value.index_select(0, delta.ids) + delta.values * rate)


def whole(delta: Tensor | Rows, like: Tensor) -> Tensor:
    """A delta as a tensor of the parameter's shape."""
    return delta if isinstance(delta, Tensor) else moved(torch.zeros_like(like), delta, 1.0)


@dataclass(frozen=True)
class SparseTable:
    """A frozen table of N rows of which T are stored: row r is first[r % P] until it changes.

    A change makes a new table. first (P, ...): the first rows; ids (T,): the rows that changed,
    growing; values (T, ...): what they are now.
    """

    count: int
    first: Tensor
    ids: Tensor
    values: Tensor

    @classmethod
    def untouched(cls, count: int, first: Tensor) -> "SparseTable":
        """A table in which nothing has changed yet."""
        return cls(count, first, torch.empty(0, dtype=torch.int64, device=first.device), first[:0])

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> torch.Size:
        """(N, ...), as of a Tensor that holds every row."""
        return torch.Size((self.count, *self.first.shape[1:]))

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        return self.first.device

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The rows at numbers of any shape."""
        return arranged(cast(Tensor, self), rows)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """(R, ...) the rows at `rows` (R,); dim is 0."""
        found = self.first.index_select(dim, rows % len(self.first))
        if len(self.ids):
            at = torch.searchsorted(self.ids, rows).clamp(max=len(self.ids) - 1)
            held = (self.ids[at] == rows).view(-1, *[1] * (found.dim() - 1))
            found = torch.where(held, self.values.index_select(0, at), found)
        return found

    def index_add(self, dim: int, rows: Tensor, change: Tensor) -> "SparseTable":
        """The table after adding `change` (R, ...) at `rows` (R,), each of them once; dim is 0."""
        ids, place = torch.cat([self.ids, rows]).unique(return_inverse=True)
        values = change.new_empty(len(ids), *change.shape[1:])
        values[place[: len(self.ids)]] = self.values
        values[place[len(self.ids) :]] = self.index_select(dim, rows) + change
        return replace(self, ids=ids, values=values)

    def to(self, device: str | torch.device) -> "SparseTable":
        """The same table on another device."""
        return replace(
            self,
            first=self.first.to(device),
            ids=self.ids.to(device),
            values=self.values.to(device),
        )


@dataclass(frozen=True)
class Lookup:
    """A column of examples kept as row numbers `rows` (...) of `table` (R, ...).

    It is read one step at a time: copying a wide column for a whole round costs fresh memory, while
    a step's share stays in the cache.
    """

    table: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, here: slice) -> "Lookup":
        return Lookup(self.table, self.rows[here])

    @property
    def nbytes(self) -> int:
        """Bytes of the row numbers; the table is not counted."""
        return self.rows.nbytes

    def as_tensor(self) -> Tensor:
        """The column itself, (..., the table's row)."""
        return arranged(self.table, self.rows.to(self.table.device))

    def to(self, device: str | torch.device) -> "Lookup":
        """The same column, to be read on another device.

        A table that is there already is not copied.
        """
        return Lookup(self.table.to(device), self.rows.to(device))


def arranged(column: Tensor, places: Tensor) -> Tensor:
    """The entries of a column at places of any shape; a `Lookup` stays one.

    It uses index_select, which is several times faster than `[]`.
    """
    if isinstance(column, Lookup):
        return cast(Tensor, replace(column, rows=arranged(column.rows, places)))
    return column.index_select(0, places.flatten()).view(*places.shape, *column.shape[1:])


def pieces(column: Tensor, sizes: list[int]) -> list[Tensor]:
    """A column cut along its first axis."""
    if isinstance(column, Lookup):
        return [cast(Tensor, Lookup(column.table, rows)) for rows in column.rows.split(sizes)]
    return list(column.split(sizes))


def as_tensor(column: Tensor) -> Tensor:
    """A column as a Tensor, whichever way it is kept."""
    return column.as_tensor() if isinstance(column, Lookup) else column


def joined(parts: list[Tensor]) -> Tensor:
    """Several stretches of one column, end to end."""
    if len(parts) > 1 and isinstance(parts[0], Lookup):
        return cast(
            Tensor, replace(parts[0], rows=torch.cat([cast(Lookup, p).rows for p in parts]))
        )
    return torch.cat(parts) if len(parts) > 1 else parts[0]


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one CPU thread for the small tensors of a round.

    With two threads on a busy machine a loop took 13 times longer.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
