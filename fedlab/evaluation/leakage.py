"""How a benchmark fools itself: training negatives that avoid the held-out items.

Drawing negatives outside train *and* validation *and* test tells the model the answers: of all the
items that a user has not met in train, only the held-out ones are never pushed down. `leaky` is
here to be shown, not to be used. `leak_check` looks at any negatives and says whether they do so.

Letters: N clients, U users, I items, n ratings or draws, M candidates of a user.

Sources: Clopper, Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of
the binomial" (the exact interval); Hoeffding 1956, "On the distribution of the number of successes
in independent trials", theorem 4 (chances that differ from user to user make far counts rarer than
their mean would, so the binomial of the mean bounds the tail).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fedlab.core import DataError, Key, Tree, require
from fedlab.data import Federation, Interactions, Source, Split, clicks, own_rows
from fedlab.evaluation.ranking import Candidates

Pairs = tuple[Tensor, Tensor]  # users (n,), items (n,)
DOUBT = 1e-3  # of calling clean negatives leaky, at most
CONFIDENCE = 0.95
TOP = 10
BLOCK = 256  # users whose candidates are drawn at once


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


@dataclass(frozen=True)
class Avoidance:
    """How often some items were drawn as negatives, beside how often chance would draw them.

    what: the items in words. users (U,): who has such items; drawn (U,), expected (U,): how often
    they were drawn as negatives of that user, and how often they would be if the user's negatives
    were drawn by chance. draws: all negatives of these users.
    """

    what: str
    users: Tensor
    drawn: Tensor
    expected: Tensor
    draws: int

    @property
    def ratio(self) -> float:
        """How often they were drawn, as a share of what chance gives; 0 is never, 1 by chance."""
        return int(self.drawn.sum()) / float(self.expected.sum())

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95% interval of `ratio`, as of draws with one chance each."""
        from scipy.stats import binomtest  # noqa: PLC0415 - takes half a second

        found = binomtest(int(self.drawn.sum()), self.draws).proportion_ci(CONFIDENCE)
        mean = float(self.expected.sum()) / self.draws
        return float(found.low) / mean, float(found.high) / mean

    @property
    def p_value(self) -> float:
        """The chance that so few draws, or fewer, come about without avoidance, at most."""
        return self._at_most(int(self.drawn.sum()))

    @property
    def tells(self) -> bool:
        """Whether there are draws enough for avoidance to be seen, if there were any."""
        return self._at_most(0) < DOUBT

    @property
    def avoided(self) -> bool:
        """Whether the items are drawn so seldom that it is no chance."""
        return self.p_value < DOUBT

    def _at_most(self, count: int) -> float:
        from scipy.stats import binom  # noqa: PLC0415 - takes half a second

        mean = float(self.expected.sum())
        # nearer to the mean the binomial bounds nothing, and nothing is to be told
        return float(binom.cdf(count, self.draws, mean / self.draws)) if count <= mean - 1 else 1.0

    def __str__(self) -> str:
        """The counts in a sentence."""
        low, high = self.interval
        few = "p < 1e-300" if self.p_value < 1e-300 else f"p = {self.p_value:.2g}"
        return (
            f"{self.what} were drawn as negatives {int(self.drawn.sum()):,} times, where chance "
            f"gives {float(self.expected.sum()):,.1f}: {self.ratio:.2f} of it, 95% interval "
            f"{low:.2f} to {high:.2f}, {few}."
        )


