"""Federated recommenders as they were published, with their leak, and with it closed.

    python benchmarks/truth.py [--quick] [--seeds 1] [--data PATH ...] [--only NAME ...]

*Published way*: training negatives avoid all that a user ever met, the held-out items among it, as
the authors' code of PFedRec, GPFedRec and FedRAP draws them; their hyper-parameters; the round with
the best HR@10 on validation counts, or on the test where their code picks by it (FedRAP). *Clean*:
the same, with negatives outside train alone, and the round by validation. Hyper-parameters are
those of the published way in both, and were not tuned anew. Where a paper has no code (FedMF,
FedNCF), the protocol is PFedRec's and the step sizes were chosen with the leak.

Leave-one-out by time, 99 sampled negatives, ties against us, on ML-100K and every set given with
--data: a file or folder that `fedlab.read` takes, or `ml-latest-small`, which comes with the
package. Its figures have the name of the file in front. A method that does not take a set, as its
tables would be too large, is left out there, and says why.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from common import entry, label, ml100k, record

from fedlab import (
    SGD,
    Federation,
    Settings,
    at_least,
    candidates,
    federate,
    leak_check,
    leave_one_out,
    load,
    one_per_user,
    popularity,
    ranking,
    read,
    scorer,
)
from fedlab.algorithms import (
    FedRAP,
    GPFedRec,
    PFedRec,
    additive_items,
    personal_perceptron,
    personal_scores,
)
from fedlab.core import Local, ParameterError
from fedlab.data import Split
from fedlab.evaluation import leaky
from fedlab.models import Model, matrix_factorisation, neural_collaborative_filtering

DIM, BUNDLED = 32, "ml-latest-small"
METRICS = {"hr@10": "hr10", "ndcg@10": "ndcg10"}
Row = dict[str, float]


@dataclass(frozen=True)
class Method:
    """A method as published.

    model: (U, I, D) -> the model. local: I -> what clients do. rounds, and every how many of them
    it is measured. server: settings of the server. picked: the part by which its code takes a round
    in the published way. how: its settings in words.
    """

    model: Callable[[int, int, int], Model]
    local: Callable[[int], Local]
    rounds: int
    how: str
    every: int = 2
    server: dict[str, Any] = field(default_factory=lambda: {"weighting": "equal"})
    picked: str = "validation"


METHODS = {
    "fedmf": Method(
        matrix_factorisation,
        lambda items: SGD(local_lr=1.0, batch_size=32),
        30,
        "Chai et al. 2020 as clicks; local rate 1, server rate 150, batches of 32, as in lesson 2",
        server={"weighting": "equal", "server_lr": 150.0},
    ),
    "fedncf": Method(
        neural_collaborative_filtering,
        lambda items: SGD(local_lr=20.0, batch_size=64),
        30,
        "Perifanis, Efraimidis 2022: NeuMF of 3 layers; local rate 20, Adam at .01 on the server",
        server={
            "weighting": "equal",
            "server_optimizer": "adam",
            "server_lr": 0.01,
            "server_momentum": 0.5,
            "server_beta2": 0.99,
            "server_epsilon": 1e-4,
        },
    ),
    "pfedrec": Method(
        personal_scores,
        lambda items: PFedRec(local_lr=0.1, item_rate=80.0 * items, batch_size=256),
        100,
        "Zhang et al. 2023: rate .1, items at 80 I times that, batches of 256, from their code",
    ),
    "gpfedrec": Method(
        personal_perceptron,
        lambda items: GPFedRec(
            local_lr=0.1,
            item_rate=80.0 * items,
            user_rate=80.0,
            batch_size=256,
            neighbours="far",
            memory_mb=4000,
        ),
        100,
        "Zhang et al. 2024: rate .1, items at 80 I and users at 80 times that, lambda 1, batches "
        "of 256, the graph of those unlike, from their code",
        every=10,
        server={},
    ),
    "fedrap": Method(
        additive_items,
        lambda items: FedRAP(local_lr=1e-4, item_rate=1e7, batch_size=2048, local_epochs=10),
        16,
        "Li et al. 2024: rates 1e-4 and 1e3, 10 local epochs, lambda .1, mu 1e-3, from their "
        "README; fresh negatives in each round, no decay within one",
        picked="test",
    ),
}


def measured_rounds(
    method: Method, split: Split, data: Federation, seed: int, rounds: int
) -> Iterator[dict[str, Row]]:
    """Yield the figures on validation and test of every round that is measured."""
    users, items = split.train.user_count, split.train.item_count
    model, local = method.model(users, items, DIM), method.local(items)
    given = {"rounds": rounds, "cohort": users, "seed": seed}
    against = {part: candidates(split, part, seed=seed) for part in ("validation", "test")}
    for done in federate(model, data, Settings(**given, **method.server), local=local):
        if done.number % method.every == 0 or done.number == rounds:
            score = local.score(model, data, done) or scorer(model, done.params, data.owner)
            yield {part: ranking(score, each) for part, each in against.items()}


def picked(found: Iterator[dict[str, Row]], part: str) -> Row:
    """The test figures of the round whose HR@10 on a part is best."""
    return max(found, key=lambda each: each[part]["hr@10"])["test"]


def measure(name: str, split: Split, seed: int, quick: bool) -> dict[str, Row]:
    """The test figures of a method, the published way and clean."""
    method, owner = METHODS[name], one_per_user(split.train)
    rounds = 2 if quick else method.rounds
    found = {}
    for way, data, part in (
        ("published_way", leaky(split, owner), method.picked),
        ("clean", Federation(split.train, owner), "validation"),
    ):
        found[way] = picked(measured_rounds(method, split, data, seed, rounds), part)
        print(name, way, f"seed {seed}", found[way], flush=True)
    return found


def figures(key: str, rows: list[Row], note: str) -> dict[str, dict]:
    """HR@10 and NDCG@10 over the seeds."""
    found = {}
    for metric, short in METRICS.items():
        values = [row[metric] for row in rows]
        spread = f"sd {stdev(values):.3f}" if len(values) > 1 else "one seed"
        unit = "share" if short == "hr10" else "NDCG"
        found[f"{key}_{short}"] = entry(
            mean(values), unit, None, higher=True, seeds=len(values), note=f"{note}; {spread}"
        )
    return found


def lines(prefix: str, split: Split, seeds: range, quick: bool) -> dict[str, dict]:
    """Popularity, and what a score has that knows nothing but the leaky negatives."""
    tests = [candidates(split, seed=seed) for seed in seeds]
    known = popularity(split.train)
    found = figures(
        f"{prefix}popularity", [ranking(known, test) for test in tests], "most clicks in train"
    )
    source, epochs = leaky(split, one_per_user(split.train)), 2 if quick else 100
    checks = [
        leak_check(source, split.train, test, epochs=epochs, seed=seed)
        for seed, test in zip(seeds, tests, strict=True)
    ]
    found[f"{prefix}negatives_alone_hr10"] = entry(
        mean(check.hit_rate for check in checks),
        "share",
        None,
        higher=False,
        seeds=len(seeds),
        note=f"a score that knows only how often an item was drawn in {epochs} leaky epochs",
    )
    return found


def sets(paths: list[str]) -> Iterator[tuple[str, Split]]:
    """What figures of a set begin with, and its split."""
    yield "", leave_one_out(read(ml100k()))
    for path in paths:
        found = load() if path == BUNDLED else read(path)
        yield f"{label(Path(path).stem)}_", leave_one_out(at_least(found, users=3)[0])


def main() -> None:
    """Measure every method on every set; figures are written after each."""
    words = argparse.ArgumentParser(description="Published federated recommenders, leak closed.")
    words.add_argument("--quick", action="store_true")
    words.add_argument("--seeds", type=int, default=1)
    words.add_argument("--data", nargs="*", default=[], metavar="PATH")
    words.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    asked = words.parse_args()
    seeds = range(1 if asked.quick else asked.seeds)
    for prefix, split in sets(asked.data):
        record("leak", lines(prefix, split, seeds, asked.quick), asked.quick)
        for name in asked.only:
            try:
                every = [measure(name, split, seed, asked.quick) for seed in seeds]
            except ParameterError as error:
                print(f"{name} is left out: {error}", flush=True)
                continue
            record("leak", compared(prefix, name, every), asked.quick)


def compared(prefix: str, name: str, every: list[dict[str, Row]]) -> dict[str, dict]:
    """The figures of a method, the published way and clean, over the seeds."""
    method, found = METHODS[name], dict[str, dict]()
    for way, part in (("published_way", method.picked), ("clean", "validation")):
        avoid = "avoid all a user met" if way == "published_way" else "avoid train alone"
        note = f"{method.how}; negatives {avoid}, best round on {part}"
        found |= figures(f"{prefix}{name}_{way}", [each[way] for each in every], note)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
