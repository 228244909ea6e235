"""Films that nobody has rated: each fifth of MovieLens-100K's films is hidden in turn.

    python benchmarks/cold.py [--quick]

All ratings of the hidden films are taken away; federated iALS learns the rows of the others; kernel
ridge on the server predicts the hidden rows from what is known of a film. Each user's own among the
hidden films is ranked among all hidden ones. A predicted popularity is added to the scores: log
counts, which are sums over clients, predicted in the same way.

What is chosen (how strongly the ridge pulls, what popularity weighs, and whether a language model's
familiarity with titles counts) is chosen for each fifth on the four others, of which each is hidden
as well in turn: the hidden films have no part in it. The figures go to quality.json.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations, product
from statistics import mean, stdev

import torch
from common import entry, is_quick, ml100k, record
from language import trained
from torch import Tensor

from fedlab import read, scorer
from fedlab.algorithms import Implicit
from fedlab.core import Score, Tree
from fedlab.data import Interactions
from fedlab.evaluation import cold_ranking, popularity
from fedlab.models import Model
from fedlab.models.text import (
    familiarity,
    familiarity_kernel,
    item_kernel,
    item_texts,
    kernel_ridge,
    tfidf,
    vectors,
    year_kernel,
)

COLD = Implicit(unseen=20.0)
FOLDS, TITLE = 5, "{title}"
Row = dict[str, float]


@dataclass(frozen=True)
class Way:
    """How hidden films are scored: the kernels of rows and of popularity, and two strengths.

    weight: of the popularity, in standard deviations of the scores.
    """

    rows: str
    popular: str = ""
    strength: float = 1.0
    weight: float = 0.0


PLAIN = {name: Way(name) for name in ("text", "minilm", "tfidf", "genres")}
STRENGTHS, WEIGHTS = (1.0, 3.0), (0.1, 0.2, 0.4)
CHOSEN = {  # what is chosen among, each by itself
    "tuned": [Way("text", strength=s) for s in STRENGTHS],
    "year": [Way("text", "year", s, w) for s, w in product(STRENGTHS, WEIGHTS)],
    "popular": [Way("text", "text", s, w) for s, w in product(STRENGTHS, WEIGHTS)],
    "familiar": [Way("familiar", "familiar", s, w) for s, w in product(STRENGTHS, (0.0, *WEIGHTS))],
}
GAINS = {
    "year": "text and popularity by the year alone",
    "popular": "text and popularity by text, genres and year",
    "familiar": "the same, and both know how familiar SmolLM2 is with the title",
}


@dataclass(frozen=True)
class Trained:
    """What the federation knows without some films.

    counts (I,): how often each was rated. made: ridges that were worked out, by kernel and
    strength.
    """

    model: Model
    params: Tree
    counts: Tensor
    made: dict[tuple[str, float], Tensor] = field(default_factory=dict)

    @classmethod
    def without(cls, ratings: Interactions, cold: Tensor) -> "Trained":
        """Train on the ratings of all but the cold films (I,)."""
        train = ratings.take(~cold[ratings.items])
        model, clients, params = trained(train, COLD, 0)
        own = COLD.personal(clients, params) | {"item": params["item"]}
        return cls(model, own, train.item_counts())

    def score(self, kernels: dict[str, Tensor], way: Way, cold: Tensor) -> Score:
        """The scores of the cold films (I,), by what is known of them."""
        warm = self.counts > 0

        def ridge(name: str) -> Tensor:
            key = name, way.strength
            if key not in self.made:
                self.made[key] = kernel_ridge(kernels[name], warm, way.strength)
            return self.made[key]

        item = ridge(way.rows) @ self.params["item"][warm]
        told = self.params | {"item": item}
        if way.weight:
            counts = self.counts[warm].float().log1p()
            expected = ridge(way.popular) @ (counts - counts.mean())
            spread = (told["user"] @ item[cold].T).std() / expected[cold].std()
            told["bias"] = way.weight * spread * expected
        return scorer(self.model, told)


def kernels(ratings: Interactions) -> dict[str, Tensor]:
    """How alike films are, by what one knows of them."""
    about = ratings.catalogue
    texts, titles = item_texts(about), item_texts(about, TITLE)
    minilm = [vectors(texts, progress=False), vectors(titles, progress=False)]
    text = item_kernel(minilm, about)
    return {
        "text": text,
        "minilm": item_kernel(minilm[:1], about, 0, 0),
        "tfidf": item_kernel([tfidf(texts)], about),
        "genres": item_kernel([], about),
        "year": year_kernel(about),
        "familiar": text + familiarity_kernel(familiarity(titles)),
    }


def folds(items: int) -> Tensor:
    """The fold (I,) of each film, drawn once."""
    order = torch.randperm(items, generator=torch.Generator().manual_seed(0))
    return torch.empty(items, dtype=torch.int64).index_put((order,), torch.arange(items) % FOLDS)


def best(ways: list[Way], found: dict[Way, list[float]]) -> Way:
    """The way with the best mean on the films that were held out for choosing."""
    return max(ways, key=lambda way: mean(found[way]))


def measure(ratings: Interactions, number: int) -> dict[str, list[Row]]:
    """AUC and NDCG@10 among the hidden films, by what is known of them, fold by fold."""
    known, fold = kernels(ratings), folds(ratings.item_count)
    inner = defaultdict[int, dict[Way, list[float]]](lambda: defaultdict(list))
    ways = {way for ways in CHOSEN.values() for way in ways}
    for pair in combinations(range(FOLDS), 2):
        both = Trained.without(ratings, torch.isin(fold, torch.tensor(pair)))
        print("held out to choose", *pair, flush=True)
        for outer, held in (pair, pair[::-1]):
            cold = fold == held
            for way in ways if outer < number else ():
                figures = cold_ranking(both.score(known, way, cold), ratings, cold)
                inner[outer][way].append(figures["ndcg@10"])
    rows = defaultdict[str, list[Row]](list)
    for outer in range(number):
        cold = fold == outer
        learned = Trained.without(ratings, cold)
        chosen = {name: best(ways, inner[outer]) for name, ways in CHOSEN.items()}
        for name, way in (PLAIN | chosen).items():
            rows[name].append(cold_ranking(learned.score(known, way, cold), ratings, cold))
        rows["chance"].append(cold_ranking(chance(outer), ratings, cold))
        rows["popularity"].append(cold_ranking(popularity(ratings), ratings, cold))
        told = {n: [round(v, 3) for v in r[-1].values()] for n, r in rows.items()}
        print(outer, told, chosen, flush=True)
    return rows


def chance(seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Scores that are drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return lambda users, items: torch.rand(users.shape, generator=generator)


def gain(
    name: str, rows: dict[str, list[Row]], against: str, goal: float | None, note: str
) -> dict:
    """The mean paired difference of two ways in NDCG@10."""
    gaps = [a["ndcg@10"] - b["ndcg@10"] for a, b in zip(rows[name], rows[against], strict=True)]
    better = f"paired by fold, better in {sum(g > 0 for g in gaps)} of {len(gaps)}"
    return entry(mean(gaps), "NDCG", goal, higher=True, seeds=len(gaps), note=f"{better}{note}")


def main(quick: bool) -> None:
    note = ", quick" if quick else ""
    rows, found = measure(read(ml100k()), 1 if quick else FOLDS), {}
    for name, metric in product(rows, ("auc", "ndcg@10")):
        values = [row[metric] for row in rows[name]]
        spread = f"sd {stdev(values):.3f}" if len(values) > 1 else "one fold"
        found[f"ml100k_cold_{name}_{metric.replace('@', '')}"] = entry(
            mean(values),
            metric,
            {"text auc": 0.79, "text ndcg@10": 0.39}.get(f"{name} {metric}"),
            higher=True,
            seeds=len(values),
            note=f"a fifth of the films hidden, {spread}{note}",
        )
    found["ml100k_cold_text_minus_tfidf_ndcg10"] = gain("text", rows, "tfidf", 0.0, note)
    for name, told in GAINS.items():
        key = "ml100k_cold_gain" if name == "familiar" else f"ml100k_cold_{name}_gain"
        goal = 0.03 if name == "familiar" else None
        found[f"{key}_ndcg10"] = gain(name, rows, "tuned", goal, f"; {told}{note}")
    record("quality", dict(sorted(found.items())), quick)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(is_quick())