@dataclass(frozen=True)
class LeakCheck:
    """What training negatives tell of the held-out items.

    held: how often the held-out items were drawn. against: the same of the items that they are
    ranked against, where candidates were given. hit_rate: the HR@10 of a score that has learned
    nothing but which items were drawn as negatives how often (seldom is good), ties broken by
    chance; chance: the HR@10 of no score at all. Their difference is what the negatives alone give
    away.
    """

    held: Avoidance
    against: Avoidance | None
    hit_rate: float
    chance: float

    @property
    def verdict(self) -> str:
        """'leak', 'clean', or 'undecided' where too few negatives were drawn to tell."""
        looked = [self.held] if self.against is None else [self.held, self.against]
        if any(each.avoided for each in looked):
            return "leak"
        return "clean" if all(each.tells for each in looked) else "undecided"

    @property
    def lift(self) -> float:
        """What knowing the negatives adds to HR@10: hit_rate minus chance."""
        return self.hit_rate - self.chance

    def __str__(self) -> str:
        """The finding in plain words."""
        said = {
            "leak": "LEAK: the negatives know what is held out.",
            "clean": "CLEAN: what is held out is drawn as a negative like any other item.",
            "undecided": "UNDECIDED: too few negatives to tell; draw more epochs of them.",
        }[self.verdict]
        counts = [str(each) for each in (self.held, self.against) if each is not None]
        lifted = (
            f"A score that knows nothing but how seldom an item was a negative has an HR@{TOP} of "
            f"{self.hit_rate:.3f}; chance has {self.chance:.3f}."
        )
        return "\n".join([said, *counts, lifted])


def leak_check(
    draws: Source | Callable[[], Any] | Iterable[Any] | Mapping[int, Any],
    train: Any,
    held: Any,
    *,
    items: int | None = None,
    popularity: Tensor | None = None,
    epochs: int = 10,
    negatives: int = 4,
    seed: int = 0,
) -> LeakCheck:
    """Say whether training negatives avoid the held-out items, and what that alone would score.

    draws: where the negatives come from. A `Source`, of which `epochs` epochs with so many
    `negatives` for each click are drawn; a callable without arguments, called `epochs` times, or an
    iterable, such as a DataLoader, of (user, item, target) as numbers or batches, of which those
    with target 0 count; or a dict from each user to its negatives. train: what is trained on, as
    `Interactions`, a pair (users, items), or a dict from user to items. held: what is held out, as
    any of these, or as `Candidates`: then what the held-out items are ranked against must not be
    avoided, either, and the score is among these; else among 99 items drawn with `seed`. items: I,
    where `train` is no `Interactions`; otherwise the largest item number met counts as the last.
    popularity (I,): chances, in any unit, by which a sampler draws that does not draw evenly.

    An item may be a negative of a user if the user has not met it in train, or any may, where items
    of train are among the negatives. Avoidance is tested one-sidedly at a chance of .001 to be
    wrong. How much a *model* gains is another question: train it with both kinds of negatives, as
    `benchmarks/truth.py` does.

    Raises `ParameterError` and `DataError` for what is no list of pairs or triples, for numbers out
    of range, without negatives, and for held-out items that are trained on.

    >>> train, held = {0: [0, 1], 1: [2, 3]}, {0: [2], 1: [0]}
    >>> found = leak_check({0: [3, 4, 5] * 40, 1: [1, 4, 5] * 40}, train, held, items=6)
    >>> found.verdict, int(found.held.drawn.sum()), float(found.held.expected.sum())
    ('leak', 0, 60.0)
    >>> leak_check({0: [2, 3, 4, 5] * 30, 1: [0, 1, 4, 5] * 30}, train, held, items=6).verdict
    'clean'
    """
    _check(epochs=epochs, negatives=negatives)
    drawn = _negatives(draws, epochs, negatives, seed)
    seen, out = _pairs("train", train), _pairs("held", held)
    count = _item_count(train, items, drawn, seen, out)
    ranked = held if isinstance(held, Candidates) else None
    table = _Table.of(drawn, seen, out, _weights(popularity, count))
    mine, others = table.count("the held-out items", *out), None
    if ranked is not None:
        last = int(ranked.negatives.max())
        require(last < count, "items", count, f"a candidate is {last}; count from 0")
        users = ranked.users[:, None].expand_as(ranked.negatives)
        pairs = users.flatten(), ranked.negatives.flatten()
        others = table.count("the items that they are ranked against", *pairs)
    rates = table.hit_rate(ranked or table.candidates(out, seed))
    return LeakCheck(mine, others, *rates)


