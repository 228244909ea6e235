"""New users: people of whom a federation knows nothing until their first ratings arrive.

A method learns from the users it knows, adapts to a newcomer's first ratings (the support), and is
judged on the others (the query).

Letters: U users, I items, k first ratings of a newcomer, n ratings.

Sources: Finn, Abbeel, Levine 2017, "Model-agnostic meta-learning for fast adaptation of deep
networks", section 2.1 (adaptation from k examples); Chen et al. 2018, "Federated meta-learning with
fast convergence and efficient communication", section 3 (support and query of a user).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.core import Score, Tree, require, stream
from fedlab.data import Interactions, of_users
from fedlab.data.episodes import _place
from fedlab.evaluation.metrics import rmse


@dataclass(frozen=True)
class NewUsers:
    """New users beside the users that a federation trains on; both are numbered from 0.

    train: ratings of the known users. given: the first ratings of each new user, in order of
    arrival, the same number for each. query: all later ratings of the new users, the same however
    many were given. left_out: how many users had too few ratings.
    """

    train: Interactions
    given: Interactions
    query: Interactions
    left_out: int

    def first(self, k: int) -> Tree:
        """Columns client, user, item and target (n,) of the first k ratings of each new user."""
        place = _place(torch.ones_like(self.given.users, dtype=torch.bool), self.given.users)
        rows = self.given.take(place < k)
        return {"client": rows.users, "user": rows.users, "item": rows.items, "target": rows.values}

    def centred(self) -> tuple["NewUsers", float]:
        """The same users with the mean of train subtracted from all values, and that mean."""
        mean = float(self.train.values.mean())
        train, given, query = (
            part.having(values=part.values - mean) for part in (self.train, self.given, self.query)
        )
        return NewUsers(train, given, query, self.left_out), mean

    def mean_baseline(self, k: int, strength: float = 5.0) -> Score:
        """A score without a model: the item's mean plus the user's mean offset over k ratings.

        Both are shrunk to 0; give centred values. strength: how many ratings of 0 each of the two
        is imagined to have in addition.
        """
        means, first = item_means(self.train, strength), self.first(k)
        above = torch.zeros(self.query.user_count).index_add_(
            0, first["user"], first["target"] - means[first["item"]]
        )
        return lambda users, items: means[items] + above[users] / (k + strength)

    def error(self, score: Score) -> float:
        """The RMSE of a score on the query."""
        return rmse(score(self.query.users, self.query.items), self.query.values)


def item_means(train: Interactions, strength: float = 5.0) -> Tensor:
    """Mean value (I,) of each item in train, shrunk to 0; give centred values.

    strength: how many ratings of 0 each item is imagined to have in addition.

    >>> from fedlab.data import load
    >>> item_means(load()).shape
    torch.Size([9066])
    """
    return _shrunk(train.items, train.values, train.item_counts(), strength)


def user_means(train: Interactions, strength: float = 5.0) -> Tensor:
    """Mean value (U,) of each user in train, shrunk to 0; give centred values.

    strength: how many ratings of 0 each user is imagined to have in addition.

    >>> from fedlab.data import load
    >>> user_means(load()).shape
    torch.Size([671])
    """
    return _shrunk(train.users, train.values, train.user_counts(), strength)


def _shrunk(rows: Tensor, values: Tensor, counts: Tensor, strength: float) -> Tensor:
    """Mean of the values (n,) of each row, shrunk to 0; rows (n,): whose they are."""
    return torch.zeros(len(counts)).index_add_(0, rows, values) / (counts + strength)


def new_users(
    ratings: Interactions, fold: int, folds: int = 5, support: int = 20, seed: int = 0
) -> NewUsers:
    """Take one of `folds` random parts of the users as new users.

    Their ratings arrive in random order. fold: the part, 0 to folds - 1. support: ratings that are
    given of each new user; those who have no more than that are left out. Raises `ParameterError`
    for values out of range.

    >>> from fedlab.data import load
    >>> found = new_users(load().take(torch.arange(1000)), fold=0, folds=2, support=5)
    >>> set(torch.bincount(found.given.users).tolist())
    {5}
    """
    require(
        2 <= folds <= ratings.user_count, "folds", folds, f"choose from 2 to {ratings.user_count}"
    )
    require(0 <= fold < folds, "fold", fold, f"choose from 0 to {folds - 1}")
    require(support >= 1, "support", support, "choose 1 rating or more")
    generator = stream(seed, "new users")
    part = torch.randperm(ratings.user_count, generator=generator) % folds
    order = torch.rand(len(ratings), generator=generator).argsort()
    shuffled = ratings.take(order[ratings.users[order].argsort(stable=True)])
    count = torch.bincount(ratings.users, minlength=ratings.user_count)
    enough = count > support
    mine = of_users(shuffled, (part == fold) & enough)
    place = _place(torch.ones_like(mine.users, dtype=torch.bool), mine.users)
    others, short = (part != fold) & (count > 0), (part == fold) & (count > 0) & ~enough
    return NewUsers(
        of_users(shuffled, others),
        mine.take(place < support),
        mine.take(place >= support),
        int(short.sum()),
    )
