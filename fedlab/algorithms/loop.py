"""The one loop: a federation is a stream of Rounds, and `federate` is its generator.

    who takes part -> local training -> client stages | GATE | server stages -> one delta
    -> the server's step -> a Round

What is asynchronous, private, meta, implicit or over nodes takes other parts, never another loop.
Notebooks, plots, widgets and tests read the same stream; what acts on it (measuring, stopping,
keeping the best) is a function from stream to stream or to a Round, see `fedlab.core.rounds`.

Letters: N clients, C in a cohort.

Source: McMahan et al. 2017, algorithm 1; `fedlab/fedavg.py` has it in forty lines.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from fedlab.aggregation import NoDeltaError, ServerStep, Sums, WeightedMean, as_aggregation
from fedlab.algorithms.gate import Books, Gate, admit, admitted
from fedlab.algorithms.participation import Participation, Synchronous, check_clients, longest_first
from fedlab.core import (
    Aggregation,
    Delta,
    Journal,
    Local,
    ParameterError,
    Part,
    Plan,
    Round,
    RoundContext,
    Rows,
    Schedule,
    Sent,
    Settings,
    SparseTable,
    Stage,
    Tree,
    Update,
    check_read,
    described,
    knob,
    knobs,
    made_with,
    moved,
    one_thread,
    register,
    require,
    to,
    turned,
    unturned,
    walk,
    within,
)
from fedlab.data import Source, fingerprint
from fedlab.engine import SGD, agreed
from fedlab.models import Model
from fedlab.privacy import (
    Ledger,
    People,
    Spending,
    Spent,
    affordable,
    booked,
    plain_sum,
    proven,
    spends,
)

EDITION = 2  # of what a Round's state holds


@register
class Run(Part):
    """How long a run lasts, and what fixes its draws."""

    kind = "run"
    rounds: int = knob(40, 1, 10_000, "rounds", "when the run ends", usual=(5, 300))
    seed: int = knob(
        0,
        0,
        2**31 - 1,
        "",
        "fixes every random draw",
        live=False,
        usual=(0, 100),
        group="machine and draws",
    )


@dataclass(frozen=True)
class Pipeline:
    """The parts of a run in the order in which they act.

    settings: the values of all knobs of these parts. facts: by the name of each part, the facts in
    front of it. equal: whether all clients weigh alike in the aggregation.
    """

    run: Run
    participation: Participation
    schedule: Schedule
    local: Local
    uplink: tuple[Stage, ...]
    gate: Gate
    aggregate: Aggregation
    server: ServerStep
    settings: Settings
    facts: Mapping[str, Mapping[str, Any]]
    equal: bool

    @property
    def parts(self) -> list[Part]:
        """All parts, in the order in which they act."""
        return [
            self.run,
            self.participation,
            self.schedule,
            self.local,
            *self.stages("client"),
            self.gate,
            *self.stages("server", "sum"),
            self.aggregate,
            self.server,
        ]

    @property
    def spending(self) -> Spending | None:
        """The part with delta and budget, where the run spends privacy."""
        return next((part for part in self.parts if isinstance(part, Spending)), None)

    def stages(self, *sides: str) -> list[Stage]:
        """The stages that act on these sides."""
        return [stage for stage in self.uplink if stage.side in sides]


def pipeline(parts: Sequence[Part], settings: Settings, data: Source) -> Pipeline:
    """The parts with their knobs turned; raises `ParameterError` for what does not go together.

    parts: in the order of `Pipeline.parts`.
    """
    own = [turned(part, settings) for part in parts]
    facts = walk(own, {"negatives": True} if draws_negatives(data) else {})
    check_read(own, facts, settings)
    whole = Settings(**_agreed(own))
    run, who, schedule, local, *between, aggregate, server = cast(list[Any], own)
    equal = "equal" in facts[aggregate.name] or whole.weighting == "equal"
    uplink = tuple(part for part in between if not isinstance(part, Gate))
    (gate,) = (part for part in between if isinstance(part, Gate))
    _check_sums(schedule, uplink)
    return Pipeline(run, who, schedule, local, uplink, gate, aggregate, server, whole, facts, equal)


def _check_sums(schedule: Schedule, uplink: Sequence[Stage]) -> None:
    """Raise `ParameterError` where noise in a sum would not hide a client, or two add it up."""
    hiding = _hiding(uplink)
    require(
        not hiding or schedule.apart,
        "schedule",
        schedule.name,
        f"one client's update may hang on another there, which {', '.join(hiding)} does not hide; "
        "take the synchronous one, or say `apart = True` in yours if it cannot",
    )
    adders = [part.name for part in uplink if type(part).add_up is not Stage.add_up]
    fix = "only one stage can add up what clients send; leave one of them out"
    require(len(adders) < 2, "uplink", " and ".join(adders), fix)


def _hiding(uplink: Sequence[Stage]) -> list[str]:
    """The stages whose noise hides a client among those that were drawn with it."""
    return [part.name for part in uplink if isinstance(part, Spending) and part.side != "client"]


def _agreed(parts: Sequence[Part]) -> dict[str, Any]:
    """The knobs of all parts; `ParameterError` where two parts have one at different values."""
    found, who = dict[str, Any](), dict[str, str]()
    for part in parts:
        for name in knobs(type(part)):
            value = getattr(part, name)
            require(
                found.get(name, value) == value,
                name,
                value,
                f"{part.name} has it so, and {who.get(name)} {found.get(name)!r}; say it once, in "
                "the settings",
            )
            found[name], who[name] = value, part.name
    return found


def in_order(
    local: Local | None = None,
    uplink: Sequence[Stage] = (),
    aggregate: Any = None,
    schedule: Schedule | None = None,
    participation: Participation | None = None,
) -> list[Part]:
    """All parts of a run in the order in which they act, the usual ones where none is given."""
    for name, kind, part in (
        ("local", Local, local),
        ("schedule", Schedule, schedule),
        ("participation", Participation, participation),
    ):
        require(part is None or isinstance(part, kind), name, part, f"give a {kind.__name__}")
    require(isinstance(uplink, Sequence), "uplink", uplink, "give a list of stages")
    for stage in uplink:
        require(isinstance(stage, Stage), "uplink", stage, "its parts are stages")
    return [
        Run(),
        participation or Participation(),
        schedule or Synchronous(),
        local or SGD(),
        *gated(uplink),
        as_aggregation(aggregate or WeightedMean()),
        ServerStep(),
    ]


def gated(uplink: Sequence[Stage]) -> list[Part]:
    """The stages with the gate where updates enter the server: behind the last client stage."""
    clients = [place for place, stage in enumerate(uplink, 1) if stage.side == "client"]
    cut = max(clients, default=0)
    return [*uplink[:cut], Gate(), *uplink[cut:]]


def draws_negatives(data: Any) -> bool:
    """Whether a source draws unseen items beside clicks; a source may also bring its targets."""
    return data.task == "clicks" and getattr(data, "draws_negatives", True)


Book = Callable[..., dict[str, Any] | None]  # (releases, fits) -> what is booked then
Ask = Settings | Mapping[str, Any] | Callable[[], Settings | Mapping[str, Any]]


def federate(
    model: Model,
    data: Source,
    settings: Ask | None = None,
    *,
    local: Local | None = None,
    uplink: Sequence[Stage] = (),
    aggregate: Any = None,
    schedule: Schedule | None = None,
    participation: Participation | None = None,
    start: Round | None = None,
    ledger: Ledger | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[Round]:
    """Yield one Round at a time, for as many rounds as the settings say.

    settings: the knobs that are turned, or a function that gives them; it is asked before each
    round, so a knob turned in between counts from the next round. local: what clients do, by
    default `SGD()`. uplink: stages on the way up, in the order in which they act. aggregate: an
    Aggregation or a function (updates, server) -> delta, by default `WeightedMean()`. start: a
    Round to go on from; the continued run equals an uninterrupted one. ledger: where releases about
    these people are booked, beside those of all other runs; without one, epsilon counts this run
    alone. The same seed on the same machine gives the same bits.

    Raises `ParameterError` for a bad setting, for parts that do not go together, and for a start
    that belongs to another run.

    >>> from fedlab import Columns, Settings, federate, perceptron
    >>> import torch
    >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> data = Columns({"x": x, "target": (x[:, 0] > 0).float()}, torch.arange(40) % 4)
    >>> *_, last = federate(perceptron(3, 8), data, Settings(rounds=3, cohort=4))
    >>> last.number, len(last.cohort)
    (3, 4)
    """
    check_device(device)
    for name, good, given, fix in (
        ("model", isinstance(model, Model), model, "give a Model, such as matrix_factorisation"),
        ("data", hasattr(data, "draw"), data, "give a Federation, Columns or another Source"),
        ("start", isinstance(start, Round | None), start, "give a Round of an earlier run"),
        ("ledger", isinstance(ledger, Ledger | None), ledger, "give a Ledger, made of a file"),
    ):
        require(good, name, type(given).__name__, fix)
    _check_match(model, data, local)
    parts = in_order(local, uplink, aggregate, schedule, participation)
    ask = settings if callable(settings) else lambda: {} if settings is None else settings
    told = ask()
    asked = Settings(**told)
    parts = _turned_by(parts, asked)
    pipe = pipeline(parts, asked, data)
    if pipe.spending:
        pipe.spending.check_delta(len(data))
    model = replace(model, constants=to(model.constants, device))
    done = start or Round(0, asked, model.init(pipe.run.seed))
    state = begun(done, pipe, model, data)
    _check_known(start, pipe, model)
    done = replace(done, params=to(done.params, device), state=state)
    book = _booking(pipe, data, ledger, start)
    first = done.number
    while done.number < pipe.run.rounds:
        with one_thread():
            first_one = done.number == first
            taken = one_round(pipe, model, data, done, first=first_one, book=book)
        if taken is None:
            return  # the budget is spent
        done = taken
        yield done
        before, told = told, ask()
        if told is not before and (fresh := Settings(**told)) != asked:
            _check_live(asked, fresh, pipe)
            asked, pipe = fresh, pipeline(parts, fresh, data)


def _check_match(model: Model, data: Source, local: Local | None) -> None:
    """Raise `ParameterError` unless these data and this method can train the model."""
    fix = f"model and federation differ; the federation has {data.task}"
    require(model.task == data.task, "task", model.task, fix)
    steps = isinstance(local or SGD(), SGD)
    fix = f"{getattr(local, 'name', local)} takes no steps of sgd, which learn it; choose sgd"
    require(steps or not model.list_loss, "loss", model.list_loss, fix)


def one_round(
    pipe: Pipeline,
    model: Model,
    data: Source,
    before: Round,
    *,
    first: bool = False,
    book: Book | None = None,
) -> Round | None:
    """One step of the server; None where it would exceed the budget of privacy.

    book: of a ledger, for these people, see `Ledger.book`.

    A client that drops out, is late, or sends something that is not an update is rejected with a
    reason. When no update is left, the round is skipped: nothing changes. Raises `NoDeltaError`
    when the whole cohort was there, as many as were asked for, and cannot be aggregated.
    """
    began, pipe = time.perf_counter(), warmed(pipe, before.number + 1)
    context = _context(pipe, model, data, before)
    if not _affordable(pipe, context, first, book):
        return None
    books, params, skipped = Books(context.plan.rejected), context.params, ""
    try:
        alone = _summed_delta(pipe, context, books)
        delta = alone or _one_delta(pipe, context, books)
    except NoDeltaError as reason:
        came = any(len(sent.update.cohort) for sent in books.kept)
        chance = context.plan.drawn is not None and context.plan.drawn.sampling == "poisson"
        if came and not books.rejected and not chance:
            raise
        skipped = str(reason)
        books.refuse(context.notes.get("lost", {}))
    else:
        context.share = _share(pipe, books, data, context.expected)
        delta = pipe.local.finish(delta, context)
        params = _stepped(pipe, context, delta, books, unseen=alone is not None)
    for stage in pipe.uplink:
        stage.done(context)
    columns = books.columns()
    pipe.gate.remember(columns["norms"], context)
    told = context.notes.keys() & {"bytes_up", "bytes_down"}
    columns |= {name: context.notes[name] for name in told}
    return Round(
        before.number + 1,
        pipe.settings,
        params,
        **columns,
        skipped=skipped,
        engine=context.notes.get("engine", ""),
        warning=context.notes.get("warning", ""),
        metrics=context.metrics,
        clock=context.plan.clock,
        state=context.state,
        seconds=time.perf_counter() - began,
    )


def _stepped(
    pipe: Pipeline, context: RoundContext, delta: Delta, books: Books, *, unseen: bool
) -> Tree:
    """The parameters after the server's step, and after what clients learned for themselves.

    unseen: whether no part has seen the parameters but those that train and add up, so that rows of
    large tables may move in place.
    """
    params, own = context.params, books.own_rows(context.model.private)
    memory = context.memory(pipe.server)
    own_parts = {Participation: pipe.participation, ServerStep: pipe.server}
    usual = all(type(part) is kind for kind, part in own_parts.items())
    usual &= "train_summed" in vars(type(pipe.local))  # no part of somebody's own has seen them
    if unseen and usual and pipe.server.server_optimizer == "sgd":
        before = Journal.of(context.before.params)
        if before.holds(params):
            pipe.server.step(params, {}, memory)
            rate = pipe.server.server_lr
            changes = {name: (d, rate) for name, d in delta.items()}
            return before.stepped(changes | {name: (rows, 1.0) for name, rows in own.items()})
    learned = {name: moved(params[name], rows, 1.0) for name, rows in own.items()}
    return params | pipe.server.step(params, delta, memory) | learned


def _context(pipe: Pipeline, model: Model, data: Source, before: Round) -> RoundContext:
    """Gather what the parts may know of the next round, with its plan."""
    state = {name: dict(kept) for name, kept in before.state.items()}
    context = RoundContext(
        model,
        data,
        pipe.settings,
        before,
        within(before.params),
        state,
        pipe.run.seed,
        pipe.facts,
        local=pipe.local,
        private=pipe.spending is not None,
    )
    context.params = pipe.participation.welcome(context)
    pipe.local.check(context)
    context.asked = pipe.local.asks(context)
    pipe.aggregate.check(context)
    for stage in pipe.uplink:
        stage.begin(context)
    context.plan = _planned(pipe, context)
    return context


def _planned(pipe: Pipeline, context: RoundContext) -> Plan:
    """Who starts now; raises `ParameterError` for a plan that is none, or that draws by itself."""
    plan, name = pipe.schedule.plan(context, pipe.participation), pipe.schedule.name
    require(isinstance(plan, Plan), f"{name}.plan", plan, "return a Plan")
    check_clients(f"{name}.plan.start", plan.start, len(context.data))
    if _hiding(pipe.uplink):
        drawn = plan.drawn.cohort if plan.drawn else plan.start[:0]
        own = plan.start[~torch.isin(plan.start, drawn)]
        fix = "in a private run those start whom participation draws; return its draw as `drawn`"
        require(not len(own), f"{name}.plan.start", own[:5].tolist(), fix)
    counts = context.data.counts[plan.start]
    ordered = bool((counts.diff() <= 0).all())
    return plan if ordered else replace(plan, start=longest_first(context.data, plan.start))


def _affordable(pipe: Pipeline, context: RoundContext, first: bool, book: Book | None) -> bool:
    """Book what the round spends; False where the budget does not allow it."""
    spent = [each for part in pipe.parts for each in getattr(part, "spends", _nothing)(context)]
    if not spent and pipe.spending is None:
        return True

    def fits(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        if pipe.spending is None:
            return True
        told["epsilon"] = proven(after, pipe.spending.delta)
        return affordable(pipe.spending, before, told["epsilon"], first)

    def after() -> tuple[dict[str, Any] | None, dict[str, float]]:
        if book is not None:
            return book(spent, fits), told
        before, seed = context.state.get("ledger", {}), context.settings.teaching_seed
        alone = booked(before, spent, len(context.data), seed)
        return (alone if fits(before, alone) else None), told

    told: dict[str, float] = {}
    found, epsilon = agreed(after)
    context.metrics |= epsilon
    if found is None:
        return False
    context.state["ledger"] = found
    return True


def _nothing(context: RoundContext) -> Sequence[Spent]:
    """What a part spends that spends no privacy."""
    return ()


def _outgoing(pipe: Pipeline, context: RoundContext) -> Iterator[Sent]:
    """Yield local updates after what each client does with them before it sends them."""
    for learned in _learned(pipe, context, context.plan.start):
        yield Sent(_leaving(pipe, learned, context), learned.own)


def _learned(pipe: Pipeline, context: RoundContext, clients: Tensor) -> Iterator[Sent]:
    """Yield what clients (C,) learn, with the rows apart that stay with them."""
    if not len(clients):
        return
    private = context.model.private
    found = pipe.local.train(context, clients)
    require(isinstance(found, Iterable), f"{pipe.local.name}.train", found, "yield Updates")
    for update in found:
        own = {name: rows for name, rows in update.deltas.items() if name in private}
        out = replace(update, deltas={n: rows for n, rows in update.deltas.items() if n not in own})
        yield Sent(out, own)


def _leaving(pipe: Pipeline, learned: Sent, context: RoundContext) -> Update:
    """What leaves clients of what they learned."""
    out = learned.update
    for stage in pipe.stages("client"):
        out = checked(stage, out, context)
    return out


def ahead(
    pipe: Pipeline, model: Model, data: Source, before: Round, clients: Tensor | None = None
) -> tuple[RoundContext, list[tuple[Update, Update]]]:
    """What clients would learn in the round after this one, and what of it would leave them.

    Nothing is booked, and `before` stays as it is. Draws are keyed by round and client, so the
    round itself does the same where it comes with the same knobs; only noise without a teaching
    seed is drawn anew. clients: who trains, by default those who would start. Returns the round's
    context, and chunk by chunk two Updates without private rows: learned, and sent.
    """
    pipe = warmed(pipe, before.number + 1)
    with one_thread():
        context = _context(pipe, model, data, before)
        start = context.plan.start if clients is None else clients
        found = _learned(pipe, context, start)
        return context, [(each.update, _leaving(pipe, each, context)) for each in found]


def _received(pipe: Pipeline, update: Update, context: RoundContext) -> Update:
    """An update behind the gate, after what the server does with it by itself."""
    update = pipe.schedule.received(update, context)
    for stage in pipe.stages("server"):
        update = checked(stage, update, context)
    return update


def checked(stage: Stage, update: Update, context: RoundContext) -> Update:
    """What leaves a stage; raises `ParameterError` for one that changes names or shapes."""
    found, clients = stage.each(update, context), len(update.cohort)
    fix = "a stage's `each` returns an Update: the one it was given, or a changed one"
    require(isinstance(found, Update), stage.name, found, fix)
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


def _summed_delta(pipe: Pipeline, context: RoundContext, books: Books) -> Delta | None:
    """The weighted mean of updates that nobody has to see singly; None where somebody has.

    It is what `_one_delta` gives, and takes a third of the time.
    """
    plain = type(pipe.aggregate) is WeightedMean and type(pipe.schedule) is Synchronous
    cohort = context.plan.start
    if (
        pipe.uplink
        or not plain
        or not len(cohort)
        or not made_with(pipe.local, "train", "train_summed")
    ):
        return None
    sent = context.data.counts[cohort].float()
    if "equal" in pipe.facts[pipe.gate.name]:  # its clients send the weight 1
        sent = torch.ones_like(sent)
    weights = torch.ones_like(sent) if pipe.equal else sent
    weights = weights * (sent <= pipe.gate.most(context))
    longest = pipe.gate.bound(context)[0]
    found = pipe.local.train_summed(context, cohort, weights, longest)
    if found is None:
        return None
    counted = (weights > 0) & (found.lengths <= longest) & found.sent.losses.isfinite()
    if not admit(found, counted, pipe.gate, context, books):
        return None
    kept = books.kept[0].update.weights
    sums = Sums(context.server)
    sums.add_total(found.sums, torch.ones_like(kept) if pipe.equal else kept)
    delta = sums.mean()
    _check_delta(delta, context.server, pipe.aggregate.name)
    return delta


def _one_delta(pipe: Pipeline, context: RoundContext, books: Books) -> Delta:
    """The delta of the aggregation, or of stages that work on the sum over the cohort.

    Such a sum is divided by the expected number of clients.
    """
    landed = pipe.schedule.land(_outgoing(pipe, context), context)
    came = admitted(landed, pipe.gate, context, books)
    updates = (_received(pipe, update, context) for update in came)
    server, sums, aggregate = context.server, pipe.stages("sum"), pipe.aggregate
    who: Part = sums[-1] if sums else aggregate
    if not sums:
        weighed = (_alike(each) for each in updates) if pipe.equal else updates
        kept = weighed if aggregate.streams else list(weighed)
        found = aggregate.delta(kept, aggregate.given(context))
    else:
        added = (stage.add_up(updates, context) for stage in sums)
        own = next((total for total in added if total is not None), None)
        total = plain_sum(updates, server) if own is None else own
        for stage in sums:
            total = stage.total(total, context)
        found = {n: (value / context.expected).to(server[n]) for n, value in total.items()}
    for _ in updates:
        pass  # an aggregation that stops early leaves no client out of the books
    _check_delta(found, server, who.name)
    return found


def _check_delta(found: Delta, server: Tree, who: str) -> None:
    """Raise `ParameterError` for a delta that cannot be added to the server's parameters."""
    require(isinstance(found, Mapping), who, found, "return a delta for each name")
    for name, delta in found.items():
        values, table = (delta.values, 1) if isinstance(delta, Rows) else (delta, 0)
        require(
            name in server and values.shape[table:] == server[name].shape[table:],
            who,
            f"{name} {tuple(values.shape)}",
            "its delta has a name or shape that the server has not; return "
            f"{', '.join(f'{n} {tuple(v.shape)}' for n, v in server.items())}",
        )
        require(
            values.dtype == server[name].dtype,
            who,
            f"{name} {values.dtype}",
            f"its delta is of another type; return {server[name].dtype}",
        )
        require(
            bool(values.sum().isfinite()),
            who,
            name,
            "its delta is not finite although every update was; look at its arithmetic",
        )
    missing = sorted(server.keys() - found.keys())
    require(
        not missing,
        who,
        missing,
        f"its delta lacks these names; return one for each of {', '.join(sorted(server))}",
    )


