"""Privacy: epsilon against other accountants' vectors, what a budget leaves of quality, and times.

    python benchmarks/privacy.py [--quick]

Quality: ML-100K, every user a client, delta 1e-4, leave-one-out with 99 clean negatives, 5 seeds;
the settings were chosen on validation, without privacy, as the texts' kernels were. Each seed draws
other noise and other negatives; the noise comes from a teaching seed, so that a figure can be
measured again, and is as large as the system's would be. DP-FedAvg is matrix factorisation as in
lesson 2 with clipped deltas, noise for epsilon 8 and rates chosen on validation. DPALS and iALS,
whose sums are clipped and noised, have one setting for every budget, the best in the mean over
budgets of some forty that were tried on the validation part of MovieLens latest-small, films of 15
ratings or more, which is about as dense: other people, whose data is public. A curious server
reads uploads, plain ones and such under the masks of a secure sum. Times of the mechanisms are of
rounds of 100 clients in turn, on one thread.
"""

import csv
import os
import time
from collections import defaultdict
from dataclasses import replace
from statistics import mean, median

import torch
from common import ROOT, by_seed, entry, is_quick, ml100k, record
from torch import Tensor

from fedlab import (
    SGD,
    Clip,
    Federation,
    GaussianNoise,
    Implicit,
    LocalNoise,
    Settings,
    candidates,
    federate,
    leave_one_out,
    load,
    one_per_user,
    popularity,
    ranking,
    read,
)
from fedlab.algorithms import DPALS, sample
from fedlab.attacks import masked_scores, rated_items, reading_metrics, sign_scores
from fedlab.core import Local, Score, Tree
from fedlab.data import Split
from fedlab.engine import updates
from fedlab.evaluation import scorer
from fedlab.models import Model, matrix_factorisation
from fedlab.models.text import genre_kernel, item_texts, text_kernel, vectors, year_kernel
from fedlab.privacy import (
    FixedPoint,
    Identity,
    ItemCounts,
    Member,
    PairCounts,
    Release,
    Server,
    Terms,
    dense,
    epsilon,
    item_counts,
    least_threshold,
    noise_for,
    own_taste,
    pair_counts,
    public_basis,
    smoothed,
    standard,
    table_score,
    together,
)

DELTA, GOALS = 1e-4, {8: 0.55, 2: 0.50, 1: 0.47}
COUNTED = {20: 1.5, 8: 1.5, 2: 2.0, 1: 4.0}  # noise of the counts; what is left goes to the pairs
AVERAGED = {"cohort": 200, "local_lr": 5.0, "clip": 5.0, "server_lr": 1.0, "rounds": 20}
BUDGETS = (20, 8, 2, 1)
# method, width, rounds, clip; everybody knows of ML-100K that each user rated 20 films or more
RIVALS = {
    "dpals": (DPALS(unseen=30.0, kept_items=800, mean_clicks=20.0, recency=1.0), 6, 3, 1.0),
    "private_ials": (Implicit(regularisation=0.5, mean_clicks=20.0, recency=1.0), 6, 3, 0.3),
}


