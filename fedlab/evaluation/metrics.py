"""Metrics of predictions, for all users at once.

Ties always rank against the model: one that scores every item alike puts the held-out item last.

Letters: U users, M candidates of a user, n examples, k length of the list.

Sources: He et al. 2017, "Neural collaborative filtering", section 4.1 (leave-one-out, HR@k,
NDCG@k); Krichene, Rendle 2020, "On sampled metrics for item recommendation" (why the full ranking
is shown beside the sampled one); Mann, Whitney 1947, "On a test of whether one of two random
variables is stochastically larger than the other" (the AUC as U); Efron 1979, "Bootstrap methods:
another look at the jackknife" (intervals).
"""

from typing import Any

import torch
from torch import Tensor

from fedlab.core import Metric, Score, knob, register, require, stream

MANY = 50_000  # users whose interval is no longer worth a bootstrap


def mse(prediction: Tensor, target: Tensor) -> float:
    """Mean squared error of predictions (n,).

    >>> mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    2.0
    """
    return float((prediction - target).square().mean())


def rmse(prediction: Tensor, target: Tensor) -> float:
    """Root of the mean squared error of predictions (n,).

    >>> rmse(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    2.0
    """
    return mse(prediction, target) ** 0.5


def mae(prediction: Tensor, target: Tensor) -> float:
    """Mean absolute error of predictions (n,).

    >>> mae(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    1.0
    """
    return float((prediction - target).abs().mean())


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of examples (n,) that are classified correctly at a threshold of one half (logit 0).

    >>> accuracy(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0]))
    0.5
    """
    return float(((logits > 0) == (target > 0.5)).float().mean())


def auc(scores: Tensor, target: Tensor) -> float:
    """Chance that a random positive scores above a random negative; a tie counts one half.

    scores (n,); target (n,): 0 or 1. It is computed from mid-ranks as Mann and Whitney's U. Raises
    `ParameterError` when one class is missing.

    >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    0.875
    """
    positives = int((target > 0.5).sum())
    require(
        0 < positives < len(target), "target", positives, "needs both classes: some 1s and some 0s"
    )
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    middle = counts.cumsum(0).double() - (counts.double() - 1) / 2
    u = middle[inverse][target > 0.5].sum() - positives * (positives + 1) / 2
    return float(u / (positives * (len(target) - positives)))


def rank(positive: Tensor, others: Tensor) -> Tensor:
    """Rank (U,) of each user's held-out item among others, where 1 is the best.

    positive (U,): its score. others (U, M): the scores of the others. Ties and scores that are not
    a number count against the held-out item.

    >>> rank(torch.tensor([0.5]), torch.tensor([[0.9, 0.5, 0.1]])).tolist()
    [3]
    """
    return 1 + (~(others < positive[:, None])).sum(1)


def hit_rate(ranks: Tensor, k: int = 10) -> float:
    """HR@k: the share of users whose held-out item has a rank (U,) of at most k.

    >>> hit_rate(torch.tensor([1, 11]))
    0.5
    """
    return float((ranks <= k).float().mean())


def ndcg(ranks: Tensor, k: int = 10) -> float:
    """NDCG@k for one held-out item a user: the mean of `gains`.

    >>> ndcg(torch.tensor([1, 3]))
    0.75
    """
    return float(gains(ranks, k).mean())


def gains(ranks: Tensor, k: int = 10) -> Tensor:
    """What each user (U,) adds to NDCG@k: 1 / log2(1 + rank), or 0 beyond rank k.

    >>> gains(torch.tensor([1, 3, 11]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    return torch.where(ranks <= k, 1 / (1 + ranks).log2(), 0.0)


def interval(each: Tensor, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean over users, from what each (U,) adds: percentiles of a bootstrap.

    draws: times that U users are drawn with replacement. Of more than `MANY` users it is the normal
    interval, which a bootstrap comes to. Raises `ParameterError` where nobody is.

    >>> interval(torch.ones(5))
    (1.0, 1.0)
    """
    require(len(each) > 0, "each", 0, "give what each user adds, of one user or more")
    draw, values = stream(seed, "bootstrap"), each.double()
    if len(each) > MANY:
        middle, far = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
        return middle - far, middle + far
    means = torch.stack(
        [
            values[torch.randint(len(each), (len(each),), generator=draw)].mean()
            for _ in range(draws)
        ]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def at_k(ranks: Tensor, k: int = 10, prefix: str = "") -> dict[str, float]:
    """HR@k and NDCG@k of ranks (U,), under their usual names.

    >>> at_k(torch.tensor([1, 3]))
    {'hr@10': 1.0, 'ndcg@10': 0.75}
    """
    return {f"{prefix}hr@{k}": hit_rate(ranks, k), f"{prefix}ndcg@{k}": ndcg(ranks, k)}


def chance(others: Tensor, k: int = 10, prefix: str = "") -> dict[str, float]:
    """HR@k and NDCG@k that scores by chance reach on average: every rank is as likely as another.

    others (U,): how many items each user's held-out one is ranked against.

    >>> chance(torch.tensor([99]))["hr@10"]
    0.1
    """
    ranks = torch.arange(1, k + 1)[:, None]
    share = (ranks <= others + 1).double() / (others + 1)  # (k, U)
    found = {"hr": share, "ndcg": share * gains(ranks, k).double()}
    return {f"{prefix}{name}@{k}": float(each.sum(0).mean()) for name, each in found.items()}


@register
class Ranking(Metric):
    """HR@10 and NDCG@10 of the held-out item among sampled ones, and among all if asked for."""

    modes = {  # noqa: RUF012
        "ndcg@10": "max",
        "hr@10": "max",
        "full ndcg@10": "max",
        "full hr@10": "max",
    }
    full_ranking: str = knob(
        "off",
        0,
        0,
        "",
        "whether held-out clicks are ranked among all items, too",
        live=False,
        choices=("off", "on"),
        group="measuring",
    )

    def measure(self, score: Score, experiment: Any) -> dict[str, float]:
        """Rank the clicks of the validation part."""
        found = at_k(experiment.candidates.ranks(score))
        if self.full_ranking == "on":
            found |= at_k(experiment.unmet.ranks(score), prefix="full ")
        return found


@register
class Error(Metric):
    """RMSE of the held-out ratings, in stars."""

    title = "rmse"
    task = "ratings"
    modes = {"rmse": "min"}  # noqa: RUF012

    def measure(self, score: Score, experiment: Any) -> dict[str, float]:
        """Measure the error on the validation part."""
        held = experiment.split.validation
        return {"rmse": rmse(score(held.users, held.items), held.values) * experiment.split.std}
