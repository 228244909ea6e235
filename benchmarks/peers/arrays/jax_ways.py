"""JAX: a round as one compiled call on the arrays of all clients, in the ways that one would try.

The job decides what is trained, a further argument how:

vmap: `jit(vmap(scan))`, all clients side by side. scan: `jit(scan)` over clients of a scan over
batches, so that a client stays in the cache. flat: matrix factorisation with the rows of all
clients as one table, which each step gathers from and adds to. one, lanes: users of unequal
length; numpy draws and batches, and one loop as long as there are batches takes these one by one,
or one of each of 8 lanes of whole clients. Nothing compiles twice. Buffers are given away, so that
tables are updated where they lie.

Gradients of matrix factorisation are by hand, as they are three lines; nothing but the parameters
is worked out. Letters: as in draws.py, and D dimensions, W lanes.
"""

import sys
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from arrays.draws import Clicks, orders, slots
from jax import lax
from protocol import read_job, serve

job, way = read_job(), sys.argv[3]
rng, B = np.random.default_rng(0), job.batch
BLOCK = 512  # examples whose rows are copied at a time
weights = {name: jnp.asarray(value) for name, value in job.weights.items()}


def epoch(step: Callable, state, order):
    """Take a step for each batch of an order (..., n), of which the last may be shorter."""
    whole = order.shape[-1] // B * B
    cuts = jnp.moveaxis(order[..., :whole].reshape(*order.shape[:-1], -1, B), -2, 0)
    state, _ = lax.scan(lambda now, cut: (step(now, cut), None), state, cuts)
    return step(state, order[..., whole:]) if whole < order.shape[-1] else state


def perceptron() -> tuple[Callable, dict, Callable]:
    """(round, first state, its weights by name) of the perceptron."""
    x, target = (jnp.asarray(job.columns[name]) for name in ("x", "target"))

    def loss(p, x, target):
        h = jax.nn.relu(x @ p["first.weight"].T + p["first.bias"])
        y = h @ p["second.weight"][0] + p["second.bias"][0]
        return jnp.mean(jnp.maximum(y, 0) - y * target + jnp.log1p(jnp.exp(-jnp.abs(y))))

    def client(p, x, target, order):
        def step(now, cut):
            slope = jax.grad(loss)(now, x[cut], target[cut])
            return jax.tree.map(lambda w, d: w - job.rate * d, now, slope)

        return epoch(step, p, order)

    @partial(jax.jit, donate_argnums=0)
    def side_by_side(p, x, target, order):
        ends = jax.vmap(client, (None, 0, 0, 0))(p, x, target, order)
        return jax.tree.map(lambda w: w.mean(0), ends)

    @partial(jax.jit, donate_argnums=0)
    def one_by_one(p, x, target, order):
        def add(total, own):
            return jax.tree.map(jnp.add, total, client(p, *own)), None

        total, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, p), (x, target, order))
        return jax.tree.map(lambda w: w / job.clients, total)

    run = {"vmap": side_by_side, "scan": one_by_one}[way]

    def step(p, cohort):
        return run(p, x, target, orders(rng, job.clients, job.examples))

    return step, weights, lambda p: p


