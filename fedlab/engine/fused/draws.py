"""The examples of a block of clients, drawn as the data themselves draw them, and their rows.

Word for word these are the draws of `Federation.draw` and `Columns.draw`: the same negatives in the
same order. What differs is how: client after client, in the cache, with nothing sorted at large.

Letters: C clients of a block, n examples of all of them, N clients of the data, m rows of all of
these, I items.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic

from fedlab.core.loops.cpu import compiled
from fedlab.core.randomness import MULTIPLIERS, ROUNDS, WEYL

M0, M1 = (np.uint64(word) for word in MULTIPLIERS)
W0, W1 = (np.uint64(word) for word in WEYL)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
ONE, SIX, INSIDE = np.uint64(1), np.uint64(6), np.uint64(63)
CLICK, TOP = np.uint32(1 << 31), np.uint32(31)


class Rows(NamedTuple):
    """The data's own rows, client after client, by user and item within each.

    starts, counts (N,): where the rows of each client begin, and how many it has. user, item (m,)
    int32; user is empty where client and user are one.
    """

    starts: np.ndarray
    counts: np.ndarray
    user: np.ndarray
    item: np.ndarray


class Examples(NamedTuple):
    """What clients train on, client after client and epoch after epoch.

    offsets (C + 1,): where those of each client begin. user, item (n,) int32; target (n,) float32.
    """

    offsets: np.ndarray
    user: np.ndarray
    item: np.ndarray
    target: np.ndarray


class Held(NamedTuple):
    """Which rows of a table clients hold, client after client, growing within each.

    first (C + 1,): where those of each begin. rows, client (R,) int64: the row, and whose it is.
    """

    first: np.ndarray
    rows: np.ndarray
    client: np.ndarray


class Luck(NamedTuple):
    """Room for what one client draws: words for its order and its negatives, and how it sorts."""

    order: np.ndarray
    rank: np.ndarray
    ends: np.ndarray
    lots: np.ndarray
    near: np.ndarray
    item: np.ndarray


@intrinsic
def lowest_bit(typing: Any, word: Any) -> Any:
    """The number of the lowest bit that is set in a word."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), code


@compiled()
def words(client: int, count: int, key: np.ndarray, out: np.ndarray) -> None:
    """Write words 0 to count - 1 of a client, as `Key.runs` gives them.

    key (2,) uint64: its halves. out: uint32, with room for `count` rounded up to a multiple of 4.
    The loop compiles to vectors: half a nanosecond a word.
    """
    low, high = np.uint64(client) & LOW, np.uint64(client) >> HALF
    for block in range((count + 3) >> 2):
        c0, c1, c2, c3 = np.uint64(block) & LOW, np.uint64(block) >> HALF, low, high
        a, b = key[0], key[1]
        for _ in range(ROUNDS):
            p0, p1 = M0 * c0, M1 * c2
            c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ a, p1 & LOW, (p0 >> HALF) ^ c3 ^ b, p0 & LOW
            a, b = (a + W0) & LOW, (b + W1) & LOW
        at = block << 2
        out[at], out[at + 1], out[at + 2], out[at + 3] = c0, c1, c2, c3


@compiled()
def shuffle(luck: np.ndarray, count: int, ends: np.ndarray, lots: np.ndarray) -> None:
    """Sort `count` lots by luck, those of the same luck by place, into lots uint64.

    The low half of a lot is the place, the high half its luck. As luck is uniform, a bucket for
    each lot holds about one: lots go to their buckets in order, and insertion does the rest. ends:
    int32, room for 4 numbers for each lot, and 4.
    """
    bits = 1
    while (1 << bits) < count:
        bits += 1
    shift = np.uint32(32 - bits)
    ends[: (1 << bits) + 1] = 0
    for k in range(count):
        ends[(luck[k] >> shift) + 1] += 1
    for bucket in range(1 << bits):
        ends[bucket + 1] += ends[bucket]
    for k in range(count):
        bucket = luck[k] >> shift
        lots[ends[bucket]] = (np.uint64(luck[k]) << HALF) | np.uint64(k)
        ends[bucket] += 1
    for k in range(1, count):
        lot, at = lots[k], k
        while at > 0 and lots[at - 1] > lot:
            lots[at] = lots[at - 1]
            at -= 1
        lots[at] = lot


@compiled()
def find(item: np.ndarray, first: int, last: int, free: int, near: np.ndarray) -> int:
    """Write where a search begins for a rank among the `free` items not in item[first:last].

    Among the items that a user has not seen, that of rank r is r + (seen items with at most r
    unseen ones before them). near: int32, room for 4 numbers for each seen item, and 4. Returns by
    how many bits a rank is shifted to find its place in `near`.
    """
    shift = 0
    while (free >> shift) > 2 * (last - first):
        shift += 1
    k = first
    for place in range((free >> shift) + 1):
        while k < last and item[k] - (k - first) <= place << shift:
            k += 1
        near[place] = k
    return shift


@compiled()
def beside(
    rows: Rows, begin: int, count: int, items: int, negatives: int, used: int, luck: Luck
) -> None:
    """Write a client's clicks, each with its negatives behind it, to luck.item.

    The highest bit tells a click. used: how many of luck.rank earlier epochs have used.
    """
    item, near, rank, out = rows.item, luck.near, luck.rank, luck.item
    first, last, shift, free, at = begin, begin, 0, np.uint64(0), 0
    for row in range(begin, begin + count):
        if row == last:  # the first row of a user
            first, last = row, begin + count
            if len(rows.user):
                last = row + 1
                while last < begin + count and rows.user[last] == rows.user[row]:
                    last += 1
            free = np.uint64(items - (last - first))
            shift = find(item, first, last, items - (last - first), near)
        out[at] = np.uint32(item[row]) | CLICK
        at += 1
        for _ in range(negatives):
            place = np.int64((np.uint64(rank[used]) * free) >> HALF)
            used += 1
            k = near[place >> shift]
            while k < last and item[k] - (k - first) <= place:
                k += 1
            out[at] = place + k - first
            at += 1


