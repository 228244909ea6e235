"""Who rated what, when: MovieLens as tensors, split by time.

`Ratings` is one frozen table; a split is three of them over the same users and items. Nothing here
knows about clients: `fedlab.federation` hands each client its own rows.

Letters: n ratings, U users, I items, G genres.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedlab.core import require
from fedlab.data.interactions import Ratings
from fedlab.data.readers import DataError


@dataclass(frozen=True)
class Split:
    """Train, validation and test ratings.

    Fit on `train`, choose on `validation`, report `test` once.
    """

    train: Ratings
    validation: Ratings
    test: Ratings
    mean: float = 0.0   # subtracted from every value by `standardise`
    std: float = 1.0    # every value was divided by it, so an RMSE times this is in stars


def from_latest(ratings: Ratings) -> Tensor:
    """(n,) how many ratings of the same user come later: 0 is the user's last.

    Ties go by the order of the rows.
    """
    order = torch.from_numpy(np.lexsort((ratings.times, ratings.users)))
    ends = torch.bincount(ratings.users, minlength=ratings.user_count).cumsum(0)
    later = torch.empty_like(order)
    later[order] = ends[ratings.users[order]] - 1 - torch.arange(len(order))
    return later


def strictly_later(ratings: Ratings) -> Tensor:
    """(n,) how many ratings of the same user have a later time.

    Ratings of the same second count alike.
    """
    moments = torch.from_numpy(np.unique(ratings.times, return_inverse=True)[1])
    moments = moments + ratings.users * (len(ratings) + 1)
    ends = torch.bincount(ratings.users, minlength=ratings.user_count).cumsum(0)
    return ends[ratings.users] - torch.searchsorted(moments.sort().values, moments, right=True)


def recent(ratings: Ratings, recency: float) -> Tensor:
    """(n,) weight of each rating in its user's history, (1 + ratings strictly later) ** -recency.

    1 for the last.
    """
    require(recency >= 0, "recency", recency, "choose 0, which weighs all alike, or more, say 1")
    return (1 + strictly_later(ratings).double()).pow(-recency).float()


def leave_one_out(ratings: Ratings) -> Split:
    """Each user's last rating to test, the one before to validation, the rest to train.

    Raises `DataError` for a user with fewer than three ratings.
    """
    few = (torch.bincount(ratings.users, minlength=ratings.user_count) < 3).nonzero()
    if len(few):
        raise DataError(f"user {int(few[0])} has fewer than 3 ratings; leave-one-out needs 3, drop "
                        "such users first")
    later = from_latest(ratings)
    return Split(ratings.take(later > 1), ratings.take(later == 1), ratings.take(later == 0))


def split_by_time(ratings: Ratings, validation: float = 0.1, test: float = 0.1) -> Split:
    """Each user's latest share `test` to test, the share `validation` before it, the rest to train.

    Shares of a user's ratings are rounded down, so a user with few ratings may have none in a part.
    """
    for name, share in (("validation", validation), ("test", test)):
        require(0 <= share < 1, name, share, "choose a share from 0 to below 1")
    require(validation + test < 1, "validation + test", validation + test,
            "leave something to train on")
    later = from_latest(ratings)
    own = torch.bincount(ratings.users, minlength=ratings.user_count)[ratings.users].double()
    last = (own * test).long()
    held = last + (own * validation).long()
    middle = (later >= last) & (later < held)
    return Split(ratings.take(later >= held), ratings.take(middle), ratings.take(later < last))


def standardise(split: Split) -> Split:
    """Subtract the mean of the train values and divide by their standard deviation.

    In all three parts.
    """
    require(len(split.train) > 1, "train", len(split.train),
            "needs two ratings or more to have a spread")
    mean, std = float(split.train.values.mean()), float(split.train.values.std())
    require(std > 0, "train std", std,
            "all train ratings are equal; there is nothing to standardise")
    train, validation, test = (replace(part, values=(part.values - mean) / std)
                               for part in (split.train, split.validation, split.test))
    return Split(train, validation, test, mean * split.std + split.mean, std * split.std)
