"""The interaction model on a client: all of its local steps in the cache, compiled.

It is matrix factorisation with a weight for each dimension, `y = w . (m p_u q_i) + b + beta_i`,
where m is a dropout mask, 1 / (1 - dropout) where it keeps. Each parameter is a table of which a
client holds rows, w and b together a table of one row.

Letters: C clients of a piece, n examples of all of them, D dimensions, B examples of a batch.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedlab.core import Rows, Update
from fedlab.core.loops.cpu import ANY_ORDER, compiled
from fedlab.engine.fused.cohort import CHUNK_MB, Job, chunks, deltas, held, table
from fedlab.engine.fused.draws import Examples, Held, words
from fedlab.engine.fused.factors import Numbers
from fedlab.engine.fused.pool import in_order
from fedlab.engine.fused.rules import (
    Table,
    adapt_rows,
    batch_of,
    corrected,
    part,
    settle,
    slopes,
    widest,
)

# the parameters of each of `Tables`, and what picks their rows
NAMES = {("user",): "user", ("item",): "item", ("bias",): "item", ("dense", "offset"): "one"}
LOW, TOP = np.uint32(0xFFFF), np.uint32(0x8000)


class Tables(NamedTuple):
    """The parameters: users' and items' rows, biases, and (w, b) end to end."""

    user: Table
    item: Table
    bias: Table
    dense: Table


class First(NamedTuple):
    """Where each client's rows begin, (C + 1,): of users, of items, of the single ones."""

    user: np.ndarray
    item: np.ndarray
    one: np.ndarray


class Dropout(NamedTuple):
    """Which entries are dropped: those whose 16 bits, of Philox with key (2,), are below `least`.

    least: 0 drops none. scale: of those that stay.
    """

    key: np.ndarray
    least: int
    scale: float


class Room(NamedTuple):
    """Scratch for a batch: users' and items' rows and masks (B, D), y (B,), (w, b) (D + 1,).

    words: of a client's dropout, 32 bits each.
    """

    user: np.ndarray
    item: np.ndarray
    mask: np.ndarray
    y: np.ndarray
    dense: np.ndarray
    words: np.ndarray


@compiled()
def now(rows: Table, r: int, out: np.ndarray) -> None:
    """Write where a row is, out (D,)."""
    i = rows.ids[r]
    for j in range(len(out)):
        out[j] = rows.start[i, j] + rows.moved[r, j]


@compiled()
def masked(room: Room, first: int, size: int, drop: Dropout) -> None:
    """Write the masks of a client's examples from number `first` on, as `Key.keep` draws them."""
    mask, width = room.mask, room.mask.shape[1]
    each = (width + 7) // 8 * 8  # halves of words for an example
    scale, none = np.float32(drop.scale), np.float32(0)
    for k in range(size):
        for j in range(width):
            at = (first + k) * each + j
            half = (room.words[at >> 1] >> np.uint32(16 * (at & 1))) & LOW
            mask[k, j] = scale if (half ^ TOP) >= drop.least else none


@compiled(fastmath=ANY_ORDER)
def predict(mine: Tables, who: np.ndarray, what: np.ndarray, room: Room) -> None:
    """Look up the rows of a batch and write its predictions."""
    dense, width = room.dense, room.item.shape[1]
    now(mine.dense, 0, dense)
    for k in range(len(who)):
        now(mine.user, who[k], room.user[k])
        now(mine.item, what[k], room.item[k])
        i, total = mine.bias.ids[what[k]], np.float32(0)
        for j in range(width):
            total += dense[j] * room.mask[k, j] * room.user[k, j] * room.item[k, j]
        room.y[k] = total + dense[width] + mine.bias.start[i, 0] + mine.bias.moved[what[k], 0]


@compiled(fastmath=ANY_ORDER)
def backward(into: Tables, who: np.ndarray, what: np.ndarray, room: Room, adaptive: bool) -> None:
    """Add to the rows of a batch its gradient, whose slopes are in room.y."""
    user = into.user.grad if adaptive else into.user.moved
    item = into.item.grad if adaptive else into.item.moved
    bias = into.bias.grad if adaptive else into.bias.moved
    dense = into.dense.grad if adaptive else into.dense.moved
    width = room.item.shape[1]
    for k in range(len(who)):
        u, r, slope = who[k], what[k], room.y[k]
        bias[r, 0] += slope
        dense[0, width] += slope
        for j in range(width):
            p, q, here = room.user[k, j], room.item[k, j], slope * room.mask[k, j]
            dense[0, j] += here * p * q
            user[u, j] += here * room.dense[j] * q
            item[r, j] += here * room.dense[j] * p


@compiled()
def settled(mine: Tables, who: np.ndarray, what: np.ndarray, decay: float, step: int) -> None:
    """Bring the rows of a batch to where they are at the beginning of a step of SGD."""
    rows = (who, what, what, np.zeros(1, np.int32))
    for kind in range(4):
        settle(mine[kind], rows[kind], decay, step)


