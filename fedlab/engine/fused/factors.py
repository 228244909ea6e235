"""Matrix factorisation on a client: all of its local steps in the cache, compiled.

A client keeps how far its rows have moved, not where they are: what it sends needs no subtraction.
An item's row that one example has touched has moved along its user's row, as far as its bias has;
so this row is not written at all: the step is noted, and a client keeps its user's rows. Most rows
stay so, and a sum over clients reads a fraction of the memory.

Letters: C clients of a piece, n examples of all of them, I items, R rows of items that a client
holds, S of users, D dimensions, B examples of a batch, T steps of a client.
"""

import math
from typing import NamedTuple

import numpy as np

from fedlab.core.loops.cpu import ANY_ORDER, compiled
from fedlab.engine.fused.draws import Examples, Held, number
from fedlab.engine.fused.rules import adam, batch_of, corrected, slopes, widest


class Server(NamedTuple):
    """What clients begin from: item (I, D), bias (I,), and the users' rows user (S, D)."""

    item: np.ndarray
    bias: np.ndarray
    user: np.ndarray


class Client(NamedTuple):
    """What clients have learned, one of them or several end to end.

    ids (R,): rows of items. bias (R,): how far their biases have moved, and item (R, D) their
    vectors where once (R,) is -1. Where it is 0, the row has not moved; above 0, only step once - 1
    has moved it: by its bias times that step's row of past (T, D), the user's rows at the
    beginning of each step. user (S, D): where the users' rows are. age (R,): up to which step an
    item's row is settled, where all rows move. shift_item, shift_bias, shift_user: of the same
    shapes, what SCAFFOLD adds in each step, or empty.
    """

    ids: np.ndarray
    item: np.ndarray
    bias: np.ndarray
    once: np.ndarray
    past: np.ndarray
    user: np.ndarray
    age: np.ndarray
    shift_item: np.ndarray
    shift_bias: np.ndarray
    shift_user: np.ndarray


class Numbers(NamedTuple):
    """The settings of a step.

    batch: examples, 0 for all. rate, decay, pull: of a step, decay times the rate. adaptive: AdamW.
    lazy: whether rows that no example touches move, too. keep_user, pull_user: what a step keeps of
    a user's row, and adds of where it began. powers, sums (T + 1,): k^t and 1 + ... + k^(t-1),
    where a step keeps k of how far an item's row has moved.
    """

    epochs: int
    batch: int
    clicks: bool
    adaptive: bool
    lazy: bool
    rate: float
    decay: float
    pull: float
    keep_user: float
    pull_user: float
    powers: np.ndarray
    sums: np.ndarray


class Moments(NamedTuple):
    """What AdamW keeps of a client for a round: sums of gradients, and its moments."""

    item: np.ndarray
    item_mean: np.ndarray
    item_square: np.ndarray
    bias: np.ndarray
    bias_mean: np.ndarray
    bias_square: np.ndarray
    user: np.ndarray
    user_mean: np.ndarray
    user_square: np.ndarray


@compiled(fastmath=ANY_ORDER)
def settled(mine: Client, server: Server, rows: np.ndarray, numbers: Numbers, step: int) -> None:
    """Bring items' rows to where they are at the beginning of a step, after those they sat out.

    A step moves a row to k times how far it is, less the decay of where it began.
    """
    item, bias, age, table, start = mine.item, mine.bias, mine.age, server.item, server.bias
    for row in rows:
        steps = step - age[row]
        if steps > 0:
            i, age[row], keep, share = (
                mine.ids[row],
                step,
                numbers.powers[steps],
                numbers.sums[steps],
            )
            lost = np.float32(numbers.decay) * share
            bias[row] = bias[row] * keep - lost * start[i]
            for j in range(item.shape[1]):
                item[row, j] = item[row, j] * keep - lost * table[i, j]
            if len(mine.shift_item):
                bias[row] += mine.shift_bias[row] * share
                for j in range(item.shape[1]):
                    item[row, j] += mine.shift_item[row, j] * share


