"""Ridge regression on a client: its user's vector and the gradients of its items, compiled.

A client solves (w0 Q'Q + sum_k w_k q_k q_k' + strength I) p = sum_k w_k q_k for the user's vector
p, over the items k that it clicked, each with a weight w_k. Q'Q is the same for all, so one
rotation of the items makes it diagonal: conjugate gradients, scaled by the system's diagonal, then
go over the client's own rows in the cache, five to twenty times, and make no matrix at all. They
begin at 0, so a vector depends on nothing but the clicks and the items.

No client sees another: neither their order nor how they are cut into pieces changes a bit.

Letters: C clients, I items, D dimensions, n clicks of all clients, N of one, made up to fours.

Sources: Hu, Koren, Volinsky 2008, "Collaborative filtering for implicit feedback datasets", eq. 4;
Hestenes, Stiefel 1952, "Methods of conjugate gradients for solving linear systems"; Takacs,
Pilaszy, Tikk 2011, "Applications of the conjugate gradient method for implicit feedback
collaborative filtering".
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedlab.core import require
from fedlab.core.loops.cpu import ANY_ORDER, add_squares, compiled
from fedlab.engine.fused import CLICK, Clicks, Strength

RESIDUAL = 1e-6  # of the right side's length, where the steps end: what float32 can tell
STEPS = 10  # at most, for each dimension; in exact numbers one is enough


class Films(NamedTuple):
    """The items' vectors rows (I, D), and the axes (D, D) along whose rows Q'Q is diagonal.

    turned (I, D): the vectors along these axes. squares (D,): the diagonal.
    """

    rows: np.ndarray
    turned: np.ndarray
    axes: np.ndarray
    squares: np.ndarray


class Room(NamedTuple):
    """What a client needs while it solves: near (N, D), its items' rows, and weights (N,).

    The others (D,): diagonal of what all share, inverse of the whole diagonal, the right side and
    then what is left of it, the direction of a step and its image, and the solution.
    """

    near: np.ndarray
    weights: np.ndarray
    diagonal: np.ndarray
    inverse: np.ndarray
    left: np.ndarray
    way: np.ndarray
    image: np.ndarray
    solution: np.ndarray


class Sums(NamedTuple):
    """Where what clients send is added up: item (I, D), clicks (I,), gram (1, D D); what is told.

    weights, lengths, losses (C,). click: what a click adds to clicks. longest: the length from
    which a client is left out.
    """

    item: np.ndarray
    clicks: np.ndarray
    gram: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray
    losses: np.ndarray
    click: float
    longest: float


@compiled()
def room(clicks: Clicks, dims: int) -> Room:
    """Room for the client that has clicked most."""
    most = (clicks.counts.max() + 3) // 4 * 4
    line = np.empty((6, dims), np.float32)
    near, weights = np.empty((most, dims), np.float32), np.empty(most, np.float32)
    return Room(near, weights, line[0], line[1], line[2], line[3], line[4], line[5])


@compiled(fastmath=ANY_ORDER)
def gather(c: int, clicks: Clicks, films: Films, how: Strength, own: Room) -> bool:
    """Copy a client's rows, and set up its system; False for an item that there is not."""
    near, weights, inverse, right = own.near, own.weights, own.inverse, own.left
    first, count, turned, total = clicks.starts[c], clicks.counts[c], films.turned, 0.0
    inverse[:], right[:] = 0, 0
    for k in range(count):
        item = clicks.items[first + k]
        if not 0 <= item < len(turned):
            return False
        weight = clicks.weights[first + k] if len(clicks.weights) else np.float32(1)
        weights[k] = weight
        total += float(weight)
        for j in range(turned.shape[1]):
            number = turned[item, j]
            near[k, j] = number
            right[j] += weight * number
            inverse[j] += weight * number * number
    for k in range(count, (count + 3) // 4 * 4):
        weights[k], near[k] = 0, 0
    w0, strength = np.float32(how.w0), np.float32(how.reg * (total + how.w0 * len(turned)))
    for j in range(turned.shape[1]):
        own.diagonal[j] = w0 * films.squares[j] + strength
        inverse[j] = 1 / (inverse[j] + own.diagonal[j])
    return True


@compiled(fastmath=ANY_ORDER)
def apply(own: Room, fours: int) -> float:
    """Write the image of the way: the system times it. Returns the product of the two."""
    near, weights, way, image = own.near, own.weights, own.way, own.image
    for j in range(len(way)):
        image[j] = own.diagonal[j] * way[j]
    for four in range(fours):
        k = 4 * four
        a = b = c = d = np.float32(0)
        for j in range(len(way)):
            a += near[k, j] * way[j]
            b += near[k + 1, j] * way[j]
            c += near[k + 2, j] * way[j]
            d += near[k + 3, j] * way[j]
        a, b, c, d = a * weights[k], b * weights[k + 1], c * weights[k + 2], d * weights[k + 3]
        for j in range(len(way)):
            image[j] += (
                a * near[k, j] + b * near[k + 1, j] + c * near[k + 2, j] + d * near[k + 3, j]
            )
    product = np.float32(0)
    for j in range(len(way)):
        product += way[j] * image[j]
    return float(product)


@compiled(fastmath=ANY_ORDER)
def solve(own: Room, fours: int) -> None:
    """Solve the system in the room by conjugate gradients; it has `fours` times four rows."""
    left, way, image, solution, inverse = own.left, own.way, own.image, own.solution, own.inverse
    whole = level = np.float32(0)
    for j in range(len(left)):
        solution[j], way[j] = 0, left[j] * inverse[j]
        whole += left[j] * left[j]
        level += left[j] * way[j]
    limit = np.float32(RESIDUAL * RESIDUAL) * whole
    for _ in range(STEPS * len(left)):
        product = apply(own, fours)
        if not product > 0:  # there is no right side, or it is not a number
            if product != 0:
                solution[:] = np.nan
            return
        step, whole, before = level / product, np.float32(0), level
        level = np.float32(0)
        for j in range(len(left)):
            solution[j] += step * way[j]
            left[j] -= step * image[j]
            whole += left[j] * left[j]
            level += left[j] * left[j] * inverse[j]
        if whole <= limit:
            return
        ratio = level / before
        for j in range(len(left)):
            way[j] = left[j] * inverse[j] + ratio * way[j]


@compiled(fastmath=ANY_ORDER)
def vector(c: int, clicks: Clicks, films: Films, how: Strength, own: Room, out: np.ndarray) -> bool:
    """Write a client's vector to its row of out (C, D); False for an item that there is not."""
    if not gather(c, clicks, films, how, own):
        return False
    solve(own, (clicks.counts[c] + 3) // 4)
    axes, solution = films.axes, own.solution
    out[c] = 0
    for a in range(len(axes)):
        for j in range(len(axes)):
            out[c, j] += solution[a] * axes[a, j]
    return True


@compiled(fastmath=ANY_ORDER)
def gradients(
    c: int,
    clicks: Clicks,
    films: Films,
    how: Strength,
    own: Room,
    vectors: np.ndarray,
    into: np.ndarray,
    at: int,
) -> float:
    """Write the negative half gradients of a client's items to the rows of `into` from `at` on.

    Returns its loss for each click.
    """
    rows, first, count, reg = films.rows, clicks.starts[c], clicks.counts[c], np.float32(how.reg)
    total = 0.0
    for j in range(len(own.solution)):
        total += how.w0 * films.squares[j] * own.solution[j] * own.solution[j]
    for k in range(count):
        item, miss = clicks.items[first + k], np.float32(1)
        for j in range(rows.shape[1]):
            miss -= vectors[c, j] * rows[item, j]
        for j in range(rows.shape[1]):
            into[at + k, j] = miss * vectors[c, j] - reg * rows[item, j]
        total += float(miss * miss)
    return total / count


@compiled()
def all_vectors(clicks: Clicks, films: Films, how: Strength, out: np.ndarray) -> int:
    """Solve for all clients' vectors, out (C, D); the client with an item too many, or -1."""
    own = room(clicks, films.rows.shape[1])
    for c in range(len(clicks.counts)):
        if not vector(c, clicks, films, how, own, out):
            return c
    return -1


@compiled()
def all_gradients(
    clicks: Clicks,
    films: Films,
    how: Strength,
    out: np.ndarray,
    item: np.ndarray,
    losses: np.ndarray,
) -> int:
    """The same, with the rows that clients send end to end, item (n, D), and losses (C,)."""
    own, at = room(clicks, films.rows.shape[1]), 0
    for c in range(len(clicks.counts)):
        if not vector(c, clicks, films, how, own, out):
            return c
        losses[c] = gradients(c, clicks, films, how, own, out, item, at)
        at += clicks.counts[c]
    return -1


@compiled()
def add(
    c: int, clicks: Clicks, sent: np.ndarray, outer: np.ndarray, same: np.ndarray, sums: Sums
) -> None:
    """Note the length of what a client sends, sent (N, D) and outer (1, D D); add up what counts.

    same (N,): zeros.
    """
    first, count, squares = clicks.starts[c], clicks.counts[c], np.zeros(2)
    add_squares(squares[:1], same[:count], sent)
    add_squares(squares[1:], same[:1], outer)
    sums.lengths[c] = math.sqrt(squares[0] + squares[1] + count * sums.click * sums.click)
    fine = sums.lengths[c] <= sums.longest and abs(sums.losses[c]) < np.inf
    if not (fine and sums.weights[c] > 0):
        return
    item, gram, weight = sums.item, sums.gram, sums.weights[c]
    for k in range(count):
        row = clicks.items[first + k]
        for j in range(item.shape[1]):
            item[row, j] += sent[k, j] * weight
        sums.clicks[row] += np.float32(sums.click) * weight
    for j in range(gram.shape[1]):
        gram[0, j] += outer[0, j] * weight


@compiled()
def all_summed(clicks: Clicks, films: Films, how: Strength, out: np.ndarray, sums: Sums) -> int:
    """The same, with what clients send added up, client after client."""
    dims = films.rows.shape[1]
    own, outer = room(clicks, dims), np.empty((1, dims * dims), np.float32)
    same = np.zeros(len(own.near), np.int64)
    for c in range(len(clicks.counts)):
        if not vector(c, clicks, films, how, own, out):
            return c
        sums.losses[c] = gradients(c, clicks, films, how, own, out, own.near, 0)
        for i in range(dims):
            for j in range(dims):
                outer[0, i * dims + j] = out[c, i] * out[c, j]
        add(c, clicks, own.near, outer, same, sums)
    return -1


class Compiled:
    """Solves for clients' vectors by the loops of this file; items (I, D) on the CPU, float32."""

    def __init__(self, items: Tensor, how: Strength) -> None:
        """Rotate the items once for all clients."""
        fine = items.double()
        gram = fine.T @ fine
        if bool(gram.isfinite().all()):
            squares, axes = torch.linalg.eigh(gram)
        else:
            squares, axes = gram.diagonal(), torch.eye(len(gram), dtype=gram.dtype)
        turned = (fine @ axes).float()
        axes = axes.T.float().contiguous()
        parts = items.detach(), turned, axes, squares.clamp(min=0).float()
        self.films, self.how = Films(*(part.numpy() for part in parts)), how

    def vectors(self, clicks: Clicks) -> Tensor:
        """The clients' vectors (C, D)."""
        out = self._empty(len(clicks.counts))
        self._check(all_vectors(clicks, self.films, self.how, out), clicks)
        return torch.from_numpy(out)

    def gradients(self, clicks: Clicks) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors (C, D), negative half gradients of the items clicked (n, D), losses (C,)."""
        out, item = self._empty(len(clicks.counts)), self._empty(int(clicks.counts.sum()))
        losses = np.empty(len(out), np.float32)
        self._check(all_gradients(clicks, self.films, self.how, out, item, losses), clicks)
        return torch.from_numpy(out), torch.from_numpy(item), torch.from_numpy(losses)

    def summed(self, clicks: Clicks, weights: Tensor, longest: float) -> tuple[Tensor, Sums]:
        """The vectors (C, D), and weighted sums of what clients send; see `Local.train_summed`."""
        (size, dims), clients = self.films.rows.shape, len(clicks.counts)
        out = self._empty(clients)
        sums = Sums(
            item=np.zeros((size, dims), np.float32),
            clicks=np.zeros(size, np.float32),
            gram=np.zeros((1, dims * dims), np.float32),
            weights=weights.numpy(),
            lengths=np.zeros(clients),
            losses=np.zeros(clients, np.float32),
            click=CLICK,
            longest=longest,
        )
        self._check(all_summed(clicks, self.films, self.how, out, sums), clicks)
        return torch.from_numpy(out), sums

    def _empty(self, height: int) -> np.ndarray:
        return np.empty((height, self.films.rows.shape[1]), np.float32)

    def _check(self, bad: int, clicks: Clicks) -> None:
        """Raise `ParameterError` where a client has an item that the model has not."""
        if bad >= 0:
            own = clicks.items[clicks.starts[bad] :][: clicks.counts[bad]]
            require(
                False,
                "item",
                int(own.min()) if own.min() < 0 else int(own.max()),
                f"the model has {len(self.films.rows)} rows of items, counted from 0",
            )
