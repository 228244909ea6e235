"""What a run stands beside: chance and popularity, or means of ratings; and whether it beats them.

`beside` is worked out once for some data. `lead` compares a Round with the best of it, person by
person. Both are measured on the validation part, as the metrics of a run are.

Letters: U users, I items, n held-out ratings.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from fedlab.core import Round, Score, Settings, knobs, one_thread
from fedlab.evaluation import chance, gains, interval, item_means, popularity, user_means
from fedlab.workbench.experiment import HELD, Experiment


def _mean(experiment: Experiment) -> Score:
    return lambda users, items: torch.zeros(items.shape)  # values are standardised on train


def _user_means(experiment: Experiment) -> Score:
    means = user_means(experiment.split.train)
    return lambda users, items: means[users]


def _item_means(experiment: Experiment) -> Score:
    means = item_means(experiment.split.train)
    return lambda users, items: means[items]


# what is known without any learning, by task; chance has no score
SIMPLE: Mapping[str, Mapping[str, Callable[[Experiment], Score]]] = {
    "clicks": {"popularity": lambda experiment: popularity(experiment.split.train)},
    "ratings": {
        "mean rating": _mean,
        "mean of each user": _user_means,
        "mean of each item": _item_means,
    },
}


def beside(settings: Settings) -> dict[str, dict[str, float]]:
    """What stands beside a run of these settings: name -> its metrics.

    Nothing does where the run trains on everything, and so has nothing to measure on.

    >>> found = beside(Settings(rounds=3))
    >>> list(found), found["chance"]["hr@10"]
    (['chance', 'popularity'], 0.1)
    """
    experiment = Experiment(settings)
    if experiment.choices.train_on != HELD or not len(experiment.split.validation):
        return {}
    parts = [type(part) for part in experiment.parts if part.kind in ("data", "metric")]
    names = {"data", "task", "against", "seed", *(name for part in parts for name in knobs(part))}
    plain = Settings(**{name: settings[name] for name in names})
    return {name: dict(row) for name, row in _beside(experiment.which, plain).items()}


@lru_cache(maxsize=8)
def _beside(which: Any, plain: Settings) -> dict[str, dict[str, float]]:
    """The same; which: what tells the data from others, so that a file that changed is read."""
    experiment = Experiment(plain)
    luck = {"chance": by_chance(experiment)} if experiment.choices.task == "clicks" else {}
    simple = SIMPLE[experiment.choices.task].items()
    return luck | {name: experiment.measured(made(experiment)) for name, made in simple}


def by_chance(experiment: Experiment) -> dict[str, float]:
    """What scores by chance reach, of the rankings that an experiment measures."""
    found = chance(torch.tensor([experiment.choices.against]))
    if experiment.settings.full_ranking == "on":
        found |= chance(experiment.unmet.others, prefix="full ")
    return found


def lead(settings: Settings, done: Round) -> dict[str, Any]:
    """By how much a Round is ahead of the best that needs no learning: see `ahead`."""
    return ahead(Experiment(settings), done)


def ahead(experiment: Experiment, done: Round) -> dict[str, Any]:
    """By how much a Round of an experiment is ahead of the best that needs no learning.

    over: which that is. by: in what, 'ndcg@10', or 'mse' for the squared error in stars. more: by
    how much, above 0 where the Round is better; low, high: its 95% interval, paired by user, or by
    rating. clients: N. Nothing for a Round that trained on everything.
    """
    if experiment.choices.train_on != HELD or not len(experiment.split.validation):
        return {}
    with one_thread():
        score, simple = experiment.score(done), SIMPLE[experiment.choices.task]
        mine = _each(experiment, score)
        theirs = {name: _each(experiment, made(experiment)) for name, made in simple.items()}
        over = max(theirs, key=lambda name: float(theirs[name].mean()))
        more = mine - theirs[over]
        low, high = interval(more)
    return {
        "round": done.number,
        "over": over,
        "by": "ndcg@10" if experiment.choices.task == "clicks" else "mse",
        "more": float(more.double().mean()),
        "low": low,
        "high": high,
        "clients": len(experiment.federation),
    }


def _each(experiment: Experiment, score: Score) -> torch.Tensor:
    """What each click adds to the NDCG@10 (U,), or minus the squared error of each rating (n,)."""
    if experiment.choices.task == "clicks":
        return gains(experiment.candidates.ranks(score))
    held = experiment.split.validation
    return -((score(held.users, held.items) - held.values) * experiment.split.std).square()