def factor_step(now, s, target, rate, owner=None):
    """A step of matrix factorisation: new rows, biases and users.

    now: rows (R, D), biases (R,), and one user (D,) or the users of the cohort (C, D). s (n,): the
    row of each example. rate: less its share of the batch's gradient. owner (W,): whose each of W
    runs of examples is; None for the one user.
    """
    rows, bias, users = now
    q = rows[s]
    p = users if owner is None else jnp.repeat(users[owner], len(s) // len(owner), axis=0)
    g = (jax.nn.sigmoid((q * p).sum(-1) + bias[s]) - target) * rate
    moves = g[:, None] * q
    if owner is None:
        moved = users + moves.sum(0)
    else:
        moved = users.at[owner].add(moves.reshape(len(owner), -1, q.shape[1]).sum(1))
    return rows.at[s].add(g[:, None] * p), bias.at[s].add(g), moved


def private_factors() -> tuple[Callable, tuple, Callable]:
    """(round, first state, its weights by name) of private users and shared items."""
    item, target = (jnp.asarray(job.columns[name]) for name in ("item", "target"))
    slot = jnp.asarray(slots(job.columns["item"]))
    share = 1 / job.clients

    def client(rows, bias, user, slot, target, order):
        def step(now, cut):
            return factor_step(now, slot[cut], target[cut], -job.rate / len(cut))

        return epoch(step, (rows, bias, user), order)

    def added(tables, ids, ends, starts):
        return tuple(
            table.at[ids].add((end - start) * share)
            for table, end, start in zip(tables, ends, starts, strict=True)
        )

    def side_by_side(table, bias, users, item, slot, target, order):
        starts = table[item], bias[item]
        *ends, users = jax.vmap(client)(*starts, users, slot, target, order)
        return *added((table, bias), item, ends, starts), users

    def one_by_one(table, bias, users, item, slot, target, order):
        def add(sums, own):
            user, ids, *more = own
            starts = table[ids], bias[ids]
            *ends, user = client(*starts, user, *more)
            return added(sums, ids, ends, starts), user

        sums, users = lax.scan(add, (table, bias), (users, item, slot, target, order))
        return *sums, users

    def flat(table, bias, users, item, slot, target, order):
        each, ids = jnp.arange(job.clients), item.reshape(-1)
        base = each[:, None] * job.examples
        places, targets = (slot + base).reshape(-1), target.reshape(-1)

        def step(now, cut):
            at = (cut + base).reshape(-1)
            return factor_step(now, places[at], targets[at], -job.rate / cut.shape[-1], each)

        starts = table[ids], bias[ids]
        *ends, users = epoch(step, (*starts, users), order)
        return *added((table, bias), ids, ends, starts), users

    ways = {"vmap": side_by_side, "scan": one_by_one, "flat": flat}
    run = jax.jit(ways[way], donate_argnums=(0, 1, 2))

    def step(state, cohort):
        return run(*state, item, slot, target, orders(rng, job.clients, job.examples))

    return step, tables(), named


def tables() -> tuple:
    """Items, biases (I,) and users of the job's first weights."""
    return weights["item.weight"], weights["bias.weight"][:, 0], weights["user.weight"]


def named(state: tuple) -> dict:
    """The weights by name."""
    return {
        "item.weight": state[0],
        "bias.weight": state[1][:, None],
        "user.weight": state[2],
    }


def ragged_clicks() -> tuple[Callable, tuple, Callable]:
    """(round, first state, its weights by name) of users with clicks and drawn items."""
    clicks, width = Clicks(job), {"one": 1, "lanes": 8}[way]
    room = -(-clicks.most * B // BLOCK) * BLOCK
    step_size = job.server_rate / job.cohort

    def padded(flat):
        return jnp.zeros(room, flat.dtype).at[: flat.size].set(flat.reshape(-1))

    @partial(jax.jit, donate_argnums=(0, 1, 2, 3, 4))
    def run(table, bias, users, rows, biases, cohort, lanes, item, slot, target, weight, owner):
        ids, (begin, end, used) = padded(item), lanes

        def copy(k, held):
            own = lax.dynamic_slice(ids, (k * BLOCK,), (BLOCK,))
            return (
                lax.dynamic_update_slice(held[0], table[own], (k * BLOCK, 0)),
                lax.dynamic_update_slice(held[1], bias[own], (k * BLOCK,)),
            )

        def train(k, now):
            at = jnp.minimum(begin + k, len(owner) - 1)
            rate = weight[at] * jnp.where(begin + k < end, -job.rate, 0.0)[:, None]
            flat = (slot[at].reshape(-1), target[at].reshape(-1), rate.reshape(-1))
            return factor_step(now, *flat, owner[at])

        def add(k, sums):
            own = lax.dynamic_slice(ids, (k * BLOCK,), (BLOCK,))
            ends = (
                lax.dynamic_slice(rows, (k * BLOCK, 0), (BLOCK, rows.shape[1])),
                lax.dynamic_slice(biases, (k * BLOCK,), (BLOCK,)),
            )
            return (
                sums[0].at[own].add((ends[0] - table[own]) * step_size),
                sums[1].at[own].add((ends[1] - bias[own]) * step_size),
            )

        rows, biases = lax.fori_loop(0, used[0], copy, (rows, biases))
        longest = (end - begin).max()
        rows, biases, mine = lax.fori_loop(0, longest, train, (rows, biases, users[cohort]))
        new = lax.fori_loop(0, used[0], add, (table, bias))
        return *new, users.at[cohort].set(mine), rows, biases

    def step(state, cohort):
        *batches, first = clicks.draw(cohort)
        # whole clients to each lane, about as many batches to one as to another
        even = first[-1] * np.arange(1, width) / width
        cuts = np.concatenate([[0], first[np.searchsorted(first, even)], first[-1:]])
        # the rows past the last batch are those of an earlier round: they do not move
        used = np.array([-(-int(first[-1]) * B // BLOCK)])
        lanes = cuts[:-1].astype(np.int32), cuts[1:].astype(np.int32), used.astype(np.int32)
        return run(*state, cohort, lanes, *batches)

    held = jnp.zeros((room, tables()[0].shape[1])), jnp.zeros(room)
    return step, (*tables(), *held), named


TRAINED = {"mlp": perceptron, "private": private_factors, "clicks": ragged_clicks}
take, first_state, names = TRAINED[job.model]()
states, cohorts = [first_state], iter(job.cohorts)


def one_round() -> None:
    """Take one round and wait for it."""
    states.append(jax.block_until_ready(take(states.pop(), next(cohorts))))


serve(one_round, lambda: {name: np.array(value) for name, value in names(states[0]).items()})
