"""Did this person take part? What a published model tells of it, with an interval.

And what a proven epsilon leaves.

Whoever asks knows the person's films and how popular films are, and sees the item biases of the
model. A film that the person watched moves a little farther if the person took part; of rare films,
much of the move may be theirs.

Letters: U users, I items, m members, o others. Sources: Shokri et al. 2017, "Membership inference
attacks against machine learning models"; Yeom et al. 2018, "Privacy risk in machine learning";
Hanley, McNeil 1982, "The meaning and use of the area under a ROC curve", eq. 1 and 2; Clopper,
Pearson 1934; Kairouz, Oh, Viswanath 2015, "The composition theorem for differential privacy",
section 2.1.
"""

import math

import torch
from scipy.stats import binomtest, norm
from torch import Tensor

from fedlab.core import require
from fedlab.evaluation import auc


def membership_scores(moved: Tensor, watched: Tensor, popularity: Tensor) -> Tensor:
    """(U,) how much farther each user's films moved than others that are as popular.

    Rare ones counting more.

    moved (I,): an item's bias, or how far it went. watched (U, I): true for the films that the
    attacker knows of. popularity (I,): how often a film is watched at all, known from elsewhere. 0
    for a user without films.
    """
    require(watched.shape[1:] == moved.shape == popularity.shape, "moved", tuple(moved.shape),
            f"give a number for each of {watched.shape[1]} items, as popularity "
            f"{tuple(popularity.shape)}")
    _, group = popularity.unique(return_inverse=True)
    usual = torch.zeros(int(group.max()) + 1).index_add_(0, group, moved) / torch.bincount(group)
    weight = 1 / (1 + popularity)
    known = watched.to(moved)
    return known @ ((moved - usual[group]) * weight) / (known @ weight).clamp(min=1e-12)


def membership_metrics(scores: Tensor, inside: Tensor, *, level: float = 0.95,
                       fpr: float = 0.05) -> dict[str, float]:
    """How well scores (U,) tell members from others.

    `auc` with its interval, and `tpr` with its own.

    inside (U,): true for members. level: of the two-sided intervals auc_low to auc_high and tpr_low
    to tpr_high. tpr: the share of members found where at most a share `fpr` of the others is
    taken for one.
    """
    require(0 < level < 1, "level", level, "choose a share between 0 and 1, say 0.95")
    require(0 < fpr < 1, "fpr", fpr, "choose a share between 0 and 1, say 0.05")
    area, members = auc(scores, inside.float()), int(inside.sum())
    error = auc_standard_error(area, members, len(inside) - members)
    half = float(norm.ppf(0.5 + level / 2)) * error
    others = scores[~inside].sort(descending=True).values
    threshold = others[math.floor(fpr * len(others))]
    found = int((scores[inside] > threshold).sum())
    low, high = clopper_pearson(found, members, level)
    return {"auc": area, "auc_low": max(0.0, area - half), "auc_high": min(1.0, area + half),
            "tpr": found / members, "tpr_low": low, "tpr_high": high}


def auc_standard_error(area: float, members: int, others: int) -> float:
    """Standard deviation of an AUC over draws of members and others. Hanley, McNeil, eq.

    1 and 2.
    """
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (members - 1) * (q1 - area**2) + (others - 1) * (q2 - area**2)
    return math.sqrt(max(spread, 0.0) / (members * others))


def clopper_pearson(found: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share of which `found` of `of` were seen. Clopper, Pearson."""
    require(0 <= found <= of and of > 0, "found", found, f"choose from 0 to {of}")
    ends = binomtest(found, of).proportion_ci(level, "exact")
    return float(ends.low), float(ends.high)


def tpr_bound(epsilon: float, delta: float, fpr: float) -> float:
    """The largest share of members that any attack finds, however strong.

    Where it takes a share `fpr` by mistake.
    """
    require(epsilon >= 0, "epsilon", epsilon, "choose 0 or more")
    return min(1.0, math.exp(min(epsilon, 700.0)) * fpr + delta,
               1 - math.exp(-epsilon) * (1 - delta - fpr))
