"""The coordinator: `federate` over nodes. It holds no row of anybody's data, and no private row.

It brings a `local` that asks nodes for the client half of a round, so all that comes behind it is
what it is in one process: the gate, server stages, aggregation, the server's step, Rounds, ledger,
runs, resume, live knobs. Client stages act on the node; here they state their facts, and act no
second time: a clip is held by the gate, which refuses what is longer. Weights are the roster's, and
no answer changes them.

A node that is lost, late or answers nonsense loses its clients for the round, with a reason. Where
fewer than a quorum of the cohort are left, the round is skipped.

Letters: N clients in all, C in a cohort, R rows.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from fedlab.aggregation import NoDeltaError
from fedlab.algorithms import federate
from fedlab.core import (
    REGISTRY,
    Key,
    Local,
    ParameterError,
    Part,
    Recipe,
    Round,
    RoundContext,
    Stage,
    Tree,
    Update,
    knobs,
    made_with,
    require,
)
from fedlab.core.knobs import strict, title_of
from fedlab.core.settings import UNTIDY
from fedlab.engine import SGD
from fedlab.models import Model
from fedlab.nodes.lines.transport import Lost, Transport
from fedlab.nodes.messages import Message, MessageError, pack, put_tables, rows_from, unpack
from fedlab.nodes.node import knobs_of
from fedlab.nodes.secure import Sum, envelopes, packed
from fedlab.nodes.share import Place, without_rows
from fedlab.privacy import Clip, DistributedGaussian, SecureSum

TOTAL = "secure total"  # where a round's notes have what its nodes have added up
BOOKS = "over nodes"  # where a Round's state says what nodes were asked and told
SUMS = {"clicks": ("hr@10", "ndcg@10"), "ratings": ("squares",)}  # of which metrics are made
VERSIONS = 64  # rounds of which it is known which rows they changed


@dataclass(frozen=True)
class Roster:
    """Who holds how much, as nodes have said: a `Source` without an example.

    counts (N,): rows of each client; clients lie node after node, in the order of `names`.
    clients, users: how many each node has. items: I. keys: nodes' public keys, for secure sums.
    """

    names: tuple[str, ...]
    clients: tuple[int, ...]
    users: tuple[int, ...]
    items: int
    task: str
    counts: Tensor
    draws_negatives: bool = True
    keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        """N, the number of clients."""
        return len(self.counts)

    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree:
        """Raise `ParameterError`: examples are on the nodes."""
        raise ParameterError("data='a roster': it holds no examples; what needs some runs on nodes")

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where each node's clients and users are among all."""
        found, client, user = {}, 0, 0
        for name, clients, users in zip(self.names, self.clients, self.users, strict=True):
            found[name] = Place(len(self), client, sum(self.users), user)
            client, user = client + clients, user + users
        return found

    def parted(self, cohort: Tensor) -> dict[str, Tensor]:
        """The clients (C,) of a cohort by their node, in the roster's order."""
        ends = torch.tensor(self.clients).cumsum(0)
        node = torch.searchsorted(ends, cohort, right=True)
        parts = {name: cohort[node == k] for k, name in enumerate(self.names)}
        return {name: part for name, part in parts.items() if len(part)}


def gathered(
    transport: Transport, seconds: float = 60.0, count: int = 1, *, told: bool = True
) -> Roster:
    """Wait until `count` nodes are there, and ask who they are.

    told: whether nodes say how many rows each client has, which a private run must not know.
    Raises `ParameterError` where fewer are there within `seconds`, and for nodes that do not fit
    together.
    """
    end = time.monotonic() + seconds
    while True:
        there = {name for name, why in transport.nodes().items() if not why}
        if len(there) >= count or time.monotonic() >= end:
            break
        time.sleep(min(0.05, seconds))
    fix = f"{len(there)} of {count} are there within {seconds:g} s; start them, or wait longer"
    require(len(there) >= max(1, count), "nodes", sorted(there), fix)
    found = introduced(transport, there, seconds, told=told)
    bad = {name: one for name, one in found.items() if isinstance(one, str)}
    require(not bad, "nodes", sorted(bad), next(iter(bad.values()), ""))
    return roster_of(cast(dict[str, Message], found))


def introduced(
    transport: Transport, names: Iterable[str], seconds: float, *, told: bool = True
) -> dict[str, Message | str]:
    """By name, in order, what nodes say of themselves, or why one of them says nothing."""
    question = pack({"ask": "hello", "counts": told})
    answers = dict(transport.ask(dict.fromkeys(names, question), seconds))
    return {name: _read(name, answers[name]) for name in sorted(answers)}


