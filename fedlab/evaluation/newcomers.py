"""Tasks to learn to learn from: a client's examples cut in support and query; new users.

Sines and lines.

A column `query` says of each example whether a client learns from it (0, support) or is judged by
it (1).

Letters: N clients, C in a cohort, n examples, F inputs. Sources: Finn, Abbeel, Levine 2017,
"Model-agnostic meta-learning for fast adaptation of deep networks", section 5.1 (sines); Chen et
al. 2018, "Federated meta-learning with fast convergence and efficient communication", section 3.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlab.core import Score, Tree, require, stream
from fedlab.data import Ratings
from fedlab.data.episodes import _place
from fedlab.evaluation.metrics import rmse


@dataclass(frozen=True)
class NewUsers:
    """Users of whom a federation knows nothing yet, beside those it trains on, both counted from 0.

    train: ratings of the users that it knows. given: the first ratings of each new user, in the
    order in which they arrive, `support` each. query: all their others, the same whatever was
    given. left_out: users with none left.
    """

    train: Ratings
    given: Ratings
    query: Ratings
    left_out: int

    def first(self, k: int) -> Tree:
        """Columns client, user, item, target (n,) of the first k ratings of each new user."""
        place = _place(torch.ones_like(self.given.users, dtype=torch.bool), self.given.users)
        rows = self.given.take(place < k)
        return {"client": rows.users, "user": rows.users, "item": rows.items, "target": rows.values}

    def centred(self) -> tuple["NewUsers", float]:
        """(the same with values less the mean of train, that mean)."""
        mean = float(self.train.values.mean())
        train, given, query = (replace(part, values=part.values - mean)
                               for part in (self.train, self.given, self.query))
        return NewUsers(train, given, query, self.left_out), mean

    def mean_baseline(self, k: int, strength: float = 5.0) -> Score:
        """What counting says of centred values.

        A film's mean and, of k ratings, the user's offset, both shrunk.
        """
        means, first = item_means(self.train, strength), self.first(k)
        above = torch.zeros(self.query.user_count)
        above.index_add_(0, first["user"], first["target"] - means[first["item"]])
        return lambda users, items: means[items] + above[users] / (k + strength)

    def error(self, score: Score) -> float:
        """RMSE of predictions of the query."""
        return rmse(score(self.query.users, self.query.items), self.query.values)


def item_means(train: Ratings, strength: float = 5.0) -> Tensor:
    """(I,) each item's mean value, shrunk to 0 as if it had `strength` ratings of 0 more.

    Give centred values.
    """
    total = torch.zeros(train.item_count).index_add_(0, train.items, train.values)
    return total / (train.item_counts() + strength)


def new_users(ratings: Ratings, fold: int, folds: int = 5, support: int = 20,
              seed: int = 0) -> NewUsers:
    """The users of one of `folds` parts, drawn at random, as new ones.

    Their ratings arrive in random order.
    """
    require(2 <= folds <= ratings.user_count, "folds", folds,
            f"choose from 2 to {ratings.user_count}")
    require(0 <= fold < folds, "fold", fold, f"choose from 0 to {folds - 1}")
    require(support >= 1, "support", support, "choose 1 rating or more")
    generator = stream(seed, "new users")
    part = torch.randperm(ratings.user_count, generator=generator) % folds
    order = torch.rand(len(ratings), generator=generator).argsort()
    shuffled = ratings.take(order[ratings.users[order].argsort(stable=True)])
    count = torch.bincount(ratings.users, minlength=ratings.user_count)
    enough = count > support
    mine = _of(shuffled, (part == fold) & enough)
    place = _place(torch.ones_like(mine.users, dtype=torch.bool), mine.users)
    others, short = (part != fold) & (count > 0), (part == fold) & (count > 0) & ~enough
    return NewUsers(_of(shuffled, others), mine.take(place < support), mine.take(place >= support),
                    int(short.sum()))


def _of(ratings: Ratings, chosen: Tensor) -> Ratings:
    """The ratings of some users, chosen (U,), who are counted anew."""
    rows, at = chosen[ratings.users], chosen.cumsum(0) - 1
    ids = tuple(name for name, mine in zip(ratings.catalogue.user_ids, chosen.tolist(), strict=True)
                if mine)
    return Ratings(at[ratings.users[rows]], ratings.items[rows], ratings.values[rows],
                   ratings.times[rows], replace(ratings.catalogue, user_ids=ids))