@compiled(fastmath=ANY_ORDER)
def move_users(mine: Client, begin: np.ndarray, numbers: Numbers) -> None:
    """What a step does to users' rows besides the examples; begin (S, D): where they began."""
    user, keep, pull = mine.user, np.float32(numbers.keep_user), np.float32(numbers.pull_user)
    for u in range(len(user)):
        for j in range(user.shape[1]):
            user[u, j] = user[u, j] * keep + begin[u, j] * pull
    shift = mine.shift_user
    for u in range(len(shift)):
        for j in range(user.shape[1]):
            user[u, j] += shift[u, j]


@compiled()
def follow(user: np.ndarray, change: np.ndarray, who: np.ndarray) -> None:
    """Add what has gathered in change (S, D) to the rows of a batch's users, and empty it."""
    for k in range(len(who) if len(user) > 1 else 1):
        u = who[k]
        for j in range(user.shape[1]):
            user[u, j] += change[u, j]
            change[u, j] = 0


@compiled()
def taken(mine: Client, server: Server, what: np.ndarray, here: np.ndarray, y: np.ndarray) -> None:
    """Write a batch's items' rows as they are now, here (B, D), and their biases, y (B,)."""
    item, bias, once, past, table = mine.item, mine.bias, mine.once, mine.past, server.item
    for k in range(len(y)):
        r = what[k]
        i, moved, step = mine.ids[r], bias[r], once[r] - 1
        y[k] = server.bias[i] + moved
        if step == -1:
            for j in range(here.shape[1]):
                here[k, j] = table[i, j]
        elif step >= 0:
            for j in range(here.shape[1]):
                here[k, j] = table[i, j] + moved * past[step, j]
        else:
            for j in range(here.shape[1]):
                here[k, j] = table[i, j] + item[r, j]


@compiled(fastmath=ANY_ORDER)
def predict(user: np.ndarray, here: np.ndarray, who: np.ndarray, y: np.ndarray) -> None:
    """Add to y (B,) the products of the users' rows who (B,) and the items' rows here (B, D)."""
    for k in range(len(y)):
        u, total = who[k], np.float32(0)
        for j in range(here.shape[1]):
            total += user[u, j] * here[k, j]
        y[k] += total


@compiled(fastmath=ANY_ORDER)
def gather(change: np.ndarray, here: np.ndarray, who: np.ndarray, g: np.ndarray) -> None:
    """Add to the rows who (B,) of change each example's slope g (B,) times its row of here."""
    if len(change) > 1:
        for k in range(len(g)):
            u, slope = who[k], g[k]
            for j in range(here.shape[1]):
                change[u, j] += slope * here[k, j]
        return
    four = len(g) // 4 * 4  # one row: four examples at a time take a third of the time
    for k in range(0, four, 4):
        p, q, r, s = g[k], g[k + 1], g[k + 2], g[k + 3]
        for j in range(here.shape[1]):
            change[0, j] += (
                p * here[k, j] + q * here[k + 1, j] + r * here[k + 2, j] + s * here[k + 3, j]
            )
    for k in range(four, len(g)):
        slope = g[k]
        for j in range(here.shape[1]):
            change[0, j] += slope * here[k, j]


@compiled()
def spread(
    item: np.ndarray,
    bias: np.ndarray,
    user: np.ndarray,
    what: np.ndarray,
    who: np.ndarray,
    g: np.ndarray,
) -> None:
    """Add to the items' rows what (B,) each example's slope g (B,) times its user's row."""
    for k in range(len(g)):
        r, u, slope = what[k], who[k], g[k]
        bias[r] += slope
        for j in range(item.shape[1]):
            item[r, j] += slope * user[u, j]


@compiled()
def noted(mine: Client, what: np.ndarray, who: np.ndarray, g: np.ndarray, step: int) -> None:
    """The same where only examples move rows: what the first one does to a row is noted."""
    item, bias, once, past, user = mine.item, mine.bias, mine.once, mine.past, mine.user
    for k in range(len(g)):
        r, u, slope = what[k], who[k], g[k]
        before, moved = once[r], bias[r]
        bias[r] = moved + slope
        if before == 0 and len(past):
            once[r] = step + 1
        elif before == 0:
            once[r] = -1
            for j in range(item.shape[1]):
                item[r, j] = slope * user[u, j]
        elif before > 0:
            once[r] = -1
            for j in range(item.shape[1]):
                item[r, j] = moved * past[before - 1, j] + slope * user[u, j]
        else:
            for j in range(item.shape[1]):
                item[r, j] += slope * user[u, j]


