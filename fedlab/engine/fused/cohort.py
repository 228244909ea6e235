"""The updates of a cohort by compiled clients: draw, number rows, train, chunk by chunk.

A chunk is as many clients as stay near in the cache; what comes of it is an ordinary `Update`.
Chunks are shared among threads; as no client sees another, no bit depends on how.

Letters: N clients, C in a chunk, n examples, R rows, D dimensions.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlab.core import Key, ParameterError, Rows, Summed, Tree, Update
from fedlab.data import Layout, Source, layout_of, seen_all
from fedlab.engine.fused import draws, factors
from fedlab.engine.fused.draws import Examples, Held
from fedlab.engine.fused.pool import cores, in_order
from fedlab.engine.fused.rules import Table
from fedlab.engine.local_settings import LocalSettings
from fedlab.engine.step import check_rows, kept
from fedlab.models import Model

# measured with all users of lesson 2: 2 costs a tenth more Python, 16 a fifth more time for memory
CHUNK_MB = 4
# a block of clients that is added up by itself has about so many examples for each row of its sums:
# lesson 2's 4 blocks cost one thread 2 %, and two threads take .61 of its time; 8 cost 8 %, and .69
EACH_ROW = 12
FEWEST = 64  # clients of a block
NAMES = ("item", "bias", "user")
EACH = ("weights", "lengths", "losses", "rows")  # of `factors.Told`, a number for each client


@dataclass(frozen=True)
class Job:
    """What the clients of a cohort train, and how: the same for all pieces of a round."""

    model: Model
    data: Source
    params: Tree
    local: LocalSettings
    key: Key
    noise: Key
    correction: Any = None

    @cached_property
    def layout(self) -> Layout:
        """Where the data's own rows lie."""
        found = layout_of(self.data)
        assert found is not None
        return found

    @property
    def workers(self) -> int:
        """How many threads work."""
        return self.local.workers or cores()

    def examples(self, cohort: Tensor) -> Examples:
        """The examples of some clients (C,), all of them of rows that the model has."""
        found = drawn(self.layout, cohort, self.local, self.key)
        for name in ("user", "item"):
            column, size = getattr(found, name), self.height(name)
            check_rows(name, torch.from_numpy(column), size)
        return found

    def height(self, kind: str) -> int:
        """How many rows of users or of items the model has."""
        tables = self.params if kind in self.params else self.model.constants
        return len(tables[kind if kind in self.params else f"{kind}_features"])

    @cached_property
    def numbers(self) -> factors.Numbers:
        """The settings of a step, as compiled code reads them."""
        local, sgd = self.local, self.local.optimizer == "sgd"
        k, pulled = kept(local), "user" not in self.model.private
        powers, sums = self.series(k)
        return factors.Numbers(
            epochs=local.local_epochs,
            batch=local.batch_size,
            clicks=self.model.task == "clicks",
            adaptive=not sgd,
            lazy=self.lazy,
            rate=local.local_lr,
            decay=local.local_lr * local.weight_decay,
            pull=local.proximal,
            keep_user=k if pulled else self.kept_alone,
            pull_user=local.proximal * (local.local_lr if sgd else 1) * pulled,
            powers=powers,
            sums=sums,
        )

    @property
    def lazy(self) -> bool:
        """Whether rows that no example touches move, too, in a step of SGD."""
        moves = kept(self.local) != 1 or self.correction is not None
        return self.local.optimizer == "sgd" and moves

    @property
    def kept_alone(self) -> float:
        """The share of a private row that a step of SGD keeps, which no FedProx pulls."""
        return 1 - self.local.local_lr * self.local.weight_decay

    def series(self, k: float) -> np.ndarray:
        """k^t and 1 + ... + k^(t-1) for t = 0 to T, the steps of the busiest client: (2, T + 1).

        k: what a step of SGD keeps. Just t = 0 where no row moves but by examples.
        """
        local, count = self.local, int(self.data.counts.max()) * drawn_with(self.layout, self.local)
        steps = local.local_epochs * -(-count // (local.batch_size or count))
        with np.errstate(over="ignore", invalid="ignore"):  # whose rows these make is rejected
            powers = k ** np.arange(steps + 1 if self.lazy else 1)
            sums = np.concatenate([[0.0], powers.cumsum()[:-1]])
            return np.stack([powers, sums]).astype(np.float32)

    def steps(self, offsets: np.ndarray) -> Tensor:
        """(C,) local steps of each client; offsets (C + 1,): where its examples begin."""
        count = torch.from_numpy(np.diff(offsets)) // self.local.local_epochs
        batch = count.clamp(max=self.local.batch_size) if self.local.batch_size else count
        return ((count + batch - 1) // batch * self.local.local_epochs).float()

    @cached_property
    def noted(self) -> bool:
        """Whether examples alone move items' rows, so that the first step is only noted."""
        return not self.lazy and self.local.optimizer == "sgd"


def updates(job: Job, cohort: Tensor) -> Iterator[Update]:
    """Yield the updates of a cohort (C,), in its order; see `fedlab.engine.updates`."""
    weights = job.data.counts[cohort].float()

    def piece(here: slice) -> Update:
        mine = cohort[here]
        examples = job.examples(mine)
        done = trained(job, examples, mine)
        factors.whole(done.items, done.users, done.out, done.first)
        return Update(done.rows(job.model), weights[here], done.losses, mine, done.steps)

    yield from in_order(piece, list(chunks(job, cohort, CHUNK_MB)), job.workers)


def summed(job: Job, cohort: Tensor, weights: Tensor, longest: float) -> Summed:
    """Train a cohort (C,) and add up what it sends; see `Local.train_summed`.

    Each block of clients is added up by itself, client after client; then blocks in their order.
    """
    private, clients = "user" in job.model.private, len(cohort)
    told = factors.Told(
        weights=weights.numpy(),
        lengths=np.zeros(clients),
        losses=np.zeros(clients, np.float32),
        rows=np.zeros(clients, np.int64),
        longest=longest,
        user=not private,
    )
    total, users, steps = None, list[Rows](), list[Tensor]()
    for sums, done in _blocks(job, cohort, told):
        total = sums
        users += [learned for learned, _ in done]
        steps += [taken for _, taken in done]
    assert total is not None
    every, added = Rows.joined(users), _rows_of(total)
    losses, lengths = (torch.from_numpy(column) for column in (told.losses, told.lengths))
    rows = {"item": torch.from_numpy(told.rows)}
    if not private:
        chosen = weights * ((lengths <= longest) & losses.isfinite())
        some, here = every.only(chosen > 0), chosen[chosen > 0]  # 0 times infinity is no number
        added["user"] = some.add_to(torch.zeros_like(job.params["user"]), here)
        rows["user"] = torch.bincount(every.client, minlength=clients)
    sent = Update({}, job.data.counts[cohort].float(), losses, cohort, torch.cat(steps))
    return Summed(sent, lengths, rows, added, {"user": every} if private else {})


Learned = list[tuple[Rows, Tensor]]  # users' rows and local steps of some clients, piece by piece


def _blocks(job: Job, cohort: Tensor, told: factors.Told) -> Iterator[tuple[factors.Sums, Learned]]:
    """Train a cohort (C,) block by block, in their order.

    Yields the sums so far, and what a block learned. Sums of blocks go from one to the next: fresh
    memory would cost much of the time.
    """
    parts, spare = list(blocks(job, cohort)), deque[factors.Sums]()
    counts = [int(sizes(job, cohort[here]).sum()) for here in parts]

    def block(here: slice) -> tuple[factors.Sums, Learned, factors.Told]:
        sums, done = None, Learned()
        with suppress(IndexError):  # none is free
            sums = spare.pop()
        sums = sums or _sums(job, max(counts))
        for inner in chunks(job, cohort[here], 8 * CHUNK_MB):
            first, last = here.start + inner.start, here.start + inner.stop
            mine = cohort[first:last]
            piece = trained(job, job.examples(mine), mine, (sums, _part(told, first, last)))
            rows, who = (torch.from_numpy(part) for part in piece.users[1:])
            done.append((Rows(piece.user, rows, who + first), piece.steps))
        return sums, done, _part(told, here.start, here.stop)

    if len(parts) == 1:
        yield block(parts[0])[:2]
        return
    total = _sums(job, sum(counts))
    for here, (sums, done, each) in zip(parts, in_order(block, parts, job.workers), strict=True):
        for name in EACH:  # of another rank's block
            getattr(told, name)[here] = getattr(each, name)
        factors.emptied(sums, total)
        spare.append(sums)
        yield total, done


def _part(told: factors.Told, first: int, last: int) -> factors.Told:
    """What is told of the clients from place first to last."""
    return told._replace(**{name: getattr(told, name)[first:last] for name in EACH})


def blocks(job: Job, cohort: Tensor) -> Iterator[slice]:
    """Cut a cohort (C,) into blocks of about as many examples, whoever computes them.

    A block costs a walk through its sums, so it has several examples for each of their rows.
    """
    ends = sizes(job, cohort).cumsum(0)
    every = int(ends[-1])
    tall = max(len(job.params[name]) for name in job.model.rows if name != "user")
    each = max(every, 1) / max(1, min(every, tall)) / EACH_ROW
    most = max(1, len(cohort) // FEWEST)
    count = min(1 << max(0, round(math.log2(each))), most)
    cuts = torch.searchsorted(ends, torch.arange(1, count) * every // count).unique().tolist()
    for first, last in pairwise((0, *cuts, len(cohort))):
        if first < last:
            yield slice(first, last)


def _sums(job: Job, most: int) -> factors.Sums:
    """Empty sums: of all items, or of no more than `most` where these are fewer."""
    items, dims = job.params["item"].shape
    few = most < items
    height = most if few else items
    return factors.Sums(
        item=np.zeros((height, dims), np.float32),
        bias=np.zeros(height, np.float32),
        ids=np.empty(height if few else 0, np.int64),
        slot=np.full(items if few else 0, -1, np.int32),
        used=np.zeros(1, np.int64),
    )


def warm_sums(job: Job) -> None:
    """Compile how blocks are added up."""
    factors.emptied(_sums(job, 1), _sums(job, 1))


def _rows_of(sums: factors.Sums) -> dict[str, Tensor | Rows]:
    """The sums by name: of all items, or of those that came."""
    tables = {name: torch.from_numpy(getattr(sums, name)) for name in ("item", "bias")}
    if not len(sums.slot):
        return dict(tables)
    used = int(sums.used[0])
    ids, none = torch.from_numpy(sums.ids[:used]), torch.zeros(used, dtype=torch.int64)
    return {name: Rows(table[:used], ids, none) for name, table in tables.items()}


def sizes(job: Job, cohort: Tensor) -> Tensor:
    """(C,) how many examples each client has in a round."""
    each = drawn_with(job.layout, job.local)
    return job.data.counts[cohort] * job.local.local_epochs * each


def drawn_with(layout: Layout, local: LocalSettings) -> int:
    """How many examples come of each row that a client holds: clicks come with negatives."""
    return 1 + local.negatives * (layout.items > 0)


def chunks(job: Job, cohort: Tensor, usual_mb: float) -> Iterator[slice]:
    """Cut a cohort (C,) into pieces whose examples and rows fit the budget of memory."""
    local, counts = job.local, sizes(job, cohort)
    rows = counts.clamp(max=len(job.params["item"]))
    each = job.params["item"].shape[1] + 1
    copies = 1 + bool(local.proximal) + 3 * (local.optimizer == "adamw")
    steps = counts / local.batch_size if local.batch_size else 0
    need = counts * 40 + rows * (4 * each * copies + 24) + steps * 4 * each
    yield from cut(job, cohort, need, usual_mb)


def cut(job: Job, cohort: Tensor, need: Tensor, usual_mb: float) -> Iterator[slice]:
    """Cut a cohort (C,) whose clients need so many bytes (C,)."""
    local = job.local
    budget = (local.memory_mb or usual_mb) * 1e6
    for k in (need > budget).nonzero()[:, 0].tolist() if local.memory_mb else ():
        raise ParameterError(
            f"memory_mb={local.memory_mb!r}: client {int(cohort[k])} alone needs about "
            f"{float(need[k]) / 1e6:.1f} MB; choose {int(need[k] / 1e6) + 1} or more"
        )
    first, used = 0, 0.0
    for k, size in enumerate(need.tolist()):
        if used and used + size > budget:
            yield slice(first, k)
            first, used = k, 0.0
        used += size
    yield slice(first, len(cohort))


def drawn(layout: Layout, cohort: Tensor, local: LocalSettings, key: Key) -> Examples:
    """The examples of some clients (C,), as their data draw them."""
    if not layout.items:
        offsets, which = shuffled(layout, cohort, local, key)
        user, item = (layout.columns[name].take(which) for name in ("user", "item"))
        target = layout.columns["target"].take(which)
        return Examples(offsets, _narrow(user), _narrow(item), target)
    who, each = cohort.numpy(), drawn_with(layout, local)
    counts = layout.counts[who] * local.local_epochs * each
    offsets = np.concatenate([[0], counts.cumsum()])
    order = np.array(key.of("order").halves, np.uint64)
    busy, most = layout.busiest
    if local.negatives and most >= layout.items:
        raise seen_all(local.negatives, busy, layout.items)
    none = np.empty(0, np.int32)
    own = layout.columns.get("user", none), layout.columns["item"]
    found = Examples(
        offsets, *(np.empty(offsets[-1], kind) for kind in (np.int32, np.int32, np.float32))
    )
    luck = np.array(key.of("negatives").halves, np.uint64)
    rows = draws.Rows(layout.starts, layout.counts, *own)
    draws.clicks(who, rows, layout.items, local.local_epochs, local.negatives, order, luck, found)
    return found


def shuffled(
    layout: Layout, cohort: Tensor, local: LocalSettings, key: Key
) -> tuple[np.ndarray, np.ndarray]:
    """Where the examples of each client (C,) begin, (C + 1,), and the row (n,) of each of them."""
    who, epochs = cohort.numpy(), local.local_epochs
    offsets = np.concatenate([[0], (layout.counts[who] * epochs).cumsum()])
    order, place = np.array(key.of("order").halves, np.uint64), np.empty(offsets[-1], np.int64)
    draws.orders(who, layout.starts, layout.counts, epochs, order, offsets, place)
    return offsets, place if layout.order is None else layout.order.take(place)


def _narrow(column: np.ndarray) -> np.ndarray:
    """Row numbers in 32 bits; what does not fit stays out of every table."""
    return np.clip(column, -1, 2**31 - 1).astype(np.int32)


def held(column: np.ndarray, size: int, offsets: np.ndarray) -> Held:
    """The rows of a table of `size` that clients use; their numbers take their place in column."""
    found, ids = np.empty(len(offsets) - 1, np.int64), np.empty(len(column), np.int32)
    draws.numbered(offsets, column, size, ids, found)
    first = np.concatenate([[0], found.cumsum()])
    out = Held(first, np.empty(first[-1], np.int64), np.empty(first[-1], np.int64))
    draws.gathered(offsets, ids, out)
    return out


@dataclass(frozen=True)
class Trained:
    """What some clients (C,) learned: deltas of the rows that they hold, and mean losses (C,).

    first (C + 1,): where the local steps of each begin.
    """

    items: Held
    users: Held
    out: factors.Client
    user: Tensor
    losses: Tensor
    first: np.ndarray

    @property
    def steps(self) -> Tensor:
        """(C,) local steps of each client."""
        return torch.from_numpy(np.diff(self.first)).float()

    def rows(self, model: Model) -> dict[str, Rows]:
        """The deltas by name, once all rows are written."""
        kinds = {"item": self.items, "user": self.users}
        ids = {k: [torch.from_numpy(part) for part in h[1:]] for k, h in kinds.items()}
        return {
            name: Rows(torch.from_numpy(getattr(self.out, name)), *ids[kind])
            for name, kind in model.rows.items()
        }


def trained(
    job: Job,
    examples: Examples,
    cohort: Tensor,
    into: tuple[factors.Sums, factors.Told] | None = None,
) -> Trained:
    """Train some clients (C,); into: where they are added up at once, in place of items' deltas."""
    params, offsets, dims = job.params, examples.offsets, job.params["item"].shape[1]
    users = held(examples.user, len(params["user"]), offsets)
    begin = params["user"].index_select(0, torch.from_numpy(users.rows))
    user, losses = torch.empty_like(begin), torch.empty(len(cohort))
    server = factors.Server(params["item"].numpy(), params["bias"].numpy(), begin.numpy())
    steps = job.steps(offsets).long().numpy()
    first = np.concatenate([[0], steps.cumsum()])
    if into is None:
        items, past = held(examples.item, len(params["item"]), offsets), int(first[-1])
        rows = items.rows
    else:
        items, past = Held(np.zeros(1, np.int64), *(np.empty((2, 0), np.int64))), int(steps.max())
        rows = np.empty(min(int(np.diff(offsets).max()), len(params["item"])), np.int64)
    height = len(rows)
    out = factors.Client(
        rows,
        np.empty((height, dims), np.float32),
        np.empty(height, np.float32),
        np.empty(height, np.int32),
        np.empty((past if job.noted else 0, dims), np.float32),
        user.numpy(),
        np.empty(0 if job.noted else height, np.int64),
        *(_shift(name, job, items if name != "user" else users, cohort) for name in NAMES),
    )
    if into is None:
        factors.clients(examples, items, users, server, out, first, job.numbers, losses.numpy())
    else:
        factors.summed(examples, users, server, out, job.numbers, *into)
    return Trained(items, users, out, user, losses, first)


def _shift(name: str, job: Job, rows: Held, cohort: Tensor) -> np.ndarray:
    """What SCAFFOLD adds to the rows of a parameter in each step; empty for nothing."""
    table = job.params[name]
    if job.correction is None or name in job.model.private:
        return np.empty((0, *table.shape[1:]), np.float32)
    ids, client = torch.from_numpy(rows.rows), torch.from_numpy(rows.client)
    shift: Tensor = job.correction.shift(name, ids, client, cohort)
    return (shift * -job.local.local_lr).numpy()


def table(job: Job, names: Sequence[str], rows: Held, cohort: Tensor) -> Table:
    """The rows that some clients (C,) hold of parameters, end to end; none has moved yet.

    Without names it is a table without rows.
    """
    shared, parts = not job.model.private.intersection(names), [job.params[n] for n in names]
    flat = [part.view(len(part), part.shape[1:].numel()).numpy() for part in parts]
    start = (
        np.concatenate(flat, 1) if len(flat) > 1 else (flat or [np.empty((0, 1), np.float32)])[0]
    )
    size = (len(rows.rows), start.shape[1])
    shifts = [shifted(name, job, rows, cohort) for name in names]
    grown = size if job.numbers.adaptive else (0, size[1])
    return Table(
        rows.rows,
        start,
        np.zeros(size, np.float32),
        np.concatenate(shifts, 1) if shifts else np.empty((0, 1), np.float32),
        np.zeros(len(rows.rows), np.int64),
        job.series(kept(job.local) if shared else job.kept_alone),
        np.zeros(grown, np.float32),
        np.zeros(grown, np.float32),
        np.zeros(grown, np.float32),
        float(job.local.proximal * shared),
    )


def deltas(job: Job, names: Sequence[str], moved: np.ndarray, rows: Held) -> dict[str, Rows]:
    """How far rows have moved, (R, ...) end to end, by name."""
    ids, client = (torch.from_numpy(part) for part in rows[1:])
    shapes = [job.params[name].shape[1:] for name in names]
    parts = torch.from_numpy(moved).split([shape.numel() for shape in shapes], 1)
    return {
        name: Rows(part.reshape(len(ids), *shape).contiguous(), ids, client)
        for name, part, shape in zip(names, parts, shapes, strict=True)
    }


def shifted(name: str, job: Job, rows: Held, cohort: Tensor) -> np.ndarray:
    """What SCAFFOLD adds to rows in each step, (R, ...) flat from axis 1 on; empty for nothing."""
    shift = _shift(name, job, rows, cohort)
    return shift.reshape(len(shift), job.params[name].shape[1:].numel())
