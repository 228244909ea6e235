"""Errors of ratings of users whom a federation knows: the usual cuts of ML-100K, 5 seeds.

    python benchmarks/known.py [--quick]

u1: the publisher's first cut, the first fifth of his file is the test. random: a tenth at random,
another for each seed. Every user is a client; all solve their own vectors by ridge regression
against items that the federation learns (`Meta`, as for newcomers in meta.py), in the end from all
of their train ratings. Predictions are kept between the least and the most stars. Dimension, decay
and rounds were chosen on a fifth of u1's train; no test was read for it.
"""

from collections import defaultdict
from statistics import mean, stdev

import torch
from common import by_seed, entry, is_quick, ml100k, record
from meta import SERVER, about
from torch import Tensor

from fedlab import Federation, Interactions, federate, one_per_user, read
from fedlab.algorithms import Meta, newcomers
from fedlab.data import Episodes
from fedlab.evaluation import item_means
from fedlab.models import user_factor_model

STARS, FIRST, LAST = (1.0, 5.0), 20_000, 20  # and of how many rounds the mean is taken
META = Meta(adaptation="ridge", adapts="user")
SETTINGS = SERVER.replace(server_lr=0.01, weight_decay=0.01, rounds=60)
GOALS = {"u1_rmse": 0.907}


def first_rows(ratings: Interactions) -> Tensor:
    """(n,) whether a rating is among the first fifth of the publisher's file, test of his u1."""
    (path,) = (p for name in ("u.data", "ml-100k.inter") if (p := ml100k() / name).exists())
    lines = path.read_text(encoding="latin-1").splitlines()
    rows = [line.split("\t")[:2] for line in lines if not line.startswith("user_id")][:FIRST]
    known = ratings.catalogue
    users, items = (
        {name: number for number, name in enumerate(ids)}
        for ids in (known.user_ids, known.item_ids)
    )
    pairs = torch.tensor([users[u] * ratings.item_count + items[i] for u, i in rows])
    return torch.isin(ratings.pairs(), pairs)


def errors(ratings: Interactions, held: Tensor, seed: int, quick: bool) -> dict[str, float]:
    """The RMSE on held ratings (n,) of the mean, of biases, and of the federation."""
    train, test = ratings.take(~held), ratings.take(held)
    center = float(train.values.mean())
    train = train.having(values=train.values - center)
    items, counts = item_means(train), torch.bincount(train.users, minlength=train.user_count)
    above = torch.zeros(train.user_count).index_add_(
        0, train.users, train.values - items[train.items]
    )
    settings = SETTINGS.replace(rounds=4 if quick else SETTINGS.rounds, seed=seed)
    model = user_factor_model(ratings.item_count, 16, about(ratings), bias=items, spread=0.03)
    tasks = Episodes(Federation(train, one_per_user(train), "ratings"), (3, 100), 200)
    total, last = defaultdict[str, Tensor | float](float), min(LAST, settings.rounds)
    for done in federate(model, tasks, settings.replace(cohort=len(tasks)), local=META):
        if done.number > settings.rounds - last:
            for name, value in done.params.items():
                total[name] = total[name] + value / last
    order = train.users.argsort(stable=True)
    columns = {"user": train.users, "item": train.items, "target": train.values}
    given = {name: column[order] for name, column in columns.items()}
    score = newcomers(META, model, dict(total), given | {"client": given["user"]}, len(counts))

    def rmse(predicted: Tensor) -> float:
        away = (predicted + center).clamp(*STARS) - test.values
        return float(away.square().mean().sqrt())

    own = (above / (counts + 5))[test.users]
    return {
        "mean": rmse(torch.zeros(len(test))),
        "biases": rmse(items[test.items] + own),
        "federation": rmse(score(test.users, test.items)),
    }


def measured(seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """Both cuts with one seed."""
    ratings = read(ml100k())
    luck = torch.rand(len(ratings), generator=torch.Generator().manual_seed(seed))
    cuts = {"u1": first_rows(ratings), "random": luck.argsort().argsort() < len(ratings) // 10}
    found = {name: errors(ratings, held, seed, quick) for name, held in cuts.items()}
    print(seed, found, flush=True)
    return found


def report(every: list[dict[str, dict[str, float]]], quick: bool) -> None:
    """Write the figures of the seeds that have ended so far."""
    rows = {}
    for cut in every[0]:
        for way, name in (("federation", f"{cut}_rmse"), ("biases", f"{cut}_biases_rmse")):
            values = [found[cut][way] for found in every]
            spread = f", sd {stdev(values):.4f}" if len(values) > 1 else ""
            other = mean(found[cut]["mean"] for found in every)
            rows[f"ml100k_{name}"] = entry(
                mean(values),
                "stars",
                GOALS.get(name),
                higher=False,
                seeds=len(every),
                note=f"always the mean: {other:.3f}{spread}{', quick' * quick}",
            )
    record("quality", rows, quick)


if __name__ == "__main__":
    by_seed(measured, report, is_quick())