@compiled()
def written(mine: Client, r: int, out: np.ndarray) -> None:
    """Write how far an item's row has moved, which was only noted, to out (D,)."""
    step, moved, past = mine.once[r] - 1, mine.bias[r], mine.past
    for j in range(len(out)):
        out[j] = moved * past[step, j]


@compiled(fastmath=ANY_ORDER)
def sgd(
    mine: Client,
    server: Server,
    what: np.ndarray,
    who: np.ndarray,
    target: np.ndarray,
    numbers: Numbers,
    here: np.ndarray,
    g: np.ndarray,
) -> float:
    """Train a client; returns its mean loss over the steps.

    what, who, target (n,): its examples, by the numbers of its rows. here, g: scratch for a batch.
    All gradients of a step are those before it.
    """
    user, change = mine.user, np.zeros_like(mine.user)
    count, losses = len(what) // numbers.epochs, 0.0
    batch = min(numbers.batch, count) if numbers.batch else count
    steps = numbers.epochs * ((count + batch - 1) // batch)
    for step in range(steps):
        first, last = batch_of(step, count, batch)
        u, i, y = who[first:last], what[first:last], g[: last - first]
        if len(mine.past):
            mine.past[step] = user[0]
        if numbers.lazy:
            settled(mine, server, i, numbers, step)
        taken(mine, server, i, here, y)
        predict(user, here, u, y)
        losses += slopes(y, target[first:last], numbers.clicks) / len(y)
        rate = np.float32(-numbers.rate / len(y))
        for k in range(len(y)):
            y[k] *= rate
        gather(change, here, u, y)
        if numbers.lazy:
            settled(mine, server, i, numbers, step + 1)
            spread(mine.item, mine.bias, user, i, u, y)
            move_users(mine, server.user, numbers)
        else:
            noted(mine, i, u, y, step)
        follow(user, change, u)
    if numbers.lazy:
        settled(mine, server, np.arange(len(mine.bias)), numbers, steps)
    return losses / steps


@compiled(fastmath=ANY_ORDER)
def adamw(
    mine: Client,
    server: Server,
    what: np.ndarray,
    who: np.ndarray,
    target: np.ndarray,
    numbers: Numbers,
    here: np.ndarray,
    g: np.ndarray,
) -> float:
    """The same by AdamW, where all rows move in each step."""
    count, losses = len(what) // numbers.epochs, 0.0
    batch = min(numbers.batch, count) if numbers.batch else count
    steps = numbers.epochs * ((count + batch - 1) // batch)
    item, bias, user = mine.item, mine.bias.reshape((-1, 1)), mine.user
    moved = user - server.user
    m = Moments(
        np.zeros_like(item),
        np.zeros_like(item),
        np.zeros_like(item),
        np.zeros_like(bias),
        np.zeros_like(bias),
        np.zeros_like(bias),
        np.zeros_like(user),
        np.zeros_like(user),
        np.zeros_like(user),
    )
    everyone, slope = np.arange(len(user)), m.bias[:, 0]
    for step in range(steps):
        first, last = batch_of(step, count, batch)
        u, i, y = who[first:last], what[first:last], g[: last - first]
        taken(mine, server, i, here, y)
        predict(user, here, u, y)
        losses += slopes(y, target[first:last], numbers.clicks) / len(y)
        for k in range(len(y)):
            y[k] /= np.float32(len(y))
        gather(m.user, here, u, y)
        spread(m.item, slope, user, i, u, y)
        rates = corrected(step, numbers.rate)
        how = (rates, numbers.decay, numbers.pull)
        adam(item, server.item, mine.ids, m.item, m.item_mean, m.item_square, *how)
        start = server.bias.reshape((-1, 1))
        adam(bias, start, mine.ids, m.bias, m.bias_mean, m.bias_square, *how)
        own = (rates, numbers.decay, numbers.pull_user)
        adam(moved, server.user, everyone, m.user, m.user_mean, m.user_square, *own)
        user[:] = server.user + moved
    return losses / steps


@compiled()
def fit(
    mine: Client,
    server: Server,
    examples: Examples,
    first: int,
    last: int,
    numbers: Numbers,
    here: np.ndarray,
    g: np.ndarray,
) -> float:
    """Train a client on examples first..last - 1, with the numbers of its rows in their place."""
    mine.bias[:], mine.user[:], mine.once[:] = 0, server.user, 0
    if numbers.lazy or numbers.adaptive:
        mine.item[:], mine.age[:], mine.once[:] = 0, 0, -1
    what, who = examples.item[first:last], examples.user[first:last]
    how = (mine, server, what, who, examples.target[first:last], numbers, here, g)
    loss = adamw(*how) if numbers.adaptive else sgd(*how)
    mine.user[:] -= server.user
    return loss


@compiled()
def scratch(examples: Examples, numbers: Numbers, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Room for the largest batch: items' rows (B, D), and predictions (B,)."""
    wide = widest(examples.offsets, numbers.epochs, numbers.batch)
    return np.empty((wide, dims), np.float32), np.empty(wide, np.float32)


@compiled()
def one(c: int, items: Held, users: Held, out: Client, steps: np.ndarray) -> Client:
    """What client c has learned, of several end to end; steps (C + 1,): where those of each begin.

    Only a client with one user, and with rows that nothing but examples moves, has a past.
    """
    a, b, s, t = items.first[c], items.first[c + 1], users.first[c], users.first[c + 1]
    alone = t - s == 1 and len(out.past) > 0
    p, q = (steps[c], steps[c + 1]) if alone else (0, 0)
    return Client(
        out.ids[a:b],
        out.item[a:b],
        out.bias[a:b],
        out.once[a:b],
        out.past[p:q],
        out.user[s:t],
        out.age[a:b],
        out.shift_item[a:b],
        out.shift_bias[a:b],
        out.shift_user[s:t],
    )


@compiled()
def clients(
    examples: Examples,
    items: Held,
    users: Held,
    server: Server,
    out: Client,
    steps: np.ndarray,
    numbers: Numbers,
    losses: np.ndarray,
) -> None:
    """Train clients: how far their rows move to `out`, their mean losses to losses (C,).

    examples: with the numbers of rows in place of the rows. server: its tables of items; of users
    the rows (S, D) that these clients hold. steps: as `one` takes them.
    """
    here, g = scratch(examples, numbers, out.item.shape[1])
    for c in range(len(losses)):
        mine = one(c, items, users, out, steps)
        begin = Server(server.item, server.bias, server.user[users.first[c] : users.first[c + 1]])
        first, last = examples.offsets[c], examples.offsets[c + 1]
        losses[c] = fit(mine, begin, examples, first, last, numbers, here, g)


@compiled()
def whole(items: Held, users: Held, out: Client, steps: np.ndarray) -> None:
    """Write all items' rows of clients where they were only noted."""
    for c in range(len(items.first) - 1):
        mine = one(c, items, users, out, steps)
        for r in range(len(mine.ids)):
            if mine.once[r] > 0:
                written(mine, r, mine.item[r])


class Sums(NamedTuple):
    """Where clients' deltas are added up.

    item, bias: (I, ...), or fewer rows, those of the items ids in the order in which they came;
    slot (I,) int32 tells the row of an item, -1 for none yet; used (1,): how many there are.
    """

    item: np.ndarray
    bias: np.ndarray
    ids: np.ndarray
    slot: np.ndarray
    used: np.ndarray


class Told(NamedTuple):
    """What is told of each client: weights, lengths, losses (C,), rows (C,), how many it sends.

    longest: the length from which a client is left out. user: whether users' rows are sent, too,
    and count in the length.
    """

    weights: np.ndarray
    lengths: np.ndarray
    losses: np.ndarray
    rows: np.ndarray
    longest: float
    user: bool


@compiled()
def room(sums: Sums, item: int) -> int:
    """The row of an item in sums that have room for few: its own, or the next."""
    if sums.slot[item] < 0:
        sums.slot[item], sums.ids[sums.used[0]] = sums.used[0], item
        sums.used[0] += 1
    return sums.slot[item]


@compiled()
def add(mine: Client, weight: float, sums: Sums) -> None:
    """Add a client's rows times its weight to the sums, in their order."""
    item, bias, once, past = mine.item, mine.bias, mine.once, mine.past
    into, level, share = sums.item, sums.bias, np.float32(weight)
    for r in range(len(mine.ids)):
        row, step, moved = mine.ids[r], once[r] - 1, bias[r]
        if len(sums.slot):
            row = room(sums, row)
        level[row] += moved * share
        if step >= 0:
            for j in range(into.shape[1]):
                into[row, j] += moved * past[step, j] * share
        else:
            for j in range(into.shape[1]):
                into[row, j] += item[r, j] * share


@compiled(fastmath=ANY_ORDER)
def square(row: np.ndarray) -> float:
    """The sum of the squares of a row (D,), as `add_squares` takes it."""
    total = 0.0
    for j in range(len(row)):
        number = np.float64(row[j])
        total += number * number
    return total


@compiled()
def length(mine: Client, user: bool) -> float:
    """The L2 norm of what a client sends; user: whether its users' rows are sent, too."""
    rows, levels, users, past = 0.0, 0.0, 0.0, np.empty(len(mine.past))
    for step in range(len(past)):
        past[step] = square(mine.past[step])
    for r in range(len(mine.ids)):
        level = np.float64(mine.bias[r])
        levels += level * level
        if mine.once[r] > 0:
            rows += level * level * past[mine.once[r] - 1]
        else:
            rows += square(mine.item[r])
    for u in range(len(mine.user) if user else 0):
        users += square(mine.user[u])
    return math.sqrt(users + rows + levels)


@compiled()
def counts(c: int, told: Told) -> bool:
    """Whether a client counts in the sums."""
    fine = told.lengths[c] <= told.longest and abs(told.losses[c]) < np.inf
    return fine and told.weights[c] > 0


@compiled()
def summed(
    examples: Examples,
    users: Held,
    server: Server,
    out: Client,
    numbers: Numbers,
    sums: Sums,
    told: Told,
) -> None:
    """Train clients one after another and add up those that count; see `clients`.

    out: of users the rows of all clients; of items, and of the past, room for those of one.
    """
    size, dims = len(server.item), out.item.shape[1]
    bits, top = np.zeros((size >> 6) + 1, np.uint64), np.zeros((size >> 12) + 1, np.uint64)
    place, (here, g) = np.empty(size, np.int32), scratch(examples, numbers, dims)
    for c in range(len(told.losses)):
        first, last = examples.offsets[c], examples.offsets[c + 1]
        s, t = users.first[c], users.first[c + 1]
        r = number(examples.item[first:last], 0, last - first, bits, top, place, out.ids)
        past = out.past if t - s == 1 else out.past[:0]
        mine = Client(
            out.ids[:r],
            out.item[:r],
            out.bias[:r],
            out.once[:r],
            past,
            out.user[s:t],
            out.age[:r],
            out.shift_item,
            out.shift_bias,
            out.shift_user,
        )
        begin = Server(server.item, server.bias, server.user[s:t])
        told.losses[c] = fit(mine, begin, examples, first, last, numbers, here, g)
        told.rows[c], told.lengths[c] = r, length(mine, told.user)
        if counts(c, told):
            add(mine, told.weights[c], sums)


@compiled()
def emptied(sums: Sums, total: Sums) -> None:
    """Add sums of some clients to those of all, and leave them empty."""
    some = len(sums.slot) > 0
    for r in range(sums.used[0] if some else len(sums.item)):
        row = sums.ids[r] if some else r
        if some:
            sums.slot[row] = -1
        if len(total.slot):
            row = room(total, row)
        total.bias[row] += sums.bias[r]
        sums.bias[r] = 0
        for j in range(total.item.shape[1]):
            total.item[row, j] += sums.item[r, j]
            sums.item[r, j] = 0
    sums.used[0] = 0
