"""What one watches or buys next: a Transformer over histories, trained among five platforms.

    python benchmarks/sequences.py [--quick] [--shop PATH] [--only mlsmall ml100k shop] [--seeds N]

On every set with times, by the items' numbers, by their texts and by both; the same model on pooled
data; and popularity, item kNN and EASE, which see all data, the last two with late clicks first.
The shop's items have no texts. Leave-one-out, negatives and reading of the test are as in
quality.py, whose results file takes the figures: histories end with the last item of train. A
platform has a fifth of the users, drawn at random. A run ends after 20 rounds, or after 3 without
a better figure on validation, and its best round is taken; settings are the same for all sets. Each
set and seed runs in a process of its own.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import mean, stdev

import torch
from common import entry, ml100k, record

from fedlab import (
    Federation,
    Lists,
    Settings,
    at_least,
    best_round,
    candidates,
    equal,
    federate,
    leave_one_out,
    listwise,
    load,
    measured,
    popularity,
    ranking,
    read,
    stop_early,
)
from fedlab.data import Split
from fedlab.evaluation import ease, item_knn
from fedlab.models import from_module
from fedlab.models.text import (
    SASRec,
    Sequences,
    item_texts,
    last_films,
    sequence_scorer,
    vectors,
    with_lists,
)
from fedlab.workbench import over_seeds

PLATFORMS, LENGTH, DIM, LOSS, PATIENCE = 5, 20, 32, "sampled softmax", 3
RECENCY = 0.5  # of item kNN and EASE, as in quality.py
SETTINGS = Settings(
    rounds=20,
    cohort=PLATFORMS,
    batch_size=128,
    local_lr=0.003,
    optimizer="adamw",
    negatives=16,
    memory_mb=4000,
)
WAYS = {"both": "text and rows", "ids": "rows alone", "text": "text alone"}
TOLD = ("mlsmall", "ml100k")  # sets whose items have texts
Figures = dict[str, dict[str, float]]


def parts(name: str, shop: str) -> Split:
    """The split of a set, of users with three interactions or more."""
    every = load() if name == "mlsmall" else read(str(ml100k()) if name == "ml100k" else shop)
    return leave_one_out(at_least(every, users=3)[0])


def learned(split: Split, way: str, platforms: int, seed: int, rounds: int) -> dict[str, float]:
    """The test figures of a SASRec trained among so many platforms."""
    train, films = split.train, last_films(split.train, LENGTH)
    known = None if way == "ids" else vectors(item_texts(train.catalogue), progress=False)
    torch.manual_seed(seed)
    net = SASRec(train.item_count, known, ids=way != "text", dim=DIM, length=LENGTH)
    few = {"history": films[:3], "item": train.items[:3]}
    model = listwise(with_lists(from_module(net, few)), LOSS)
    owner = equal(train, platforms, seed)
    data = Lists(Sequences(Federation(train, owner), LENGTH), LOSS)
    against = candidates(split, "validation", seed=seed)
    ran = federate(model, data, SETTINGS.replace(seed=seed, rounds=rounds, cohort=platforms))
    scored = measured(
        ran, lambda done: ranking(sequence_scorer(model, done.params, films), against)
    )
    best = best_round(stop_early(scored, "ndcg@10", "max", PATIENCE), "ndcg@10", "max")
    figures = ranking(sequence_scorer(model, best.params, films), candidates(split, seed=seed))
    return figures | {"round": best.number}


def compared(name: str, shop: str, quick: bool, seed: int) -> Figures:
    """The test figures of each way on a set."""
    split, rounds = parts(name, shop), 1 if quick else SETTINGS.rounds
    ways = WAYS if name in TOLD else ["ids"]
    jobs: dict[str, Callable[[], dict[str, float]]] = {
        way: partial(learned, split, way, PLATFORMS, seed, rounds) for way in ways
    }
    for way in ("both", "ids"):
        if way in ways:
            jobs[f"pooled_{way}"] = partial(learned, split, way, 1, seed, rounds)
    against = candidates(split, seed=seed)
    baselines = {
        "popularity": lambda: popularity(split.train),
        "knn": lambda: item_knn(split.train, recency=RECENCY),
        "ease": lambda: ease(split.train, recency=RECENCY),
    }
    found = {way: ranking(make(), against) for way, make in baselines.items()}
    for way, job in jobs.items():
        found[way] = job()
        print(f"{name}, seed {seed}, {way}: {found[way]}", flush=True)
    return found


def figures(name: str, every: list[Figures], quick: bool) -> dict[str, dict]:
    """The figures of a set over the seeds that have ended so far."""
    rows = {}
    for way in every[0]:
        for metric in ("hr@10", "ndcg@10"):
            values = [found[way][metric] for found in every]
            spread = f"sd {stdev(values):.3f}" if len(values) > 1 else "one seed"
            best = [int(found[way]["round"]) for found in every if "round" in found[way]]
            rounds = f", best round {min(best)} to {max(best)}" if best else ""
            rows[f"{name}_sequence_{way}_{metric.replace('@', '')}"] = entry(
                mean(values),
                "share" if "hr" in metric else "NDCG",
                None,
                higher=True,
                seeds=len(every),
                note=f"99 negatives, {spread}{rounds}{', quick' if quick else ''}",
            )
    for title, one, other, goal in (
        ("federated_minus_pooled", "both", "pooled_both", -0.01),
        ("federated_minus_pooled", "ids", "pooled_ids", -0.01),
        ("text_and_ids_minus_ids", "both", "ids", 0.0),
    ):
        if other in every[0] and one in every[0] and f"{name}_sequence_{title}" not in rows:
            gains = [found[one]["ndcg@10"] - found[other]["ndcg@10"] for found in every]
            wins = sum(gain > 0 for gain in gains)
            rows[f"{name}_sequence_{title}"] = entry(
                mean(gains),
                "NDCG",
                goal,
                higher=True,
                seeds=len(every),
                note=f"{WAYS[one]}, paired by seed, better in {wins} of {len(every)}",
            )
    return rows


def worst(least: dict[str, dict]) -> dict:
    """The least of the differences of some sets, whose note has all of them."""
    shown = ", ".join(f"{name} {row['value']:+.4f}" for name, row in least.items())
    found = min(least.values(), key=lambda row: row["value"])
    return found | {
        "note": f"the least of {shown}",
        "seeds": min(r["seeds"] for r in least.values()),
    }


def main() -> None:
    """Measure, and record after each seed."""
    words = argparse.ArgumentParser(description="SASRec among platforms, and pooled.")
    words.add_argument("--quick", action="store_true")
    words.add_argument("--shop", metavar="PATH", default="", help="clicks of a shop's customers")
    words.add_argument("--only", nargs="*", default=["mlsmall", "ml100k", "shop"])
    words.add_argument("--seeds", type=int, default=5)
    asked = words.parse_args()
    least: dict[str, dict] = {}
    for name in asked.only:
        if name == "shop" and not asked.shop:
            continue
        every: list[Figures] = []
        job = partial(compared, name, asked.shop, asked.quick)
        for found in over_seeds(job, range(1 if asked.quick else asked.seeds)):
            every.append(found)
            rows = figures(name, every, asked.quick)
            record("quality", rows, asked.quick)
        least[name] = rows[f"{name}_sequence_federated_minus_pooled"]
    record("quality", {"sasrec_federated_minus_pooled": worst(least)}, asked.quick)


if __name__ == "__main__":
    main()
