"""What compiled clients share: the slopes of losses, rows that a client holds, a step of AdamW.

Letters: B examples of a batch, N rows of a table, R of them that a client holds, D numbers in each,
T steps of the busiest client.

Sources: Loshchilov, Hutter 2019, "Decoupled weight decay regularization", algorithm 2 (AdamW).
"""

import math
from typing import NamedTuple

import numpy as np

from fedlab.core.loops.cpu import ANY_ORDER, compiled
from fedlab.engine.step import BETAS, EPS

BETA1, BETA2 = BETAS
SURE = np.float32(8.0)  # predictions above which a sigmoid from polynomials is off by 1 in 5,000
ROOM = 64  # chances that are multiplied before a logarithm is taken: at least 2^-64


class Table(NamedTuple):
    """Rows of a table that one client holds, or several end to end, and how far they have moved.

    ids (R,): the rows. start (N, D): where all rows of the table began. moved (R, D). shift (R, D):
    what SCAFFOLD adds in each step, or empty. age (R,): up to which step a row is settled. series
    (2, T + 1): k^t and 1 + ... + k^(t-1), where a step of SGD keeps k of how far a row has moved.
    grad, mean, square (R, D): of AdamW, or empty. pull: FedProx', in AdamW.
    """

    ids: np.ndarray
    start: np.ndarray
    moved: np.ndarray
    shift: np.ndarray
    age: np.ndarray
    series: np.ndarray
    grad: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    pull: float


@compiled()
def part(table: Table, a: int, b: int) -> Table:
    """Rows a to b - 1 of those that clients hold."""
    return Table(
        table.ids[a:b],
        table.start,
        table.moved[a:b],
        table.shift[a:b],
        table.age[a:b],
        table.series,
        table.grad[a:b],
        table.mean[a:b],
        table.square[a:b],
        table.pull,
    )


@compiled(fastmath=ANY_ORDER)
def settle(table: Table, rows: np.ndarray, decay: float, step: int) -> None:
    """Bring rows, some of them twice, to where they are at the beginning of a step of SGD.

    That is after the steps that they sat out: each moves a row to k times how far it is, less the
    decay of where it began.
    """
    start, moved, age, shift = table.start, table.moved, table.age, table.shift
    for row in rows:
        steps = step - age[row]
        if steps > 0:
            i, age[row] = table.ids[row], step
            keep, share = table.series[0, steps], table.series[1, steps]
            lost = np.float32(decay) * share
            for j in range(moved.shape[1]):
                moved[row, j] = moved[row, j] * keep - lost * start[i, j]
            if len(shift):
                for j in range(moved.shape[1]):
                    moved[row, j] += shift[row, j] * share


@compiled()
def adapt_rows(table: Table, rates: tuple[float, float], decay: float) -> None:
    """Take a step of AdamW with all rows; rates: as `corrected` gives them."""
    how = (table.grad, table.mean, table.square, rates, decay, table.pull)
    adam(table.moved, table.start, table.ids, *how)


