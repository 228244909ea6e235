"""Interactions dealt out to clients: one per user, or K platforms that hold disjoint users.

A partition is one tensor, `owner` (U,): the client that holds each user. Since users are disjoint,
a user's vector lives on exactly one client and can stay private.

Letters: N clients, C in a cohort, n examples, U users, I items, K platforms.

Sources: Hsu, Qi, Brown 2019, "Measuring the effects of non-identical data distribution", section 3
(Dirichlet); He et al. 2017, "Neural collaborative filtering", section 4.1 (sampled negatives).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fedlab.core import DataError, Key, ParameterError, Tree, below, made_with, require
from fedlab.data.interactions import Interactions


class Source(Protocol):
    """What `federate` trains on: who holds how much, and the examples of a cohort.

    task: 'clicks' or 'ratings'. counts (N,): rows of each client. `draw` gives columns (n, ...)
    with the examples of a round, client after client: client (position in the cohort), epoch,
    target, and what the model reads. What a client draws is keyed by its number, so its examples
    are the same whoever else is in the cohort. Nothing but the cohort's own rows needs to be in
    memory. A class that says `draws_anywhere = True` beside its `draw` takes a cohort on a GPU and
    returns examples there; others are given one on the CPU.
    """

    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def counts(self) -> Tensor: ...  # noqa: D102
    def __len__(self) -> int: ...
    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree: ...  # noqa: D102


@dataclass(frozen=True)
class Layout:
    """A source's own rows, client after client, for compiled code that draws as `draw` does.

    starts, counts (N,): where the rows of each client begin, and how many it has. columns: (m, ...)
    by name. order (m,): the number of each of these rows in the columns; None where they lie in
    this order. items: I, where unseen items are drawn beside clicks, else 0; then the rows lie by
    user and item, too, and without a column 'user' client and user are one.
    """

    starts: np.ndarray
    counts: np.ndarray
    columns: Mapping[str, np.ndarray]
    order: np.ndarray | None = None
    items: int = 0

    @cached_property
    def busiest(self) -> tuple[int, int]:
        """(user, number of its rows), of a user who has most."""
        if "user" not in self.columns:
            return int(self.counts.argmax()), int(self.counts.max())
        each = np.bincount(self.columns["user"])
        return int(each.argmax()), int(each.max())


@dataclass(frozen=True)
class Federation:
    """Train ratings and the client that holds each user.

    train: the only ratings any client ever sees. owner (U,): client numbers 0..N-1, none of them
    empty. task: 'clicks' turns each rating into a click (target 1) beside drawn negatives (target
    0); 'ratings' keeps the values as targets. Raises `DataError` for an empty federation or client.
    """

    train: Interactions
    owner: Tensor
    task: str = "clicks"
    draws_anywhere: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the partition."""
        require(
            self.task in ("clicks", "ratings"), "task", self.task, "choose one of clicks, ratings"
        )
        if not len(self.train):
            raise DataError("an empty federation: train holds no ratings; hand it at least one")
        if len(self.owner) != self.train.user_count:
            raise DataError(
                f"owner has {len(self.owner)} entries; give one for each of "
                f"{self.train.user_count} users"
            )
        if len(empty := (self.counts == 0).nonzero()):
            raise DataError(
                f"client {int(empty[0])} of {len(self)} holds no train ratings; use fewer clients"
            )

    def __len__(self) -> int:
        """N, the number of clients."""
        return int(self.owner.max()) + 1

    @cached_property
    def counts(self) -> Tensor:
        """(N,) train ratings of each client."""
        return torch.bincount(self.owner[self.train.users], minlength=len(self))

    @cached_property
    def _by_client(self) -> tuple[Tensor, Tensor]:
        """Row numbers of the ratings by (client, user, item), and where each client starts."""
        order = (
            self.owner[self.train.users] * self.train.user_count * self.train.item_count
            + self.train.pairs()
        ).argsort()
        return order, self.counts.cumsum(0) - self.counts

    @cached_property
    def _moved(self) -> dict[torch.device, tuple[Tensor, ...]]:
        """What has been copied to other devices, to stay there."""
        return {}

    def _beside(self, device: torch.device) -> tuple[Tensor, ...]:
        """On a device: `_by_client`, counts, and the columns of the ratings."""
        if device not in self._moved:
            values = () if self.task == "clicks" else (self.train.values,)
            every = (*self._by_client, self.counts, self.train.users, self.train.items, *values)
            self._moved[device] = tuple(column.to(device) for column in every)
        return self._moved[device]

    @cached_property
    def layout(self) -> Layout:
        """The train ratings by (client, user, item)."""
        order, starts = self._by_client
        where = starts.numpy(), self.counts.numpy()
        columns = {
            "user": self.train.users[order].int().numpy(),
            "item": self.train.items[order].int().numpy(),
        }
        if self.task == "clicks":
            return Layout(*where, columns, items=self.train.item_count)
        return Layout(*where, columns | {"target": self.train.values[order].numpy()})

    @cached_property
    def _by_pair(self) -> tuple[Tensor, Tensor]:
        """Numbers of the (user, item) pairs, growing, and the row of each."""
        pairs, rows = self.train.pairs().sort()
        return pairs, rows

    def rows(self, users: Tensor, items: Tensor) -> Tensor:
        """The rows of train with these users and items, of any one shape; -1 for a missing pair."""
        pairs, rows = self._by_pair
        asked = users * self.train.item_count + items
        at = torch.searchsorted(pairs, asked).clamp(max=len(pairs) - 1)
        return torch.where(pairs[at] == asked, rows[at], -1)

    def unseen(self, users: Tensor, luck: Tensor) -> Tensor:
        """An item (k,) that each of these users (k,) has not seen; luck (k,): 32-bit words."""
        (pairs, _), items = self._by_pair, self.train.item_count
        starts = torch.searchsorted(pairs, torch.arange(self.train.user_count + 1) * items)
        full = (starts.diff()[users] >= items).nonzero()
        if len(full):
            raise seen_all(1, int(users[full[0]]), items)
        return unseen(pairs // items, pairs % items, items, starts[users], luck)

    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree:
        """Draw the examples of a round, shuffled within each client and epoch.

        Clicks come with fresh negatives in each epoch. cohort (C,): client numbers, on the device
        where the examples are wanted. key: of the draws. Returns columns (n,): client (position in
        the cohort, sorted), epoch, user, item, target.
        """
        order, starts, counts, *table = self._beside(cohort.device)
        client, rows = own_rows(cohort, starts, counts)
        rows = order.index_select(0, rows)
        users, items, *values = (column.index_select(0, rows) for column in table)
        if self.task == "ratings":
            columns = {"user": users, "item": items, "target": values[0]}
            return shuffled(columns, cohort, counts[cohort], epochs, key)
        return clicks(cohort, client, users, items, self.train.item_count, epochs, negatives, key)


def layout_of(data: Source) -> Layout | None:
    """The layout of a source, unless it draws otherwise than the class that has the layout."""
    return getattr(data, "layout", None) if made_with(data, "draw", "layout") else None


def own_rows(cohort: Tensor, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Find the rows of a cohort in a table that lies client after client.

    Returns two (n,): for each row the position of its client in the cohort, and its number. starts,
    counts (N,): where the rows of each client start, and how many they are.
    """
    mine = counts[cohort]
    client = torch.arange(len(cohort), device=mine.device).repeat_interleave(mine)
    before = (starts[cohort] - (mine.cumsum(0) - mine)).index_select(0, client)
    return client, before + torch.arange(len(client), device=mine.device)


def repeated(counts: Tensor, epochs: int) -> tuple[Tensor, Tensor]:
    """All rows of each client once for each epoch: (run (n,), row (n,)).

    counts (C,): rows of each client, which lie one client after another. A run is an epoch of a
    client: client times `epochs` plus epoch.
    """
    client = torch.arange(len(counts), device=counts.device).repeat_interleave(epochs)
    return own_rows(client, counts.cumsum(0) - counts, counts)


def shuffled(columns: Tree, cohort: Tensor, counts: Tensor, epochs: int, key: Key) -> Tree:
    """The rows of each client, once for each epoch, in random order within it.

    columns (n, ...): client after client, with counts (C,) rows each. Adds the columns client and
    epoch.
    """
    run, row = repeated(counts, epochs)
    luck = key.of("order").runs(cohort, counts * epochs)
    order = row.index_select(0, shuffle(run, luck))
    return told(run, epochs) | {name: c.index_select(0, order) for name, c in columns.items()}


def told(run: Tensor, epochs: int) -> Tree:
    """The columns client and epoch of rows whose run (n,) is client times `epochs` plus epoch."""
    if epochs == 1:
        return {"client": run, "epoch": torch.zeros_like(run)}
    return {"client": run // epochs, "epoch": run % epochs}


def shuffle(run: Tensor, luck: Tensor) -> Tensor:
    """A random order (n,) of the rows within each run; run (n,) grows, luck (n,) are 32-bit words.

    Rows of the same luck keep their order, so that it depends on nothing outside the run.
    """
    count, lots = len(run), (run << 32) + luck
    if not run.is_cpu:
        return lots.argsort(stable=True)
    low = count.bit_length()
    if low + 32 + int(run[-1] + 1 if count else 1).bit_length() > 63:  # no room for the row
        return torch.from_numpy(np.argsort(lots.numpy(), kind="stable"))
    found = np.sort(((lots << low) + torch.arange(count)).numpy())  # 5x faster here than argsort
    return torch.from_numpy(found) & (1 << low) - 1


def clicks(
    cohort: Tensor,
    client: Tensor,
    users: Tensor,
    items: Tensor,
    item_count: int,
    epochs: int,
    negatives: int,
    key: Key,
    train: Tensor | None = None,
) -> Tree:
    """Draw clicks (target 1) and for each of them `negatives` unseen items of its user (target 0).

    Negatives are fresh in each epoch; rows are shuffled within each client and epoch. cohort (C,):
    client numbers. client, users, items (n,): what the cohort has seen by (client, user, item).
    train (n,): which of these are trained on; all of them, unless a benchmark is to show what goes
    wrong otherwise (`fedlab.leaky`).
    """
    user_run = _user_runs(client, users)
    full = (torch.bincount(user_run)[user_run] >= item_count).nonzero()
    if negatives and len(full):
        raise seen_all(negatives, int(users[full[0]]), item_count)
    own = torch.arange(len(users), device=users.device) if train is None else train.nonzero()[:, 0]
    counts = torch.bincount(client.index_select(0, own), minlength=len(cohort))
    run, row = repeated(counts, epochs)
    row = own.index_select(0, row)
    drawn = unseen(
        user_run,
        items,
        item_count,
        row.repeat_interleave(negatives),
        key.of("negatives").runs(cohort, counts * (epochs * negatives)),
    )
    each = 1 + negatives  # a click and its negatives lie side by side
    columns = {
        "user": users.index_select(0, row)[:, None].expand(-1, each),
        "item": torch.cat(
            [items.index_select(0, row)[:, None], drawn.view(len(row), negatives)], 1
        ),
        "target": torch.eye(1, each, device=users.device).expand(len(row), each),
    }
    luck = key.of("order").runs(cohort, counts * (epochs * each))
    run = run.repeat_interleave(each)
    order = shuffle(run, luck)
    return told(run, epochs) | {
        name: column.reshape(-1).index_select(0, order) for name, column in columns.items()
    }


def seen_all(negatives: int, user: int, item_count: int) -> ParameterError:
    """The error for a user who leaves no item to draw."""
    return ParameterError(
        f"negatives={negatives}: user {user} has seen all {item_count} items; set negatives=0"
    )


def _user_runs(client: Tensor, users: Tensor) -> Tensor:
    """(n,) 0, 1, ... for each user of each client, whose rows lie together."""
    first = torch.ones_like(users)
    first[1:] = (users[1:] != users[:-1]) | (client[1:] != client[:-1])
    return first.cumsum(0) - 1


def unseen(run: Tensor, items: Tensor, item_count: int, rows: Tensor, luck: Tensor) -> Tensor:
    """(k,) an item that the user of each of `rows` (k,) has not seen, all equally likely.

    run (n,): 0, 1, ... for the user of each row; items (n,) grow within each; luck (k,): 32-bit
    words. The r-th unseen item is r + (seen items with at most r unseen ones before them), so one
    sorted look-up serves all draws, without rejection. Held-out items are drawn like any other.
    """
    seen, who = torch.bincount(run), run.index_select(0, rows)
    starts, free = seen.cumsum(0) - seen, item_count - seen
    before = (
        items - torch.arange(len(run), device=run.device) + starts[run] + run * (item_count + 1)
    )
    rank = below(luck, free.index_select(0, who))
    place = torch.searchsorted(before, who * (item_count + 1) + rank, right=True)
    return rank + place - starts.index_select(0, who)


def federation_of(data: Source) -> Federation | None:
    """The federation that a source is, or is made of; None where there is none.

    >>> from fedlab.data import Federation, ItemQueries, federation_of, load, one_per_user
    >>> data = Federation(load(), one_per_user(load()))
    >>> federation_of(ItemQueries(data, 16, 64)) is data
    True
    """
    inner: object = data
    while not isinstance(inner, Federation) and hasattr(inner, "data"):
        inner = inner.data
    return inner if isinstance(inner, Federation) else None


def fingerprint(data: Source) -> str:
    """A short name for who holds which rows; any other number that is trained on gives another.

    Of a source that is no dataclass, and of files that are read as they are asked for, only who
    holds how many rows is looked at. 100,000 ratings take some milliseconds.
    """
    about = f"{type(data).__name__}/{data.task}/{len(data)}"
    found = hashlib.blake2b(about.encode(), digest_size=8)
    _add_numbers(found, [data.counts, data])
    return found.hexdigest()


def _add_numbers(found: Any, value: Any) -> None:
    """Add all numbers in a value to a hash, each with its type and shape; texts are passed by."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    if isinstance(value, np.ndarray) and not isinstance(value, np.memmap):
        found.update(f"{value.dtype}{value.shape}".encode())
        found.update(np.ascontiguousarray(value))
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            found.update(str(name).encode())
            _add_numbers(found, value[name])
    elif isinstance(value, list | tuple) and value and not isinstance(value[0], str):
        for each in value:
            _add_numbers(found, each)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            found.update(each.name.encode())
            _add_numbers(found, getattr(value, each.name))
    elif isinstance(value, bool | int | float):
        found.update(repr(value).encode())
