"""What each way to aggregate adds to a round of 100 clients.

    python benchmarks/aggregation.py [--quick]

Times are medians of rounds taken in turn, on one thread. Matrix factorisation of ml-latest-small,
100 of 671 users. Quality weights and selection judge every client's model on validation data: 671
users with one click and 9 negatives each.
"""

import time
from statistics import median

import torch
from common import entry, is_quick, record

from fedlab import (
    BestModels,
    ByQuality,
    CoordinateMedian,
    Federation,
    HeldOut,
    Krum,
    MeanOfHolders,
    NormBound,
    OwnWeights,
    Scaffold,
    Settings,
    TrimmedMean,
    WeightedMean,
    candidates,
    federate,
    judge,
    leave_one_out,
    load,
    matrix_factorisation,
    one_per_user,
)

# they look at all clients' numbers
STATED = ("coordinate median", "trimmed mean", "krum", "by quality", "selection")


def main(quick: bool) -> None:
    split = leave_one_out(load())
    data = Federation(split.train, one_per_user(split.train))
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 32)
    losses = judge(model, HeldOut.clicks(candidates(split, "validation", against=9)), data.owner)
    rules = {
        "mean": WeightedMean(),
        "given weights": OwnWeights([1.0] * len(data)),
        "mean of holders": MeanOfHolders(),
        "norm bound": NormBound(),
        "coordinate median": CoordinateMedian(),
        "trimmed mean": TrimmedMean(),
        "krum": Krum(byzantine=10),
        "by quality": ByQuality(judge=losses),
        "selection": BestModels(judge=losses),
    }
    base = Settings(rounds=10_000, cohort=100)
    streams = {name: federate(model, data, base, aggregate=rule) for name, rule in rules.items()}
    streams |= {
        name: federate(model, data, base.replace(server_optimizer=name, server_lr=0.01))
        for name in ("momentum", "adam", "yogi", "adagrad")
    }
    streams["fedprox"] = federate(model, data, base.replace(proximal=0.1))
    streams["scaffold"] = federate(model, data, base, local=Scaffold())
    for rounds in streams.values():
        next(rounds)
    seconds: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(3 if quick else 30):
        for name, rounds in streams.items():
            began = time.perf_counter()
            next(rounds)
            seconds[name].append(time.perf_counter() - began)
    found = {
        "mean_round_s": entry(
            median(seconds["mean"]), "s", None, higher=False, seeds=1, note="100 clients"
        )
    }
    for name in streams:
        if name != "mean":
            ratio = median(a / b for a, b in zip(seconds[name], seconds["mean"], strict=True))
            found[f"{name.replace(' ', '_')}_over_mean"] = entry(
                ratio,
                "ratio",
                None if name in STATED else 1.1,
                higher=False,
                seeds=1,
                note=f"of a round{', quick' if quick else ''}",
            )
    record("aggregation", found, quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(is_quick())
