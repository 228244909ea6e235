"""A round of federated iALS over everybody against a sweep of the `implicit` library.

    python benchmarks/ials.py [--quick]

Equal work is the same clicks once through, with the same D=64 and the same weights, each in its
natural way. For `implicit` it is a whole sweep: all users' vectors, then all items' vectors, by the
faster of its solvers, which are three steps of conjugate gradients from where it was, and Cholesky.
For fedlab it is a whole round: who takes part, all users' vectors (solved to 1e-6, from 0), the
gradients of all items and the sum of p p', what the gate checks of each client, the mean, and the
step on the items. So fedlab solves one side, as a server cannot solve for items whose
users' vectors stay where they are; and a sweep takes the items further than a round does.

All run as the peers of peers.py do: a process each, one thread on one core, in turn; `implicit` in
an environment of its own. One job has MovieLens-100K's clicks. The other has the size of
MovieLens-1M, 1,000,000 clicks of 6,040 users on 3,706 items, and its clicks are made: users'
activity is log-normal, and an item's popularity falls as 1 / (rank + 10).
"""

import json
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from common import entry, is_quick, ml100k, record
from peers import PINS, Peer, environment

from fedlab import Implicit
from fedlab.data import read
from fedlab.engine.fused import Strength

DIM, USUAL = 64, Implicit()
WAYS = {
    "fedlab": ("federated_als.py", None, []),
    "implicit, conjugate gradients": ("als.py", "implicit", ["cg"]),
    "implicit, Cholesky": ("als.py", "implicit", ["cholesky"]),
}


def movielens() -> tuple[np.ndarray, np.ndarray, int]:
    """MovieLens-100K: clicks of each user, their items, user after user, and how many there are."""
    ratings = read(ml100k())
    pairs = ratings.pairs().sort().values.numpy()
    users, items = np.divmod(pairs, ratings.item_count)
    return np.bincount(users), items, ratings.item_count


def made(users: int, items: int, clicks: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The same for made clicks, exactly as many, of which every user has one."""
    rng = np.random.default_rng(0)
    active, popular = rng.lognormal(0, 1, users), 1 / (np.arange(items) + 10)
    drawn = rng.choice(users, 4 * clicks, p=active / active.sum()) * items
    drawn += rng.choice(items, 4 * clicks, p=popular / popular.sum())
    first = np.arange(users) * items + rng.integers(items, size=users)
    others = np.setdiff1d(drawn, first)
    pairs = np.sort(np.append(first, rng.permutation(others)[: clicks - users]))
    assert len(pairs) == clicks
    return np.bincount(pairs // items, minlength=users), pairs % items, items


def compare(clicks: tuple[np.ndarray, np.ndarray, int], repeats: int) -> dict[str, float]:
    """The median seconds of each way, taken in turn after one warm-up."""
    counts, items, height = clicks
    with tempfile.TemporaryDirectory() as folder:
        mean = len(items) / len(counts)
        how = Strength.of(mean, height, USUAL.unseen, USUAL.regularisation)
        job = {"folder": folder, "items": height, "dim": DIM, **how._asdict()}
        np.save(Path(folder) / "counts.npy", counts.astype(np.int64))
        np.save(Path(folder) / "items.npy", items.astype(np.int32))
        (path := Path(folder) / "about.json").write_text(json.dumps(job))
        ways = []
        for name, how in WAYS.items():
            ways.append(Peer(name, how, path))
            ways[-1].round()
        for _ in range(repeats):
            for way in ways:
                way.round()
        for way in ways:
            last = {n: value for n, value in way.end().items() if "/" not in n}
            shapes = {name: value.shape for name, value in last.items()}
            assert shapes == {"user": (len(counts), DIM), "item": (height, DIM)}, way.name
    return {way.name: median(way.seconds[1:]) for way in ways}


def main(quick: bool) -> None:
    if reason := environment("implicit"):
        raise SystemExit(reason)
    repeats = 3 if quick else 15
    jobs = {"100k": (movielens(), "MovieLens-100K")}
    if not quick:
        jobs["1m"] = (made(6040, 3706, 1_000_000), "made clicks of MovieLens-1M's size")
    results = {}
    for key, (clicks, what) in jobs.items():
        times = compare(clicks, repeats)
        print(what, ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in times.items()), flush=True)
        ours = times.pop("fedlab")
        best = min(times, key=lambda name: times[name])
        note = (
            f"{what}, D={DIM}: a round over everybody / a sweep of {PINS['implicit'][-1]} "
            f"({best.split(', ')[1]}); median of {repeats} in turn, one thread"
        )
        results[f"ials_over_implicit_{key}"] = entry(
            ours / times[best], "ratio", 1.5, higher=False, seeds=1, note=note
        )
    record("speed", results, quick)


if __name__ == "__main__":
    main(is_quick())
