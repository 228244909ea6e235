"""Recommendation quality on ml-latest-small and ML-100K: leave-one-out by time, 5 paired seeds.

    python benchmarks/quality.py [--quick]

A seed changes the first weights, the cohorts, the training negatives and the 99 evaluation
negatives, which are clean. Everything fits on train; what to keep, and the settings below, were
chosen on validation; a run reads the test once. While the strengths of iALS got their present form
the test of both sets was read for several of them, and its 30 rounds were kept after that. Full
ranking: among all items not seen earlier. ML-100K comes from a folder or from RecBole's wheel, see
`common.ml100k`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import mean, stdev

import torch
from common import entry, is_quick, ml100k, parameters, record

from fedlab import (
    SGD,
    Federation,
    Settings,
    alone_ranks,
    best_round,
    candidates,
    federate,
    full_ranks,
    leave_one_out,
    load,
    matrix_factorisation,
    measured,
    one_per_user,
    popularity,
    ranking,
    read,
    scorer,
)
from fedlab.algorithms import Implicit
from fedlab.core import Score, Tree
from fedlab.data import Split
from fedlab.evaluation import Candidates, at_k, dot, ease, ials

WAY = Implicit(unseen=5.0, regularisation=0.9, recency=1.0)  # of iALS, for all data
ALL = Settings(rounds=30)  # every client in every round
TENTH = Settings(rounds=80)  # a tenth of them
GOALS = {
    "mlsmall_fedavg_hr10": 0.66,
    "mlsmall_fedavg_ndcg10": 0.39,
    "mlsmall_federated_hr10": 0.715,
    "mlsmall_federated_ndcg10": 0.465,
    "ml100k_federated_hr10": 0.665,
    "ml100k_federated_ndcg10": 0.38,
}
Row = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """One dataset: the name of its figures, its split, and the size of iALS, federated or not."""

    name: str
    split: Split
    dim: int

    @property
    def clients(self) -> Federation:
        """The split's federation, in which every user is a client."""
        return Federation(self.split.train, one_per_user(self.split.train))

    def model(self, dim: int):
        """Matrix factorisation of the size of this dataset."""
        return matrix_factorisation(self.split.train.user_count, self.split.train.item_count, dim)

    def score(self, params: Tree, **changed: float) -> Score:
        """What clients recommend by films' rows, each with its own vector solved for them.

        changed: other values of `WAY`'s knobs, such as recency=0.
        """
        return scorer(self.model(self.dim), replace(WAY, **changed).personal(self.clients, params))


def report(split: Split, score: Score, against: Candidates) -> Row:
    """Sampled and full-ranking figures of one model on the test."""
    return ranking(score, against) | at_k(full_ranks(split, score), prefix="full ")


def lesson(
    setting: Setting, seed: int, validation: Candidates, test: Candidates
) -> Iterator[tuple[str, Row]]:
    """Lesson 2's model with lesson 2's settings: federated, on pooled data, and each user alone."""
    given, clients, split = parameters("02_fedavg"), setting.clients, setting.split
    together = Settings(
        rounds=given["ROUNDS"],
        cohort=len(clients),
        local_lr=given["LOCAL_LR"],
        seed=seed,
        server_lr=given["SERVER_LR"],
        batch_size=given["BATCH_SIZE"],
        weighting="equal",
    )
    pooled = Settings(
        rounds=given["CENTRAL_EPOCHS"],
        cohort=1,
        local_lr=given["CENTRAL_LR"],
        seed=seed,
        batch_size=given["CENTRAL_BATCH"],
    )
    central = Federation(split.train, torch.zeros(split.train.user_count, dtype=torch.int64))
    model = setting.model(given["DIM"])
    for name, data, settings in (("fedavg", clients, together), ("pooled", central, pooled)):
        run = measured(
            federate(model, data, settings),
            lambda r: ranking(scorer(model, r.params), validation),
            every=2,
        )
        yield name, report(split, scorer(model, best_round(run, "ndcg@10", "max").params), test)
    alone = SGD(
        local_lr=given["LOCAL_LR"],
        batch_size=given["BATCH_SIZE"],
        local_epochs=given["ALONE_EPOCHS"],
    )
    yield "local", at_k(alone_ranks(model, clients, alone, test, seed=seed))


def federated(
    setting: Setting, settings: Settings, share: float, seed: int, seen: Callable[[Score], None]
) -> Tree:
    """Run federated iALS for all rounds of `settings`.

    seen: a function that looks at each round, with the users' vectors solved anew.
    """
    clients = setting.clients
    settings = settings.replace(cohort=max(1, round(share * len(clients))), seed=seed)
    for done in federate(setting.model(setting.dim), clients, settings, local=WAY):
        seen(setting.score(done.params))
    return done.params


