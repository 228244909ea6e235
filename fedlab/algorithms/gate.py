"""The gate: what the server takes for an update, and the books that it keeps of all that came.

It stands where somebody else's numbers enter the server, in front of everything that reads them. A
client whose update fails here is rejected, with a reason; no decision about one client depends on
another's update of the same round.

Letters: C clients of a chunk, R rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedlab.core import RoundContext, Rows, Sent, Stage, Tree, Update, moved, norms, require

FLOATS = 4  # bytes of a number, and of a row number


@dataclass
class Books:
    """What a Round says of its clients, noted as their updates come."""

    rejected: dict[int, str]
    kept: list[Sent] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    weight: float = 0.0
    down: int = 0
    up: int = 0

    def count(self, update: Update, asked: Mapping[str, tuple[Tensor, str]]) -> None:
        """Add the bytes of an update; upwards a codec's own count, where there is one."""
        down, up = payload(update, asked)
        self.down += down
        self.up += up if update.bytes_up is None else int(update.bytes_up.sum())

    def keep(self, sent: Sent, length: Tensor) -> None:
        """Note an update that came through, without its numbers but for the rows that stay."""
        light = Update(
            {}, *(getattr(sent.update, name) for name in ("weights", "losses", "cohort", "steps"))
        )
        self.kept.append(Sent(light, sent.own))
        self.norms.append(length.float())
        self.weight += float(sent.update.weights.sum())

    def private(self, params: Tree, names: Iterable[str]) -> Tree:
        """Everybody's private rows after what their clients learned."""
        return {
            name: moved(params[name], Rows.joined([s.own[name] for s in self.kept]), 1.0)
            for name in names
            if self.kept and name in self.kept[0].own
        }

    def columns(self) -> dict[str, Any]:
        """The fields of the Round that the books fill."""
        none, updates = torch.empty(0), [sent.update for sent in self.kept]
        return {
            "cohort": torch.cat([none.long(), *(u.cohort for u in updates)]),
            "losses": torch.cat([none, *(u.losses.cpu() for u in updates)]),
            "norms": torch.cat([none, *self.norms]),
            "rejected": self.rejected,
            "bytes_down": self.down,
            "bytes_up": self.up,
        }


def payload(update: Update, asked: Mapping[str, tuple[Tensor, str]]) -> tuple[int, int]:
    """(bytes down, bytes up): 4 for each number, and up 4 more for each row number of a table."""
    known = {name: rows for name, rows in update.deltas.items() if name in asked}
    floats = sum(FLOATS * rows.values.numel() for rows in known.values())
    tables = {
        asked[name][1]: len(rows.ids) for name, rows in known.items() if asked[name][1] != "one"
    }
    return floats, floats + FLOATS * sum(tables.values())


def admitted(
    landed: Iterable[Sent], context: RoundContext, stages: Sequence[Stage], books: Books
) -> Iterator[Update]:
    """The updates that come through the gate, after the server's stages."""
    came: set[int] = set()
    for every in landed:
        books.count(every.update, context.asked)
        asked = {n: rows for n, rows in every.update.deltas.items() if n in context.asked}
        length = norms(asked, len(every.update.cohort))
        bad, sent = reasons(every, length, context, came), every
        if bad:
            fine = torch.tensor([place not in bad for place in range(len(every.update.cohort))])
            books.rejected |= {int(every.update.cohort[place]): why for place, why in bad.items()}
            sent, length = every.only(fine), length[fine]
        books.keep(sent, length.float())
        if not len(sent.update.cohort):
            continue
        update = replace(sent.update, deltas={n: sent.update.deltas[n] for n in context.asked})
        for stage in stages:
            update = checked(stage, update, context)
        yield update