@compiled()
def batch_of(step: int, count: int, batch: int) -> tuple[int, int]:
    """Where a step's batch begins and ends among a client's examples; count: of an epoch."""
    each = (count + batch - 1) // batch
    first = step // each * count + step % each * batch
    return first, min(first + batch, (step // each + 1) * count)


@compiled()
def widest(offsets: np.ndarray, epochs: int, batch: int) -> int:
    """Examples in the largest batch; offsets (C + 1,): where each client's examples begin."""
    most = np.diff(offsets).max() // epochs
    return min(batch, most) if batch else most


@compiled(fastmath=ANY_ORDER)
def largest(y: np.ndarray) -> float:
    """The largest size of a number."""
    found = np.float32(0)
    for k in range(len(y)):
        found = max(found, abs(y[k]))
    return float(found)


@compiled()
def sure_slopes(y: np.ndarray, target: np.ndarray) -> float:
    """What `slopes` does for clicks, to the last bits of however small a slope."""
    total = np.float32(0)
    for k in range(len(y)):
        small, t = math.exp(-abs(y[k])), target[k]
        total += np.float32(max(y[k], np.float32(0)) - y[k] * t + math.log1p(small))
        likely, other = 1 / (1 + small), small / (1 + small)
        up = likely if y[k] > 0 else other
        down = other if y[k] > 0 else likely
        y[k] = np.float32((1 - t) * up - t * down) if y[k] == y[k] else y[k]
    return float(total)


@compiled(fastmath=ANY_ORDER)
def slopes(y: np.ndarray, target: np.ndarray, clicks: bool) -> float:
    """Turn predictions y (B,) into the slopes of their losses; returns the sum of the losses.

    The sigmoid is 1/2 + tanh(y/2)/2, with the fraction of polynomials by which Eigen computes tanh
    to the last bits of float32: no function is called, so the loop compiles to vectors. The loss of
    a click is max(y, 0) - y t - log(the chance of what is likelier). Where a prediction is surer
    than `SURE`, those bits are too few for what is left of the slope, which AdamW makes large.
    """
    total = np.float32(0)
    if not clicks:
        for k in range(len(y)):
            away = y[k] - target[k]
            total += away * away
            y[k] = 2 * away
        return float(total)
    for first in range(0, len(y), ROOM):
        last = min(first + ROOM, len(y))
        if largest(y[first:last]) > SURE:
            total += sure_slopes(y[first:last], target[first:last])
            continue
        chance, sums = np.float32(1), np.float32(0)
        for k in range(first, last):
            x = min(max(y[k] * np.float32(0.5), np.float32(-7.905311)), np.float32(7.905311))
            s = x * x
            p = np.float32(-2.76076847742355e-16) * s + np.float32(2.00018790482477e-13)
            p = p * s + np.float32(-8.60467152213735e-11)
            p = p * s + np.float32(5.12229709037114e-08)
            p = p * s + np.float32(1.48572235717979e-05)
            p = p * s + np.float32(6.37261928875436e-04)
            p = p * s + np.float32(4.89352455891786e-03)
            q = np.float32(1.19825839466702e-06) * s + np.float32(1.18534705686654e-04)
            q = q * s + np.float32(2.26843463243900e-03)
            q = q * s + np.float32(4.89352518554385e-03)
            half = np.float32(0.5) * (x * p / q)
            sums += max(y[k], np.float32(0)) - y[k] * target[k]
            chance *= np.float32(0.5) + abs(half)
            y[k] = np.float32(0.5) + half - target[k]
        total += sums - np.float32(math.log(chance))
    return float(total)


@compiled()
def corrected(step: int, rate: float) -> tuple[float, float]:
    """What AdamW's bias corrections make of a step: the rate, and the root of the squares'."""
    return rate / (1 - BETA1 ** (step + 1)), math.sqrt(1 - BETA2 ** (step + 1))


@compiled(fastmath=ANY_ORDER)
def adam(
    delta: np.ndarray,
    begin: np.ndarray,
    rows: np.ndarray,
    grad: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    rates: tuple[float, float],
    decay: float,
    pull: float,
) -> None:
    """A step of AdamW on what all rows have moved, delta (R, D); grad is used up.

    They began at the rows (R,) of begin. rates: as `corrected` gives them. decay: lambda times the
    rate. pull: FedProx'.
    """
    keep, rate, root = np.float32(1 - decay), np.float32(rates[0]), np.float32(rates[1])
    lost, mu = np.float32(decay), np.float32(pull)
    one, two, beta2 = np.float32(1 - BETA1), np.float32(1 - BETA2), np.float32(BETA2)
    for r in range(len(delta)):
        i = rows[r]
        for j in range(delta.shape[1]):
            slope = grad[r, j] + delta[r, j] * mu
            mean[r, j] += (slope - mean[r, j]) * one
            square[r, j] = square[r, j] * beta2 + slope * slope * two
            way = mean[r, j] / (math.sqrt(square[r, j]) / root + np.float32(EPS)) * rate
            delta[r, j] = delta[r, j] * keep - lost * begin[i, j] - way
            grad[r, j] = 0
