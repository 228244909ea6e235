"""The gate: what the server takes for an update, and the books that it keeps of all that came.

It stands where somebody else's numbers enter the server, in front of everything that reads them:
staleness, control variates, noise, sums. A client whose update fails here is rejected, with a
reason. No decision about one client depends on another's update of the same round: a cap is a
setting, or comes from the model as earlier rounds have left it.

Under a secure sum the server sees who sent, and no numbers. There the same checks are those that an
honest client makes of its own update before it masks it; a dishonest one can skip them.

Letters: C clients of a chunk, R rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor

from fedlab.core import (
    Part,
    RoundContext,
    Rows,
    Sent,
    Summed,
    Update,
    in_memory,
    knob,
    norms,
    register,
)
from fedlab.data import federation_of

FLOATS = 4  # bytes of a number, and of a row number
NOBODY = -1  # in the books, who sent an update that does not say whose it is
COLUMNS = ("weights", "losses", "steps")
NUMBERS = (torch.float32, torch.int64)
KNOWN = 32  # lengths that make a median
GROUP = "gate"


@register
class Gate(Part):
    """How much the server takes from one client.

    A clip bounds lengths itself and makes all weights 1. Behind noise of the clients' own, lengths
    tell nothing, and only the coarse bound is left. Turning a knob makes other lengths right, so
    the median begins anew.
    """

    kind = "gate"
    heaviest: float = knob(
        0.0,
        0.0,
        1e12,
        "examples",
        "the most that a client may weigh; 0 for as many as the largest client holds",
        usual=(0.0, 500.0),
        group=GROUP,
    )
    longest: float = knob(
        1e6,
        1e-9,
        1e12,
        "L2 norm",
        "the longest update that is taken",
        log=True,
        usual=(0.1, 1e6),
        group=GROUP,
    )
    outlier: float = knob(
        0.0,
        0.0,
        1e12,
        "of the median",
        "how long an update may be beside those of rounds before, where clients are alike; 0 for "
        "any length",
        usual=(0.0, 100.0),
        group=GROUP,
    )

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The weight where all are alike, the lengths behind a clip, their median behind noise."""
        weight = ("heaviest",) if "equal" in facts else ()
        lengths = ("longest", "outlier") if "clipped" in facts else ()
        return weight + (lengths or (("outlier",) if "noised" in facts else ()))

    def most(self, context: RoundContext) -> float:
        """The weight that a client may have at most."""
        if "equal" in context.facts[self.name]:
            return 1.0
        return self.heaviest or float(context.data.counts.max())

    def bound(self, context: RoundContext) -> tuple[float, str]:
        """The length that an update may have at most, and what a client is told about it."""
        facts = context.facts[self.name]
        if "clipped" in facts:
            clip = context.notes["clipped"]
            return clip * (1 + 1e-5), f"it is longer than the clip of {clip:g}"
        if "noised" in facts:  # a client's own, of z C on each number, which is long itself
            numbers = sum(value.numel() for value in context.server.values())
            noise = facts["noised"] * context.notes["clipped"] * (numbers**0.5 + 10)
            longest = max(self.longest, 10 * noise)
            return longest, f"it is longer than {longest:.3g}"
        before = self._before(context) if self.outlier else torch.empty(0)
        if len(before) >= KNOWN:
            usual = float(before.median())
            if self.outlier * usual < self.longest:
                return self.outlier * usual, (
                    f"it is longer than {self.outlier:g} times {usual:.3g}, the median of earlier "
                    "ones"
                )
        return self.longest, f"it is longer than longest={self.longest:g}"

    def remember(self, lengths: Tensor, context: RoundContext) -> None:
        """Keep the lengths (C,) that came through, for the rounds that follow."""
        if self.outlier and not context.facts[self.name].keys() & {"clipped", "noised"}:
            kept = torch.cat([self._before(context), lengths])
            context.memory(self)["lengths"] = kept[-max(KNOWN, len(lengths)) :].clone()

    def _before(self, context: RoundContext) -> Tensor:
        """The lengths that earlier rounds took under the same settings."""
        same = context.before.settings == context.settings
        lengths: Tensor = context.memory(self).get("lengths", torch.empty(0))
        return lengths if same else lengths[:0]


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

    def refuse(self, reasons: Mapping[int, str]) -> None:
        """Note who does not count, and why: the first reason, where there are several."""
        self.rejected = dict(reasons) | self.rejected

    def keep(self, sent: Sent, length: Tensor) -> None:
        """Note an update that came through, without its numbers but for the rows that stay."""
        light = Update(
            {}, *(getattr(sent.update, name) for name in ("weights", "losses", "cohort", "steps"))
        )
        self.kept.append(Sent(light, sent.own))
        self.norms.append(length.float())
        self.weight += float(sent.update.weights.sum())

    def own_rows(self, names: Iterable[str]) -> dict[str, Rows]:
        """How far everybody's private rows have moved."""
        return {
            name: Rows.joined(own)
            for name in names
            if (own := [sent.own[name] for sent in self.kept if name in sent.own])
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
    landed: Iterable[Sent], gate: Gate, context: RoundContext, books: Books
) -> Iterator[Update]:
    """The updates that come through the gate, with the names that were asked for."""
    came: set[int] = set()
    for every in landed:
        if fault := unreadable(every, context):
            senders = _senders(every.update)
            books.refuse(dict.fromkeys(senders, fault))
            came.update(senders)
            continue
        books.count(every.update, context.asked)
        asked = {n: rows for n, rows in every.update.deltas.items() if n in context.asked}
        length = norms(asked, len(every.update.cohort))
        bad, sent = reasons(every, length, gate, context, came), every
        if bad:
            fine = torch.tensor([place not in bad for place in range(len(every.update.cohort))])
            books.refuse({int(every.update.cohort[place]): why for place, why in bad.items()})
            sent, length = every.only(fine), length[fine]
        books.keep(sent, length.float())
        if len(sent.update.cohort):
            deltas = {name: sent.update.deltas[name] for name in context.asked}
            yield replace(sent.update, deltas=deltas)
    books.refuse(context.notes.get("lost", {}))
    silent = [client for client in context.plan.invited if client not in came]
    books.refuse(dict.fromkeys(silent, "no update of it came"))


