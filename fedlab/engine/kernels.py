"""Clients on a GPU: all local steps of a client in one program of one kernel, written for Triton.

A program is a client. It goes through its batches one after another, so its rows stay in the
nearest cache and nothing waits for the host; the clients run side by side. Nothing is added up by
atomic operations: examples of a batch that share a row are found by comparing all pairs of them,
each works out the row's whole change, and all of them write the same bits.

Letters: C clients, n examples of all of them, R rows of a table of height H that clients hold, D
numbers in each, F inputs, H hidden units; b_2, d_2, f_2, h_2 are the sizes of a batch and of these,
rounded up to a power of two.

Sources: McMahan et al. 2017, algorithm 1, ClientUpdate; Tillet, Kung, Cox 2019, "Triton: an
intermediate language and compiler for tiled neural network computations".
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Table(NamedTuple):
    """Rows that clients hold, client after client, as a kernel reads them.

    value (R, D): written, in the end how far the rows have moved. server (H, D): the table that
    they are the rows ids (R,) of. fixed (R, D): what each step adds to all of a client's rows.
    starts (C + 1,): where those of each client begin. place (n,): which of them an example uses.
    keep: the share of a row that a step keeps. width: D.
    """

    value: Any
    server: Any
    fixed: Any
    ids: Any
    starts: Any
    place: Any
    keep: Any
    width: Any


class Given(NamedTuple):
    """What clients train on, one after another, and how.

    starts (C + 1,): where each client's examples begin, epoch after epoch. target (n,). x (m, F):
    inputs, of which an example has the row (n,); not read by tables. batch: examples.
    """

    starts: Any
    target: Any
    x: Any
    row: Any
    batch: Any
    epochs: Any
    rate: Any


class Told(NamedTuple):
    """What is told of each client (C,): its mean loss over steps, the squared length of its delta.

    The length is that of what it sends: private rows are left out.
    """

    losses: Any
    squares: Any


class Layers(NamedTuple):
    """A perceptron's weights: (F, H), (H,), (H,), (1,), of the server or one behind another."""

    w1: Any
    b1: Any
    w2: Any
    b2: Any


@triton.jit
def slopes(y, target, clicks: tl.constexpr):
    """The slope of each example's loss by its prediction, and the loss."""
    if clicks:
        small = tl.exp(-tl.abs(y))
        likely, other = 1 / (1 + small), small / (1 + small)
        slope = tl.where(y >= 0, likely, other) * (1 - target)
        slope -= tl.where(y >= 0, other, likely) * target
        return slope, tl.maximum(y, 0) - y * target + tl.log(1 + small)
    away = y - target
    return 2 * away, away * away


@triton.jit
def tile_of(table, row, last, columns: tl.constexpr, tile: tl.constexpr):
    """Places in memory of the next rows of a client, and of the server's, and which are there."""
    rows, column = row + tl.arange(0, tile), tl.arange(0, columns)[None, :]
    held = rows < last
    ids = tl.load(table.ids + rows, mask=held, other=0)
    here = held[:, None] & (column < table.width)
    return rows[:, None] * table.width + column, ids[:, None] * table.width + column, here


@triton.jit
def copy_all(table, client, columns: tl.constexpr, tile: tl.constexpr):
    """Copy a client's rows from the server's table."""
    last = tl.load(table.starts + client + 1)
    for row in range(tl.load(table.starts + client), last, tile):
        at, begun, here = tile_of(table, row, last, columns, tile)
        tl.store(table.value + at, tl.load(table.server + begun, here, other=0.0), mask=here)


@triton.jit
def move_all(table, client, columns: tl.constexpr, tile: tl.constexpr):
    """What a step does to all rows of a client besides the examples."""
    last = tl.load(table.starts + client + 1)
    for row in range(tl.load(table.starts + client), last, tile):
        at, _, here = tile_of(table, row, last, columns, tile)
        value = tl.load(table.value + at, here, other=0.0) * table.keep
        tl.store(table.value + at, value + tl.load(table.fixed + at, here, other=0.0), mask=here)


@triton.jit
def subtract_all(table, client, columns: tl.constexpr, tile: tl.constexpr):
    """Turn a client's rows into how far they have moved; the sum of the squares."""
    last, total = tl.load(table.starts + client + 1), tl.zeros([columns], tl.float32)
    for row in range(tl.load(table.starts + client), last, tile):
        at, begun, here = tile_of(table, row, last, columns, tile)
        gone = tl.load(table.value + at, here, other=0.0)
        gone -= tl.load(table.server + begun, here, other=0.0)
        total += tl.sum(gone * gone, 0)
        tl.store(table.value + at, gone, mask=here)
    return tl.sum(total, 0)


@triton.jit
def move_tables(
    item, bias, user, client, several: tl.constexpr, d_2: tl.constexpr, wide: tl.constexpr
):
    """What a step does to a client's rows of all tables, once all examples have read them."""
    tl.debug_barrier()
    move_all(item, client, d_2, 32)
    move_all(bias, client, 1, wide)
    if several:
        move_all(user, client, d_2, 32)
    tl.debug_barrier()


