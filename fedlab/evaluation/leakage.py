"""How a benchmark fools you: training negatives that avoid the held-out items.

To be shown, never to be used.

Whoever draws negatives outside train *and* validation *and* test tells the model which items are
the answer: of all the films a user has not met, only the held-out ones are never pushed down.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.core import Tree, require
from fedlab.data import Federation, Ratings, Split, clicks, own_rows


@dataclass(frozen=True)
class Leaky(Federation):
    """A federation of the users' train clicks whose negatives avoid the held-out items as well.

    Build it by `leaky(split, owner)`. every: all ratings, `held` (n,) true for those that are not
    trained on.
    """

    every: Ratings | None = None
    held: Tensor | None = None

    def draw(self, cohort: Tensor, epochs: int, negatives: int, generator: torch.Generator) -> Tree:
        """As `Federation.draw`, with the leak."""
        assert self.every is not None
        assert self.held is not None
        owner = self.owner[self.every.users]
        order = (owner * self.every.user_count * self.every.item_count
                 + self.every.pairs()).argsort()
        counts = torch.bincount(owner, minlength=len(self))
        client, rows = own_rows(cohort, counts.cumsum(0) - counts, counts)
        rows = order[rows]
        return clicks(client, self.every.users[rows], self.every.items[rows], self.every.item_count,
                      epochs, negatives, generator, train=~self.held[rows])


def leaky(split: Split, owner: Tensor) -> Leaky:
    """The leaky federation of a split."""
    require(len(split.test) > 0, "split", len(split.test),
            "there is nothing to leak without a test part")
    parts = (split.train, split.validation, split.test)
    columns = {name: torch.cat([getattr(part, name) for part in parts])
               for name in ("users", "items", "values", "times")}
    held = torch.arange(sum(map(len, parts))) >= len(split.train)
    return Leaky(split.train, owner, "clicks", Ratings(**columns, catalogue=split.train.catalogue),
                 held)
