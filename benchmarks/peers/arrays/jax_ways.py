"""JAX: a round as one compiled call on the arrays of all clients, in the ways that one would try.

The job decides what is trained, a further argument how:

vmap: `jit(vmap(scan))`, all clients side by side. scan: a loop over clients of a loop over batches,
so that a client stays in the cache. flat: matrix factorisation with the rows of all clients as one
table, which each step gathers from and adds to. lanes: the same for users of unequal length, a step
taking a batch of each of 8 lanes of whole clients. With 'hand' the perceptron's gradient is by
hand, as that of matrix factorisation always is. Users of unequal length are drawn and batched by
numpy, and loops are as long as there are batches, so nothing compiles twice. Buffers are given
away, so that tables are updated where they lie; nothing but the parameters is worked out.

Letters: as in draws.py, and D dimensions, W lanes.
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
LANES = 8
weights = {name: jnp.asarray(value) for name, value in job.weights.items()}


def epoch(step: Callable, state, order, unroll: int = 1):
    """Take a step for each batch of an order (..., n), of which the last may be shorter."""
    whole = order.shape[-1] // B * B
    cuts = jnp.moveaxis(order[..., :whole].reshape(*order.shape[:-1], -1, B), -2, 0)
    state, _ = lax.scan(lambda now, cut: (step(now, cut), None), state, cuts, unroll=unroll)
    return step(state, order[..., whole:]) if whole < order.shape[-1] else state


def loss(p, x, target):
    """Mean cross-entropy of the perceptron, first.weight (inputs, hidden)."""
    h = jax.nn.relu(x @ p["first.weight"] + p["first.bias"])
    y = h @ p["second.weight"][0] + p["second.bias"][0]
    return jnp.mean(jnp.maximum(y, 0) - y * target + jnp.log1p(jnp.exp(-jnp.abs(y))))


def step_by_grad(p, x, target):
    """A step of the perceptron with JAX's own gradient."""
    return jax.tree.map(lambda w, d: w - job.rate * d, p, jax.grad(loss)(p, x, target))


def step_by_hand(p, x, target):
    """The same with the gradient by hand."""
    a = x @ p["first.weight"] + p["first.bias"]
    h, w2 = jax.nn.relu(a), p["second.weight"]
    g = (jax.nn.sigmoid(h @ w2[0] + p["second.bias"][0]) - target) * (-job.rate / len(target))
    d = jnp.where(a > 0, g[:, None] * w2[0], 0)
    moves = {
        "first.weight": x.T @ d,
        "first.bias": d.sum(0),
        "second.weight": (g @ h)[None],
        "second.bias": g.sum()[None],
    }
    return {name: w + moves[name] for name, w in p.items()}


