"""Parts, and how they go together: each states facts, and one walk refuses what is not sound.

    who takes part -> when -> local training -> client stages | GATE | server stages -> one delta

A part says which facts it `needs` in front of it, which it `refuses` and which it `adds`. `walk`
takes the parts in the order in which they act and hands each the facts in front of it, with their
values: a clip of 2 adds {"clipped": 2.0}, and the noise behind it reads how much it has to hide.
No pair of parts is written down anywhere.

What a part remembers from round to round lies in `Round.state`, under its name, never in itself.

Letters: C clients in a cohort, R rows, N clients in all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from fedlab.core.knobs import REGISTRY, ParameterError, described, knobs, require, title_of
from fedlab.core.rounds import Round
from fedlab.core.settings import Settings
from fedlab.core.tree import Delta, Rows, Score, Tree, Update, whole

P = TypeVar("P", bound="Part")

FACTS = {
    "clipped": "a bound on the length of every update",
    "equal": "clients of equal weight",
    "received": "updates that are still with their clients",
    "summed": "every client's own update",
    "noised": "updates without noise",
    "stale": "updates of this very round",
    "members": "the same clients in every round (late=0 and early=0)",
    "poisson": "a cohort of fixed size (sampling='fixed')",
    "coded": "updates whose every number is sent in full",
    "second moments": "updates that are right number by number, not as a Gram matrix is",
    "counted": "nobody's length counted",
    "dense": "updates that hold some rows of a table",
    "own sampler": "cohorts whose chances are known, as of no sampler of your own",
}
# a stage takes these facts away unless it declares that it keeps them
FRAGILE = ("clipped", "equal")
OF_DATA = ("negatives",)  # facts that data state
BEHIND = {"client": ("received", "summed"), "server": ("summed",), "sum": ()}
REACHED = {"client": (), "server": ("received",), "sum": ("received", "summed")}


class Part:
    """What can be combined: a frozen dataclass whose fields are its knobs, see `register`.

    name: as messages, settings and `Round.state` have it, the `title` or the words of the class.
    """

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    refuses: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Set the name, whether or not the part is registered."""
        cls.name = title_of(cls)

    def adds(self) -> dict[str, Any]:
        """Facts for the parts behind this one, with their values."""
        return {}

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """Knobs without effect in this combination; facts: those in front of this part."""
        return ()

    def unwritten(self, what: str) -> ParameterError:
        """The error of a part that lacks what each of its kind has."""
        return ParameterError(f"{self.name}: write `{what}`, which each {self.kind} has")

    def ready(self, experiment: Any) -> "Part":
        """The part as an experiment uses it, completed with what only the experiment knows."""
        return self


class Local(Part):
    """What a client does in a round. It declares every name that it sends."""

    kind = "local"

    def check(self, context: "RoundContext") -> None:
        """Raise `ParameterError` for a model or data that this method cannot train."""

    def asks(self, context: "RoundContext") -> dict[str, tuple[Tensor, str]]:
        """Name -> (a tensor of its shape, kind of its rows) of all that a client sends."""
        return {
            name: (context.params[name], kind)
            for name, kind in context.model.rows.items()
            if name not in context.model.private
        }

    def train(self, context: "RoundContext", cohort: Tensor) -> Iterator[Update]:
        """Yield what the clients (C,) learned, chunk by chunk; private rows are part of it.

        They stay with their clients: the loop sends only the others.
        """
        raise self.unwritten("train")

    def train_summed(
        self, context: "RoundContext", cohort: Tensor, weights: Tensor, longest: float
    ) -> "Summed | None":
        """What `train` yields, added up where it is made; None where this cannot be done.

        It is asked where nothing but the sum is needed. weights (C,): of each client in the sum, 0
        for who is left out; longest: the length from which a client is left out, too.
        """
        return None

    def tells(self, context: "RoundContext") -> Tree:
        """What clients need beside the parameters, of what the server keeps: name -> tensor.

        Each has a name that clients send and the shape of that. A class that has a `train` of its
        own says here what that reads; who does not is not trained over nodes, whose memory of the
        server is this alone. It may set entries of `context.memory(self)`, as a first round does.
        """
        return {}

    def hears(self, context: "RoundContext", told: Tree) -> None:
        """Set `context.memory(self)`, on a node, to what the server's `tells` says."""

    def work(self, context: "RoundContext", cohort: Tensor) -> Tensor:
        """(C,) examples that each client goes through in a round."""
        counts: Tensor = context.data.counts[cohort]
        return counts

    def finish(self, delta: Delta, context: "RoundContext") -> Delta:
        """Turn the delta of all that was sent into one of the model's names: the server's half.

        What it returns is used up by the server's step; keep a copy of what is to be remembered.
        """
        return delta

    def source(self, data: Any) -> Any:
        """What the method trains on, made from a federation."""
        return data

    def learns(self, model: Any) -> Any:
        """The model that the method trains, made from a recipe's."""
        return model

    def score(self, model: Any, data: Any, done: Round) -> Any:
        """How the method predicts for its users: a Score, or None where the model itself does."""
        return None


