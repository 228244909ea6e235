"""How good the recommenders are on ml-latest-small: clean leave-one-out, 5 seeds, lesson 2's own settings.

python benchmarks/quality.py [--quick]

A seed changes the first weights, the cohorts, the training negatives and the 99 evaluation negatives. What to
keep is chosen on validation, the test is read once. Full ranking: among all items not seen earlier.
"""

from dataclasses import replace
from statistics import mean, stdev

import torch
from common import entry, is_quick, parameters, record

from fedlab import (
    Config,
    Federation,
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
    scorer,
)
from fedlab.metrics import at_k


def main(quick: bool) -> None:
    lesson, seeds = parameters("02_fedavg"), range(1 if quick else 5)
    split = leave_one_out(load())
    users, items = split.train.user_count, split.train.item_count
    clients = Federation(split.train, one_per_user(split.train))
    central = Federation(split.train, torch.zeros(users, dtype=torch.int64))
    model = matrix_factorisation(users, items, lesson["DIM"])
    together = Config(rounds=lesson["ROUNDS"], cohort=len(clients), local_lr=lesson["LOCAL_LR"],
                      server_lr=lesson["SERVER_LR"], batch_size=lesson["BATCH_SIZE"], weighting="equal")
    pooled = Config(rounds=lesson["CENTRAL_EPOCHS"], cohort=1, local_lr=lesson["CENTRAL_LR"],
                    batch_size=lesson["CENTRAL_BATCH"])
    alone = replace(together, local_epochs=lesson["ALONE_EPOCHS"])
    rows: dict[str, list[dict[str, float]]] = {"popularity": [], "fedavg": [], "central": [], "local": []}
    for seed in seeds:
        validation, test = (candidates(split, part, seed=seed) for part in ("validation", "test"))
        rows["popularity"].append(report(split, popularity(split.train), test))
        for name, data, config in (("fedavg", clients, together), ("central", central, pooled)):
            run = measured(federate(model, data, replace(config, seed=seed)),
                           lambda r, v=validation: ranking(scorer(model, r.params), v), every=2)
            kept = best_round(run, "ndcg@10", "max")
            rows[name].append(report(split, scorer(model, kept.params), test) | {"round": kept.number})
        rows["local"].append(at_k(alone_ranks(model, clients, replace(alone, seed=seed), test)))
        print(seed, {name: {k: round(v, 3) for k, v in found[-1].items()} for name, found in rows.items()}, flush=True)
    wins = sum(f["ndcg@10"] > alone["ndcg@10"] for f, alone in zip(rows["fedavg"], rows["local"], strict=True))
    goals = {"mlsmall_fedavg_hr10": 0.66, "mlsmall_fedavg_ndcg10": 0.39}
    figures = {}
    for name, found in rows.items():
        for metric in found[0].keys() - {"round"}:
            values = [f[metric] for f in found]
            spread = f"sd {stdev(values):.3f}" if len(values) > 1 else "one seed"
            key = f"mlsmall_{name}_{metric.replace('@', '').replace(' ', '_')}"
            note = f"{'full ranking' if 'full' in metric else '99 negatives'}, {spread}{', quick' if quick else ''}"
            figures[key] = entry(mean(values), "share" if "hr" in metric else "NDCG", goals.get(key), higher=True,
                                 seeds=len(values), note=note)
    figures["mlsmall_fedavg_beats_local"] = entry(wins / len(rows["local"]), "of seeds", 1.0, higher=True,
                                                  seeds=len(rows["local"]), note="NDCG@10, paired by seed")
    record("quality", dict(sorted(figures.items())), quick)


def report(split, score, against) -> dict[str, float]:
    """Sampled and full-ranking figures of one model on the test."""
    return ranking(score, against) | at_k(full_ranks(split, score), prefix="full ")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(is_quick())