@compiled()
def fit(
    mine: Tables,
    examples: Examples,
    low: int,
    high: int,
    numbers: Numbers,
    room: Room,
    dropout: Dropout,
) -> float:
    """Train a client on examples low..high - 1; returns its mean loss over the steps."""
    count, losses = (high - low) // numbers.epochs, 0.0
    batch = min(numbers.batch, count) if numbers.batch else count
    steps = numbers.epochs * ((count + batch - 1) // batch)
    for step in range(steps):
        here, end = batch_of(step, count, batch)
        first, size = low + here, end - here
        who, what = examples.user[first : first + size], examples.item[first : first + size]
        if dropout.least:
            masked(room, first - low, size, dropout)
        if numbers.lazy:
            settled(mine, who, what, numbers.decay, step)
        predict(mine, who, what, room)
        y = room.y[:size]
        losses += slopes(y, examples.target[first : first + size], numbers.clicks) / size
        rate = np.float32((1.0 if numbers.adaptive else -numbers.rate) / size)
        for k in range(size):
            y[k] *= rate
        if numbers.lazy:
            settled(mine, who, what, numbers.decay, step + 1)
        backward(mine, who, what, room, numbers.adaptive)
        if numbers.adaptive:
            rates = corrected(step, numbers.rate)
            for rows in mine:
                adapt_rows(rows, rates, numbers.decay)
    if numbers.lazy:
        for rows in mine:
            settle(rows, np.arange(len(rows.ids), dtype=np.int32), numbers.decay, steps)
    return losses / steps


@compiled()
def fit_clients(
    cohort: np.ndarray,
    examples: Examples,
    tables: Tables,
    first: First,
    numbers: Numbers,
    dropout: Dropout,
    losses: np.ndarray,
) -> None:
    """Train clients, cohort (C,) their numbers: their rows move, mean losses to losses (C,).

    examples: with the numbers of rows in place of the rows.
    """
    busiest, width = np.diff(examples.offsets).max(), tables.item.moved.shape[1]
    tall = widest(examples.offsets, numbers.epochs, numbers.batch)
    each = (width + 7) // 8 * 4
    room = Room(
        np.empty((tall, width), np.float32),
        np.empty((tall, width), np.float32),
        np.full((tall, width), np.float32(dropout.scale)),
        np.empty(tall, np.float32),
        np.empty(width + 1, np.float32),
        np.empty(each * busiest if dropout.least else 0, np.uint32),
    )
    for c in range(len(cohort)):
        low, high = examples.offsets[c], examples.offsets[c + 1]
        if dropout.least:
            words(cohort[c], each * (high - low), dropout.key, room.words)
        a, b = first.item[c], first.item[c + 1]
        mine = Tables(
            part(tables.user, first.user[c], first.user[c + 1]),
            part(tables.item, a, b),
            part(tables.bias, a, b),
            part(tables.dense, first.one[c], first.one[c + 1]),
        )
        losses[c] = fit(mine, examples, low, high, numbers, room, dropout)


def updates(job: Job, cohort: Tensor) -> Iterator[Update]:
    """Yield the updates of a cohort (C,), in its order; see `fedlab.engine.updates`."""
    weights = job.data.counts[cohort].float()

    def piece(here: slice) -> Update:
        mine = cohort[here]
        examples = job.examples(mine)
        learned, losses = trained(job, examples, mine)
        return Update(learned, weights[here], losses, mine, job.steps(examples.offsets))

    yield from in_order(piece, list(chunks(job, cohort, CHUNK_MB)), job.workers)


def trained(job: Job, examples: Examples, cohort: Tensor) -> tuple[dict[str, Rows], Tensor]:
    """Train some clients (C,): their deltas by name, and mean losses (C,)."""
    clients, losses = len(cohort), torch.empty(len(cohort))
    columns = {"user": examples.user, "item": examples.item}
    kinds = {k: held(own, job.height(k), examples.offsets) for k, own in columns.items()}
    everybody = np.arange(clients + 1)
    kinds["one"] = Held(everybody, np.zeros(clients, np.int64), everybody[:-1])
    tables = Tables(*(table(job, n, kinds[kind], cohort) for n, kind in NAMES.items()))
    first = First(*(kinds[kind].first for kind in First._fields))
    how = (first, job.numbers, dropped(job), losses.numpy())
    fit_clients(cohort.numpy(), examples, tables, *how)
    learned: dict[str, Rows] = {}
    for (names, kind), moved in zip(NAMES.items(), tables, strict=True):
        learned |= deltas(job, names, moved.moved, kinds[kind])
    return learned, losses


def dropped(job: Job) -> Dropout:
    """How the model's dropout is drawn."""
    share: float = job.model.predict.dropout  # type: ignore[attr-defined]
    key = np.array(job.noise.halves, np.uint64)
    return Dropout(key, round(share * 2**16), 1 / (1 - share))