class Stage(Part):
    """What happens to updates on the way up.

    side: 'client' acts before an update is sent, 'server' on each update that came through the
    gate, 'sum' on the sum over the cohort. keeps: the fragile facts that still hold behind the
    stage.
    """

    kind = "stage"
    side: ClassVar[str] = "client"
    keeps: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Set the name; raise `ParameterError` for a side that does not exist."""
        super().__init_subclass__()
        require(
            cls.side in BEHIND,
            f"{cls.__name__}.side",
            cls.side,
            f"choose one of {', '.join(BEHIND)}",
        )

    def each(self, update: Update, context: "RoundContext") -> Update:
        """What leaves this stage of a chunk: the same names, rows and shapes."""
        return update

    def begin(self, context: "RoundContext") -> None:
        """Prepare for a round, before anything else happens in it."""

    def done(self, context: "RoundContext") -> None:
        """Finish a round, after the server's step or after the round was skipped."""

    def add_up(self, updates: Iterable[Update], context: "RoundContext") -> Tree | None:
        """The sum of the weighted updates, dense and in float64; None leaves it to the server."""
        return None

    def total(self, total: Tree, context: "RoundContext") -> Tree:
        """The sum over the cohort after this stage."""
        return total

    def spends(self, context: "RoundContext") -> Sequence[Any]:
        """What this round releases, for the ledger (`fedlab.privacy.Spending`)."""
        return ()


class Aggregation(Part):
    """Turns the updates of a cohort into one delta: tensors of the parameters' shapes.

    The updates come as a list, which may be walked as often as needed. An aggregation that
    `streams` gets them only once, so that they need not be in memory together.
    """

    kind = "aggregation"
    refuses: ClassVar[tuple[str, ...]] = ("summed", "second moments")

    def __init_subclass__(cls) -> None:
        """Set the name; a rule of its own is asked, whatever the rule that it derives from may do.

        That may stream, or take sums: the new one says so itself.
        """
        super().__init_subclass__()
        own = vars(cls)
        if "__call__" in own and "delta" not in own:
            cls.delta = Aggregation.delta  # type: ignore[method-assign]
        for name in ("streams", "refuses") if {"__call__", "delta"} & own.keys() else ():
            if name not in own:
                setattr(cls, name, vars(Aggregation)[name])

    @property
    def streams(self) -> bool:
        """Whether it walks the updates once."""
        return False

    @property
    def weighs(self) -> bool:
        """Whether it asks for the weights of clients."""
        return True

    def __call__(self, updates: Iterable[Update], server: Tree) -> Tree:
        """The delta by name; write this, or `delta`."""
        if type(self).delta is Aggregation.delta:
            raise ParameterError(f"{self.name}: it has no rule; write __call__, or delta")
        return {name: whole(d, server[name]) for name, d in self.delta(updates, server).items()}

    def check(self, context: "RoundContext") -> None:
        """Raise `ParameterError` for updates in which it would change nothing."""

    def given(self, context: "RoundContext") -> Tree:
        """What it is handed as `server`: tensors of the shapes of what clients send."""
        return context.server

    def delta(self, updates: Iterable[Update], server: Tree) -> Delta:
        """The delta by name; a table of which few rows moved may be given as `Rows` of these."""
        return self(updates, server)