def _alike(update: Update) -> Update:
    """The update with weights of 1."""
    return replace(update, weights=torch.ones_like(update.weights))


def _share(pipe: Pipeline, books: Books, data: Source, expected: float) -> float:
    """The weight of the clients that were aggregated over that of all clients."""
    if pipe.spending:
        return expected / len(data)  # who was really there is not told
    if pipe.equal:
        return sum(len(sent.update.cohort) for sent in books.kept) / len(data)
    return books.weight / float(data.counts.sum())


def warmed(pipe: Pipeline, number: int) -> Pipeline:
    """The parts of a round; until `warm_up` is over, steps have number / warm_up of their size.

    These are the local steps. Where the server adapts to the size of deltas, shorter local steps
    would change nothing: there, and where local steps have no size, its own step is shorter.
    """
    server, local = pipe.server, pipe.local
    if number >= server.warm_up:
        return pipe
    share = number / server.warm_up
    if server.server_optimizer in ("sgd", "momentum") and hasattr(local, "local_lr"):
        return replace(pipe, local=replace(cast(Any, local), local_lr=local.local_lr * share))
    return replace(pipe, server=replace(cast(Any, server), server_lr=server.server_lr * share))


def begun(start: Round, pipe: Pipeline, model: Model, data: Source) -> dict[str, Any]:
    """The state that a run starts from, with what tells it from other runs.

    Raises `ParameterError` for a Round of another edition, other data, parts or fixed settings.
    """
    fixed = {
        name: getattr(part, name)
        for part in pipe.parts
        for name, knob in knobs(type(part)).items()
        if not knob.live
    }
    own = {
        "edition": EDITION,
        "data": fingerprint(data),
        "model": model.name,
        "parts": [part.name for part in pipe.parts],
        "fixed": fixed,
    }
    if spent := start.state.get("ledger"):
        before = proven(spent, start.settings.delta)
        single = set(spent) <= {"examples", "no guarantee"} and hasattr(pipe.local, "spends")
        require(
            pipe.spending is not None or single,
            "start",
            "a private Round",
            f"it has spent an epsilon of {before:.3g}, which a run without noise would void; add "
            "stages such as Clip() and GaussianNoise()",
        )
    if start.number:
        theirs = start.state.get("run", {})
        for name, value in own.items():
            require(
                theirs.get(name) == value,
                "start",
                f"a Round of other {name}",
                f"it has {theirs.get(name)!r}, this run {value!r}; go on with the same, or begin "
                "anew from its parameters: start=Round(0, settings, params, "
                "state={'ledger': ...}), with its ledger where it has one",
            )
    missing = sorted(set(model.rows) - set(start.params))
    require(
        not missing,
        "start",
        f"parameters {sorted(start.params)}",
        f"the model needs {missing}, too",
    )
    return {**start.state, "run": own}


