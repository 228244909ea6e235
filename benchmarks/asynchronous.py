"""Simulated time to a target: FedBuff and FedAsync against synchronous rounds, on the same clock.

    python benchmarks/asynchronous.py [--quick]

671 users of ml-latest-small, 64 of them training at any time, matrix factorisation. A client takes
pace * speed * examples seconds, where the log of its speed is normal with mean 0 and a standard
deviation of 1, and a delay that is exponential with a mean of 2 s. The target is reached at the
first measured step whose validation NDCG@10 is at least as high; a step is measured after every 64
clients or so. Each method has the server learning rate that was fastest for it on seed 0.
"""

from collections.abc import Iterator
from statistics import mean, stdev

import torch
from common import entry, is_quick, record

from fedlab import (
    Buffered,
    Federation,
    Round,
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

TARGET, DIM, AT_ONCE = 0.38, 16, 64
LOCAL = {"cohort": AT_ONCE, "local_lr": 1.0, "weighting": "equal"}


def main(quick: bool) -> None:
    split = leave_one_out(load())
    data = Federation(split.train, one_per_user(split.train))
    model = matrix_factorisation(split.train.user_count, split.train.item_count, DIM)

    def ways(seed: int) -> dict[str, tuple[Iterator[Round], int]]:
        """Name -> (its stream, steps between measurements)."""

        def sync(**given: float) -> Iterator[Round]:
            return federate(
                model, data, Settings(rounds=200, server_lr=400.0, seed=seed, **LOCAL, **given)
            )

        def later(**given) -> Iterator[Round]:
            return federate(
                model, data, Settings(rounds=8000, seed=seed, **LOCAL | given), schedule=Buffered()
            )

        return {
            "sync": (sync(), 1),
            "deadline": (sync(deadline=20.0), 1),
            "fedbuff": (later(buffer=10, server_lr=80.0), 6),
            "fedasync": (later(method="fedasync", server_lr=1.0, local_lr=16.0), AT_ONCE),
        }

    def reach(rounds: Iterator[Round], every: int, seed: int) -> float:
        validation = candidates(split, "validation", seed=seed)
        for done in rounds:
            if (
                not done.number % every
                and ranking(scorer(model, done.params), validation)["ndcg@10"] >= TARGET
            ):
                return done.clock
        raise SystemExit(f"seed {seed}: the target was not reached")

    seeds, times = range(1 if quick else 5), dict[str, list[float]]()
    for seed in seeds:
        for name, (rounds, every) in ways(seed).items():
            times.setdefault(name, []).append(reach(rounds, every, seed))
        print(seed, {name: round(values[-1]) for name, values in times.items()}, flush=True)
    found, note = {}, f"to validation NDCG@10 {TARGET}{', quick' if quick else ''}"
    for name, values in times.items():
        spread = f"sd {stdev(values):.0f}" if len(values) > 1 else "one seed"
        found[f"{name}_seconds"] = entry(
            mean(values),
            "s, simulated",
            None,
            higher=False,
            seeds=len(values),
            note=f"{note}, {spread}",
        )
    for name, against, goal in (
        ("fedbuff", "sync", 1 / 3),
        ("fedbuff", "deadline", None),
        ("fedasync", "sync", None),
        ("deadline", "sync", None),
    ):
        ratios = [a / b for a, b in zip(times[name], times[against], strict=True)]
        found[f"{name}_vs_{against}_time"] = entry(
            mean(ratios),
            "ratio",
            goal,
            higher=False,
            seeds=len(ratios),
            note=f"{note}, from {min(ratios):.3f} to {max(ratios):.3f} over seeds",
        )
    record("asynchronous", found, quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(is_quick())
