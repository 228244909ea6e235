"""A perceptron of one hidden layer on a client: all of its local steps in the cache, compiled.

Products are BLAS' own, through numba; they are cut so small that BLAS takes one thread.

Letters: C clients of a piece, n examples of all of them, F inputs, H hidden units, B examples of a
batch, P = F H + 2 H + 1 parameters.
"""

from typing import NamedTuple

import numpy as np

from fedlab.core.compiled import ANY_ORDER, compiled
from fedlab.engine.fused.rules import adam, corrected, slopes

ONE_THREAD = 1 << 18  # multiplications of a product from which OpenBLAS takes several threads


class Columns(NamedTuple):
    """What clients train on: row (n,) of the columns x (m, F), target (m,); offsets (C + 1,)."""

    offsets: np.ndarray
    row: np.ndarray
    x: np.ndarray
    target: np.ndarray


class Numbers(NamedTuple):
    """The settings of a step.

    keep: what a step of SGD keeps of a parameter; pull: what it adds of where this began. decay,
    proximal: AdamW's own.
    """

    epochs: int
    batch: int
    clicks: bool
    adaptive: bool
    rate: float
    keep: float
    pull: float
    decay: float
    proximal: float


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
    keep, pull = np.float32(numbers.keep), np.float32(numbers.pull)
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
    adam(moved, wide, only, *both, rates, numbers.decay, numbers.proximal)
    value[:] = begin + moved[0]


@compiled()
def taken(columns: Columns, first: int, size: int, room: Room) -> None:
    """Write the columns of `size` examples to room."""
    row, x, target = columns.row, columns.x, columns.target
    for k in range(size):
        at = row[first + k]
        room.target[k] = target[at]
        for f in range(x.shape[1]):
            room.x[k, f] = x[at, f]


@compiled(fastmath=ANY_ORDER)
def fit(
    value: np.ndarray,
    begin: np.ndarray,
    shift: np.ndarray,
    columns: Columns,
    low: int,
    high: int,
    numbers: Numbers,
    room: Room,
) -> float:
    """Train a client's parameters value (P,) from begin (P,); returns its mean loss over the steps.

    shift (P,): what SCAFFOLD adds in each step, or empty. low, high: its examples.
    """
    count, losses = (high - low) // numbers.epochs, 0.0
    batch = min(numbers.batch, count) if numbers.batch else count
    each = (count + batch - 1) // batch
    grad, mean, square = (np.zeros_like(value), np.zeros_like(value), np.zeros_like(value))
    inputs = columns.x.shape[1]
    now, slope = layers(value, inputs), layers(grad, inputs)
    for step in range(numbers.epochs * each):
        first = low + step // each * count + step % each * batch
        size = min(batch, low + (step // each + 1) * count - first)
        taken(columns, first, size, room)
        forward(now, room, size)
        losses += slopes(room.y[:size], room.target[:size], numbers.clicks) / size
        rate = np.float32((1.0 if numbers.adaptive else -numbers.rate) / size)
        for k in range(size):
            room.y[k] *= rate
        if numbers.adaptive:
            backward(now, slope, room, size)
            adapt(value, begin, grad, mean, square, numbers, step)
        elif numbers.keep != 1 or numbers.pull or len(shift):
            backward(now, slope, room, size)
            descend(value, begin, shift, grad, numbers)
        else:  # the product goes where it belongs at once; w2 is still read
            backward(now, Layers(now.w1, slope.b1, slope.w2, slope.b2), room, size)
            for j in range(now.w1.size, len(value)):
                value[j] += grad[j]
                grad[j] = 0
    return losses / (numbers.epochs * each)


@compiled()
def clients(
    columns: Columns,
    begin: np.ndarray,
    shift: np.ndarray,
    numbers: Numbers,
    out: np.ndarray,
    losses: np.ndarray,
) -> None:
    """Train clients from begin (P,): how far they move, out (C, P), and mean losses (C,).

    shift (C, P): what SCAFFOLD adds in each step, or empty.
    """
    inputs = columns.x.shape[1]
    most = np.diff(columns.offsets).max() // numbers.epochs
    wide = min(numbers.batch, most) if numbers.batch else most
    width = len(layers(begin, inputs).b1)
    room = Room(
        np.empty((wide, inputs), np.float32),
        np.empty((wide, width), np.float32),
        np.empty((wide, width), np.float32),
        np.empty(wide, np.float32),
        np.empty(wide, np.float32),
        np.empty((inputs, width), np.float32),
    )
    none = np.empty(0, np.float32)
    for c in range(len(losses)):
        value = out[c]
        value[:] = begin
        own = shift[c] if len(shift) else none
        low, high = columns.offsets[c], columns.offsets[c + 1]
        losses[c] = fit(value, begin, own, columns, low, high, numbers, room)
        value[:] -= begin