def admit(summed: Summed, counted: Tensor, gate: Gate, context: RoundContext, books: Books) -> bool:
    """Note in the books what came through the gate of updates that are added up already.

    counted (C,): whether each is in the sums. False, and nothing noted, where the gate decides
    otherwise about somebody; then they have to come one by one. What could be wrong with single
    rows of what is sent cannot: they are those of this very simulation.
    """
    sent, bad = Sent(summed.sent, summed.own), dict[int, str]()
    if summed.own.keys() - context.model.private:
        return False
    faults = [*_wrong_numbers(sent, summed.lengths, gate, context), *_wrong_own(sent, context)]
    for places, why in faults:
        for place in dict.fromkeys(places.flatten().tolist()):
            bad.setdefault(place, why)
    fine = torch.ones(len(summed.lengths), dtype=torch.bool)
    fine[list(bad)] = False
    if not torch.equal(fine, counted):
        return False
    for kind, rows in summed.rows.items():
        here = [value for value, own in context.asked.values() if own == kind]
        floats = FLOATS * int(rows.sum()) * sum(value[:1].numel() for value in here)
        books.down += floats
        books.up += floats + FLOATS * int(rows.sum()) * (kind != "one")
    books.refuse({int(summed.sent.cohort[place]): why for place, why in bad.items()})
    kept = sent.only(fine) if bad else sent
    books.keep(kept, summed.lengths[fine])
    return True


def _plain(tensor: Any) -> TypeGuard[Tensor]:
    """Whether this is a dense tensor of one dimension or more, which holds its numbers itself."""
    return (
        type(tensor) is Tensor
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.requires_grad
        and tensor.dim() > 0
    )


