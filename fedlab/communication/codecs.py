"""Codecs: what is sent of a client's numbers, in how many bytes, and what the server decodes.

Letters: C clients, R rows that a client sends, D numbers of a row, I rows of a table, r rank.

Sources: Seide et al. 2014, "1-bit stochastic gradient descent" (signs); Alistarh et al. 2017,
"QSGD" (levels); Banner, Nahshan, Soudry 2019, "Post training 4-bit quantization of convolutional
networks", section 3 (clipping the largest); Stich, Cordonnier, Jaggi 2018, "Sparsified SGD with
memory" (top-k, random-k); Konecny et al. 2016, "Federated learning: strategies for improving
communication efficiency", section 2 (random mask, low rank); Vogels, Karimireddy, Jaggi 2019,
"PowerSGD", algorithm 1.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fedlab.core import Rows, add_rows, require

Coded = tuple[Tensor, Tensor]  # (what arrives, of the values' shape; bytes of each client)


class Codec(Protocol):
    """Codes and decodes the rows of one table: (rows, C, I, draw) -> Coded.

    says_where: whether the bytes include the positions of the numbers. draw: the randomness of this
    table in this round, the same for all clients, so that the server can repeat it.
    """

    says_where: ClassVar[bool]

    def __call__(self, rows: Rows, clients: int, height: int, draw: torch.Generator) -> Coded:
        """Code and decode the rows of one table."""


@dataclass(frozen=True)
class Plain:
    """Send all numbers as they are, in 4 bytes each.

    >>> rows = Rows(torch.ones(3, 2), torch.arange(3), torch.tensor([0, 0, 1]))
    >>> Plain()(rows, 2, 3, torch.Generator())[1].tolist()  # bytes of two clients
    [16, 8]
    """

    says_where: ClassVar[bool] = False

    def __call__(self, rows: Rows, clients: int, height: int, draw: torch.Generator) -> Coded:
        """The values, and the bytes (C,)."""
        return (
            rows.values,
            4 * rows.values[:1].numel() * torch.bincount(rows.client, minlength=clients),
        )


@dataclass(frozen=True)
class Quantised:
    """Send each number in `bits` bits: 8, 4 or 2 for 255, 15 or 3 levels, 1 for the sign only.

    A client's table takes 4 more bytes for its scale. A sign stands for the mean of all sizes.
    Levels reach up to the largest number, or to `REACH` times the root mean square if that is less:
    otherwise a few outliers would leave no levels for the other numbers. Other numbers of bits
    raise `ParameterError`.

    >>> rows = Rows(torch.tensor([[1.0, -3.0]]), torch.tensor([0]), torch.tensor([0]))
    >>> Quantised(bits=1)(rows, 1, 1, torch.Generator())[0]
    tensor([[ 2., -2.]])
    """

    bits: int = 4
    says_where: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the number of bits."""
        require(self.bits in (1, 2, 4, 8), "bits", self.bits, "choose 1, 2, 4 or 8")

    @property
    def top_level(self) -> int:
        """The highest level."""
        return max(1, 2 ** (self.bits - 1) - 1)

    def __call__(self, rows: Rows, clients: int, height: int, draw: torch.Generator) -> Coded:
        """The levels times the scale, and the bytes (C,)."""
        client, flat = rows.client, rows.values.reshape(len(rows.ids), -1)
        count = torch.bincount(client, minlength=clients) * flat.shape[1]
        if self.bits == 1:
            sizes = torch.linalg.vector_norm(flat, ord=1, dim=1)
            scale = add_rows(sizes.new_zeros(clients), client, sizes) / count.clamp(min=1)
            levels = torch.where(flat < 0, -1.0, 1.0)
        else:
            root = (rows.square_norms(clients) / count.clamp(min=1)).sqrt().float()
            far = root.new_zeros(clients).scatter_reduce_(0, client, flat.abs().amax(1), "amax")
            scale = torch.minimum(far, REACH[self.bits] * root) / self.top_level
            levels = (
                (flat / scale.clamp(min=1e-30)[client, None])
                .round_()
                .clamp_(-self.top_level, self.top_level)
            )
        return (
            levels.mul_(scale[client, None]).view_as(rows.values),
            (count * self.bits + 7) // 8 + 4 * (count > 0),
        )


# in root mean squares; measured: about one in a thousand of lesson 2's numbers lies beyond 6
REACH = {2: 2.0, 4: 6.0, 8: 100.0}


def packed(levels: np.ndarray[Any, np.dtype[np.int8]], bits: int) -> bytes:
    """Pack levels into bytes: shifted to 0 and above, `bits` bits each, zeros at the end.

    >>> levels = np.array([-7, 0, 7], dtype=np.int8)
    >>> packed(levels, 4).hex(), unpacked(packed(levels, 4), 3, 4).tolist()
    ('07e0', [-7, 0, 7])
    """
    codes = (levels > 0 if bits == 1 else levels + (2 ** (bits - 1) - 1)).astype(np.uint8)
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - bits :]).tobytes()


