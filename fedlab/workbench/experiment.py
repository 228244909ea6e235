"""A whole experiment as settings: data, partition, model and methods beside the knobs of a run.

Every registered part is a choice here, wherever it was written; its knobs are settings. The
workbench, the command line, sweeps and the settings JSON follow from that.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from fedlab.aggregation import HeldOut, Judge, judge
from fedlab.algorithms import Participation, Run, federate, fine_tuned
from fedlab.core import (
    REGISTRY,
    Local,
    Metric,
    ParameterError,
    Part,
    Round,
    Score,
    Settings,
    knob,
    knobs,
    measured,
    one_thread,
    register,
    require,
    turned,
)
from fedlab.data import Federation, Ratings, Split, leave_one_out, read, split_by_time, standardise
from fedlab.engine import LocalSettings
from fedlab.evaluation import Candidates, candidates, scorer
from fedlab.models import Model

BUNDLED = "ml-latest-small"
NONE = "none"


@register
class Choices(Part):
    """What an experiment is made of. These count from the next run."""

    kind = "experiment"
    data: str = knob(BUNDLED, 0, 0, "",
                     "a registered data set, or a folder that `fedlab.read` takes", live=False)
    task: str = knob("clicks", 0, 0, "", "rank items by clicked or not, or predict ratings",
                     live=False, choices=("clicks", "ratings"))
    partition: str = knob("one per user", 0, 0, "",
                          "who is a client: every user, or platforms of users", live=False,
                          parts="partition")
    model: str = knob("matrix factorisation", 0, 0, "", "what predicts", live=False, parts="model")
    local: str = knob("sgd", 0, 0, "", "what a client does in a round", live=False, parts="local")
    uplink: str = knob(NONE, 0, 0, "",
                       "stages on the way up, joined by ' + ', in the order in which they "
                       "act; none for none", live=False)
    aggregation: str = knob("weighted mean", 0, 0, "", "how deltas become one", live=False,
                            parts="aggregation")
    schedule: str = knob("synchronous", 0, 0, "",
                         "wait for a whole cohort, or step as updates come", live=False,
                         parts="schedule", group="asynchronous")
    personal: str = knob("off", 0, 0, "",
                         "whether users predict after one more local training of their own",
                         live=False, choices=("off", "fine tuned"), group="local step")
    measure_every: int = knob(1, 1, 1_000, "rounds",
                              "how often the validation metrics are worked out", live=False,
                              usual=(1, 20))
    device: str = knob("cpu", 0, 0, "", "where to train: cpu or cuda", live=False,
                       group="machine and draws")


@dataclass(frozen=True)
class Experiment:
    """The parts that some settings name, and what is made of them when first asked for.

    Raises `ParameterError` or `DataError` on what cannot be built.
    """

    settings: Settings

    @cached_property
    def choices(self) -> Choices:
        """The names."""
        return turned(Choices(), self.settings)

    @cached_property
    def split(self) -> Split:
        """Train, validation and test; clicks by leave-one-out, ratings standardised."""
        return _split(self.choices.data, self.choices.task)

    @cached_property
    def candidates(self) -> Candidates:
        """What the held-out clicks of the validation part are ranked against."""
        return _candidates(self.choices.data, self.settings.seed)

    @cached_property
    def recipe(self) -> Any:
        """How the model is made."""
        return self._part("model", self.choices.model)

    @cached_property
    def local(self) -> Local:
        """What clients do."""
        return self._part("local", self.choices.local)

    @cached_property
    def uplink(self) -> list[Any]:
        """The stages."""
        return [self._part("stage", name) for name in stage_names(self.choices.uplink)]

    @cached_property
    def federation(self) -> Federation:
        """Train ratings, dealt out to clients."""
        owner = self._part("partition", self.choices.partition).owner(self.split.train,
                                                                      self.settings.seed)
        return Federation(self.split.train, owner, self.choices.task)

    @cached_property
    def model(self) -> Model:
        """The model for this data."""
        return self.recipe.build(self.split.train, self.choices.task)

    def _part(self, kind: str, name: str) -> Any:
        found = REGISTRY[kind]
        require(name in found, kind, name, f"choose one of {', '.join(found)}")
        return turned(found[name](), self.settings).ready(self)

    def parts(self) -> list[Part]:
        """All that read settings, those of the loop included."""
        names = self.choices
        return [self.choices, *self.own(), Run(), Participation(), self._made("schedule",
                                                                              names.schedule),
                self._made("local", names.local),
                *(self._made("stage", n) for n in stage_names(names.uplink)),
                self._made("aggregation", names.aggregation), REGISTRY["server"]["server step"]()]

    def own(self) -> list[Part]:
        """The parts that the loop does not know: they are read while the experiment is made."""
        return [self._made("partition", self.choices.partition), self._made("model",
                                                                            self.choices.model)]

    def _made(self, kind: str, name: str) -> Part:
        require(name in REGISTRY[kind], kind, name, f"choose one of {', '.join(REGISTRY[kind])}")
        return REGISTRY[kind][name]()

    def read(self) -> dict[str, Any]:
        """Every setting that this combination reads, with its value.

        What a run is recorded with.
        """
        names = dict.fromkeys(name for part in self.parts() for name in knobs(type(part)))
        return {name: self.settings[name] for name in names}

    def judge(self) -> Judge:
        """The held-out loss of clients' models, on the validation part.

        Which metrics are of as well.
        """
        held = (HeldOut.clicks(self.candidates) if self.choices.task == "clicks"
                else HeldOut.ratings(self.split.validation))
        return judge(self.model, held, self.federation.owner,
                     score=lambda params: self._score(self.model, params))

    def _score(self, model: Model, params: Any) -> Score:
        own: Score | None = self.recipe.score(model, self.federation, params)
        return own or scorer(model, params, self.federation.owner)

    def score(self, done: Round) -> Score:
        """How a Round predicts for the users."""
        if self.choices.personal != "off":
            if not isinstance(self.local, LocalSettings):
                raise ParameterError(
                    f"personal={self.choices.personal!r}: {self.local.name} has no "
                    "local training to repeat; choose 'off'")
            return fine_tuned(self.model, self.federation, done.params, self.local,
                              seed=self.settings.seed, number=done.number)
        return (self.local.score(self.model, self.federation, done)
                or self._score(self.model, done.params))

    def measure(self, done: Round) -> dict[str, float]:
        """The validation metrics of a Round."""
        found: dict[str, float] = {}
        with one_thread():
            score = self.score(done)
            for cls in REGISTRY["metric"].values():
                if cls.task == self.choices.task:  # type: ignore[attr-defined]
                    found |= cls().measure(score, self)
        return found


def stage_names(text: str) -> list[str]:
    """The names in 'poison + clip'."""
    return [] if text == NONE else [name.strip() for name in text.split("+")]


def better() -> dict[str, str]:
    """Name of each metric -> 'max' or 'min', what is better."""
    modes = {name: mode for cls in REGISTRY["metric"].values() if issubclass(cls, Metric)
             for name, mode in cls.modes.items()}
    return modes | {"staleness": "min", "epsilon": "min"}


@lru_cache(maxsize=2)
def _ratings(data: str) -> Ratings:
    known = REGISTRY["data"]
    found: Ratings = known[data]().load() if data in known else read(data)
    return found


@lru_cache(maxsize=2)
def _split(data: str, task: str) -> Split:
    ratings = _ratings(data)
    return leave_one_out(ratings) if task == "clicks" else standardise(split_by_time(ratings))


@lru_cache(maxsize=2)
def _candidates(data: str, seed: int) -> Candidates:
    return candidates(_split(data, "clicks"), "validation", seed=seed)


def stream(ask: Callable[[], Settings | Mapping[str, Any]]) -> Iterator[Round]:
    """The Rounds of an experiment, measured on validation.

    `ask` gives the settings before each round.

    A cohort larger than the federation is all of it. Raises `ParameterError` or `DataError` on what
    cannot be built.
    """
    first = Settings(**ask())
    made = Experiment(first)
    clients = len(made.federation)
    mine = {name for part in (made.choices, *made.own()) for name in knobs(type(part))}
    shared = {name for part in made.parts()[3:] for name in knobs(type(part))}

    def now() -> Settings:
        asked = Settings(**ask())
        kept = {name: value for name, value in asked.items() if name not in mine - shared}
        return Settings(**kept | {"cohort": min(asked.cohort, clients)})
    source = made.recipe.source(made.local.source(made.federation))
    schedule, aggregate = (made._part(kind, getattr(made.choices, kind)) for kind in ("schedule", "aggregation"))
    rounds = federate(made.model, source, now, local=made.local, uplink=made.uplink,
                      aggregate=aggregate, schedule=schedule, device=made.choices.device)
    return measured(rounds, made.measure, made.choices.measure_every)


PRESETS = {
    "671 users, matrix factorisation": Settings(
        rounds=60, cohort=64, local_lr=1.0, server_lr=50.0, weighting="equal"),
    "few clients: 8 users a round": Settings(
        rounds=200, cohort=8, local_lr=1.0, server_lr=5.0, weighting="equal"),
    "10 platforms that differ in taste": Settings(
        partition="by genre", platforms=10, alpha=0.1, cohort=10, rounds=60, local_lr=20.0, server_lr=2.0,
        batch_size=256),
    "practice: 10 e-commerce platforms, averaged": Settings(
        partition="by genre", platforms=10, alpha=0.3, cohort=10, rounds=60, local_lr=20.0, server_lr=2.0,
        batch_size=256, aggregation="weighted mean"),
    "practice: 5 video platforms, the best model selected": Settings(
        partition="by activity", platforms=5, cohort=5, rounds=30, local_lr=1.0, local_epochs=2,
        batch_size=256, model="content", aggregation="best models"),
    "asynchronous: a buffer of 10": Settings(
        schedule="buffered", rounds=300, cohort=64, buffer=10, local_lr=1.0, server_lr=80.0,
        weighting="equal", dim=16, measure_every=6),
    "private: a clip, and noise on the sum": Settings(
        uplink="clip + gaussian noise", sampling="poisson", rounds=60, cohort=64, local_lr=1.0,
        server_lr=50.0, clip=0.5, noise=0.5, delta=1e-3),
    "stars, not clicks": Settings(
        task="ratings", model="linear", rounds=60, cohort=64, local_lr=0.01),
}
