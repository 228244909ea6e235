"""How good the predictions are, for all users at once.

Ties always rank against us: an untrained model that scores every item alike gets the last place.

Letters: U users, M candidates a user, n examples. Sources: He et al. 2017, section 4.1
(leave-one-out, HR@k, NDCG@k); Krichene, Rendle 2020, "On sampled metrics for item recommendation"
(why the full ranking is shown beside the sampled one).
"""

from typing import Any

import torch
from torch import Tensor

from fedlab.core import Metric, Score, register, require


def mse(prediction: Tensor, target: Tensor) -> float:
    """Mean squared error of (n,) predictions."""
    return float((prediction - target).square().mean())


def rmse(prediction: Tensor, target: Tensor) -> float:
    """Root of the mean squared error."""
    return mse(prediction, target) ** 0.5


def mae(prediction: Tensor, target: Tensor) -> float:
    """Mean absolute error."""
    return float((prediction - target).abs().mean())


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of (n,) clicks told from non-clicks at a chance of one half (logit 0)."""
    return float(((logits > 0) == (target > 0.5)).float().mean())


def auc(scores: Tensor, target: Tensor) -> float:
    """Chance that a random positive scores above a random negative; a tie counts one half.

    scores, target (n,), target 0 or 1. Mann and Whitney's U by mid-ranks. Raises when a class is
    missing.
    """
    positives = int((target > 0.5).sum())
    require(0 < positives < len(target), "target", positives,
            "needs both classes: some 1s and some 0s")
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    middle = counts.cumsum(0).double() - (counts.double() - 1) / 2
    u = middle[inverse][target > 0.5].sum() - positives * (positives + 1) / 2
    return float(u / (positives * (len(target) - positives)))


def rank(positive: Tensor, others: Tensor) -> Tensor:
    """(U,) place of each user's held-out item, 1 the best.

    Positive (U,), others (U, M), ties against us.

    A score that is not a number ranks last.
    """
    return 1 + (~(others < positive[:, None])).sum(1)


def hit_rate(ranks: Tensor, k: int = 10) -> float:
    """HR@k: share of users whose held-out item is among the first k."""
    return float((ranks <= k).float().mean())


def ndcg(ranks: Tensor, k: int = 10) -> float:
    """NDCG@k with one held-out item a user: the mean of 1 / log2(1 + rank) where rank <= k."""
    return float(torch.where(ranks <= k, 1 / (1 + ranks).log2(), 0.0).mean())


def at_k(ranks: Tensor, k: int = 10, prefix: str = "") -> dict[str, float]:
    """Both ranking metrics under their usual names."""
    return {f"{prefix}hr@{k}": hit_rate(ranks, k), f"{prefix}ndcg@{k}": ndcg(ranks, k)}


@register
class Ranking(Metric):
    """HR@10 and NDCG@10 of the held-out item among sampled ones."""

    modes = {"ndcg@10": "max", "hr@10": "max"}  # noqa: RUF012

    def measure(self, score: Score, experiment: Any) -> dict[str, float]:
        """Over the validation part."""
        return at_k(experiment.candidates.ranks(score))


@register
class Error(Metric):
    """RMSE of the held-out ratings, in stars."""

    title = "rmse"
    task = "ratings"
    modes = {"rmse": "min"}  # noqa: RUF012

    def measure(self, score: Score, experiment: Any) -> dict[str, float]:
        """Over the validation part."""
        held = experiment.split.validation
        return {"rmse": rmse(score(held.users, held.items), held.values) * experiment.split.std}