def _senders(update: Any) -> list[int]:
    """Whose update this claims to be."""
    cohort = getattr(update, "cohort", None)
    if _plain(cohort) and cohort.dtype == torch.int64 and cohort.dim() == 1:
        return cast(list[int], cohort.tolist())
    return [NOBODY]


def unreadable(sent: Sent, context: RoundContext) -> str:
    """What is wrong with a chunk as a whole, in types or in sizes; '' for nothing."""
    update = sent.update
    if not isinstance(update, Update) or _senders(update) == [NOBODY]:
        return "it is not an Update with the numbers of its senders"
    clients = len(update.cohort)
    if fault := _wrong_columns(update, clients):
        return fault
    if not isinstance(update.deltas, Mapping) or not isinstance(sent.own, Mapping):
        return "its rows are not given by name"
    for name in sent.own:
        if name not in context.model.private:
            return f"nobody keeps {name!r} to itself"
    faults = (_misfit(n, rows, clients) for n, rows in [*update.deltas.items(), *sent.own.items()])
    return next((fault for fault in faults if fault), "")


def _wrong_columns(update: Update, clients: int) -> str:
    """What is wrong with the numbers beside the rows; '' for nothing."""
    columns: dict[str, tuple[Any, tuple[torch.dtype, ...]]] = {
        name: (getattr(update, name), NUMBERS[:1]) for name in COLUMNS
    }
    if update.bytes_up is not None:
        columns["bytes_up"] = update.bytes_up, NUMBERS
    for name, (column, kinds) in columns.items():
        if not _plain(column) or column.shape != (clients,):
            return f"its {name} are not one number for each sender"
        if column.dtype not in kinds:
            return f"its {name} hold {column.dtype}; send {kinds[-1]}"
    bytes_up = torch.zeros(1) if update.bytes_up is None else update.bytes_up
    counts = bool(((bytes_up >= 0) & bytes_up.isfinite()).all())
    return "" if counts else "its bytes_up are no numbers from 0"


def _misfit(name: str, rows: Any, clients: int) -> str:
    """What is wrong with the rows of one name; '' for nothing."""
    columns = [getattr(rows, part, None) for part in ("values", "ids", "client")]
    if not isinstance(rows, Rows) or not all(map(_plain, columns)):
        return f"its {name!r} are no rows"
    values, ids, client = rows.values, rows.ids, rows.client
    if values.dtype != torch.float32 or ids.dtype != torch.int64:
        return f"its {name!r} holds {values.dtype} at {ids.dtype}; send float32 at int64"
    if not len(values) == len(ids) == len(client) or (ids.dim(), client.dim()) != (1, 1):
        return f"its {name!r} has {len(values)} rows and {len(ids)} row numbers"
    grown = client.dtype == torch.int64 and rows.senders(clients) >= 0
    return "" if grown else f"its {name!r} has rows of no sender, or not sender by sender"


def reasons(
    sent: Sent, length: Tensor, gate: Gate, context: RoundContext, came: set[int]
) -> dict[int, str]:
    """The place in the chunk of each client whose update is refused -> why.

    length (C,): the L2 norm of each update. came: the clients that have sent an update in this
    round; those of the chunk are added to it.
    """
    bad = _uninvited(sent.update.cohort.tolist(), context.plan.invited, came)
    for places, why in (*_wrong_numbers(sent, length, gate, context), *_wrong_rows(sent, context)):
        for place in dict.fromkeys(places.flatten().tolist()):
            bad.setdefault(place, why)
    return bad


def _uninvited(
    numbers: Sequence[int], invited: Mapping[int, int], came: set[int]
) -> dict[int, str]:
    """The places of clients that were not invited, or have sent an update before -> which."""
    bad, senders = dict[int, str](), set(numbers)
    once = len(senders) == len(numbers) and came.isdisjoint(senders)
    if not (once and senders <= invited.keys()):  # a loop over 10,000 clients takes 4 ms
        for place, client in enumerate(numbers):
            if client not in invited:
                bad[place] = "it was not invited"
            elif client in came:
                bad[place] = "it has already sent an update, which counts"
            came.add(client)
    came |= senders
    return bad