def perceptron() -> tuple[Callable, dict, Callable]:
    """(round, first state, its weights by name) of the perceptron."""
    x, target = (jnp.asarray(job.columns[name]) for name in ("x", "target"))
    take_step = step_by_hand if way.endswith("hand") else step_by_grad

    def client(p, x, target, order):
        return epoch(lambda now, cut: take_step(now, x[cut], target[cut]), p, order)

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

    run = {"vmap": side_by_side, "scan": one_by_one}[way.split()[0]]

    def step(p, cohort):
        return run(p, x, target, orders(rng, job.clients, job.examples))

    def turned(p):
        return p | {"first.weight": p["first.weight"].T}

    return step, turned(weights), turned


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

    def client(rows, bias, user, slot, target, order, unroll=1):
        def step(now, cut):
            return factor_step(now, slot[cut], target[cut], -job.rate / len(cut))

        return epoch(step, (rows, bias, user), order, unroll)

    def moved(tables, ids, ends, starts):
        return tuple(
            table.at[ids].add((end - start) * share)
            for table, end, start in zip(tables, ends, starts, strict=True)
        )

    def side_by_side(table, bias, users, item, slot, target, order):
        starts = table[item], bias[item]
        *ends, users = jax.vmap(client)(*starts, users, slot, target, order)
        return *moved((table, bias), item, ends, starts), users

    def one_by_one(table, bias, users, item, slot, target, order):
        def add(sums, own):
            user, ids, *more = own
            starts = table[ids], bias[ids]
            *ends, user = client(*starts, user, *more, unroll=job.examples // B)
            return moved(sums, ids, ends, starts), user

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
        return *moved((table, bias), ids, ends, starts), users

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
    return {"item.weight": state[0], "bias.weight": state[1][:, None], "user.weight": state[2]}


def ragged_clicks() -> tuple[Callable, tuple, Callable]:
    """(round, first state, its weights by name) of users with clicks and drawn items."""
    clicks = Clicks(job)
    run, longest = (nested, clicks.longest) if way == "scan" else (in_lanes, clicks.most)
    width = {"scan": 0, "flat": 1, "lanes": LANES}[way]

    def step(state, cohort):
        batches = clicks.draw(cohort)
        first = batches.first
        if width:  # whole clients to each lane, about as many batches to one as to another
            even = first[-1] * np.arange(1, width) / width
            first = np.concatenate([[0], first[np.searchsorted(first, even)], first[-1:]])
        return run(*state, cohort, first.astype(np.int32), *batches[:-1])

    held = jnp.zeros((longest * B, tables()[0].shape[1])), jnp.zeros(longest * B)
    return step, (*tables(), *held), named


def copied(k, held, ids, table, bias):
    """Rows and biases held, with those of the items ids (B,) at the place of batch k."""
    rows = lax.dynamic_update_slice(held[0], table[ids], (k * B, 0))
    return rows, lax.dynamic_update_slice(held[1], bias[ids], (k * B,))


def added(k, sums, ids, held, table, bias):
    """Sums, with the mean's share of what was learned at the place of batch k."""
    share = job.server_rate / job.cohort
    ends = lax.dynamic_slice(held[0], (k * B, 0), (B, table.shape[1]))
    biases = lax.dynamic_slice(held[1], (k * B,), (B,))
    rows = sums[0].at[ids].add((ends - table[ids]) * share)
    return rows, sums[1].at[ids].add((biases - bias[ids]) * share)


@partial(jax.jit, donate_argnums=(0, 1, 2, 3, 4))
def in_lanes(table, bias, users, rows, biases, cohort, lanes, item, slot, target, weight, owner):
    """A round of all clients' rows as one table: a step takes a batch of each lane.

    rows (most examples, D), biases: room for them. lanes (W + 1,): where the batches of each begin.
    """
    begin, end, used = lanes[:-1], lanes[1:], lanes[-1]

    def train(k, now):
        at = jnp.minimum(begin + k, len(owner) - 1)
        rate = weight[at] * jnp.where(begin + k < end, -job.rate, 0.0)[:, None]
        flat = (slot[at].reshape(-1), target[at].reshape(-1), rate.reshape(-1))
        return factor_step(now, *flat, owner[at])

    held = lax.fori_loop(
        0, used, lambda k, now: copied(k, now, item[k], table, bias), (rows, biases)
    )
    *held, mine = lax.fori_loop(0, (end - begin).max(), train, (*held, users[cohort]))
    sums = lax.fori_loop(
        0, used, lambda k, now: added(k, now, item[k], held, table, bias), (table, bias)
    )
    return *sums, users.at[cohort].set(mine), *held


@partial(jax.jit, donate_argnums=(0, 1, 2, 3, 4))
def nested(table, bias, users, rows, biases, cohort, first, item, slot, target, weight, owner):
    """A round of one client after the other, whose rows stay in the cache.

    rows (examples of the longest, D), biases: room for them. first (C + 1,): where the batches of
    each client begin.
    """

    def client(c, now):
        *sums, users, rows, biases = now
        begin, count = first[c], first[c + 1] - first[c]

        def train(k, now):
            at = begin + k
            return factor_step(now, slot[at] - begin * B, target[at], weight[at] * -job.rate)

        held = lax.fori_loop(
            0, count, lambda k, now: copied(k, now, item[begin + k], table, bias), (rows, biases)
        )
        *held, user = lax.fori_loop(0, count, train, (*held, users[cohort[c]]))
        sums = lax.fori_loop(
            0, count, lambda k, now: added(k, now, item[begin + k], held, table, bias), (*sums,)
        )
        return *sums, users.at[cohort[c]].set(user), *held

    return lax.fori_loop(0, len(cohort), client, (table, bias, users, rows, biases))


TRAINED = {"mlp": perceptron, "private": private_factors, "clicks": ragged_clicks}
take, first_state, names = TRAINED[job.model]()
states, cohorts = [first_state], iter(job.cohorts)


def one_round() -> None:
    """Take one round and wait for it."""
    states.append(jax.block_until_ready(take(states.pop(), next(cohorts))))


serve(one_round, lambda: {name: np.array(value) for name, value in names(states[0]).items()})
