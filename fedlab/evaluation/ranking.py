"""Held-out evaluation by ranking: leave-one-out against sampled or against all items, cold items.

Letters: U users, I items, M candidates of a user, k length of the list, n ratings.

Sources: He et al. 2017, "Neural collaborative filtering", section 4.1 (sampled candidates);
Krichene, Rendle 2020, "On sampled metrics for item recommendation" (the full ranking).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.core import Score, require, stream
from fedlab.data import Ratings, Split
from fedlab.evaluation.metrics import at_k, rank


@dataclass(frozen=True)
class Candidates:
    """Each user's held-out item and the items that it is ranked against.

    users (U,). positives (U,): the held-out items. negatives (U, M): items that the user has not
    rated in train, validation or test.
    """

    users: Tensor
    positives: Tensor
    negatives: Tensor

    def ranks(self, score: Score) -> Tensor:
        """Rank (U,) of the held-out item among itself and the negatives, where 1 is the best."""
        items = torch.cat([self.positives[:, None], self.negatives], 1)
        scores = score(self.users[:, None].expand_as(items), items)
        return rank(scores[:, 0], scores[:, 1:])


def seen(parts: Sequence[Ratings], users: Tensor) -> Tensor:
    """A mask (len(users), I), true where the user rated the item in one of the `parts`.

    >>> from fedlab.data import load
    >>> train = load()
    >>> int(seen([train], torch.tensor([0]))[0].sum()) == int((train.users == 0).sum())
    True
    """
    mask = torch.zeros(len(users), parts[0].item_count, dtype=torch.bool)
    at = torch.full((parts[0].user_count,), -1)
    at[users] = torch.arange(len(users))
    for part in parts:
        rows = at[part.users]
        mask[rows[rows >= 0], part.items[rows >= 0]] = True
    return mask


def candidates(split: Split, part: str = "test", against: int = 99, seed: int = 0) -> Candidates:
    """Draw `against` different items for each user among those that the user never rated.

    Items of train, validation and test all count as rated. part: 'validation' or 'test', with one
    held-out item a user, as `leave_one_out` makes them. The draw serves the evaluation only;
    training never sees it. Raises `ParameterError` for another part and when a user has fewer than
    `against` unseen items.

    >>> from dataclasses import replace
    >>> from fedlab.data import leave_one_out, load
    >>> split = leave_one_out(load())
    >>> few = replace(split, test=split.test.take(torch.arange(4)))  # four of the users
    >>> candidates(few).negatives.shape
    torch.Size([4, 99])
    """
    held = _held(split, part)
    unseen = ~seen((split.train, split.validation, split.test), held.users)
    few = int(unseen.sum(1).min())
    require(
        1 <= against <= few,
        "against",
        against,
        f"choose from 1 to {few}, the unseen items of the busiest user",
    )
    draw = torch.rand(unseen.shape, generator=stream(seed, f"candidates {part}"))
    negatives = draw.where(unseen, -1.0).topk(against, dim=1).indices
    return Candidates(held.users, held.items, negatives)


def full_ranks(split: Split, score: Score, part: str = "test", chunk: int = 64) -> Tensor:
    """Rank (U,) of the held-out item among all items that the user has not met before.

    Items of earlier parts are left out: those of train, and for the test those of validation too.
    part: as in `candidates`. chunk: users that are scored at a time.

    >>> from dataclasses import replace
    >>> from fedlab.data import leave_one_out, load
    >>> split = leave_one_out(load())
    >>> few = replace(split, test=split.test.take(torch.arange(4)))  # four of the users
    >>> full_ranks(few, popularity(split.train)).shape
    torch.Size([4])
    """
    held = _held(split, part)
    earlier = (split.train,) if part == "validation" else (split.train, split.validation)
    ranks = []
    for here in torch.arange(len(held)).split(chunk):
        users, positives = held.users[here], held.items[here]
        items = torch.arange(held.item_count).expand(len(here), -1)
        scores = score(users[:, None].expand_as(items), items)
        positive = scores.gather(1, positives[:, None])
        others = scores.masked_fill(seen(earlier, users).to(scores.device), -torch.inf)
        others = others.scatter(1, positives[:, None], -torch.inf)
        ranks.append(rank(positive[:, 0], others))
    return torch.cat(ranks)


def hide_items(ratings: Ratings, share: float = 0.2, seed: int = 0) -> tuple[Ratings, Tensor]:
    """Make a random share of the items cold: (ratings of the others, a mask (I,) of the cold).

    share: above 0 and below 1, else `ParameterError`.

    >>> from fedlab.data import load
    >>> int(hide_items(load(), share=0.2)[1].sum())
    1813
    """
    require(0 < share < 1, "share", share, "choose a share between 0 and 1, say 0.2")
    cold = torch.zeros(ratings.item_count, dtype=torch.bool)
    order = torch.randperm(ratings.item_count, generator=stream(seed, "cold items"))
    cold[order[: max(1, round(share * ratings.item_count))]] = True
    return ratings.take(~cold[ratings.items]), cold


def cold_ranking(score: Score, ratings: Ratings, cold: Tensor, k: int = 10) -> dict[str, float]:
    """AUC and NDCG@k of each user's own cold items among all cold items, averaged over users.

    ratings: all ratings. cold (I,): true for the hidden items. Only users who have rated some of
    the cold items, and not all, count; `ParameterError` when there is none. A tie counts half in
    the AUC and against the model in the NDCG.

    >>> from fedlab.data import load
    >>> train = load()
    >>> cold = torch.arange(train.item_count) < 20
    >>> sorted(cold_ranking(popularity(train), train.take(train.users < 50), cold))
    ['auc', 'ndcg@10']
    """
    items = cold.nonzero()[:, 0]
    mine = seen([ratings], torch.arange(ratings.user_count))[:, items]  # (U, M)
    users = (mine.any(1) & ~mine.all(1)).nonzero()[:, 0]
    require(
        len(users) > 0,
        "cold",
        len(items),
        "nobody rated some of the cold items and not all; hide more",
    )
    gains = 1 / torch.log2(torch.arange(k) + 2.0)
    auc, ndcg = [], []
    for user in users.tolist():
        scores = score(torch.full_like(items, user), items)
        good, bad = scores[mine[user]], scores[~mine[user]].sort().values
        below, within = (torch.searchsorted(bad, good, right=right) for right in (False, True))
        auc.append(float((below + within).float().mean()) / 2 / len(bad))
        better = len(bad) - below  # the others that rank before it, ties included
        places = better + good.argsort(descending=True).argsort()
        ndcg.append(float(gains[places[places < k]].sum() / gains[: len(good)].sum()))
    return {"auc": sum(auc) / len(auc), f"ndcg@{k}": sum(ndcg) / len(ndcg)}


def popularity(train: Ratings) -> Score:
    """Score every item by its number of train ratings: the baseline that knows nothing of the user.

    >>> from fedlab.data import load
    >>> popularity(load())(torch.tensor([0]), torch.tensor([0]))  # Toy Story
    tensor([247.])
    """
    counts = train.item_counts()
    return lambda users, items: counts[items]


def ranking(score: Score, against: Candidates, k: int = 10) -> dict[str, float]:
    """HR@k and NDCG@k of a score against drawn candidates.

    >>> everyone = torch.zeros(2, dtype=torch.int64)
    >>> against = Candidates(everyone, torch.tensor([3, 1]), torch.tensor([[0, 1], [2, 3]]))
    >>> ranking(lambda users, items: items.float(), against, k=1)
    {'hr@1': 0.5, 'ndcg@1': 0.5}
    """
    return at_k(against.ranks(score), k)


def _held(split: Split, part: str) -> Ratings:
    """The held-out ratings of a part, after checking that there is one for each user."""
    require(part in ("validation", "test"), "part", part, "choose validation or test")
    held: Ratings = getattr(split, part)
    require(
        0 < len(held) == len(held.users.unique()),
        "part",
        part,
        "ranking needs one held-out item a user; split with leave_one_out",
    )
    return held