class Schedule(Part):
    """Whose updates arrive when.

    apart: whether what becomes of one client's update hangs on no other client. Noise in a sum
    hides a client only then.
    """

    kind = "schedule"
    apart: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Set the name; a plan of its own says itself that it keeps clients apart."""
        super().__init_subclass__()
        if {"plan", "land", "received"} & vars(cls).keys() and "apart" not in vars(cls):
            cls.apart = False

    def plan(self, context: "RoundContext", who: Any) -> "Plan":
        """Who starts to train in this step of the server, and whose updates may arrive."""
        raise self.unwritten("plan")

    def land(self, sent: "Iterator[Sent]", context: "RoundContext") -> "Iterator[Sent]":
        """Yield the updates that arrive in this step, whether sent now or in an earlier one."""
        return sent

    def received(self, update: Update, context: "RoundContext") -> Update:
        """What the server makes of an update that came through the gate, say by its age."""
        return update


class Dataset(Part):
    """Interactions that a run can be made of."""

    kind = "data"

    def load(self) -> Any:
        """The `Interactions`."""
        raise self.unwritten("load")


class Partition(Part):
    """Who is a client: a federation deals users out to clients."""

    kind = "partition"

    def owner(self, train: Any, seed: int) -> Tensor:
        """(U,) the client of each user of these train ratings."""
        raise self.unwritten("owner")


class Recipe(Part):
    """How a model is made for the data at hand."""

    kind = "model"
    draws_negatives: ClassVar[bool] = True  # unseen items beside clicks, unless targets are given

    def build(self, train: Any, task: str) -> Any:
        """The `Model` for these train ratings."""
        raise self.unwritten("build")

    def source(self, data: Any) -> Any:
        """What the model trains on, made from a federation."""
        return data

    def score(self, model: Any, data: Any, params: Tree) -> Score | None:
        """How these parameters predict, where `scorer` cannot tell; else None."""
        return None


class Metric(Part):
    """What is measured of a Round.

    modes: name of each number -> whether 'max' or 'min' is better.
    """

    kind = "metric"
    task: ClassVar[str] = "clicks"
    modes: ClassVar[Mapping[str, str]] = {}

    def measure(self, score: Score, experiment: Any) -> dict[str, float]:
        """The numbers, over the validation part of an experiment."""
        raise self.unwritten("measure")


@dataclass(frozen=True)
class Drawn:
    """A cohort and how it was really drawn: the ledger believes nothing else.

    cohort (C,): client numbers. rate: the chance of a member to be drawn, or the share drawn.
    sampling: 'fixed', 'poisson' or 'all'. expected: the mean number of clients in a sum.
    """

    cohort: Tensor
    rate: float
    sampling: str
    expected: float


@dataclass(frozen=True)
class Plan:
    """Who starts to train in one step of the server, and whose updates may arrive.

    start (C,): clients that train now, those with most examples first. invited: the clients whose
    updates may arrive now -> the number of the round in which each started. rejected: client -> why
    its update never will. clock: simulated seconds at the end. late (L,): the rejected clients that
    had already sent their updates.
    """

    start: Tensor
    invited: Mapping[int, int]
    rejected: dict[int, str]
    clock: float
    drawn: Drawn | None = None
    late: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


@dataclass(frozen=True)
class Sent:
    """A chunk of updates on its way, and the private rows that stay with their clients."""

    update: Update
    own: dict[str, Rows]

    def only(self, chosen: Tensor) -> "Sent":
        """Some of its clients: chosen (C,)."""
        mine = chosen.to(self.update.weights.device)
        return Sent(self.update.only(chosen), {n: rows.only(mine) for n, rows in self.own.items()})


@dataclass(frozen=True)
class Summed:
    """What a cohort has sent, added up where it was made, so that nobody else sees single updates.

    sent: of everybody, without deltas. lengths (C,): L2 norms, float64. rows: for each kind, how
    many rows each client sends. sums: weighted sums by name, over everybody with a finite loss, a
    length within the bound and a weight above 0. own: everybody's private rows.
    """

    sent: Update
    lengths: Tensor
    rows: Mapping[str, Tensor]
    sums: dict[str, Tensor | Rows]
    own: dict[str, Rows]


@dataclass
class RoundContext:
    """What parts may know of a round.

    params: the server's parameters and everybody's private rows at its start. facts: by the name of
    each part, the facts in front of it. asked: what clients send (`Local.asks`). metrics: to add
    to. notes: what parts tell each other within the round. local: what clients do. share: the
    weight of the clients that were aggregated over that of all clients. private: whether the run
    spends privacy.
    """

    model: Any
    data: Any
    settings: Settings
    before: Round
    params: Tree
    state: dict[str, dict[str, Any]]
    seed: int = 0
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    asked: dict[str, tuple[Tensor, str]] = field(default_factory=dict)
    plan: Plan = field(default_factory=lambda: Plan(torch.empty(0, dtype=torch.int64), {}, {}, 0.0))
    metrics: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    local: Any = None
    share: float = 1.0
    private: bool = False

    @property
    def number(self) -> int:
        """The number of the round under way, from 1."""
        return self.before.number + 1

    def work(self, cohort: Tensor) -> Tensor:
        """How many examples clients (C,) go through; 1 where nobody says what they do."""
        if self.local is None:
            return torch.ones(len(cohort))
        found: Tensor = self.local.work(self, cohort)
        return found

    @property
    def expected(self) -> float:
        """The mean number of clients in a sum, at least one: what a noisy sum is divided by."""
        drawn = self.plan.drawn
        return max(1.0, drawn.expected if drawn else float(len(self.plan.invited)))

    @property
    def server(self) -> Tree:
        """Name -> tensor of the shape of what clients send."""
        return {name: value for name, (value, _) in self.asked.items()}

    def memory(self, part: Part) -> dict[str, Any]:
        """What this part keeps; set entries, never change one in place: earlier Rounds share it.

        It goes to disk: numbers, texts, tensors, lists, tuples and dicts of them, or `stored`
        dataclasses.
        """
        return self.state.setdefault(part.name, {})

    def fact(self, part: Part, name: str) -> Any:
        """The value of a fact in front of this part."""
        return self.facts[part.name][name]


def walk(
    parts: Sequence[Part], facts: Mapping[str, Any], *, advise: bool = True
) -> dict[str, dict[str, Any]]:
    """Name of each part -> the facts in front of it.

    facts: those that hold before the first part. Raises `ParameterError` that names two parts, or a
    part and what is missing, and a way out. advise: whether to look if another order is one.
    """
    now, found = dict(facts), dict[str, dict[str, Any]]()
    cause = dict.fromkeys(now, "the data")
    for part in parts:
        require(
            part.name not in found, "parts", part.name, "it is there twice; leave one of them out"
        )
        _check_stated(part)
        found[part.name] = dict(now)
        side = part.side if isinstance(part, Stage) else ""
        if fault := _fault(part, side, now, cause):
            way = _way_out(parts, facts, part, fault[1]) if advise and fault[1] else fault[2]
            raise ParameterError(f"{part.name}: {fault[0]}{way}")
        if isinstance(part, Stage):
            for fact in set(FRAGILE) & now.keys() - set(part.keeps):
                del now[fact]
                cause[fact] = part.name
        added = part.adds() | dict.fromkeys(REACHED.get(side, ()), True)
        cause |= {fact: part.name for fact in added if fact not in now}
        now |= added
    return found


def _check_stated(part: Part) -> None:
    """Raise `ParameterError` for a part that was not registered, and for facts that nobody adds."""
    bare = [name for name, value in vars(type(part)).items() if isinstance(value, Field)]
    require(
        not bare,
        part.name,
        ", ".join(bare),
        f"its knobs have no values; write @register in front of {type(part).__name__}",
    )
    for where in ("needs", "refuses", "keeps"):
        stated = getattr(part, where, ())
        require(isinstance(stated, tuple), f"{part.name}.{where}", stated, "give a tuple of facts")
        for fact in stated if where != "needs" else ():
            known = fact in (*FACTS, *OF_DATA) or fact in part.adds() or _makers(fact)
            fix = f"no registered part adds it; known facts are {', '.join(FACTS)}"
            require(bool(known), f"{part.name}.{where}", fact, fix)


def _fault(
    part: Part, side: str, facts: Mapping[str, Any], cause: Mapping[str, str]
) -> tuple[str, str, str] | None:
    """What a part does not find, or finds and refuses; who caused it; else what to do; or None."""
    for fact in part.needs:
        if fact not in facts:
            what, makers = f"needs {FACTS.get(fact, fact)}; ", _makers(fact)
            if fact in cause:
                return f"{what}{cause[fact]} took it away: ", cause[fact], ""
            if makers:
                return what, "", f"put {' or '.join(makers)} in front of it"
            return what, "", f"no registered part adds {fact!r}; known facts are {', '.join(FACTS)}"
    for fact in (*part.refuses, *BEHIND.get(side, ())):
        if fact in facts:
            what = FACTS.get(fact, "to be without " + fact)
            return f"needs {what}, which {cause[fact]} takes away; ", cause[fact], ""
    return None


def _way_out(parts: Sequence[Part], facts: Mapping[str, Any], part: Part, other: str) -> str:
    """What to do about two parts: a sound order of the stages, or leave one of them out."""
    found = next((each for each in parts if each.name == other), None)
    if found is None:
        return f"train on other data, or leave {part.name} out"
    if not isinstance(found, Stage | Aggregation | Local | Schedule):
        return f"turn {other} back, or leave {part.name} out"
    places = [place for place, each in enumerate(parts) if isinstance(each, Stage)]
    for stage in (found, part):
        for place in places if isinstance(stage, Stage) else ():
            order = [each for each in parts if each is not stage]
            order.insert(place, stage)
            try:
                walk(order, facts, advise=False)
            except ParameterError:
                continue
            names = ", ".join(each.name for each in order if isinstance(each, Stage))
            return f"put them in the order {names}, or leave one of them out"
    return "leave one of them out"


def _makers(fact: str) -> list[str]:
    """Names of the registered parts that add a fact."""
    return [
        title
        for parts in REGISTRY.values()
        for title, cls in parts.items()
        if issubclass(cls, Part) and fact in cls().adds()
    ]


def turned(part: P, settings: Mapping[str, Any]) -> P:
    """The part with the knobs that it has turned as the settings say."""
    mine = {name: value for name, value in settings.items() if name in knobs(type(part))}
    return replace(part, **mine) if mine else part  # type: ignore[type-var]


def unturned(part: P, names: Iterable[str]) -> P:
    """The part with those of its knobs as usual that are in `names`."""
    mine = {name: described()[name].default for name in names if name in knobs(type(part))}
    return replace(part, **mine) if mine else part  # type: ignore[type-var]


def unread(
    parts: Sequence[Part], facts: Mapping[str, Mapping[str, Any]], names: Iterable[str]
) -> dict[str, str]:
    """The knobs among `names` that nothing in this combination reads: name -> why."""
    found = {}
    for name in names:
        readers = [part for part in parts if name in knobs(type(part))]
        idle = [part.name for part in readers if name in part.idle(facts[part.name])]
        if not readers:
            others = described()[name].readers
            kinds = {kind for kind, known in REGISTRY.items() if known.keys() & set(others)}
            here = " and ".join(part.name for part in parts if part.kind in kinds)
            found[name] = (
                f"nothing in this run reads it{here and ' beside ' + here}; {', '.join(others)} "
                "would"
            )
        elif len(idle) == len(readers):
            found[name] = f"{' and '.join(idle)} does not read it in this combination"
    return found


def check_read(
    parts: Sequence[Part], facts: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Raise `ParameterError` for a turned knob that nothing in this combination reads."""
    for name, why in unread(parts, facts, settings).items():
        require(False, name, settings[name], f"{why}; leave it as it was")
