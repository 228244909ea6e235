"""What texts are worth: cold films, hybrid rows, and vectors kept against encoded anew.

    python benchmarks/language.py [--quick]

Texts are read by a pretrained language model. Cold: a fifth of the films is hidden, with all
ratings of them; federated iALS learns the rows of the others; kernel ridge on the server predicts
the hidden rows from texts alone. Each user's own among the hidden films is ranked among all hidden
ones; settings were chosen with other films hidden (seeds from 100 on). Hybrid: leave-one-out as in
quality.py. The figures of quality go to quality.json.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import mean, median, stdev

import torch
from common import entry, is_quick, ml100k, record
from quality import ALL, WAY
from torch import Tensor

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
    read,
    scorer,
)
from fedlab.algorithms import Implicit
from fedlab.core import Key, Tree
from fedlab.data import Interactions
from fedlab.evaluation import cold_ranking, hide_items, popularity
from fedlab.models import history
from fedlab.models.text import encoder, item_kernel, item_texts, kernel_ridge, tfidf, vectors

COLD = Implicit(unseen=20.0)
TITLE, SHARE = "{title}", 0.5


def trained(train: Interactions, way: Implicit, seed: int) -> tuple[Model, Federation, Tree]:
    """The model, all users as clients, and the parameters after 30 rounds of federated iALS."""
    clients = Federation(train, one_per_user(train))
    model = matrix_factorisation(train.user_count, train.item_count, 32)
    *_, end = federate(model, clients, ALL.replace(cohort=len(clients), seed=seed), local=way)
    return model, clients, end.params


def kernels(ratings: Interactions) -> dict[str, Tensor]:
    """How alike films are, by what one knows of them."""
    about = ratings.catalogue
    texts, titles = item_texts(about), item_texts(about, TITLE)
    minilm = [vectors(texts, progress=False), vectors(titles, progress=False)]
    return {
        "text": item_kernel(minilm, about),
        "minilm": item_kernel(minilm[:1], about, 0, 0),
        "tfidf": item_kernel([tfidf(texts)], about),
        "genres": item_kernel([], about),
    }


def cold(ratings: Interactions, seeds: range) -> dict[str, list[dict[str, float]]]:
    """AUC and NDCG@10 among hidden films, by what is known of them, seed by seed."""
    rows, known = defaultdict(list), kernels(ratings)
    for seed in seeds:
        train, hidden = hide_items(ratings, 0.2, seed)
        model, clients, params = trained(train, COLD, seed)
        own, warm = COLD.personal(clients, params), train.item_counts() > 0
        for name, kernel in known.items():
            told = own | {"item": kernel_ridge(kernel, warm) @ params["item"][warm]}
            rows[name].append(cold_ranking(scorer(model, told), ratings, hidden))
        rows["chance"].append(cold_ranking(chance(seed), ratings, hidden))
        rows["popularity"].append(cold_ranking(popularity(ratings), ratings, hidden))
        print(
            "cold",
            seed,
            {n: [round(v, 3) for v in r[-1].values()] for n, r in rows.items()},
            flush=True,
        )
    return rows


def chance(seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Scores that are drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return lambda users, items: torch.rand(users.shape, generator=generator)


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
    rows, found = cold(read(ml100k()), seeds), {}
    for name, each in rows.items():
        for metric in ("auc", "ndcg@10"):
            values = [row[metric] for row in each]
            goal = {"text auc": 0.79, "text ndcg@10": 0.39}.get(f"{name} {metric}")
            spread = f"sd {stdev(values):.3f}" if len(values) > 1 else "one seed"
            key = f"ml100k_cold_{name}_{metric.replace('@', '')}"
            found[key] = entry(
                mean(values),
                metric,
                goal,
                higher=True,
                seeds=len(seeds),
                note=f"a fifth of the films hidden, {spread}{note}",
            )
    gaps = [a["ndcg@10"] - b["ndcg@10"] for a, b in zip(rows["text"], rows["tfidf"], strict=True)]
    found["ml100k_cold_text_minus_tfidf_ndcg10"] = entry(
        mean(gaps),
        "NDCG",
        0.0,
        higher=True,
        seeds=len(seeds),
        note=f"paired, better in {sum(g > 0 for g in gaps)} of {len(gaps)}{note}",
    )
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
