"""Codes: what of a client's numbers is sent, in how many bytes, and what arrives.

Letters: C clients, R rows sent, n numbers of a client in a table, I rows of a table, r rank.
Sources: Seide et al. 2014, "1-bit stochastic gradient descent" (signs); Alistarh et al. 2017,
"QSGD" (levels); Banner, Nahshan, Soudry 2019, "Post training 4-bit quantization of convolutional
networks", section 3 (cut the largest); Stich, Cordonnier, Jaggi 2018, "Sparsified SGD with memory"
(top-k, random-k); Konecny et al. 2016, "Federated learning: strategies for improving communication
efficiency", section 2 (random mask, low rank); Vogels, Karimireddy, Jaggi 2019, "PowerSGD",
algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fedlab.core import Rows, require

Coded = tuple[Tensor, Tensor]  # (what arrives, of the values' shape; bytes of each client)


class Codec(Protocol):
    """(rows of one table, C, I, draw) -> Coded. says_where.

    Whether its bytes tell which rows the numbers are of.

    draw: the round's randomness of this table, the same for all clients, so that the server can
    repeat it.
    """

    says_where: ClassVar[bool]

    def __call__(self, rows: Rows, clients: int, height: int, draw: torch.Generator) -> Coded:
        """Code and decode one table."""


@dataclass(frozen=True)
class Plain:
    """All numbers as they are, 4 bytes each."""

    says_where: ClassVar[bool] = False

    def __call__(self, rows: Rows, clients: int, height: int, draw: torch.Generator) -> Coded:
        """(values, bytes)."""
        count = torch.bincount(rows.client, minlength=clients)
        return rows.values, 4 * rows.values[:1].numel() * count


@dataclass(frozen=True)
class Quantised:
    """Each number in `bits` bits: 8, 4 or 2 for 255, 15 or 3 levels; 1 for the sign alone.

    A table takes 4 bytes more for its scale: signs stand for the mean of all sizes. Levels reach up
    to the largest number, or to `REACH` times the root of the mean square: few that are far out
    would leave no level to the others.
    """

    bits: int = 4
    says_where: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the number."""
        require(self.bits in (1, 2, 4, 8), "bits", self.bits, "choose 1, 2, 4 or 8")

    @property
    def top_level(self) -> int:
        """The highest level."""
        return max(1, 2 ** (self.bits - 1) - 1)

    def __call__(self, rows: Rows, clients: int, height: int, draw: torch.Generator) -> Coded:
        """(levels times scale, bytes)."""
        client, flat = rows.client, rows.values.reshape(len(rows.ids), -1)
        count = torch.bincount(client, minlength=clients) * flat.shape[1]
        if self.bits == 1:
            sizes = torch.linalg.vector_norm(flat, ord=1, dim=1)
            scale = sizes.new_zeros(clients).index_add_(0, client, sizes) / count.clamp(min=1)
            levels = torch.where(flat < 0, -1.0, 1.0)
        else:
            root = (rows.square_norms(clients) / count.clamp(min=1)).sqrt()
            far = root.new_zeros(clients).scatter_reduce_(0, client, flat.abs().amax(1), "amax")
            scale = torch.minimum(far, REACH[self.bits] * root) / self.top_level
            levels = (flat / scale.clamp(min=1e-30)[client, None]).round_()
            levels = levels.clamp_(-self.top_level, self.top_level)
        size = (count * self.bits + 7) // 8 + 4 * (count > 0)
        return levels.mul_(scale[client, None]).view_as(rows.values), size


# in root mean squares; measured: about one in a thousand of lesson 2's numbers lies beyond 6
REACH = {2: 2.0, 4: 6.0, 8: 100.0}


def packed(levels: np.ndarray[Any, np.dtype[np.int8]], bits: int) -> bytes:
    """Levels as they are sent.

    Offset to 0 and more, `bits` bits each, the last byte filled with zeros.
    """
    codes = (levels > 0 if bits == 1 else levels + (2 ** (bits - 1) - 1)).astype(np.uint8)
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - bits:]).tobytes()


