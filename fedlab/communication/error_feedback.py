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
from fedlab.core import (
    RoundContext,
    Rows,
    Stage,
    Tree,
    Update,
    in_memory,
    knob,
    register,
    require,
    stream,
)

GROUP = "communication"
# client -> (row ids, growing; by name, what was left of each row)
Kept = Mapping[int, tuple[Tensor, Tree]]
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
        for names in _at_one_place(update.deltas):
            rows = {name: update.deltas[name] for name in names}
            (height,) = {len(context.server[name]) for name in names}
            key, whole, left = ", ".join(names), rows, None
            if self.feedback == "on":
                left = _Left.of(memory.get(key, {}), update.cohort, height, rows)
                whole = left.added(rows)
            for name in names:
                draw = stream(context.seed, f"code {name}", context.number)
                arrives, bytes_up = code(whole[name], clients, height, draw)
                # not in place: a codec may hand its input on
                rows[name], size = replace(rows[name], values=arrives), size + bytes_up
                kind = context.asked[name][1]
                if not code.says_where and kind not in counted:
                    counted.add(kind)
                    size += row_bytes(rows[name].ids, rows[name].client, clients)
            if left is not None:
                rest = {name: whole[name].values - rows[name].values for name in names}
                memory[key] = {**memory.get(key, {}), **left.after(rest, update.cohort)}
            deltas |= rows
        return replace(update, deltas=deltas, bytes_up=size)


def _at_one_place(deltas: Mapping[str, Rows]) -> list[list[str]]:
    """The names, those together that were sent at the same rows, such as a vector and its bias."""
    found = dict[tuple[Any, ...], list[str]]()
    for name, rows in deltas.items():
        found.setdefault((in_memory(rows.ids), in_memory(rows.client)), []).append(name)
    return list(found.values())


@dataclass(frozen=True)
class _Left:
    """What the clients of a chunk have kept, and where the rows that they send now are in it.

    A key is `place in the cohort * height + row`; keys grow. asked (R,): those of the rows sent.
    keys (K,), values, name -> (K, ...): of what is kept. at (R,): where a row's key is among these,
    if it is `there` (R,), or would be.
    """

    height: int
    asked: Tensor
    keys: Tensor
    values: Tree
    at: Tensor
    there: Tensor

    @staticmethod
    def of(kept: Kept, cohort: Tensor, height: int, rows: Mapping[str, Rows]) -> "_Left":
        """Look up what these clients have kept."""
        held = [(k, kept[client]) for k, client in enumerate(cohort.tolist()) if client in kept]
        first = next(iter(rows.values()))
        asked = first.client * height + first.ids
        keys = torch.cat([asked[:0], *(place * height + ids for place, (ids, _) in held)])
        values = {
            name: torch.cat([every.values[:0], *(own[name] for _, (_, own) in held)])
            for name, every in rows.items()
        }
        at = torch.searchsorted(keys, asked)
        there = torch.zeros_like(asked, dtype=torch.bool)
        if len(keys):
            there = keys[at.clamp(max=len(keys) - 1)] == asked
        return _Left(height, asked, keys, values, at, there)

    def added(self, rows: Mapping[str, Rows]) -> dict[str, Rows]:
        """The rows with what was left of them."""
        if not len(self.keys):
            return dict(rows)
        found, at = {}, self.at.clamp(max=len(self.keys) - 1)
        for name, every in rows.items():
            left = self.values[name].index_select(0, at)
            there = self.there.view(-1, *[1] * (left.dim() - 1))
            found[name] = replace(every, values=every.values + torch.where(there, left, 0.0))
        return found

    def after(self, rest: Tree, cohort: Tensor) -> Kept:
        """What these clients keep now: `rest` of the rows sent, beside what was left of others.

        Both lie in growing order, and it is known where one goes into the other: to sort them took
        a third of the time.
        """
        gone = torch.zeros(len(self.keys) + 1, dtype=torch.int64, device=self.keys.device)
        gone[self.at[self.there]] = 1
        before = gone.cumsum(0) - gone  # of the rows in front, how many are sent anew
        place = torch.arange(len(self.asked), device=gone.device) + self.at - before[self.at]
        others, total = gone[:-1] == 0, len(self.keys) + len(self.asked) - int(gone.sum())
        old = torch.ones(total, dtype=torch.bool, device=gone.device).index_fill_(0, place, False)

        def merged(kept: Tensor, new: Tensor) -> Tensor:
            out = new.new_empty(total, *new.shape[1:])
            out[old], out[place] = kept[others], new
            return out

        keys = merged(self.keys, self.asked)
        # numbers that are not finite are not kept, so that a bad round spoils no later one
        values = {
            name: merged(self.values[name], new).nan_to_num_(0.0, 0.0, 0.0)
            for name, new in rest.items()
        }
        cuts = torch.bincount(keys // self.height, minlength=len(cohort)).tolist()
        ids = (keys % self.height).split(cuts)
        own = {name: value.split(cuts) for name, value in values.items()}
        # copies, not views, which would keep the whole chunk
        return {
            client: (ids[k].clone(), {name: parts[k].clone() for name, parts in own.items()})
            for k, client in enumerate(cohort.tolist())
            if cuts[k]
        }


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
