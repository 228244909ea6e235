"""Codes of deltas: bytes up, quality, and the share of a round that coding takes.

    python benchmarks/codes.py [--quick]

Lesson 2's federation on ml-latest-small, 64 of 671 clients a round, 60 rounds; NDCG@10 on test, 99
clean negatives, 5 seeds. Bytes are those of plain updates, floats and row numbers in 4 bytes each,
over those of the code as packed. Times are of rounds of 100 clients in turn, on one thread, with
`feedback` and without it. Goes into results/privacy.json.
"""

import time
from collections import defaultdict
from statistics import mean, median

import torch
from common import by_seed, entry, is_quick, record

from fedlab import (
    ErrorFeedback,
    Federation,
    Settings,
    candidates,
    federate,
    leave_one_out,
    load,
    matrix_factorisation,
    one_per_user,
    ranking,
    scorer,
)
from fedlab.communication import LowRank, Quantised, RandomK, TopK

CODES = {
    "int8": Quantised(8),
    "int4": Quantised(4),
    "int2": Quantised(2),
    "sign": Quantised(1),
    "top10": TopK(0.1),
    "random10": RandomK(0.1),
    "rank1": LowRank(1),
    "rank1_int4": LowRank(1, then=Quantised(4)),
}
GOALS = {"int4_ndcg_loss": 0.01, "int4_bytes_ratio": 7.5, "int4_over_plain_round": 1.25}


def quality(seed: int, quick: bool) -> dict[str, float]:
    """NDCG@10 and bytes up of each code, for one seed."""
    split = leave_one_out(load())
    data, test = Federation(split.train, one_per_user(split.train)), candidates(split, seed=seed)
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 32)
    config = Settings(
        rounds=4 if quick else 60,
        cohort=64,
        local_lr=1.0,
        server_lr=50.0,
        weighting="equal",
        seed=seed,
    )
    ways = {"plain": []} | {name: [ErrorFeedback(own=code)] for name, code in CODES.items()}
    ways |= {
        f"{name}_forgotten": [ErrorFeedback(own=code, feedback="off")]
        for name, code in CODES.items()
    }
    found = {}
    for name, way in ways.items():
        rounds = list(federate(model, data, config, uplink=way))
        found[f"{name}_ndcg10"] = ranking(scorer(model, rounds[-1].params), test)["ndcg@10"]
        found[f"{name}_bytes"] = float(sum(done.bytes_up for done in rounds))
    print(seed, {name: round(value, 4) for name, value in found.items()}, flush=True)
    return found


def report(every: list[dict[str, float]], quick: bool) -> None:
    """Write the figures of the seeds that have ended so far."""
    table, note = {}, ", quick" if quick else ""
    for name in CODES:
        values = {
            "ndcg_loss": [1 - found[f"{name}_ndcg10"] / found["plain_ndcg10"] for found in every],
            "ndcg_loss_forgotten": [
                1 - found[f"{name}_forgotten_ndcg10"] / found["plain_ndcg10"] for found in every
            ],
            "bytes_ratio": [found["plain_bytes"] / found[f"{name}_bytes"] for found in every],
        }
        for measure, each in values.items():
            table[f"{name}_{measure}"] = entry(
                mean(each),
                "times" if measure == "bytes_ratio" else "share",
                GOALS.get(f"{name}_{measure}"),
                higher=measure == "bytes_ratio",
                seeds=len(each),
                note=f"from {min(each):.3f} to {max(each):.3f}{note}",
            )
    record("privacy", table, quick)


def times(quick: bool) -> None:
    """Record the median seconds of a round of 100 clients with each code over a plain one."""
    split = leave_one_out(load())
    data = Federation(split.train, one_per_user(split.train))
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 32)
    config = Settings(rounds=10_000, cohort=100, local_lr=1.0, server_lr=50.0, weighting="equal")
    streams = {"plain": federate(model, data, config)}
    for name in ("int4", "rank1_int4"):
        for keep in ("on", "off"):
            way = ErrorFeedback(own=CODES[name], feedback=keep)
            streams[f"{name}{'' if keep == 'on' else '_forgotten'}"] = federate(
                model, data, config, uplink=[way]
            )
    taken = defaultdict(list)
    for number in range(6 if quick else 30):
        for name, rounds in streams.items():
            began = time.perf_counter()
            next(rounds)
            if number > 2:
                taken[name].append(time.perf_counter() - began)
    plain = median(taken.pop("plain"))
    record(
        "privacy",
        {
            f"{name}_over_plain_round": entry(
                median(each) / plain,
                "ratio",
                GOALS.get(f"{name}_over_plain_round"),
                higher=False,
                seeds=1,
                note=f"lesson 2's model, {plain * 1e3:.0f} ms for 100 clients"
                + (", quick" if quick else ""),
            )
            for name, each in taken.items()
        },
        quick,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    times(is_quick())
    by_seed(quality, report, is_quick())