Faults = Iterator[tuple[Tensor, str]]  # places of clients in the chunk, and what is wrong there


def _wrong_numbers(sent: Sent, length: Tensor, gate: Gate, context: RoundContext) -> Faults:
    """Yield whose weight, loss or length cannot be."""
    update, most = sent.update, gate.most(context)
    fits = (update.weights > 0) & (update.weights <= most)
    told = f"heaviest={most:g}" if most == gate.heaviest else f"{most:g}"
    yield (~fits).nonzero(), f"its weight is not above 0 and at most {told}"
    doubt = norms(sent.own, len(update.cohort)) + update.losses.cpu()
    squares = (length + doubt).float().square()  # what cannot be squared cannot be added up, either
    yield (
        (~squares.isfinite()).nonzero(),
        "its delta or loss is not finite; lower local_lr, or look at its data",
    )
    longest, told = gate.bound(context)
    yield (length > longest).nonzero(), told


def _wrong_rows(sent: Sent, context: RoundContext) -> Faults:
    """Yield whose rows are not the server's, or not its own."""
    update, looked = sent.update, set[Any]()
    everybody = torch.arange(len(update.cohort))
    for name in context.asked:
        if name not in update.deltas:
            yield everybody, f"{name!r} is missing"
    # where all stays, nothing is sent
    silent = torch.full((len(everybody),), bool(context.asked))
    for name, rows in update.deltas.items():
        if name not in context.asked:
            yield rows.client, f"nobody asked for {name!r}"
            continue
        yield from _unlike(name, rows, context.asked[name][0], looked)
        if silent.any():
            if rows.senders(len(everybody)) == len(everybody):
                silent[:] = False
            else:
                silent &= torch.bincount(rows.client, minlength=len(everybody)).cpu() == 0
    yield silent.nonzero(), "it sends no rows"
    yield from _wrong_own(sent, context)


def _wrong_own(sent: Sent, context: RoundContext) -> Faults:
    """Yield whose private rows are not its own."""
    looked = set[Any]()
    for name, rows in sent.own.items():
        yield from _unlike(name, rows, context.params[name], looked)
        foreign = _holder(name, rows.ids, context) != sent.update.cohort[rows.client.cpu()]
        yield rows.client.cpu()[foreign], f"its {name!r} has a row of another client's"


def _unlike(name: str, rows: Rows, server: Tensor, looked: set[Any]) -> Faults:
    """Yield whose rows of a name differ from the server's in shape or number.

    looked: what has been looked at, so that a bias at the rows of its vectors is not again.
    """
    values, height = rows.values, len(server)
    if values.shape[1:] != server.shape[1:]:
        yield (
            rows.client,
            f"its {name!r} has rows of shape {tuple(values.shape[1:])}, the server's have "
            f"{tuple(server.shape[1:])}",
        )
    same = in_memory(rows.ids), height
    if same in looked:
        return
    looked.add(same)
    if rows.growing(height):
        return
    outside = (rows.ids < 0) | (rows.ids >= height)
    if outside.any():
        yield (
            rows.client[outside],
            f"its {name!r} has a row that is none of the server's {height}",
        )
    repeated = (rows.client[1:] == rows.client[:-1]) & (rows.ids[1:] <= rows.ids[:-1])
    if repeated.any():
        yield rows.client[1:][repeated], f"its row numbers of {name!r} do not grow"


def _holder(name: str, ids: Tensor, context: RoundContext) -> Tensor:
    """(R,) the client whose own these rows of a private parameter are; -1 for rows of nobody."""
    ids = torch.where((ids >= 0) & (ids < len(context.params[name])), ids, -1).cpu()
    whole = None if context.model.rows[name] == "client" else federation_of(context.data)
    if whole is None:
        return ids
    each = len(context.params[name]) // len(whole.owner)  # rows of a user, I where they go by pair
    return torch.where(ids >= 0, whole.owner[ids // each], -1)