@dataclass(frozen=True)
class _Table:
    """Pairs as numbers, user * I + item, growing, and what they say of the users at stake.

    users (U,): who has held-out items, growing; weight (I,): what a sampler draws by. drawn (n,):
    pairs that were negatives; times (n,): how often. barred: pairs that no sampler may draw. draws,
    free (U,): all negatives of each user, and the weight of all that may be one.
    """

    users: Tensor
    weight: Tensor
    drawn: Tensor
    times: Tensor
    barred: Tensor
    draws: Tensor
    free: Tensor

    @classmethod
    def of(cls, drawn: Pairs, seen: Pairs, out: Pairs, weight: Tensor) -> "_Table":
        """The table of these pairs; raises `DataError` where held-out items are trained on."""
        users, items = out[0].unique(), len(weight)
        mine = torch.isin(drawn[0], users)
        pairs, times = (drawn[0] * items + drawn[1])[mine].unique(return_counts=True)
        met = (seen[0] * items + seen[1])[torch.isin(seen[0], users)].unique()
        both = met[torch.isin(met, out[0] * items + out[1])]
        if len(both):
            raise DataError(
                f"item {int(both[0]) % items} of user {int(both[0]) // items} is in train and held "
                "out; hold out what is not trained on"
            )
        if not len(pairs):
            raise DataError("draws: no negatives (target 0) of the users who have held-out items")
        barred = met[:0] if bool(torch.isin(pairs, met).any()) else met
        draws = cls._by_user(users, pairs // items, times.double())
        free = weight.sum() - cls._by_user(users, barred // items, weight[barred % items])
        return cls(users, weight, pairs, times, barred, draws, free)

    @staticmethod
    def _by_user(users: Tensor, whose: Tensor, values: Tensor) -> Tensor:
        """The sum (U,) of values (n,) over each user's."""
        at = torch.searchsorted(users, whose)
        return torch.zeros(len(users), dtype=torch.float64).index_add_(0, at, values)

    def often(self, pairs: Tensor) -> Tensor:
        """How often each of these pairs, of any shape, was a negative."""
        at = torch.searchsorted(self.drawn, pairs).clamp(max=len(self.drawn) - 1)
        return self.times[at].where(self.drawn[at] == pairs, 0)

    def count(self, what: str, users: Tensor, items: Tensor) -> Avoidance:
        """How often the items of these pairs (n,) were drawn, and how often by chance."""
        pairs = (users * len(self.weight) + items).unique()
        pairs = pairs[~torch.isin(pairs, self.barred)]
        whose = pairs // len(self.weight)
        drawn = self._by_user(self.users, whose, self.often(pairs).double())
        share = self._by_user(self.users, whose, self.weight[pairs % len(self.weight)]) / self.free
        return Avoidance(what, self.users, drawn.long(), share * self.draws, int(self.draws.sum()))

    def candidates(self, out: Pairs, seed: int) -> Candidates:
        """Each held-out item, and 99 others (fewer where there are fewer) of what may be drawn."""
        items, found = len(self.weight), []
        taken = torch.cat([self.barred, out[0] * items + out[1]]).unique()
        against = min(99, items - int(torch.bincount(taken // items).max()))
        if against < 1:
            raise DataError("held: a user has no other item to be ranked against")
        for users in self.users.split(BLOCK):
            luck = Key(seed, "leak check").uniform(users, items)
            ids = taken[torch.isin(taken // items, users)]
            luck[torch.searchsorted(users, ids // items), ids % items] = -1.0
            found.append(luck.topk(against, dim=1).indices)
        return Candidates(*out, torch.cat(found)[torch.searchsorted(self.users, out[0])])

    def hit_rate(self, among: Candidates) -> tuple[float, float]:
        """HR@10 of 'seldom drawn is good', ties broken by chance, and that of chance itself."""
        first = among.users * len(self.weight)
        own = self.often(first + among.positives)[:, None]
        others = self.often(first[:, None] + among.negatives)
        better, tied = (others < own).sum(1), (others == own).sum(1)
        hits = ((TOP - better) / (tied + 1)).clamp(0, 1)
        return float(hits.mean()), min(1.0, TOP / (among.negatives.shape[1] + 1))


def _weights(popularity: Tensor | None, items: int) -> Tensor:
    """(I,) what a sampler draws by; even by default."""
    if popularity is None:
        return torch.ones(items, dtype=torch.float64)
    fits = popularity.shape == (items,) and bool((popularity > 0).all())
    require(fits, "popularity", tuple(popularity.shape), f"give {items} numbers above 0")
    return popularity.double()


def _check(**counts: int) -> None:
    for name, value in counts.items():
        require(isinstance(value, int) and value > 0, name, value, "choose a whole number from 1")


def _item_count(train: Any, items: int | None, *pairs: Pairs) -> int:
    """I; raises `ParameterError` where an item has a larger number."""
    last = max(int(each[1].max()) for each in pairs)
    known = train.item_count if isinstance(train, Interactions) else items
    count = last + 1 if known is None else known
    require(last < count, "items", count, f"there is an item {last}; count from 0")
    return count


def _pairs(name: str, value: Any) -> Pairs:
    """Users and items (n,) of whatever holds them; raises `DataError` for what does not."""
    if isinstance(value, Interactions):
        found = value.users, value.items
    elif isinstance(value, Candidates):
        found = value.users, value.positives
    elif isinstance(value, Mapping):
        each = [torch.as_tensor(list(row), dtype=torch.int64) for row in value.values()]
        sizes = torch.tensor([len(row) for row in each])
        users = torch.as_tensor(list(value), dtype=torch.int64)
        found = users.repeat_interleave(sizes), torch.cat([*each, users[:0]])
    else:
        pair = tuple(value) if isinstance(value, list | tuple) else ()
        if len(pair) != 2:
            raise DataError(f"{name}: give Interactions, (users, items), or a dict user -> items")
        found = cast(Pairs, tuple(torch.as_tensor(column).long().flatten() for column in pair))
    return _checked(name, found)


def _checked(name: str, pairs: Pairs) -> Pairs:
    users, items = pairs
    if len(users) != len(items) or not len(users):
        raise DataError(f"{name}: {len(users)} users and {len(items)} items; give as many, from 1")
    if int(users.min()) < 0 or int(items.min()) < 0:
        raise DataError(f"{name}: a negative number; users and items count from 0")
    return users, items


def _negatives(draws: Any, epochs: int, negatives: int, seed: int) -> Pairs:
    """Users and items (n,) of all negatives that `draws` gives."""
    if isinstance(draws, Mapping):
        return _pairs("draws", draws)
    if hasattr(draws, "draw"):
        keys = (Key(seed, "leak check examples", number) for number in range(1, epochs + 1))
        everyone = torch.arange(len(draws))
        columns = (draws.draw(everyone, 1, negatives, key) for key in keys)
        parts = [(each["user"], each["item"], each["target"]) for each in columns]
    elif callable(draws):
        parts = [part for _ in range(epochs) for part in _triples(draws())]
    else:
        parts = list(_triples(draws))
    if not parts:
        raise DataError("draws: it gives no (user, item, target) at all")
    users, items, targets = (torch.cat([part[at] for part in parts]) for at in range(3))
    chosen = targets < 0.5
    if not bool(chosen.any()):
        raise DataError("draws: no example has target 0, so there are no negatives to look at")
    return _checked("draws", (users[chosen], items[chosen]))


def _triples(found: Any) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Yield (users, items, targets), (n,) each, of every part of what a foreign loader gives."""
    if not isinstance(found, Iterable):
        raise DataError(f"draws: {type(found).__name__} is no Source, no dict and no iterable")
    for number, part in enumerate(found):
        if not isinstance(part, list | tuple) or len(part) != 3:
            raise DataError(
                f"draws: part {number} is no (user, item, target); wrap the loader in a generator "
                "that yields these three, as numbers or as batches of equal length"
            )
        user, item, target = (torch.as_tensor(column).flatten() for column in part)
        if not len(user) == len(item) == len(target):
            sizes = len(user), len(item), len(target)
            raise DataError(f"draws: part {number} has columns of {sizes} rows; give as many each")
        yield user.long(), item.long(), target.float()
