"""Held-out evaluation by ranking: leave-one-out against sampled or against all items, cold items.

Letters: U users, B users of a block, I items, M candidates of a user, k length of the list, n
ratings.

Sources: He et al. 2017, "Neural collaborative filtering", section 4.1 (sampled candidates);
Krichene, Rendle 2020, "On sampled metrics for item recommendation" (the full ranking).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.core import Score, require, stream
from fedlab.data import Interactions, Split
from fedlab.evaluation.metrics import at_k, rank
from fedlab.models import ByUser, Factored

PAIRS = 1 << 15  # scored at a time: what models keep of a pair then stays in a core's cache
BLOCK = 1 << 13  # pairs of vectors that are looked up at a time, for the same reason
DRAWS = 1 << 24  # numbers that are drawn at a time
MANY = 1 << 31  # pairs of user and item, above which no number is drawn for each
PRODUCTS = 1 << 19  # numbers of a product at a time
TOGETHER = 16  # users of a product at least: or a large table of items is read for each one anew


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
        # a product's pairs have the same bits however they are asked for; others may not
        block = max(1, BLOCK // items.shape[1]) if isinstance(score, Factored) else len(items)
        ranks = []
        for users, what in zip(self.users.split(block), items.split(block), strict=True):
            scores = score(users[:, None].expand_as(what), what)
            ranks.append(rank(scores[:, 0], scores[:, 1:]))
        return torch.cat(ranks)


def seen(parts: Sequence[Interactions], users: Tensor) -> Tensor:
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
    parts, count = (split.train, split.validation, split.test), held.item_count
    met = torch.cat([each.pairs() for each in parts]).unique()
    few = count - int(torch.bincount(met // count, minlength=held.user_count)[held.users].max())
    require(
        1 <= against <= few,
        "against",
        against,
        f"choose from 1 to {few}, the unseen items of the busiest user",
    )
    draw, negatives = stream(seed, f"candidates {part}"), []
    if len(held) * count > MANY and max(2 * against, count // 2) <= few:
        for users in held.users.split(max(1, DRAWS // (8 * against))):
            negatives.append(_sifted(users, met, count, against, draw))
        return Candidates(held.users, held.items, torch.cat(negatives))
    for users in held.users.split(max(1, DRAWS // count)):
        luck = torch.rand(len(users), count, generator=draw)
        luck.masked_fill_(seen(parts, users), -1.0)
        negatives.append(luck.topk(against, dim=1).indices)
    return Candidates(held.users, held.items, torch.cat(negatives))


def _sifted(users: Tensor, met: Tensor, count: int, against: int, draw: torch.Generator) -> Tensor:
    """`against` different items (B, against) that each user has not met, all equally likely.

    Items are drawn until there are enough of them, without those met and those drawn before: that
    costs nothing for the rest of a large catalogue. met (n,): user * count + item, growing.
    """
    drawn, fine = users.new_empty(len(users), 0), torch.zeros(len(users), 0, dtype=torch.bool)
    while drawn.shape[1] == 0 or int(fine.sum(1).min()) < against:
        more = torch.randint(count, (len(users), 2 * against), generator=draw)
        drawn = torch.cat([drawn, more], 1)
        items, order = drawn.sort(dim=1, stable=True)
        again = torch.zeros_like(drawn, dtype=torch.bool)
        again.scatter_(1, order[:, 1:], items[:, 1:] == items[:, :-1])
        pairs = users[:, None] * count + drawn
        known = met[torch.searchsorted(met, pairs).clamp(max=len(met) - 1)] == pairs
        fine = ~(again | known)
    return drawn[fine & (fine.cumsum(1) <= against)].view(len(users), against)


@dataclass(frozen=True)
class Unmet:
    """Each user's held-out item and all items that the user has met before.

    It is ranked against the others. users (U,). positives (U,): the held-out items. items: I. met
    (n,): place of the user * I + item, growing, the held-out item included.
    """

    users: Tensor
    positives: Tensor
    items: int
    met: Tensor

    @property
    def others(self) -> Tensor:
        """How many items (U,) each held-out one is ranked against."""
        ends = torch.arange(1, len(self.users) + 1) * self.items
        met = torch.searchsorted(self.met, ends).diff(prepend=torch.zeros(1, dtype=torch.int64))
        return self.items - met

    def ranks(self, score: Score) -> Tensor:
        """Rank (U,) of the held-out item among itself and the unmet items, where 1 is the best."""
        places = torch.arange(len(self.users))
        if not isinstance(score, Factored | ByUser):
            return self._by_pairs(score, places)
        fit = PRODUCTS // self.items
        if isinstance(score, ByUser):
            blocks = places.split(max(1, fit))
            return torch.cat([self._ranked(score.rows(self.users[b]), b) for b in blocks])
        blocks = places.split(max(TOGETHER, fit))
        return torch.cat([self._by_product(score, here) for here in blocks])

    def _by_pairs(self, score: Score, places: Tensor) -> Tensor:
        """The ranks of the users at these places, growing one by one, every pair scored."""
        ranks = []
        for here in places.split(max(1, PAIRS // self.items)):
            items = torch.arange(self.items).expand(len(here), -1)
            scores = score(self.users[here, None].expand_as(items), items).cpu()
            ranks.append(self._ranked(scores, here))
        return torch.cat(ranks)

    def _ranked(self, scores: Tensor, here: Tensor) -> Tensor:
        """The ranks by the scores (B, I) of the users at these places (B,)."""
        positive = scores.gather(1, self.positives[here, None])
        others = scores.flatten().index_fill(0, self._met(here), -torch.inf)
        return rank(positive[:, 0], others.view(scores.shape))

    def _by_product(self, score: Factored, here: Tensor) -> Tensor:
        """The same from one product: what comes too close to call is scored as a pair.

        Counts are sums of 0 and 1 in place of the scores: that is 4 times faster than of truths,
        and exact below 16 million items.
        """
        users = self.users[here]
        scores, slack = score.every(users)
        if not bool(slack.isfinite().all()):
            return self._by_pairs(score, here)
        positive = score(users, self.positives[here])
        low, high = (positive - slack)[:, None], (positive + slack)[:, None]
        scores.view(-1).index_fill_(0, self._met(here), -torch.inf)
        counts = torch.empty_like(scores)
        below, above = (
            compare(scores, bound, out=counts).sum(1)
            for compare, bound in ((torch.lt, low), (torch.gt, high))
        )
        ranks = 1 + self.items - below.long()
        (open_,) = (below + above < self.items).nonzero(as_tuple=True)
        found = scores[open_]
        row, item = (~((found < low[open_]) | (found > high[open_]))).nonzero(as_tuple=True)
        gap, row = found[row, item] - positive[open_[row]], open_[row]
        close = score.slack(users[row], item)
        ranks -= torch.bincount(row[gap < -close], minlength=len(here))
        left = (gap.abs() <= close).nonzero()[:, 0]
        for some in left.split(PAIRS):  # as each pair takes two vectors
            behind = score(users[row[some]], item[some]) < positive[row[some]]
            ranks -= torch.bincount(row[some][behind], minlength=len(here))
        return ranks

    def _met(self, here: Tensor) -> Tensor:
        """The met items of the users at the places `here` (B,), B * I being the places counted."""
        first = int(here[0]) * self.items
        ends = torch.tensor([first, first + len(here) * self.items])
        begin, end = torch.searchsorted(self.met, ends).tolist()
        return self.met[begin:end] - first


def unmet(split: Split, part: str = "test") -> Unmet:
    """What each user's held-out item is ranked against in the full ranking.

    Items of earlier parts are left out: those of train, and for the test those of validation too.
    part: as in `candidates`.

    >>> from fedlab.data import leave_one_out, load
    >>> everything = unmet(leave_one_out(load()))
    >>> everything.ranks(popularity(load())).shape
    torch.Size([671])
    """
    held = _held(split, part)
    earlier = (split.train,) if part == "validation" else (split.train, split.validation)
    at = torch.full((held.user_count,), -1)
    at[held.users] = torch.arange(len(held))
    met = torch.cat([at[each.users] * held.item_count + each.items for each in (*earlier, held)])
    return Unmet(held.users, held.items, held.item_count, met[met >= 0].sort().values)


def full_ranks(split: Split, score: Score, part: str = "test") -> Tensor:
    """Rank (U,) of the held-out item among all items that the user has not met before.

    part: as in `candidates`.

    >>> from dataclasses import replace
    >>> from fedlab.data import leave_one_out, load
    >>> split = leave_one_out(load())
    >>> few = replace(split, test=split.test.take(torch.arange(4)))  # four of the users
    >>> full_ranks(few, popularity(split.train)).shape
    torch.Size([4])
    """
    return unmet(split, part).ranks(score)


def hide_items(
    ratings: Interactions, share: float = 0.2, seed: int = 0
) -> tuple[Interactions, Tensor]:
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


def cold_ranking(
    score: Score, ratings: Interactions, cold: Tensor, k: int = 10
) -> dict[str, float]:
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
    found = []
    for here in users.split(max(1, PAIRS // len(items))):
        what = items.expand(len(here), -1)
        found.append(_cold_figures(score(here[:, None].expand_as(what), what), mine[here], k))
    auc, ndcg = torch.cat(found, 1).mean(1).tolist()
    return {"auc": auc, f"ndcg@{k}": ndcg}


def _cold_figures(scores: Tensor, mine: Tensor, k: int) -> Tensor:
    """AUC and NDCG@k (2, B) of scores (B, M), where `mine` (B, M) are the user's own items."""
    count = mine.sum(1, keepdim=True)
    good = scores.where(mine, -torch.inf).topk(int(count.max()), 1).values
    bad = scores.masked_fill(mine, torch.inf).sort(1).values
    others, place = mine.shape[1] - count, torch.arange(good.shape[1])
    below, within = (torch.searchsorted(bad, good, right=right) for right in (False, True))
    halves = torch.where(place < count, below + within.minimum(others), 0).sum(1, keepdim=True)
    auc = halves.double() / 2 / count / others
    gains = 1 / torch.log2(torch.arange(k) + 2.0)
    places = others - below + place  # behind the others that rank before it, ties included
    hit = (place < count) & (places < k)
    won = torch.where(hit, gains[places.clamp(max=k - 1)], 0.0).sum(1)
    best = gains.cumsum(0)[count[:, 0].clamp(max=k) - 1]
    return torch.stack([auc[:, 0], (won / best).double()])


def popularity(train: Interactions) -> Score:
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


def _held(split: Split, part: str) -> Interactions:
    """The held-out ratings of a part, after checking that there is one for each user."""
    require(part in ("validation", "test"), "part", part, "choose validation or test")
    held: Interactions = getattr(split, part)
    require(
        0 < len(held) == len(held.users.unique()),
        "part",
        part,
        "ranking needs one held-out item a user; split with leave_one_out",
    )
    return held
