"""A whole experiment as settings: data, partition, model and aggregation beside the knobs of a run.

What later lessons add goes into the tables below; the workbench, the command line and the settings JSON follow.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from fedlab.aggregation import Aggregate, mean_of_holders, weighted_mean
from fedlab.core import Config, knob, strict
from fedlab.data import Ratings, Split, leave_one_out, load, read, split_by_time, standardise
from fedlab.evaluation import Candidates, candidates, ranking
from fedlab.features import item_features, linear, user_features
from fedlab.federation import Federation, by_activity, by_genre, equal, one_per_user
from fedlab.metrics import rmse
from fedlab.models import Model, interaction, matrix_factorisation
from fedlab.rounds import Round, measured
from fedlab.scoring import scorer
from fedlab.server import federate

BUNDLED = "ml-latest-small"


@strict
@dataclass(frozen=True, kw_only=True)
class Experiment(Config):
    """Config, and what the federation is made of. These count from the next run."""

    data: str = knob(BUNDLED, 0, 0, "", f"{BUNDLED}, or a folder that `fedlab.read` takes", live=False)
    task: str = knob("clicks", 0, 0, "", "rank films by watched or not, or predict the stars", live=False,
                     choices=("clicks", "ratings"))
    partition: str = knob("one per user", 0, 0, "", "who is a client: every user, or platforms that hold users",
                          live=False, choices=("one per user", "equal", "by activity", "by genre"))
    platforms: int = knob(10, 1, 10_000, "clients", "how many platforms; of no account with one client per user",
                          live=False, usual=(2, 50))
    alpha: float = knob(0.3, 0.001, 1_000.0, "", "by genre: how alike platforms are (Dirichlet)", live=False, log=True,
                        usual=(0.05, 100.0))
    model: str = knob("matrix factorisation", 0, 0, "", "what predicts", live=False,
                      choices=("matrix factorisation", "interaction", "linear"))
    dim: int = knob(32, 1, 1_024, "numbers", "length of a user's or a film's vector (D)", live=False, log=True,
                    usual=(1, 128))
    aggregation: str = knob("weighted mean", 0, 0, "", "how deltas become one", live=False,
                            choices=("weighted mean", "mean of holders"))
    measure_every: int = knob(1, 1, 1_000, "rounds", "how often the validation metrics are worked out", live=False,
                              usual=(1, 20))
    device: str = knob("cpu", 0, 0, "", "where to train: cpu or cuda", live=False)


PARTITIONS: dict[str, Callable[[Ratings, Experiment], Tensor]] = {
    "one per user": lambda train, _: one_per_user(train),
    "equal": lambda train, e: equal(train, e.platforms, e.seed),
    "by activity": lambda train, e: by_activity(train, e.platforms),
    "by genre": lambda train, e: by_genre(train, e.platforms, e.alpha, e.seed),
}
MODELS: dict[str, Callable[[Ratings, Experiment], Model]] = {
    "matrix factorisation": lambda t, e: matrix_factorisation(t.user_count, t.item_count, e.dim, task=e.task),
    "interaction": lambda t, e: interaction(t.user_count, t.item_count, e.dim, task=e.task),
    "linear": lambda t, e: linear(item_features(t.catalogue), user_features(t), task=e.task),
}
AGGREGATES: dict[str, Aggregate] = {"weighted mean": weighted_mean, "mean of holders": mean_of_holders}
METRICS = {"ndcg@10": "max", "hr@10": "max", "rmse": "min"}


@lru_cache(maxsize=2)
def _split(data: str, task: str) -> Split:
    ratings = load() if data == BUNDLED else read(data)
    return leave_one_out(ratings) if task == "clicks" else standardise(split_by_time(ratings))


@lru_cache(maxsize=2)
def _candidates(data: str, seed: int) -> Candidates:
    return candidates(_split(data, "clicks"), "validation", seed=seed)


def evaluate(settings: Experiment, model: Model, data: Federation, done: Round) -> dict[str, float]:
    """Validation metrics of a Round: HR@10 and NDCG@10 for clicks, RMSE in stars for ratings."""
    score = scorer(model, done.params, data.owner)
    if settings.task == "clicks":
        return ranking(score, _candidates(settings.data, settings.seed))
    split = _split(settings.data, settings.task)
    return {"rmse": rmse(score(split.validation.users, split.validation.items), split.validation.values) * split.std}


def stream(ask: Callable[[], Experiment]) -> Iterator[Round]:
    """The Rounds of an experiment, measured on validation; `ask` gives the knobs before each round.

    A cohort larger than the federation is all of it. Raises `ParameterError` or `DataError` on what cannot be built.
    """
    first = ask()
    train = _split(first.data, first.task).train
    owner = PARTITIONS[first.partition](train, first)
    data, model = Federation(train, owner, first.task), MODELS[first.model](train, first)

    def now() -> Experiment:
        asked = ask()
        return replace(asked, cohort=min(asked.cohort, len(data)))
    rounds = federate(model, data, now, aggregate=AGGREGATES[first.aggregation], device=first.device)
    return measured(rounds, lambda done: evaluate(first, model, data, done), first.measure_every)


PRESETS = {
    "671 users, matrix factorisation": Experiment(
        rounds=60, cohort=64, local_lr=1.0, server_lr=50.0, weighting="equal"),
    "few clients: 8 users a round": Experiment(
        rounds=200, cohort=8, local_lr=1.0, server_lr=5.0, weighting="equal"),
    "10 platforms that differ in taste": Experiment(
        partition="by genre", platforms=10, alpha=0.1, cohort=10, rounds=60, local_lr=20.0, server_lr=2.0,
        batch_size=256),
    "stars, not clicks": Experiment(
        task="ratings", model="linear", rounds=60, cohort=64, local_lr=0.01, server_lr=1.0),
}
