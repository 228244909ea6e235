"""A whole experiment as settings: data, partition, model and methods beside the knobs of a run.

Every registered part is a choice here, wherever it was written; its knobs are settings. The
workbench, the command line, sweeps and the settings JSON follow from that.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

import fedlab.models.text  # noqa: F401 - its recipes are choices, too
from fedlab.aggregation import HeldOut, Judge, judge
from fedlab.algorithms import federate, fine_tuned, gated
from fedlab.core import (
    MADE_ONCE,
    REGISTRY,
    Aggregation,
    DataError,
    Dataset,
    Local,
    Metric,
    ParameterError,
    Part,
    Recipe,
    Round,
    Schedule,
    Score,
    Settings,
    Stage,
    Tree,
    check_read,
    described,
    knob,
    knobs,
    measured,
    one_thread,
    register,
    require,
    several,
    stop_early,
    to,
    turned,
    unread,
    walk,
)
from fedlab.data import (
    Federation,
    Interactions,
    Lists,
    Source,
    Split,
    asked_for,
    at_least,
    leave_one_out,
    read_asked,
    split_by_time,
    standardise,
)
from fedlab.engine import LocalSettings
from fedlab.evaluation import Candidates, Unmet, candidates, scorer, unmet
from fedlab.models import Model, listwise
from fedlab.models.losses import LOSSES
from fedlab.privacy import Ledger, spends

ONE_EACH = "validation and test take one each"
USUAL = "usual"
HELD, WHOLE = "train", "everything"  # what an experiment may train on


@register
class Choices(Part):
    """What an experiment is made of; a change counts from the next run."""

    title = "experiment"
    kind = "experiment"
    data: str = knob(
        "ml-latest-small",
        0,
        0,
        "",
        "a registered data set, or a file or folder that `fedlab.read` takes, with its arguments "
        "as in till.csv?user=buyer&item=code",
        live=False,
        parts="data",
        others=True,
    )
    task: str = knob(
        "clicks",
        0,
        0,
        "",
        "rank items by clicked or not, or predict ratings",
        live=False,
        choices=("clicks", "ratings"),
    )
    loss: str = knob(
        USUAL,
        0,
        0,
        "",
        "usual: cross-entropy of each item for clicks, squared error for ratings; the others set a "
        "click against drawn items, pair by pair (bpr) or all at once, or against every item",
        live=False,
        choices=(USUAL, *LOSSES),
        group="local step",
    )
    partition: str = knob(
        "one per user",
        0,
        0,
        "",
        "who is a client: every user, or platforms of users",
        live=False,
        parts="partition",
    )
    model: str = knob("matrix factorisation", 0, 0, "", "what predicts", live=False, parts="model")
    local: str = knob("sgd", 0, 0, "", "what a client does in a round", live=False, parts="local")
    uplink: str = knob(
        "none",
        0,
        0,
        "",
        "stages on the way up, joined by ' + ', in the order in which they act; none for none",
        live=False,
        parts="stage",
        many=True,
    )
    aggregation: str = knob(
        "weighted mean", 0, 0, "", "how deltas become one", live=False, parts="aggregation"
    )
    schedule: str = knob(
        "synchronous",
        0,
        0,
        "",
        "wait for a whole cohort, or step as updates come",
        live=False,
        parts="schedule",
        group="asynchronous",
    )
    personal: str = knob(
        "off",
        0,
        0,
        "",
        "whether users predict after one more local training of their own",
        live=False,
        choices=("off", "fine tuned"),
        group="local step",
    )
    measure_every: int = knob(
        1,
        1,
        1_000,
        "rounds",
        "how often the validation metrics are worked out",
        live=False,
        usual=(1, 20),
    )
    against: int = knob(
        99,
        1,
        100_000,
        "items",
        "how many unseen items a held-out click is ranked against",
        live=False,
        log=True,
        usual=(9, 999),
        group="measuring",
    )
    stop_at: float = knob(
        0.0,
        0.0,
        1e6,
        "",
        "the run ends once stop_by has reached this on validation; 0 for never",
        live=False,
        usual=(0.0, 1.0),
        group="stopping early",
    )
    patience: int = knob(
        0,
        0,
        10_000,
        "measured rounds",
        "the run ends after so many without a better value of stop_by; 0 for never",
        live=False,
        usual=(0, 20),
        group="stopping early",
    )
    stop_by: str = knob(
        "usual",
        0,
        0,
        "",
        "the metric that ends a run, such as hr@10; usual: ndcg@10 for clicks, rmse for ratings",
        live=False,
        group="stopping early",
    )
    train_on: str = knob(
        HELD,
        0,
        0,
        "",
        "the train part, with what is held out kept apart to measure; or everything, as for a "
        "model that goes out: then nothing is measured",
        live=False,
        choices=(HELD, WHOLE),
        group="measuring",
    )
    device: str = knob(
        "cpu", 0, 0, "", "where to train: cpu or cuda", live=False, group="machine and draws"
    )

    def idle(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """The knobs that these choices do not read.

        Only clicks are ranked against others, and only those that are held out. Without a target or
        patience no metric ends a run. Only a method of gradient steps, on the examples of a
        federation itself, can fine-tune, unless it predicts in a way of its own.
        """
        local = cast(type[Local], REGISTRY["local"][self.local])
        steps = issubclass(local, LocalSettings) and local.score is Local.score
        plain = cast(type[Recipe], REGISTRY["model"][self.model]).source is Recipe.source
        tuned = () if steps and plain and self.loss == USUAL else ("personal",)
        if self.train_on == WHOLE:
            return (*tuned, "against", "measure_every", "stop_at", "patience", "stop_by")
        stopping = () if self.stop_at or self.patience else ("stop_by",)
        return (*tuned, *stopping, *(() if self.task == "clicks" else ("against",)))


@dataclass(frozen=True)
class Experiment:
    """The parts that some settings name, and what is made of them when first asked for.

    Raises `ParameterError` or `DataError` on what cannot be built.
    """

    settings: Settings

    @cached_property
    def choices(self) -> Choices:
        """The names that the settings choose."""
        return turned(Choices(), self.settings)

    @property
    def named(self) -> list[tuple[str, str]]:
        """Kind and name of every part that reads settings, in the order in which they act."""
        names = self.choices
        data = [("data", names.data)] if names.data in REGISTRY["data"] else []
        metrics = [
            ("metric", title)
            for title, cls in REGISTRY["metric"].items()
            if cast(type[Metric], cls).task == names.task and names.train_on == HELD
        ]
        return [
            ("experiment", "experiment"),
            *data,
            ("partition", names.partition),
            ("model", names.model),
            ("run", "run"),
            ("participation", "participation"),
            ("schedule", names.schedule),
            ("local", names.local),
            *self._on_the_way,
            ("aggregation", names.aggregation),
            ("server", "server step"),
            *metrics,
        ]

    @property
    def _on_the_way(self) -> list[tuple[str, str]]:
        """The stages, with the gate behind those of the clients."""
        names = several(self.choices.uplink)
        stages = [cast(Stage, REGISTRY["stage"][name]()) for name in names]
        return [(part.kind, part.name) for part in gated(stages)]

    def part(self, kind: str, name: str) -> Any:
        """A part with its knobs turned."""
        return turned(REGISTRY[kind][name](), self.settings)

    @cached_property
    def parts(self) -> list[Part]:
        """All parts that read settings, those of the loop included."""
        return [self.part(kind, name) for kind, name in self.named]

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """The facts in front of each part, by its name; see `fedlab.core.walk`."""
        return walk(self.parts, self._given)

    @property
    def _given(self) -> dict[str, Any]:
        recipe = cast(type[Recipe], REGISTRY["model"][self.choices.model])
        drawn = self.choices.task == "clicks" and recipe.draws_negatives
        return {"negatives": True} if drawn and self.choices.loss != "softmax" else {}

    def unread(self) -> dict[str, str]:
        """Every knob that nothing reads in this combination, by name -> why."""
        try:
            parts, facts = self.parts, self.facts
        except ParameterError:  # parts that do not go together: the start of a run will say so
            parts = [cast(Part, REGISTRY[kind][name]()) for kind, name in self.named]
            facts = {part.name: self._given for part in parts}
        return unread(parts, facts, described())

    @cached_property
    def split(self) -> Split:
        """Train, validation and test; clicks by leave-one-out, ratings standardised.

        Where it trains on everything, the last two are empty.
        """
        if self.choices.train_on == WHOLE:
            return _unsplit(self.which, self.choices.task)
        return _split(self.which, self.choices.task)

    @cached_property
    def candidates(self) -> Candidates:
        """What the held-out clicks of the validation part are ranked against."""
        return _candidates(self.which, self.choices.against, self.settings.seed)

    @cached_property
    def unmet(self) -> Unmet:
        """What they are ranked against in the full ranking."""
        return _unmet(self.which)

    @cached_property
    def which(self) -> "_Which":
        """What tells the data from others."""
        name = self.choices.data
        part = REGISTRY["data"].get(name)
        own = {n: self.settings[n] for n in knobs(part)} if part else {}
        return _Which(part, name, Settings(**own), () if part else _stamp(asked_for(name)[0]))

    @cached_property
    def recipe(self) -> Recipe:
        """How the model is made."""
        return cast(Recipe, self.part("model", self.choices.model).ready(self))

    @cached_property
    def local(self) -> Local:
        """What clients do in a round."""
        return cast(Local, self.part("local", self.choices.local).ready(self))

    @cached_property
    def uplink(self) -> list[Stage]:
        """The stages on the way up."""
        return [self.part("stage", name).ready(self) for name in several(self.choices.uplink)]

    @cached_property
    def aggregation(self) -> Aggregation:
        """How deltas become one."""
        return cast(Aggregation, self.part("aggregation", self.choices.aggregation).ready(self))

    @cached_property
    def schedule(self) -> Schedule:
        """Whose updates arrive when."""
        return cast(Schedule, self.part("schedule", self.choices.schedule).ready(self))

    @cached_property
    def federation(self) -> Federation:
        """Train ratings, dealt out to clients."""
        partition = self.part("partition", self.choices.partition).ready(self)
        owner = partition.owner(self.split.train, self.settings.seed)
        return Federation(self.split.train, owner, self.choices.task)

    @cached_property
    def source(self) -> Source:
        """What clients train on."""
        loss = self.choices.loss
        data = cast(Source, self.recipe.source(self.local.source(self.federation)))
        return data if loss == USUAL else Lists(data, loss)

    @cached_property
    def model(self) -> Model:
        """The model for this data."""
        loss, train = self.choices.loss, self.split.train
        model = cast(Model, self.local.learns(self.recipe.build(train, self.choices.task)))
        return model if loss == USUAL else listwise(model, loss)

    def judge(self) -> Judge:
        """A judge that takes the held-out loss of clients' models on the validation part.

        The metrics are measured on that part as well.
        """
        held = (
            HeldOut.clicks(self.candidates)
            if self.choices.task == "clicks"
            else HeldOut.ratings(self.split.validation)
        )
        return judge(self.model, held, self.federation.owner, score=self._predicts)

    def _predicts(self, params: Tree) -> Score:
        """How these parameters predict."""
        own = self.recipe.score(self.model, self.federation, params)
        return own or scorer(self.model, params, self.federation.owner)

    def score(self, done: Round) -> Score:
        """How a Round predicts for the users."""
        here = replace(done, params=to(done.params, "cpu"))  # clients' own turns are small
        if self.choices.personal == "fine tuned":
            return fine_tuned(
                self.model,
                self.federation,
                here.params,
                cast(LocalSettings, self.local),
                seed=self.settings.seed,
                number=done.number,
            )
        own: Score | None = self.local.score(self.model, self.federation, here)
        return own or self._predicts(done.params)

    def stopped(self, rounds: Iterator[Round], start: Round | None) -> Iterator[Round]:
        """The Rounds until the knobs end them early; `ParameterError` for an unknown metric."""
        asked, modes = self.choices, dict[str, str]()
        if not (asked.stop_at or asked.patience):
            return rounds
        for metric in self.parts:
            modes |= metric.modes if isinstance(metric, Metric) else {}
        name = next(iter(modes), "") if asked.stop_by == "usual" else asked.stop_by
        fix = f"choose one that the run measures: {', '.join(modes) or 'it has none'}"
        require(name in modes, "stop_by", asked.stop_by, fix)
        return stop_early(
            rounds, name, modes[name], asked.patience, target=asked.stop_at or None, start=start
        )

    def rounds(
        self, ask: Callable[[], Settings], start: Round | None = None, ledger: Ledger | None = None
    ) -> Iterator[Round]:
        """The Rounds of these parts, neither measured nor stopped early; see `federate`."""
        return federate(
            self.model,
            self.source,
            ask,
            local=self.local,
            uplink=self.uplink,
            aggregate=self.aggregation,
            schedule=self.schedule,
            start=start,
            ledger=ledger,
            device=self.choices.device,
        )

    def tells(self) -> set[str]:
        """The names of what its Rounds are measured by, the loss among them."""
        found = {"loss"}
        for part in self.parts:
            found |= part.modes.keys() if isinstance(part, Metric) else set()
        waits = self.choices.schedule != "synchronous"
        more = {"staleness": waits, "epsilon": spends(self.parts)}
        return found | {name for name, there in more.items() if there}

    def measure(self, done: Round) -> dict[str, float]:
        """The validation metrics of a Round; none where it trains on everything."""
        return self.measured(self.score(done)) if self.choices.train_on == HELD else {}

    def measured(self, score: Score) -> dict[str, float]:
        """What the metrics of this experiment say of any score."""
        found: dict[str, float] = {}
        with one_thread():
            for metric in self.parts:
                if isinstance(metric, Metric):
                    found |= metric.measure(score, self)
        return found


def usual_knobs(settings: Settings) -> dict[str, Any]:
    """The knobs that such an experiment reads and that are not turned, with their values.

    >>> usual_knobs(Settings(rounds=3))["data"]
    'ml-latest-small'
    """
    idle = Experiment(settings).unread().keys() | settings.keys()
    return {name: found.default for name, found in described().items() if name not in idle}


def better() -> dict[str, str]:
    """Name of each metric -> whether 'max' or 'min' is better."""
    modes = {
        name: mode
        for cls in REGISTRY["metric"].values()
        for name, mode in cast(type[Metric], cls).modes.items()
    }
    return modes | {"staleness": "min", "epsilon": "min"}


class _Which(NamedTuple):
    """What tells data from other data: part, name and knobs; of a path, how its files are."""

    part: type | None
    name: str
    own: Settings
    stamp: tuple[tuple[str, int, int], ...]


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of a file, or of those in a folder: who mends one has it read anew."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    about = ((file.name, file.stat()) for file in files)
    return tuple((name, found.st_mtime_ns, found.st_size) for name, found in about)


@lru_cache(maxsize=2)
def _interactions(which: _Which) -> Interactions:
    if which.part is None:
        return read_asked(which.name)
    found = turned(cast(type[Dataset], which.part)(), which.own).load()
    fix = "its `load` gives no Interactions"
    require(isinstance(found, Interactions), "data", which.name, fix)
    return found


@lru_cache(maxsize=2)
def _split(which: _Which, task: str) -> Split:
    every = _interactions(which)
    if task == "ratings":
        return standardise(split_by_time(every))
    short = int((every.user_counts() < 3).sum())
    if short and which.part is None:
        if short == every.user_count:
            raise DataError(
                f"data={which.name!r}: no user has 3 interactions, of which two are kept apart to "
                "measure; give more of each user, or train_on='everything'"
            )
        said = f"{short:,} users with fewer than 3 interactions are left out, as {ONE_EACH}"
        every = replace(at_least(every, users=3)[0], notes=(*every.notes, said))
    return leave_one_out(every)


@lru_cache(maxsize=2)
def _unsplit(which: _Which, task: str) -> Split:
    """Everything as the train part, users of a single click too; the other parts are empty."""
    every = _interactions(which)
    none = every.take(torch.arange(0))
    whole = Split(every, none, none)
    return standardise(whole) if task == "ratings" else whole


@lru_cache(maxsize=2)
def _candidates(which: _Which, against: int, seed: int) -> Candidates:
    return candidates(_split(which, "clicks"), "validation", against, seed=seed)


@lru_cache(maxsize=2)
def _unmet(which: _Which) -> Unmet:
    return unmet(_split(which, "clicks"), "validation")


def stream(
    ask: Callable[[], Settings | Mapping[str, Any]],
    start: Round | None = None,
    ledger: Ledger | None = None,
) -> Iterator[Round]:
    """The Rounds of an experiment, measured on validation.

    ask: gives the settings; it is asked before each round. start: a Round to go on from. ledger:
    where releases are booked; a run with a teaching seed, which proves nothing, counts itself
    alone. A cohort larger than the federation is all of it. Raises `ParameterError` or `DataError`
    for what cannot be built, and for a turned knob that nothing reads.
    """
    first = Settings(**ask())
    made = Experiment(first)
    check_read(made.parts, made.facts, first)
    if made.choices.task == "clicks" and made.choices.train_on == HELD:
        _ = made.candidates  # what cannot be ranked is said before anything trains
    now = turning(made, ask, len(made.federation))
    booked = ledger if first.teaching_seed < 0 and spends(made.parts) else None
    rounds = made.rounds(now, start, booked)
    return made.stopped(measured(rounds, made.measure, made.choices.measure_every), start)


def turning(
    made: Experiment, ask: Callable[[], Settings | Mapping[str, Any]], clients: int
) -> Callable[[], Settings]:
    """The knobs of the loop as they are asked for, in a cohort of at most so many clients.

    Raises `ParameterError` for a knob of the experiment that was turned meanwhile.
    """
    loop = {name for part in made.parts for name in knobs(type(part)) if part.kind not in MADE_ONCE}
    own = {name for part in made.parts for name in knobs(type(part))} - loop

    def now() -> Settings:
        asked = Settings(**ask())
        for name in own:
            require(
                asked[name] == made.settings[name],
                name,
                asked[name],
                f"it is fixed while a run lasts; keep {made.settings[name]!r}, or begin another "
                "run",
            )
        kept = {name: value for name, value in asked.items() if name not in own}
        return Settings(**kept | {"cohort": min(asked.cohort, clients)})

    return now