def _check_alike(given: Tree, usual: Tree) -> None:
    """Raise `ParameterError` unless parameters to start from are such tensors as the model's."""

    def form(tensor: object) -> str:
        if isinstance(tensor, SparseTable):
            return f"{tensor.first.dtype} {tuple(tensor.shape)}"
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            return f"a {type(tensor).__name__} without numbers side by side"
        return f"{tensor.dtype} {tuple(tensor.shape)}"

    for name, like in usual.items():
        found, fix = form(given[name]), f"the model's is {form(like)}; give a plain tensor like it"
        require(found == form(like), f"start.params[{name!r}]", found, fix)


def _booking(
    pipe: Pipeline, data: Source, ledger: Ledger | None, start: Round | None
) -> Book | None:
    """How releases about these people are booked; None without a ledger.

    Raises `ParameterError` for a run that it cannot book, and for a start that it does not hold.
    """
    if ledger is None:
        return None
    require(
        spends(pipe.parts),
        "ledger",
        str(ledger.path),
        "nothing in this run adds noise, so what it releases cannot be booked; leave it out, and "
        "publish nothing of the run",
    )
    require(
        pipe.settings.teaching_seed < 0,
        "teaching_seed",
        pipe.settings.teaching_seed,
        "noise that can be drawn again proves nothing, so a ledger does not book it; leave one out",
    )
    people = People.of(data)
    require(
        not (start and pipe.spending) or ledger.covers(people, start.state["ledger"]),
        "ledger",
        str(ledger.path),
        "it lacks releases of the Round to start from; give the ledger of that run, as it was",
    )
    return partial(ledger.book, people)