@compiled()
def clicks(
    cohort: np.ndarray,
    rows: Rows,
    items: int,
    epochs: int,
    negatives: int,
    order: np.ndarray,
    drawn: np.ndarray,
    out: Examples,
) -> None:
    """Draw the clicks of clients, cohort (C,) their numbers, and `negatives` beside each.

    order, drawn (2,): halves of the keys.
    """
    most, each = 0, 1 + negatives
    for client in cohort:
        most = max(most, rows.counts[client] * each)
    luck = Luck(
        np.empty(most * epochs + 4, np.uint32),
        np.empty(most * epochs + 4, np.uint32),
        np.empty(4 * most + 4, np.int32),
        np.empty(most, np.uint64),
        np.empty(4 * most + 4, np.int32),
        np.empty(most, np.uint32),
    )
    for c in range(len(cohort)):
        client, at = cohort[c], out.offsets[c]
        begin, count = rows.starts[client], rows.counts[client]
        total = count * each
        words(client, total * epochs, order, luck.order)
        words(client, count * epochs * negatives, drawn, luck.rank)
        for epoch in range(epochs):
            beside(rows, begin, count, items, negatives, epoch * count * negatives, luck)
            shuffle(luck.order[epoch * total :], total, luck.ends, luck.lots)
            dealt(luck, at, total, out)
            users(rows, begin, count, each, client, luck.lots, out.user[at : at + total])
            at += total


@compiled()
def dealt(luck: Luck, at: int, total: int, out: Examples) -> None:
    """Write an epoch's items and targets in the order of its lots."""
    lots, given, item, target = luck.lots, luck.item, out.item, out.target
    for k in range(total):
        word = given[lots[k] & LOW]
        item[at + k] = word & ~CLICK
        target[at + k] = np.float32(word >> TOP)


@compiled()
def users(
    rows: Rows, begin: int, count: int, each: int, client: int, lots: np.ndarray, out: np.ndarray
) -> None:
    """Write the users of an epoch's examples, who lie together in a client's rows."""
    if not len(rows.user):
        out[:] = client
    elif rows.user[begin] == rows.user[begin + count - 1]:
        out[:] = rows.user[begin]
    else:
        for k in range(len(out)):
            out[k] = rows.user[begin + np.int64(lots[k] & LOW) // each]


@compiled()
def orders(
    cohort: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    epochs: int,
    order: np.ndarray,
    offsets: np.ndarray,
    out: np.ndarray,
) -> None:
    """Draw the order in which clients (C,) go through their rows: row numbers out (n,)."""
    most = 0
    for client in cohort:
        most = max(most, counts[client])
    luck, ends = np.empty(most * epochs + 4, np.uint32), np.empty(4 * most + 4, np.int32)
    lots = np.empty(most, np.uint64)
    for c in range(len(cohort)):
        client, at = cohort[c], offsets[c]
        count = counts[client]
        words(client, count * epochs, order, luck)
        for epoch in range(epochs):
            shuffle(luck[epoch * count :], count, ends, lots)
            for k in range(count):
                out[at + k] = starts[client] + np.int64(lots[k] & LOW)
            at += count


@compiled()
def number(
    column: np.ndarray,
    first: int,
    last: int,
    bits: np.ndarray,
    top: np.ndarray,
    place: np.ndarray,
    ids: np.ndarray,
) -> int:
    """Number the different rows in column[first:last] as they grow; numbers take the rows' place.

    bits, top: a bit for each row of the table and for each 64 of them, all 0 and left so. place: a
    number for each row, scratch. ids: from `first` on, the rows by number. Returns how many.
    """
    for k in range(first, last):
        row = np.uint64(column[k])
        word = row >> SIX
        bits[word] |= ONE << (row & INSIDE)
        top[word >> SIX] |= ONE << (word & INSIDE)
    found = 0
    for above in range(len(top)):
        some, top[above] = top[above], 0
        while some:
            word = (np.uint64(above) << SIX) | lowest_bit(some)  # type: ignore[call-arg]
            some &= some - ONE
            mine, bits[word] = bits[word], 0
            while mine:
                row = np.int64((word << SIX) | lowest_bit(mine))
                mine &= mine - ONE
                place[row] = found
                ids[first + found] = row
                found += 1
    for k in range(first, last):
        column[k] = place[column[k]]
    return found


@compiled()
def numbered(
    offsets: np.ndarray, column: np.ndarray, size: int, ids: np.ndarray, found: np.ndarray
) -> None:
    """Number the rows of a table that clients use in their examples, see `number`.

    size: rows of the table. found (C,): how many different ones each client uses.
    """
    bits, top = np.zeros((size >> 6) + 1, np.uint64), np.zeros((size >> 12) + 1, np.uint64)
    place = np.empty(size, np.int32)
    for c in range(len(found)):
        first, last = offsets[c], offsets[c + 1]
        same = True
        for k in range(first + 1, last):
            same &= column[k] == column[first]
        if same:
            ids[first], found[c] = column[first], 1
            column[first:last] = 0
        else:
            found[c] = number(column, first, last, bits, top, place, ids)


@compiled()
def gathered(offsets: np.ndarray, ids: np.ndarray, out: Held) -> None:
    """Put the rows of clients one after another; ids (n,): as `numbered` has them."""
    for c in range(len(offsets) - 1):
        for k in range(out.first[c + 1] - out.first[c]):
            out.rows[out.first[c] + k] = ids[offsets[c] + k]
            out.client[out.first[c] + k] = c