def kinds(split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """Likeness (I, I) by texts, by years, and by all that is public."""
    known = split.train.catalogue
    text = text_kernel(vectors(item_texts(known), progress=False), 0.35)
    years = year_kernel(known)
    return text, years, text + 0.3 * years + 0.2 * genre_kernel(known)


def released(data: Federation, model: Model, local: Local, noise: float, seed: int) -> Tree:
    """What the server has after it summed all clients' contributions once."""
    settings = Settings(
        rounds=1,
        cohort=len(data),
        noise=noise,
        server_lr=float(len(data)),
        delta=DELTA,
        sampling="poisson",
        teaching_seed=seed,
    )
    (done,) = federate(model, data, settings, local=local, uplink=[Clip(), GaussianNoise()])
    return done.params


def within(
    budget: float, data: Federation, likenesses: tuple[Tensor, Tensor, Tensor], seed: int
) -> tuple[Tensor, ...]:
    """Scores (U, I) by noisy counts, and by noisy pairs besides.

    Together they spend `budget` as their epsilon; 0 means no noise.
    """
    text, years, public = likenesses
    whole = noise_for(budget, DELTA, [Release(1.0, sampling="all")]) if budget else 1e-3
    noise = COUNTED.get(budget, whole)
    mine = standard(own_taste(data.train, [(1.0, text), (0.3, years)]))

    def by_counts(noise: float) -> tuple[Tensor, Tensor]:
        count = released(data, item_counts(len(text)), ItemCounts(), noise, seed)["count"]
        popular = smoothed(count, text, noise)
        return popular, popular.log() + mine

    popular, scores = by_counts(noise)
    rest = (whole**-2 - noise**-2) ** -0.5 if budget else whole
    basis = public_basis(public, popular, 32)
    square = released(data, pair_counts(basis), PairCounts(), rest, seed)["pairs"][0]
    more = own_taste(data.train, [(0.3, together(square, basis, popular, rest))])
    return by_counts(whole)[1], scores + more


def averaged(data: Federation, seed: int, quick: bool) -> Score:
    """DP-FedAvg of lesson 2's model at epsilon 8."""
    model = matrix_factorisation(data.train.user_count, data.train.item_count, 16)
    plan = [Release(1.0, AVERAGED["cohort"] / len(data), AVERAGED["rounds"])]
    settings = Settings(
        **AVERAGED,
        noise=noise_for(8, DELTA, plan, method="rdp"),
        delta=DELTA,
        seed=seed,
        sampling="poisson",
        teaching_seed=seed,
    )
    *_, last = federate(model, data, settings, uplink=[Clip(), GaussianNoise()])
    assert last.metrics["epsilon"] <= 8
    return scorer(model, last.params)


def rival(name: str, budget: float, data: Federation, seed: int) -> Score:
    """A factorisation by least squares from noisy sums over everybody; budget 0: without noise."""
    way, dim, rounds, clip = RIVALS[name]
    model = matrix_factorisation(data.train.user_count, data.train.item_count, dim)
    asked = {"cohort": len(data), "seed": seed, "rounds": rounds}
    uplink = [Clip(), GaussianNoise()] if budget else []
    if budget:
        noise = noise_for(budget, DELTA, [Release(1.0, times=rounds, sampling="all")])
        asked |= {"noise": noise, "clip": clip, "delta": DELTA}
        asked |= {"sampling": "poisson", "teaching_seed": seed}
    *_, last = federate(model, data, asked, local=way, uplink=uplink)
    assert last.metrics.get("epsilon", 0.0) <= budget
    return way.score(model, data, last)


def rivals(seed: int, quick: bool) -> dict[str, float]:
    """HR@10 of DPALS and of private iALS at each budget, for one seed."""
    split = leave_one_out(read(ml100k()))
    data, test = Federation(split.train, one_per_user(split.train)), candidates(split, seed=seed)
    found = {
        f"{name}_{f'eps{budget}' if budget else 'plain'}_hr10": ranking(
            rival(name, budget, data, seed), test
        )["hr@10"]
        for name in RIVALS
        for budget in (*BUDGETS, 0)
    }
    print(seed, {name: round(value, 3) for name, value in found.items()}, flush=True)
    return found


def report_rivals(every: list[dict[str, float]], quick: bool) -> None:
    """Write the figures of the seeds so far."""
    note = f", settings chosen on ml-latest-small{', quick' if quick else ''}"
    record("privacy", {name: spread(name, every, note) for name in every[0]}, quick)


def quality(seed: int, quick: bool) -> dict[str, float]:
    """The HR@10 of each way, for one seed."""
    split = leave_one_out(read(ml100k()))
    data, test = Federation(split.train, one_per_user(split.train)), candidates(split, seed=seed)
    alike = kinds(split)
    scores = {
        "own": table_score(own_taste(split.train, [(1.0, alike[0]), (0.3, alike[1])])),
        "popularity": popularity(split.train),
        "fedavg_eps8": averaged(data, seed, quick),
    }
    for budget in (*BUDGETS, 0):
        tables = within(budget, data, alike, seed)
        scores |= {
            f"{name}_eps{budget}": table_score(t)
            for name, t in zip(("counts", "pairs"), tables, strict=True)
        }
    found = {name: ranking(score, test)["hr@10"] for name, score in scores.items()}
    print(seed, {name: round(value, 3) for name, value in found.items()}, flush=True)
    return found


def spread(name: str, every: list[dict[str, float]], note: str) -> dict:
    """The mean over seeds of a share, and from what to what it goes."""
    values = [found[name] for found in every]
    low, high = min(values), max(values)
    told = f"99 negatives, {low:.3f} to {high:.3f}{note}"
    return entry(mean(values), "share", None, higher=True, seeds=len(every), note=told)


def report(every: list[dict[str, float]], quick: bool) -> None:
    """Write the figures of the seeds so far, at each budget of the way validation preferred."""
    table, note = {}, ", quick" if quick else ""
    for name in every[0]:
        table[f"hr10_{name}"] = spread(name, every, note)
    for budget, goal in GOALS.items():
        row = table[f"hr10_{'counts' if budget == 1 else 'pairs'}_eps{budget}"]
        table[f"ml100k_dp_eps{budget}_hr10"] = row | {"goal": goal}
    record("privacy", table, quick)


def worst(quick: bool) -> float:
    """The largest share by which epsilon differs from Opacus' and dp-accounting's RDP."""
    vectors = ROOT / "tests" / "privacy" / "dp_test_vectors.csv"
    rows, errors = csv.DictReader(vectors.read_text().splitlines()), []
    for row in rows:
        if row["id"].startswith("P"):
            kind = {"p": "poisson", "f": "fixed", "n": "all"}[row["sampling"][0]]
            one = Release(
                float(row["sigma"]), 1.0 if kind == "all" else float(row["q"]), int(row["T"]), kind
            )
            found = epsilon([one], float(row["delta"]), relation=row["relation"], method="rdp")
            known = [float(row[name]) for name in ("opacus_rdp", "dpa_rdp") if row[name] != "n/a"]
            errors += [abs(found / value - 1) for value in known]
    return max(errors)


def times(repeats: int) -> dict[str, float]:
    """Median seconds of a round of 100 clients without and with mechanisms, in turn."""
    split = leave_one_out(load())
    data = Federation(split.train, one_per_user(split.train))
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 16)
    common = {"rounds": 10_000, "cohort": 100, "local_lr": 0.5}
    plain = Settings(**common)
    private = plain.replace(clip=0.5, sampling="poisson")
    central = [Clip(), GaussianNoise()]
    streams = {
        "plain": federate(model, data, plain),
        "central": federate(model, data, private, uplink=central),
        "adaptive": federate(model, data, private.replace(quantile=0.5), uplink=central),
        "local": federate(model, data, private, uplink=[Clip(), LocalNoise()]),
    }
    taken = defaultdict(list)
    for number in range(repeats + 2):
        for name, rounds in streams.items():
            began, done = time.perf_counter(), next(rounds)
            if number > 1:
                taken[name].append((time.perf_counter() - began) / max(1, len(done.cohort)) * 100)
    return {name: median(each) for name, each in taken.items()}


