"""A perceptron of one hidden layer on a client: all of its local steps in the cache, compiled.

Its inputs are a column x of the examples; or features of the item, of the user, and the product of
both, which with a bias for each item is the content model. The one is the other without features of
items. Products are BLAS' own, through numba; they are cut so small that BLAS takes one thread.

Letters: C clients of a piece, n examples of all of them, F inputs, H hidden units, B examples of a
batch, P = F H + 2 H + 1 parameters, I items, R rows of items that clients hold.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedlab.core import Rows, Summed, Tree, Update, norms
from fedlab.core.loops.cpu import ANY_ORDER, compiled
from fedlab.engine.fused import FEATURES, LAYERS
from fedlab.engine.fused.cohort import (
    CHUNK_MB,
    Job,
    blocks,
    cut,
    deltas,
    held,
    shifted,
    shuffled,
    sizes,
    table,
)
from fedlab.engine.fused.draws import Held
from fedlab.engine.fused.factors import Numbers
from fedlab.engine.fused.pool import in_order
from fedlab.engine.fused.rules import (
    Table,
    adam,
    adapt_rows,
    batch_of,
    corrected,
    part,
    settle,
    slopes,
    widest,
)

ONE_THREAD = 1 << 18  # multiplications of a product from which OpenBLAS takes several threads


class Examples(NamedTuple):
    """What clients train on, client after client and epoch after epoch.

    offsets (C + 1,): where those of each client begin. row (n,): of `Inputs.x`. item (n,): of which
    of the client's items, by its number among these; empty where there are none. target (n,).
    """

    offsets: np.ndarray
    row: np.ndarray
    item: np.ndarray
    target: np.ndarray


class Inputs(NamedTuple):
    """Of what inputs are made: items (I, F1) and x (m, F2), a column or the features of users.

    An input is (item, x, their product over the first F1 columns): F = 2 F1 + F2. A column has no
    items, and F1 = 0.
    """

    items: np.ndarray
    x: np.ndarray


class Layers(NamedTuple):
    """The parameters, or their gradients, as views of one vector: (F, H), (H,), (H,), (1,)."""

    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray


class Room(NamedTuple):
    """Scratch for a batch: x (B, F), hidden and its gradient (B, H), y and targets (B,), (F, H)."""

    x: np.ndarray
    hidden: np.ndarray
    back: np.ndarray
    y: np.ndarray
    target: np.ndarray
    product: np.ndarray


@compiled()
def layers(vector: np.ndarray, inputs: int) -> Layers:
    """The layers in a vector (P,)."""
    hidden = (len(vector) - 1) // (inputs + 2)
    a, b = inputs * hidden, inputs * hidden + hidden
    w1 = vector[:a].reshape((inputs, hidden))
    return Layers(w1, vector[a:b], vector[b : b + hidden], vector[b + hidden :])


@compiled(fastmath=ANY_ORDER)
def forward(now: Layers, room: Room, size: int) -> None:
    """Write hidden units and predictions of the first `size` examples."""
    w2, b1, hidden, y = now.w2, now.b1, room.hidden, room.y
    most = max(1, ONE_THREAD // now.w1.size)
    for first in range(0, size, most):
        last = min(first + most, size)
        np.dot(room.x[first:last], now.w1, hidden[first:last])
    for k in range(size):
        total = np.float32(0)
        for j in range(len(w2)):
            value = max(hidden[k, j] + b1[j], np.float32(0))
            hidden[k, j] = value
            total += value * w2[j]
        y[k] = total + now.b2[0]


@compiled(fastmath=ANY_ORDER)
def backward(now: Layers, grad: Layers, room: Room, size: int) -> None:
    """Add the gradient at the first `size` examples, whose slopes are in room.y, to `grad`."""
    w2, hidden, back, y = now.w2, room.hidden, room.back, room.y
    b1, g2, product, g1 = grad.b1, grad.w2, room.product, grad.w1
    for k in range(size):
        slope = y[k]
        grad.b2[0] += slope
        for j in range(len(w2)):
            value = hidden[k, j]
            here = slope * w2[j] if value > 0 else np.float32(0)
            back[k, j] = here
            b1[j] += here
            g2[j] += slope * value
    most = max(1, ONE_THREAD // now.w1.size)
    for first in range(0, size, most):
        last = min(first + most, size)
        np.dot(room.x[first:last].T, back[first:last], product)
        for f in range(product.shape[0]):
            for j in range(product.shape[1]):
                g1[f, j] += product[f, j]


@compiled(fastmath=ANY_ORDER)
def descend(
    value: np.ndarray, begin: np.ndarray, shift: np.ndarray, grad: np.ndarray, numbers: Numbers
) -> None:
    """Take a step of SGD, with what moves all parameters besides the examples; grad is used up."""
    keep, pull = np.float32(numbers.keep_user), np.float32(numbers.pull_user)
    for j in range(len(value)):
        value[j] = value[j] * keep + begin[j] * pull + grad[j]
        grad[j] = 0
    for j in range(len(shift)):
        value[j] += shift[j]


@compiled(fastmath=ANY_ORDER)
def adapt(
    value: np.ndarray,
    begin: np.ndarray,
    grad: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    numbers: Numbers,
    step: int,
) -> None:
    """Take a step of AdamW; grad is used up."""
    moved, wide = (value - begin).reshape((1, -1)), begin.reshape((1, -1))
    both = (grad.reshape((1, -1)), mean.reshape((1, -1)), square.reshape((1, -1)))
    rates, only = corrected(step, numbers.rate), np.zeros(1, np.int64)
    adam(moved, wide, only, *both, rates, numbers.decay, numbers.pull)
    value[:] = begin + moved[0]


@compiled()
def taken(
    examples: Examples, inputs: Inputs, bias: Table, first: int, size: int, room: Room
) -> None:
    """Write the inputs and targets of `size` examples to room."""
    row, x, items = examples.row, inputs.x, inputs.items
    wide, width = items.shape[1], x.shape[1]
    for k in range(size):
        at = row[first + k]
        room.target[k] = examples.target[first + k]
        if not wide:
            for f in range(width):
                room.x[k, f] = x[at, f]
        else:
            i = bias.ids[examples.item[first + k]]
            for f in range(width):
                room.x[k, wide + f] = x[at, f]
            for f in range(wide):
                room.x[k, f] = items[i, f]
                room.x[k, wide + width + f] = items[i, f] * x[at, f]


@compiled()
def predict(now: Layers, bias: Table, what: np.ndarray, room: Room, size: int) -> None:
    """Write hidden units and predictions; what (size,): the items, or empty."""
    forward(now, room, size)
    for k in range(len(what)):
        r = what[k]
        room.y[k] += bias.start[bias.ids[r], 0] + bias.moved[r, 0]


@compiled()
def step_sgd(
    value: np.ndarray,
    begin: np.ndarray,
    shift: np.ndarray,
    grad: np.ndarray,
    layer: tuple[Layers, Layers],
    bias: Table,
    what: np.ndarray,
    numbers: Numbers,
    room: Room,
    size: int,
    step: int,
) -> None:
    """Take a step of SGD; room.y: slopes times the rate. layer: views of value and grad."""
    now, slope = layer
    if numbers.lazy:
        backward(now, slope, room, size)
        descend(value, begin, shift, grad, numbers)
        settle(bias, what, numbers.decay, step + 1)
    else:  # the product goes where it belongs at once; w2 is still read
        backward(now, Layers(now.w1, slope.b1, slope.w2, slope.b2), room, size)
        for j in range(now.w1.size, len(value)):
            value[j] += grad[j]
            grad[j] = 0
    for k in range(len(what)):
        bias.moved[what[k], 0] += room.y[k]


@compiled(fastmath=ANY_ORDER)
def fit(
    value: np.ndarray,
    begin: np.ndarray,
    shift: np.ndarray,
    bias: Table,
    examples: Examples,
    inputs: Inputs,
    low: int,
    high: int,
    numbers: Numbers,
    room: Room,
) -> float:
    """Train a client's parameters value (P,) from begin (P,); returns its mean loss over the steps.

    shift (P,): what SCAFFOLD adds in each step, or empty. bias: its items'. low, high: its
    examples.
    """
    count, losses = (high - low) // numbers.epochs, 0.0
    batch = min(numbers.batch, count) if numbers.batch else count
    steps = numbers.epochs * ((count + batch - 1) // batch)
    grad, mean, square = (np.zeros_like(value), np.zeros_like(value), np.zeros_like(value))
    layer = layers(value, room.x.shape[1]), layers(grad, room.x.shape[1])
    for step in range(steps):
        here, end = batch_of(step, count, batch)
        first, size = low + here, end - here
        what = examples.item[first : first + size]
        taken(examples, inputs, bias, first, size, room)
        if numbers.lazy:
            settle(bias, what, numbers.decay, step)
        predict(layer[0], bias, what, room, size)
        losses += slopes(room.y[:size], room.target[:size], numbers.clicks) / size
        rate = np.float32((1.0 if numbers.adaptive else -numbers.rate) / size)
        for k in range(size):
            room.y[k] *= rate
        if numbers.adaptive:
            backward(*layer, room, size)
            adapt(value, begin, grad, mean, square, numbers, step)
            for k in range(len(what)):
                bias.grad[what[k], 0] += room.y[k]
            adapt_rows(bias, corrected(step, numbers.rate), numbers.decay)
        else:
            step_sgd(value, begin, shift, grad, layer, bias, what, numbers, room, size, step)
    if numbers.lazy:
        settle(bias, np.arange(len(bias.ids)), numbers.decay, steps)
    return losses / steps


@compiled()
def fit_clients(
    examples: Examples,
    inputs: Inputs,
    begin: np.ndarray,
    shift: np.ndarray,
    bias: Table,
    first: np.ndarray,
    numbers: Numbers,
    out: Layers,
    losses: np.ndarray,
) -> None:
    """Train clients from begin (P,): how far they move, and mean losses (C,).

    shift (C, P): what SCAFFOLD adds in each step, or empty. bias: of all of them, whose rows begin
    at first (C + 1,). out: (C, ...) of each layer, flat.
    """
    wide = 2 * inputs.items.shape[1] + inputs.x.shape[1]
    tall = widest(examples.offsets, numbers.epochs, numbers.batch)
    width = len(layers(begin, wide).b1)
    room = Room(
        np.empty((tall, wide), np.float32),
        np.empty((tall, width), np.float32),
        np.empty((tall, width), np.float32),
        np.empty(tall, np.float32),
        np.empty(tall, np.float32),
        np.empty((wide, width), np.float32),
    )
    none, value = np.empty(0, np.float32), np.empty_like(begin)
    for c in range(len(losses)):
        value[:] = begin
        own, mine = shift[c] if len(shift) else none, part(bias, first[c], first[c + 1])
        low, high = examples.offsets[c], examples.offsets[c + 1]
        losses[c] = fit(value, begin, own, mine, examples, inputs, low, high, numbers, room)
        at = 0
        for layer in out:
            here, start = value[at : at + layer.shape[1]], begin[at : at + layer.shape[1]]
            for j in range(layer.shape[1]):
                layer[c, j] = here[j] - start[j]
            at += layer.shape[1]


def updates(job: Job, cohort: Tensor) -> Iterator[Update]:
    """Yield the updates of a cohort (C,), in its order; see `fedlab.engine.updates`."""
    begin = _begin(job)

    def piece(here: slice) -> Update:
        return _update(job, begin, cohort[here])

    yield from in_order(piece, list(_chunks(job, begin, cohort, CHUNK_MB)), job.workers)


def _begin(job: Job) -> Tensor:
    """The layers (P,), end to end."""
    return torch.cat([job.params[name].flatten() for name in LAYERS])


def _chunks(job: Job, begin: Tensor, cohort: Tensor, usual_mb: float) -> Iterator[slice]:
    """Cut a cohort (C,) into pieces that fit the budget of memory."""
    return cut(job, cohort, sizes(job, cohort) * 64 + 12 * len(begin), usual_mb)


def _update(job: Job, begin: Tensor, cohort: Tensor) -> Update:
    """What some clients (C,) learn from begin (P,)."""
    examples, inputs, items = prepared(job, cohort)
    learned, losses = trained(job, examples, inputs, items, begin, cohort)
    weights = job.data.counts[cohort].float()
    return Update(learned, weights, losses, cohort, job.steps(examples.offsets))


def prepared(job: Job, cohort: Tensor) -> tuple[Examples, Inputs, Held]:
    """The examples of some clients (C,), what inputs are made of, and the items that they hold."""
    none = np.empty(0, np.int64)
    if job.model.kernel == "content":
        found = job.examples(cohort)
        items = held(found.item, job.height("item"), found.offsets)
        examples = Examples(found.offsets, found.user.astype(np.int64), found.item, found.target)
        tables = (job.model.constants[name].numpy() for name in FEATURES)
        return examples, Inputs(*tables), items
    offsets, row = shuffled(job.layout, cohort, job.local, job.key)
    x, target = (job.layout.columns[name] for name in ("x", "target"))
    examples = Examples(offsets, row, np.empty(0, np.int32), target.take(row))
    nothing = Held(np.zeros(len(cohort) + 1, np.int64), none, none)
    return examples, Inputs(np.empty((0, 0), np.float32), x), nothing


def trained(
    job: Job, examples: Examples, inputs: Inputs, items: Held, begin: Tensor, cohort: Tensor
) -> tuple[dict[str, Rows], Tensor]:
    """Train some clients (C,) from begin (P,): their deltas by name, and mean losses (C,)."""
    clients, shapes = len(cohort), [job.params[name].shape[1:] for name in LAYERS]
    everybody = torch.arange(clients)
    one = Held(np.arange(clients + 1), np.zeros(clients, np.int64), everybody.numpy())
    out, losses = [torch.empty(clients, shape.numel()) for shape in shapes], torch.empty(clients)
    shift = np.concatenate([shifted(name, job, one, cohort) for name in LAYERS], 1)
    biases = ["bias"] if "bias" in job.model.rows else []
    bias = table(job, biases, items, cohort)
    flat = Layers(*(layer.numpy() for layer in out))
    how = (begin.numpy(), shift, bias, items.first, job.numbers, flat, losses.numpy())
    fit_clients(examples, inputs, *how)
    learned = {
        name: Rows(layer.view(clients, *shape), torch.zeros_like(everybody), everybody)
        for name, layer, shape in zip(LAYERS, out, shapes, strict=True)
    }
    if biases:
        learned |= deltas(job, biases, bias.moved, items)
    return learned, losses


class Added(NamedTuple):
    """A block of clients, added up.

    sums: by name. rows: of each kind, how many each client sends, chunk by chunk. each: lengths,
    losses and local steps of the clients of each chunk.
    """

    sums: Tree
    rows: dict[str, list[Tensor]]
    each: list[tuple[Tensor, Tensor, Tensor]]


def summed(job: Job, cohort: Tensor, weights: Tensor, longest: float) -> Summed:
    """Train a cohort (C,) and add up what it sends, block by block; see `Local.train_summed`.

    Lengths and sums are those of the gate and of the mean. Nobody keeps a row to itself.
    """
    begin = _begin(job)

    def block(here: slice) -> Added:
        mine = cohort[here]
        pieces = _chunks(job, begin, mine, 2 * CHUNK_MB)
        found = (_update(job, begin, mine[piece]) for piece in pieces)
        return _added(found, job, weights[here], longest)

    sums = {name: torch.zeros_like(job.params[name]) for name in job.model.rows}
    rows = {kind: list[Tensor]() for kind in job.model.rows.values()}
    each = list[tuple[Tensor, Tensor, Tensor]]()
    for found in in_order(block, list(blocks(job, cohort)), job.workers):
        for name, added in found.sums.items():
            sums[name] += added
        for kind, counts in found.rows.items():
            rows[kind] += counts
        each += found.each
    lengths, losses, steps = (torch.cat(column) for column in zip(*each, strict=True))
    sent = Update({}, job.data.counts[cohort].float(), losses, cohort, steps)
    counted = {kind: torch.cat(counts) for kind, counts in rows.items()}
    return Summed(sent, lengths, counted, dict(sums), {})


def _added(found: Iterable[Update], job: Job, weights: Tensor, longest: float) -> Added:
    """The updates of some clients (C,), added up in their order."""
    kinds = {kind: name for name, kind in job.model.rows.items()}
    sums = {name: torch.zeros_like(job.params[name]) for name in job.model.rows}
    out, first = Added(sums, {kind: [] for kind in kinds}, []), 0
    for update in found:
        clients = len(update.cohort)
        length, share = norms(update.deltas, clients), weights[first : first + clients]
        chosen = (share > 0) & (length <= longest) & update.losses.isfinite()
        kept = update if chosen.all() else update.only(chosen)  # 0 times infinity is no number
        for name, delta in kept.deltas.items():
            delta.add_to(sums[name], share[chosen])
        for kind, name in kinds.items():
            rows = update.deltas[name]
            out.rows[kind].append(torch.bincount(rows.client, minlength=clients))
        out.each.append((length, update.losses, update.steps))
        first += clients
    return out