def unpacked(text: bytes, count: int, bits: int) -> np.ndarray[Any, np.dtype[np.int8]]:
    """The `count` levels that were packed."""
    table = np.unpackbits(np.frombuffer(text, np.uint8))[: count * bits].reshape(count, bits)
    codes = np.packbits(np.pad(table, ((0, 0), (8 - bits, 0))), axis=1)[:, 0].astype(np.int8)
    return 2 * codes - 1 if bits == 1 else codes - np.int8(2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class TopK:
    """Send the `share` largest numbers of each client's table, each with its position.

    At least one is sent. share: above 0, at most 1, else `ParameterError`. A number takes 4 bytes,
    and its position 4 more.

    >>> rows = Rows(torch.tensor([[1.0, -3.0]]), torch.tensor([0]), torch.tensor([0]))
    >>> TopK(share=0.5)(rows, 1, 1, torch.Generator())
    (tensor([[ 0., -3.]]), tensor([8]))
    """

    share: float = 0.1
    says_where: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the share."""
        require(
            0 < self.share <= 1,
            "share",
            self.share,
            "choose a share of the numbers from above 0 to 1",
        )

    def __call__(self, rows: Rows, clients: int, height: int, draw: torch.Generator) -> Coded:
        """The values, 0 where nothing was sent, and the bytes (C,)."""
        flat = rows.values.reshape(-1)
        count = torch.bincount(rows.client, minlength=clients) * rows.values[:1].numel()
        kept = (count.double() * self.share).ceil().long()
        found = torch.zeros_like(flat)
        parts = zip(
            flat.split(count.tolist()), found.split(count.tolist()), kept.tolist(), strict=True
        )
        for part, out, k in parts:
            chosen = part.abs().topk(k, sorted=False).indices
            out[chosen] = part[chosen]
        return found.view_as(rows.values), 8 * kept


@dataclass(frozen=True)
class RandomK:
    """Send about a `share` of the numbers, at positions drawn for all clients alike.

    share: above 0, at most 1, else `ParameterError`. Since the server knows the positions, a number
    takes 4 bytes.

    >>> rows = Rows(torch.ones(1, 4), torch.tensor([0]), torch.tensor([0]))
    >>> values, size = RandomK(share=0.5)(rows, 1, 1, torch.Generator().manual_seed(0))
    >>> int(size) == 4 * int(values.sum())
    True
    """

    share: float = 0.1
    says_where: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the share."""
        require(
            0 < self.share <= 1,
            "share",
            self.share,
            "choose a share of the numbers from above 0 to 1",
        )

    def __call__(self, rows: Rows, clients: int, height: int, draw: torch.Generator) -> Coded:
        """The values, 0 where nothing was sent, and the bytes (C,)."""
        drawn = torch.rand(height, *rows.values.shape[1:], generator=draw) < self.share
        sent = drawn.to(rows.ids.device)[rows.ids]
        each = sent.view(len(sent), sent.shape[1:].numel()).sum(1)
        count = each.new_zeros(clients).index_add_(0, rows.client, each)
        return rows.values * sent, 4 * count


@dataclass(frozen=True)
class LowRank:
    """Send each client's table (R, D) as a product (R, r) (r, D), found by power iteration.

    rank: r. steps: of the power iteration. then: the codec of the two factors. A weight (out, in)
    that all clients hold is such a table as well; a single column, such as the biases, goes through
    `then` alone. A client with one user moves every item's row by a multiple of that user's vector,
    so its delta is nearly of rank one. Raises `ParameterError` for a rank or steps below 1.

    >>> rows = Rows(torch.ones(3, 4), torch.arange(3), torch.zeros(3, dtype=torch.int64))
    >>> values, size = LowRank(rank=1)(rows, 1, 3, torch.Generator().manual_seed(0))
    >>> bool(values.allclose(rows.values, atol=1e-5)), size.tolist()  # 4 bytes for 3 + 4 numbers
    (True, [28])
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
        """The products, and the bytes (C,)."""
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
        products = [
            a @ b.T for a, b in zip(left.split(counts.tolist()), right.split(width), strict=True)
        ]
        return (
            torch.cat(products).view_as(rows.values),
            (left_bytes + right_bytes).where(counts > 0, 0),
        )

    def _factors(self, part: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Factors (R, r) and (D, r) of nearly the closest product, starting from right (D, r)."""
        left = part.new_zeros(len(part), self.rank)
        for _ in range(self.steps):
            found = torch.linalg.qr(part @ right).Q
            left = torch.nn.functional.pad(found, (0, self.rank - found.shape[1]))
            right = part.T @ left
        return left, right

    def _sent(self, factors: tuple[Tensor, ...], every: Tensor, draw: torch.Generator) -> Coded:
        """What arrives of one factor of all clients, and its bytes (C,)."""
        heights = torch.tensor([len(factor) for factor in factors], device=every.device)
        owner = every.repeat_interleave(heights)
        return self.then(
            Rows(torch.cat(factors), torch.zeros_like(owner), owner), len(every), 1, draw
        )
