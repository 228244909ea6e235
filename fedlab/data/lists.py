"""Clicks as lists: each example is a click and, beside it, unseen items of the same user.

Letters: N clients, C in a cohort, n examples, K items of a list.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.core import Key, Tree, require
from fedlab.data.federation import Federation, Source, federation_of


@dataclass(frozen=True)
class Lists:
    """What losses of lists train on, see `fedlab.models.losses`.

    data: a `Federation` of clicks, or a source made of one whose examples are clicks and drawn
    items. loss: 'bpr' or 'sampled softmax', whose lists are a click and `negatives` drawn items; or
    'softmax', whose list is all items and is not written down. Raises `ParameterError` for other
    data.
    """

    data: Source
    loss: str

    def __post_init__(self) -> None:
        """Check the data."""
        fix = "it makes examples of its own; give clicks beside which unseen items are drawn"
        drawn = federation_of(self.data) and getattr(self.data, "draws_negatives", True)
        require(bool(drawn), "data", type(self.data).__name__, f"{self.loss}: {fix}")
        fix = "ratings come without unseen items; choose clicks"
        require(self.task == "clicks", "task", self.task, f"{self.loss}: {fix}")

    @property
    def task(self) -> str:
        """'clicks'."""
        return self.data.task

    @property
    def counts(self) -> Tensor:
        """(N,) clicks of each client."""
        return self.data.counts

    @property
    def draws_negatives(self) -> bool:
        """Whether items are drawn."""
        return self.loss != "softmax"

    def __len__(self) -> int:
        return len(self.data)

    def draw(self, cohort: Tensor, epochs: int, negatives: int, key: Key) -> Tree:
        """The columns of the clicks; user (n, 1), item (n, K), and target (n,), the click's place.

        The click stands first in a drawn list. Of all items, it is the one whose number is the
        target, and there is no column item. Raises `ParameterError` for drawn lists without a drawn
        item.
        """
        columns = self.data.draw(cohort, epochs, 0, key)
        users, items = columns["user"], columns["item"]
        own = columns | {"user": users[:, None], "target": items}
        if not self.draws_negatives:
            return {name: column for name, column in own.items() if name != "item"}
        fix = f"{self.loss} sets a click against drawn items; draw 1 or more"
        require(negatives > 0, "negatives", negatives, fix)
        counts = torch.bincount(columns["client"], minlength=len(cohort))
        luck = key.of("negatives").runs(cohort, counts * negatives)
        drawn = self._clicks.unseen(users.repeat_interleave(negatives), luck)
        lists = torch.cat([items[:, None], drawn.view(-1, negatives)], 1)
        return own | {"item": lists, "target": torch.zeros_like(items)}

    @property
    def _clicks(self) -> Federation:
        found = federation_of(self.data)
        assert found is not None
        return found
