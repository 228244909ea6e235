"""What `fit_best` gives with no settings, beside every pooled baseline; and how long it takes.

    python benchmarks/best.py [--quick] [--shop PATH] [--only ml100k shop made] [--folder FOLDER]

On ML-100K, for the full ranking; on a shop's data where they are given, a file or folder that
`fedlab.read` takes, for either ranking by its own metric; and on `made` clicks of the size of
MovieLens-1M, for the time alone. The search has one seed, the figures are means over three: each is
read from the report, whose test is read once. The clicks are made as `made` says, with times of no
meaning left out. --folder keeps the trials on ML-100K and the shop, to go on from.
"""

import argparse
import os
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import entry, ml100k, record, sessions

from fedlab import Interactions, from_arrays, leave_one_out, read
from fedlab.workbench import Best, fit_best

MADE = (6_040, 3_706, 1_000_000)  # users, items, clicks: the size of MovieLens-1M
SMALL = (943, 1_682, 100_000)  # of MovieLens-100K
TASTES = 20
QUICK = 4  # trials
SEEDS = 3  # that quality figures are means of
ALIKE = "the same, all clicks alike"
DATA = ("ml100k", "shop")
METRICS = {"sampled": "ndcg@10", "full": "full ndcg@10"}


def made(users: int, items: int, clicks: int) -> Interactions:
    """About this many clicks: few users have many, few items are popular, each user has a taste.

    Half of a user's clicks fall on items of the own taste, those with the same remainder by
    `TASTES`. Users and items are drawn as squares of even numbers from 0 to 1; pairs that come
    again are drawn anew until there are enough.
    """
    generator = torch.Generator().manual_seed(0)
    pairs = torch.arange(users) * items
    while len(pairs) < clicks:
        user, item = (
            (torch.rand(clicks // 4, generator=generator, dtype=torch.float64) ** 2 * count).long()
            for count in (users, items)
        )
        own = item - item % TASTES + user % TASTES
        mine = torch.rand(len(item), generator=generator) < 0.5
        pairs = torch.cat([pairs, user * items + own.where(mine & (own < items), item)]).unique()
    kept = pairs[torch.randperm(len(pairs), generator=generator)[:clicks]]
    return from_arrays((kept // items).numpy(), (kept % items).numpy())


def fitted(data: Any, objective: str, seeds: int, folder: str | None, quick: bool) -> Best:
    """The best model with no settings."""
    few = {"budget": QUICK} if quick else {}
    with TemporaryDirectory() as other:
        how = {"objective": objective, "seeds": seeds, "folder": folder or other, **few}
        best = fit_best(data, **how)
    print(best.report, flush=True)
    return best


def figures(prefix: str, best: Best, seeds: int, quick: bool) -> dict[str, dict]:
    """NDCG@10 by the objective: the model, the same without recency, the best pooled baseline."""
    metric = METRICS[best.objective]
    rows = {row.method: row for row in best.table}
    pooled = [row for name, row in rows.items() if name.startswith(("pooled", "item kNN"))]
    top = max(pooled, key=lambda row: row.metrics[metric])
    middle = "_full" * (best.objective == "full")
    found = {}
    for name, row, goal in (
        ("fit_best", rows[best.method], round(top.metrics[metric] - 0.01, 4)),
        ("best_pooled", top, None),
        ("popularity", rows["popularity"], None),
        *([("fit_best_alike", rows[ALIKE], None)] if ALIKE in rows else []),
    ):
        note = f"{row.method}, {row.settings}, " if row.settings else ""
        low, high = (row.metrics[f"{metric} {end}"] for end in ("low", "high"))
        found[f"{prefix}_{name}{middle}_ndcg10"] = entry(
            row.metrics[metric],
            "NDCG",
            goal,
            higher=True,
            seeds=seeds,
            note=f"{note}95% of users {low:.3f} to {high:.3f}"
            + (f", sd over seeds {row.metrics[f'{metric} sd']:.4f}" if seeds > 1 else "")
            + ", quick" * quick,
        )
    return found


def core_minutes() -> float:
    """What this process and those that it waited for have had of cores."""
    every = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in every) / 60


def minutes_of(name: str, size: tuple[int, int, int], goal: float, quick: bool) -> dict[str, dict]:
    """How long it takes on made clicks of a size."""
    data, before, began = made(*size), core_minutes(), time.monotonic()
    fitted(data, "sampled", 1, None, quick)
    minutes = (time.monotonic() - began) / 60
    spent = f"{core_minutes() - before:.1f} core minutes"
    load = f"{os.cpu_count()} cores with load {os.getloadavg()[2]:.0f}"
    note = f"{len(data):,} made clicks, {spent}, {load}"
    return {
        f"tune_{name}_minutes": entry(
            minutes, "min", goal, higher=False, seeds=1, note=note + ", quick" * quick
        )
    }


def main() -> None:
    """Measure; figures are written after each data set."""
    words = argparse.ArgumentParser(description="fit_best beside every pooled baseline.")
    words.add_argument("--quick", action="store_true")
    words.add_argument("--shop", metavar="PATH", help="clicks of a shop's customers")
    words.add_argument("--folder", help="where trials are kept, in a folder for each data set")
    words.add_argument("--only", nargs="*", default=["ml100k", "shop", "made"])
    asked = words.parse_args()
    seeds = 1 if asked.quick else SEEDS
    kept = {name: str(Path(asked.folder, name)) if asked.folder else None for name in DATA}
    if "ml100k" in asked.only:
        best = fitted(str(ml100k()), "full", seeds, kept["ml100k"], asked.quick)
        found = figures("ml100k", best, seeds, asked.quick)
        found |= sessions("ml100k", leave_one_out(read(ml100k())))
        ease = next(row for row in best.table if row.method == "pooled EASE")
        goal = {"goal": round(ease.metrics["full ndcg@10"], 4)}  # at least EASE's
        found["ml100k_full_ndcg10"] = found.pop("ml100k_fit_best_full_ndcg10") | goal
        if alike := found.pop("ml100k_fit_best_alike_full_ndcg10", None):
            found["ml100k_alike_full_ndcg10"] = alike
        record("quality", found, asked.quick)
    if "shop" in asked.only and asked.shop:
        for objective in METRICS:
            best = fitted(asked.shop, objective, seeds, kept["shop"], asked.quick)
            record("quality", figures("shop", best, seeds, asked.quick), asked.quick)
    if "made" in asked.only:
        for name, size, goal in (("100k", SMALL, 2.0), ("1m", MADE, 15.0)):
            record("quality", minutes_of(name, size, goal, asked.quick), asked.quick)


if __name__ == "__main__":
    main()
