"""A whole experiment as settings: data, partition, model and aggregation beside the knobs of a run.

What later lessons add goes into the tables below; the workbench, the command line and the settings
JSON follow.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fedlab.aggregation import (
    Aggregate,
    HeldOut,
    by_quality,
    coordinate_median,
    judge,
    krum,
    mean_of_holders,
    norm_bound,
    row_bound,
    select,
    trimmed_mean,
    weighted_mean,
)
from fedlab.algorithms import (
    Asynchronous,
    ClientUpdate,
    Membership,
    World,
    federate,
    federate_async,
)
from fedlab.attacks import Craft, Poisoned, noisy, scaled
from fedlab.communication import Codec, ErrorFeedback, LowRank, Quantised, RandomK, TopK
from fedlab.core import Round, knob, measured, require, strict
from fedlab.core import stream as keyed
from fedlab.data import (
    Federation,
    Ratings,
    Split,
    by_activity,
    by_genre,
    equal,
    leave_one_out,
    load,
    one_per_user,
    read,
    split_by_time,
    standardise,
)
from fedlab.engine import updates
from fedlab.evaluation import Candidates, candidates, ranking, rmse, scorer
from fedlab.models import (
    Model,
    content,
    genre_profile,
    interaction,
    item_features,
    linear,
    matrix_factorisation,
    user_features,
)

BUNDLED = "ml-latest-small"
CODES: dict[str, Codec] = {
    "8 bits": Quantised(8), "4 bits": Quantised(4), "2 bits": Quantised(2), "signs": Quantised(1),
    "largest tenth": TopK(0.1), "random tenth": RandomK(0.1), "rank 1": LowRank(1),
    "rank 1 in 4 bits": LowRank(1, then=Quantised(4)),
}


@strict
@dataclass(frozen=True, kw_only=True)
class Experiment(Asynchronous):
    """Config, and what the federation is made of. These count from the next run."""

    data: str = knob(BUNDLED, 0, 0, "", f"{BUNDLED}, or a folder that `fedlab.read` takes",
                     live=False)
    task: str = knob("clicks", 0, 0, "", "rank films by watched or not, or predict the stars",
                     live=False, choices=("clicks", "ratings"))
    partition: str = knob("one per user", 0, 0, "",
                          "who is a client: every user, or platforms that hold users", live=False,
                          choices=("one per user", "equal", "by activity", "by genre"))
    platforms: int = knob(10, 1, 10_000, "clients",
                          "how many platforms; of no account with one client per user", live=False,
                          usual=(2, 50), group="partition")
    alpha: float = knob(0.3, 0.001, 1_000.0, "", "by genre: how alike platforms are (Dirichlet)",
                        live=False, log=True, usual=(0.05, 100.0), group="partition")
    model: str = knob("matrix factorisation", 0, 0, "", "what predicts", live=False,
                      choices=("matrix factorisation", "interaction", "content", "linear"))
    dim: int = knob(32, 1, 1_024, "numbers", "length of a user's or a film's vector (D)",
                    live=False, log=True, usual=(1, 128))
    aggregation: str = knob("weighted mean", 0, 0, "", "how deltas become one", live=False,
                            choices=("weighted mean", "mean of holders", "coordinate median",
                                     "trimmed mean", "krum", "norm bound", "row bound",
                                     "by quality", "best models"))
    trim: float = knob(0.1, 0.0, 0.49, "of the clients", "trimmed mean: share cut off at each end",
                       live=False, usual=(0.0, 0.45), group="aggregation")
    byzantine: int = knob(1, 0, 100_000, "clients",
                          "krum: how many bad clients it should stand (f)", live=False,
                          usual=(0, 20), group="aggregation")
    keep: int = knob(1, 1, 100_000, "clients", "krum and best models: how many are averaged",
                     live=False, usual=(1, 20), group="aggregation")
    bound: float = knob(1.0, 1e-6, 1e6, "",
                        "norm bound, row bound: longest delta, or row of it (L2)", live=False,
                        log=True, usual=(0.01, 10.0), group="aggregation")
    temperature: float = knob(0.1, 1e-6, 1e6, "",
                              "by quality: small listens to the best client alone", live=False,
                              log=True, usual=(0.01, 10.0), group="aggregation")
    timing: str = knob("synchronous", 0, 0, "", "wait for a whole cohort, or step as updates come",
                       live=False, choices=("synchronous", "asynchronous"), group="asynchronous")
    pace: float = knob(0.01, 0.0, 1e6, "s, simulated", "what an example takes a median client",
                       live=False, usual=(0.0, 0.1), group="clients' world")
    spread: float = knob(1.0, 0.0, 5.0, "", "how unlike clients' speeds are (sd of the log)",
                         live=False, usual=(0.0, 3.0), group="clients' world")
    delay: float = knob(2.0, 0.0, 1e6, "s, simulated", "mean time to send", live=False,
                        usual=(0.0, 60.0), group="clients' world")
    late: float = knob(0.0, 0.0, 1.0, "of the clients", "join after the first round", live=False,
                       group="clients' world")
    early: float = knob(0.0, 0.0, 1.0, "of the clients", "leave before the last round", live=False,
                        group="clients' world")
    attack: str = knob("none", 0, 0, "", "what clients send that belong to an attacker", live=False,
                       choices=("none", "flipped", "noisy"), group="attack")
    liars: float = knob(0.1, 0.0, 1.0, "of the clients",
                        "belong to an attacker; of no account without an attack", live=False,
                        usual=(0.0, 0.5), group="attack")
    code: str = knob("plain", 0, 0, "", "in what form deltas are sent up", live=False,
                     choices=("plain", *CODES), group="communication")
    measure_every: int = knob(1, 1, 1_000, "rounds",
                              "how often the validation metrics are worked out", live=False,
                              usual=(1, 20))
    device: str = knob("cpu", 0, 0, "", "where to train: cpu or cuda", live=False,
                       group="machine and draws")


PARTITIONS: dict[str, Callable[[Ratings, Experiment], Tensor]] = {
    "one per user": lambda train, _: one_per_user(train),
    "equal": lambda train, e: equal(train, e.platforms, e.seed),
    "by activity": lambda train, e: by_activity(train, e.platforms),
    "by genre": lambda train, e: by_genre(train, e.platforms, e.alpha, e.seed),
}
MODELS: dict[str, Callable[[Ratings, Experiment], Model]] = {"matrix factorisation": lambda t,
                                                             e: matrix_factorisation(t.user_count,
                                                                                     t.item_count,
                                                                                     e.dim,
                                                                                     task=e.task),
                                                             "interaction": lambda t,
                                                             e: interaction(t.user_count,
                                                                            t.item_count, e.dim,
                                                                            task=e.task),
                                                             "content": lambda t,
                                                             e: content(t.catalogue.genres.float(),
                                                                        genre_profile(t), e.dim,
                                                                        task=e.task),
                                                             "linear": lambda t,
                                                             e: linear(item_features(t.catalogue),
                                                                       user_features(t),
                                                                       task=e.task),}
AGGREGATES: dict[str, Callable[[Experiment, Model, Federation],
                               Aggregate]] = {"weighted mean": lambda *_: weighted_mean,
                                              "mean of holders": lambda *_: mean_of_holders,
                                              "coordinate median": lambda *_: coordinate_median,
                                              "trimmed mean": lambda e, *_: trimmed_mean(e.trim),
                                              "krum": lambda e, *_: krum(e.byzantine, e.keep),
                                              "norm bound": lambda e, *_: norm_bound(e.bound),
                                              "row bound": lambda e, *_: row_bound(e.bound),
                                              "by quality": lambda e, model,
                                              data: by_quality(judge(model, _held_out(e),
                                                                     data.owner), e.temperature),
                                              "best models": lambda e, model,
                                              data: select(judge(model, _held_out(e), data.owner),
                                                           e.keep),}
CRAFTS: dict[str, Callable[[Experiment], Craft]] = {
    "flipped": lambda _: scaled(-5.0),
    "noisy": lambda e: noisy(0.1, e.seed),
}
METRICS = {"ndcg@10": "max", "hr@10": "max", "rmse": "min", "staleness": "min"}


@lru_cache(maxsize=2)
def _split(data: str, task: str) -> Split:
    ratings = load() if data == BUNDLED else read(data)
    return leave_one_out(ratings) if task == "clicks" else standardise(split_by_time(ratings))


@lru_cache(maxsize=2)
def _candidates(data: str, seed: int) -> Candidates:
    return candidates(_split(data, "clicks"), "validation", seed=seed)


def _held_out(e: Experiment) -> HeldOut:
    """What judges clients: the validation part, which the metrics are of as well."""
    if e.task == "clicks":
        return HeldOut.clicks(_candidates(e.data, e.seed))
    return HeldOut.ratings(_split(e.data, e.task).validation)


def evaluate(settings: Experiment, model: Model, data: Federation, done: Round) -> dict[str, float]:
    """Validation metrics of a Round: HR@10 and NDCG@10 for clicks, RMSE in stars for ratings."""
    score = scorer(model, done.params, data.owner)
    if settings.task == "clicks":
        return ranking(score, _candidates(settings.data, settings.seed))
    split = _split(settings.data, settings.task)
    return {"rmse": rmse(score(split.validation.users, split.validation.items),
                         split.validation.values) * split.std}


def client_update(e: Experiment, clients: int) -> ClientUpdate:
    """What clients do: train, lie if they belong to an attacker, code what they send."""
    update: ClientUpdate = updates
    if e.attack != "none":
        liars = torch.randperm(clients, generator=keyed(e.seed, "liars"))[:round(e.liars * clients)]
        update = Poisoned(liars, CRAFTS[e.attack](e), trained=update).update
    return ErrorFeedback(CODES[e.code], trained=update).update if e.code != "plain" else update


def stream(ask: Callable[[], Experiment]) -> Iterator[Round]:
    """The Rounds of an experiment, measured on validation; `ask` gives the knobs before each round.

    A cohort larger than the federation is all of it. Raises `ParameterError` or `DataError` on what
    cannot be built.
    """
    first = ask()
    train = _split(first.data, first.task).train
    owner = PARTITIONS[first.partition](train, first)
    data, model = Federation(train, owner, first.task), MODELS[first.model](train, first)

    def now() -> Experiment:
        asked = ask()
        return replace(asked, cohort=min(asked.cohort, len(data)))
    aggregate = AGGREGATES[first.aggregation](first, model, data)
    world = World(pace=first.pace, spread=first.spread, delay=first.delay, seed=first.seed)
    if first.timing == "asynchronous":
        for name, usual in (("attack", "none"), ("code", "plain")):
            value = getattr(first, name)
            require(value == usual, name, value,
                    f"asynchronous clients know {usual!r} alone; set timing='synchronous'")
        rounds = federate_async(model, data, now, world=world, aggregate=aggregate,
                                device=first.device)
    else:
        if first.late or first.early:
            members = Membership.drawn(len(data), max(first.rounds, 2), first.late, first.early,
                                       first.seed)
            world = replace(world, members=members)
        rounds = federate(model, data, now, aggregate=aggregate, update=client_update(first,
                                                                                      len(data)),
                          world=world, device=first.device)
    return measured(rounds, lambda done: evaluate(first, model, data, done), first.measure_every)


PRESETS = {"671 users, matrix factorisation": Experiment(rounds=60, cohort=64, local_lr=1.0,
                                                         server_lr=50.0, weighting="equal"),
           "few clients: 8 users a round": Experiment(rounds=200, cohort=8, local_lr=1.0,
                                                      server_lr=5.0, weighting="equal"),
           "10 platforms that differ in taste": Experiment(partition="by genre", platforms=10,
                                                           alpha=0.1, cohort=10, rounds=60,
                                                           local_lr=20.0, server_lr=2.0,
                                                           batch_size=256),
           "practice: 10 e-commerce platforms, averaged": Experiment(partition="by genre",
                                                                     platforms=10, alpha=0.3,
                                                                     cohort=10, rounds=60,
                                                                     local_lr=20.0, server_lr=2.0,
                                                                     batch_size=256,
                                                                     aggregation="weighted mean"),
           "practice: 5 video platforms, the best model selected": Experiment(
    partition="by activity", platforms=5, cohort=5, rounds=30, local_lr=1.0, local_epochs=2,
    batch_size=256, model="content", aggregation="best models"),
           "asynchronous: a buffer of 10": Experiment(timing="asynchronous", rounds=300, cohort=64,
                                                      buffer=10, local_lr=1.0, server_lr=80.0,
                                                      weighting="equal", dim=16, measure_every=6),
           "stars, not clicks": Experiment(task="ratings", model="linear", rounds=60, cohort=64,
                                           local_lr=0.01, server_lr=1.0),}
