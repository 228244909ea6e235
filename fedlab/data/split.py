"""Split ratings by time into train, validation and test, and count what came later.

Letters: n ratings, U users.

Sources: He et al. 2017, "Neural collaborative filtering", section 4.1 (leave-one-out); Koren 2009,
"Collaborative filtering with temporal dynamics" (older ratings weigh less).
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
    """Train, validation and test ratings: fit on train, choose on validation, report test once.

    mean, std: what `standardise` has subtracted from all values and divided them by, so that an
    RMSE times std is in stars.
    """

    train: Ratings
    validation: Ratings
    test: Ratings
    mean: float = 0.0  # subtracted from every value by `standardise`
    std: float = 1.0  # every value was divided by it, so an RMSE times this is in stars


def from_latest(ratings: Ratings) -> Tensor:
    """How many ratings (n,) of the same user come later; 0 for the user's last.

    Ratings of the same second are ordered by their rows.

    >>> from fedlab.data import load
    >>> from_latest(load().take(torch.arange(4))).tolist()
    [3, 2, 1, 0]
    """
    order = torch.from_numpy(np.lexsort((ratings.times, ratings.users)))
    ends = torch.bincount(ratings.users, minlength=ratings.user_count).cumsum(0)
    later = torch.empty_like(order)
    later[order] = ends[ratings.users[order]] - 1 - torch.arange(len(order))
    return later


def strictly_later(ratings: Ratings) -> Tensor:
    """How many ratings (n,) of the same user have a later time; those of one second count alike.

    >>> from fedlab.data import load
    >>> first = load().take(torch.arange(4))
    >>> bool((strictly_later(first) <= from_latest(first)).all())
    True
    """
    moments = torch.from_numpy(np.unique(ratings.times, return_inverse=True)[1])
    moments = moments + ratings.users * (len(ratings) + 1)
    ends = torch.bincount(ratings.users, minlength=ratings.user_count).cumsum(0)
    return ends[ratings.users] - torch.searchsorted(moments.sort().values, moments, right=True)


def recent(ratings: Ratings, recency: float) -> Tensor:
    """Weight (n,) of each rating by recency: (1 + ratings strictly later) ** -recency.

    recency: 0, which weighs all alike, or more; else `ParameterError`.

    >>> from fedlab.data import load
    >>> recent(load().take(torch.arange(3)), recency=0.0)
    tensor([1., 1., 1.])
    """
    require(recency >= 0, "recency", recency, "choose 0, which weighs all alike, or more, say 1")
    return (1 + strictly_later(ratings).double()).pow(-recency).float()


def leave_one_out(ratings: Ratings) -> Split:
    """Each user's last rating for test, the one before for validation, the others for train.

    Raises `DataError` for a user with fewer than three ratings.

    >>> from fedlab.data import load
    >>> split = leave_one_out(load())
    >>> len(split.train), len(split.validation), len(split.test)
    (98662, 671, 671)
    """
    few = (torch.bincount(ratings.users, minlength=ratings.user_count) < 3).nonzero()
    if len(few):
        raise DataError(
            f"user {int(few[0])} has fewer than 3 ratings; leave-one-out needs 3, drop such users "
            "first"
        )
    later = from_latest(ratings)
    return Split(ratings.take(later > 1), ratings.take(later == 1), ratings.take(later == 0))


def split_by_time(ratings: Ratings, validation: float = 0.1, test: float = 0.1) -> Split:
    """Each user's latest ratings for test, those before them for validation, the others for train.

    validation, test: shares of a user's ratings, from 0 to below 1 and together below 1, else
    `ParameterError`. They are rounded down, so a user with few ratings may have none in a part.

    >>> from fedlab.data import load
    >>> split = split_by_time(load())
    >>> len(split.train) + len(split.validation) + len(split.test)
    100004
    """
    for name, share in (("validation", validation), ("test", test)):
        require(0 <= share < 1, name, share, "choose a share from 0 to below 1")
    require(
        validation + test < 1, "validation + test", validation + test, "leave something to train on"
    )
    later = from_latest(ratings)
    own = torch.bincount(ratings.users, minlength=ratings.user_count)[ratings.users].double()
    last = (own * test).long()
    held = last + (own * validation).long()
    return Split(
        ratings.take(later >= held),
        ratings.take((later >= last) & (later < held)),
        ratings.take(later < last),
    )


def standardise(split: Split) -> Split:
    """Subtract the mean of the train values from all parts and divide by their standard deviation.

    Raises `ParameterError` when train has fewer than two ratings, or all of them are equal.

    >>> from fedlab.data import load
    >>> split = standardise(leave_one_out(load()))
    >>> abs(float(split.train.values.mean())) < 1e-4
    True
    """
    require(
        len(split.train) > 1,
        "train",
        len(split.train),
        "needs two ratings or more to have a spread",
    )
    mean, std = float(split.train.values.mean()), float(split.train.values.std())
    require(
        std > 0, "train std", std, "all train ratings are equal; there is nothing to standardise"
    )
    train, validation, test = (
        replace(part, values=(part.values - mean) / std)
        for part in (split.train, split.validation, split.test)
    )
    return Split(train, validation, test, mean * split.std + split.mean, std * split.std)