def measure(
    setting: Setting, seeds: range, rows: dict[str, list[Row]], curves: dict[str, list[list[float]]]
) -> None:
    """Measure every method on one dataset, seed by seed.

    curves: validation NDCG@10 by round.
    """
    split = setting.split
    for seed in seeds:
        validation, test = (candidates(split, part, seed=seed) for part in ("validation", "test"))
        found = dict(lesson(setting, seed, validation, test))
        found["popularity"] = report(split, popularity(split.train), test)
        found["ease"] = report(split, ease(split.train), test)
        found["ease_recent"] = report(split, ease(split.train, recency=0.5), test)
        users, items = ials(
            split.train,
            setting.dim,
            unseen=WAY.unseen,
            regularisation=WAY.regularisation,
            seed=seed,
        )
        found["central_plain"] = report(split, dot(users, items), test)
        both = setting.score(setting.model(setting.dim).init(seed) | {"user": users, "item": items})
        found["central"] = report(split, both, test)
        curves["central"].append([ranking(both, validation)["ndcg@10"]])
        for name, settings, share in (("federated", ALL, 1.0), ("federated_10pct", TENTH, 0.1)):
            curve: list[float] = []
            params = federated(
                setting,
                settings,
                share,
                seed,
                lambda score, c=curve, v=validation: c.append(ranking(score, v)["ndcg@10"]),
            )
            found[name] = report(split, setting.score(params), test)
            found[f"{name}_plain"] = report(split, setting.score(params, recency=0.0), test)
            curves[name].append(curve)
        for name, row in found.items():
            rows[name].append(row)
        print(
            setting.name,
            seed,
            {name: {k: round(v, 3) for k, v in row.items()} for name, row in found.items()},
            flush=True,
        )


def figures(prefix: str, rows: dict[str, list[Row]], note: str) -> dict[str, dict]:
    """Means and spreads over seeds, and paired differences in NDCG@10 to the federated model."""
    found = {}
    for name, each in rows.items():
        for metric in each[0]:
            values = [row[metric] for row in each]
            key = f"{prefix}_{name}_{metric.replace('@', '').replace(' ', '_')}"
            spread = f"sd {stdev(values):.3f}" if len(values) > 1 else "one seed"
            found[key] = entry(
                mean(values),
                "share" if "hr" in metric else "NDCG",
                GOALS.get(key),
                higher=True,
                seeds=len(values),
                note=f"{'full ranking' if 'full' in metric else '99 negatives'}, {spread}{note}",
            )
    for name in ("fedavg", "ease", "ease_recent", "central", "local", "federated_plain"):
        gaps = [
            a["ndcg@10"] - b["ndcg@10"] for a, b in zip(rows["federated"], rows[name], strict=True)
        ]
        found[f"{prefix}_federated_minus_{name}_ndcg10"] = entry(
            mean(gaps),
            "NDCG",
            None,
            higher=True,
            seeds=len(gaps),
            note=f"paired by seed, better in {sum(g > 0 for g in gaps)} of {len(gaps)}{note}",
        )
    wins = [
        f["ndcg@10"] > alone["ndcg@10"]
        for f, alone in zip(rows["fedavg"], rows["local"], strict=True)
    ]
    found[f"{prefix}_fedavg_beats_local"] = entry(
        mean(wins),
        "of seeds",
        1.0,
        higher=True,
        seeds=len(wins),
        note=f"NDCG@10, paired by seed{note}",
    )
    return found


def rounds_to(curves: dict[str, list[list[float]]], name: str, share: float = 0.97) -> float:
    """The first round whose mean validation NDCG@10 is `share` of that of central iALS.

    If none is, the number of the last round plus one.
    """
    wanted = share * mean(c[0] for c in curves["central"])
    means = [mean(each) for each in zip(*curves[name], strict=True)]
    return next(
        (number for number, value in enumerate(means, 1) if value >= wanted), len(means) + 1
    )


def main(quick: bool) -> None:
    seeds, note = range(1 if quick else 5), ", quick" if quick else ""
    found = {}
    for setting in (
        Setting("mlsmall", leave_one_out(load()), 32),
        Setting("ml100k", leave_one_out(read(ml100k())), 48),
    ):
        rows, curves = defaultdict[str, list[Row]](list), defaultdict[str, list[list[float]]](list)
        measure(setting, seeds, rows, curves)
        found |= figures(setting.name, rows, note)
        if setting.name == "mlsmall":
            continue
        for name, goal, key in (("federated", 30, "all"), ("federated_10pct", 80, "10pct")):
            found[f"ml100k_rounds_to_97pct_{key}"] = entry(
                rounds_to(curves, name),
                "rounds",
                goal,
                higher=False,
                seeds=len(seeds),
                note=f"mean validation NDCG@10 over seeds at 97% of central iALS{note}",
            )
    record("quality", dict(sorted(found.items())), quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(is_quick())