def roster_of(found: Mapping[str, Message]) -> Roster:
    """The roster of nodes that have introduced themselves; `ParameterError` for unlike ones."""
    heads = {name: message.head for name, message in found.items()}
    for about, what in (("task", "tasks"), ("items", "numbers of items"), ("negatives", "draws")):
        said = {name: head.get(about) for name, head in heads.items()}
        fix = f"nodes of one federation have the same {about}; these have different {what}"
        require(len({repr(each) for each in said.values()}) == 1, "nodes", said, fix)
    try:
        counts = [_counts(message) for message in found.values()]
        first = next(iter(found.values()))
        return Roster(
            tuple(found),
            tuple(map(len, counts)),
            tuple(message.get("users", int) for message in found.values()),
            first.get("items", int),
            first.get("task", str),
            torch.cat(counts),
            first.get("negatives", bool),
            tuple(message.get("key", str) for message in found.values()),
        )
    except MessageError as error:
        raise ParameterError(
            f"nodes={list(found)!r}: a node says nonsense of itself: {error}"
        ) from error


def _counts(message: Message) -> Tensor:
    counts = message.tensor("counts", torch.int64, -1)
    if not len(counts) or int(counts.min()) < 1 or int(counts.max()) > 2**40:
        raise MessageError("every client has a row or more")
    return counts


def _read(name: str, answer: bytes | Lost) -> Message | str:
    """The message of an answer, or why there is none."""
    if isinstance(answer, Lost):
        return f"node {name}: {answer.why}"
    try:
        found = unpack(answer)
        if "error" in found.head:
            return f"node {name}: {_line_of(found.get('error', str))}"[:300]
        return found
    except MessageError as error:
        return f"node {name}: its answer is not taken: {error}"


def _line_of(text: str) -> str:
    """What a node says, without what would do something to a terminal or to a list of lines."""
    return UNTIDY.sub(" ", text)


