"""What a search chooses from: federated methods, pooled baselines, and the knobs tuned of each.

Each method has guesses that are tried first: settings that do well on data of many kinds, as their
strengths know no size. So even a small budget gives a good answer.

Letters: I items, T of them in a table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedlab.algorithms import Implicit
from fedlab.core import Score, Settings, turned
from fedlab.data import Interactions
from fedlab.evaluation import dot, ease, ials, item_knn, scorer
from fedlab.models import matrix_factorisation
from fedlab.workbench.experiment import Experiment

Knobs = Mapping[str, Any]
TABLE = 7_000  # items in a table of pairs, at most: 2 GB and half a minute of a core
TABLES = 3  # sizes of it to choose from
NUMBERS = 1 << 26  # of the vectors of all items, at most: a quarter of a GB, held several times
ROUNDS = 20  # of federated iALS, by which it has settled where everybody takes part


@dataclass(frozen=True)
class Range:
    """The values of a knob: from low to high, by steps, or by ratios where `log`; or `choices`."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    whole: bool = False
    choices: tuple[int, ...] = ()

    def ask(self, trial: Any, name: str) -> Any:
        """The value that optuna proposes; numbers have three digits, so that they can be read."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        value = trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)
        return float(f"{value:.3g}")

    def nearest(self, value: Any) -> Any:
        """The value, or the end of the range where it is outside."""
        return value if self.choices else type(value)(min(max(value, self.low), self.high))


@dataclass(frozen=True)
class Method:
    """A way to recommend: its knobs with their ranges, and the guesses that are tried first.

    settings: of the federated run, beside the knobs; none for a pooled baseline.
    """

    name: str
    ranges: Mapping[str, Range]
    first: Sequence[Knobs]
    settings: Knobs | None = None

    def __str__(self) -> str:
        return self.name

    def words(self, knobs: Knobs) -> str:
        """The method with these values of its knobs, for a line of text.

        >>> Method("item kNN", {}, ()).words({"neighbours": 50})
        'item kNN, neighbours 50'
        """
        return ", ".join([self.name, *(f"{n.replace('_', ' ')} {v:g}" for n, v in knobs.items())])


DIM = Range(16, 192, log=True, whole=True)
UNSEEN = Range(0.5, 100.0, log=True)
PULL = Range(0.1, 3.0, log=True)
HOLD = 0.8  # of the pull that all clicks of a user hold, sqrt(n): the most that is tried
RIDGE = Range(1.0, 5_000.0, log=True)
RECENCY = Range(0.0, 1.5, step=0.25)
GUESSES: dict[str, list[dict[str, Any]]] = {
    "iALS": [
        {"dim": 64, "unseen": 10.0, "regularisation": 1.0, "recency": 0.0},
        {"dim": 48, "unseen": 5.0, "regularisation": 0.9, "recency": 1.0},
        {"dim": 128, "unseen": 20.0, "regularisation": 1.0, "recency": 0.0},
        {"dim": 128, "unseen": 5.0, "regularisation": 0.5, "recency": 0.5},
    ],
    "EASE": [
        {"ridge": 300.0, "recency": 0.0},
        {"ridge": 300.0, "recency": 0.5},
        {"ridge": 50.0, "recency": 0.0},
    ],
    "item kNN": [
        {"neighbours": 100, "shrinkage": 10.0, "recency": 0.0},
        {"neighbours": 300, "shrinkage": 3.0, "recency": 0.5},
    ],
}


def federated(train: Interactions) -> list[Method]:
    """The federated methods to choose from.

    Without times no click is recent; EASE is left out where no table of its items would fit, and
    vectors of very many items are short. iALS is not pulled as hard as all clicks of a user hold,
    from where it learns nothing.
    """
    dim = replace(DIM, high=longest(train.item_count))
    most = HOLD * (len(train) / max(1, int((train.user_counts() > 0).sum()))) ** 0.5
    pull = replace(PULL, high=max(2 * PULL.low, min(PULL.high, most)))
    ials_ranges = {"dim": dim, "unseen": UNSEEN, "regularisation": pull, "recency": RECENCY}
    ease_ranges = {"ridge": RIDGE, "recency": RECENCY}
    found = [
        Method(
            "federated iALS",
            ials_ranges,
            GUESSES["iALS"],
            {"local": "implicit", "rounds": ROUNDS, "measure_every": ROUNDS},
        )
    ]
    if tables := least_clicks(train.item_counts()):
        once = {"local": "ease", "model": "item-item", "rounds": 1}
        own = Method("federated EASE", ease_ranges, GUESSES["EASE"], once)
        found.append(_with_tables(own, tables))
    return [_fit(method, train) for method in found]


def pooled(train: Interactions) -> list[Method]:
    """The baselines that see all data in one place."""
    neighbours = {
        "neighbours": Range(10, 1_000, log=True, whole=True),
        "shrinkage": Range(0.1, 100.0, log=True),
        "recency": RECENCY,
    }
    twins = [
        replace(method, name=f"pooled {method.name.removeprefix('federated ')}", settings=None)
        for method in federated(train)
    ]
    knn = Method("item kNN", neighbours, GUESSES["item kNN"])
    return [_fit(knn, train), *reversed(twins)]


def least_clicks(counts: Tensor) -> tuple[int, ...]:
    """Numbers of clicks below which items stay out of EASE's table, those to choose from.

    0 alone where the table of all items fits; none where no table does, or hardly an item is left.

    >>> import torch
    >>> least_clicks(torch.tensor([5.0, 1.0, 0.0]))
    (0,)
    >>> least_clicks(torch.arange(9_000) // 3_000)  # a third have 0 clicks, a third 1, a third 2
    (1, 2)
    """
    if len(counts) <= TABLE:
        return (0,)
    values, own = counts.unique(return_counts=True)
    left = own.flip(0).cumsum(0).flip(0)  # items with so many clicks or more
    sizes = {
        int(least): size
        for least, size in zip(values.tolist(), left.tolist(), strict=True)
        if least >= 1
    }
    fit = [least for least, size in sizes.items() if 1 < size <= TABLE]
    found = fit[:1]
    for least in fit[1:]:
        if len(found) < TABLES and sizes[least] <= 0.7 * sizes[found[-1]]:
            found.append(least)
    return tuple(found)


def longest(items: int) -> float:
    """D: how many numbers the vectors of so many items have at most."""
    return max(DIM.low, min(DIM.high, NUMBERS // items))


def shortened(train: Interactions) -> list[str]:
    """What is left out or smaller as there are so many items, in words."""
    found, tables, items = list[str](), least_clicks(train.item_counts()), f"{train.item_count:,}"
    if not tables:
        found.append(
            f"EASE is left out: its table has room for {TABLE:,} of {items} items, and no number "
            "of clicks tells so few of them from the rest"
        )
    elif tables != (0,):
        found.append(
            f"EASE has room for {TABLE:,} of {items} items: those of {tables[0]} clicks or more"
        )
    if (most := longest(train.item_count)) < DIM.high:
        found.append(f"iALS has vectors of at most {most:g} numbers, as there are {items} items")
    return found


def table_of(method: Method, counts: Tensor) -> int:
    """T: how many items the largest table of EASE has that this method chooses from.

    counts (I,): clicks of each item.
    """
    least = method.ranges["least_clicks"].choices[0] if "least_clicks" in method.ranges else 0
    return int((counts >= least).sum())


def _with_tables(method: Method, tables: tuple[int, ...]) -> Method:
    """EASE with a choice of tables, where that of all items does not fit."""
    if tables == (0,):
        return method
    first = [guess | {"least_clicks": tables[0]} for guess in map(dict, method.first)]
    ranges = {**method.ranges, "least_clicks": Range(choices=tables)}
    return replace(method, ranges=ranges, first=first)


def _fit(method: Method, train: Interactions) -> Method:
    """The method as it suits these data: guesses within the ranges; no recency without times."""
    if "times" not in train.columns:
        ranges = {name: each for name, each in method.ranges.items() if name != "recency"}
        alike = [guess for guess in method.first if not guess["recency"]]
        first = [{n: v for n, v in guess.items() if n != "recency"} for guess in alike]
        method = replace(method, ranges=ranges, first=first)
    return replace(
        method, first=[{n: method.ranges[n].nearest(v) for n, v in g.items()} for g in method.first]
    )


def settings_of(base: Settings, method: Method, knobs: Knobs) -> Settings:
    """The settings of a federated run; base: what all runs of a search have in common.

    Those of a pooled baseline are these alone.
    """
    return base.replace(**method.settings, **knobs) if method.settings else base


def pooled_score(experiment: Experiment, name: str, knobs: Knobs) -> Score:
    """A pooled baseline, fitted to the train part."""
    return POOLED[name](experiment, dict(knobs))


def _knn(experiment: Experiment, knobs: dict[str, Any]) -> Score:
    return item_knn(experiment.split.train, **knobs)


def _ease(experiment: Experiment, knobs: dict[str, Any]) -> Score:
    return ease(experiment.split.train, knobs.pop("ridge"), **knobs)


def _ials(experiment: Experiment, knobs: dict[str, Any]) -> Score:
    """The twin of federated iALS: the same model and the same recency, all data in one place."""
    train, recency, seed = (
        experiment.split.train,
        knobs.pop("recency", 0.0),
        experiment.settings.seed,
    )
    users, items = ials(train, **knobs, seed=seed)
    if not recency:
        return dot(users, items)
    model = matrix_factorisation(len(users), len(items), users.shape[1])
    own = turned(
        Implicit(), Settings(recency=recency, **{n: knobs[n] for n in knobs if n != "dim"})
    )
    params = model.init(seed) | {"user": users, "item": items}
    return scorer(model, own.personal(experiment.federation, params))


POOLED: dict[str, Callable[[Experiment, dict[str, Any]], Score]] = {
    "item kNN": _knn,
    "pooled EASE": _ease,
    "pooled iALS": _ials,
}