@triton.jit
def factors_step(
    item,
    bias,
    user,
    given,
    client,
    p,
    extra,
    first,
    size,
    several: tl.constexpr,
    moves: tl.constexpr,
    clicks: tl.constexpr,
    b_2: tl.constexpr,
    d_2: tl.constexpr,
):
    """A step on the examples from `first` on: (a single user's row after it, losses (b_2,))."""
    slot, column = tl.arange(0, b_2), tl.arange(0, d_2)[None, :]
    here = slot < size
    row = tl.load(item.place + first + slot, mask=here, other=0)
    at, both = row[:, None] * item.width + column, here[:, None] & (column < item.width)
    q, beta = tl.load(item.value + at, both, other=0.0), tl.load(bias.value + row, here)
    if several:
        who = tl.load(user.place + first + slot, mask=here, other=0)
        user_at = who[:, None] * item.width + column
        p = tl.load(user.value + user_at, mask=both, other=0.0)
    target = tl.load(given.target + first + slot, here)
    slope, loss = slopes(tl.sum(q * p, 1) + beta, target, clicks)
    g = tl.where(here, slope / size * -given.rate, 0.0)  # 0 on padding
    same = tl.where(row[:, None] == row[None, :], g[None, :], 0.0)
    q_new, p_new = q, p
    if moves:
        move_tables(item, bias, user, client, several, d_2, 128)
        q_new, beta = tl.load(item.value + at, both, other=0.0), tl.load(bias.value + row, here)
        if several:
            p_new = tl.load(user.value + user_at, mask=both, other=0.0)
    tl.debug_barrier()  # all have read before any writes
    if several:  # a row's whole change: of all examples that share it
        q_new += tl.dot(same, p, input_precision="ieee")
        shared = tl.where(who[:, None] == who[None, :], g[None, :], 0.0)
        p_new += tl.dot(shared, q, input_precision="ieee")
        tl.store(user.value + user_at, p_new, mask=both)
    else:
        q_new += tl.sum(same, 1)[:, None] * p
        p_new = p * user.keep + extra + tl.sum(g[:, None] * q, 0)[None, :]
    tl.store(item.value + at, q_new, mask=both)
    tl.store(bias.value + row, beta + tl.sum(same, 1), mask=here)
    tl.debug_barrier()  # what was written is there before it is read
    return extra if several else p_new, tl.where(here, loss / size, 0.0)


