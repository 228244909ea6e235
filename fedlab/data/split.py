"""Split ratings by time into train, validation and test, and count what came later.

Letters: n ratings, U users.

Sources: He et al. 2017, "Neural collaborative filtering", section 4.1 (leave-one-out); Koren 2009,
"Collaborative filtering with temporal dynamics" (older ratings weigh less).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlab.core import DataError, require, stream
from fedlab.data.interactions import Interactions

HOUR = 3600  # seconds


@dataclass(frozen=True)
class Split:
    """Train, validation and test ratings: fit on train, choose on validation, report test once.

    mean, std: what `standardise` has subtracted from all values and divided them by, so that an
    RMSE times std is in stars.
    """

    train: Interactions
    validation: Interactions
    test: Interactions
    mean: float = 0.0  # subtracted from every value by `standardise`
    std: float = 1.0  # every value was divided by it, so an RMSE times this is in stars


def from_latest(ratings: Interactions) -> Tensor:
    """How many ratings (n,) of the same user come later; 0 for the user's last.

    Those of the same second are ordered by their rows.

    >>> from fedlab.data import load
    >>> from_latest(load().take(torch.arange(4))).tolist()
    [3, 2, 1, 0]
    """
    order = torch.from_numpy(np.lexsort((ratings.times, ratings.users)))
    ends = torch.bincount(ratings.users, minlength=ratings.user_count).cumsum(0)
    later = torch.empty_like(order)
    later[order] = ends[ratings.users[order]] - 1 - torch.arange(len(order))
    return later


def strictly_later(ratings: Interactions) -> Tensor:
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


def recent(ratings: Interactions, recency: float) -> Tensor:
    """Weight (n,) of each rating by recency: (1 + ratings strictly later) ** -recency.

    recency: 0, which weighs all alike, or more, for which there must be times; else
    `ParameterError`, or `DataError`.

    >>> from fedlab.data import load
    >>> recent(load().take(torch.arange(3)), recency=0.0)
    tensor([1., 1., 1.])
    """
    require(recency >= 0, "recency", recency, "choose 0, which weighs all alike, or more, say 1")
    if not recency:  # and so needs no times
        return torch.ones(len(ratings))
    return (1 + strictly_later(ratings).double()).pow(-recency).float()


def _later(interactions: Interactions, seed: int) -> Tensor:
    """How many rows (n,) of the same user come later; in a random order where there are no times.

    The order of a file is none that somebody has lived through: it is never taken for one.
    """
    if "times" in interactions.columns:
        return from_latest(interactions)
    order = torch.randperm(len(interactions), generator=stream(seed, "split"))
    return from_latest(interactions.having(times=order))


def leave_one_out(interactions: Interactions, seed: int = 0) -> Split:
    """Each user's last row for test, the one before for validation, the others for train.

    Where there are no times, these are random rows of each user; seed: of that draw. Raises
    `DataError` for a user with fewer than three rows.

    >>> from fedlab.data import load
    >>> split = leave_one_out(load())
    >>> len(split.train), len(split.validation), len(split.test)
    (98662, 671, 671)
    """
    few = (interactions.user_counts() < 3).nonzero()[:, 0]
    if len(few):
        name = interactions.catalogue.user_ids[int(few[0])]
        raise DataError(
            f"user {name!r} and {len(few) - 1} others have fewer than 3 interactions, and "
            "leave-one-out needs 3; leave such users out with at_least(..., users=3)"
        )
    later, take = _later(interactions, seed), interactions.take
    return Split(take(later > 1), take(later == 1), take(later == 0))


def within_an_hour(split: Split) -> float:
    """The share of test rows that came within an hour of the same user's last train row.

    Where it is large, a method that weighs recent clicks owes much of its figure to such sessions.
    Raises `DataError` without times, and `ParameterError` without a test part.

    >>> from fedlab.data import load
    >>> 0.8 < within_an_hour(leave_one_out(load())) < 1
    True
    """
    require(len(split.test) > 0, "split", 0, "there is no test part; split with leave_one_out")
    last = torch.full((split.train.user_count,), -(1 << 62))
    last.scatter_reduce_(0, split.train.users, split.train.times, "amax")
    return float((split.test.times - last[split.test.users] <= HOUR).double().mean())


def hold_out(train: Interactions, test: Interactions, seed: int = 0) -> Split:
    """A split whose test part is given: the last train row of each user goes to validation.

    A user with a single train row keeps it. Where there are no times it is a random row (seed).

    >>> from fedlab.data import load
    >>> first = leave_one_out(load())
    >>> len(hold_out(first.train, first.test).validation)
    671
    """
    last = (_later(train, seed) == 0) & (train.user_counts()[train.users] > 1)
    return Split(train.take(~last), train.take(last), test)


def split_by_time(
    interactions: Interactions, validation: float = 0.1, test: float = 0.1, seed: int = 0
) -> Split:
    """Each user's latest rows for test, those before them for validation, the others for train.

    Where there are no times, these are random rows of each user; seed: of that draw.

    validation, test: shares of a user's rows, from 0 to below 1 and together below 1, else
    `ParameterError`. They are rounded down, so a user with few rows may have none in a part.

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
    later, take = _later(interactions, seed), interactions.take
    own = interactions.user_counts()[interactions.users].double()
    last = (own * test).long()
    held = last + (own * validation).long()
    return Split(take(later >= held), take((later >= last) & (later < held)), take(later < last))


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
        part.having(values=(part.values - mean) / std)
        for part in (split.train, split.validation, split.test)
    )
    return Split(train, validation, test, mean * split.std + split.mean, std * split.std)