@dataclass
class Line:
    """The coordinator's end of the line to its nodes: what each of them has, and what it costs.

    seconds: how long a round waits for answers. quorum: the least share of a cohort that a step is
    made from. held: node -> the version of the tables that it has. changed: version -> by kind, the
    rows that changed since the version noted before.
    """

    transport: Transport
    roster: Roster
    about: Mapping[str, Any]
    seconds: float = 60.0
    quorum: float = 0.5
    held: dict[str, int] = field(default_factory=dict)
    changed: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    latest: tuple[int, Tree] = (-1, {})
    down: int = 0
    up: int = 0

    def note(self, version: int, tables: Tree, kinds: Mapping[str, str]) -> None:
        """Note the server's tables, and which rows are not as they were."""
        known, before = self.latest
        if version == known and all(before[n] is value for n, value in tables.items()):
            return
        if version <= known or before.keys() != tables.keys():
            self.changed, self.held, before = {}, {}, {}
        rows: dict[str, list[Tensor]] = {}
        for name, value in tables.items() if before else ():
            moved = (value != before[name]).view(len(value), -1).any(1)
            rows.setdefault(kinds[name], []).append(moved.nonzero()[:, 0])
        self.changed[version] = {kind: torch.cat(each).unique() for kind, each in rows.items()}
        while len(self.changed) > VERSIONS:
            del self.changed[min(self.changed)]
        self.latest = version, dict(tables)

    def question(
        self, name: str, head: Mapping[str, Any], kinds: Mapping[str, str], *, whole: bool = False
    ) -> bytes:
        """What a node is asked, with the tables that it lacks."""
        (version, tables), base = self.latest, self.held.get(name, -1)
        rows = None
        if not whole and base in self.changed:
            later = [each for n, each in self.changed.items() if n > base]
            kept = {kind for each in later for kind, ids in each.items() if len(ids)}
            rows = {
                kind: torch.cat([each[kind] for each in later]).unique() for kind in sorted(kept)
            }
        about, tensors = put_tables(tables, kinds, rows)
        place = self.roster.places[name]
        where = {each.name: getattr(place, each.name) for each in fields(Place)}
        own = {"base": base, "round": version + 1, **where, **self.about}
        return pack({**head, **about, **own}, tensors)

    def asked(
        self,
        questions: Callable[..., bytes],
        names: Iterable[str],
        read: Callable[[str, Message], Any],
        *,
        tables: bool = True,
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Ask nodes, those that lack tables again with all of them: (what they said, who is lost).

        questions(name, whole=...): what a node is asked. read: turns an answer into what it says.
        tables: whether questions bring tables.
        """
        end, found, lost = time.monotonic() + self.seconds, dict[str, Any](), dict[str, str]()
        to = {name: questions(name, whole=False) for name in names}
        for turn in range(2):
            again, self.down = [], self.down + sum(map(len, to.values()))
            for name, answer in self.transport.ask(to, max(0.0, end - time.monotonic())):
                self.up += 0 if isinstance(answer, Lost) else len(answer)
                said = _read(name, answer)
                if isinstance(said, Message) and said.head.get("stale") is True and not turn:
                    again.append(name)
                    continue
                try:
                    found[name] = _taken(name, said, read)
                    self.held |= {name: self.latest[0]} if tables else {}
                except MessageError as error:
                    lost[name] = str(error)
                    self.held.pop(name, None)
            to = {name: questions(name, whole=True) for name in again}
            if not to:
                break
        return found, lost


def _taken(name: str, said: Message | str, read: Callable[[str, Message], Any]) -> Any:
    if isinstance(said, str):
        raise MessageError(said)
    try:
        return read(name, said)
    except MessageError as error:
        raise MessageError(f"node {name}: its answer is not taken: {error}") from error


def _clients_of(lost: Mapping[str, str], parts: Mapping[str, Tensor]) -> dict[int, str]:
    """Why each client of lost nodes does not count; parts: node -> its clients in the cohort."""
    return {c: why for name, why in lost.items() if name in parts for c in parts[name].tolist()}


# updates, the nodes that know what counted, and why others are lost
Answered = tuple[list[Update], Iterable[str], Mapping[str, str]]


class Over:
    """What a local update does over nodes; `over_nodes` mixes it into the local update's class."""

    line: Line
    uplink: tuple[str, ...]
    secure: bool

    def check(self, context: RoundContext) -> None:
        """Check as in one process; note what has counted of the round before."""
        super().check(context)  # type: ignore[misc]
        memory = context.memory(cast(Part, self))
        memory[BOOKS] = settled(memory.get(BOOKS), context.before)

    def train(self, context: RoundContext, cohort: Tensor) -> Iterator[Update]:
        """Yield what the clients (C,) of each node learned, in the roster's order."""
        line, me = self.line, cast(Local, self)
        books, parts = context.memory(me)[BOOKS], line.roster.parted(cohort)
        line.down = line.up = 0
        ask = asking(line, context, me, books)
        head = {
            "local": me.name,
            "knobs": knobs_of(me),
            "uplink": list(self.uplink),
            "settings": dict(context.settings),
        }

        def question(name: str, more: Mapping[str, Any], *, whole: bool) -> bytes:
            mine = parts.get(name, cohort[:0]).tolist()
            return ask(name, {**head, **more, "cohort": mine}, whole=whole)

        train = self._summed if self.secure else self._singly
        try:
            found, here, lost = train(context, parts, question)
        finally:
            context.notes |= {"bytes_down": line.down, "bytes_up": line.up}
        told = noted(books, line.roster, here)
        asked = told["asked"] | dict.fromkeys(cohort.tolist(), context.number)
        context.memory(me)[BOOKS] = told | {"asked": asked}
        context.notes["lost"] = _clients_of(lost, parts)
        there = sum(len(update.cohort) for update in found)
        if there < line.quorum * len(cohort):
            raise NoDeltaError(
                f"the nodes of {there} of {len(cohort)} clients answered, fewer than the quorum of "
                f"{line.quorum:g}; the model stays as it is"
            )
        yield from found

    def _singly(
        self, context: RoundContext, parts: Mapping[str, Tensor], question: Callable[..., bytes]
    ) -> Answered:
        """Each node's update by itself: (they, who answered, who is lost)."""

        def read(name: str, said: Message) -> Update:
            context.notes["engine"] = _line_of(said.get("engine", str))[:200]
            return update_from(said, parts[name], context)

        about = {"ask": "train"}
        found, lost = self.line.asked(
            lambda name, *, whole: question(name, about, whole=whole), parts, read
        )
        return [found[name] for name in parts if name in found], found, lost

    def _summed(
        self, context: RoundContext, parts: Mapping[str, Tensor], question: Callable[..., bytes]
    ) -> Answered:
        """The secure sum, noted for its stage, and envelopes in place of updates."""
        lost: dict[str, str] = {}
        knowing: dict[str, Any] = {}

        def ask(step: str, to: Mapping[str, Mapping[str, Any]], read: Callable[..., Any]) -> Any:
            masked = step == "masked"

            def asked(name: str, *, whole: bool) -> bytes:
                if not masked:
                    return packed(to[name], step)
                about = {"ask": "secure", "step": step}
                return question(name, {**to[name], **about}, whole=whole)

            said, gone = self.line.asked(asked, to, lambda _, m: read(m), tables=masked)
            if masked:
                knowing.update(said)
            lost.update({name: f"{why} (in a secure sum: {step})" for name, why in gone.items()})
            return said

        keys = dict(zip(self.line.roster.names, self.line.roster.keys, strict=True))
        clients = {name: len(part) for name, part in parts.items()}
        try:
            total, losses = Sum(keys, ask).total(context, clients)
        except NoDeltaError:
            context.notes["lost"] = _clients_of(lost, parts)
            raise
        context.notes[TOTAL] = total
        return (
            list(envelopes(parts, losses, context)),
            knowing,
            {n: why for n, why in lost.items() if n not in losses},
        )


def asking(
    line: Line, context: RoundContext, local: Local, books: Mapping[str, Any]
) -> Callable[..., bytes]:
    """A function (node, head, whole=...) -> the question, once what nodes may lack is noted."""
    told = local.tells(context)
    names = [n for n in context.model.rows if n not in context.model.private]
    tables = {name: context.params[name] for name in names} | told
    kinds = {
        name: context.asked[name][1] if name in context.asked else context.model.rows[name]
        for name in tables
    }
    line.note(context.before.number, tables, kinds)

    def question(name: str, head: Mapping[str, Any], *, whole: bool) -> bytes:
        place, count = line.roster.places[name], line.roster.clients[line.roster.names.index(name)]
        mine = range(place.client, place.client + count)
        counted = {c: first for c, first in books["counted"].items() if c in mine}
        own = {
            "run": books["run"],
            "seed": context.seed,
            "counted": list(counted),
            "trained": list(counted.values()),
        }
        return line.question(name, {**head, **own}, kinds, whole=whole)

    return question


def settled(books: Mapping[str, Any] | None, before: Round) -> dict[str, Any]:
    """The books after a round: who trained in which round, and what nodes are to be told.

    run: a name that no other run has. asked: client -> the round in which it last trained. counted:
    client -> the round whose update counted, as long as its node may not know.
    """
    if books is None:
        return {"run": secrets.token_hex(8), "asked": {}, "counted": {}}
    asked = dict(books["asked"])
    fresh = {c: asked.pop(c) for c in before.cohort.tolist() if c in asked}
    return {"run": books["run"], "asked": asked, "counted": books["counted"] | fresh}


def noted(books: Mapping[str, Any], roster: Roster, here: Iterable[str]) -> dict[str, Any]:
    """The books after nodes have answered: those that are `here` know what counted."""
    knowing = [roster.names.index(name) for name in here]
    ends = torch.tensor(roster.clients).cumsum(0)
    clients = torch.tensor(list(books["counted"]), dtype=torch.int64)
    node = torch.searchsorted(ends, clients, right=True).tolist()
    pairs = zip(books["counted"].items(), node, strict=True)
    return {**books, "counted": {client: first for (client, first), k in pairs if k not in knowing}}


def update_from(said: Message, cohort: Tensor, context: RoundContext) -> Update:
    """What a node says that its clients learned; raises `MessageError` for what cannot be it."""
    if said.get("round", int) != context.number:
        raise MessageError(f"it answers round {said.head['round']}, not {context.number}")
    clients = torch.tensor(said.numbers("cohort"), dtype=torch.int64)
    if clients.sort().values.tolist() != cohort.sort().values.tolist():
        raise MessageError("it is not of the clients that were asked")
    deltas = rows_from(said, len(clients))
    if deltas.keys() != context.asked.keys():
        raise MessageError(f"it sends {sorted(deltas)}; asked was for {sorted(context.asked)}")
    for name, rows in deltas.items():
        like = context.asked[name][0]
        if rows.values.shape[1:] != like.shape[1:]:
            raise MessageError(f"its {name!r} has rows of shape {tuple(rows.values.shape[1:])}")
    losses, steps = (said.tensor(n, torch.float32, len(clients)) for n in ("losses", "steps"))
    equal = "equal" in context.facts.get("gate", {})
    weights = torch.ones_like(losses) if equal else context.data.counts[clients].float()
    return Update(deltas, weights, losses, clients, steps)


def over_nodes(local: Local, line: Line, uplink: Sequence[Stage]) -> Local:
    """The local update, done by nodes: of the same name, knobs, facts and server half."""
    kind = type(local)
    fix = f"over nodes it would lack what the server knows; write `tells` beside {kind.__name__}'s"
    require(made_with(local, "train", "tells"), "local", local.name, f"{fix} `train`")
    _check_plain(local)
    names = tuple(stage.name for stage in uplink if stage.side == "client")
    more = [("line", Any, None), ("uplink", Any, ()), ("secure", bool, False)]
    made = _made(kind, Over, more)
    secure = any(isinstance(stage, SecureSum) for stage in uplink)
    return cast(Local, made(**_values(local), line=line, uplink=names, secure=secure))


class Elsewhere:
    """A client stage that has acted on the node: here it states its facts."""

    def each(self, update: Update, context: RoundContext) -> Update:
        """The update as it came."""
        return update


class Opened:
    """A secure sum that was led while nodes trained: here is what it opened."""

    def add_up(self, updates: Iterable[Update], context: RoundContext) -> Tree:
        """The sum; what comes through the gate are envelopes."""
        for _ in updates:
            pass
        found: Tree = context.notes.get(TOTAL) or {}
        if not found:  # nobody was drawn
            found = {n: torch.zeros_like(v).double() for n, v in context.server.items()}
        return found


def elsewhere(stage: Stage) -> Stage:
    """The stage as the coordinator has it: what clients do, and secure sums, were done with nodes.

    Raises `ParameterError` for a stage that needs single updates of clients that nobody sees.
    """
    fix = "over nodes its noise is not counted yet; take SecureSum and GaussianNoise"
    require(not isinstance(stage, DistributedGaussian), "uplink", stage.name, fix)
    secure = isinstance(stage, SecureSum)
    if stage.side != "client" and not secure:
        return stage
    _check_plain(stage)
    quantile = getattr(stage, "quantile", 0.0) if isinstance(stage, Clip) else 0.0
    fix = "over nodes nobody counts who was shorter; set quantile=0"
    require(not quantile, "quantile", quantile, fix)
    return cast(Stage, _made(type(stage), Opened if secure else Elsewhere)(**_values(stage)))


def _made(kind: type, mixed: type, more: Sequence[Any] = ()) -> Any:
    """A part's class with other methods, and the same name, knobs and facts."""
    return strict(
        make_dataclass(
            f"{kind.__name__}{mixed.__name__}",
            more,
            bases=(mixed, kind),
            namespace={"title": title_of(kind), "__doc__": kind.__doc__},
            frozen=True,
            kw_only=True,
            eq=False,
        )
    )


def _values(part: Part) -> dict[str, Any]:
    return {each.name: getattr(part, each.name) for each in fields(cast(Any, part))}


def _check_plain(part: Part) -> None:
    """Raise `ParameterError` for a part that a message cannot name."""
    known = REGISTRY.get(part.kind, {}).get(part.name) is type(part)
    fix = "nodes find parts by name; register it, and load its file on nodes, too"
    require(known, part.kind, part.name, fix)
    usual = type(part)()
    for name, value in _values(part).items():
        same = name in knobs(type(part)) or value is getattr(usual, name)
        require(same, f"{part.name}.{name}", value, "it cannot be sent to nodes; leave it out")


def shared(model: Model) -> Model:
    """The model as the coordinator has it: without the rows that people keep to themselves."""
    kept = {name: kind for name, kind in model.rows.items() if name not in model.private}

    def init(seed: int) -> Tree:
        return {name: value for name, value in model.init(seed).items() if name in kept}

    return replace(model, init=init, rows=kept, private=frozenset())


class Coordinator:
    """A federation over nodes: what `federate` needs for it, and the metrics of its Rounds.

    transport: what carries bytes. model: a Model of all users and items, or the recipe that each
    node makes it by from its own data. local, uplink: as `federate` takes them. seconds: how long
    is waited for answers. quorum: the least share of a cohort that a step is made from. roster: who
    takes part; by default the nodes that are there now.

    >>> from fedlab import Columns, Settings, perceptron
    >>> from fedlab.nodes import Coordinator, Loop, Node
    >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> def node(name, rows):
    ...     data = Columns({"x": x[rows], "target": (x[rows, 0] > 0).float()}, torch.arange(20) % 2)
    ...     return Node(name, data, model=lambda data: perceptron(3, 8))
    >>> two = [node("left", slice(0, 20)), node("right", slice(20, 40))]
    >>> far = Coordinator(Loop({each.name: each.answer for each in two}), perceptron(3, 8))
    >>> *_, last = far.rounds(Settings(rounds=3, cohort=4))
    >>> last.number, sorted(last.cohort.tolist())
    (3, [0, 1, 2, 3])
    """

    def __init__(
        self,
        transport: Transport,
        model: Model | Recipe,
        *,
        local: Local | None = None,
        uplink: Sequence[Stage] = (),
        seconds: float = 60.0,
        quorum: float = 0.5,
        roster: Roster | None = None,
    ) -> None:
        """Raises `ParameterError` for nodes or parts that do not go together."""
        require(seconds > 0, "seconds", seconds, "choose how long to wait, above 0")
        require(0 <= quorum <= 1, "quorum", quorum, "choose a share of the cohort, from 0 to 1")
        self.data = roster or gathered(transport, seconds)
        about = {"model": "", "recipe": {}}
        if isinstance(model, Recipe):
            about = {"model": model.name, "recipe": knobs_of(model)}
            known = without_rows(sum(self.data.users), self.data.items)
            model = cast(Model, model.build(known, self.data.task))
        self.model, self._whole = shared(model), model
        self.line = Line(transport, self.data, about, seconds, quorum)
        sealed = any(isinstance(stage, SecureSum) for stage in uplink)
        fix = "a secure sum over one node is that node's own; let two or more take part"
        require(len(self.data.names) > 1 or not sealed, "nodes", list(self.data.names), fix)
        self.local = over_nodes(local or SGD(), self.line, uplink)
        self.uplink = [elsewhere(stage) for stage in uplink]

    def rounds(self, settings: Any = None, **more: Any) -> Iterator[Round]:
        """The Rounds of `federate`; more: its other arguments."""
        return federate(
            self.model, self.data, settings, local=self.local, uplink=self.uplink, **more
        )

    def measure(self, done: Round) -> dict[str, float]:
        """The metrics of a Round over all users, from sums that nodes tell.

        `lost nodes` is there where some did not answer: then these are the metrics of the others.
        """
        state = {name: dict(kept) for name, kept in done.state.items()}
        context = RoundContext(
            self.model, self.data, done.settings, done, dict(done.params), state, done.settings.seed
        )
        context.asked = self.local.asks(context)
        books = settled(context.memory(self.local).get(BOOKS), done)
        ask = asking(self.line, context, self.local, books)

        def question(name: str, *, whole: bool) -> bytes:
            return ask(name, {"ask": "measure"}, whole=whole)

        users = dict(zip(self.data.names, self.data.users, strict=True))

        def read(name: str, said: Message) -> dict[str, float]:
            return _sums(said, self.data.task, users[name])

        found, lost = self.line.asked(question, self.data.names, read)
        return metrics(found.values()) | ({"lost nodes": float(len(lost))} if lost else {})


def _sums(said: Message, task: str, users: int) -> dict[str, float]:
    """What a node of so many users adds to the metrics of a task, and to no other figure."""
    sums = said.get("sums", dict)
    if sums.keys() - {"count", *SUMS.get(task, ())}:
        raise MessageError(f"its sums are of other metrics: {sorted(sums)}"[:200])
    if not all(type(value) is float and 0 <= value < 1e15 for value in sums.values()):
        raise MessageError("its sums are not numbers from 0")
    if sums.get("count", -1.0) < max(sums.get("hr@10", 0.0), sums.get("ndcg@10", 0.0)):
        raise MessageError("its sums are more than its users")
    if task == "clicks" and sums["count"] > users:
        raise MessageError(f"it has {users} users, and sums of {sums['count']:g}")
    return sums


def metrics(sums: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Metrics from what nodes add to them.

    >>> metrics([{"count": 2.0, "hr@10": 1.0, "ndcg@10": 0.5}, {"count": 2.0, "hr@10": 0.0}])
    {'hr@10': 0.25, 'ndcg@10': 0.125}
    """
    total: dict[str, float] = {}
    for each in sums:
        for name, value in each.items():
            total[name] = total.get(name, 0.0) + value
    count = total.pop("count", 0.0)
    if not count:
        return {}
    squares = total.pop("squares", None)
    found = {name: value / count for name, value in total.items()}
    return found if squares is None else found | {"rmse": (squares / count) ** 0.5}