def _check_known(start: Round | None, pipe: Pipeline, model: Model) -> None:
    """Raise `ParameterError` where it is not known what a private run's start tells of people.

    And where its parameters are no such tensors as the model's.
    """
    if start is None:
        return
    _check_alike(start.params, model.init(pipe.run.seed))
    if not pipe.spending:
        return
    require(
        "ledger" in start.state,
        "start",
        f"a Round {start.number} without a ledger",
        "what its parameters tell of these people is not known; if they had no part in them, say "
        "so: start=Round(0, settings, params, state={'ledger': {}})",
    )
    spent = start.state["ledger"]
    require(
        "examples" not in spent or bool(spent.keys() & {"releases", "drift"}),
        "start",
        "a Round with noise that hides single examples",
        "that bounds nothing of a whole client; begin from parameters that it had no part in",
    )


def _turned_by(parts: Sequence[Part], asked: Settings) -> list[Part]:
    """The parts without what the settings turn, which is theirs from now on.

    Settings leave out what is as usual, so a part that kept it could not be turned back. Raises
    `ParameterError` for a knob that a part and the settings turn to different values.
    """
    for part in parts:
        for name in knobs(type(part)).keys() & asked.keys():
            own, usual = getattr(part, name), described()[name].default
            require(
                own in (usual, asked[name]),
                name,
                asked[name],
                f"{part.name} was made with {own!r}; say it in one place, there or in the settings",
            )
    return [unturned(part, asked) for part in parts]


def _check_live(before: Settings, now: Settings, pipe: Pipeline) -> None:
    """Raise `ParameterError` for a knob that was turned and counts only from the next run."""
    for part in pipe.parts:
        for name, about in knobs(type(part)).items():
            same = about.live or before[name] == now[name]
            require(
                same,
                name,
                now[name],
                f"it is fixed while a run lasts; keep {before[name]!r}, or begin another run",
            )


def check_device(device: str | torch.device) -> None:
    """Raise `ParameterError` for a device that this machine or this torch cannot use."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ParameterError(
            f"device={str(device)!r}: cannot be used here ({reason}); choose 'cpu'"
        ) from error