def unpacked(text: bytes, count: int, bits: int) -> np.ndarray[Any, np.dtype[np.int8]]:
    """The `count` levels that were packed."""
    table = np.unpackbits(np.frombuffer(text, np.uint8))[:count * bits].reshape(count, bits)
    codes = np.packbits(np.pad(table, ((0, 0), (8 - bits, 0))), axis=1)[:, 0].astype(np.int8)
    return 2 * codes - 1 if bits == 1 else codes - np.int8(2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class TopK:
    """The `share` largest numbers of each client's table, at least one.

    Each with 4 bytes to say where.
    """

    share: float = 0.1
    says_where: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the number."""
        require(0 < self.share <= 1, "share", self.share,
                "choose a share of the numbers from above 0 to 1")

    def __call__(self, rows: Rows, clients: int, height: int, draw: torch.Generator) -> Coded:
        """(values with zeros elsewhere, bytes)."""
        flat = rows.values.reshape(-1)
        count = torch.bincount(rows.client, minlength=clients) * rows.values[:1].numel()
        kept = (count.double() * self.share).ceil().long()
        found = torch.zeros_like(flat)
        parts = zip(flat.split(count.tolist()), found.split(count.tolist()), kept.tolist(),
                    strict=True)
        for part, out, k in parts:
            chosen = part.abs().topk(k, sorted=False).indices
            out[chosen] = part[chosen]
        return found.view_as(rows.values), 8 * kept


@dataclass(frozen=True)
class RandomK:
    """About a `share` of the numbers, the same ones of the table for all clients of a round.

    Drawn by the server.
    """

    share: float = 0.1
    says_where: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the number."""
        require(0 < self.share <= 1, "share", self.share,
                "choose a share of the numbers from above 0 to 1")

    def __call__(self, rows: Rows, clients: int, height: int, draw: torch.Generator) -> Coded:
        """(values with zeros elsewhere, bytes)."""
        drawn = torch.rand(height, *rows.values.shape[1:], generator=draw) < self.share
        sent = drawn.to(rows.ids.device)[rows.ids]
        each = sent.view(len(sent), sent.shape[1:].numel()).sum(1)
        count = each.new_zeros(clients).index_add_(0, rows.client, each)
        return rows.values * sent, 4 * count


@dataclass(frozen=True)
class LowRank:
    """Each client's table (R, D) as a product (R, r) (r, D), by power iteration.

    `then` codes the two factors.

    A weight that all clients hold, (out, in), is such a table as well. A column, such as biases,
    goes by `then` alone. A client with a single user moves each film's row by a number times that
    user's vector: its delta is nearly of rank one.
    """

    rank: int = 1
    steps: int = 2
    then: Codec = Plain()
    says_where: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(self.rank >= 1, "rank", self.rank, "choose 1 or more")
        require(self.steps >= 1, "steps", self.steps, "choose 1 or more")

    def __call__(self, rows: Rows, clients: int, height: int, draw: torch.Generator) -> Coded:
        """(products, bytes)."""
        if rows.values.dim() == 1 or rows.values.shape[-1] == 1:
            return self.then(rows, clients, height, draw)
        width = rows.values.shape[-1]
        every = torch.arange(clients, device=rows.ids.device)
        counts = torch.bincount(rows.client, minlength=clients) * (rows.values[:1].numel() // width)
        start = torch.randn(width, self.rank, generator=draw).to(rows.values)
        tables = rows.values.reshape(-1, width).split(counts.tolist())
        lefts, rights = zip(*(self._factors(table, start) for table in tables), strict=True)
        left, left_bytes = self._sent(lefts, every, draw)
        right, right_bytes = self._sent(rights, every, draw)
        products = [a @ b.T for a, b in zip(left.split(counts.tolist()), right.split(width),
                                            strict=True)]
        size = (left_bytes + right_bytes).where(counts > 0, 0)
        return torch.cat(products).view_as(rows.values), size

    def _factors(self, part: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """(R, r), (D, r) of nearly the closest product; right (D, r): where to start."""
        left = part.new_zeros(len(part), self.rank)
        for _ in range(self.steps):
            found = torch.linalg.qr(part @ right).Q
            left = torch.nn.functional.pad(found, (0, self.rank - found.shape[1]))
            right = part.T @ left
        return left, right

    def _sent(self, factors: Sequence[Tensor], every: Tensor, draw: torch.Generator) -> Coded:
        """What arrives of one factor of all clients, and its bytes."""
        heights = torch.tensor([len(factor) for factor in factors], device=every.device)
        owner = every.repeat_interleave(heights)
        rows = Rows(torch.cat(list(factors)), torch.zeros_like(owner), owner)
        return self.then(rows, len(every), 1, draw)
