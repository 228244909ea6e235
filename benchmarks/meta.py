"""Meta-learning: newcomers' errors, rounds against the fine-tuned average, and speed.

    python benchmarks/meta.py [--quick]

Newcomers: a fifth of ML-100K's users, of whom 20 random ratings arrive and all others judge; users
with 20 ratings are left out and counted. The means of films that counting needs take a round of
their own. Ways: from untrained films, newcomers' query loss with ten ratings, or ten clicks, after
each round; the rounds in which fine-tuned FedAvg is at its least, over those in which another way
gets there; 5 folds, FedAvg as good as we could tune it. All settings were chosen with other folds
of users (seed 1). Speed: what second order takes over first, and newcomers at once over one by one;
times come from interleaved runs on one thread. Errors go to quality.json.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from common import by_seed, entry, is_quick, ml100k, record
from torch import Tensor, nn

from fedlab import (
    SGD,
    Federation,
    Model,
    Settings,
    federate,
    from_module,
    item_features,
    one_per_user,
    read,
)
from fedlab.algorithms import Meta, newcomers, with_rates
from fedlab.core import Key, Local, Tree
from fedlab.data import Curves, Episodes, Interactions
from fedlab.evaluation import NewUsers, item_means, new_users
from fedlab.models import user_factor_model
from fedlab.models.text import item_texts, principal_components, vectors

KS = 3, 5, 10, 20
# support and query; each click comes with four negatives
CUT = {"ratings": ((3, 100), 200), "clicks": ((3, 20), 40)}
GOALS = {5: 0.975, 10: 0.952, 20: 0.932}
BASELINES = "fedavg", "ditto", "pfedme", "fedper"
SERVER = Settings(
    rounds=80, server_lr=0.005, server_optimizer="adam", server_epsilon=1e-4, weight_decay=0.003
)


def about(ratings: Interactions) -> Tensor:
    """What is known (I, F) of each film: its text, genres and year."""
    texts = vectors(item_texts(ratings.catalogue), progress=False)
    return torch.cat([principal_components(texts, 64), item_features(ratings.catalogue)], 1)


def newcomer_table(ratings: Interactions, fold: int, quick: bool) -> dict[str, dict[int, float]]:
    """The RMSE of newcomers by how many ratings are given.

    The ways are counting, and `ridge` with the mean of the parameters of its last 20 rounds.
    """
    late, _ = new_users(ratings, fold).centred()
    model = user_factor_model(
        ratings.item_count, 8, about(ratings), bias=item_means(late.train), spread=0.03
    )
    tasks = Episodes(Federation(late.train, one_per_user(late.train), "ratings"), (3, 100), 200)
    settings = SERVER.replace(
        server_lr=0.01, rounds=4 if quick else 60, cohort=len(tasks), seed=fold
    )
    meta, last = Meta(adaptation="ridge", adapts="user"), min(20, settings.rounds)
    total = defaultdict[str, Tensor | float](float)
    for done in federate(model, tasks, settings, local=meta):
        if done.number > settings.rounds - last:
            for name, value in done.params.items():
                total[name] = total[name] + value / last
    people, end = late.query.user_count, dict(total)
    return {
        "ridge": {k: late.error(newcomers(meta, model, end, late.first(k), people)) for k in KS},
        "counting": {k: late.error(late.mean_baseline(k)) for k in KS},
    }


@dataclass(frozen=True)
class Way:
    """How clients train (`federate`'s local and settings), and how newcomers adapt the result."""

    local: Local
    settings: Settings
    adapt: Meta


def ways(task: str, rounds: int, clients: int, seed: int) -> dict[str, Way]:
    """Every way by name: first FedAvg and personalisation, then those that learn to adapt."""
    server = SERVER.replace(rounds=rounds, cohort=clients, seed=seed, server_lr=0.03)
    plain = server.replace(server_lr=0.1, weight_decay=0.0)
    if task == "ratings":
        rate, epochs, tuned, near = 0.03, 1, 0.01, 1.0
        head, head_epochs, envelope_epochs = 0.1, 1, 3
        step, decay = {"local_lr": 0.3, "local_epochs": 3}, server
    else:
        rate, epochs, tuned, near = 1.0, 3, 1.0, 0.03
        head, head_epochs, envelope_epochs = 1.0, 3, 3
        step, decay = {"local_lr": 3.0, "local_epochs": 3}, plain
    whole = step | {"local_lr": step["local_lr"] / 10}
    own = {"adapts": "all" if task == "ratings" else "user", "local_epochs": 5}
    near_rate = 0.03 if task == "ratings" else 1.0
    average = SGD(local_lr=rate, local_epochs=epochs)

    def learner(settings: Settings, **given: Any) -> Way:
        """The same method for those who train and for newcomers."""
        return Way(Meta(**given), settings, Meta(**given))

    found = {
        "fedavg": Way(average, plain, Meta(local_lr=tuned, **own)),
        "ditto": Way(average, plain, Meta(local_lr=tuned, proximal=near, **own)),
        "pfedme": Way(
            Meta(adaptation="reptile", local_lr=head, local_epochs=envelope_epochs, proximal=near),
            plain,
            Meta(local_lr=near_rate, proximal=near, **own),
        ),
        "fedper": Way(
            SGD(local_lr=head, local_epochs=head_epochs),
            plain,
            Meta(adapts="user", local_lr=head, local_epochs=5),
        ),
        "fedrecon": learner(decay, adaptation="fomaml", adapts="user", learn_start="no", **step),
        "fomaml": learner(decay, adaptation="fomaml", **whole),
        "maml": learner(decay, **whole),
        "anil": learner(decay, adapts="user", **step),
        "meta_sgd": Way(
            Meta(adaptation="meta-sgd", adapts="user", local_epochs=3),
            decay,
            Meta(adaptation="meta-sgd", adapts="user", local_epochs=3),
        ),
    }
    ridge = learner(decay, adaptation="ridge", adapts="user")
    return found | ({"ridge": ridge} if task == "ratings" else {})


def curves(ratings: Interactions, task: str, fold: int, rounds: int) -> dict[str, list[float]]:
    """The query loss of newcomers with ten ratings after each round, by way.

    FedPer's newcomers start with what it never learned.
    """
    late = new_users(ratings, fold)
    late = late.centred()[0] if task == "ratings" else late
    tasks = Episodes(Federation(late.train, one_per_user(late.train), task), *(CUT[task]))
    known, found = about(ratings), defaultdict(list)
    plain, private = (
        user_factor_model(ratings.item_count, 8, known, task=task, spread=0.03, clients=n)
        for n in (0, len(tasks))
    )
    judged = asked(late, task, fold)
    for name, way in ways(task, rounds, len(tasks), fold).items():
        rate = 0.3 if task == "ratings" else 3.0
        model = {"meta_sgd": with_rates(plain, rate), "fedper": private}.get(name, plain)
        for done in federate(model, tasks, way.settings, local=way.local):
            start = {"user": torch.zeros(1, 9)} if name == "fedper" else {}
            judge = plain if name == "fedper" else model
            found[name].append(judged(way.adapt, judge, done.params | start))
    return found


def asked(late: NewUsers, task: str, fold: int) -> Callable[[Meta, Model, Tree], float]:
    """The query loss of newcomers who adapted to ten ratings or clicks.

    A click comes with four negatives.
    """
    people, first = late.query.user_count, late.given.take(torch.arange(len(late.given)) % 20 < 10)
    given, query = late.given, late.query
    users, items = (torch.cat([getattr(p, n) for p in (given, query)]) for n in ("users", "items"))
    columns = {n: torch.cat([c, query.columns[n]]) for n, c in given.columns.items()}
    every = Interactions(users, items, query.catalogue, columns)
    support, judges = (
        Federation(part, one_per_user(part), task).draw(torch.arange(people), 1, 4, Key(fold, name))
        for name, part in (("given", first), ("query", every))
    )
    known = torch.isin(judges["user"] * late.query.item_count + judges["item"], late.given.pairs())
    judges = {name: column[~known] for name, column in judges.items()}

    def loss(meta: Meta, model: Model, params: Tree) -> float:
        columns = {name: column for name, column in support.items() if name != "epoch"}
        score = newcomers(meta, model, params, columns, people)
        return float(
            model.loss(score(judges["user"], judges["item"])[None], judges["target"][None]).mean()
        )

    return loss


def measured(fold: int, quick: bool) -> dict[str, dict]:
    """Everything that is measured on one fold of users."""
    ratings, rounds = read(ml100k()), 3 if quick else 60
    found = {"newcomers": newcomer_table(ratings, fold, quick)}
    for task in CUT:
        found[task] = curves(ratings, task, fold, rounds)
        print(
            fold,
            task,
            {name: [round(x, 4) for x in each[4::5]] for name, each in found[task].items()},
            flush=True,
        )
    print(fold, found["newcomers"], flush=True)
    return found


def report(every: list[dict[str, dict]], quick: bool) -> None:
    """Write the figures of the folds that have ended so far."""
    note, table, ended, rounds = ", quick" if quick else "", {}, {}, {}
    for k in KS:
        ridge, count = (
            [found["newcomers"][name][k] for found in every] for name in ("ridge", "counting")
        )
        wins = sum(a < b for a, b in zip(ridge, count, strict=True))
        table[f"ml100k_newuser_rmse_k{k}"] = entry(
            mean(ridge),
            "stars",
            GOALS.get(k),
            higher=False,
            seeds=len(every),
            note=f"mean of {len(every)} folds of users; counting {mean(count):.3f}, better in "
            f"{wins}{note}",
        )
    for task, unit in (("ratings", "stars"), ("clicks", "nats")):
        limit = len(every[0][task]["fedavg"])
        for name in every[0][task]:
            last = [found[task][name][-1] ** (0.5 if task == "ratings" else 1) for found in every]
            ended[f"{task}_{name}"] = entry(
                mean(last),
                unit,
                None,
                higher=False,
                seeds=len(every),
                note=(
                    f"newcomers with ten after {limit} rounds, {min(last):.3f} to "
                    f"{max(last):.3f}{note}"
                ),
            )
            if name not in BASELINES:
                each = [earlier(found[task]["fedavg"], found[task][name]) for found in every]
                rounds[f"rounds_fedavg_over_{name}_{task}"] = entry(
                    mean(each),
                    "ratio",
                    None,
                    higher=True,
                    seeds=len(every),
                    note=f"to fine-tuned FedAvg's least loss; by fold "
                    f"{', '.join(f'{x:.2f}' for x in each)}{note}",
                )
    best = max(rounds, key=lambda name: rounds[name]["value"])
    rounds["rounds_fedavg_over_meta"] = rounds[best] | {
        "goal": 2.8,
        "note": f"{best}: {rounds[best]['note']}",
    }
    record("quality", table, quick)
    record("meta", rounds | ended, quick)


def earlier(average: list[float], curve: list[float]) -> float:
    """The rounds of the average to its least loss, over those that another curve takes to reach it.

    It is 0 where the other never gets there.
    """
    least = min(average)
    found = next((number for number, value in enumerate(curve, 1) if value <= least), None)
    return (average.index(least) + 1) / found if found else 0.0


def seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns."""
    taken = defaultdict(list)
    for number in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number:  # the first one warms up
                taken[name].append(time.perf_counter() - began)
    return {name: median(each) for name, each in taken.items()}


def times(quick: bool) -> None:
    """Time second order over first, and a thousand newcomers at once over one by one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    model, data = from_module(net, {"x": torch.zeros(3, 1)}, task="ratings"), Curves(1000, 10, 10)
    params, inner = model.init(0), {"local_lr": 0.02, "local_epochs": 3}
    note, everyone = ", quick" if quick else "", torch.arange(1000)
    drawn = data.draw(everyone, 1, 0, Key(0, "any"))
    given = {
        name: column[drawn["query"] == 0]
        for name, column in drawn.items()
        if name not in ("query", "epoch")
    }
    parts = [
        {name: column[i * 10 : (i + 1) * 10] for name, column in given.items()} for i in range(1000)
    ]
    parts = [part | {"client": torch.zeros(10, dtype=torch.int64)} for part in parts]
    settings, meta = Settings(cohort=100, rounds=10_000), Meta(**inner)
    rounds = {
        method: federate(model, data, settings, local=Meta(adaptation=method, **inner))
        for method in ("fomaml", "maml")
    }
    calls = {method: partial(next, stream) for method, stream in rounds.items()}
    calls |= {
        "at once": lambda: meta.adapt(model, params, given),
        "loop": lambda: [meta.adapt(model, params, part) for part in parts],
    }
    took = seconds(calls, 2 if quick else 9)
    record(
        "meta",
        {
            "second_vs_first_order_time": entry(
                took["maml"] / took["fomaml"],
                "ratio",
                3,
                higher=False,
                seeds=1,
                note=f"a round of 100 sines, three inner steps, 2 hidden layers{note}",
            ),
            "adapt_1000_vs_loop": entry(
                took["loop"] / took["at once"],
                "ratio",
                20,
                higher=True,
                seeds=1,
                note=f"three steps on ten points each, {took['at once'] * 1e3:.0f} ms at "
                f"once{note}",
            ),
        },
        quick,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    times(is_quick())
    by_seed(measured, report, is_quick())
