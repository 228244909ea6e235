"""What texts are worth: hybrid rows, and vectors kept against encoded anew.

    python benchmarks/language.py [--quick]

Texts are read by a pretrained language model. Hybrid: leave-one-out as in quality.py. The figures
of quality go to quality.json. What texts say of films that nobody has rated is in cold.py.
"""

import time
from collections import defaultdict
from statistics import mean, median

import torch
from common import entry, is_quick, record
from quality import ALL, WAY

from fedlab import (
    Federation,
    Model,
    Settings,
    candidates,
    content,
    federate,
    leave_one_out,
    load,
    matrix_factorisation,
    one_per_user,
    ranking,
    scorer,
)
from fedlab.algorithms import Implicit
from fedlab.core import Key, Tree
from fedlab.data import Interactions
from fedlab.models import history
from fedlab.models.text import encoder, item_kernel, item_texts, kernel_ridge, vectors

SHARE = 0.5


def trained(train: Interactions, way: Implicit, seed: int) -> tuple[Model, Federation, Tree]:
    """The model, all users as clients, and the parameters after 30 rounds of federated iALS."""
    clients = Federation(train, one_per_user(train))
    model = matrix_factorisation(train.user_count, train.item_count, 32)
    *_, end = federate(model, clients, ALL.replace(cohort=len(clients), seed=seed), local=way)
    return model, clients, end.params


def hybrid(ratings: Interactions, seeds: range) -> dict[str, list[float]]:
    """Test NDCG@10 of rows by ids alone, of these and half of what texts say, and of texts."""
    split = leave_one_out(ratings)
    train, found = split.train, defaultdict(list)
    warm = train.item_counts() > 0
    rows = kernel_ridge(
        item_kernel([vectors(item_texts(train.catalogue), progress=False)], train.catalogue), warm
    )
    for seed in seeds:
        model, clients, params = trained(train, WAY, seed)
        against = candidates(split, seed=seed)
        prior = rows @ params["item"][warm]
        for name, item in (
            ("id", params["item"]),
            ("hybrid", params["item"] + SHARE * prior),
            ("text", prior),
        ):
            score = scorer(model, WAY.personal(clients, params | {"item": item}))
            found[name].append(ranking(score, against)["ndcg@10"])
        print("hybrid", seed, {n: round(v[-1], 4) for n, v in found.items()}, flush=True)
    return found


def kept_or_encoded(ratings: Interactions, times: int) -> float:
    """How much longer a round takes if clients encode their films' texts, not look them up."""
    texts = item_texts(ratings.catalogue)
    known, minilm = vectors(texts, progress=False), encoder()
    model = content(known, history(ratings, known), 32)
    clients = Federation(ratings, one_per_user(ratings))
    settings = Settings(cohort=10, local_lr=0.1, rounds=times + 1)
    rounds, ratios = federate(model, clients, settings), []
    next(rounds)
    for number in range(2, 2 + times):
        began = time.perf_counter()
        last = next(rounds)
        took = time.perf_counter() - began
        drawn = clients.draw(last.cohort, 1, settings.negatives, Key(0, "examples", number))
        films = (drawn["client"] * ratings.item_count + drawn["item"]).unique() % ratings.item_count
        began = time.perf_counter()
        minilm([texts[i] for i in films.tolist()])  # a client has no other's vectors
        ratios.append((time.perf_counter() - began + took) / took)
    return median(ratios)


def main(quick: bool) -> None:
    seeds, note = range(1 if quick else 5), ", quick" if quick else ""
    found = {}
    warm = hybrid(load(), seeds)
    for name in ("hybrid", "text"):
        gaps = [a - b for a, b in zip(warm[name], warm["id"], strict=True)]
        found[f"mlsmall_{name}_minus_id_ndcg10"] = entry(
            mean(gaps),
            "NDCG",
            0.0 if name == "hybrid" else None,
            higher=True,
            seeds=len(seeds),
            note=f"paired, better in {sum(g > 0 for g in gaps)} of {len(gaps)}; by id "
            f"{mean(warm['id']):.3f}{note}",
        )
    record("quality", dict(sorted(found.items())), quick)
    ratio = kept_or_encoded(load(), 1 if quick else 5)
    record(
        "language",
        {
            "cached_vs_encode_round": entry(
                ratio,
                "ratio",
                100,
                higher=True,
                seeds=1,
                note=f"10 users, MiniLM, each its own films, drawn negatives included{note}",
            )
        },
        quick,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(is_quick())