def checked(stage: Stage, update: Update, context: RoundContext) -> Update:
    """What leaves a stage; raises `ParameterError` for one that changes names or shapes."""
    found, clients = stage.each(update, context), len(update.cohort)
    require(isinstance(found, Update), stage.name, found, "a stage returns an Update")
    counted = found.bytes_up
    require(
        counted is None or (counted.shape == (clients,) and bool((counted >= 0).all())),
        stage.name,
        counted,
        f"bytes_up has a number from 0 for each of {clients} clients",
    )
    require(
        found.deltas.keys() == update.deltas.keys(),
        stage.name,
        sorted(found.deltas),
        f"a stage hands on the names that it is given: {', '.join(sorted(update.deltas))}",
    )
    for name, rows in found.deltas.items():
        shape, given = rows.values.shape[1:], update.deltas[name].values.shape[1:]
        require(
            shape == given,
            stage.name,
            tuple(shape),
            f"a stage keeps the shape of rows; those of {name!r} are {tuple(given)}",
        )
    return found


def reasons(sent: Sent, length: Tensor, context: RoundContext, came: set[int]) -> dict[int, str]:
    """The place in the chunk of each client whose update is refused -> why.

    length (C,): the L2 norm of each update. came: the clients that have sent an update in this
    round; those of the chunk are added to it.
    """
    bad: dict[int, str] = {}
    update, invited = sent.update, context.plan.invited

    def refuse(places: Tensor, reason: str) -> None:
        for place in dict.fromkeys(places.flatten().tolist()):
            bad.setdefault(place, reason)

    numbers = update.cohort.tolist()
    senders = set(numbers)
    once = len(senders) == len(numbers) and came.isdisjoint(senders)
    if not (once and senders <= invited.keys()):  # a loop over 10,000 clients takes 4 ms
        for place, client in enumerate(numbers):
            if client not in invited:
                bad[place] = "it was not invited"
            elif client in came:
                bad[place] = "it has already sent an update"
            came.add(client)
    came |= senders
    heaviest = float(context.data.counts.max())
    fits = (update.weights > 0) & (update.weights <= heaviest)
    refuse((~fits).nonzero(), f"its weight is not above 0 and at most {heaviest:g}")
    doubt = norms(sent.own, len(update.cohort)) + update.losses.cpu()
    squares = (length + doubt).float().square()  # what cannot be squared cannot be added up, either
    refuse(
        (~squares.isfinite()).nonzero(),
        "its delta or loss is not finite; lower local_lr, or look at its data",
    )
    longest = context.notes["longest"]
    refuse((length > longest * (1 + 1e-5)).nonzero(), f"it is longer than the clip of {longest:g}")
    _check_rows(update, context, refuse)
    return bad


def _check_rows(update: Update, context: RoundContext, refuse: Any) -> None:
    """Refuse clients whose rows are not the server's in name, type, shape or number."""
    everybody, grown = torch.arange(len(update.cohort)), set[tuple[int, int, int]]()
    for name in context.asked:
        if name not in update.deltas:
            refuse(everybody, f"{name!r} is missing")
    for name, rows in update.deltas.items():
        if name not in context.asked:
            refuse(rows.client, f"nobody asked for {name!r}")
            continue
        server, _ = context.asked[name]
        values, height = rows.values, len(server)
        if values.shape[1:] != server.shape[1:]:
            refuse(
                rows.client,
                f"its {name!r} has rows of shape {tuple(values.shape[1:])}, the server's have "
                f"{tuple(server.shape[1:])}",
            )
        if values.dtype != torch.float32 or rows.ids.dtype != torch.int64:
            refuse(
                rows.client,
                f"its {name!r} holds {values.dtype} at {rows.ids.dtype}; send float32 at int64",
            )
            continue
        same = rows.ids.data_ptr(), len(rows.ids), height
        if same in grown or not len(rows.ids):
            continue  # a parameter with the same rows, such as a bias, has been looked at
        grown.add(same)
        outside = (rows.ids < 0) | (rows.ids >= height)
        if outside.any():
            refuse(
                rows.client[outside],
                f"its {name!r} has a row that is none of the server's {height}",
            )
        repeated = (rows.client[1:] == rows.client[:-1]) & (rows.ids[1:] <= rows.ids[:-1])
        if repeated.any():
            refuse(rows.client[1:][repeated], f"its row numbers of {name!r} do not grow")