@triton.jit
def factors(
    item,
    bias,
    user,
    given,
    told,
    several: tl.constexpr,
    private: tl.constexpr,
    moves: tl.constexpr,
    clicks: tl.constexpr,
    b_2: tl.constexpr,
    d_2: tl.constexpr,
):
    """Matrix factorisation, y = p_u . q_i + beta_i: SGD on the rows that a client holds.

    item, bias, user: `Table`s. given: `Given`. told: `Told`. several: whether any client has two
    users; otherwise a client's one row of users stays in registers. private: whether users are.
    moves: whether steps move rows that no example touches.
    """
    client, column = tl.program_id(0), tl.arange(0, d_2)[None, :]
    begin, end = tl.load(given.starts + client), tl.load(given.starts + client + 1)
    each = (end - begin) // given.epochs
    copy_all(item, client, d_2, 32)
    copy_all(bias, client, 1, 128)
    copy_all(user, client, d_2, 32)
    tl.debug_barrier()
    own, wide = tl.load(user.starts + client) * user.width + column, column < user.width
    p, extra = tl.load(user.value + own, mask=wide, other=0.0), tl.zeros([1, d_2], tl.float32)
    if moves:
        extra = tl.load(user.fixed + own, mask=wide, other=0.0)
    total = tl.zeros([b_2], tl.float32)
    for epoch in range(given.epochs):
        for offset in range(0, each, given.batch):
            size, first = tl.minimum(given.batch, each - offset), begin + epoch * each + offset
            p, loss = factors_step(
                item, bias, user, given, client, p, extra, first, size,
                several, moves, clicks, b_2, d_2,
            )  # fmt: skip
            total += loss
    if not several:
        tl.store(user.value + own, p, mask=wide)
        tl.debug_barrier()
    square = subtract_all(item, client, d_2, 32) + subtract_all(bias, client, 1, 128)
    moved = subtract_all(user, client, d_2, 32)
    tl.store(told.squares + client, square if private else square + moved)
    steps = given.epochs * ((each + given.batch - 1) // given.batch)
    tl.store(told.losses + client, tl.sum(total, 0) / steps)


@triton.jit
def layers_at(inputs, hidden, f_2: tl.constexpr, h_2: tl.constexpr):
    """Where weights lie in memory, and which are there: of the first layer, and of a row (H,)."""
    f, h = tl.arange(0, f_2), tl.arange(0, h_2)
    there = (f < inputs)[:, None] & (h < hidden)[None, :]
    return f[:, None] * hidden + h[None, :], there, h, h < hidden


@triton.jit
def loaded(layers, client, inputs, hidden, f_2: tl.constexpr, h_2: tl.constexpr):
    """The weights of a client, 0 where rounding up left room."""
    at, there, h, there_h = layers_at(inputs, hidden, f_2, h_2)
    return Layers(
        tl.load(layers.w1 + client * inputs * hidden + at, mask=there, other=0.0),
        tl.load(layers.b1 + client * hidden + h, mask=there_h, other=0.0),
        tl.load(layers.w2 + client * hidden + h, mask=there_h, other=0.0),
        tl.load(layers.b2 + client),
    )


@triton.jit
def perceptron_step(
    now, given, first, size, inputs, clicks: tl.constexpr, b_2: tl.constexpr, f_2: tl.constexpr
):
    """What a step on the examples from `first` on adds to the weights, and its losses (b_2,)."""
    slot, f = tl.arange(0, b_2), tl.arange(0, f_2)[None, :]
    here = slot < size
    row = tl.load(given.row + first + slot, mask=here, other=0)[:, None]
    target = tl.load(given.target + first + slot, mask=here, other=0.0)
    x = tl.load(given.x + row * inputs + f, mask=here[:, None] & (f < inputs), other=0.0)
    a = tl.maximum(tl.dot(x, now.w1, input_precision="ieee") + now.b1[None, :], 0.0)
    slope, loss = slopes(tl.sum(a * now.w2[None, :], 1) + now.b2, target, clicks)
    g = tl.where(here, slope / size * -given.rate, 0.0)[:, None]
    back = tl.where(a > 0, g * now.w2[None, :], 0.0)
    way = Layers(
        tl.dot(tl.trans(x), back, input_precision="ieee"),
        tl.sum(back, 0),
        tl.sum(a * g, 0),
        tl.sum(tl.sum(g, 1), 0),
    )
    return way, tl.where(here, loss / size, 0.0)


@triton.jit
def perceptron(
    server,
    fixed,
    delta,
    given,
    told,
    keep,
    inputs,
    hidden,
    moves: tl.constexpr,
    clicks: tl.constexpr,
    b_2: tl.constexpr,
    f_2: tl.constexpr,
    h_2: tl.constexpr,
):
    """One hidden layer, y = w2 . relu(x W1 + b1) + b2: SGD on weights that stay in registers.

    server: `Layers`. fixed, delta: those of all clients, what each step adds, read where `moves`,
    and how far they move. given: `Given`. told: `Told`. keep: the share that a step keeps.
    """
    client = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(given.starts + client), tl.load(given.starts + client + 1)
    each, total = (end - begin) // given.epochs, tl.zeros([b_2], tl.float32)
    w1, b1, w2, b2 = loaded(server, 0, inputs, hidden, f_2, h_2)
    for epoch in range(given.epochs):
        for offset in range(0, each, given.batch):
            size, first = tl.minimum(given.batch, each - offset), begin + epoch * each + offset
            now = Layers(w1, b1, w2, b2)
            way, loss = perceptron_step(now, given, first, size, inputs, clicks, b_2, f_2)
            if moves:
                more = loaded(fixed, client, inputs, hidden, f_2, h_2)
                w1, b1 = w1 * keep + more.w1, b1 * keep + more.b1
                w2, b2 = w2 * keep + more.w2, b2 * keep + more.b2
            w1, b1, w2, b2 = w1 + way.w1, b1 + way.b1, w2 + way.w2, b2 + way.b2
            total += loss
    begun = loaded(server, 0, inputs, hidden, f_2, h_2)
    w1, b1, w2, b2 = w1 - begun.w1, b1 - begun.b1, w2 - begun.w2, b2 - begun.b2
    at, there, h, there_h = layers_at(inputs, hidden, f_2, h_2)
    tl.store(delta.w1 + client * inputs * hidden + at, w1, mask=there)
    tl.store(delta.b1 + client * hidden + h, b1, mask=there_h)
    tl.store(delta.w2 + client * hidden + h, w2, mask=there_h)
    tl.store(delta.b2 + client, b2)
    tl.store(told.squares + client, tl.sum(tl.sum(w1 * w1, 0) + b1 * b1 + w2 * w2, 0) + b2 * b2)
    steps = given.epochs * ((each + given.batch - 1) // given.batch)
    tl.store(told.losses + client, tl.sum(total, 0) / steps)


@triton.jit
def sum_rows(values, weights, order, starts, out, width, d_2: tl.constexpr, tile: tl.constexpr):
    """Weighted sums out (U, D) of rows of the same number, in one order: the same bits each time.

    values (R, D), weights (R,). order (R,): the rows, those of the same number side by side. starts
    (U + 1,): where each number begins among them.
    """
    number, column = tl.program_id(0), tl.arange(0, d_2)
    begin, end = tl.load(starts + number), tl.load(starts + number + 1)
    total = tl.zeros([d_2], tl.float32)
    for place in range(begin, end, tile):
        at = place + tl.arange(0, tile)
        here = at < end
        row = tl.load(order + at, mask=here, other=0)
        weight = tl.load(weights + row, mask=here, other=0.0)
        both = here[:, None] & (column < width)[None, :]
        value = tl.load(values + row[:, None] * width + column[None, :], mask=both, other=0.0)
        total += tl.sum(value * weight[:, None], 0)
    tl.store(out + number * width + column, total, mask=column < width)
