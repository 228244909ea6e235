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
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # what is added to the key from round to round
WORD = 0xFFFFFFFF
ROUNDS = 10
COUNTERS = 512  # of a program of the kernel
AT_ONCE = 1 << 14  # counters at a time: 14 ns a word; with all at once 28, with 2^11 26


@cache
def gpu_kernels() -> Any:
    """The module of the core's kernels; None where Triton is not installed."""
    try:
        return importlib.import_module("fedlab.core.loops.gpu")
    except ImportError:
        return None


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
        each = (columns + 3) // 4
        block = torch.arange(each, device=client.device).repeat(len(client))
        found = _blocks(client.repeat_interleave(each), block, self.halves)
        words = found.view(len(client), 4 * each)[:, :columns].long().bitwise_and_(WORD)
        return words.double().mul_(2.0**-32)

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


def philox(even: Any, odd: Any, key: tuple[int, int]) -> tuple[Any, Any]:
    """Philox4x32-10 of counters (c0, c1, c2, c3), n at once, on a CPU or a GPU.

    even: c0 and c2, odd: c1 and c3, (2, n) each, 32-bit words in int64, of NumPy or torch. Returns
    the words that come out, laid out in the same way. A product of two words wraps around in int64,
    which loses none of its 64 bits; bits above the 32nd are left in `odd` for a later mask to take.
    """
    turned = _turned_array if isinstance(even, np.ndarray) else _turned_tensor
    factor, weyl, keys = (
        np.array(pair)[:, None] if isinstance(even, np.ndarray) else _column(pair, even.device)
        for pair in (MULTIPLIERS, WEYL, key)
    )
    for _ in range(ROUNDS):
        product = turned(even * factor)
        even = product >> 32
        even ^= odd
        even ^= keys
        even &= WORD
        odd, keys = product, (keys + weyl) & WORD
    return even, odd


def _turned_array(pair: np.ndarray) -> np.ndarray:
    return pair[::-1]


def _turned_tensor(pair: Tensor) -> Tensor:
    return pair.flip(0)


def _column(pair: tuple[int, int], device: torch.device) -> Tensor:
    return torch.tensor(pair, device=device)[:, None]


def _blocks(client: Tensor, block: Tensor, key: tuple[int, int]) -> Tensor:
    """The words (n, 4) of `block` (n,) of `client` (n,), their bits in int32.

    On a CPU by NumPy, whose operations on small arrays begin faster; on a GPU by one kernel.
    """
    if client.is_cuda and (kernels := gpu_kernels()):
        words = torch.empty(len(client), 4, dtype=torch.int32, device=client.device)
        grid = ((len(client) + COUNTERS - 1) // COUNTERS,)
        signed = (word - (word >> 31 << 32) for word in key)  # of one type, whatever the word
        given = client, block, words, len(client), *signed, COUNTERS
        kernels.philox[grid](*given, enable_fp_fusion=True)  # unsaid, Triton 3.9 warns
        return words
    if not client.is_cpu:
        even, odd = torch.stack([block & WORD, client & WORD]), torch.stack([block, client]) >> 32
        return torch.stack(philox(even, odd, key), 0).permute(2, 1, 0).flatten(1).int()
    found = np.empty((len(client), 2, 2), np.int32)  # by counter, then c0, c1 and c2, c3
    both = np.stack([block.numpy(), client.numpy()])
    for rows in _pieces(len(client), AT_ONCE):
        part = both[:, rows]
        even, odd = philox(part & WORD, part >> 32, key)
        found[rows, :, 0], found[rows, :, 1] = even.T, odd.T  # the lower 32 bits
    return torch.from_numpy(found).view(-1, 4)


def _pieces(count: int, size: int) -> Iterator[slice]:
    """Slices that cut `count` rows into pieces of `size`."""
    return (slice(first, first + size) for first in range(0, count, max(1, size)))
