"""What each way to aggregate adds to a round of 100 clients.

Medians of rounds taken in turn, one thread.

python benchmarks/aggregation.py [--quick]

Matrix factorisation of ml-latest-small, 100 of 671 users. Quality weights and selection judge every
client's model on validation data: 671 users with one click and 9 negatives each.
"""

import time
from statistics import median

import torch
from common import entry, is_quick, record

from fedlab import (
    Config,
    Federation,
    HeldOut,
    Round,
    by_quality,
    candidates,
    coordinate_median,
    federate,
    given,
    judge,
    krum,
    leave_one_out,
    load,
    matrix_factorisation,
    mean_of_holders,
    norm_bound,
    one_per_user,
    select,
    trimmed_mean,
    weighted_mean,
)
from fedlab.algorithms import one_round

# they look at all clients' numbers
STATED = ("coordinate median", "trimmed mean", "krum", "by quality", "selection")


def main(quick: bool) -> None:
    split = leave_one_out(load())
    data = Federation(split.train, one_per_user(split.train))
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 32)
    losses = judge(model, HeldOut.clicks(candidates(split, "validation", count=9)), data.owner)
    rules = {"mean": weighted_mean, "given weights": given([1.0] * len(data)),
             "mean of holders": mean_of_holders, "norm bound": norm_bound(1.0),
             "coordinate median": coordinate_median, "trimmed mean": trimmed_mean(0.1),
             "krum": krum(10), "by quality": by_quality(losses), "selection": select(losses)}
    base = Config(rounds=10_000, cohort=100, weighting="equal")
    ways = {name: (base, rule) for name, rule in rules.items()}
    ways |= {name: (Config(**vars(base) | {"server_optimizer": name, "server_lr": 0.01}),
                    weighted_mean) for name in ("momentum", "adam", "yogi", "adagrad")}
    ways["fedprox"] = (Config(**vars(base) | {"proximal": 0.1}), weighted_mean)
    ways["scaffold"] = (Config(**vars(base) | {"correction": "scaffold"}), weighted_mean)
    last: dict[str, Round] = {name: next(federate(model, data, config)) for name,
                              (config, _) in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3 if quick else 30):
        for name, (config, rule) in ways.items():
            began = time.perf_counter()
            last[name] = one_round(model, data, config, last[name], rule)
            seconds[name].append(time.perf_counter() - began)
    found = {"mean_round_s": entry(median(seconds["mean"]), "s", None, higher=False, seeds=1,
                                   note="100 clients")}
    for name in ways:
        if name != "mean":
            ratio = median(a / b for a, b in zip(seconds[name], seconds["mean"], strict=True))
            found[f"{name.replace(' ', '_')}_over_mean"] = entry(
                ratio, "ratio", None if name in STATED else 1.1, higher=False, seeds=1,
                note=f"of a round{', quick' if quick else ''}")
    record("aggregation", found, quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(is_quick())
