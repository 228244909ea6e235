"""What one watches next: a Transformer over watch histories, trained among five platforms.

    python benchmarks/sequences.py [--quick]

The data is ml-latest-small. Leave-one-out, negatives and reading of the test are as in quality.py,
whose results file takes the figures: histories end with the last film of train. Settings were
chosen on the validation part with seed 0. A platform has a fifth of the users, drawn at random.
Each seed runs in a process of its own.
"""

from statistics import mean, stdev

import torch
from common import by_seed, entry, is_quick, record

from fedlab import Federation, Settings, candidates, equal, federate, leave_one_out, load, ranking
from fedlab.models import from_module
from fedlab.models.text import SASRec, Sequences, item_texts, last_films, sequence_scorer, vectors

PLATFORMS, LENGTH, DIM = 5, 20, 32
SETTINGS = Settings(
    rounds=8, cohort=PLATFORMS, batch_size=256, local_lr=0.003, optimizer="adamw", memory_mb=4000
)
WAYS = {"both": "text and rows", "ids": "rows alone", "text": "text alone"}


def watched(seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """The test figures of each way."""
    split = leave_one_out(load())
    train, films = split.train, last_films(split.train, LENGTH)
    known = vectors(item_texts(train.catalogue), progress=False)
    data = Sequences(Federation(train, equal(train, PLATFORMS, seed)), LENGTH)
    settings = SETTINGS.replace(seed=seed, rounds=1 if quick else SETTINGS.rounds)
    found = {}
    for name in WAYS:
        torch.manual_seed(seed)
        net = SASRec(
            train.item_count,
            None if name == "ids" else known,
            ids=name != "text",
            dim=DIM,
            length=LENGTH,
        )
        model = from_module(net, {"history": films[:3], "item": train.items[:3]})
        *_, last = federate(model, data, settings)
        found[name] = ranking(
            sequence_scorer(model, last.params, films), candidates(split, seed=seed)
        )
        print(f"seed {seed} {name}: {found[name]}", flush=True)
    return found


def report(every: list[dict[str, dict[str, float]]], quick: bool) -> None:
    """Write the figures of the seeds that have ended so far."""
    measured = {}
    for name, label in WAYS.items():
        for metric in ("hr@10", "ndcg@10"):
            values = [found[name][metric] for found in every]
            spread = f"sd {stdev(values):.3f}" if len(values) > 1 else "one seed"
            wins = sum(found["both"][metric] > found[name][metric] for found in every)
            more = "" if name == "both" else f", text and rows better in {wins} of {len(every)}"
            measured[f"mlsmall_sequence_{name}_{metric.replace('@', '')}"] = entry(
                mean(values),
                "share" if "hr" in metric else "NDCG",
                None,
                higher=True,
                seeds=len(every),
                note=f"{label}, 99 negatives, {spread}{more}{', quick' if quick else ''}",
            )
    record("quality", measured, quick)


if __name__ == "__main__":
    by_seed(watched, report, is_quick())
