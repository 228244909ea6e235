"""Fewer bytes up: each client codes what it learned, with a memory of what the code left out.

    sent = code(delta + e),   e <- delta + e - sent     error feedback: the rest is sent later

In front of a `Clip`, which is one factor for a whole update, a code stays a code. Noise of the
clients' own and secure sums take 4 bytes for every number, and refuse coded updates.

Letters: C clients, R rows sent.

Sources: Seide et al. 2014, "1-bit stochastic gradient descent" (error feedback); Karimireddy et al.
2019, "Error feedback fixes signSGD".
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedlab.communication.codecs import Codec, LowRank, Quantised, RandomK, TopK
from fedlab.core import RoundContext, Rows, Stage, Update, knob, register, require, stream

GROUP = "communication"
# client -> (row ids, growing; what was left of each row)
Kept = Mapping[int, tuple[Tensor, Tensor]]
CODECS: dict[str, Codec] = {
    "8 bits": Quantised(8),
    "4 bits": Quantised(4),
    "2 bits": Quantised(2),
    "signs": Quantised(1),
    "largest tenth": TopK(0.1),
    "random tenth": RandomK(0.1),
    "rank 1": LowRank(1),
    "rank 1 in 4 bits": LowRank(1, then=Quantised(4)),
}


@register
class ErrorFeedback(Stage):
    """Updates go through a codec; what it leaves out of a row goes along when the row is next sent.

    own: a codec of your own in place of a named one. Where the codec of a table does not tell the
    row numbers, these go beside it as distances, see `row_bytes`.
    """

    codec: str = knob(
        "4 bits",
        0,
        0,
        "",
        "in what form updates are sent up",
        choices=tuple(CODECS),
        live=False,
        group=GROUP,
    )
    feedback: str = knob(
        "on",
        0,
        0,
        "",
        "whether clients keep what was left out for later",
        choices=("on", "off"),
        live=False,
        group=GROUP,
    )
    own: Codec | None = None

    def adds(self) -> dict[str, Any]:
        """The fact that numbers are not sent in full."""
        return {"coded": True}

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The named codec, where you give one of your own."""
        return ("codec",) if self.own else ()

    def each(self, update: Update, context: RoundContext) -> Update:
        """The updates as they arrive, and the bytes of each client."""
        code, clients = self.own or CODECS[self.codec], len(update.cohort)
        size = torch.zeros(clients, dtype=torch.int64, device=update.weights.device)
        deltas, counted, memory = dict(update.deltas), {"one"}, context.memory(self)
        for name, rows in update.deltas.items():
            height, kind = len(context.server[name]), context.asked[name][1]
            draw = stream(context.seed, f"code {name}", context.number)
            kept: Kept = memory.get(name, {})
            left = _Left.of(kept, update.cohort, height, rows) if self.feedback == "on" else None
            whole = rows if left is None else left.added(rows)
            arrives, bytes_up = code(whole, clients, height, draw)
            if left is not None:
                rest = whole.values - arrives  # not in place: a codec may hand its input on
                memory[name] = {**kept, **left.after(rest, update.cohort)}
            deltas[name], size = replace(rows, values=arrives), size + bytes_up
            if not code.says_where and kind not in counted:
                counted.add(kind)
                size += row_bytes(rows.ids, rows.client, clients)
        return replace(update, deltas=deltas, bytes_up=size)


@dataclass(frozen=True)
class _Left:
    """What the clients of a chunk have kept, and where the rows that they send now are in it.

    A key is `place in the cohort * height + row`; keys grow. asked (R,): those of the rows sent.
    keys (K,), values (K, ...): of what is kept. at (R,): where a row's key is among these, if it is
    `there` (R,).
    """

    height: int
    asked: Tensor
    keys: Tensor
    values: Tensor
    at: Tensor
    there: Tensor

    @staticmethod
    def of(kept: Kept, cohort: Tensor, height: int, rows: Rows) -> "_Left":
        """Look up what these clients have kept."""
        found = [
            (place * height + kept[client][0], kept[client][1])
            for place, client in enumerate(cohort.tolist())
            if client in kept
        ]
        asked = rows.client * height + rows.ids
        keys = torch.cat([asked[:0], *(k for k, _ in found)])
        values = torch.cat([rows.values[:0], *(v for _, v in found)])
        at = torch.searchsorted(keys, asked).clamp(max=max(0, len(keys) - 1))
        there = keys[at] == asked if len(keys) else torch.zeros_like(asked, dtype=torch.bool)
        return _Left(height, asked, keys, values, at, there)

    def added(self, rows: Rows) -> Rows:
        """The rows with what was left of them."""
        if not len(self.keys):
            return rows
        there = self.there.view(-1, *[1] * (self.values.dim() - 1))
        left = torch.where(there, self.values.index_select(0, self.at), 0.0)
        return replace(rows, values=rows.values + left)

    def after(self, rest: Tensor, cohort: Tensor) -> Kept:
        """What these clients keep now: `rest` of the rows sent, beside what was left of others."""
        # numbers that are not finite are not kept, so that a bad round spoils no later one
        rest = rest if bool(rest.sum().isfinite()) else rest.nan_to_num(0.0, 0.0, 0.0)
        keys = self.asked
        if len(self.keys):
            others = torch.ones_like(self.keys, dtype=torch.bool)
            others[self.at[self.there]] = False
            keys, order = torch.cat([self.keys[others], keys]).sort()
            rest = torch.cat([self.values[others], rest]).index_select(0, order)
        cuts = torch.bincount(keys // self.height, minlength=len(cohort)).tolist()
        parts = zip(
            cohort.tolist(), (keys % self.height).split(cuts), rest.split(cuts), strict=True
        )
        # copies, not views, which would keep the whole chunk
        return {client: (ids.clone(), values.clone()) for client, ids, values in parts if len(ids)}


def row_bytes(ids: Tensor, client: Tensor, clients: int) -> Tensor:
    """The bytes (C,) of each client's growing row numbers: distances from the last, 7 bits a byte.

    >>> import torch
    >>> row_bytes(torch.tensor([0, 5, 300]), torch.tensor([0, 0, 0]), 1)
    tensor([4])
    """
    first = torch.ones_like(client, dtype=torch.bool)
    first[1:] = client[1:] != client[:-1]
    apart = torch.where(first, ids + 1, ids - ids.roll(1))
    require(
        bool((apart > 0).all()),
        "ids",
        ids[apart <= 0][:1].tolist(),
        "a client's row numbers must grow",
    )
    each = 1 + sum((apart >> 7 * more > 0).long() for more in range(1, 5))
    return torch.zeros(clients, dtype=torch.int64, device=ids.device).index_add_(
        0, client, torch.as_tensor(each)
    )
