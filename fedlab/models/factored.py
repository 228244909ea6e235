"""Scores of all items of a user at once: products of vectors, and what a user's own clicks tell.

A matrix product scores all items of many users a hundred times faster than their pairs one by one,
but adds up in another order and so rounds differently. It also says how far off it may be: whoever
compares scores asks again, pair by pair, only where that could matter.

What a user's own clicks tell of the items comes as a row of scores: there the pairs are read.

Letters: U users, I items, D dimensions, B users of a block, n pairs.

Source: Higham 2002, "Accuracy and stability of numerical algorithms", eq. 3.5 (the error of an
inner product, added up in any order).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedlab.core import Score, arranged

NUMBERS = 1 << 20  # scores that are worked out at a time


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Factored:
    """A Score that factorises: p_u . q_i + beta_i, for all pairs but those set apart.

    users (U, D), items (I, D), bias (I,): the factors, on the CPU. pairs: the score of any pairs.
    apart: gives the pairs (n,), u * I + i and growing, whose score is not the product; it is
    asked when all items are scored.

    >>> import torch
    >>> score = factored(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    >>> score(torch.tensor([0]), torch.tensor([1]))
    tensor([2.])
    >>> score.every(torch.tensor([0]))[0]
    tensor([[11.,  2.]])
    """

    users: Tensor
    items: Tensor
    bias: Tensor
    pairs: Score
    apart: Callable[[], Tensor] = _none

    def __call__(self, users: Tensor, items: Tensor) -> Tensor:
        """The scores of pairs, as any Score gives them."""
        return self.pairs(users, items)

    def every(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, I) of all items for users (B,), and how far (B,) they may be from `pairs`.

        That is no number, or infinite, where factors are not finite.
        """
        rows = arranged(self.users, users)
        scores = torch.addmm(self.bias, rows, self.items.T)
        place, item = self._apart(users)
        if len(item):
            scores[place, item] = self.pairs(users[place], item)
        longest, most = self._reach
        size = torch.linalg.vector_norm(rows, dim=1) * longest + most
        return scores, self._share * size + 1e-35

    def slack(self, users: Tensor, items: Tensor) -> Tensor:
        """How far (n,) the scores of these pairs in `every` may be from `pairs`: less than it says.

        That is what tells items apart whose vectors are short beside the longest one.
        """
        of_users, of_items = self._lengths
        return self._share * (of_users[users] * of_items[items] + self.bias[items].abs()) + 1e-35

    @cached_property
    def _lengths(self) -> tuple[Tensor, Tensor]:
        """The lengths (U,) and (I,) of the vectors, or what is more where squares would be 0."""
        both = (torch.linalg.vector_norm(each, dim=1) for each in (self.users, self.items))
        of_users, of_items = (each.clamp(min=1e-18) for each in both)
        return of_users, of_items

    @property
    def _share(self) -> float:
        """D + 1 roundings by half an eps on both sides; doubled, for those of the bound itself."""
        return 2 * (self.items.shape[1] + 2) * torch.finfo(self.items.dtype).eps

    @cached_property
    def _reach(self) -> tuple[Tensor, Tensor]:
        """The length of the longest vector of an item, and the largest bias."""
        return torch.linalg.vector_norm(self.items, dim=1).max(), self.bias.abs().max()

    @cached_property
    def _other(self) -> Tensor:
        return self.apart()

    def _apart(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs set apart of these users: (position among the users (n,), item (n,))."""
        width = len(self.items)
        begin, end = (torch.searchsorted(self._other, u * width) for u in (users, users + 1))
        place = torch.arange(len(users)).repeat_interleave(end - begin)
        count = (end - begin).cumsum(0)
        row = torch.arange(len(place)) + (end - count)[place]
        return place, self._other[row] % width


def factored(users: Tensor, items: Tensor, bias: Tensor | None = None) -> Factored:
    """The Score p_u . q_i + beta_i of users (U, D), items (I, D) and bias (I,), 0 by default.

    A pair has the same bits however it is asked for.
    """
    beta = items.new_zeros(len(items)) if bias is None else bias

    def pairs(who: Tensor, what: Tensor) -> Tensor:
        if who.dim() and who.stride(-1) == 0:  # one user for a row of items, looked up once
            who = who[..., :1]
        return (arranged(users, who) * arranged(items, what)).sum(-1) + arranged(beta, what)

    return Factored(users, items, beta, pairs)


@dataclass(frozen=True)
class ByUser:
    """A Score that works out all items of a user together, whichever of them is asked for.

    rows: gives the scores (B, I) of all items for users (B,), each user's with the same bits
    whoever else is asked for. items: I.

    >>> import torch
    >>> score = ByUser(lambda users: users[:, None] * torch.tensor([1.0, 10.0]), 2)
    >>> score(torch.tensor([[2, 3]]), torch.tensor([[1, 0]]))
    tensor([[20.,  3.]])
    """

    rows: Callable[[Tensor], Tensor]
    items: int

    def __call__(self, users: Tensor, items: Tensor) -> Tensor:
        """The scores of pairs, as any Score gives them."""
        who, place, counts = users.flatten().unique(return_inverse=True, return_counts=True)
        order, asked, scores = place.argsort(stable=True), items.flatten(), torch.empty(len(place))
        each, done = max(1, NUMBERS // self.items), 0
        for first in range(0, len(who), each):
            here = slice(first, first + each)
            own = order[done : done + int(counts[here].sum())]
            scores[own] = self.rows(who[here])[place[own] - first, asked[own]]
            done += len(own)
        return scores.view(users.shape)
