"""Meta-learning: newcomers' errors, rounds against the fine-tuned average, and what second order and many at once take.

python benchmarks/meta.py [--quick]

Newcomers: a fifth of ML-100K's users, of whom 20 random ratings arrive and all others judge; users with 20 ratings are
left out and counted. The means of films that counting needs take a round of their own. Settings were chosen with other
folds of users (seed 1). Rounds: from untrained films, how many rounds FedAvg needs to its query loss after fine-tuning,
over those in which a method gets there, on 5 seeds; step sizes of FedAvg and ridge were chosen on one other fold, the
others' by rule of thumb. Times come from interleaved runs on one thread. The table of newcomers goes to quality.json.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from statistics import mean, median

import torch
from common import by_seed, entry, is_quick, ml100k, record
from torch import Tensor, nn

from fedlab import Config, Federation, Model, federate, from_module, item_features, one_per_user, read
from fedlab.cohort import updates
from fedlab.core import Tree, stream
from fedlab.data import Ratings
from fedlab.features import taste
from fedlab.meta import Meta, with_rates
from fedlab.personal import newcomers
from fedlab.sequence import narrowed
from fedlab.tasks import Curves, NewUsers, Tasks, item_means, new_users
from fedlab.text import item_texts, vectors

KS, TASKS = (3, 5, 10, 20), ("ratings",)
GOALS = {5: 0.975, 10: 0.952, 20: 0.932}
USER = frozenset({"user"})
SERVER = Config(rounds=80, server_lr=0.005, server_optimizer="adam", server_epsilon=1e-4, weight_decay=0.003)


def about(ratings: Ratings) -> Tensor:
    """(I, F) what is known of each film: its text, genres and year."""
    texts = vectors(item_texts(ratings.catalogue), progress=False)
    return torch.cat([narrowed(texts, 64), item_features(ratings.catalogue)], 1)


def newcomer_table(ratings: Ratings, fold: int, quick: bool) -> dict[str, dict[int, float]]:
    """RMSE by ratings given: counting, and `ridge` with the mean of its last 20 rounds' parameters."""
    late, _ = new_users(ratings, fold).centred()
    model = taste(ratings.item_count, 8, about(ratings), bias=item_means(late.train), spread=0.03)
    tasks = Tasks(Federation(late.train, one_per_user(late.train), "ratings"), (3, 100), 200)
    config = replace(SERVER, server_lr=0.01, rounds=4 if quick else 60, cohort=len(tasks), seed=fold)
    meta, total, last = Meta("ridge", USER), defaultdict[str, Tensor | float](float), min(20, config.rounds)
    for done in federate(model, tasks, config, update=meta.update):
        if done.number > config.rounds - last:
            for name, value in done.params.items():
                total[name] = total[name] + value / last
    people, end = late.query.user_count, dict(total)
    return {"ridge": {k: late.error(newcomers(meta, model, end, late.first(k), config, people)) for k in KS},
            "counting": {k: late.error(late.counted(k)) for k in KS}}


def ways(task: str, rounds: int, clients: int, seed: int) -> dict[str, tuple[Meta | None, Config, Meta, Config]]:
    """By name: (how clients train, None for FedAvg; its Config; how newcomers adapt; its Config)."""
    server = replace(SERVER, rounds=rounds, cohort=clients, seed=seed, server_lr=0.02)
    average = replace(server, local_lr=0.03, server_lr=0.1, weight_decay=0.0)
    found = {"fedavg": (None, average, Meta("maml", USER), replace(average, local_lr=0.01, local_epochs=5))}
    step = replace(server, local_lr=0.2, local_epochs=3)
    methods = {"fomaml": Meta("fomaml", USER), "anil": Meta("maml", USER), "meta_sgd": Meta("meta-sgd", USER),
               "fedrecon": Meta("fomaml", USER, learn_start=False), "ridge": Meta("ridge", USER)}
    for name, meta in methods.items():
        config = replace(server, server_lr=0.05) if name == "ridge" else step
        if task == "ratings" or name != "ridge":
            found[name] = meta, config, meta, config
    return found


def curves(ratings: Ratings, task: str, fold: int, rounds: int) -> dict[str, list[float]]:
    """Query loss of newcomers with ten ratings after each round, by method."""
    late = new_users(ratings, fold)
    late = late.centred()[0] if task == "ratings" else late
    tasks = Tasks(Federation(late.train, one_per_user(late.train), task), (3, 100), 200)
    plain, found = taste(ratings.item_count, 8, about(ratings), task=task, spread=0.03), defaultdict(list)
    judged = asked(late, task, fold)
    for name, (meta, config, adapt, own) in ways(task, rounds, len(tasks), fold).items():
        model = with_rates(plain, config.local_lr) if name == "meta_sgd" else plain
        for done in federate(model, tasks, config, update=meta.update if meta else updates):
            found[name].append(judged(adapt, model, done.params, own))
    return found


