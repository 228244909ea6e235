"""Tables that answer as Tensors where the engine asks, and keep less.

Changed rows alone, or row numbers alone.

A million users with a private vector each would fill the memory, and copying them would fill the
round, while a cohort moves a thousand: `SparseTable`. Wide columns of the examples are copied once,
into batches: `Lookup`.

Letters: N rows, T of them changed, P different first rows, R rows asked for, n examples.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseTable:
    """N rows of which T are stored: row r is first[r % P] until it changes. Frozen.

    A change makes a new table.

    first (P, ...); ids (T,) growing; values (T, ...).
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
        """(N, ...), as of a Tensor that held every row."""
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
        values[place[len(self.ids):]] = self.index_select(dim, rows) + change
        return replace(self, ids=ids, values=values)

    def to(self, device: str | torch.device) -> "SparseTable":
        """The same table on another device."""
        return replace(self, first=self.first.to(device), ids=self.ids.to(device),
                       values=self.values.to(device))


@dataclass(frozen=True)
class Lookup:
    """A column of examples kept as row numbers `rows` (...) of `table` (R, ...).

    Read a step at a time.

    Copying a wide column for a whole round costs fresh memory; a step's share stays in the cache.
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
    """The column at places of any shape; a `Lookup` stays one.

    index_select is several times faster than `[]`.
    """
    if isinstance(column, Lookup):
        return cast(Tensor, replace(column, rows=arranged(column.rows, places)))
    return column.index_select(0, places.flatten()).view(*places.shape, *column.shape[1:])


def parts(column: Tensor, sizes: list[int]) -> list[Tensor]:
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
        return cast(Tensor, replace(parts[0],
                                    rows=torch.cat([cast(Lookup, p).rows for p in parts])))
    return torch.cat(parts) if len(parts) > 1 else parts[0]