def row_leak(seed: int) -> dict[str, float]:
    """What a server reads from a hundred uploads of lesson 2's model, plain and under masks.

    The masks are those of a secure sum.
    """
    split = leave_one_out(load())
    data = Federation(split.train, one_per_user(split.train))
    model = matrix_factorisation(split.train.user_count, split.train.item_count, 16)
    params, cohort = model.init(seed), sample(data, 100, 1, seed=seed)
    parts = list(updates(model, data, params, cohort, SGD(local_lr=1.0), seed=seed))
    shared, fixed = {"bias": params["bias"]}, FixedPoint(100.0, 100)
    seen, rows = [], []
    for part in parts:
        one = replace(part, deltas={"bias": part.deltas["bias"]})
        seen.append(sign_scores(one, len(shared["bias"])))
        rows += [fixed.encode(row.double().numpy()) for row in dense(one, shared)["bias"]]
    identities = {number: Identity() for number in range(1, len(rows) + 1)}
    directory = {number: identity.public for number, identity in identities.items()}
    terms = Terms(os.urandom(16), least_threshold(len(rows)), len(rows[0]), directory)
    members = {number: Member(number, own, terms) for number, own in identities.items()}
    adverts = {number: member.advertise_keys() for number, member in members.items()}
    letters = Server(terms).letters({k: m.share_keys(adverts) for k, m in members.items()})
    words = [
        masked_scores(members[number].masked_input(letters[number], row))
        for number, row in enumerate(rows, 1)
    ]
    truth = rated_items(data, cohort)
    return {
        f"{name}_{k}": v
        for name, scores in (("plain", torch.cat(seen)), ("masked", torch.stack(words)))
        for k, v in reading_metrics(scores, truth).items()
    }


def mechanisms(quick: bool) -> None:
    """Record what does not depend on seeds."""
    took, note = times(3 if quick else 15), ", quick" if quick else ""
    rows = {
        "epsilon_max_rel_error": entry(
            worst(quick), "share", 0.005, higher=False, seeds=1, note=f"of RDP, 36 settings{note}"
        )
    }
    for name in ("central", "adaptive", "local"):
        rows[f"{name}_over_plain_round"] = entry(
            took[name] / took["plain"],
            "ratio",
            1.25,
            higher=False,
            seeds=1,
            note=f"lesson 2's model, 9,066 films, {took['plain'] * 1e3:.0f} ms for 100 "
            f"clients{note}",
        )
    leaks = [row_leak(seed) for seed in range(1 if quick else 5)]
    for name, goal in {"plain_precision": 0.99, "plain_recall": 0.99, "masked_auc": 0.52}.items():
        values = [found[name] for found in leaks]
        rows[f"rowleak_{name}"] = entry(
            mean(values),
            "share",
            goal,
            higher=name != "masked_auc",
            seeds=len(values),
            note=f"100 uploads of lesson 2's model, {min(values):.3f} to {max(values):.3f}{note}",
        )
    record("privacy", rows, quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    mechanisms(is_quick())
    by_seed(quality, report, is_quick())
    by_seed(rivals, report_rivals, is_quick())