def asked(late: NewUsers, task: str, fold: int) -> Callable[[Meta, Model, Tree, Config], float]:
    """The query loss of newcomers who adapted to ten ratings, or to ten clicks with four negatives each."""
    people, first = late.query.user_count, late.given.take(torch.arange(len(late.given)) % 20 < 10)
    columns = (torch.cat([getattr(part, name) for part in (late.given, late.query)])
               for name in ("users", "items", "values", "times"))
    support, judges = (Federation(part, one_per_user(part), task).draw(torch.arange(people), 1, 4, stream(fold, name))
                       for name, part in (("given", first), ("query", Ratings(*columns, late.query.catalogue))))
    known = torch.isin(judges["user"] * late.query.item_count + judges["item"], late.given.pairs())
    judges = {name: column[~known] for name, column in judges.items()}

    def loss(meta: Meta, model: Model, params: Tree, config: Config) -> float:
        columns = {name: column for name, column in support.items() if name != "epoch"}
        score = newcomers(meta, model, params, columns, config, people)
        return float(model.loss(score(judges["user"], judges["item"])[None], judges["target"][None]).mean())
    return loss


def measured(fold: int, quick: bool) -> dict[str, dict]:
    """All that one fold of users says."""
    ratings, rounds = read(ml100k()), 3 if quick else 60
    found = {"newcomers": newcomer_table(ratings, fold, quick)}
    for task in TASKS:
        found[task] = curves(ratings, task, fold, rounds)
        print(fold, task, {name: [round(x, 4) for x in each[4::5]] for name, each in found[task].items()}, flush=True)
    print(fold, found["newcomers"], flush=True)
    return found


def report(every: list[dict[str, dict]], quick: bool) -> None:
    """Write what the folds so far say."""
    note, table, rounds = ", quick" if quick else "", {}, {}
    for k in KS:
        ridge, count = ([found["newcomers"][name][k] for found in every] for name in ("ridge", "counting"))
        wins = sum(a < b for a, b in zip(ridge, count, strict=True))
        table[f"ml100k_newuser_rmse_k{k}"] = entry(
            mean(ridge), "stars", GOALS.get(k), higher=False, seeds=len(every),
            note=f"mean of {len(every)} folds of users; counting {mean(count):.3f}, better in {wins}{note}")
    for task in TASKS:
        limit = len(every[0][task]["fedavg"])
        for name in every[0][task]:
            if name != "fedavg":
                each = [limit / reached(found[task][name], found[task]["fedavg"][-1]) for found in every]
                rounds[f"rounds_fedavg_over_{name}_{task}"] = entry(
                    mean(each), "ratio", None, higher=True, seeds=len(every),
                    note=f"to fine-tuned FedAvg's loss after {limit} rounds, {min(each):.2f} to {max(each):.2f}{note}")
    best = max(rounds, key=lambda name: rounds[name]["value"])
    rounds["rounds_fedavg_over_meta"] = rounds[best] | {"goal": 2.8, "note": f"{best}: {rounds[best]['note']}"}
    record("quality", table, quick)
    record("meta", rounds, quick)


def reached(curve: list[float], wanted: float) -> int:
    """The first round at which a curve is as low as wanted; twice all rounds where none is."""
    return next((number for number, value in enumerate(curve, 1) if value <= wanted), 2 * len(curve))


def seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns."""
    taken = defaultdict(list)
    for number in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number:                                       # the first one warms up
                taken[name].append(time.perf_counter() - began)
    return {name: median(each) for name, each in taken.items()}


def times(quick: bool) -> None:
    """Second order over first, and a thousand newcomers at once over one by one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    model, data = from_module(net, {"x": torch.zeros(3, 1)}, task="ratings"), Curves(1000, 10, 10)
    params, config = model.init(torch.Generator()), Config(local_lr=0.02, local_epochs=3)
    note, everyone = ", quick" if quick else "", torch.arange(1000)
    drawn = data.draw(everyone, 1, 0, torch.Generator().manual_seed(0))
    given = {name: column[drawn["query"] == 0] for name, column in drawn.items() if name not in ("query", "epoch")}
    parts = [{name: column[i * 10:(i + 1) * 10] for name, column in given.items()} for i in range(1000)]
    parts = [part | {"client": torch.zeros(10, dtype=torch.int64)} for part in parts]
    calls = {method: lambda m=method: list(Meta(m).update(model, data, params, everyone[:100], config))
             for method in ("fomaml", "maml")}
    calls |= {"at once": lambda: Meta().adapt(model, params, given, config),
              "loop": lambda: [Meta().adapt(model, params, part, config) for part in parts]}
    took = seconds(calls, 2 if quick else 9)
    record("meta", {
        "second_vs_first_order_time": entry(
            took["maml"] / took["fomaml"], "ratio", 3, higher=False, seeds=1,
            note=f"a round of 100 sines, three inner steps, 2 hidden layers{note}"),
        "adapt_1000_vs_loop": entry(
            took["loop"] / took["at once"], "ratio", 20, higher=True, seeds=1,
            note=f"three steps on ten points each, {took['at once'] * 1e3:.0f} ms at once{note}")}, quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    times(is_quick())
    by_seed(measured, report, is_quick())
