"""Membership inference: who took part in training, and how sure an attacker can be of it.

The attacker knows some items of the person and how popular items are, and sees the item biases of
the published model. An item that the person watched moves a little farther if the person took part;
for a rare item, much of the move may be due to that person.

Letters: U users, I items, m members, o others.

Sources: Shokri et al. 2017, "Membership inference attacks against machine learning models"; Yeom et
al. 2018, "Privacy risk in machine learning"; Hanley, McNeil 1982, "The meaning and use of the area
under a ROC curve", eq. 1 and 2; Clopper, Pearson 1934, "The use of confidence or fiducial limits";
Kairouz, Oh, Viswanath 2015, "The composition theorem for differential privacy", section 2.1.
"""

import math

import torch
from torch import Tensor

from fedlab.core import require
from fedlab.evaluation import auc


def membership_scores(moved: Tensor, watched: Tensor, popularity: Tensor) -> Tensor:
    """How much farther (U,) each user's items moved than others that are as popular.

    Rare items count more. moved (I,): the item biases, or how far each moved. watched (U, I): true
    for the items that the attacker knows of. popularity (I,): how often each item is watched, known
    from elsewhere. Users without items get 0. Raises `ParameterError` for shapes that do not fit.

    >>> moved, popularity = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])
    >>> membership_scores(moved, torch.tensor([[True, False], [False, True]]), popularity)
    tensor([ 1., -1.])
    """
    require(
        watched.shape[1:] == moved.shape == popularity.shape,
        "moved",
        tuple(moved.shape),
        f"give a number for each of {watched.shape[1]} items, as popularity "
        f"{tuple(popularity.shape)}",
    )
    _, group = popularity.unique(return_inverse=True)
    usual = torch.zeros(int(group.max()) + 1).index_add_(0, group, moved) / torch.bincount(group)
    weight = 1 / (1 + popularity)
    known = watched.to(moved)
    return known @ ((moved - usual[group]) * weight) / (known @ weight).clamp(min=1e-12)


def membership_metrics(
    scores: Tensor, inside: Tensor, *, level: float = 0.95, fpr: float = 0.05
) -> dict[str, float]:
    """How well scores (U,) find members: AUC and true positive rate, with intervals.

    inside (U,): true for members. level: of the two-sided intervals, between 0 and 1. fpr: the
    false positive rate, between 0 and 1, at which the true positive rate is taken. Returns auc,
    auc_low, auc_high, tpr, tpr_low and tpr_high. Raises `ParameterError` for values out of range
    and when members or others are missing.

    >>> found = membership_metrics(torch.arange(40.0), torch.arange(40) >= 20)
    >>> found["auc"], found["tpr"]
    (1.0, 1.0)
    """
    from scipy.special import ndtri  # noqa: PLC0415 - takes a tenth of a second

    require(0 < level < 1, "level", level, "choose a share between 0 and 1, say 0.95")
    require(0 < fpr < 1, "fpr", fpr, "choose a share between 0 and 1, say 0.05")
    area, members = auc(scores, inside.float()), int(inside.sum())
    half = float(ndtri(0.5 + level / 2)) * auc_standard_error(area, members, len(inside) - members)
    others = scores[~inside].sort(descending=True).values
    threshold = others[math.floor(fpr * len(others))]
    found = int((scores[inside] > threshold).sum())
    low, high = clopper_pearson(found, members, level)
    return {
        "auc": area,
        "auc_low": max(0.0, area - half),
        "auc_high": min(1.0, area + half),
        "tpr": found / members,
        "tpr_low": low,
        "tpr_high": high,
    }


def auc_standard_error(area: float, members: int, others: int) -> float:
    """Standard error of an AUC over draws of m members and o others: Hanley, McNeil, eq. 1 and 2.

    >>> round(auc_standard_error(0.5, 100, 100), 3)
    0.041
    """
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (members - 1) * (q1 - area**2) + (others - 1) * (q2 - area**2)
    return math.sqrt(max(spread, 0.0) / (members * others))


def clopper_pearson(found: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """The exact confidence interval of a share, where `found` of `of` were observed.

    level: between 0 and 1. Raises `ParameterError` unless found is between 0 and of. Source:
    Clopper, Pearson 1934.

    >>> [round(end, 3) for end in clopper_pearson(0, 10)]
    [0.0, 0.308]
    """
    from scipy.stats import binomtest  # noqa: PLC0415 - takes half a second

    require(0 <= found <= of and of > 0, "found", found, f"choose from 0 to {of}")
    ends = binomtest(found, of).proportion_ci(level, "exact")
    return float(ends.low), float(ends.high)


def tpr_bound(epsilon: float, delta: float, fpr: float) -> float:
    """The largest true positive rate of any attack on an (epsilon, delta)-private result.

    fpr: the attack's false positive rate. epsilon: 0 or more, else `ParameterError`. Source:
    Kairouz, Oh, Viswanath 2015, section 2.1.

    >>> tpr_bound(0.0, 0.0, fpr=0.05)  # nothing leaks: guessing is the best attack
    0.05
    """
    require(epsilon >= 0, "epsilon", epsilon, "choose 0 or more")
    return min(
        1.0, math.exp(min(epsilon, 700.0)) * fpr + delta, 1 - math.exp(-epsilon) * (1 - delta - fpr)
    )
