"""Keyed randomness: what a client draws depends on its own number and on nobody else.

There are two kinds of draws. `stream` is a torch generator for what the server draws once a round,
such as the cohort. A `Key` gives clients their draws: word j of client k is a function of (seed,
purpose, round, k, j), so it is the same whatever the cohort, its order, its chunks and the machine.

The function is Philox4x32-10, a block cipher weakened until it is fast: ten rounds of two products
turn a counter of four 32-bit words into four random ones. Nothing but integers of 32 bits is in it,
so a compiled kernel, JavaScript or a GPU repeats it bit by bit:

    key      the first eight bytes of SHA-256 of "seed/purpose/number" (UTF-8, decimal numbers), as
             two words, each with its most significant byte first
    counter  (j // 4, j // 4 >> 32, k, k >> 32), each modulo 2^32
    word j   number j % 4 of the four words that come out

What is made of words: a uniform number is w / 2^32; a whole number below n is w n >> 32; a pair of
normal numbers comes from words 2j and 2j + 1 by Box and Muller's formula; a dropout mask takes 16
bits, the low half of a word first, as a signed number.

Letters: C clients, n draws, D columns. Sources: Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3", section 3.3 (Philox), with the constants and known answers of its library
Random123; Box, Muller 1958, "A note on the generation of random normal deviates".
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # what is added to the key from round to round
WORD = 0xFFFFFFFF
ROUNDS = 10
AT_ONCE = 1 << 14  # counters at a time: 8 ns a word; with all at once 17, with 2^11 15


def stream(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """One CPU generator per (seed, purpose, round), so a new draw never shifts an old one."""
    key = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "big", signed=True))


@dataclass(frozen=True)
class Key:
    """Draws of clients for one purpose in one round; see the top of the file.

    A 'client' is whatever has draws of its own: for a table of parameters, it is the row.
    """

    seed: int
    purpose: str
    number: int = 0

    def of(self, what: str) -> "Key":
        """The key of a part of this purpose, say 'examples' -> 'examples order'."""
        return replace(self, purpose=f"{self.purpose} {what}")

    @cached_property
    def halves(self) -> tuple[int, int]:
        """The two words of Philox' key."""
        text = f"{self.seed}/{self.purpose}/{self.number}"
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")

    def words(self, client: Tensor, index: Tensor) -> Tensor:
        """(n,) word `index` (n,) of `client` (n,): whole numbers from 0 to 2^32 - 1, int64.

        >>> Key(0, "example").words(torch.tensor([7, 7]), torch.tensor([0, 1])).tolist()
        [835110006, 3434897237]
        """
        found = _blocks(client, index >> 2, self.halves)
        return found.gather(1, (index & 3)[:, None])[:, 0].long() & WORD

    def runs(self, client: Tensor, counts: Tensor) -> Tensor:
        """(sum of counts,) words 0 to counts[k] - 1 of each client, one client after another.

        client, counts: (C,). The same words as `words` has, four times as fast, since all four
        that a counter gives are used.
        """
        blocks = (counts + 3) >> 2
        found = _blocks(client.repeat_interleave(blocks), ramp(blocks), self.halves).flatten()
        spare = (blocks << 2) - counts  # words at the end of each client's last block
        if bool(spare.any()):
            shift = (spare.cumsum(0) - spare).repeat_interleave(counts)
            shift += torch.arange(len(shift), device=shift.device)
            found = found.index_select(0, shift)
        return found.long().bitwise_and_(WORD)

    def uniform(self, client: Tensor, columns: int) -> Tensor:
        """(C, D) uniform numbers from 0 to below 1, multiples of 2^-32, float64."""
        words = self.runs(client, torch.full_like(client, columns))
        return words.view(len(client), columns).double().mul_(2.0**-32)

    def normal(self, client: Tensor, columns: int) -> Tensor:
        """(C, D) normal numbers of mean 0 and deviation 1, at most 6.7 in size, float32."""
        pairs = (columns + 1) // 2
        found = torch.empty(len(client), 2 * pairs, device=client.device)
        for rows in _pieces(len(client), 16 * AT_ONCE // pairs + 1):
            u = self.uniform(client[rows], 2 * pairs).view(-1, pairs, 2)
            size = (-2 * (u[..., 0] + 2.0**-32).log()).sqrt()
            angle = u[..., 1] * (2 * math.pi)
            both = torch.stack([size * angle.cos(), size * angle.sin()], -1)
            found[rows] = both.view(-1, 2 * pairs).float()
        return found[:, :columns].contiguous()

    def keep(self, client: Tensor, counts: Tensor, columns: int, drop: float) -> Tensor:
        """(sum of counts, D) masks of counts[k] examples of each client, False where it drops.

        Each example has counters of its own, ceil(D / 8) of them. drop: chance, taken to the
        nearest multiple of 2^-16.
        """
        each = (columns + 7) // 8
        blocks = counts * each
        found = _blocks(client.repeat_interleave(blocks), ramp(blocks), self.halves)
        halves = found.view(torch.int16).view(-1, 8 * each)[:, :columns]
        return halves >= round(drop * 2**16) - 2**15


def below(words: Tensor, count: Tensor | int) -> Tensor:
    """(n,) whole numbers from 0 to count - 1, each as likely as another to within 2^-32."""
    return words * count >> 32


def ramp(counts: Tensor) -> Tensor:
    """(sum of counts,) 0, 1, ..., count - 1 for each of counts (C,)."""
    ends = counts.cumsum(0)
    first = (ends - counts).repeat_interleave(counts)
    return torch.arange(len(first), device=counts.device) - first


def philox(counter: Sequence[Any], key: tuple[int, int], lib: Any) -> Sequence[Any]:
    """Philox4x32-10 of four columns of 32-bit words, kept in int64; the columns are used up.

    lib: numpy or torch, whichever the columns are of. A product of two words wraps around in int64,
    which loses none of its 64 bits. In the second and fourth column that come out, and in these two
    between rounds, bits above the 32nd are left for a later mask to take.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    p0, p1 = lib.empty_like(c0), lib.empty_like(c0)
    for _ in range(ROUNDS):
        lib.multiply(c0, MULTIPLIERS[0], out=p0)
        lib.multiply(c2, MULTIPLIERS[1], out=p1)
        lib.bitwise_right_shift(p1, 32, out=c0)
        lib.bitwise_right_shift(p0, 32, out=c2)
        c0 ^= c1
        c0 ^= k0
        c0 &= WORD
        c2 ^= c3
        c2 ^= k1
        c2 &= WORD
        c1, p1, c3, p0 = p1, c1, p0, c3
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def _blocks(client: Tensor, block: Tensor, key: tuple[int, int]) -> Tensor:
    """(n, 4) words of `block` (n,) of `client` (n,), their bits in int32.

    On a CPU they are computed by NumPy, whose operations on small arrays begin faster: 8 ns a word
    and not 11.
    """
    found = torch.empty(len(client), 4, dtype=torch.int32, device=client.device)
    on_cpu = client.device.type == "cpu"
    for rows in _pieces(len(client), AT_ONCE if on_cpu else len(client)):
        high, low = block[rows] >> 32, block[rows] & WORD
        columns: list[Any] = [low, high, client[rows] & WORD, client[rows] >> 32]
        if on_cpu:
            columns = [column.numpy() for column in columns]
        for lane, words in enumerate(philox(columns, key, np if on_cpu else torch)):
            found[rows, lane] = torch.as_tensor(words)  # the lower 32 bits
    return found


def _pieces(count: int, size: int) -> Iterator[slice]:
    """Slices that cut `count` rows into pieces of `size`."""
    return (slice(first, first + size) for first in range(0, count, max(1, size)))
