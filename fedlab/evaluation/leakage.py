"""How a benchmark fools itself: training negatives that avoid the held-out items.

This is here to be shown, not to be used. Drawing negatives outside train *and* validation *and*
test tells the model the answers: of all the items that a user has not met in train, only the
held-out ones are never pushed down.

Letters: N clients, U users, n ratings.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.core import Key, Tree, require
from fedlab.data import Federation, Interactions, Split, clicks, own_rows


@dataclass(frozen=True)
class Leaky(Federation):
    """A federation of train clicks whose negatives avoid the users' held-out items as well.

    `leaky(split, owner)` builds it. every: all ratings of the split. held (n,): true for the
    ratings that are not trained on.
    """

    every: Interactions | None = None
    held: Tensor | None = None

    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree:
        """The columns of `Federation.draw`, with negatives that leak the held-out items."""
        assert self.every is not None
        assert self.held is not None
        owner = self.owner[self.every.users]
        order = (
            owner * self.every.user_count * self.every.item_count + self.every.pairs()
        ).argsort()
        counts = torch.bincount(owner, minlength=len(self))
        client, rows = own_rows(cohort, counts.cumsum(0) - counts, counts)
        rows = order[rows]
        return clicks(
            cohort,
            client,
            self.every.users[rows],
            self.every.items[rows],
            self.every.item_count,
            epochs,
            negatives,
            key,
            train=~self.held[rows],
        )


def leaky(split: Split, owner: Tensor) -> Leaky:
    """The leaky federation of a split; owner (U,) is the client of each user.

    Raises `ParameterError` when the split has no test part.

    >>> from fedlab.data import leave_one_out, load, one_per_user
    >>> split = leave_one_out(load())
    >>> len(leaky(split, one_per_user(split.train)))
    671
    """
    require(
        len(split.test) > 0,
        "split",
        len(split.test),
        "there is nothing to leak without a test part",
    )
    parts = (split.train, split.validation, split.test)
    users, items = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("users", "items")
    )
    every = Interactions(users, items, split.train.catalogue)
    held = torch.arange(sum(map(len, parts))) >= len(split.train)
    return Leaky(split.train, owner, "clicks", every, held)
